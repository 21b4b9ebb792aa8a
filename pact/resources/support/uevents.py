"""Devices that come, go and change, as the kernel announces them (``NETLINK_KOBJECT_UEVENT``).

Only messages of the kernel count: it sends with the port id 0, which no process can have, so no other account can make
pact look anywhere. A network namespace other than the first gets only the messages of its own network links.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

NETLINK_KOBJECT_UEVENT: Final = 15
KERNEL_GROUP: Final = 1
MESSAGE_MAX: Final = 16384  # the kernel's own limit is 4 KiB
DRAIN_MAX: Final = 1000
#: Room for the messages of a whole rack of disks that comes at once.
BUFFER_BYTES: Final = 1 << 20
SO_RCVBUFFORCE: Final = 33


class Uevents:
    """``fileno`` is readable when a device has come, gone or changed. Raises OSError if the kernel has no such
    socket."""

    def __init__(self) -> None:
        flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | flags, NETLINK_KOBJECT_UEVENT)
        try:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
            except OSError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            self._socket.bind((0, KERNEL_GROUP))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> tuple[list[tuple[str, str]], bool]:
        """Action and device (``/devices/...``) of each message since the last call, and whether some were lost."""
        out: list[tuple[str, str]] = []
        for _ in range(DRAIN_MAX):
            try:
                raw, (port, _) = self._socket.recvfrom(MESSAGE_MAX)
            except BlockingIOError:
                return out, False
            except OSError as exc:
                if exc.errno == errno.ENOBUFS:
                    return out, True
                raise
            if port == 0 and (found := parsed(raw)) is not None:
                out.append(found)
        return out, True  # there may be more: who asks looks at everything anyway

    def close(self) -> None:
        self._socket.close()


def parsed(raw: bytes) -> tuple[str, str] | None:
    """Action and device of a message ``add@/devices/...``; ``None`` if it is none."""
    head = raw.partition(b"\0")[0]
    action, at, device = head.partition(b"@")
    if not at or not action.isalpha() or not device.startswith(b"/"):
        return None
    return action.decode("ascii", "replace"), os.fsdecode(device)
