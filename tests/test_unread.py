"""Children that do not read what they are sent: real sockets at a real root, and the sums on real connections."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from hostile_kit import Hostile, wait_for

from pact.cluster import unread
from pact.cluster.unread import Unread
from pact.core.tree import wire
from pact.core.tree.directory import Peer
from pact.limits import FRAME_MAX, TREE_UNREAD_MAX
from pact.net.floods import acked_bytes

pytestmark = pytest.mark.invariant("T10")

MEBI = 1 << 20
ANSWER = b'{"ok":true,"exit":0,"message":"","result":{"x":"' + b"z" * (4 * MEBI) + b'"}}'


def _mebibytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


def test_who_asks_for_long_answers_and_reads_none_is_cut_off(kit: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    node, pid = kit.node("n1"), kit.processes["root1"].pid
    context, made = kit.context, kit.context.socket

    def deaf(kind: int) -> zmq.Socket[bytes]:
        sock: zmq.Socket[bytes] = made(kind)
        sock.rcvhwm, sock.rcvbuf = 1, 4096
        return sock

    monkeypatch.setattr(context, "socket", deaf)
    slow = kit.person("view")
    monkeypatch.undo()
    before, most = _mebibytes(pid), 0
    for asked in range(1, 100):
        kit.request(slow, "status", "n1", id_=asked)
        slow.send(wire.LIVES)  # it says that it is there
        message = kit.maybe(node, 0.3)
        if message is not None and message.kind == "call":
            head = {"call": message.head["call"], "final": True, "parts": [[["n1"], len(ANSWER)]]}
            node.send(wire.encode("answer", head, ANSWER))
        most = max(most, _mebibytes(pid) - before)
        if "view does not read what it is sent: cut off" in kit.logs():
            break
    assert "view does not read what it is sent: cut off" in kit.logs(), f"{most} MiB more than before"
    assert most < 3 * TREE_UNREAD_MAX // MEBI, most
    wait_for(lambda: _mebibytes(pid) - before < TREE_UNREAD_MAX // MEBI, 90)  # it gives memory back twice a minute
    kit.still_at_work()


@pytest.fixture
def ends() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Two connections: the child's end, and ours."""
    made = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(2):
            child = socket.socket()
            child.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            child.connect(server.getsockname())
            made.append((child, server.accept()[0]))
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


def _give(sock: socket.socket, size: int) -> int:
    """As much of it as the kernel takes."""
    sock.setblocking(False)
    try:
        return sock.send(b"x" * size)
    except BlockingIOError:
        return 0


def test_who_reads_is_kept_however_much_it_is_sent(
    ends: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "TREE_UNREAD_MAX", 8 * MEBI)
    cuts: list[int] = []
    guard, (child, ours) = Unread(cuts.append), ends[0]
    guard.came(b"a", ours.fileno(), Peer("ann", "viewer", "key"))
    for _ in range(64):
        left = MEBI
        while left:
            left -= _give(ours, left)
            child.recv(MEBI)
        assert guard.sent([b"a"], bytes(MEBI)) == []
        child.setblocking(False)
        while True:
            try:
                child.recv(MEBI)
            except BlockingIOError:
                if (acked_bytes(ours.fileno()) or 0) % MEBI == 0:
                    break
                time.sleep(0.001)
        child.setblocking(True)
    assert cuts == []


def test_all_connections_of_a_key_have_one_share_and_the_worst_is_cut_off(
    ends: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "TREE_UNREAD_MAX", 8 * MEBI)
    cuts: list[int] = []
    guard = Unread(cuts.append)
    for rid, (_, ours) in zip((b"a", b"b"), ends, strict=True):
        guard.came(rid, ours.fileno(), Peer("ann", "viewer", "key"))
    assert guard.sent([b"a"], bytes(6 * MEBI)) == []
    assert guard.sent_each([b"b", b"c"], [bytes(1 * MEBI), bytes(99 * MEBI)]) == []
    assert guard.sent([b"b"], bytes(unread.COUNTED_FROM - 1)) == [], "short ones are not counted"
    assert guard.sent([b"b"], bytes(2 * MEBI)) == [b"a"]
    assert cuts == [ends[0][1].fileno()]
    assert guard.sent([b"b"], bytes(4 * MEBI)) == [], "what the other had not read counts no more"


def test_an_administrator_on_a_slow_line_gets_what_ten_thousand_nodes_answer(
    ends: list[tuple[socket.socket, socket.socket]],
) -> None:
    cuts: list[int] = []
    guard = Unread(cuts.append)
    guard.came(b"a", ends[0][1].fileno(), Peer("ann", "admin", "key"))
    part = bytes(TREE_UNREAD_MAX // 2)
    for _ in range(10):
        assert guard.sent([b"a"], part) == []
    assert [over for _ in range(10) for over in guard.sent([b"a"], part)] == [b"a"], "not without end"


def test_a_connection_that_is_another_by_now_is_left_alone(ends: list[tuple[socket.socket, socket.socket]]) -> None:
    cuts: list[int] = []
    guard, (_, ours) = Unread(cuts.append), ends[0]
    guard.came(b"a", ours.fileno(), Peer("ann", "viewer", "key"))
    assert guard.sent([b"a"], bytes(TREE_UNREAD_MAX // 2)) == []
    guard.came(b"b", ours.fileno(), Peer("bob", "viewer", "other"))
    assert guard.sent([b"a"], bytes(2 * TREE_UNREAD_MAX)) == [], "it is gone"
    assert guard.sent([b"b"], bytes(TREE_UNREAD_MAX // 2)) == [] == cuts


def test_who_says_hello_again_owes_what_was_sent_before(ends: list[tuple[socket.socket, socket.socket]]) -> None:
    """The count began anew with each hello: a person who said hello again and again filled the memory all the same."""
    cuts: list[int] = []
    guard, (_, ours) = Unread(cuts.append), ends[0]
    cut: list[bytes] = []
    for _ in range(2):
        guard.came(b"a", ours.fileno(), Peer("ann", "viewer", "key"))
        cut += guard.sent([b"a"], bytes(TREE_UNREAD_MAX // 2))
    assert cut == [b"a"] and cuts == [ours.fileno()]


def test_many_keys_have_a_share_together(
    ends: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many keys somebody has."""
    monkeypatch.setattr(unread, "UNREAD_ALL_MAX", 8 * MEBI)
    cuts: list[int] = []
    guard = Unread(cuts.append)
    for (_, ours), name in zip(ends, ("ann", "bob"), strict=True):
        guard.came(name.encode(), ours.fileno(), Peer(name, "viewer", name))
    assert guard.sent([b"bob"], bytes(3 * MEBI)) == [] == guard.sent([b"ann"], bytes(4 * MEBI))
    assert guard.sent([b"bob"], bytes(2 * MEBI)) == [b"bob"], "for whom most waits"
    assert guard.sent([b"ann"], bytes(3 * MEBI)) == [], "now there is room"
    assert cuts == [ends[1][1].fileno()]


def test_an_aggregator_gets_the_calls_of_several_administrators_at_once(
    ends: list[tuple[socket.socket, socket.socket]],
) -> None:
    """Each may have 16 MiB, and it reads them one after another."""
    cuts: list[int] = []
    guard, (_, ours) = Unread(cuts.append), ends[0]
    guard.came(b"a", ours.fileno(), Peer("agg", "aggregator", "key"))
    for _ in range(20):
        assert guard.sent([b"a"], bytes(FRAME_MAX)) == []
    assert [over for _ in range(20) for over in guard.sent([b"a"], bytes(FRAME_MAX))] == [b"a"], "not without end"


def test_what_could_not_be_sent_waits_nowhere(ends: list[tuple[socket.socket, socket.socket]]) -> None:
    """It would never be acknowledged, and count for as long as the connection lasts."""
    cuts: list[int] = []
    guard, (_, ours) = Unread(cuts.append), ends[0]
    guard.came(b"a", ours.fileno(), Peer("ann", "viewer", "key"))
    half = bytes(TREE_UNREAD_MAX // 2)
    for _ in range(4):
        assert guard.sent([b"a"], half, [b"a"]) == [] == guard.sent_each([b"a"], [half], [b"a"])
    assert not cuts
