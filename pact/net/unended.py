"""Connections that send what never becomes a message: parts of one, each with the promise of more.

libzmq keeps them until the last has come, at no mark at all, and shows them to nobody: the socket is not even readable.
So whoever has a key could fill the memory of a root or an aggregator. Here every accepted connection is known, and once
the process has grown they are looked at: who has sent much, of which nothing was read, is to be cut off.  # T10
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

import zmq

from pact.net.floods import LOOK_SHARE, connection, received_bytes
from pact.net.monitors import next_event

LOOK_S: Final = 1.0  # how often to call ``look``
#: So much more memory than at its least, and connections are looked at: with thousands of them that takes a while.
GROWN_BYTES: Final = 64 << 20
SUSPECT_BYTES: Final = 128 << 10
TOGETHER_BYTES: Final = 512 << 20
_PAGE: Final = os.sysconf("SC_PAGESIZE")


class Accepted:
    """Connections that a socket has accepted. The socket may be another one after a while."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._context = context
        self._made = 0
        self._new: deque[zmq.Socket[bytes]] = deque()
        self._monitor: zmq.Socket[bytes] | None = None

    def follow(self, sock: zmq.Socket[Any]) -> None:
        """Call it in the socket's thread, before it is bound; the one before is closed. Raises ZMQError.

        Somebody must listen from the beginning, and at no mark: libzmq waits with everything else until it can tell."""
        self._made += 1
        address = f"inproc://{id(self)}-{self._made}"
        monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        try:
            monitor.linger, monitor.rcvhwm = 0, 0
            monitor.connect(address)
            sock.monitor(address, zmq.EVENT_ACCEPTED)
        except BaseException:
            monitor.close(0)
            raise
        with contextlib.suppress(IndexError):  # whoever takes from them may be waiting until the socket is bound
            while True:
                self._new.popleft().close(0)
        self._new.append(monitor)

    def fileno(self) -> int:
        """What becomes readable when there may be more to take; -1: nothing yet. Of libzmq: take all before waiting."""
        return -1 if self._monitor is None else int(self._monitor.get(zmq.FD))

    def take(self) -> Iterator[tuple[int, int]]:
        """The new ones: descriptor and inode."""
        while self._new:
            if self._monitor is not None:
                self._monitor.close(0)
            self._monitor = self._new.popleft()
        # Asked first: this is called in each turn, there is rarely any, and an exception of pyzmq costs more than all.
        while self._monitor is not None and int(self._monitor.get(zmq.EVENTS)) & zmq.POLLIN:
            event, fd = next_event(self._monitor, zmq.NOBLOCK)
            which = connection(fd) if event == zmq.EVENT_ACCEPTED else None
            if which is not None:
                yield which

    def close(self) -> None:
        """Close the socket that is followed first."""
        for monitor in (*self._new, *([] if self._monitor is None else [self._monitor])):
            monitor.close(0)
        self._new.clear()
        self._monitor = None


class Unended:
    """Who reads calls ``read`` or ``heard`` for what it reads, and ``caught_up``, in any thread; ``look`` is called
    every second."""

    def __init__(self, most_bytes: int, one_bytes: int, together_bytes: int = TOGETHER_BYTES) -> None:
        """What may wait: ``most_bytes`` of one, however busy this process is; ``one_bytes`` of one from one look to the
        next, while all messages are read: more than any message is; and ``together_bytes`` of all."""
        self._most, self._one, self._together = most_bytes, one_bytes, together_bytes
        self._known: dict[tuple[int, int], int] = {}  # bytes that had come when something of it was heard
        self._read: dict[int, int] = {}  # by descriptor
        self._heard: set[int] = set()
        self._waited: dict[tuple[int, int], tuple[int, int]] = {}  # at the last look, and how much was read by then
        self._idle = False
        self._least = 0  # memory, in bytes
        self._due_s = 0.0

    def accepted(self, new: Iterable[tuple[int, int]]) -> None:
        """Before anything of them is read, or soon after where only ``heard`` is called."""
        for which in new:
            self._known[which] = 0
            self._read.pop(which[0], None)

    def read(self, fd: int, size: int) -> None:
        """A message of this connection was read: what it was on its way, in bytes."""
        self._read[fd] = self._read.get(fd, 0) + size

    def heard(self, fds: Iterable[int]) -> None:
        """Messages of these connections were read, and nobody knows how long they were."""
        self._heard.update(fds)

    def caught_up(self) -> None:
        """All messages were read."""
        self._idle = True

    def look(self) -> list[int]:
        """The descriptors of connections to be cut off."""
        began_s = time.monotonic()
        if (not self._grown() and not self._waited) or began_s < self._due_s:
            return []
        heard, self._heard = self._heard, set()
        idle, self._idle = self._idle, False
        waits = dict[tuple[int, int], tuple[int, int]]()
        long = dict[tuple[int, int], int]()  # what has waited since the last look, and is no whole message
        for which in list(self._known):
            fd = which[0]
            got = received_bytes(fd) if connection(fd) == which else None
            if got is None:
                del self._known[which]
                continue
            if fd in heard:
                self._known[which] = got
            read = self._read.get(fd, 0) + self._known[which]
            if got - read > SUSPECT_BYTES:
                waits[which] = got - read, read
                before, was_read = self._waited.get(which, (0, read))
                if idle and was_read == read:
                    long[which] = min(before, got - read)
        found = {w for w, (size, _) in waits.items() if size > self._most} | {
            w for w, n in long.items() if n > self._one
        }
        if sum(long.values()) > self._together:
            found.update(long)
        for which in found:
            del self._known[which]
        self._waited = {which: size for which, size in waits.items() if which not in found}
        self._due_s = time.monotonic() + LOOK_SHARE * (time.monotonic() - began_s)
        return [fd for fd, _ in found]

    def _grown(self) -> bool:
        try:
            with open("/proc/self/statm", "rb") as f:
                size = int(f.read().split()[1]) * _PAGE
        except (OSError, ValueError, IndexError):
            return True
        if self._least and size < self._least + GROWN_BYTES:
            self._least = min(self._least, size)
            return False
        self._least = size
        return True
