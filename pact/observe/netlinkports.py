"""From the port of a routing socket (netlink) to the process that used it.

The kernel gives a socket the pid of the process that opened it as its port, if that is free. But a process may choose
another number, and one in another pid namespace has the number that it has there. So a number alone names nobody: the
process must have a socket with this port now; or it must be gone, and have been seen when it began.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from typing import Final

from pact.host import processes
from pact.model import Writer
from pact.observe.attribution import resolve

ROUTE: Final = "0"  # the protocol NETLINK_ROUTE
TABLE: Final = "/proc/net/netlink"
ROWS_MAX: Final = 100_000
#: Of how many descriptors a process is asked: this runs on the loop.
DESCRIPTORS_MAX: Final = 1024


def user_of(port: int, remembered: Callable[[int], Writer | None]) -> Writer | None:
    """The writer, or ``None`` if it is not certain. ``remembered``: as ``Observers.remembered``.  # X2"""
    if not 0 < port < 1 << 22:  # the kernel's own choice when the pid was taken is far above every pid
        return None
    inode = inode_of(port)
    if inode is None:
        return None
    if inode:
        return resolve(port) if _has(port, inode) else None
    return remembered(port) or (resolve(port) if is_zombie(port) else None)


def inode_of(port: int, table: str = TABLE) -> int | None:
    """The inode of the routing socket with this port; 0: there is none any more; ``None``: it cannot be read."""
    try:
        with open(table, encoding="ascii", errors="replace") as f:
            for _, line in zip(range(ROWS_MAX), f, strict=False):
                fields = line.split()  # the socket's address, protocol, port, groups, ... and last its inode
                if len(fields) >= 10 and fields[1] == ROUTE and fields[2] == str(port) and fields[9].isdigit():
                    return int(fields[9])
    except OSError:
        return None
    return 0


def _has(pid: int, inode: int) -> bool:
    wanted = f"socket:[{inode}]"
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(_link(entry.path) == wanted for entry in islice(entries, DESCRIPTORS_MAX))
    except OSError:
        return False


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def is_zombie(pid: int) -> bool:
    """Whether it has ended, and waits for its parent: its pid is no other's yet, and its sockets are closed."""
    fields = processes.stat_of(pid)
    return bool(fields) and not processes.lives(fields)
