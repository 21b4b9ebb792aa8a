"""What was published and the subscribers have not read yet, in bytes.

libzmq keeps thousands of events for each subscriber, however long each event is, and it does not say for whom. A
subscriber that reads one event now and then is never stuck, but it could so fill the memory. So every published event
is counted for the topics that match it, and what each connection's kernel has acknowledged is taken off. Of those for
which too much waits, the worst are to be cut off. They come again, see by the numbers what they missed, and ask for
it. All that an event is sent to share its memory: for many together only what has waited for a while counts.  # V4
"""

from __future__ import annotations

import fcntl
import struct
import termios
import time
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from pact.limits import EVENTS_UNREAD_ALL_MAX, EVENTS_UNREAD_EACH_MAX
from pact.net.floods import acked_bytes, connection, travelled

Which = tuple[int, int]  # a connection: descriptor and inode

LOOK_BYTES: Final = 1 << 20  # published since the last look, and the connections are looked at
LOOK_BYTES_MAX: Final = 16 << 20  # so much, and they are looked at however long that takes
LOOK_SHARE: Final = 4  # otherwise not before this many times as long as the last look took
IDLE_S: Final = 0.5  # nothing left in this time, and nothing is under way: nothing waits
PATIENCE_S: Final = 2.0  # for what waits for several connections together: it is on its way to all of them at once
LEFT_MAX: Final = 16  # cancelled topics of one connection that are remembered until the next look


@dataclass(slots=True)
class _Reader:
    key: str
    topics: Collection[bytes]  # what it subscribes to now: another owner's set
    acked: int
    #: Subscribed to since the last look, and what had been published for each since then: that was not sent to it.
    fresh: dict[bytes, int] = field(default_factory=dict)
    #: Cancelled since the last look, and what was sent for each until then.
    left: dict[bytes, int] = field(default_factory=dict)
    beyond: int = 0  # the same for those that are too many to remember
    whole: bool = False  # there are such: at worst everything counts until the next look
    stale: bool = True
    roots: list[bytes] = field(default_factory=list)
    waiting: int = 0  # bytes
    late: int = 0  # of these, what has waited for a while
    before: int = 0  # bytes that waited at some time before, and are not acknowledged yet
    before_s: float = 0.0


def acked_of(which: Which) -> int | None:
    """The bytes that the other side has acknowledged; None if that connection has ended."""
    return acked_bytes(which[0]) if connection(which[0]) == which else None


class Waiting:
    """See the module. Only one thread uses it."""

    def __init__(
        self,
        each: int = EVENTS_UNREAD_EACH_MAX,
        together: int = EVENTS_UNREAD_ALL_MAX,
        acked: Callable[[Which], int | None] = acked_of,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """``each``: bytes that may wait for one connection, and longer than ``patience_s`` for all of one key;
        ``together``: for all keys. ``acked``: as ``acked_of``."""
        self._each, self._together, self._acked, self._patience_s = each, together, acked, patience_s
        self._readers: dict[Which, _Reader] = {}
        self._refs: Counter[bytes] = Counter()  # how many connections subscribe to a topic
        self._sent: dict[bytes, int] = {}  # bytes that were published for each topic since the last look
        self._lengths: list[int] = []  # of the topics in ``_sent``, each once, the shortest first
        self._published = 0  # bytes since the last look
        self._looked_s = self._due_s = 0.0

    def came(self, which: Which, key: str, topics: Collection[bytes]) -> None:
        """A new connection. Without a key (that is, without CURVE) what travels is shorter: it does not count."""
        acked = self._acked(which) if key else None
        if acked is not None:
            self._readers[which] = _Reader(key, topics, acked)

    def gone(self, which: Which) -> None:
        """The connection has ended."""
        reader = self._readers.pop(which, None)
        for topic in reader.topics if reader is not None else ():
            self._refs[topic] -= 1

    def subscribed(self, which: Which, topic: bytes) -> None:
        """Call it when the topic is new for this connection."""
        reader = self._readers.get(which)
        if reader is None:
            return
        reader.stale = True
        self._refs[topic] += 1
        reader.fresh[topic] = self._sent.get(topic, 0)
        if topic not in self._sent:
            self._sent[topic] = 0
            at = bisect_left(self._lengths, len(topic))
            if self._lengths[at : at + 1] != [len(topic)]:
                insort(self._lengths, len(topic))

    def cancelled(self, which: Which, topic: bytes) -> None:
        """Call it when this connection had the topic."""
        reader = self._readers.get(which)
        if reader is None:
            return
        reader.stale = True
        self._refs[topic] -= 1
        sent = self._sent.get(topic, 0) - reader.fresh.pop(topic, 0)
        if topic in reader.left or len(reader.left) < LEFT_MAX:
            reader.left[topic] = reader.left.get(topic, 0) + sent
        else:
            reader.beyond += sent
            reader.whole = True

    def published(self, frames: Collection[bytes]) -> bool:
        """A message was published, whose first frame is its topic. Returns whether to ``look`` now."""
        size = sum(travelled(len(frame)) for frame in frames)
        (topic, *_) = frames
        sent, long = self._sent, len(topic)
        for length in self._lengths:
            if length > long:
                break
            if (start := topic[:length]) in sent:
                sent[start] += size
        self._published += size
        if self._published < LOOK_BYTES:
            return False
        return self._published >= LOOK_BYTES_MAX or time.monotonic() >= self._due_s

    def look(self) -> list[Which]:
        """The connections to be cut off. Call it also about every second."""
        began_s = time.monotonic()
        idle = began_s - self._looked_s >= IDLE_S
        of: Counter[str] = Counter()
        for which, reader in list(self._readers.items()):
            acked = self._acked(which)
            if acked is None:
                self.gone(which)
                continue
            self._count(which[0], reader, acked, idle, began_s)
            of[reader.key] += reader.late
        self._forget()
        self._looked_s = time.monotonic()
        self._due_s = self._looked_s + LOOK_SHARE * (self._looked_s - began_s)
        return self._too_much(of)

    def _count(self, fd: int, reader: _Reader, acked: int, idle: bool, now_s: float) -> None:
        if reader.stale:
            reader.roots, reader.stale = _roots({*reader.topics, *reader.left}), bool(reader.left)
        sent = self._published if reader.whole else sum(self._sent.get(topic, 0) for topic in reader.roots)
        if reader.fresh or reader.left:
            sent = min(sent, self._apart(reader))
        if idle and not sent and acked == reader.acked and not _under_way(fd):
            reader.waiting = 0  # libzmq drops events for whoever has thousands that wait: those were counted
        else:
            reader.waiting = max(0, reader.waiting + sent - (acked - reader.acked))
        reader.before = min(reader.waiting, max(0, reader.before - (acked - reader.acked)))
        reader.late = min(reader.waiting, max(0, reader.late - (acked - reader.acked)))
        if now_s - reader.before_s >= self._patience_s:
            reader.late, reader.before, reader.before_s = reader.before, reader.waiting, now_s
        reader.acked = acked
        reader.fresh.clear()
        reader.left.clear()
        reader.beyond, reader.whole = 0, False

    def _apart(self, reader: _Reader) -> int:
        """What was sent since the last look to one that has changed its topics meanwhile, at most: an event counts for
        each topic that it had for a while only, but once for all that it had all the time."""
        lasting = _roots(set(reader.topics) - reader.fresh.keys())
        sent = reader.beyond + sum(self._sent.get(topic, 0) for topic in lasting)
        whiles = {topic: self._sent.get(topic, 0) - before for topic, before in reader.fresh.items()}
        for topic, size in (*whiles.items(), *reader.left.items()):
            at = bisect_right(lasting, topic)
            if size and not (at and topic.startswith(lasting[at - 1])):
                sent += size
        return sent

    def _forget(self) -> None:
        """Begin to count anew."""
        self._refs = +self._refs
        self._sent = dict.fromkeys(self._refs, 0)
        self._lengths = sorted({len(topic) for topic in self._sent})
        self._published = 0

    def _too_much(self, of: Counter[str]) -> list[Which]:
        found = [which for which, reader in self._readers.items() if reader.waiting > self._each]
        for which in found:
            of[self._readers[which].key] -= self._readers[which].late
        together = sum(of.values())
        if together > self._together or any(late > self._each for late in of.values()):
            cut = set(found)
            rest = ((which, reader) for which, reader in self._readers.items() if which not in cut)
            for which, reader in sorted(rest, key=lambda item: (-of[item[1].key], -item[1].late)):
                if together > self._together or of[reader.key] > self._each:
                    found.append(which)
                    of[reader.key] -= reader.late
                    together -= reader.late
        for which in found:
            self.gone(which)
        return found

    def clear(self) -> None:
        """All connections have ended."""
        self._readers.clear()
        self._refs.clear()
        self._forget()


def _roots(topics: Collection[bytes]) -> list[bytes]:
    """The topics without those that others of them include: a subscriber gets each event once."""
    found: list[bytes] = []
    for topic in sorted(topics):
        if not found or not topic.startswith(found[-1]):
            found.append(topic)
    return found


def _under_way(fd: int) -> int:
    """Bytes that the kernel has for a connection and the other side has not acknowledged."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except OSError:
        return 1
