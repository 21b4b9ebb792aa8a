"""Subscribers that do not read what they are sent, at the public ports of a real root."""

from __future__ import annotations

import time
from collections.abc import Iterator
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


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Hostile]:
    kit = Hostile(tmp_path, {**NAMES, "sub": "subscriber"})
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


def asker(kit: Hostile, *, reads: bool = False) -> zmq.Socket[bytes]:
    sock: zmq.Socket[bytes] = kit.context.socket(zmq.DEALER)
    kit.sockets.append(sock)
    pair = keys.load(kit.secret("sub"))
    sock.curve_publickey, sock.curve_secretkey = pair.public.encode(), pair.secret.encode()
    sock.curve_serverkey, sock.linger = kit.public["root1"].encode(), 0
    if not reads:
        sock.rcvhwm, sock.rcvbuf = 1, 4096
    sock.connect(url_of(kit, "replay"))
    return sock


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
