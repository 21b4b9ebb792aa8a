"""Connections that send faster than they are read, found by what the kernel has received from each.

Sockets of the tree and of the public ports have no receive high-water mark, or one that does not help, so libzmq reads
a connection as fast as the other side sends, and keeps what nobody has read yet. That is on purpose: at such a mark
libzmq 4.3.5 stops reading that connection, and if it is reset then, with a ZMTP PING among the bytes already taken from
it, an assertion ends the process (``out_event`` in libzmq's ``stream_engine_base.cpp``). Whoever has a key could end a
root or an aggregator that way. What waits is bounded here instead: what members may have under way at once is bounded
by the protocol, and who sends far more than that is cut off.  # T10
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Final

#: Reading has been behind for this long before anything is looked at: in ordinary work it never is.
PATIENCE_S: Final = 0.1
LOOK_EVERY_S: Final = 0.25
PUT_OFF_S: Final = 60.0
#: ``tcpi_bytes_received`` of ``struct tcp_info`` in <linux/tcp.h>, since Linux 4.1.
_RECEIVED_AT: Final = 128
_U64: Final = struct.Struct("=Q")


def received_bytes(fd: int) -> int | None:
    """What TCP has received on a connection since it began, in bytes, read or not; None if ``fd`` is no connection."""
    sock = None
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + _U64.size)
        return int(_U64.unpack_from(info, _RECEIVED_AT)[0])
    except (OSError, ValueError, struct.error):  # -1: libzmq knew none
        return None
    finally:
        if sock is not None:
            sock.detach()  # libzmq's


def connection(fd: int) -> tuple[int, int] | None:
    """What distinguishes a connection from a later one with the same descriptor."""
    try:
        return fd, os.fstat(fd).st_ino
    except OSError:
        return None


class PutOff:
    """Keys that were cut off a moment ago, and would begin again."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}

    def add(self, key: str, now_s: float) -> None:
        if key:  # without CURVE nobody has one
            self._until_s = {k: ends_s for k, ends_s in self._until_s.items() if ends_s > now_s}
            self._until_s[key] = now_s + PUT_OFF_S

    def __contains__(self, key: str) -> bool:
        ends_s = self._until_s.get(key)
        return ends_s is not None and ends_s > time.monotonic()


class Floods:
    """Call ``caught_up`` whenever everything was read, ``behind`` when something may be left."""

    def __init__(self, most_bytes: int, *, patience_s: float = PATIENCE_S, every_s: float = LOOK_EVERY_S) -> None:
        """``most_bytes``: what one connection may send, as it travels, while reading is behind."""
        self._most = most_bytes
        self._patience_s, self._every_s = patience_s, every_s
        self._due_s = 0.0  # when to look next; 0: reading is not behind
        self._first: dict[tuple[int, int], int] = {}  # descriptor and inode: bytes at the first look
        self._read: dict[int, str] = {}  # connections of which something was read since, and their keys

    def caught_up(self) -> None:
        if self._due_s:
            self._due_s = 0.0
            self._first.clear()
            self._read.clear()

    def behind(self, read: Mapping[int, str], now_s: float) -> dict[int, str]:
        """Reading is behind; ``read``: connections of which something was read now, with their keys. Returns those that
        have sent too much since it is behind.
        """
        if not self._due_s:
            self._due_s = now_s + self._patience_s
        self._read.update(read)
        if now_s < self._due_s:
            return {}
        self._due_s = now_s + self._every_s
        found = []
        for fd in self._read:
            which, got = connection(fd), received_bytes(fd)
            if which is not None and got is not None and got - self._first.setdefault(which, got) > self._most:
                found.append(fd)
                del self._first[which]
        return {fd: self._read.pop(fd) for fd in found}
