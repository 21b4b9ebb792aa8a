"""The person's side of a session, without a session."""

from __future__ import annotations

import os
import pty
import signal
import socket
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pact.session import client, frames
from pact.session.client import Client
from pact.session.frames import frame, said


def test_what_is_no_output_gives_no_credit() -> None:
    """A relay counts output only. Credit beyond it would be lost there and not at the session, which then sends more
    than the relay lets pass: the stream ends while somebody looks at a long output."""
    here, there = socket.socketpair()
    given: list[int] = []

    def session() -> None:
        reader = frames.Reader()
        there.sendall(said(b"A", {"lost": 7}) + frame(b"N", b"this session is idle") + frame(b"O", b"x" * 1000))
        while sum(given) < 1000:
            given.extend(int(payload) for kind, payload in reader.feed(there.recv(4096)) if kind == b"C")
        there.sendall(frame(b"N", b"and again") + said(b"X", {"exit": 3}))

    thread = threading.Thread(target=session)
    thread.start()
    null, (out, shown), (err, told) = os.open("/dev/null", os.O_RDONLY), os.pipe(), os.pipe()
    try:
        assert Client(here, terminal=False, stdin=null, stdout=shown, stderr=told).run().code == 3
        thread.join(10)
        assert sum(given) == 1000
        assert os.read(out, 4096) == b"x" * 1000
        assert os.read(err, 4096).splitlines() == [
            b"pact: 7 bytes of output are lost",
            b"pact: this session is idle",
            b"pact: and again",
        ]
    finally:
        for fd in (null, out, shown, err, told):
            os.close(fd)
        here.close()
        there.close()


@contextmanager
def talking(session: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """The client's end of a session that does this."""
    here, there = socket.socketpair()
    thread = threading.Thread(target=session, args=(there,))
    thread.start()
    with here, there:
        yield here
        thread.join(10)


def heard(there: socket.socket, found: list[tuple[bytes, bytes]]) -> None:
    """All that the client says, until it is gone."""
    reader = frames.Reader()
    while data := there.recv(4096):
        found.extend(reader.feed(data))


def test_input_that_cannot_be_read_does_not_pass_for_all_of_it(tmp_path: Path) -> None:
    found: list[tuple[bytes, bytes]] = []
    unreadable = os.open(tmp_path, os.O_RDONLY)  # a directory
    with talking(lambda there: heard(there, found)) as here:
        ended = Client(here, terminal=False, stdin=unreadable).run()
        here.shutdown(socket.SHUT_RDWR)
    os.close(unreadable)
    assert ended.code == 1 and ended.why == "standard input: Is a directory" and not ended.left
    assert (b"S", b"HUP") in found and (b"D", b"") not in found


@pytest.mark.parametrize("over", [False, True])
def test_output_that_the_disk_does_not_take_is_said_to_be_lost(over: bool) -> None:
    """Also when the session has ended well by then."""
    null, full = os.open("/dev/null", os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)

    def session(there: socket.socket) -> None:
        there.sendall(said(b"A", {}) + frame(b"O", b"x") + (said(b"X", {"exit": 0}) if over else b""))
        heard(there, [])

    with talking(session) as here:
        ended = Client(here, terminal=False, stdin=null, stdout=full).run()
        here.shutdown(socket.SHUT_RDWR)
    os.close(null)
    os.close(full)
    assert (ended.code, ended.why, ended.left) == (1, "output: No space left on device", False)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
def test_a_signal_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    """``nohup`` ignores SIGHUP, and a script the keys of whoever watches it for what it starts in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDONLY)

    def session(there: socket.socket) -> None:
        there.recv(4096)  # it runs
        os.kill(os.getpid(), number)
        there.sendall(said(b"X", {"exit": 3}))
        heard(there, [])

    try:
        with talking(session) as here:
            ended = Client(here, terminal=False, stdin=null).run()
            here.shutdown(socket.SHUT_RDWR)
        assert ended.code == 3 and signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
        os.close(null)


@pytest.mark.parametrize("busy", [False, True])
def test_a_session_whose_terminal_closes_goes_on(busy: bool) -> None:
    """Nobody typed an end of input into it, and nobody hangs it up: its own time for that begins."""
    found: list[tuple[bytes, bytes]] = []
    master, slave = pty.openpty()

    def session(there: socket.socket) -> None:
        there.sendall(said(b"A", {}))
        there.recv(4096)  # its size
        os.close(master)
        if busy:
            there.sendall(frame(b"O", b"x" * 1000))
        heard(there, found)

    with talking(session) as here:
        ended = Client(here, terminal=True, stdin=slave, stdout=slave, stderr=slave).run()
        here.shutdown(socket.SHUT_RDWR)
    os.close(slave)
    assert ended.left and ended.code == 128 + signal.SIGHUP
    assert not [kind for kind, _ in found if kind in b"DS"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
def test_a_client_that_is_ended_leaves_its_session_and_the_terminal_as_it_was(number: signal.Signals) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)

    def session(there: socket.socket) -> None:
        there.recv(4096)  # its size
        os.kill(os.getpid(), number)
        heard(there, [])

    handler = signal.signal(number, signal.SIG_DFL)  # who has started the tests may ignore it
    try:
        with talking(session) as here:
            ended = Client(here, terminal=True, stdin=slave, stdout=slave, stderr=slave).run()
            here.shutdown(socket.SHUT_RDWR)
    finally:
        signal.signal(number, handler)
    assert ended.left and ended.code == 128 + number and termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("hears", [True, False])
def test_a_session_that_is_busy_is_hung_up_when_it_listens_again(
    hears: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its socket was full at that moment: it went on without anybody, and nobody was told. ``hears``: in time."""
    monkeypatch.setattr(client, "HANG_UP_S", 30.0 if hears else 0.2)
    found: list[tuple[bytes, bytes]] = []
    (tmp_path / "input").write_bytes(b"x" * (frames.CREDIT // 2))
    given, full = os.open(tmp_path / "input", os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)
    over = threading.Event()

    def session(there: socket.socket) -> None:
        there.sendall(said(b"A", {}))
        while len(there.recv(1 << 20, socket.MSG_PEEK)) < 2000:
            pass
        there.sendall(frame(b"O", b"x"))
        over.wait(0.5 if hears else 20.0)
        heard(there, found)

    with talking(session) as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ended = Client(here, terminal=False, stdin=given, stdout=full).run()
        over.set()
        here.shutdown(socket.SHUT_RDWR)
    os.close(given)
    os.close(full)
    assert (ended.code, ended.left) == (1, not hears)
    assert ((b"S", b"HUP") in found) == hears


@pytest.mark.parametrize("at", range(1, 9))
def test_whenever_the_last_has_gone_out_the_client_ends(at: int) -> None:
    """Also between two looks at whether it has."""
    null, full = os.open("/dev/null", os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)
    asked: list[int] = []

    def unsent() -> bool:
        asked.append(1)
        return len(asked) < at

    def session(there: socket.socket) -> None:
        there.sendall(said(b"A", {}) + frame(b"O", b"x"))
        heard(there, [])

    with talking(session) as here:
        ended = Client(here, terminal=False, stdin=null, stdout=full, unsent=unsent).run()
        here.shutdown(socket.SHUT_RDWR)
    os.close(null)
    os.close(full)
    assert (ended.code, ended.left) == (1, False)


@pytest.mark.parametrize("goes_out", [True, False])
def test_a_session_is_hung_up_when_all_has_gone_out_that_its_way_has_taken(
    goes_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream through the tree takes everything, and sends it when it may."""
    monkeypatch.setattr(client, "HANG_UP_S", 30.0 if goes_out else 0.2)
    null, full = os.open("/dev/null", os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)
    asked: list[int] = []

    def unsent() -> bool:
        asked.append(1)
        return not goes_out or len(asked) < 20

    def session(there: socket.socket) -> None:
        there.sendall(said(b"A", {}) + frame(b"O", b"x"))
        heard(there, [])

    with talking(session) as here:
        ended = Client(here, terminal=False, stdin=null, stdout=full, unsent=unsent).run()
        here.shutdown(socket.SHUT_RDWR)
    os.close(null)
    os.close(full)
    assert (ended.code, ended.left) == (1, not goes_out) and len(asked) >= 3
