"""A keeper of sessions that is stopped, or takes nobody, holds the agent's loop up for no moment."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent.keeping import Keeper
from pact.agent.sessions import LAUNCH_S, Sessions
from pact.core.node.events import Caller
from pact.core.ops import ShellOpen
from pact.errors import PactError, UnreachableError
from pact.model import Actor, Owner
from pact.session.keeper import WISH_MAX

AT_ONCE_S = 0.5
LONG = {"command": ["x" * (WISH_MAX - 100)]}

pytestmark = [pytest.mark.root, pytest.mark.invariant("X7", "F92")]


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    """One that is stopped."""
    made = Keeper(str(tmp_path))
    made.connect().close()
    assert made.child is not None
    time.sleep(0.5)
    made.child.send_signal(signal.SIGSTOP)
    pid = made.child.pid
    yield made
    os.kill(pid, signal.SIGKILL)  # by its number: after ``close`` its object takes it for one that has ended
    os.waitpid(pid, 0)
    made.child.returncode = 0


def test_a_wish_that_it_does_not_read_waits_and_is_read_later(keeper: Keeper) -> None:
    began_s = time.monotonic()
    sock, rest = keeper.ask(LONG)
    assert rest and time.monotonic() - began_s < AT_ONCE_S and not sock.getblocking()
    assert keeper.child is not None
    keeper.child.send_signal(signal.SIGCONT)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while rest:
        assert poll.poll(5000)
        rest = rest[sock.send(rest) :]
    poll.modify(sock, select.POLLIN)
    assert poll.poll(10_000) and sock.recv(100) == b"", "it has read that, and it was no wish for a session"
    sock.close()


def test_one_that_takes_nobody_is_not_replaced(keeper: Keeper) -> None:
    before, socks = keeper.child, list[socket.socket]()
    began_s = time.monotonic()
    with pytest.raises(UnreachableError, match="takes nobody"):
        for _ in range(1000):
            socks.append(keeper.connect())
    assert time.monotonic() - began_s < AT_ONCE_S and keeper.child is before
    for sock in socks:
        sock.close()


class Agent:
    """What sessions need of one that runs."""

    journal_error = ""

    def __init__(self, place: Path) -> None:
        self.config = SimpleNamespace(
            socket=f"{place}/sock",
            state_dir=str(place / "state"),
            shell_sessions=4,
            shell_roles=("admin",),
            tasks=9,
            shell_root=["root"],
            shell_transcript=False,
            shell_idle_ns=10**9,
            shell_detached_ns=10**9,
            shell_tasks=9,
            file_limit=1 << 20,
        )
        (place / "state").mkdir()
        self.node = SimpleNamespace(state=SimpleNamespace(seq=4))
        self.control = SimpleNamespace(connected=lambda client: True, flush=lambda client: None)
        self.failed: list[PactError] = []

    def require_journal(self) -> None: ...

    def next_token(self) -> int:
        return 7

    def fail(self, client: Any, error: PactError) -> None:
        self.failed.append(error)


def test_a_session_that_nobody_begins_is_given_up_with_the_reason(keeper: Keeper, tmp_path: Path) -> None:
    agent: Any = Agent(tmp_path)
    with select.epoll() as epoll:
        sessions = Sessions(agent, epoll)
        sessions.keeper = keeper
        owner = Owner("uid:0", "root", 0)
        client: Any = SimpleNamespace(
            caller=Caller(Actor("root", 0, "admin", "cluster"), owner), remote=True, tokens=set()
        )
        began_s = time.monotonic()
        sessions.open(client, ShellOpen(words=["\x01" * 40_000]))
        ((fd, launch),) = sessions.launching.items()
        assert time.monotonic() - began_s < AT_ONCE_S and launch.rest
        for _ in range(3):
            assert epoll.poll(0) == [], "what does not read costs no time"
        sessions.turn()
        assert not agent.failed and 0 < (sessions.next_s() or 0) <= LAUNCH_S
        launch.since_s -= LAUNCH_S
        assert sessions.next_s() == 0
        sessions.turn()
        assert not sessions.launching and sessions.next_s() is None
        (error,) = agent.failed
        assert "the keeper of sessions does not read" in error.message
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
        sessions.close()
