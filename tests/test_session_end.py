"""The end of a session: who is told of it, and what of a client that has gone counts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from session_kit import Sessions, wait_until

from pact.session.prepare import NATIVE

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture(params=["native", "twin"])
def sessions(request: pytest.FixtureRequest) -> Iterator[Sessions]:
    assert os.path.exists(NATIVE), "the program was not built"
    made = Sessions(twin=request.param == "twin")
    yield made
    made.close()


def test_an_end_that_was_not_read_waits_for_the_client_to_come_back(sessions: Sessions) -> None:
    """All of it was in the client's socket when that was cut."""
    sessions.open("a", "read _; head -c 50000 /dev/zero | tr '\\0' y; exit 6")
    peer = sessions.attach("a")
    assert peer.wait(b"A")
    peer.send(b"I", b"\n")
    wait_until(lambda: sessions.state("a").get("end"), "it has ended")
    time.sleep(0.3)
    peer.close()
    again = sessions.attach("a", **{"from": 0})
    assert again.end() == {"exit": 6} and len(again.out) == 50000


def test_input_of_a_client_that_has_gone_counts(sessions: Sessions) -> None:
    """It goes while answers to it are written."""
    for n in range(20):
        sessions.open(f"a{n}", "read a; read b; read c; exit 6")
        peer = sessions.attach(f"a{n}")
        for _ in range(3):
            peer.send(b"I", b"x\n")
        peer.close()
    for n in range(20):
        wait_until(lambda n=n: sessions.state(f"a{n}").get("end"), f"session {n} has ended")


def test_a_process_of_another_pid_namespace_ends_nobody_else(tmp_path: Path) -> None:
    """The kernel shows it as 0, and a signal to 0 is one to everybody in the sender's own group."""
    (tmp_path / "cgroup.procs").write_text("0\n")
    code = f"from pact.session import cgroups; cgroups.end_all([{str(tmp_path)!r}], but=1); print('alive')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, check=False)
    assert done.stdout == "alive\n"
