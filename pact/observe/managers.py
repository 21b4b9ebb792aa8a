"""Which run of a package manager a process belongs to.

One run has many processes (apt, dpkg, the packages' scripts, and what these start), and what all of them change is one
thing. It reads only /proc, and never guesses: a process whose ancestors have ended has none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, NamedTuple

#: Programs that install packages. The kernel keeps 15 characters of a name.
NAMES: Final = frozenset(
    {
        "apt",
        "apt-get",
        "aptitude",
        "dpkg",
        "rpm",
        "dnf",
        "dnf-3",
        "dnf5",
        "yum",
        "microdnf",
        "tdnf",
        "zypper",
        "transactional-update",
        "unattended-upgrade",
        "unattended-upgrades",
        "dnf-automatic",
        "packagekitd",
    }
)
COMM_MAX: Final = 15
COMMS: Final = frozenset(name[:COMM_MAX] for name in NAMES)
DEPTH_MAX: Final = 64
ARGUMENTS_BYTES: Final = 4096


class Manager(NamedTuple):
    """A run: its topmost process, when that began (clock ticks since boot), and the program's name."""

    pid: int
    start: int
    program: str


class Process(NamedTuple):
    """What /proc says of one process."""

    comm: str
    parent: int
    start: int
    uid: int


def manager_of(pid: int, look: Callable[[int], Process | None] | None = None) -> Manager | None:
    """The run of a package manager that this process belongs to; ``None`` if it belongs to none, or if that cannot be
    known any more. Of several (``unattended-upgrade`` that runs ``apt`` that runs ``dpkg``) it is the topmost. Only
    root's count: nobody else installs anything, and any program may take such a name."""
    look, found = look or process, None
    for _ in range(DEPTH_MAX):
        seen = look(pid) if pid > 1 else None
        if seen is None:
            return found
        if seen.uid == 0 and seen.comm in COMMS:
            found = Manager(pid, seen.start, _whole(pid, seen.comm))
        pid = seen.parent
    return found


def process(pid: int) -> Process | None:
    """``None`` if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            head, _, tail = f.read(ARGUMENTS_BYTES).rpartition(b")")
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    fields = tail.split()
    if len(fields) < 20:
        return None
    comm = head.partition(b"(")[2].decode("utf-8", "replace")
    return Process(comm, int(fields[1]), int(fields[19]), uid)


def _whole(pid: int, comm: str) -> str:
    """The program's name, of which the kernel may have cut off the end."""
    if len(comm) < COMM_MAX:
        return comm
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            words = f.read(ARGUMENTS_BYTES).split(b"\0")
    except OSError:
        return comm
    named = (os.path.basename(word).decode("utf-8", "replace") for word in words[:4])
    return next((name for name in named if name.startswith(comm) and name in NAMES), comm)
