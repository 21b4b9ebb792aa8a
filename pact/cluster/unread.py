"""Children that do not read what they are sent, found by what the other side's kernel has acknowledged.

libzmq keeps a number of messages for a child that does not read, however long each of them is: a person who asks for
long answers and reads none could so fill the memory. What waits is bounded in bytes here, of all connections with one
key together; the one for which most waits is cut off.  # T10
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from pact.core.tree.directory import Peer
from pact.host.notify import log
from pact.limits import FRAME_MAX, TREE_UNREAD_MAX, UNREAD_ALL_MAX
from pact.net.floods import acked_bytes, connection, travelled

#: More than an aggregator may have under way: the windows of its streams, and the calls of some administrators at once.
AGGREGATOR_MAX: Final = (128 << 20) + 24 * FRAME_MAX
#: Who asks ten thousand nodes over a slow line gets their answers faster than the line takes them.
ADMIN_MAX: Final = 512 << 20
#: Shorter messages are not counted: their number is bounded.
COUNTED_FROM: Final = 4 << 10
#: The kernel is asked each time when so much more was sent.
LOOK_BYTES: Final = 1 << 20


@dataclass(slots=True, eq=False)
class _Child:
    rid: bytes
    which: tuple[int, int]
    key: str
    name: str
    most: int  # what may wait for all connections with its key
    acked: int
    waiting: int = 0  # bytes that were sent and, as far as is known, not acknowledged
    since: int = 0  # bytes sent since the kernel was asked


class Unread:
    """See the module."""

    def __init__(self, cut: Callable[[int], object], counted_from: int = COUNTED_FROM) -> None:
        """``cut(fd)`` ends a connection. ``counted_from``: shorter messages are not counted."""
        self._cut = cut
        self._counted_from = counted_from
        self._children: dict[bytes, _Child] = {}
        self._fds: dict[int, bytes] = {}  # connection -> routing id: at most as many as there are descriptors
        self._of: Counter[str] = Counter()  # key -> bytes that wait
        self._all = 0  # bytes that wait for all people but administrators

    def came(self, rid: bytes, fd: int, peer: Peer) -> None:
        """A connection has said hello. What waits for it goes on to count if it has said so before."""
        which, acked, before = connection(fd), acked_bytes(fd), self._fds.get(fd)
        known = self._children.get(rid)
        if known is not None and before == rid and (known.which, known.key) == (which, peer.key):
            return
        self._forget(before)
        if which is not None and acked is not None:
            self._forget(rid)
            self._fds[fd] = rid
            most = {"aggregator": AGGREGATOR_MAX, "admin": ADMIN_MAX}.get(peer.role, TREE_UNREAD_MAX)
            self._children[rid] = _Child(rid, which, peer.key, peer.name, most, acked)

    def sent(self, rids: Iterable[bytes], frame: bytes, unsent: Collection[bytes] = ()) -> list[bytes]:
        """The same frame was sent to each but ``unsent``. Returns the routing ids of connections that were cut off."""
        if len(frame) < self._counted_from:
            return []
        return [over for rid in rids if rid not in unsent for over in self._count(rid, travelled(len(frame)))]

    def waits(self, rid: bytes, most: int) -> bool:
        """Whether more than ``most`` bytes wait for this connection."""
        child = self._children.get(rid)
        if child is None or child.waiting <= most:
            return False
        self._look(child)
        return child.waiting > most

    def sent_each(self, rids: Iterable[bytes], frames: Iterable[bytes], unsent: Collection[bytes] = ()) -> list[bytes]:
        """Each was sent its own frame."""
        all_ = zip(rids, frames, strict=True)
        long = [(r, len(f)) for r, f in all_ if len(f) >= self._counted_from and r not in unsent]
        return [over for rid, size in long for over in self._count(rid, travelled(size))]

    def _count(self, rid: bytes, size: int) -> list[bytes]:
        child = self._children.get(rid)
        if child is None:
            return []
        child.since += size
        self._waits(child, size)
        if child.since < LOOK_BYTES:
            return []
        if self._look(child) > child.most:
            return self._end_one(child.key, child.most)
        return self._end_worst() if self._all > UNREAD_ALL_MAX else []

    def _waits(self, child: _Child, size: int) -> None:
        """So much more, or less, waits for it."""
        child.waiting += size
        self._of[child.key] += size
        if child.most == TREE_UNREAD_MAX:
            self._all += size

    def _look(self, child: _Child) -> int:
        """What waits for all connections with its key."""
        acked = acked_bytes(child.which[0]) if connection(child.which[0]) == child.which else None
        if acked is None:
            self._forget(child.rid)
        else:
            read = min(child.waiting, acked - child.acked)
            child.acked, child.since = acked, 0
            self._waits(child, -read)
        return self._of[child.key]

    def _end_one(self, key: str, most: int) -> list[bytes]:
        """Others may have read meanwhile what was sent to them."""
        mine = [c for c in self._children.values() if c.key == key]
        for child in mine:
            self._look(child)
        return self._end(mine) if self._of[key] > most else []

    def _end_worst(self) -> list[bytes]:
        """Too much waits for all together, whatever the number of keys: of the one for which most waits."""
        theirs = [c for c in self._children.values() if c.most == TREE_UNREAD_MAX]
        for child in theirs:
            self._look(child)
        if self._all <= UNREAD_ALL_MAX:
            return []
        key = max({c.key for c in theirs}, key=lambda k: self._of[k])
        return self._end([c for c in theirs if c.key == key])

    def _end(self, mine: Collection[_Child]) -> list[bytes]:
        worst = max(mine, key=lambda c: c.waiting)
        self._forget(worst.rid)
        self._cut(worst.which[0])
        log(f"{worst.name} does not read what it is sent: cut off", 4)
        return [worst.rid]

    def _forget(self, rid: bytes | None) -> None:
        child = self._children.pop(rid, None) if rid is not None else None
        if child is not None:
            self._fds.pop(child.which[0], None)
            self._waits(child, -child.waiting)
            if not self._of[child.key]:
                del self._of[child.key]
