"""Messages that never end: libzmq keeps their parts at no mark, and shows them to nobody."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from cluster_kit import Kit
from public_root import Chain, Keys, Root
from rootlog_suite import until

from pact.cluster import guard, publish
from pact.core.tree.parents import Parent
from pact.core.tree.uplink import Connect, Send
from pact.net import unended
from pact.net.floods import connection
from pact.net.keys import Key
from pact.net.links import Links
from pact.net.unended import Accepted, Unended

PARTS = (b"\1\xc8\1" + bytes(199)) * 4000  # 800 kB of frames that all promise more


def memory() -> int:
    with open("/proc/self/statm", "rb") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def null_connection(url: str, kind: bytes) -> socket.socket:
    """Somebody who speaks ZMTP by hand, without CURVE."""
    sock = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 5)
    ready = b"\5READY\x0bSocket-Type\0\0\0" + bytes([len(kind)]) + kind
    sock.sendall(b"\xff" + bytes(8) + b"\x7f\3\0" + b"NULL".ljust(52, b"\0") + b"\4" + bytes([len(ready)]) + ready)
    with sock.makefile("rb") as theirs:
        theirs.read(64)
        theirs.read(theirs.read(2)[1])
    return sock


@pytest.mark.invariant("T10", "V4")
@pytest.mark.parametrize("port", ["events", "replay"])
def test_who_never_ends_a_message_is_cut_off_and_the_others_are_served(port: str, tmp_path: Path) -> None:
    keys = Keys()
    keys.server = ("", "")
    root = Root(tmp_path, keys)
    url, kind = (root.events, b"SUB") if port == "events" else (root.replay, b"DEALER")
    context: zmq.Context[Any] = zmq.Context()
    with context.socket(zmq.SUB) as other:
        other.linger, other.rcvtimeo = 0, 20_000
        other.connect(root.events)
        other.subscribe("pact.v1.committed.")
        assert until(lambda: root.publisher.stats()["subscriptions"] == 1)
        before, sent, cut = memory(), 0, 0
        for _ in range(2):
            sock = null_connection(url, kind)
            sock.settimeout(1.0)
            with contextlib.suppress(ConnectionError, TimeoutError):
                while sent < 1 << 30:  # a gigabyte each
                    sock.sendall(PARTS)
                    sent += len(PARTS)
                    time.sleep(0.002)
            cut += sent < 1 << 30
            sent = 0
            sock.close()
        assert cut == 2 and memory() - before < 900 << 20, (cut, memory() - before)
        number = root.commit(Chain("n1").batch("committed"))
        assert other.recv_multipart()[0].startswith(b"pact.v1.committed.") and number == 0
        stats = root.publisher.stats() if port == "events" else root.server.stats()
        assert len(stats["refused"]) == 1 and sum(stats["refused"].values()) >= 2, stats  # two may find it at once
    context.term()
    root.stop()


class Withholding:
    """Between a child and a parent: passes ``most`` bytes on, upwards or ``down``, and then nothing more."""

    def __init__(self, url: str, most: int, down: bool = False) -> None:
        self.most, self.passed, self.ended, self._down = most, 0, False, down
        self._to = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        child, _ = self._server.accept()
        self._server.close()
        with child, socket.create_connection(self._to) as root:
            source, sink = (root, child) if self._down else (child, root)
            threading.Thread(target=self._back, args=(sink, source), daemon=True).start()
            with contextlib.suppress(OSError):
                while data := source.recv(1 << 16):
                    while self.passed >= self.most and not self.ended:
                        time.sleep(0.01)
                    sink.sendall(data)
                    self.passed += len(data)

    def _back(self, sink: socket.socket, source: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := sink.recv(1 << 16):
                source.sendall(data)
        self.ended = True


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kit]:
    monkeypatch.setattr(unended, "GROWN_BYTES", 0)
    monkeypatch.setattr("pact.cluster.gate.FRAME_MAX", 1 << 20)
    monkeypatch.setattr("pact.cluster.gate.CHILD_BYTES_MAX", 64 << 20)
    kit = Kit(tmp_path, {"root1": "aggregator", "n001": "node", "n002": "node"})
    kit.start_root()
    yield kit
    kit.close()


@pytest.mark.invariant("T10")
@pytest.mark.parametrize("much", [True, False])
def test_a_child_that_never_ends_a_message_is_cut_off(much: bool, kit: Kit) -> None:
    """``much``: more than any message is; a large one that takes its time stays."""
    kit.joined("n002")
    way = Withholding(kit.url, (6 << 20) if much else (1 << 20))
    flooder = kit.dealer("n001", url=way.url)
    kit.hello(flooder, "n001")
    assert kit.receive(flooder).kind == "welcome"
    for n in range(300):
        flooder.send(bytes(30_000), zmq.SNDMORE if n < 299 else 0)
    kit.until(lambda: way.passed >= way.most, "it has sent so much")
    if much:
        kit.until(lambda: way.ended, "it is cut off")
    else:
        kit.during(3.0)
    assert way.ended == much
    assert kit.aggregator is not None and kit.aggregator.relay.sessions(kit.public["n002"])


@pytest.mark.invariant("T10")
@pytest.mark.parametrize("much", [True, False])
def test_a_parent_that_never_ends_a_message_is_connected_to_anew(much: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unended, "GROWN_BYTES", 0)
    monkeypatch.setattr("pact.net.links.LOOK_S", 0.1)
    context: zmq.Context[Any] = zmq.Context()
    public, secret = zmq.curve_keypair()
    router = context.socket(zmq.ROUTER)
    router.curve_server, router.curve_secretkey, router.linger, router.sndhwm = True, secret, 0, 0
    way = Withholding(
        f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}", (6 << 20) if much else (1 << 20), True
    )
    child = Links(context, Key(*(k.decode() for k in zmq.curve_keypair())), lambda s: None, lambda s: None)
    child._unended = Unended(64 << 20, 2 << 20)
    child.perform(Connect(Parent(way.url, public.decode())))
    try:
        child.perform(Send(way.url, b"x"))
        rid, _ = router.recv_multipart()
        router.send_multipart([rid, b"nonsense"])
        assert until(lambda: child.drain() == [] and child.bad == 1)
        router.send_multipart([rid, *[bytes(30_000)] * 300])
        assert until(lambda: child.drain() == [] and way.passed >= way.most)
        if much:
            assert until(lambda: child.drain() == [] and child.flooding() == [way.url])
        ends_s = time.monotonic() + 1.0
        while time.monotonic() < ends_s:
            assert child.drain() == [] == child.flooding()
            time.sleep(0.01)
        assert until(lambda: way.ended) == much if much else not way.ended
    finally:
        child.close()
        router.close(0)
        context.term()


# -- the parts of it --------------------------------------------------------------------------------------------------


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Connections, as they are told of, and how to send on each."""
    monkeypatch.setattr(unended, "GROWN_BYTES", 0)
    monkeypatch.setattr(unended, "SUSPECT_BYTES", 1000)
    monkeypatch.setattr(unended, "LOOK_SHARE", 0)
    held: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0))

    def connects() -> tuple[tuple[int, int], Any]:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        held.extend((ours, theirs))
        which, sent = connection(theirs.fileno()), 0
        assert which is not None

        def send(size: int) -> None:
            nonlocal sent
            ours.sendall(bytes(size))
            sent += size
            assert until(lambda: unended.received_bytes(which[0]) == sent)
            theirs.recv(1 << 20)

        return which, send

    yield connects
    for sock in (*held, server):
        sock.close()


@pytest.mark.parametrize("counted", [True, False])
def test_what_counts_is_what_came_and_was_not_read(counted: bool, sends: Any) -> None:
    which, send = sends()
    fd, one = which[0], Unended(100_000, 10_000)
    one.accepted([which])
    send(9_000)
    for _ in range(3):
        one.caught_up()
        assert one.look() == [], "so long may a message be that takes its time"
    send(9_000)
    assert one.look() == []
    assert one.look() == [], "it may wait to be read: this process is busy"
    if counted:
        one.read(fd, 18_000)
    else:
        one.heard([fd])
    one.caught_up()
    assert one.look() == []
    send(60_000)
    one.caught_up()
    assert one.look() == [], "it may be on its way through libzmq"
    if counted:
        one.read(fd, 20_000)
    else:
        one.heard([fd])
    one.caught_up()
    assert one.look() == []
    send(90_000)
    assert one.look() == ([fd] if counted else []), "more than it may have under way, read or not"
    one = Unended(1_000_000, 10_000)
    one.accepted([which])
    assert one.look() == []
    one.caught_up()
    assert one.look() == [fd], "everything is read, and nothing of it"
    assert one.look() == [] and not one._known


def test_many_that_send_a_part_each_are_cut_off_together(sends: Any) -> None:
    one, made = Unended(100_000, 10_000, 40_000), [sends() for _ in range(6)]
    one.accepted(which for which, _ in made)
    for _, send in made:
        send(9_000)
    one.caught_up()
    assert one.look() == []
    one.read(made[0][0][0], 9_000)
    one.caught_up()
    assert sorted(one.look()) == sorted(which[0] for which, _ in made[1:])
    assert list(one._known) == [made[0][0]]


def test_who_has_gone_is_forgotten(sends: Any) -> None:
    which, _ = sends()
    one = Unended(100_000, 10_000)
    one.accepted([which, (which[0], which[1] + 1)])
    one.look()
    assert list(one._known) == [which]


def test_nobody_is_looked_at_while_the_process_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(unended, "received_bytes", lambda fd: looked.append(fd) or 0)
    monkeypatch.setattr(unended, "connection", lambda fd: (fd, 1))
    monkeypatch.setattr(unended, "LOOK_SHARE", 0)
    one = Unended(100, 10)
    one.accepted([(3, 1)])
    for _ in range(5):
        one.look()
    assert looked == [3], "at the first time"
    monkeypatch.setattr(unended, "GROWN_BYTES", 8 << 20)
    held = b"x" * (24 << 20)
    one.look()
    assert looked == [3, 3] and len(held)
    one.look()
    assert looked == [3, 3]


@pytest.mark.invariant("V4", "T9")
def test_the_process_does_not_wait_for_who_guards_it() -> None:
    """libzmq tells of each connection, and waits with all that it does while nobody can be told: thousands of
    connections wait to be looked at, and the other sockets go on."""
    context: zmq.Context[Any] = zmq.Context(1)
    accepted = Accepted(context)
    with context.socket(zmq.ROUTER) as sock, context.socket(zmq.ROUTER) as other, context.socket(zmq.DEALER) as child:
        accepted.follow(sock)
        at = "127.0.0.1", sock.bind_to_random_port("tcp://127.0.0.1")
        for _ in range(2500):
            socket.create_connection(at).close()
        child.linger = 0
        child.connect(f"tcp://127.0.0.1:{other.bind_to_random_port('tcp://127.0.0.1')}")
        child.send(b"x")
        assert other.poll(10_000)
        assert len(list(accepted.take())) <= 2500
    accepted.close()
    context.term()


@pytest.mark.invariant("V4")
@pytest.mark.parametrize("port", ["events", "replay"])
def test_a_port_that_cannot_be_bound_for_long_leaks_no_descriptor(
    port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "BIND_RETRY_S", 0.002)
    root = Root(tmp_path, Keys())
    part = root.publisher if port == "events" else root.server
    made: list[int] = []
    real = Accepted.follow
    monkeypatch.setattr(Accepted, "follow", lambda self, sock: (made.append(1), real(self, sock)))
    monkeypatch.setattr(part, "_at", publish.Endpoint("tcp://192.0.2.1:1", root.keys.server[1], port))  # not ours
    part.rebind()
    assert until(lambda: len(made) > 50)
    before = len(os.listdir("/proc/self/fd"))
    assert until(lambda: len(made) > 300)
    assert len(os.listdir("/proc/self/fd")) < before + 60 and part.error
    root.stop()


@pytest.mark.invariant("V4")
def test_a_guard_that_meets_an_error_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has ended would stop the root: libzmq waits for it when somebody connects."""
    monkeypatch.setattr(guard, "PAUSE_S", 0.01)
    keys = Keys()
    keys.server = ("", "")
    root = Root(tmp_path, keys)
    errors = [OSError(24, "Too many open files")] * 3

    def fails(self: Accepted) -> Iterator[tuple[int, int]]:
        if errors:
            raise errors.pop()
        return real(self)

    real = Accepted.take
    monkeypatch.setattr(Accepted, "take", fails)
    root.publisher.rebind()
    context: zmq.Context[Any] = zmq.Context()
    with context.socket(zmq.SUB) as sub:
        sub.linger, sub.rcvtimeo = 0, 10_000
        sub.connect(root.events)
        sub.subscribe("pact.v1.committed.")
        # Asked so, libzmq subscribes anew where it was connected in between.
        assert until(lambda: not sub.poll(1) and root.publisher.stats()["subscriptions"] == 1 and not errors)
        root.commit(Chain("n1").batch("committed"))
        assert sub.recv_multipart()
    context.term()
    assert root.publisher._guard._thread.is_alive()
    root.stop()
