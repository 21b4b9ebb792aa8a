"""Runs of tools: each has a change of its own, and a site's rules say what becomes of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from harness import TOP, Agent, World, wait_until

ANN = 1234


def tool(world: World, name: str, script: str) -> str:
    """A script of this name."""
    path = f"{TOP}/bin/{name}"
    world.path(f"{TOP}/bin").mkdir(exist_ok=True)
    world.path(path).write_text(f"#!/bin/sh\n{script}\n")
    world.path(path).chmod(0o755)
    return path


def under_way(world: World, name: str, script: str, *, uid: int = 0, job: str = "") -> subprocess.Popen[Any]:
    """Run it up to where it reads its input."""
    who = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"] if uid else []
    command = [*who, *(["env", f"SLURM_JOB_ID={job}"] if job else []), tool(world, name, script)]
    process = world.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"written\n"
    return process


def write(*pairs: str) -> str:
    """A script that lets other processes write these files, and then waits."""
    lines = [f"sh -c 'echo {text} > {path}; sleep 0.8'" for path, text in zip(pairs[::2], pairs[1::2], strict=True)]
    return "\n".join([*lines, "echo written; read line"])


def emptied(path: str, text: str, before: float = 0.5) -> str:
    """The same for one file, which is empty for so many seconds before."""
    return f"sh -c '(sleep {before}; echo {text}) > {path}; sleep 0.8'\necho written; read line"


def replaced(path: str, text: str) -> str:
    """The same for one file, which is never empty meanwhile, however slow the machine is."""
    return f"sh -c 'echo {text} > {path}.new; mv {path}.new {path}; sleep 0.8'\necho written; read line"


@pytest.mark.invariant("O5")
def test_a_package_manager_s_run_is_a_change_of_its_own(agent: Agent) -> None:
    """What the same person changes by hand beside it is another change."""
    one, two, mine = (agent.file(n) for n in ("one.conf", "two.conf", "mine.conf"))
    agent.drift(mine)
    run = under_way(agent.world, "apt-get", write(one, "new", two, "new"))
    change = wait_until(lambda: agent.change_of(f"file:{two}"), "the run's change")
    assert change["resources"] == sorted([f"file:{one}", f"file:{two}"])
    assert change["owner"]["run"] == "apt-get" and change["owner"]["user"] == "root"
    assert agent.change_of(f"file:{mine}")["id"] != change["id"]
    assert "root with apt-get" in agent.pact("status").out
    agent.world.end(run)
    again = under_way(agent.world, "apt-get", write(one, "newer"))
    other = wait_until(
        lambda: c if (c := agent.change_of(f"file:{one}"))["id"] != change["id"] else None, "another run's change"
    )
    assert other["resources"] == [f"file:{one}"] and other["also"] == []
    agent.world.end(again)
    agent.pact("rollback", "--all")


@pytest.mark.invariant("O5")
def test_the_name_of_another_account_s_program_says_nothing(agent: Agent) -> None:
    path = agent.file("named.conf", mode=0o666)
    run = under_way(agent.world, "apt-get", write(path, "forged"), uid=ANN)
    change = wait_until(lambda: agent.change_of(f"file:{path}"), "the drift")
    assert "run" not in change["owner"] and change["owner"]["uid"] == ANN
    agent.world.end(run)
    agent.pact("rollback", "--all")


RULES = [
    {"command": "puppet", "then": "commit"},
    {"command": "cf-agent", "then": "rollback"},
    {"command": "salt-call", "then": "hold"},
    {"command": "prolog", "then": "job"},
    {"command": "tuned-adm", "then": "window"},
]


@pytest.mark.invariant("O5")
def test_an_accepted_writer_s_run_is_one_commit(another: Callable[..., Agent]) -> None:
    agent = another(writer=RULES)
    one, two, mine = (agent.file(n) for n in ("p1.conf", "p2.conf", "mine.conf"))
    agent.drift(mine)
    run = under_way(agent.world, "puppet", write(one, "site", two, "site"))
    assert agent.records("committed") == []
    agent.world.end(run)
    record = wait_until(lambda: agent.newest("committed"), "the commit")
    assert sorted(record["data"]["resources"]) == sorted([f"file:{one}", f"file:{two}"])
    assert record["data"]["message"] == "by the rule for root with puppet"
    assert record["data"]["owner"]["run"].startswith("puppet#") and record["actor"]["via"] == "timer"
    assert [c["resources"] for c in agent.status()["changes"]] == [[f"file:{mine}"]]
    assert agent.world.path(one).read_text() == "site\n"


@pytest.mark.invariant("O5")
def test_an_accepted_writer_is_never_rolled_back_by_a_short_window(another: Callable[..., Agent]) -> None:
    agent = another(writer=RULES, window={"base": "0.4s", "floor": "0.2s"})
    path = agent.file("short.conf")
    run = under_way(agent.world, "puppet", write(path, "site"))
    wait_until(lambda: agent.newest("committed"), "the commit")
    assert agent.world.path(path).read_text() == "site\n" and agent.records("rollback_started") == []
    agent.world.end(run)


@pytest.mark.invariant("O5", "C9")
def test_a_rule_accepts_no_work_of_somebody_else(another: Callable[..., Agent]) -> None:
    agent = another(writer=RULES)
    path, other = agent.file("theirs.conf", mode=0o666), agent.file("own.conf")
    agent.drift_by(ANN, path, "ann's")
    run = under_way(agent.world, "puppet", write(path, "site", other, "site"))
    agent.world.end(run)
    record = wait_until(lambda: agent.newest("committed"), "the commit")
    assert list(record["data"]["resources"]) == [f"file:{other}"]
    (change,) = agent.status()["changes"]
    assert change["resources"] == [f"file:{path}"] and change["also"][0]["uid"] == ANN and change["deadline"]


@pytest.mark.invariant("O5")
def test_a_writer_that_must_not_write_is_undone_at_once(another: Callable[..., Agent]) -> None:
    agent = another(writer=RULES)
    path = agent.file("undone.conf")
    run = under_way(agent.world, "cf-agent", write(path, "forbidden"))
    agent.world.end(run)
    record = wait_until(lambda: agent.newest("rolled_back"), "the rollback")
    assert record["data"]["cause"] == "rule" and agent.world.path(path).read_text() == "declared\n"


@pytest.mark.invariant("R3", "O5")
def test_two_who_fight_for_ever_are_contended_with_the_tool_s_name(another: Callable[..., Agent]) -> None:
    agent = another(writer=RULES)
    path = agent.file("fought.conf")
    for n in range(3):
        agent.world.end(under_way(agent.world, "cf-agent", write(path, f"again {n}")))
        wait_until(lambda n=n: len(agent.records("rolled_back")) > n or agent.newest("rollback_blocked"), "an end")
    assert "contended by root with cf-agent" in agent.newest("rollback_blocked")["data"]["reason"]


@pytest.mark.invariant("O6")
def test_a_held_writer_s_change_begins_with_a_hold(another: Callable[..., Agent]) -> None:
    agent = another(writer=RULES, window={"base": "0.4s", "floor": "0.2s"})
    path = agent.file("held.conf")
    run = under_way(agent.world, "salt-call", write(path, "salt"))
    change = wait_until(lambda: agent.change_of(f"file:{path}"), "the drift")
    agent.world.end(run)
    assert change["state"] == "held" and change["deadline"] is None
    (hold,) = agent.status()["holds"]
    assert hold["reason"] == "by the rule for root with salt-call"
    agent.pact("hold", "release", hold["id"])
    wait_until(lambda: agent.newest("rolled_back"), "the window's end")


def held_for(agent: Agent) -> list[str]:
    return sorted(h["reason"] for h in agent.status()["holds"])


@pytest.mark.invariant("O7")
def test_what_a_prolog_sets_lasts_as_long_as_its_job(another: Callable[..., Agent]) -> None:
    """Another job's prolog sets the same value: it lasts as long as either of them, and then has a full window."""
    agent = another(writer=RULES, window={"base": "0.6s", "floor": "0.2s"})
    path = agent.file("job.conf")
    agent.world.end(under_way(agent.world, "prolog", write(path, "tuned"), job="71"))
    first = wait_until(lambda: agent.change_of(f"file:{path}"), "the drift")
    assert first["state"] == "held" and held_for(agent) == ["job 71 runs"]
    assert agent.pact("check").out == "drifted: 1 declared; 1 set for jobs\n"
    prolog = under_way(agent.world, "prolog", replaced(path, "tuned"), job="72")
    wait_until(lambda: held_for(agent) == ["job 71 runs", "job 72 runs"], "72's")
    agent.world.end(prolog)
    assert agent.pact("epilog", "--job", "71").out == ""
    wait_until(lambda: held_for(agent) == ["job 72 runs"], "71 has ended")
    assert agent.change_of(f"file:{path}")["state"] == "held"
    agent.pact("epilog", "--job", "72")
    wait_until(lambda: agent.ask("check")["exit"] == 11, "it is drift again")
    wait_until(lambda: agent.newest("rolled_back"), "the window's end")
    opened, closed = agent.newest("hold_released"), agent.newest("rollback_started")
    assert opened["data"]["cause"] == "job 72 has ended" and seconds(opened, closed) >= 0.5


@pytest.mark.invariant("O7")
def test_a_prolog_that_empties_the_file_before_it_writes_it_takes_no_hold_away(another: Callable[..., Agent]) -> None:
    """The agent looks while the file is empty: for a moment it is no longer what the first job has set."""
    agent = another(writer=RULES)
    path = agent.file("emptied.conf")
    agent.world.end(under_way(agent.world, "prolog", write(path, "tuned"), job="71"))
    wait_until(lambda: held_for(agent) == ["job 71 runs"], "held")
    prolog = under_way(agent.world, "prolog", emptied(path, "tuned"), job="72")
    wait_until(lambda: held_for(agent) == ["job 71 runs", "job 72 runs"], "held for both")
    agent.world.end(prolog)
    assert any(r["data"]["actual"]["size"] == 0 for r in agent.records("drift_detected")), "it was seen empty"
    agent.pact("epilog", "--job", "72")
    wait_until(lambda: held_for(agent) == ["job 71 runs"], "72 has ended")
    assert agent.change_of(f"file:{path}")["state"] == "held"


@pytest.mark.invariant("O7")
def test_what_two_jobs_want_of_a_change_is_held_for_both_and_the_rest_for_one(another: Callable[..., Agent]) -> None:
    agent = another(writer=RULES)
    one, two = agent.file("both.conf"), agent.file("mine.conf")
    agent.world.end(under_way(agent.world, "prolog", write(one, "tuned", two, "tuned"), job="71"))
    first = wait_until(lambda: c if (c := agent.change_of(f"file:{two}")) else None, "the drift")
    assert first["resources"] == sorted([f"file:{one}", f"file:{two}"])
    agent.world.end(under_way(agent.world, "prolog", replaced(one, "tuned"), job="72"))
    wait_until(lambda: held_for(agent) == ["job 71 runs", "job 71 runs", "job 72 runs"], "a change for both")
    agent.pact("epilog", "--job", "71")
    wait_until(lambda: held_for(agent) == ["job 72 runs"], "71 has ended")
    assert agent.change_of(f"file:{one}")["state"] == "held" and agent.change_of(f"file:{two}")["state"] == "open"


@pytest.mark.invariant("O7", "S1")
def test_nobody_but_root_says_that_a_job_has_ended(another: Callable[..., Agent]) -> None:
    agent = another(writer=RULES)
    path = agent.file("safe.conf")
    agent.world.end(under_way(agent.world, "prolog", write(path, "tuned"), job="71"))
    wait_until(lambda: held_for(agent) == ["job 71 runs"], "held")
    done = agent.pact("epilog", "--job", "71", uid=ANN, check=3)
    assert "needs the role admin" in done.err
    assert agent.pact("epilog", "--job", "no job", check=2).err and agent.pact("epilog", check=2).err
    time.sleep(2.0)  # more than it takes to believe an epilog
    assert held_for(agent) == ["job 71 runs"]


@pytest.mark.invariant("O7")
def test_what_an_epilog_says_counts_though_the_agent_sleeps_or_is_killed(another: Callable[..., Agent]) -> None:
    """It returns at once with 0, and counts when the agent goes on; and a job whose end was told has ended for the next
    run of the agent, too."""
    agent = another(writer=RULES)
    path = agent.file("slept.conf")
    agent.world.end(under_way(agent.world, "prolog", write(path, "tuned"), job="71"))
    wait_until(lambda: held_for(agent) == ["job 71 runs"], "held")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    began_s = time.monotonic()
    done = agent.pact("epilog", "--job", "71")
    assert time.monotonic() - began_s < 5 and "finds out by itself" in done.err
    agent.process.send_signal(signal.SIGCONT)
    wait_until(lambda: held_for(agent) == [], "it counts")
    agent.world.end(under_way(agent.world, "prolog", write(agent.file("killed.conf"), "tuned"), job="72"))
    wait_until(lambda: held_for(agent) == ["job 72 runs"], "held")
    agent.pact("epilog", "--job", "72")
    agent.restart(signal.SIGKILL)
    wait_until(lambda: held_for(agent) == [], "it is remembered")
    agent.stop()
    assert agent.pact("epilog", "--job", "73").code == 0


@pytest.mark.invariant("O7")
def test_an_epilog_that_takes_it_back_after_telling_leaves_no_window(another: Callable[..., Agent]) -> None:
    agent = another(writer=RULES)
    path = agent.file("back.conf")
    agent.world.end(under_way(agent.world, "prolog", write(path, "tuned"), job="71"))
    wait_until(lambda: held_for(agent) == ["job 71 runs"], "held")
    command = f"{sys.executable} -m pact.cli.main --socket {agent.socket} epilog"
    back = replaced(path, "declared")
    epilog = under_way(agent.world, "epilog", f"{command}; sleep 2.5; {back}", job="71")
    agent.settled(f"file:{path}")
    agent.world.end(epilog)
    assert agent.records("window_opened") == [] and agent.records("hold_released") == []


def seconds(earlier: Any, later: Any) -> float:
    began, ended = (datetime.fromisoformat(r["time"]) for r in (earlier, later))
    return (ended - began).total_seconds()


def test_rules_that_cannot_hold_are_refused(another: Callable[..., Agent]) -> None:
    agent = another()
    agent.stop()
    for rule, why in (
        ({"then": "commit"}, "names nobody"),
        ({"comand": "x", "then": "commit"}, "did you mean 'command'?"),
        ({"command": "x", "then": "accept"}, "then must be one of"),
        ({"command": "", "then": "commit"}, "must be a string"),
        ({"command": "x"}, "then must be one of"),
    ):
        agent.configure({"writer": [rule]})
        done = agent.refuses_to_start()
        assert done.code == 2 and why in done.err and "writer" in done.err, done
    agent.configure({"writer": [{"unit": "p*", "then": "commit"}, {"unit": "puppet.service", "then": "rollback"}]})
    done = agent.refuses_to_start()
    assert done.code == 2 and "writer 2 can never hold: 1 above it describes the same writers" in done.err, done
