"""The cgroup of a session: which one the kernel gives, what bounds it has, and who is in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from session_kit import Sessions, wait_until

from pact.session import cgroups

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    made = Sessions(twin=True)
    yield made
    made.close()


def test_a_command_has_less_weight_than_others(sessions: Sessions) -> None:
    state = sessions.open("a", "read _", whole=True)
    plain = sessions.open("b", "read _")
    shares = [Path(f"{g}/cpu.shares") for g in state["cgroups"] if os.path.exists(f"{g}/cpu.shares")]
    weights = [Path(f"{g}/cpu.weight") for g in state["cgroups"] if os.path.exists(f"{g}/cpu.weight")]
    if not shares and not weights:
        pytest.skip("there is no cpu controller")
    assert [p.read_text() for p in shares] == ["256\n"] * len(shares)
    assert [p.read_text() for p in weights] == ["25\n"] * len(weights)
    group = next(g for g in state["cgroups"] if os.path.exists(f"{g}/cpu.shares") or os.path.exists(f"{g}/cpu.weight"))
    assert state["pid"] in cgroups.members(group)
    assert not [g for g in plain["cgroups"] if os.path.exists(f"{g}/cpu.shares")]


ENTER = """
import json, os, signal, subprocess, sys, time
from pact.session import cgroups
with open(sys.argv[1] + "/cgroup.procs", "w") as f: f.write(str(os.getpid()))
keeper = subprocess.Popen(["sleep", "60"])
made = cgroups.enter("x1-1", 50, 25)
child = subprocess.Popen(["sleep", "60"])
mine = [path for path in made if path.startswith(sys.argv[1])]
def inside(pid):
    rows = open(f"/proc/{pid}/cgroup").read().splitlines()
    return any(row.startswith("0::") and row.endswith("/pact-session-x1-1") for row in rows)
print(json.dumps([inside(os.getpid()), inside(child.pid), inside(keeper.pid), len(mine)]))
cgroups.end_all(mine, but=os.getpid())
print(json.dumps({"child": child.wait(10), "keeper": keeper.poll()}))
keeper.kill()
keeper.wait(10)
with open(sys.argv[2] + "/cgroup.procs", "w") as f: f.write(str(os.getpid()))
"""


def test_a_cgroup_is_had_also_below_one_with_processes_and_controllers(tmp_path: Path) -> None:
    """There the kernel takes processes in threaded cgroups alone, and a session had none: no bound on its processes, and
    what had left its process group was not ended."""
    top = next((t for t in cgroups.V2_TOPS if os.path.exists(f"{t}/cgroup.procs")), None)
    if top is None:
        pytest.skip("there are no cgroups of version 2")
    above = Path(f"{top}/pact-test-{os.getpid()}")
    above.mkdir()
    (above / "t").mkdir()
    try:
        # As with a controller in ``cgroup.subtree_control`` and the keeper in it: the root of a threaded subtree.
        (above / "t" / "cgroup.type").write_text("threaded")
        done = subprocess.run(
            [sys.executable, "-c", ENTER, str(above), top], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        first, second = map(json.loads, done.stdout.splitlines())
        assert first == [True, True, False, 1]
        assert second == {"child": -signal.SIGKILL, "keeper": None}
    finally:
        for path in [*above.iterdir()]:
            if path.is_dir():
                wait_until(lambda path=path: cgroups.remove([str(path)]), f"{path} is empty")
        wait_until(lambda: cgroups.remove([str(above)]), "it is empty")


PAM = "auth required pam_permit.so\naccount required pam_permit.so\nsession optional pam_exec.so quiet {script}\n"
#: As ``pam_systemd`` does it: the process that opens the session is put into another cgroup. It is the parent here.
MOVES = '#!/bin/sh\n[ "$PAM_TYPE" = open_session ] || exit 0\n{first}echo $PPID > {scope}/cgroup.procs\n'


@pytest.mark.parametrize("twin", [True, False], ids=["twin", "native"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_a_scope_of_the_login_manager_has_the_bound_of_the_session(twin: bool, shared: bool, tmp_path: Path) -> None:
    """A module of PAM moves the session on. The cgroup of a job, in which others are, keeps its own bounds."""
    scope = Path(f"/sys/fs/cgroup/pids/pact-test-{os.getpid()}")
    if not scope.parent.exists():
        pytest.skip("there is no controller of version 1 for the number of processes")
    (tmp_path / "pam.d").mkdir()
    script, other = tmp_path / "moves", subprocess.Popen(["sleep", "60"])
    script.write_text(MOVES.format(scope=scope, first=f"echo {other.pid} > {scope}/cgroup.procs\n" if shared else ""))
    script.chmod(0o755)
    (tmp_path / "pam.d" / "pact").write_text(PAM.format(script=script))
    scope.mkdir()
    over = f'mount --bind {tmp_path}/pam.d /etc/pam.d && exec "$@"'
    sessions = Sessions(twin, ["unshare", "-m", "sh", "-c", over, "sh"])
    try:
        state = sessions.open("a", "read _", tasks=77)
        assert state["pid"] in cgroups.members(str(scope)), "it was moved"
        assert (scope / "pids.max").read_text() == ("max\n" if shared else "77\n")
    finally:
        sessions.close()
        for pid in cgroups.processes(str(scope)):
            os.kill(pid, signal.SIGKILL)
        other.kill()
        other.wait()
        wait_until(lambda: not cgroups.processes(str(scope)), "all have ended")
        scope.rmdir()
