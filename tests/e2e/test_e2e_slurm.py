"""A real Slurm: what its prologs set lasts as long as its jobs, what its jobs hold is named, and its nodes are drained."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from harness import REPOSITORY, Agent, World
from harness import wait_until as waiting
from slurm import NEEDED, NODE, Slurm

pytestmark = pytest.mark.needs(*NEEDED)

SCHEDULER = {"kind": "slurm", "drain": True}
RULES = [{"command": "slurmd", "then": "job"}]  # what slurmd itself starts: prologs and epilogs, and no job


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 0.0) -> Any:
    """Slurm's daemons take their time, and more where other tests fill the machine."""
    return waiting(condition, what, max(seconds, 60.0))


@pytest.fixture(scope="module")
def slurm(world: World) -> Iterator[Slurm]:
    slurm = Slurm(world)
    yield slurm
    slurm.close()


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {
        "node": {"name": NODE},
        "scheduler": SCHEDULER,
        "writer": RULES,
        "rollback": {"on_busy": "retry", "retry": "1h"},
        "window": {"base": "0.8s", "floor": "0.2s"},
    }


@pytest.fixture(scope="module")
def running(slurm: Slurm, make_agent: Callable[..., Agent], config: dict[str, Any]) -> Agent:
    """The agent starts beside a running Slurm, and has what its unit leaves it."""
    agent = make_agent(**config)
    if shutil.which("systemd-analyze"):
        unit = REPOSITORY / "packaging" / "pact-agent.service"
        agent.before = [sys.executable, str(REPOSITORY / "tests" / "under_unit.py"), str(unit), "--"]
    agent.start()
    return agent


@pytest.fixture(autouse=True)
def back_in_service(slurm: Slurm) -> Iterator[None]:
    yield
    slurm.script("prolog", "exit 0")
    slurm.script("epilog", "exit 0")


def epilog(agent: Agent) -> str:
    """A line of a site's epilog."""
    return f"PYTHONPATH={REPOSITORY} {sys.executable} -m pact.cli.main --socket {agent.socket} epilog"


def hold_reasons(agent: Agent) -> list[str]:
    return [h["reason"] for h in agent.status()["holds"]]


def jobs_using(agent: Agent, path: str) -> set[str]:
    return {h["job"] for h in agent.ask("consumers", resource=f"file:{path}")["result"]["consumers"]}


def told(agent: Agent, since: int, *types: str) -> list[Any]:
    """Records of these types after this one."""
    return [r for r in agent.records() if r["seq"] > since and r["type"] in types]


@pytest.mark.invariant("O7", "F5")
def test_a_job_that_holds_a_file_is_named_and_its_epilog_wakes_the_rollback(slurm: Slurm, agent: Agent) -> None:
    path = agent.file("held.conf")
    slurm.script("epilog", epilog(agent))
    job = slurm.submit(f"exec 3<{path}; exec sleep 600", user="nobody")
    wait_until(lambda: job in jobs_using(agent, path), "the job holds it")
    agent.drift(path)
    blocked = wait_until(lambda: agent.newest("rollback_blocked"), "the rollback is blocked")
    assert {h["job"] for h in blocked["data"]["holders"]} == {job}
    slurm.cancel(job)
    done = wait_until(lambda: agent.newest("rolled_back"), "the epilog woke it", 30)
    assert done["data"]["cause"] == "retry"
    assert agent.world.path(path).read_text() == "declared\n"


@pytest.mark.invariant("O7")
def test_what_a_prolog_sets_job_after_job_has_no_window_while_a_job_runs(slurm: Slurm, agent: Agent) -> None:
    """Today a prolog that sets the same value job after job got the first job's window back, and was rolled back in
    mid-job."""
    path, seen = agent.file("tuned.conf"), agent.status()["journal"]["seq"]
    slurm.script("prolog", f"sh -c 'echo tuned > {path}; sleep 1'")
    slurm.script("epilog", f"{epilog(agent)}\nsh -c 'sleep 1; echo declared > {path}; sleep 1'")
    for _ in range(2):
        job = slurm.submit("sleep 1")
        wait_until(lambda job=job: f"job {job} runs" in hold_reasons(agent), "held while it runs", 20)
        assert agent.world.path(path).read_text() == "tuned\n"
        slurm.finished(job)
        agent.settled(f"file:{path}")
    assert told(agent, seen, "window_opened", "rollback_started") == []


@pytest.mark.invariant("O7", "O5")
def test_what_a_job_itself_changes_has_a_window_like_anybody_s(slurm: Slurm, agent: Agent) -> None:
    path = agent.file("user.conf", mode=0o666)
    job = slurm.submit(f"echo mine > {path}; sleep 2", user="nobody")
    found = wait_until(lambda: [r for r in agent.records("drift_detected") if path in str(r["data"])], "the drift")
    assert found[0]["data"]["owner"]["user"] == "nobody" and "then" not in found[0]["data"]["owner"]
    agent.settled(f"file:{path}")
    assert [r for r in agent.records("hold_placed") if job in r["data"]["reason"]] == []
    slurm.cancel(job)


@pytest.mark.invariant("O7")
def test_an_epilog_that_was_never_heard_of_holds_nothing_for_ever(slurm: Slurm, agent: Agent) -> None:
    path = agent.file("lost.conf")
    slurm.script("prolog", f"sh -c 'echo tuned > {path}; sleep 1'")
    job = slurm.submit("sleep 5")
    wait_until(lambda: f"job {job} runs" in hold_reasons(agent), "held while it runs", 20)
    agent.pact("epilog", "--job", job)  # too early: it runs
    time.sleep(2.5)
    assert hold_reasons(agent) == [f"job {job} runs"] and slurm.steps()
    slurm.finished(job)
    agent.settled(f"file:{path}", 30)  # found at a rescan
    assert agent.newest("hold_released")["data"]["cause"] == f"job {job} has ended"
    assert path in str(agent.newest("rolled_back")["data"])


@pytest.mark.invariant("O7")
def test_an_allocation_between_two_steps_has_not_ended(slurm: Slurm, agent: Agent) -> None:
    """Nothing of it runs on the node then: only the controller can say so, and is asked about this one job."""
    path = agent.file("between.conf")
    slurm.script("prolog", f"sh -c 'echo tuned > {path}; sleep 1'")
    slurm.call("salloc", "--no-shell", "-n1", "-J", "between")
    job = slurm.call("squeue", "-h", "-n", "between", "-o", "%A").out.strip()
    slurm.call("srun", f"--jobid={job}", "true")
    wait_until(lambda: f"job {job} runs" in hold_reasons(agent), "held")
    wait_until(lambda: not slurm.steps(), "no step runs")
    wait_until(lambda: agent.status()["scheduler"]["asked_about"] == [job], "the controller is asked")
    assert hold_reasons(agent) == [f"job {job} runs"]
    slurm.cancel(job)
    slurm.finished(job)
    agent.pact("epilog", "--job", job)
    agent.settled(f"file:{path}")


@pytest.mark.invariant("F82")
def test_what_slurmd_cannot_say_ends_no_job(slurm: Slurm, agent: Agent) -> None:
    path = agent.file("unsaid.conf")
    slurm.script("prolog", f"sh -c 'echo tuned > {path}; sleep 1'")
    job = slurm.submit("sleep 4")
    wait_until(lambda: f"job {job} runs" in hold_reasons(agent) and slurm.steps(), "held")
    slurm.stop("slurmd", signal.SIGKILL)
    try:
        wait_until(lambda: "slurmd does not run" in agent.log(), "said once", 20)
        wait_until(lambda: not slurm.steps(), "its last process has ended")
        time.sleep(2.5)  # a rescan has passed
        assert hold_reasons(agent) == [f"job {job} runs"]
    finally:
        slurm.start("slurmd")
    slurm.finished(job)
    agent.settled(f"file:{path}", 30)


# -- draining -----------------------------------------------------------------------------------------------------


@contextmanager
def blocked(agent: Agent, name: str) -> Iterator[str]:
    """A change that is blocked, because somebody reads its file. Settled at the end."""
    path = agent.file(name)
    reader = agent.world.python("f = open(sys.argv[1]); ready()", path)
    change = agent.drift(path)
    wait_until(lambda: agent.change_of(f"file:{path}")["state"] == "blocked", "blocked")
    try:
        yield str(change["id"])
    finally:
        agent.world.end(reader)
        agent.pact("rollback", "--all")


def drained(agent: Agent, slurm: Slurm, reason: str) -> None:
    wait_until(lambda: slurm.state() == f"drained {reason}", f"drained: {slurm.state()}\n{agent.log()[-2000:]}", 20)


def in_service(agent: Agent, slurm: Slurm) -> None:
    wait_until(lambda: slurm.state() == "idle none", f"in service: {slurm.shown()}", 30)


@pytest.mark.invariant("O8")
def test_a_blocked_change_drains_the_node_until_it_is_settled(slurm: Slurm, agent: Agent) -> None:
    in_service(agent, slurm)
    with blocked(agent, "drain.conf") as change:
        drained(agent, slurm, f"pact: {change} blocked")
        wait_until(lambda: agent.status()["scheduler"]["drained"] == f"pact: {change} blocked", "the agent knows it")
        agent.restart()
        time.sleep(1)
        assert slurm.state() == f"drained pact: {change} blocked"
    in_service(agent, slurm)


@pytest.mark.invariant("O8")
def test_a_stale_emergency_drains_the_node(slurm: Slurm, agent: Agent) -> None:
    agent.pact("emergency", "start", "--reason", "a reason='x' state=down", "--for", "200ms")
    drained(agent, slurm, "pact: emergency by root is stale")
    agent.pact("emergency", "end", "--rollback")
    in_service(agent, slurm)


@pytest.mark.invariant("O8")
def test_the_drain_of_an_administrator_is_left_alone(slurm: Slurm, agent: Agent) -> None:
    slurm.update("state=drain", "reason=disk is dying")
    with blocked(agent, "admin.conf"):
        left = wait_until(lambda: agent.status()["scheduler"].get("not_drained"), "it is looked at", 20)
        assert left == "somebody else has drained it: disk is dying"
        assert slurm.state() == "drained disk is dying"
    time.sleep(4)
    assert slurm.state() == "drained disk is dying"
    slurm.update("state=resume")
    in_service(agent, slurm)


@pytest.mark.invariant("O8")
def test_what_an_administrator_puts_back_into_service_is_not_drained_again(slurm: Slurm, agent: Agent) -> None:
    with blocked(agent, "again.conf") as change:
        drained(agent, slurm, f"pact: {change} blocked")
        slurm.update("state=undrain")
        agent.restart()  # it looks at once, and knows what it had set
        left = wait_until(lambda: agent.status()["scheduler"].get("not_drained"), "it is looked at", 20)
        assert left == "a person has put it back into service" and "drain" not in slurm.state()
    in_service(agent, slurm)


@pytest.mark.invariant("O8")
def test_a_node_that_is_down_is_not_touched(slurm: Slurm, agent: Agent) -> None:
    slurm.update("state=down", "reason=kernel panic")
    with blocked(agent, "down.conf"):
        left = wait_until(lambda: agent.status()["scheduler"].get("not_drained"), "it is looked at", 20)
        assert left == "the node is DOWN" and slurm.state() == "down kernel panic"
    slurm.update("state=resume")
    in_service(agent, slurm)


@pytest.mark.invariant("F83", "O8")
def test_a_controller_that_is_away_delays_the_drain_and_nothing_else(slurm: Slurm, agent: Agent) -> None:
    slurm.stop("slurmctld")
    try:
        with blocked(agent, "away.conf") as change:
            wait_until(lambda: agent.status()["scheduler"].get("error"), "said", 40)
            began_s = time.monotonic()
            assert "blocked" in agent.pact("check", check=11).out and time.monotonic() - began_s < 1
            slurm.start("slurmctld")
            wait_until(lambda: f"pact: {change} blocked" in slurm.state(), f"drained at last\n{agent.log()}", 40)
    finally:
        if "slurmctld" not in slurm.daemons:
            slurm.start("slurmctld")
    in_service(agent, slurm)
