"""A process whose first thread has ended, and whose others go on: the kernel shows it as one that waits to be reaped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from session_kit import wait_until

from pact.agent import consumers
from pact.observe import netlinkports
from pact.resources.support import daemons
from pact.session import cgroups, places

#: Its first thread ends once the other runs, and the process does not.
GOES_ON = (
    "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(300,)).start(); "
    "ctypes.CDLL(None).syscall(ctypes.c_long({exit}), ctypes.c_long(0))"
)
#: The number of ``exit``, which ends one thread, by architecture.
EXIT = {"x86_64": 60}.get(os.uname().machine, 93)
#: Starts it and, when its first thread has ended, says what ``left_behind`` finds, then ends it and says what is left.
HOST = """
import os, subprocess, sys, time
from pact.session import spawn
with subprocess.Popen([sys.executable, "-c", sys.argv[1]]) as one:
    while open(f"/proc/{one.pid}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    print(spawn.left_behind() == [one.pid], flush=True)
    spawn.end_descendants()
    print(spawn.left_behind(), flush=True)
"""
HOST_S = 60


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def going_on() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", GOES_ON.format(exit=EXIT)]) as one:
        wait_until(lambda: state_of(one.pid) == "Z", "its first thread has ended")
        yield one
        one.kill()


def test_it_is_left_behind_and_ended() -> None:
    words = [sys.executable, "-c", HOST, GOES_ON.format(exit=EXIT)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, process_group=0) as host:
        try:
            said, _ = host.communicate(timeout=HOST_S)
        except subprocess.TimeoutExpired:
            os.killpg(host.pid, 9)
            pytest.fail("what it has left behind is counted for ever")
    assert said.split("\n")[:2] == ["True", "[]"]


@pytest.mark.invariant("F5")
def test_it_is_a_consumer_that_has_not_gone_and_keeps_its_sockets(going_on: subprocess.Popen[bytes]) -> None:
    """Each of these says of a process whether it is there."""
    began = consumers.started_at(going_on.pid)
    assert began == places.started_at(going_on.pid) != 0
    assert daemons._lives(going_on.pid) and not netlinkports.is_zombie(going_on.pid)
    going_on.kill()
    os.waitid(os.P_PID, going_on.pid, os.WEXITED | os.WNOWAIT)
    assert consumers.started_at(going_on.pid) is None
    assert not daemons._lives(going_on.pid) and netlinkports.is_zombie(going_on.pid)


def test_it_lives_and_one_that_waits_to_be_reaped_does_not(going_on: subprocess.Popen[bytes]) -> None:
    assert cgroups.living(going_on.pid) == going_on.pid
    going_on.kill()
    os.waitid(os.P_PID, going_on.pid, os.WEXITED | os.WNOWAIT)
    assert state_of(going_on.pid) == "Z" and cgroups.living(going_on.pid) == 0
