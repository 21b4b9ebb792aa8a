"""How many descriptors are left, and what happens when there are none.

A listening socket of ZeroMQ that cannot accept is polled without end, at the cost of a whole processor, and a stranger
without a key can cause that with silent connections. So new connections are refused for a while, until those have timed
out. Present connections stay, which ``unbind`` would not allow: a filter on the listening sockets makes the kernel drop
requests for new connections, which the other side repeats.
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
from pact.limits import HTTP_PAGES_MAX

SPARE: Final = 512 + HTTP_PAGES_MAX  # besides the children's: for the process itself, and for strangers for a while
USED_MAX: Final = 1 << 17  # more are never requested: every connection costs memory too
LOW: Final = 256  # with fewer left, nobody is let in
ENOUGH: Final = 320
WAITING_MAX: Final = 1 << 14  # connections that nobody has accepted yet
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27
_DROP: Final = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # return 0
_FILTER: Final = struct.pack("HP", 1, ctypes.addressof(_DROP))


def raise_limit(children: int, path: str) -> None:
    """Raise the limit as far as the system allows. Raises ConfigError if that is less than the children need."""
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
    """Closed while there are too few descriptors. Call ``look`` from time to time."""

    def __init__(self) -> None:
        self._shut: list[int] = []

    def look(self) -> str:
        """Close or open it if necessary. Returns a line for the log, if any."""
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
                with contextlib.suppress(OSError):  # no memory for the filter: connections wait, and are refused
                    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _FILTER)
                sock.setblocking(False)  # otherwise the library would block on a connection that is refused here
                self._shut.append(sock.fileno())
            return f"only {left} descriptors are left: nobody new is let in for now"
        return ""


def in_use() -> int:
    """How many descriptors this process has. Since Linux 6.2 the kernel reports it; listing thousands of names takes
    long."""
    try:
        return os.stat("/proc/self/fd").st_size or len(_used())
    except OSError:
        return len(_used())


def _used() -> Sequence[int]:
    try:
        return [int(text) for text in os.listdir("/proc/self/fd")]
    except OSError:  # no descriptor is left even for listing
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _listening(used: Iterable[int]) -> Iterator[socket.socket]:
    """This process's listening TCP sockets. They still belong to their owners."""
    for fd in used:
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            continue  # not a socket, or gone
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
    """Refuse connections that are not accepted yet: while they wait, the library polls without end."""
    for _ in range(WAITING_MAX):
        try:
            connection, _ = sock._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        os.close(connection)
