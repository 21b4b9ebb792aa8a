"""Orphans of a command: its own process adopts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from session_kit import Sessions, wait_until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    made = Sessions(twin=True)
    yield made
    made.close()


def test_orphans_that_have_ended_are_reaped_while_the_command_runs(sessions: Sessions) -> None:
    """They would count among the processes that it may have, until it can start none."""
    state = sessions.open("a", "for i in 1 2 3 4 5 6; do setsid -f true; done; echo started; read _", whole=True)
    peer = sessions.attach("a")
    peer.until(b"started")

    def zombies() -> list[str]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] == "Z" and int(fields[1]) == state["pid"]:
                found.append(name)
        return found

    wait_until(lambda: not zombies(), "no zombie is left")
    peer.send(b"D")
    assert peer.end()["exit"] in (0, 1)
