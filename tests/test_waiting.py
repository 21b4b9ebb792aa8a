"""What waits for subscribers that read slowly, on real connections: how it is counted, and who is cut off."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator

import pytest

from pact.cluster import waiting as module
from pact.cluster.waiting import Waiting, Which
from pact.net.floods import connection, travelled

pytestmark = pytest.mark.invariant("V4")
MEBI = 1 << 20
FRAMES = (b"pact.v1.committed.c1.r1.n1.", bytes(MEBI))
MADE: list[socket.socket] = []
SIZE = sum(map(travelled, map(len, FRAMES)))


class Subscriber:
    """One connection, as the publishing thread has it; ``takes``: what libzmq would send is read at once."""

    def __init__(self, waiting: Waiting, server: socket.socket, key: str) -> None:
        self.child = socket.socket()
        self.child.connect(server.getsockname())
        self.ours = server.accept()[0]
        MADE.extend((self.child, self.ours))
        self.topics: set[bytes] = set()
        found = connection(self.ours.fileno())
        assert found is not None
        self.which: Which = found
        self._waiting = waiting
        waiting.came(found, key, self.topics)

    def subscribe(self, *topics: bytes) -> Subscriber:
        for topic in topics:
            self.topics.add(topic)
            self._waiting.subscribed(self.which, topic)
        return self

    def cancel(self, topic: bytes) -> None:
        self.topics.remove(topic)
        self._waiting.cancelled(self.which, topic)

    def takes(self, size: int = SIZE) -> None:
        sent = 0
        while sent < size:
            sent += self.ours.send(bytes(min(size - sent, 65536)))
            while self.child.recv(65536, socket.MSG_DONTWAIT) if self._waits() else False:
                pass

    def _waits(self) -> bool:
        try:
            return bool(self.child.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
        except BlockingIOError:
            return False


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server
    while MADE:
        MADE.pop().close()


def publish(waiting: Waiting, frames: tuple[bytes, ...] = FRAMES) -> list[Which]:
    waiting.published(frames)
    return waiting.look()


def test_who_reads_what_it_is_sent_is_kept_however_much_it_is(server: socket.socket) -> None:
    waiting = Waiting(4 * MEBI)
    both = Subscriber(waiting, server, "a").subscribe(b"", b"pact.v1.", b"pact.v1.committed.", b"other")
    for _ in range(64):
        both.takes()
        assert publish(waiting) == [], "what two topics of one subscriber match is sent once"


def test_all_connections_of_a_key_share_and_the_one_with_most_is_cut_off(server: socket.socket) -> None:
    waiting = Waiting(8 * MEBI, patience_s=0)
    first = Subscriber(waiting, server, "a").subscribe(b"pact.")
    other = Subscriber(waiting, server, "b").subscribe(b"")
    elsewhere = Subscriber(waiting, server, "a").subscribe(b"pact.v1.rolled_back.")
    for _ in range(4):
        assert publish(waiting) == []
    second = Subscriber(waiting, server, "a").subscribe(b"")
    found: list[Which] = []
    while not found:
        other.takes()
        found = publish(waiting)
    assert found == [first.which]
    assert other.which not in found and elsewhere.which not in found
    assert publish(waiting) == [], f"what the other had not read counts no more: {second.which}"


def test_many_keys_have_a_bound_together(server: socket.socket) -> None:
    waiting = Waiting(8 * MEBI, together=12 * MEBI, patience_s=0)
    subscribers = [Subscriber(waiting, server, f"key{at}").subscribe(b"pact.v1.") for at in range(3)]
    for _ in range(3):
        assert publish(waiting) == []
    found: list[Which] = []
    while not found:
        subscribers[0].takes()
        found = publish(waiting)
    assert len(found) == 1 and found[0] != subscribers[0].which


def test_who_cancels_before_anybody_looks_is_counted(server: socket.socket) -> None:
    """Between two looks it subscribes, is sent much, and cancels, again and again."""
    waiting = Waiting(8 * MEBI)
    rogue = Subscriber(waiting, server, "a")
    names = [b"pact.v1.committed." + b"c1.r1.n1."[: at % 9] for at in range(2 * module.LEFT_MAX)]
    for turn in range(10):
        for name in names if turn % 2 else names[:1]:
            rogue.topics.discard(name)
            rogue.subscribe(name)
        waiting.published(FRAMES)
        for name in set(rogue.topics):
            rogue.cancel(name)
        if found := waiting.look():
            assert found == [rogue.which]
            return
    raise AssertionError("it is not counted")


def test_what_was_published_before_somebody_came_does_not_count(server: socket.socket) -> None:
    """As when many programs of one person come back at once, while much happens."""
    waiting = Waiting(4 * MEBI)
    Subscriber(waiting, server, "b").subscribe(b"")
    waiting.published(FRAMES)
    many = [Subscriber(waiting, server, "a").subscribe(b"", b"pact.v1.committed.") for _ in range(20)]
    assert waiting.look() == []
    for each in many:
        each.takes()
    assert publish(waiting) == [] and publish(waiting, (b"pact.v2.", b"")) == []


def test_who_changes_topics_and_reads_everything_is_kept(server: socket.socket) -> None:
    """What is published after it has cancelled, or before it subscribes again, is not sent to it."""
    waiting = Waiting(4 * MEBI)
    other = Subscriber(waiting, server, "b").subscribe(b"pact.v1.", b"pact.v1.committed.", b"")
    one = Subscriber(waiting, server, "a").subscribe(b"pact.v1.", b"pact.v1.rolled_back.")
    for turn in range(24):
        one.takes()
        other.takes(2 * SIZE)
        waiting.published(FRAMES)
        one.cancel(b"pact.v1.")
        waiting.published(FRAMES)
        if turn % 2:
            assert waiting.look() == []
        one.subscribe(b"pact.v1.")
        for at in range(2 * module.LEFT_MAX * (turn % 3)):  # and others, of which there is nothing
            one.subscribe(b"%d" % at)
            one.cancel(b"%d" % at)
        assert waiting.look() == []


@pytest.mark.parametrize("seed", range(40))
def test_at_least_what_was_sent_is_counted(server: socket.socket, seed: int) -> None:
    """Whatever it subscribes to and cancels, in whatever order: nobody reads less than is counted."""
    waiting, rng, sent = Waiting(1 << 50), random.Random(seed), 0
    names = [b"", b"a", b"ab", b"abc", b"b", b"bc"]
    Subscriber(waiting, server, "b").subscribe(*names)
    one = Subscriber(waiting, server, "a")
    for _ in range(400):
        match rng.randrange(8):
            case 0 | 1 | 2:
                frames = (rng.choice(["abcd", "abx", "ax", "bcd", "c"]).encode(), bytes(rng.randrange(2000)))
                waiting.published(frames)
                if any(frames[0].startswith(topic) for topic in one.topics):
                    sent += sum(map(travelled, map(len, frames)))
            case 3 | 4 | 5 if missing := [n for n in names if n not in one.topics]:
                one.subscribe(rng.choice(missing))
            case 6 if one.topics:
                one.cancel(rng.choice(sorted(one.topics)))
            case 7:
                waiting.look()
                assert waiting._readers[one.which].waiting >= sent


def test_what_libzmq_dropped_does_not_count_for_ever(server: socket.socket) -> None:
    waiting = Waiting(8 * MEBI)
    subscriber = Subscriber(waiting, server, "a").subscribe(b"")
    for _ in range(5):
        for _ in range(6):
            assert publish(waiting) == []  # none of it reaches the kernel
        time.sleep(module.IDLE_S + 0.1)
        assert waiting.look() == []
    subscriber.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MEBI)
    subscriber.ours.setblocking(False)
    subscriber.ours.send(bytes(4 * MEBI))  # it reads none of this
    found: list[Which] = []
    for _ in range(3):
        for _ in range(4):
            found += publish(waiting)
        time.sleep(module.IDLE_S + 0.1)
        found += waiting.look()
    assert found == [subscriber.which]


def test_a_connection_that_is_another_by_now_is_left_alone(server: socket.socket) -> None:
    waiting = Waiting(MEBI)
    subscriber = Subscriber(waiting, server, "a").subscribe(b"")
    subscriber.ours.close()
    after = Subscriber(waiting, server, "b")
    assert [publish(waiting) for _ in range(4)] == [[]] * 4, after.which
