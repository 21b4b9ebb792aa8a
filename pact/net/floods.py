"""Connections that send faster than they are read, found by what the kernel has received from each.

Sockets of the tree and of the public ports have no receive high-water mark, so libzmq reads a connection as fast as the
other side sends, and keeps what nobody has read yet. That is on purpose: at such a mark libzmq 4.3.5 stops reading that
connection, and if it is reset then, with a ZMTP PING among the bytes already taken from it, an assertion ends the
process (``out_event`` in libzmq's ``stream_engine_base.cpp``). Whoever has a key could end a root or an aggregator that
way. What waits is bounded here instead: what members may have under way at once is bounded by the protocol, and who
sends far more than that is cut off.  # T10
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

#: Reading has been behind for this long before anything is looked at: in ordinary work it never is.
PATIENCE_S: Final = 0.1
LOOK_EVERY_S: Final = 0.25
LOOK_SHARE: Final = 20  # with thousands of connections: this many times as long as the last look took
PUT_OFF_S: Final = 60.0
#: ``tcpi_bytes_acked`` and ``tcpi_bytes_received`` of ``struct tcp_info`` in <linux/tcp.h>, since Linux 4.1.
_ACKED_AT: Final = 120
_RECEIVED_AT: Final = 128
_U64: Final = struct.Struct("=Q")
_NOTHING: Final[Mapping[int, int]] = MappingProxyType({})
#: What CURVE adds to a message: a command's name, a nonce, a seal and flags; then its length is written in front.
_SEALED: Final = 8 + 8 + 16 + 1


def received_bytes(fd: int) -> int | None:
    """What TCP has received on a connection since it began, in bytes, read or not; None if ``fd`` is no connection."""
    return _told(fd, _RECEIVED_AT)


def acked_bytes(fd: int) -> int | None:
    """What the other side of a connection has acknowledged since it began, in bytes; None if ``fd`` is none."""
    return _told(fd, _ACKED_AT)


def _told(fd: int, at: int) -> int | None:
    sock = None
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, at + _U64.size)
        return int(_U64.unpack_from(info, at)[0])
    except (OSError, ValueError, struct.error):  # -1: libzmq knew none
        return None
    finally:
        if sock is not None:
            sock.detach()  # libzmq's


def travelled(size: int) -> int:
    """What a message of this many bytes is on its way, in bytes, with CURVE."""
    size += _SEALED
    return size + (2 if size < 256 else 9)


def connection(fd: int) -> tuple[int, int] | None:
    """What distinguishes a connection from a later one with the same descriptor."""
    try:
        return fd, os.fstat(fd).st_ino
    except OSError:
        return None


class PutOff:
    """Keys that were cut off a moment ago, and would begin again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until_s: dict[str, float] = {}

    def add(self, key: str, now_s: float) -> None:
        """Any thread may call it."""
        if key:  # without CURVE nobody has one
            with self._lock:
                kept = {k: ends_s for k, ends_s in self._until_s.items() if ends_s > now_s}
                self._until_s = {**kept, key: now_s + PUT_OFF_S}

    def __contains__(self, key: str) -> bool:
        ends_s = self._until_s.get(key)
        return ends_s is not None and ends_s > time.monotonic()


class Floods:
    """Call ``caught_up`` whenever everything was read, ``behind`` when something may be left.

    Who is busy for long, and reads without end, is never wholly caught up, while nobody floods: so what was read of a
    connection does not count. Where only what it sends is known, each byte counts.
    """

    def __init__(self, most_bytes: int, *, patience_s: float = PATIENCE_S, every_s: float = LOOK_EVERY_S) -> None:
        """``most_bytes``: what of one connection may wait, as it travels, while reading is behind, and of all
        connections with one key together."""
        self._most = most_bytes
        self._patience_s, self._every_s = patience_s, every_s
        self._due_s = 0.0  # when to look next; 0: reading is not behind
        #: Descriptor and inode: bytes that came and were not counted as read, at their fewest.
        self._least: dict[tuple[int, int], int] = {}
        self._read: dict[int, str] = {}  # connections of which something was read since, and their keys
        self._taken: dict[int, int] = {}  # what was read of each

    def caught_up(self) -> None:
        if self._due_s:
            self._due_s = 0.0
            self._least.clear()
            self._read.clear()
            self._taken.clear()

    def behind(self, read: Mapping[int, str], now_s: float, taken: Mapping[int, int] = _NOTHING) -> dict[int, str]:
        """Reading is behind; ``read``: connections of which something was read now, with their keys; ``taken``: how
        many bytes that was on their way. Returns those of which too much waits.
        """
        if not self._due_s:
            self._due_s = now_s + self._patience_s
        self._read.update(read)
        for fd, size in taken.items():
            self._taken[fd] = self._taken.get(fd, 0) + size
        if now_s < self._due_s:
            return {}
        began_s, found = time.monotonic(), list[int]()
        waits: dict[str, dict[int, int]] = {}
        for fd, key in self._read.items():
            which, got = connection(fd), received_bytes(fd)
            if which is None or got is None:
                continue
            got -= self._taken.get(fd, 0)
            least = self._least[which] = min(got, self._least.get(which, got))
            if got - least > self._most:
                found.append(fd)
                del self._least[which]
            elif key and got > least:
                waits.setdefault(key, {})[fd] = got - least
        for many in waits.values():
            if sum(many.values()) > self._most:
                found += many
        self._due_s = now_s + max(self._every_s, LOOK_SHARE * (time.monotonic() - began_s))
        return {fd: self._read.pop(fd) for fd in found}
