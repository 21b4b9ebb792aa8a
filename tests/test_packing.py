"""What a terminal's stream says: gathered while it waits, and never more than the other end and the relays bear."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_relay import peer
from test_streams import ANN, Tree, frames

from pact.agent.streams import UNREAD, UNREAD_S, Bridge
from pact.core.tree.lanes import CONTROL_MAX, CREDIT, PIECE_MAX, SEAL_BYTES, TERMINAL_MIN, WINDOW_MAX, cost
from pact.net.ends import TAG_BYTES, End
from pact.session import frames as f
from pact.session.packing import LINES_MAX, SIGNALS_MAX, Exchange, Outgoing

MESSAGES_MAX = CREDIT // TERMINAL_MIN


def all_of(out: Outgoing, room: int = CREDIT) -> list[tuple[bytes, bytes]]:
    found = list[tuple[bytes, bytes]]()
    while (piece := out.take(room)) is not None:
        assert len(piece.body) <= piece.size + CONTROL_MAX - TAG_BYTES and piece.size <= min(room, PIECE_MAX)
        found += f.Reader().feed(piece.body)
    return found


def test_of_window_sizes_that_wait_only_the_newest_is_sent_and_in_its_place() -> None:
    out = Outgoing()
    for n in range(10_000):
        out.feed(f.said(b"W", [n + 1, 80]))
    out.feed(f.frame(b"I", b"ls\r") + f.said(b"W", [7, 7]) + f.frame(b"I", b"x"))
    assert all_of(out) == [(b"I", b"ls\r"), (b"W", b"[7,7]"), (b"I", b"x")]
    out.feed(f.said(b"W", [8, 8]))
    assert all_of(out) == [(b"W", b"[8,8]")], "the next one counts anew"


def test_a_signal_that_waits_is_not_sent_twice_and_few_wait() -> None:
    out = Outgoing()
    for n in range(10_000):
        out.feed(f.frame(b"S", b"INT") + f.frame(b"S", b"S%d" % n) + f.frame(b"N", b"line"))
    found = all_of(out)
    assert found.count((b"S", b"INT")) == 1 and sum(kind == b"S" for kind, _ in found) == SIGNALS_MAX
    assert sum(kind == b"N" for kind, _ in found) == LINES_MAX
    out.feed(f.frame(b"S", b"INT") + f.frame(b"N", b"again"))
    assert all_of(out) == [(b"S", b"INT"), (b"N", b"again")]


def test_credit_goes_with_what_else_is_said_or_when_it_is_much() -> None:
    out = Outgoing()
    for _ in range(100):
        out.feed(f.credit(1))
    assert out.take(CREDIT) is None and not out.waits
    out.feed(f.frame(b"O", b"x"))
    assert all_of(out) == [(b"C", b"100"), (b"O", b"x")]
    out.feed(f.credit(out.step))
    assert out.take(TERMINAL_MIN - 1) is None
    assert all_of(out) == [(b"C", b"%d" % out.step)]


def test_what_waits_for_credit_is_gathered() -> None:
    out = Outgoing()
    for _ in range(50_000):
        out.feed(f.frame(b"O", b"y"))
        assert out.take(TERMINAL_MIN - 1) is None
    found = all_of(out)
    assert b"".join(data for _, data in found) == b"y" * 50_000 and len(found) < 20


def test_the_end_costs_nothing_and_nothing_comes_after_it() -> None:
    out = Outgoing()
    out.feed(f.frame(b"O", b"bye") + f.said(b"X", {"exit": 3}) + f.frame(b"O", b"more"))
    assert out.take(0) is None, "what it has said before comes first"
    piece = out.take(TERMINAL_MIN)
    assert (
        piece is not None and piece.last and [*f.Reader().feed(piece.body)] == [(b"O", b"bye"), (b"X", b'{"exit":3}')]
    )
    out = Outgoing()
    out.feed(f.said(b"X", {"exit": 0}))
    assert (last := out.take(0)) is not None and last.last


FRAMES = st.lists(
    st.tuples(st.sampled_from([b"I", b"O", b"E", b"W", b"S", b"C", b"N"]), st.integers(1, 40_000)), max_size=30
)


@given(FRAMES, st.lists(st.sampled_from([0, TERMINAL_MIN, 5000, CREDIT]), min_size=1, max_size=8))
def test_data_comes_whole_and_in_order_and_credit_adds_up(said: list[tuple[bytes, int]], rooms: list[int]) -> None:
    out, got, given_ = Outgoing(), list[tuple[bytes, bytes]](), 0

    def take(room: int) -> None:
        if (piece := out.take(room)) is not None:
            assert piece.size <= room and len(piece.body) <= piece.size + CONTROL_MAX - TAG_BYTES
            got.extend(f.Reader().feed(piece.body))

    for n, (kind, size) in enumerate(said):
        given_ += size if kind == b"C" else 0
        out.feed(f.credit(size) if kind == b"C" else f.frame(kind, bytes([65 + n]) * (size if kind in b"IOE" else 9)))
        take(rooms[n % len(rooms)])
    out.feed(f.credit(out.step))
    for _ in range(200):
        take(CREDIT)
    for kind in (b"I", b"O", b"E"):
        assert b"".join(data for k, data in got if k == kind) == b"".join(
            bytes([65 + n]) * size for n, (k, size) in enumerate(said) if k == kind
        )
    assert sum(f.credit_of(data) for kind, data in got if kind == b"C") == given_ + out.step


# -- both ends --------------------------------------------------------------------------------------------------------


class Ends:
    """Two ends that say to each other what may be said; each message is counted as relays do. ``seal``: what goes with
    each body."""

    def __init__(self, seal: bytes = b"") -> None:
        self.seal = seal
        self.count = [0, 0]
        self.on_way = [0, 0]  # cost of what was said and not heard of
        self.got: list[list[tuple[bytes, bytes]]] = [[], []]
        self.hears = [True, True]
        self.queue: list[list[tuple[bytes, int, int]]] = [[], []]
        self.ends = [Exchange(lambda *said, n=n: self.say(n, *said)) for n in (0, 1)]  # type: ignore[misc]

    def say(self, n: int, body: bytes, size: int, give: int, last: bool) -> bytes:
        head = {"size": size, "give": give, "bulk": False, "end": last}
        body += self.seal
        read = min(self.on_way[1 - n], give)
        self.on_way[1 - n] -= read
        self.on_way[n] += cost(head, body, read)
        assert self.on_way[n] <= WINDOW_MAX
        self.count[n] += 1
        self.queue[n].append((body, cost(head, body, give), give))
        return body

    def hear(self, n: int) -> None:
        """What end ``n`` has said comes to the other one."""
        while self.queue[n]:
            body, price, give = self.queue[n].pop(0)
            self.got[n] += f.Reader().feed(body.removesuffix(self.seal))
            self.ends[1 - n].heard(price, give)
            self.ends[1 - n].pass_on()


@pytest.mark.invariant("X7")
def test_single_bytes_to_who_does_not_read_are_few_messages_and_all_come_at_last() -> None:
    both = Ends()
    for _ in range(100_000):
        both.ends[0].out.feed(f.frame(b"O", b"y"))
        both.ends[0].pass_on()
    assert both.count == [MESSAGES_MAX, 0]
    for _ in range(20):
        both.hear(0)
        both.hear(1)
    assert b"".join(data for _, data in both.got[0]) == b"y" * 100_000
    assert both.count[0] < MESSAGES_MAX + 20 and both.count[1] < 10


@pytest.mark.invariant("X7")
@pytest.mark.parametrize("seal", [b"", b"s" * SEAL_BYTES])
@pytest.mark.parametrize("wide", [False, True])
def test_a_terminal_that_shows_much_goes_on(seal: bytes, wide: bool) -> None:
    """What it shows costs the session's own credit, which comes back in small messages; sealed, or where nothing can
    be."""
    both, may = Ends(seal), CREDIT
    for _ in range(40_000):  # 640 MB
        both.ends[0].out.feed(f.frame(b"O", bytes(16 << 10)))
        both.ends[0].pass_on()
        both.hear(0)
        if wide:
            both.ends[1].widen()
            wide = False
        both.ends[1].out.feed(f.credit(16 << 10))
        both.ends[1].pass_on()
        both.hear(1)
        may += sum(f.credit_of(data) for kind, data in both.got[1] if kind == b"C") - (16 << 10)
        assert may > 0, "it waits for ever"
        both.got = [[], []]


def test_two_ends_that_only_listen_fall_silent() -> None:
    both = Ends()
    for n in range(3_000):
        for end in (0, 1):
            both.ends[end].out.feed(f.frame(b"I", b"k") + f.credit(1))
            both.ends[end].pass_on()
        both.hear(n % 2)
        both.hear(1 - n % 2)
    before = list(both.count)
    for _ in range(10):
        both.hear(0)
        both.hear(1)
    assert both.count == before and max(before) < 3_000 + 100, "no credit for credit"


def test_a_wide_stream_takes_more_and_a_narrow_one_waits() -> None:
    both = Ends()
    both.ends[0].out.feed(f.frame(b"O", b"z" * 60_000) * 40)
    both.ends[0].pass_on()
    assert both.on_way[0] <= CREDIT
    both.hear(0)
    both.ends[1].widen()
    both.ends[1].pass_on()
    both.hear(1)
    assert CREDIT < both.on_way[0] <= WINDOW_MAX


# -- relays and agents ------------------------------------------------------------------------------------------------


@pytest.mark.invariant("X7")
@pytest.mark.parametrize("who", ["the person", "the node"])
def test_who_floods_with_what_is_no_data_loses_the_stream(who: str) -> None:
    """Window sizes and signals have no bytes of data; neither has an empty message."""
    tree, ended = Tree(), False
    tree.downs({**frames(b"hi", id=7), "client": f"agg0:{1 << 20:x}"}, b"hi")
    if who == "the node":
        tree = Tree()
    for n in range(4 * MESSAGES_MAX):
        body = b"W" * 30
        if who == "the node":
            ups = tree.ups(peer("n1"), {**frames(n=n), "size": 0}, body)
        else:
            ups = tree.ups(ANN, {**frames(id=7, n=n), "size": 0}, body)
        ended = any(u.head["end"] for u in ups)
        if ended:
            break
    assert ended and n == MESSAGES_MAX


@pytest.mark.invariant("X7")
@pytest.mark.parametrize("bulk", [False, True])
def test_credit_for_nothing_is_not_free_and_credit_for_something_is(bulk: bool) -> None:
    tree = Tree()
    seal = b"s" * SEAL_BYTES
    for n in range(2_000):  # each says that one message was read
        tree.ups(peer("n1"), frames(b"x" * TERMINAL_MIN, n=n, bulk=bulk), b"x" * TERMINAL_MIN)
        (down,) = tree.downs({**frames(n=n, bulk=bulk), "size": 0, "give": TERMINAL_MIN}, seal)
        assert not down.head["end"]
    for n in range(2_000, 4_000):
        ended = [m.head["end"] for m in tree.downs({**frames(n=n, bulk=bulk), "size": 0, "give": TERMINAL_MIN}, seal)]
        if any(ended):
            break
    assert n - 2_000 <= MESSAGES_MAX


class Agent:
    def __init__(self) -> None:
        self.epoll = select.epoll()

    def watch_stream(self, fd: int, mask: int = 0) -> None:
        (self.epoll.modify if mask else self.epoll.register)(fd, mask or select.EPOLLIN)

    def unwatch_fd(self, fd: int) -> None:
        self.epoll.unregister(fd)


class Node:
    """A bridge between a real socket, on which the test is the session, and messages, which it collects."""

    def __init__(self) -> None:
        from pact.agent.streams import Streams

        self.said: list[tuple[dict[str, Any], bytes]] = []
        agent: Any = Agent()
        agent.config = SimpleNamespace(name="n1")
        link: Any = SimpleNamespace(agent=agent, send=lambda kind, head, body: self.said.append((head, body)))
        self.streams, self.epoll = Streams(link, None), agent.epoll
        self.session, sock = socket.socketpair()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
        sock.setblocking(False)
        self.session.setblocking(False)
        self.bridge = Bridge(self.streams, sock, "1.1", b"")
        self.person = End(b"", node=False)

    def close(self) -> None:
        self.streams.close()
        self.session.close()
        self.epoll.close()

    def turn(self) -> int:
        """What the loop does; returns how many descriptors were ready."""
        ready = self.epoll.poll(0)
        for fd, mask in ready:
            self.streams.ready(fd, mask)
        return len(ready)

    def hear(self, body: bytes, size: int = 0, give: int = 0) -> None:
        from pact.core.tree.wire import message

        head, sealed = self.person.say(body, size, give)
        self.streams.heard(message("frames", {"call": "1.1", "node": "n1", **head}, sealed))


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.close()


@pytest.mark.invariant("X7")
def test_a_person_who_reads_nothing_is_sent_few_messages_and_the_session_is_not_read_further(node: Node) -> None:
    wrote = 0
    for _ in range(30_000):
        try:
            node.session.send(f.frame(b"O", b"y"))
            wrote += 1
        except BlockingIOError:
            break
        node.turn()
    assert len(node.said) == MESSAGES_MAX and wrote < 30_000
    assert node.turn() == 0, "it costs no time either"
    before = node.said[:]
    for _ in range(60):
        node.hear(b"", give=CREDIT)
        for _ in range(8):
            node.turn()
    body = b"".join(body for _, body in node.said)
    assert sum(len(data) for kind, data in f.Reader().feed(body) if kind == b"O") == wrote
    assert len(node.said) - len(before) < 40, "what has waited is gathered"


@pytest.mark.parametrize("waits", [False, True])
def test_a_session_that_ends_while_it_is_not_read_ends_the_stream_in_order(node: Node, waits: bool) -> None:
    for _ in range(MESSAGES_MAX + 50 if waits else 5):
        node.session.send(f.frame(b"O", b"y"))
        node.turn()
    node.session.send(f.said(b"X", {"exit": 4}))
    node.session.close()
    for _ in range(5):
        node.turn()
    assert node.said[-1][0]["end"] is not waits
    if waits:
        assert node.turn() == 0
        node.hear(b"", give=CREDIT)
        for _ in range(5):
            node.turn()
    assert node.said[-1][0]["end"] and node.said[-1][1].endswith(b'{"exit":4}') and not node.streams.fds


@pytest.mark.invariant("X7")
def test_a_session_that_does_not_read_gives_its_person_no_credit(node: Node) -> None:
    data = b"k" * 60_000
    for _ in range(4):  # as much as may be said
        node.hear(f.frame(b"I", data), len(data))
    assert not any(head["give"] for head, _ in node.said)
    taken = b""
    for _ in range(100):
        node.turn()
        try:
            taken += node.session.recv(1 << 20)
        except BlockingIOError:
            continue
    assert taken == f.frame(b"I", data) * 4
    assert sum(head["give"] for head, _ in node.said) == 4 * len(data)


@pytest.mark.invariant("X7", "F92")
def test_a_session_whose_process_is_stopped_ends_the_stream_after_a_while_and_says_why(node: Node) -> None:
    data = b"k" * 60_000
    now_s = time.monotonic()
    node.hear(f.frame(b"I", b"x"), 1)
    assert node.streams.next_s(now_s) is None
    node.hear(f.frame(b"I", data), len(data))
    assert 0 < (node.streams.next_s(now_s) or 0) <= UNREAD_S + 1
    node.streams.turn(time.monotonic() + UNREAD_S - 1)
    node.session.recv(30_000)
    node.turn()
    node.streams.turn(now_s + UNREAD_S)
    assert not any(head["end"] for head, _ in node.said), "it has taken something"
    node.streams.turn(time.monotonic() + UNREAD_S)
    assert node.said[-1][0]["end"] and UNREAD.encode() in node.said[-1][1]
    assert not node.streams.fds and node.streams.next_s(now_s) is None and not node.streams.slow
