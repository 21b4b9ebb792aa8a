"""Children that send much faster than they are read are cut off, and their keys have to wait for a while.  # T10"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import zmq

from pact.cluster.unread import Unread
from pact.core.tree.directory import Peer
from pact.host.notify import log
from pact.limits import FRAME_MAX, TREE_CONNECTIONS_EACH_MAX
from pact.net.floods import Floods, PutOff, connection, travelled
from pact.net.places import Keys, Silent
from pact.net.unended import Accepted, Unended

#: More than any child may have under way: the windows of an aggregator's streams, and a frame.
CHILD_BYTES_MAX: Final = (128 << 20) + 2 * FRAME_MAX


class Gate:
    """See the module."""

    def __init__(self, context: zmq.Context[Any], cut: Callable[[int], object]) -> None:
        """``cut(fd)`` ends a connection."""
        self._cut = cut
        self._floods, self._put_off = Floods(CHILD_BYTES_MAX), PutOff()
        self._accepted, self._unended = Accepted(context), Unended(CHILD_BYTES_MAX, 2 * FRAME_MAX)
        self._silent, self._keys = Silent(), Keys(TREE_CONNECTIONS_EACH_MAX)
        self.unread = Unread(cut)
        self._cuts = 0

    def follow(self, sock: zmq.Socket[bytes]) -> None:
        """The socket to which children connect; call it before it is bound. Raises ZMQError."""
        self._accepted.follow(sock)

    def close(self) -> None:
        self._accepted.close()

    def look(self, everything: bool) -> None:
        """Call it about every second; ``everything``: all that came is read. Whoever sends what never ends is cut off;
        whose connection that is, nobody knows."""
        self._take_accepted()
        if everything:
            self._unended.caught_up()
            silent = self._silent.look()
            for fd in silent:
                self._cut(fd)
            if silent:
                self._note(f"{len(silent)} connections too many of one host that say nothing: cut off")
        found = self._unended.look()
        for fd in found:
            self._cut(fd)
        if found:
            log(f"{len(found)} connections send messages that do not end: cut off", 4)

    def _take_accepted(self) -> None:
        new = list(self._accepted.take())
        for each in (self._unended, self._silent, self._keys):
            each.accepted(new)

    def _came_in(self, fd: int, key: str) -> None:
        """The first message of a connection was read."""
        which = connection(fd)
        self._silent.heard(which)
        if which is not None and not self._keys.heard(which, key):
            self._cut(fd)
            self._note(f"too many connections of the key {key}: the newest is cut off")

    def _note(self, text: str) -> None:
        """Such people come again at once: say it at powers of two."""
        self._cuts += 1
        if self._cuts & (self._cuts - 1) == 0:
            log(f"{text} ({self._cuts} times)" if self._cuts > 1 else text, 4)

    def waits(self, key: str) -> bool:
        """Whether a key may not connect for now."""
        return key in self._put_off

    def put_off(self, key: str) -> None:
        """Do not let a key connect for a while: it sends more than can be read. Any thread may call it."""
        self._put_off.add(key, time.monotonic())

    def read(
        self, messages: Collection[tuple[bytes, str, int, Any]], everything: bool, peers: Mapping[str, Peer]
    ) -> list[str]:
        """What was read just now (routing id, key, descriptor, frame), and whether that was everything. Returns the
        keys whose connections were cut off.
        """
        self._take_accepted()  # whoever has sent something was accepted before
        taken = dict[int, int]()
        for _, key, fd, frame in messages:
            if fd not in self._keys:
                self._came_in(fd, key)
            if frame is not None:
                taken[fd] = taken.get(fd, 0) + travelled(len(frame))
        for fd, size in taken.items():
            self._unended.read(fd, size)
        if everything:
            self._floods.caught_up()
            return []
        flooding = self._floods.behind({fd: key for _, key, fd, _ in messages}, time.monotonic(), taken)
        for fd, key in flooding.items():
            self._cut(fd)
            self.put_off(key)
            name = peers[key].name if key in peers else "a child"
            log(f"{name} sends faster than it can be read: cut off for a minute", 4)
        return list(flooding.values())
