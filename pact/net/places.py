"""How many connections one key, or one host without a word, may keep at a port.

Whoever has a key could otherwise open as many as the process has descriptors, and keep every node out that comes later.
A connection belongs to a key once something of it was read: before that only its host is known.  # T10
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterable
from typing import Final

from pact.limits import SILENT_CONNECTIONS_MAX
from pact.net.floods import connection

YOUNG_S: Final = 10.0  # twice as long as a handshake may take: after it, who has something to say has said it


def host_of(fd: int) -> str:
    """The address at the other end of a connection; "" if there is none."""
    sock = None
    try:
        sock = socket.socket(fileno=fd)
        return str(sock.getpeername()[0])
    except (OSError, IndexError):
        return ""
    finally:
        if sock is not None:
            sock.detach()  # libzmq's


class Silent:
    """Connections of which nothing was read yet. ``accepted`` and ``heard`` may be called in different threads."""

    def __init__(self, most: int = SILENT_CONNECTIONS_MAX, young_s: float = YOUNG_S) -> None:
        """``most``: of one host, besides those of the last ``young_s``."""
        self._most, self._young_s = most, young_s
        self._since_s: dict[tuple[int, int], float] = {}
        self._spoke: set[tuple[int, int]] = set()

    def accepted(self, new: Iterable[tuple[int, int]]) -> None:
        now_s = time.monotonic()
        for which in new:
            self._since_s[which] = now_s

    def heard(self, which: tuple[int, int] | None) -> None:
        """Something of this connection was read, perhaps before it is known to be accepted."""
        if which is not None and self._since_s.pop(which, None) is None:
            self._spoke.add(which)

    def look(self) -> list[int]:
        """The descriptors of connections to be cut off. Call it about every second, when all that came is read."""
        for which in self._spoke.intersection(self._since_s):
            self._since_s.pop(which, None)  # it may speak again meanwhile
        if len(self._spoke) > len(self._since_s) + self._most:
            for which in list(self._spoke):  # another one may come meanwhile
                if connection(which[0]) != which:
                    self._spoke.discard(which)
        if len(self._since_s) <= self._most:
            return []
        found, hosts, old_s = list[int](), Counter[str](), time.monotonic() - self._young_s
        for which, since_s in list(self._since_s.items()):
            if connection(which[0]) != which:
                self._since_s.pop(which, None)
            elif since_s <= old_s:
                host = host_of(which[0])
                hosts[host] += 1
                if hosts[host] > self._most:
                    self._since_s.pop(which, None)
                    found.append(which[0])
        return found


class Keys:
    """Connections by key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[int, tuple[tuple[int, int], str]] = {}  # by descriptor
        self._of: dict[str, set[tuple[int, int]]] = {}

    def __contains__(self, fd: int) -> bool:
        return fd in self._known

    def accepted(self, new: Iterable[tuple[int, int]]) -> None:
        """A descriptor may be another connection's now."""
        for fd, _ in new:
            self._forget(fd)

    def heard(self, which: tuple[int, int], key: str) -> bool:
        """The first that was read of this connection came from this key. Returns False if it has too many."""
        self._forget(which[0])
        mine = self._of.setdefault(key, set())
        if len(mine) >= self._most:
            for fd in [each[0] for each in mine if connection(each[0]) != each]:
                self._forget(fd)
            mine = self._of.setdefault(key, set())
        self._known[which[0]] = which, key
        mine.add(which)
        return not key or len(mine) <= self._most

    def _forget(self, fd: int) -> None:
        which, key = self._known.pop(fd, ((fd, 0), ""))
        mine = self._of.get(key)
        if mine is not None:
            mine.discard(which)
            if not mine:
                del self._of[key]
