"""The lock of the state directory, and who may still have it for a moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pact.agent.statedir import take_state_dir
from pact.errors import PactError

HOLDS = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
os.pwrite(fd, sys.argv[2].encode() + b"\\n", 0)
print("holds", flush=True)
time.sleep(float(sys.argv[3]))
"""


def holder(path: Path, pid: str, seconds: float) -> subprocess.Popen[bytes]:
    path.mkdir(mode=0o700)
    command = [sys.executable, "-c", HOLDS, f"{path}/lock", pid, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"holds\n"
    return process


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_a_killed_agent_was_just_starting_is_waited_for(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with holder(tmp_path / "state", str(gone.pid), 0.7):
        os.close(take_state_dir(str(tmp_path / "state")))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_agent_that_lives_is_named_at_once(tmp_path: Path) -> None:
    with holder(tmp_path / "state", str(os.getpid()), 60) as process:
        with pytest.raises(PactError, match=f"another agent .pid {os.getpid()}."):
            take_state_dir(str(tmp_path / "state"))
        process.kill()
