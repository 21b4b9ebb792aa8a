"""Who connects to the control socket again and again keeps nobody else out."""

from __future__ import annotations

import select
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from pact.agent.control import Control

MANY = 300  # more than may be taken in at a time, fewer than a process may have open


@pytest.mark.invariant("S8")
def test_who_connects_again_and_again_does_not_keep_the_loop_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People who had all their places, and connected anew each time they were refused, kept the agent from answering
    anybody."""
    with select.epoll() as epoll:
        control = Control(str(tmp_path / "s"), epoll, [], [])
        monkeypatch.setattr(control, "_role", lambda *_: "viewer")
        taken: list[socket.socket] = []

        def accept() -> tuple[socket.socket, str]:
            here, there = socket.socketpair()
            taken.append(there)
            assert len(taken) <= MANY, "it does not return"
            return here, ""

        try:
            with monkeypatch.context() as storm:
                storm.setattr(control, "_sock", SimpleNamespace(accept=accept))
                control.accept()
        finally:
            control.close()
            for each in taken:
                each.close()
