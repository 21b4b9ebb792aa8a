"""Changes of network links, which move sysctls that nobody wrote: ``ip link set mtu`` sets ``net.ipv6.conf.X.mtu``, and
a link that goes and comes back has the defaults.

A plain netlink socket shows that some link changed; no message is interpreted to find out which. Messages that the
kernel had to drop (ENOBUFS) mean the same. The socket exists only while something depends on links.
"""

from __future__ import annotations

import socket
from typing import Final

RTNLGRP_LINK: Final = 1
SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
MESSAGE_MAX: Final = 4096  # longer ones are cut off; their contents are not used
DRAIN_MAX: Final = 1000


class LinkChanges:
    """``fileno`` is readable when a link may have changed. Raises OSError if the kernel has no such socket."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> bool:
        """Whether a link changed since the last call. Takes at most ``DRAIN_MAX`` messages."""
        for taken in range(DRAIN_MAX):
            try:
                self._socket.recv(MESSAGE_MAX)
            except BlockingIOError:
                return taken > 0
            except OSError:  # ENOBUFS: messages were lost, so some link changed
                continue
        return True

    def close(self) -> None:
        self._socket.close()
