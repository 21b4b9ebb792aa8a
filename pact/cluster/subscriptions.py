"""The subscriptions at the public port, by connection, and which connections are ended because they cost too much.

libzmq reports each subscription and each cancellation with the descriptor of its connection, even those that change
nothing; it keeps the topics of connections apart, but does not count them and has no limit. Each byte of a topic costs
it about 40 to 80 bytes. So they are counted here, and a connection that takes more than its share is ended: it may come
back with less. Nothing that one connection sends changes the counts of another.

Only the descriptors show which connections have ended: ``sweep`` checks them.  # V4
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from pact.cluster.waiting import Waiting
from pact.limits import PUBLIC_CONNECTIONS_EACH_MAX, TOPICS_BYTES_MAX, TOPICS_KEY_BYTES_MAX, TOPICS_MAX

#: The bytes of one subscription, with the byte before the topic: libzmq ends the connection of a longer message at
#: once.
SUBSCRIPTION_MAX: Final = 1024
#: From one connection between two sweeps, whether they change anything or not.
FRAMES_MAX: Final = 8192
TOO_MANY_AT_ONCE: Final = "too many subscriptions at once"
TOO_MANY_OF_KEY: Final = "too many connections of one key"
NOT_READ: Final = "it does not read what it is sent"
TOO_MANY_SILENT: Final = "too many silent connections of one host"


def inode_of(fd: int) -> int:
    """Distinguishes a connection from a later one with the same descriptor; 0 if there is none."""
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return 0


@dataclass(slots=True)
class _Connection:
    user: str
    topics: set[bytes] = field(default_factory=set)
    bytes: int = 0
    frames: int = 0
    cut: bool = False


class Subscriptions:
    """See the module. ``cut(fd, key, why)`` ends a connection."""

    def __init__(
        self,
        cut: Callable[[int, str, str], object],
        inode: Callable[[int], int] = inode_of,
        waiting: Waiting | None = None,
    ) -> None:
        self._cut = cut
        self._waiting = waiting or Waiting()
        self._inode = inode
        self._connections: dict[tuple[int, int], _Connection] = {}
        self._by_key: Counter[str] = Counter()
        self._of_key: Counter[str] = Counter()  # connections
        self.topics = 0  # of all connections together
        self.refused: Counter[str] = Counter()

    @property
    def listening(self) -> bool:
        """Whether there may be a subscriber: a connection that has cancelled everything counts until it ends."""
        return bool(self._connections)

    def heard(self, fd: int, user: str, frame: bytes) -> None:
        """A frame of the connection: 1 and a topic subscribes, 0 and a topic cancels; others are ignored."""
        inode = self._inode(fd)
        if not inode:
            return  # it has ended, and its topics with it
        found = self._connections.get((fd, inode))
        if found is None:
            found = self._connections[fd, inode] = _Connection(user)
            self._waiting.came((fd, inode), user, found.topics)
            self._of_key[user] += 1
            if user and self._of_key[user] > PUBLIC_CONNECTIONS_EACH_MAX:
                self._end(fd, found, TOO_MANY_OF_KEY)
        found.frames += 1
        if found.cut:
            return
        topic = frame[1:]
        if frame[:1] == b"\1" and topic not in found.topics:
            found.topics.add(topic)
            self._waiting.subscribed((fd, inode), topic)
            self._count(found, 1, len(frame))
        elif frame[:1] == b"\0" and topic in found.topics:
            found.topics.remove(topic)
            self._waiting.cancelled((fd, inode), topic)
            self._count(found, -1, -len(frame))
        why = self._too_much(found)
        if why:
            self._end(fd, found, why)

    def _end(self, fd: int, connection: _Connection, why: str) -> None:
        connection.cut = True
        self.refused[why] += 1
        self._cut(fd, connection.user, why)

    def _count(self, connection: _Connection, topics: int, size: int) -> None:
        self.topics += topics
        connection.bytes += size
        self._by_key[connection.user] += size

    def _too_much(self, connection: _Connection) -> str:
        if len(connection.topics) > TOPICS_MAX or connection.bytes > TOPICS_BYTES_MAX:
            return "too many topics"
        if connection.user and self._by_key[connection.user] > TOPICS_KEY_BYTES_MAX:
            return "too many topics of one key"
        return TOO_MANY_AT_ONCE if connection.frames > FRAMES_MAX else ""

    def published(self, frames: Collection[bytes]) -> None:
        """These frames were sent to all who subscribe to the first."""
        if self._waiting.published(frames):
            self._end_unread()

    def _end_unread(self) -> None:
        for which in self._waiting.look():
            connection = self._connections.get(which)
            if connection is not None and not connection.cut:
                self._end(which[0], connection, NOT_READ)

    def sweep(self) -> None:
        """Forget ended connections. Call it about every second."""
        for (fd, inode), connection in list(self._connections.items()):
            if self._inode(fd) != inode:
                self._count(connection, -len(connection.topics), -connection.bytes)
                self._of_key[connection.user] -= 1
                self._waiting.gone((fd, inode))
                del self._connections[fd, inode]
            connection.frames = 0
        self._by_key += Counter()  # drop keys without topics
        self._of_key += Counter()
        self._end_unread()

    def clear(self) -> None:
        """All connections have ended."""
        self._connections.clear()
        self._by_key.clear()
        self._of_key.clear()
        self._waiting.clear()
        self.topics = 0
