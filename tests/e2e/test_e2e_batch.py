"""Batch systems other than Slurm, and Node Health Check: scripts of the site's own, PBS's tools, and what asks ``pact check``.

PBS and Node Health Check are in no repository of Debian. For PBS there are programs here that print and take what its
manual says; NHC's part is the functions that it gives to its checks.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import REPOSITORY, TOP, Agent, wait_until

from pact.agent.scheduler import SchedulerError
from pact.agent.scheduler_hooks import Scripts
from pact.agent.scheduler_pbs import Pbs

SHIPPED = REPOSITORY / "packaging" / "jobs"
NODE = "n690"  # one that drains first of all (``drains.SPREAD_NS``)
RULES = [{"command": "prolog", "then": "job"}]
QUICK = {"base": "0.6s", "floor": "0.2s"}


def executable(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


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


# -- scripts of the site's own --------------------------------------------------------------------------------------


@pytest.fixture
def scripts(base: Path) -> dict[str, Any]:
    """Those that are shipped as examples, with directories of this test's."""
    where = base / "site"
    where.mkdir(exist_ok=True)
    (where / "jobs.d").mkdir(exist_ok=True)
    own = {"/run/site-jobs": str(where / "jobs.d"), "/run/site-drained": str(where / "drained")}
    paths = {}
    for name in ("jobs", "node"):
        text = (SHIPPED / name).read_text()
        for theirs, mine in own.items():
            text = text.replace(theirs, mine)
        paths[name] = executable(where / name, text)
    return {"kind": "hooks", "jobs": paths["jobs"], "control": paths["node"]}


@pytest.mark.invariant("O7")
def test_a_job_that_the_site_s_script_lists_no_more_has_ended(
    another: Callable[..., Agent], scripts: dict[str, Any], base: Path
) -> None:
    agent = another(writer=RULES, window=QUICK, scheduler=scripts)
    path, listed = agent.file("listed.conf"), base / "site" / "jobs.d" / "4711"
    listed.touch()
    prolog(agent, path, "4711")
    time.sleep(4.5)  # two rescans
    assert [h["reason"] for h in agent.status()["holds"]] == ["job 4711 runs"]
    jobs = Path(scripts["jobs"])
    text = jobs.read_text()
    executable(jobs, "#!/bin/sh\necho the database is away >&2\nexit 1\n")
    listed.unlink()
    wait_until(lambda: "the database is away" in agent.log(), "said")
    assert [h["reason"] for h in agent.status()["holds"]] == ["job 4711 runs"]
    executable(jobs, text)
    agent.settled(f"file:{path}")
    assert agent.newest("hold_released")["data"]["cause"] == "job 4711 has ended"


@pytest.mark.invariant("O8")
def test_the_site_s_script_drains_and_leaves_what_others_have_drained(
    another: Callable[..., Agent], scripts: dict[str, Any], base: Path
) -> None:
    agent = another(node={"name": NODE}, window=QUICK, scheduler={**scripts, "drain": True})
    drained = base / "site" / "drained"
    with blocked(agent, "site.conf") as change:
        wait_until(drained.exists, "drained")
        assert drained.read_text() == f"pact: {change} blocked\n"
    wait_until(lambda: not drained.exists(), "in service")
    drained.write_text("ann: a new disk\n")
    with blocked(agent, "site.conf"):
        left = wait_until(lambda: agent.status()["scheduler"].get("not_drained"), "looked at")
        assert left == "somebody else has drained it: ann: a new disk"
    assert drained.read_text() == "ann: a new disk\n"


def prolog(agent: Agent, path: str, job: str) -> None:
    """A prolog of the job sets a value."""
    script = f"{TOP}/prolog"
    agent.world.path(script).write_text(f"#!/bin/sh\nsh -c 'echo tuned > {path}; sleep 1'\n")
    agent.world.path(script).chmod(0o755)
    agent.world.call(["env", f"PBS_JOBID={job}", script])
    wait_until(lambda: f"job {job} runs" in [h["reason"] for h in agent.status()["holds"]], "held")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("yes x", "printed more than 1 MiB"),
        ("printf '%s\\n' '7; rm -rf /'", "which is no name of a job"),
        ("printf '\\033[2J\\n'", "which is no name of a job"),
        ("sleep 1000 & echo 7; exec sleep 1000", "did not end within"),
    ],
)
@pytest.mark.invariant("F84")
def test_a_script_that_prints_nonsense_or_hangs_says_nothing(
    text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pact.agent.scheduler.ran.__defaults__", (2.0,))
    began_s = time.monotonic()
    with pytest.raises(SchedulerError, match=why):
        Scripts(executable(tmp_path / "jobs", f"#!/bin/sh\n{text}\n"), "/nonexistent").running()
    assert time.monotonic() - began_s < 10


def test_a_script_that_leaves_a_process_behind_is_not_waited_for(tmp_path: Path) -> None:
    seen = Scripts(executable(tmp_path / "jobs", "#!/bin/sh\nsleep 2 &\necho 7\n"), "").running()
    assert seen.jobs == {"7"} and not seen.why


@pytest.mark.invariant("S9", "F84")
def test_a_script_that_others_could_write_is_not_run(tmp_path: Path) -> None:
    path = Path(executable(tmp_path / "jobs", "#!/bin/sh\necho 7\n"))
    path.chmod(0o777)
    with pytest.raises(SchedulerError, match="others"):
        Scripts(str(path), "").running()
    with pytest.raises(SchedulerError, match="no such file"):
        Scripts(str(tmp_path / "none"), "").running()


# -- PBS ------------------------------------------------------------------------------------------------------------

PBSNODES = """#!{python}
import json, sys
state = json.load(open({file!r}))
words = sys.argv[1:]
if words[0] in ("-o", "-r"):
    assert words[1] == "-C" and words[3:] == ["n1"], words
    states = [s for s in state["state"].split(",") if s != "offline"]
    state = {{"state": ",".join(states + ["offline"] * (words[0] == "-o")), "comment": words[2]}}
    json.dump(state, open({file!r}, "w"))
else:
    assert words == ["n1"], words
    print("n1\\n     Mom = n1.site\\n     state = " + state["state"])
    if state["comment"]:
        print("     comment = " + state["comment"])
    print("     resources_available.ncpus = 8")
"""


@pytest.fixture
def pbs(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Sets and gives the node's state at the server."""
    file = tmp_path / "state"
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin" / "pbsnodes", PBSNODES.format(python=sys.executable, file=str(file)))

    def state(**new: str) -> dict[str, str]:
        if new:
            file.write_text(json.dumps(new))
        return json.loads(file.read_text())  # type: ignore[no-any-return]

    state(state="free", comment="")
    return state


@pytest.mark.invariant("O8")
def test_pbs_takes_a_node_offline_and_back_and_leaves_what_others_did(
    pbs: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    node = Pbs("n1", str(tmp_path / "bin"))
    assert node.settle("pact: c7 blocked", [], was_set=False).reason == "pact: c7 blocked"
    assert pbs() == {"state": "free,offline", "comment": "pact: c7 blocked"}
    assert node.settle("pact: c7 failed", ["pact: c7 blocked"], was_set=False).reason == "pact: c7 failed"
    assert pbs()["comment"] == "pact: c7 failed"
    pbs(state="free", comment="")
    assert node.settle("pact: c7 failed", ["pact: c7 failed"], was_set=True).left
    pbs(state="job-busy,offline", comment="pact: c7 failed")
    assert node.settle("", ["pact: c7 failed"], was_set=False) == ("", "", False)
    assert pbs() == {"state": "job-busy", "comment": ""}
    for state, comment in (("free,offline", "a new disk"), ("offline", ""), ("down,offline", "pact: c7 failed")):
        pbs(state=state, comment=comment)
        assert node.settle("pact: c8 blocked", ["pact: c7 failed"], was_set=False).left
        node.settle("", ["pact: c7 failed"], was_set=False)
        assert pbs() == {"state": state, "comment": comment}


@pytest.mark.invariant("O7")
def test_pbs_jobs_are_those_of_its_daemon_s_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf, home = tmp_path / "pbs.conf", tmp_path / "pbs"
    conf.write_text(f"PBS_SERVER=s1\nPBS_HOME={home}\n")
    monkeypatch.setenv("PBS_CONF_FILE", str(conf))
    (home / "mom_priv" / "jobs").mkdir(parents=True)
    for name in ("12.s1.JB", "13[1].s1.JB", "12.s1.SC", "x y.JB"):
        (home / "mom_priv" / "jobs" / name).touch()
    assert Pbs("n1").running().why == "pbs_mom does not run"
    mom = tmp_path / "pbs_mom"
    mom.symlink_to("/bin/sleep")
    with subprocess.Popen([mom, "60"]) as process:
        try:
            seen = wait_until(lambda: (s := Pbs("n1").running()) and not s.why and s, "the daemon runs")
            assert seen.jobs == {"12.s1", "13[1].s1"}
        finally:
            process.kill()


# -- Node Health Check ----------------------------------------------------------------------------------------------

#: What NHC gives its checks: these functions end nothing here, as in its own tests.
NHC = """
function die() {{ local code="$1"; shift; echo "DIE $code $*"; return 0; }}
function log() {{ echo "LOG $*"; }}
function dbg() {{ echo "DBG $*"; return 1; }}
PACT={pact}
source {script}
{call}
echo "RETURNED $?"
"""


@pytest.fixture(scope="module")
def nhc(running: Agent) -> Callable[[str], list[str]]:
    """Runs a line of nhc.conf as NHC does. Returns what was said."""
    command = f'cd / && PYTHONPATH={REPOSITORY} exec {sys.executable} -m pact.cli.main --socket {running.socket} "$@"'
    pact = executable(running.base / "pact", f"#!/bin/sh\n{command}\n")

    def check(call: str) -> list[str]:
        script = NHC.format(pact=shlex.quote(pact), script=SHIPPED / "pact.nhc", call=call)
        return running.world.call(["bash", "-c", script]).out.splitlines()

    return check


@pytest.mark.invariant("F58")
def test_nhc_tells_order_drift_and_cannot_say_apart(agent: Agent, nhc: Callable[[str], list[str]]) -> None:
    path = agent.file("nhc.conf")
    said, returned = nhc("check_pact")
    assert said.startswith("DBG check_pact:  committed: 1 declared") and returned == "RETURNED 0"
    agent.drift(path)
    said, returned = nhc("check_pact")
    assert said == "DIE 11 check_pact:  drifted: 1 of 1 drifted" and returned == "RETURNED 11"
    said, returned = nhc("check_pact warn")
    assert said == "LOG check_pact:  drifted: 1 of 1 drifted" and returned == "RETURNED 0"
    agent.pact("rollback", "--all")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    try:
        said, returned = nhc("check_pact fail 500ms")
        assert said.startswith("LOG check_pact:  cannot say:  pact: the agent") and returned == "RETURNED 0"
        said, returned = nhc("check_pact strict 500ms")
        assert said.startswith("DIE 5 check_pact:  cannot say:") and returned == "RETURNED 5"
    finally:
        agent.process.send_signal(signal.SIGCONT)
    assert nhc("check_pact sometimes")[0].startswith("DIE 1 check_pact:  unknown mode")


def test_what_is_shipped_can_be_read_by_its_shell() -> None:
    for path in SHIPPED.iterdir():
        shell = "bash" if path.suffix == ".nhc" else "sh"
        assert subprocess.run([shell, "-n", path], check=False).returncode == 0, path
        assert path.read_text().startswith("#") and bool(path.stat().st_mode & 0o111) == (shell == "sh"), path


def test_nhc_with_a_pact_that_cannot_run_cannot_say(nhc: Callable[[str], list[str]]) -> None:
    said, returned = nhc("PACT=/nonexistent; check_pact")
    assert said.startswith("LOG check_pact:  cannot say:  pact check ended with 127") and returned == "RETURNED 0"
