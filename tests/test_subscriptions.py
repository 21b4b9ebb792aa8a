"""Subscribers that cancel what they never had, or ask for more than their share, on real sockets; and the counting alone."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from public_root import Chain, Keys, Root
from rootlog_suite import until

from pact.cluster.auth import Authorized
from pact.cluster.subscriptions import (
    FRAMES_MAX,
    SUBSCRIPTION_MAX,
    TOO_MANY_AT_ONCE,
    Subscriptions,
)
from pact.core.tree.directory import Peer
from pact.limits import TOPICS_BYTES_MAX, TOPICS_KEY_BYTES_MAX, TOPICS_MAX

TOPIC_MAX = 900  # what CURVE and the framing add counts, too


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    """Without CURVE, so that the hostile need no ZeroMQ, which would send some of this for nobody."""
    keys = Keys()
    keys.server = ("", "")
    root = Root(tmp_path, keys)
    yield root
    root.stop()


@pytest.fixture
def connect(root: Root) -> Iterator[Callable[[], zmq.Socket[Any]]]:
    context: zmq.Context[Any] = zmq.Context()
    made: list[zmq.Socket[Any]] = []

    def connect() -> zmq.Socket[Any]:
        sock: zmq.Socket[Any] = context.socket(zmq.SUB)
        sock.linger, sock.sndhwm, sock.rcvtimeo = 0, 0, 30_000
        sock.connect(root.events)
        made.append(sock)
        return sock

    yield connect
    for sock in made:
        sock.close(0)
    context.term()


@pytest.fixture
def hostile(root: Root) -> Iterator[Hostile]:
    hostile = Hostile(root)
    yield hostile
    hostile.sock.close()


class Hostile:
    """A SUB that sends whatever it likes, in ZMTP 3.0 by hand."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self.begin()

    def begin(self) -> None:
        self.sock = socket.create_connection(("127.0.0.1", int(self._root.events.rpartition(":")[2])), 10)
        ready = b"\x05READY\x0bSocket-Type\0\0\0\x03SUB"
        self.sock.sendall(
            b"\xff" + bytes(8) + b"\x7f\3\0" + b"NULL".ljust(52, b"\0") + b"\4" + bytes([len(ready)]) + ready
        )
        with self.sock.makefile("rb") as theirs:  # a subscription before its READY would end the connection
            greeting, (kind, size) = theirs.read(64), theirs.read(2)
            assert len(greeting) == 64 and kind == 4 and len(theirs.read(size)) == size

    def send(self, *frames: bytes, more: bool = False) -> None:
        self.sock.sendall(b"".join(bytes([2 + more]) + len(f).to_bytes(8, "big") + f for f in frames))

    def is_cut(self) -> bool:
        """It has ended, after what came before."""
        self.sock.settimeout(5)
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True


def numbers(sock: zmq.Socket[Any], upto: int) -> list[int]:
    out: list[int] = []
    ends_s = time.monotonic() + 30
    while not out or out[-1] < upto:
        assert time.monotonic() < ends_s, f"only heads come, and {out}"
        topic, header, _ = sock.recv_multipart()
        out += [orjson.loads(header)["gseq"]] if b".heads." not in topic else []
    return out


def subscriptions(root: Root) -> int:
    return int(root.publisher.stats()["subscriptions"])


def refused(root: Root, why: str = "too many topics") -> int:
    return int(root.publisher.stats().get("refused", {}).get(why, 0))


def listening(sock: zmq.Socket[Any], root: Root) -> zmq.Socket[Any]:
    sock.subscribe("pact.v1.")
    assert until(lambda: subscriptions(root) > 0)
    return sock


@pytest.mark.invariant("V4", "F40")
@pytest.mark.parametrize("cancelled", [b"pact.v1.", b"never"])
def test_who_cancels_what_it_never_had_ends_nobody_elses_live_events(
    root: Root, connect: Any, hostile: Hostile, cancelled: bytes
) -> None:
    sock, chain = listening(connect(), root), Chain("n1")
    hostile.send(*[b"\0" + cancelled] * 20)
    time.sleep(0.5)
    root.commit(chain.batch("committed", "committed"))
    assert numbers(sock, 1) == [0, 1]
    hostile.send(b"\1mine", b"\1mine", b"\0mine", b"\0mine", b"\0mine", b"", b"\2", b"x" * TOPIC_MAX, b"\1last")
    assert until(lambda: subscriptions(root) == 2)
    hostile.send(b"\0pact.v1.", b"\0last", b"\0", more=True)  # a message without an end
    hostile.sock.close()
    assert until(lambda: subscriptions(root) == 1)
    root.commit(chain.batch("committed"))
    assert numbers(sock, 2) == [2]
    sock.close(0)
    assert until(lambda: not root.publisher._subscriptions.listening)
    assert root.publisher.stats()["refused"] == {}


@pytest.mark.invariant("V4", "F40")
def test_a_subscriber_of_topics_without_end_is_cut_off_again_and_again(
    root: Root, connect: Any, hostile: Hostile
) -> None:
    """Without CURVE nobody has a key that could be put off."""
    sock, chain = listening(connect(), root), Chain("n1")
    rest = os.urandom(TOPIC_MAX)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent = cuts = 0
    while cuts < 8:
        try:
            hostile.send(*[b"\1%08d" % n + rest for n in range(sent, sent + 100)])
            sent += 100
        except (ConnectionError, TimeoutError):  # what it sent before it was cut off is dealt with first
            hostile.sock.close()
            number = root.commit(chain.batch("committed"))
            assert numbers(sock, number)[-1] == number
            hostile.begin()
            hostile.sock.settimeout(0.5)
            cuts += 1
    assert refused(root) + refused(root, TOO_MANY_AT_ONCE) >= cuts - 1
    cost_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    assert cost_mib < 600, cost_mib  # what one connection gets in before it is cut off; several GiB without a limit
    hostile.sock.close()
    assert until(lambda: subscriptions(root) == 1)


FLOOD = """
import os, sys, time, zmq
url, server, public, secret = sys.argv[1:]
context, topics = zmq.Context(), [os.urandom(450).hex() for _ in range(20_000)]
while True:
    sock = context.socket(zmq.SUB)
    sock.linger = sock.sndhwm = 0
    sock.curve_serverkey, sock.curve_publickey, sock.curve_secretkey = server.encode(), public.encode(), secret.encode()
    sock.connect(url)
    for topic in topics:
        sock.subscribe(topic)
    time.sleep(0.5)
    sock.close()
"""


@pytest.mark.invariant("V4", "F40")
def test_a_key_that_subscribes_without_end_has_to_wait_and_the_others_do_not(tmp_path: Path) -> None:
    root = Root(tmp_path, Keys())
    context: zmq.Context[Any] = zmq.Context()
    sock = root.keys.secure(context.socket(zmq.SUB), "view")
    sock.linger, sock.rcvtimeo = 0, 20_000
    sock.connect(root.events)
    listening(sock, root)
    command = [sys.executable, "-c", FLOOD, root.events, root.keys.server[0], *root.keys.pairs["sub"]]
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chain, took = Chain("n1"), []
    with subprocess.Popen(command) as flood:
        try:
            ends_s = time.monotonic() + 8
            while time.monotonic() < ends_s:
                asked_s = time.monotonic()
                number = root.commit(chain.batch("committed"))
                assert numbers(sock, number)[-1] == number
                took.append(time.monotonic() - asked_s)
                time.sleep(0.02)
            cost_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
        finally:
            flood.kill()
    stats = root.publisher.stats()["refused"]
    sock.close(0)
    context.term()
    root.stop()
    assert sum(stats.values()) > 0
    assert cost_mib < 300 and max(took) < 5.0 and len(took) > 20, (cost_mib, took, stats)


@pytest.mark.invariant("V4")
def test_all_may_come_at_once_with_what_they_may_have(tmp_path: Path) -> None:
    """As after a restart of the root, or when a key was removed: nobody is cut off for it."""
    keys, context, socks = Keys(), zmq.Context[Any](), []
    root = Root(tmp_path, keys)
    topics = [f"pact.v1.committed.c1.r1.n{n}." + 50 * "x" for n in range(2000)]
    for at in range(32):  # 5 MiB; a key may have one
        name = f"s{at // 4}"
        if at % 4 == 0:
            public, secret = (k.decode() for k in zmq.curve_keypair())
            keys.pairs[name] = public, secret
            keys.authorized = Authorized([*keys.authorized.peers.values(), Peer(name, "subscriber", public)])
        sock = keys.secure(context.socket(zmq.SUB), name)
        sock.linger = sock.sndhwm = 0
        for topic in topics:
            sock.subscribe(topic)
        socks.append(sock)
    root.zap._allowed = keys.authorized.may_connect
    for sock in socks:
        sock.connect(root.events)
    assert until(lambda: [s.poll(0) for s in socks] and subscriptions(root) == 32 * len(topics))
    assert not root.publisher.stats()["refused"]
    for sock in socks:
        sock.close(0)
    context.term()
    root.stop()


@pytest.mark.invariant("V4")
def test_what_one_may_have_is_had_and_one_topic_more_ends_that_connection_alone(root: Root, connect: Any) -> None:
    sock, many, chain = listening(connect(), root), connect(), Chain("n1")
    names = [f"pact.v1.committed.c1.r1.n{n}." for n in range(TOPICS_MAX)]
    for name in names:
        many.subscribe(name)
    assert until(lambda: subscriptions(root) == TOPICS_MAX + 1)
    root.commit(chain.batch("committed"))
    assert numbers(many, 0) == numbers(sock, 0) == [0]
    many.subscribe("one.too.many")
    assert until(lambda: many.poll(10) or refused(root) > 2)  # it comes back with as many, again and again
    for name in ["one.too.many", *names[100:]]:
        many.unsubscribe(name)
    assert until(lambda: many.poll(10) or subscriptions(root) == 101)  # with fewer it stays
    root.commit(chain.batch("committed"))
    assert numbers(many, 1) == numbers(sock, 1) == [1]


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([b"\1" + bytes(SUBSCRIPTION_MAX)], ""),
        ([b"\1%05d" % n for n in range(TOPICS_MAX + 1)], "too many topics"),
        ([b"\1%05d" % n + bytes(TOPIC_MAX) for n in range(TOPICS_BYTES_MAX // TOPIC_MAX + 1)], "too many topics"),
        ([b"\0x", b"\1x"] * (FRAMES_MAX // 2 + 1), "too many subscriptions at once"),
    ],
)
def test_who_takes_more_than_its_share_is_cut_off(
    root: Root, connect: Any, hostile: Hostile, frames: list[bytes], why: str
) -> None:
    sock = listening(connect(), root)
    hostile.send(*frames)
    assert hostile.is_cut()
    assert root.publisher.stats()["refused"] == ({why: 1} if why else {})
    number = root.commit(Chain("n1").batch("committed"))
    assert numbers(sock, number) == [number]


@pytest.mark.invariant("V4", "F40")
def test_with_curve_it_is_the_key_that_has_a_share(tmp_path: Path) -> None:
    """Four connections of one key have all of it; the fifth is cut off, and another key's is not."""
    root, context, made = Root(tmp_path, Keys()), zmq.Context[Any](), []
    each = [f"{n:03d}" + "x" * (TOPIC_MAX - 3) for n in range(TOPICS_BYTES_MAX // (TOPIC_MAX + 1))]
    try:
        for who in ["sub"] * 5 + ["view"]:
            sock = root.keys.secure(context.socket(zmq.SUB), who)
            made.append(sock)
            sock.linger, sock.sndhwm, sock.rcvtimeo = 0, 0, 30_000
            sock.connect(root.events)
            for topic in each if who == "sub" else ["pact.v1."]:
                sock.subscribe(topic)
            if len(made) == 5:
                assert until(lambda: refused(root, "too many topics of one key") > 0) and refused(root) == 0
            assert until(lambda: subscriptions(root) == min(len(made), 4) * len(each) + (len(made) == 6))
        number = root.commit(Chain("n1").batch("committed"))
        assert numbers(made[-1], number) == [number]
    finally:
        for sock in made:
            sock.close(0)
        context.term()
        root.stop()


# -- the counting ---------------------------------------------------------------------------------------------------


class Sockets:
    """Descriptors, the inodes that they have, and which were cut."""

    def __init__(self) -> None:
        self.inodes: dict[int, int] = {}
        self.cut: list[tuple[int, str, str]] = []
        self.counts = Subscriptions(lambda *args: self.cut.append(args), lambda fd: self.inodes.get(fd, 0))


def test_all_connections_of_one_key_have_one_share() -> None:
    at = Sockets()
    topic, each = bytes(SUBSCRIPTION_MAX - 1), TOPICS_BYTES_MAX // SUBSCRIPTION_MAX
    for fd in range(5):
        at.inodes[fd] = 100 + fd
        for n in range(each):
            at.counts.heard(fd, "ann", b"\1" + n.to_bytes(2, "big") + topic[2:])
    assert TOPICS_KEY_BYTES_MAX == 4 * TOPICS_BYTES_MAX
    assert [(fd, why) for fd, _, why in at.cut] == [(4, "too many topics of one key")]
    at.inodes[9] = 900
    at.counts.heard(9, "bob", b"\1x")
    assert len(at.cut) == 1
    at.inodes.clear()
    at.counts.sweep()
    assert (at.counts.topics, at.counts.listening) == (0, False)
    at.inodes[0] = 200
    at.counts.heard(0, "ann", b"\1x")
    assert len(at.cut) == 1 and at.counts.topics == 1


def test_who_sends_without_an_end_is_cut_even_if_nothing_comes_of_it() -> None:
    at = Sockets()
    at.inodes = {3: 33, 4: 44}
    at.counts.heard(4, "bob", b"\1")
    for _ in range(FRAMES_MAX):
        at.counts.heard(3, "ann", b"\0x")
    at.counts.sweep()
    for _ in range(FRAMES_MAX):
        at.counts.heard(3, "ann", b"\1x")
    assert at.cut == []
    at.counts.heard(3, "ann", b"")
    at.counts.heard(3, "ann", b"")
    assert at.cut == [(3, "ann", "too many subscriptions at once")]


@given(
    st.lists(
        st.tuples(st.sampled_from("hjks"), st.integers(0, 3), st.integers(0, 1), st.sampled_from([b"", b"a", b"b"]))
    )
)
def test_the_count_is_that_of_the_live_connections_sets(steps: list[tuple[str, int, int, bytes]]) -> None:
    at, inode, model = Sockets(), 0, {}
    for what, fd, add, topic in steps:
        if what == "k":  # the connection ends, and its descriptor may be another's at once
            model.pop(at.inodes.get(fd, 0), None)
            inode += 1
            at.inodes[fd] = inode * (add or 0)
        elif what == "s":
            at.counts.sweep()
        else:
            at.counts.heard(fd, f"user{fd}", bytes([add]) + topic)
            if at.inodes.get(fd):
                had: set[bytes] = model.setdefault(at.inodes[fd], set())
                had.add(topic) if add else had.discard(topic)
    at.counts.sweep()
    assert at.counts.topics == sum(map(len, model.values()))
    assert at.counts.listening == bool(model)
    assert dict(at.counts._by_key) == {
        f"user{fd}": size for fd, i in at.inodes.items() if (size := sum(len(t) + 1 for t in model.get(i, ())))
    }
