"""Subscribers that do not read what they are sent, at the public ports of a real root."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
from public_root import Chain
from test_cluster_hostile import NAMES, Hostile, wait_for
from test_unread import _mebibytes

from pact.core.tree import wire
from pact.net import keys

pytestmark = pytest.mark.invariant("V4")
LONG = 4 << 20
MOST = 300  # mebibytes
FLOODERS = [f"m{at}" for at in range(8)]  # each has a share of the root's log
EACH = 14


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Hostile]:
    kit = Hostile(tmp_path, {**NAMES, "sub": "subscriber", **dict.fromkeys(FLOODERS, "node")})
    kit.start()
    try:
        yield kit
    finally:
        kit.close()


def recorded(kit: Hostile) -> None:
    """The root's log has an event of ``LONG`` bytes."""
    node, chain, ends = kit.node("n1"), Chain("n1"), time.monotonic() + 20
    batch = chain.batch("committed", data={"text": "x" * LONG})
    line = batch.lines[0] + b"\n"
    node.send(wire.encode("events", {"batches": [["n1", batch.incarnation, 0, 1, len(line)]]}, line))
    while (said := kit.maybe(node, 0.5)) is None or said.kind != "ack":
        assert time.monotonic() < ends, kit.logs()


def url_of(kit: Hostile, port: str) -> str:
    lines = (kit.base / "root1.toml").read_text().splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith(port))


def connected(kit: Hostile, kind: int, port: str, reads: bool) -> zmq.Socket[bytes]:
    sock: zmq.Socket[bytes] = kit.context.socket(kind)
    kit.sockets.append(sock)
    pair = keys.load(kit.secret("sub"))
    sock.curve_publickey, sock.curve_secretkey = pair.public.encode(), pair.secret.encode()
    sock.curve_serverkey, sock.linger = kit.public["root1"].encode(), 0
    if not reads:
        sock.rcvhwm, sock.rcvbuf = 1, 4096
    sock.connect(url_of(kit, port))
    return sock


def asker(kit: Hostile, *, reads: bool = False) -> zmq.Socket[bytes]:
    return connected(kit, zmq.DEALER, "replay", reads)


def test_who_asks_for_long_events_and_reads_none_does_not_fill_the_memory(kit: Hostile) -> None:
    """libzmq keeps two thousand messages for each connection, however long each is."""
    recorded(kit)
    pid, most = kit.processes["root1"].pid, 0
    before = _mebibytes(pid)
    deaf = [asker(kit) for _ in range(8)]
    for _ in range(100):
        for sock in deaf:
            sock.send_multipart([b"GET", b"*", b"0"])
        time.sleep(0.1)
        most = max(most, _mebibytes(pid) - before)
        assert most < MOST, "it fills"
    reader = asker(kit, reads=True)
    reader.send_multipart([b"GET", b"committed", b"0"])
    assert reader.poll(20_000), "others are served"
    assert len(reader.recv_multipart()[2]) > LONG
    kit.still_at_work()
    for sock in deaf:
        sock.close(0)
    wait_for(lambda: _mebibytes(pid) - before < MOST // 3, 90)


def listener(kit: Hostile, topics: tuple[bytes, ...] = (b"",), *, reads: bool = False) -> zmq.Socket[bytes]:
    sock = connected(kit, zmq.SUB, "events", reads)
    for topic in topics:
        sock.subscribe(topic)
    return sock


def test_who_reads_long_events_slowly_does_not_fill_the_memory(kit: Hostile) -> None:
    """libzmq keeps four thousand events for each subscriber, however long each is, and whoever reads one of them now
    and then is never stuck."""
    reader, slow = listener(kit, reads=True), listener(kit)
    wait_for(lambda: reader.poll(100) and slow.poll(100), 20)  # heads: both are known
    pid, most, came = kit.processes["root1"].pid, 0, 0
    before = _mebibytes(pid)
    for name in FLOODERS:
        node, chain = kit.node(name), Chain(name)
        for _ in range(EACH):
            batch = chain.batch("committed", data={"text": "x" * LONG})
            line = batch.lines[0] + b"\n"
            node.send(
                wire.encode("events", {"batches": [[chain.node, chain.incarnation, batch.first, 1, len(line)]]}, line)
            )
            ends = time.monotonic() + 20
            while (said := kit.maybe(node, 0.5)) is None or said.kind != "ack":
                assert time.monotonic() < ends, kit.logs()
            while reader.poll(0):
                came += len(reader.recv_multipart()[2]) > LONG
            most = max(most, _mebibytes(pid) - before)
            assert most < MOST, "it fills"
        with suppress(zmq.Again):
            slow.recv_multipart(zmq.NOBLOCK)
    assert "a subscriber with the key" in kit.logs() and "does not read" in kit.logs(), f"{most} MiB more than before"
    while came < len(FLOODERS) * EACH:
        assert reader.poll(20_000), f"others get every event: {came}"
        came += len(reader.recv_multipart()[2]) > LONG
    kit.still_at_work()


def published(kit: Hostile, chain: Chain, node: zmq.Socket[bytes]) -> None:
    """One event of ``LONG`` bytes is in the root's log."""
    batch, ends = chain.batch("committed", data={"text": "x" * LONG}), time.monotonic() + 20
    line = batch.lines[0] + b"\n"
    node.send(wire.encode("events", {"batches": [[chain.node, chain.incarnation, batch.first, 1, len(line)]]}, line))
    while (said := kit.maybe(node, 0.5)) is None or said.kind != "ack":
        assert time.monotonic() < ends, kit.logs()


def test_many_of_one_person_who_read_everything_are_kept(kit: Hostile) -> None:
    """A long event is on its way to all of them at once; what is so for a moment only is no fault of theirs."""
    readers = [listener(kit, reads=True) for _ in range(30)]
    for reader in readers:
        wait_for(lambda reader=reader: reader.poll(100), 20)  # type: ignore[misc]
    node, chain = kit.node("n1"), Chain("n1")
    for _ in range(3):
        published(kit, chain, node)
        for reader in readers:
            ends = time.monotonic() + 20
            while len(reader.recv_multipart()[2]) < LONG if reader.poll(1000) else time.monotonic() < ends:
                pass
            assert time.monotonic() < ends, kit.logs()
    assert "is cut off" not in kit.logs()
    kit.still_at_work()
