"""How many descriptors are left, and what is done when there are none.

A listening socket of ZeroMQ's that cannot accept is asked again without end, at the cost of a whole processor, and
whoever has no key can bring that about with connections on which nothing is said. So the door is closed for a while,
until those have been given up. Who is in stays in, which ``unbind`` would not leave them: a filter on the listening
sockets lets the kernel drop what asks for a new connection, and it is asked for again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from pact.errors import ConfigError

SPARE: Final = 512  # beside the children's: what the process itself needs, and strangers for a while
USED_MAX: Final = 1 << 17  # more is never asked for: every connection costs memory too
LOW: Final = 256  # so few are left: nobody is let in
ENOUGH: Final = 320
WAITING_MAX: Final = 1 << 14  # connections that nobody has accepted yet
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27
_DROP: Final = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # return 0
_FILTER: Final = struct.pack("HP", 1, ctypes.addressof(_DROP))


def raise_limit(children: int, path: str) -> None:
    """As many as the system lets us have. Raises ConfigError where that is less than the children need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = children + SPARE
    most = USED_MAX if hard == resource.RLIM_INFINITY else min(hard, max(wanted, USED_MAX))
    if wanted > most:
        raise ConfigError(
            f"{path}: {children} children need {wanted} descriptors; the limit is {most}",
            "raise LimitNOFILE, or lower [aggregator] children",
        )
    if most > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Door:
    """Shut while there are too few descriptors. ``look`` now and then."""

    def __init__(self) -> None:
        self._shut: list[int] = []

    def look(self) -> str:
        """Shut or open it where that is needed. What to say of it, if anything."""
        left = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - in_use()
        if self._shut and left >= ENOUGH:
            for sock in _listening(self._shut):
                with contextlib.suppress(OSError):  # bound anew meanwhile
                    sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
            self._shut = []
            return f"{left} descriptors are free: whoever has a key is let in again"
        if self._shut:
            for sock in _listening(self._shut):
                _send_away(sock)
        elif left < LOW:
            for sock in _listening(_used()):
                with contextlib.suppress(OSError):  # no memory for it: they wait, and are sent away
                    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _FILTER)
                sock.setblocking(False)  # the library would wait for the one that is sent away at the next look
                self._shut.append(sock.fileno())
            return f"only {left} descriptors are left: nobody new is let in for now"
        return ""


def in_use() -> int:
    """How many descriptors this process has. Since Linux 6.2 the kernel says it; thousands of names take their time."""
    try:
        return os.stat("/proc/self/fd").st_size or len(_used())
    except OSError:
        return len(_used())


def _used() -> Sequence[int]:
    try:
        return [int(text) for text in os.listdir("/proc/self/fd")]
    except OSError:  # not even one is left for looking
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _listening(used: Iterable[int]) -> Iterator[socket.socket]:
    """This process's listening sockets over TCP. They stay their owners'."""
    for fd in used:
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            continue  # no socket, or gone
        try:
            if (
                sock.type == socket.SOCK_STREAM
                and sock.family != socket.AF_UNIX
                and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            ):
                yield sock
        except OSError:
            pass
        finally:
            sock.detach()


def _send_away(sock: socket.socket) -> None:
    """Whoever was not accepted yet is refused: while they wait there, the library asks without end."""
    for _ in range(WAITING_MAX):
        try:
            connection, _ = sock._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        os.close(connection)
