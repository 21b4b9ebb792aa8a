"""Peers that send faster than they are read, on real sockets: none ends a process, and what waits is bounded."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from cluster_kit import Kit
from public_root import Keys, Root
from rootlog_suite import until

from pact.core.tree import wire
from pact.core.tree.parents import Parent
from pact.core.tree.uplink import Connect, Send
from pact.net import floods, links
from pact.net.floods import Floods, PutOff, received_bytes, travelled
from pact.net.keys import Key
from pact.net.links import Links

#: A root without CURVE, and somebody who sends it PINGs among messages and resets the connection while they wait.
RESETS = """
import os, pathlib, socket, struct, sys, time
sys.path.insert(0, sys.argv[1])
from public_root import Keys, Root
keys = Keys()
keys.server = ("", "")
root = Root(pathlib.Path(sys.argv[2]), keys)
url, name = (root.events, b"SUB") if sys.argv[3] == "events" else (root.replay, b"DEALER")
ping = b"\\4\\7\\4PING\\0\\0"
ready = b"\\5READY\\x0bSocket-Type\\0\\0\\0" + bytes([len(name)]) + name
n = 0
for _ in range(30):
    sock = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 5)
    sock.sendall(b"\\xff" + bytes(8) + b"\\x7f\\3\\0" + b"NULL".ljust(52, b"\\0") + b"\\4" + bytes([len(ready)]) + ready)
    with sock.makefile("rb") as theirs:
        theirs.read(64)
        theirs.read(theirs.read(2)[1])
    sock.settimeout(0.3)
    try:
        for _ in range(30):
            sock.sendall(b"".join((b"\\0\\x09\\1%08d" % (n + k)) + ping for k in range(300)))
            n += 300
    except (TimeoutError, ConnectionError):
        pass
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    time.sleep(0.02)
print("alive", flush=True)
os._exit(0)
"""


@pytest.mark.invariant("T10", "V4")
@pytest.mark.parametrize("port", ["events", "replay"])
def test_a_reset_among_pings_ends_nothing(port: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RESETS.replace("\\\\", "\\"), str(Path(__file__).parent), str(tmp_path), port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "alive\n", (done.returncode, done.stderr[-2000:])


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path, {"root1": "aggregator", "n001": "node", "n002": "node"})
    yield kit
    kit.close()


@pytest.mark.invariant("T10", "V4")
def test_no_socket_that_others_reach_stops_reading_at_a_mark(kit: Kit, tmp_path: Path) -> None:
    """See ``pact.net.floods`` for what that would do; nor does any send ZeroMQ's own heartbeats."""
    kit.start_root()
    assert kit.aggregator is not None
    root = Root(tmp_path, Keys())
    made: list[zmq.Socket[Any]] = []
    parent = Links(kit.context, Key(*(k.decode() for k in zmq.curve_keypair())), made.append, lambda sock: None)
    parent.perform(Connect(Parent("tcp://127.0.0.1:1", root.keys.server[0])))
    assert root.publisher._socket is not None and root.server._socket is not None
    found = [kit.aggregator.router, root.publisher._socket, root.server._socket, *made]
    assert len(found) == 4
    assert [(s.get(zmq.RCVHWM), s.get(zmq.HEARTBEAT_IVL)) for s in found] == [(0, 0)] * 4
    parent.close()
    root.stop()


@pytest.mark.invariant("T10", "V4")
def test_a_child_that_floods_is_cut_off_and_put_off_and_the_others_are_served(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pact.cluster.gate.CHILD_BYTES_MAX", 4 << 20)
    kit.start_root()
    assert kit.aggregator is not None
    other, flooder = kit.joined("n002"), kit.joined("n001")
    frame = wire.encode("answer", {"call": "1.1", "final": True, "parts": [[["n001"], 900]]}, bytes(900))
    relay = kit.aggregator.relay
    plain = relay.received

    def slowly(*args: Any) -> Any:  # a root that has other work
        time.sleep(0.0005)
        return plain(*args)

    monkeypatch.setattr(relay, "received", slowly)
    ending = threading.Event()
    thread = threading.Thread(target=flood, args=(flooder, frame, ending))
    thread.start()
    try:
        kit.until(lambda: kit.public["n001"] in put_off(kit), "it is cut off")
        other.send(wire.encode("events", {"batches": [["n002", "i", 0, 1, 3]]}, b"{}\n"))
        assert kit.receive(other).head["cursors"] == [["n002", "i", 0, False]]
        kit.during(1.0)
        assert kit.aggregator.relay.sessions(kit.public["n001"]) == []
    finally:
        ending.set()
        thread.join()
    assert "n001 sends faster than it can be read: cut off for a minute" in capsys.readouterr().err
    flooder.close()
    monkeypatch.setattr(floods, "PUT_OFF_S", 0.0)
    kit.aggregator.gate.put_off(kit.public["n001"])
    kit.joined("n001")


def put_off(kit: Kit) -> PutOff:
    assert kit.aggregator is not None
    return kit.aggregator.gate._put_off


def flood(sock: zmq.Socket[bytes], frame: bytes, ending: threading.Event) -> None:
    while not ending.is_set():
        try:
            sock.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            time.sleep(0.001)


@pytest.mark.invariant("T10", "V4")
def test_a_parent_that_floods_is_connected_to_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PARENT_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(links, "DRAIN_MAX", 4)
    context: zmq.Context[Any] = zmq.Context()
    public, secret = zmq.curve_keypair()
    router = context.socket(zmq.ROUTER)
    router.curve_server, router.curve_secretkey, router.linger, router.sndhwm = True, secret, 0, 0
    url = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
    opened: list[Any] = []
    closed: list[Any] = []
    child = Links(context, Key(*(k.decode() for k in zmq.curve_keypair())), opened.append, closed.append)
    parent = Parent(url, public.decode())
    hello = wire.encode("hello", {"v": 1, "role": "node", "name": "n1", "session": 1})
    child.perform(Connect(parent))
    try:
        for turn in (1, 2):
            child.perform(Send(url, hello))
            rid, _ = router.recv_multipart()
            ends_s = time.monotonic() + 20
            while not child.flooding():
                assert time.monotonic() < ends_s, child.bad
                for _ in range(50):
                    router.send_multipart([rid, bytes(1000)])
                child.drain()
            assert child.bad and len(opened) == turn + 1 and closed == opened[:turn]
        child.perform(Send(url, hello))
        rid, _ = router.recv_multipart()
        router.send_multipart([rid, wire.encode("beat", {"ask": True})])
        assert until(lambda: [m.kind for _, m in child.drain()] == ["beat"]), "what waited is gone, and it works again"
        assert not child.flooding()
    finally:
        child.close()
        router.close(0)
        context.term()


@pytest.mark.invariant("T10", "V4")
def test_a_parent_that_says_much_and_is_read_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is behind all the time, and never by much: far more than the bound passes."""
    monkeypatch.setattr(links, "PARENT_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(links, "DRAIN_MAX", 4)
    context: zmq.Context[Any] = zmq.Context()
    public, secret = zmq.curve_keypair()
    router = context.socket(zmq.ROUTER)
    router.curve_server, router.curve_secretkey, router.linger, router.sndhwm = True, secret, 0, 0
    url = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
    child = Links(context, Key(*(k.decode() for k in zmq.curve_keypair())), lambda s: None, lambda s: None)
    child.perform(Connect(Parent(url, public.decode())))
    try:
        child.perform(Send(url, wire.encode("hello", {"v": 1, "role": "node", "name": "n1", "session": 1})))
        rid, _ = router.recv_multipart()
        sent, ends_s = 0, time.monotonic() + 60
        begun_s = time.monotonic()
        while sent < 8000 or time.monotonic() < begun_s + 1.0:
            assert time.monotonic() < ends_s
            time.sleep(0.0002)
            while sent - child.bad < 1000:
                router.send_multipart([rid, bytes(1000)])
                sent += 1
            child.drain()
            assert not child.flooding(), f"{sent} messages sent, {child.bad} read"
    finally:
        child.close()
        router.close(0)
        context.term()


@pytest.mark.invariant("T10")
def test_whose_connection_is_looked_at_is_known_when_it_was_made_anew() -> None:
    """By libzmq itself: its descriptor is another one then, and the earlier one may be anything's."""
    context: zmq.Context[Any] = zmq.Context()
    public, secret = zmq.curve_keypair()
    child = Links(context, Key(*(k.decode() for k in zmq.curve_keypair())), lambda s: None, lambda s: None)
    found, url = [], ""
    held = []
    try:
        for _ in range(2):
            router = context.socket(zmq.ROUTER)
            router.curve_server, router.curve_secretkey, router.linger = True, secret, 0
            router.bind(url or "tcp://127.0.0.1:*")
            if not url:
                url = router.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]
                child.perform(Connect(Parent(url, public.decode())))
            child.perform(Send(url, b"x"))
            router.recv_multipart()
            child._check_flood(url, 0, False)
            found.append(child._connections[url])
            router.close(0)
            held.append(open("/dev/null"))  # noqa: SIM115  (the descriptor that becomes free)
            assert until(lambda: received_bytes(found[-1]) is None)
            held.append(open("/dev/null"))  # noqa: SIM115
        assert found[0] != found[1]
    finally:
        child.close()
        context.term()
        for file in held:
            file.close()


@pytest.mark.invariant("T10")
def test_all_connections_of_one_key_together_may_have_as_much_wait_as_one() -> None:
    """A key has up to 128 at an aggregator, and each could have 160 MiB wait without being cut off."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pairs = [(socket.create_connection(server.getsockname()), server.accept()[0]) for _ in range(5)]
    try:
        fds = [ours.fileno() for _, ours in pairs]
        keys = dict(zip(fds, ("ann", "ann", "ann", "bob", ""), strict=True))
        guard = Floods(100_000, patience_s=0.0, every_s=0.0)
        assert guard.behind(keys, 1.0) == {} == guard.behind(keys, 2.0)
        for theirs, _ in pairs:
            theirs.sendall(bytes(40_000))
        assert until(lambda: all((received_bytes(fd) or 0) >= 40_000 for fd in fds))
        assert guard.behind(keys, 3.0) == dict.fromkeys(fds[:3], "ann")
    finally:
        for pair in pairs:
            for sock in pair:
                sock.close()


def test_what_tcp_received_is_counted_read_or_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        with theirs:
            assert received_bytes(theirs.fileno()) == 0
            total = 0
            for count in (1, 1000, 20_000):
                ours.sendall(bytes(count))
                total += count
                assert until(lambda upto=total: received_bytes(theirs.fileno()) == upto)  # type: ignore[misc]
            theirs.recv(500)
            assert received_bytes(theirs.fileno()) == total
            floods_ = Floods(10_000, patience_s=1.0, every_s=1.0)
            read = {theirs.fileno(): "key"}
            assert floods_.behind(read, 10.0) == {}  # not for long
            assert floods_.behind(read, 11.5) == {}  # the first look
            ours.sendall(bytes(9_000))
            assert until(lambda: received_bytes(theirs.fileno()) == total + 9_000)
            assert floods_.behind(read, 12.6) == {}
            ours.sendall(bytes(2_000))
            assert until(lambda: received_bytes(theirs.fileno()) == total + 11_000)
            assert floods_.behind(read, 12.7) == {}  # it is not time
            assert floods_.behind({}, 13.7) == read
            assert floods_.behind(read, 14.0, {theirs.fileno(): 0}) == {} == floods_.behind(read, 15.0)
            ours.sendall(bytes(25_000))
            total += 36_000
            assert until(lambda: received_bytes(theirs.fileno()) == total)
            assert floods_.behind(read, 15.5, {theirs.fileno(): 9_000}) == {}, "it is not time"
            assert floods_.behind(read, 16.5, {theirs.fileno(): 7_000}) == {}, "9,000 wait at the most"
            ours.sendall(bytes(1_500))
            assert until(lambda: received_bytes(theirs.fileno()) == total + 1_500)
            assert floods_.behind({}, 17.6) == read
            floods_.caught_up()
            assert floods_.behind(read, 14.0) == {} == floods_.behind(read, 15.5)
        assert received_bytes(ours.fileno()) is not None
    assert received_bytes(-1) is None
    one, other = socket.socketpair()
    with open(tmp_path / "f", "w") as file, one, other:
        assert received_bytes(file.fileno()) is None and received_bytes(one.fileno()) is None
        file.write("still open")
    assert (tmp_path / "f").read_text() == "still open"


@pytest.mark.parametrize("size", [0, 1, 200, 222, 223, 1000, 70_000])
def test_what_a_message_is_on_its_way_is_known(size: int) -> None:
    context: zmq.Context[Any] = zmq.Context()
    public, secret = zmq.curve_keypair()
    with context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        pull.curve_server, pull.curve_secretkey = True, secret
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        push.curve_publickey, push.curve_secretkey = zmq.curve_keypair()
        push.curve_serverkey = public
        push.connect(f"tcp://127.0.0.1:{port}")
        push.send(b"")
        fd = int(pull.recv(copy=False).get("__fd"))
        before = received_bytes(fd)
        push.send(bytes(size))
        pull.recv()
        after = received_bytes(fd)
        assert before is not None and after is not None and after - before == travelled(size)
    context.term()
