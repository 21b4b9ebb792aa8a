"""Package managers at work: files that they may be about to replace are not restored meanwhile.  # R3

Read from /proc/locks; nothing is locked to find out. Packages own the places in which they install files; sysctls,
links, files of users and mounts elsewhere do not belong to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from pact.core.plan import Step, below
from pact.host.sharing import sharing
from pact.model import encode_name, split_id
from pact.resources.base import errno_text

#: Files that package managers lock while they work, with the names of the package managers.
PACKAGE_LOCKS: Final = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/rpm/.rpm.lock",
    "/usr/lib/sysimage/rpm/.rpm.lock",
    "/var/cache/dnf/metadata_lock.pid",
    "/run/zypp.pid",
)
#: Places where packages install files, and the exceptions below them.
PLACES: Final = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/boot", "/opt", "/var")
SPARED: Final = (
    "/usr/local",
    "/var/spool",
    "/var/tmp",
    "/var/log",
    "/var/home",
    "/var/scratch",
    "/var/mail",
    "/var/run",
)
#: The kernel asks whoever locks so for writing to have opened the file for writing.
WRITERS: Final = frozenset({"POSIX", "OFDLCK"})
KINDS: Final = frozenset({"module", "service", "package"})


def locks_on(steps: Iterable[Step]) -> list[str]:
    """The holders of package managers' locks, if one of these steps touches something that packages may own."""
    return holders() if any(owned(s) for s in sharing(steps)) else []


def owned(step: Step) -> bool:
    """Whether a package manager may be writing it."""
    kind, name = split_id(step.id)
    if kind in ("file", "mount"):
        inside = any(name == p or below(name, p) for p in PLACES)
        over = kind == "mount" and any(below(p, name) for p in PLACES)
        return over or (inside and not any(name == p or below(name, p) for p in SPARED))
    return kind in KINDS


def holders(paths: Iterable[str] = PACKAGE_LOCKS) -> list[str]:
    """Who holds these locks, for people."""
    try:
        held = holding(paths)
    except OSError as exc:
        return [errno_text("/proc/locks", exc)]
    first = {pid: path for path, pid in reversed(held)}  # one process holds several
    return [f"a package manager holds {path}{_who(pid)}" for path, pid in dict.fromkeys(held) if first[pid] == path]


def holding(paths: Iterable[str]) -> list[tuple[str, str]]:
    """The paths that are locked for writing, each with the pid that /proc/locks names. A lock for reading, or one of
    flock(2), is no package manager's: whoever may read a lock file can have one. Raises OSError if the locks cannot be
    read."""
    inodes: dict[int, tuple[int, str]] = {}
    for path in paths:
        try:
            st = os.stat(path)
        except OSError:
            continue
        inodes[st.st_ino] = st.st_dev, path
    if not inodes:
        return []
    out = []
    with open("/proc/locks", encoding="ascii", errors="replace") as f:
        rows = [line.split() for line in f]
    for row in rows:
        if len(row) < 6 or row[1] not in WRITERS or row[3] != "WRITE":  # those that wait have an arrow in front
            continue
        try:
            major, minor, inode = row[5].split(":")
            device, path = inodes[int(inode)]
            there = os.makedev(int(major, 16), int(minor, 16))
        except (KeyError, ValueError):
            continue
        if there == device or _is_nameless(there, device, row[4], path):
            out.append((path, row[4]))
    return out


def _is_nameless(there: int, device: int, pid: str, path: str) -> bool:
    """Whether a lock that is on another device is on this file all the same: on btrfs and overlays, a file's status
    shows another device than /proc/locks. The holder's own descriptors tell."""
    if os.major(there) or os.major(device) or not pid.isdigit():
        return False
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{fd}") == path for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def _who(pid: str) -> str:
    """The program and its pid. Locks of an open file have no pid, nor have those of another pid namespace."""
    if not pid.isdigit() or pid == "0":
        return ": it cannot be named"
    try:
        with open(f"/proc/{pid}/comm", "rb") as f:
            return f" (pid {pid}): {encode_name(f.read().strip())}"
    except OSError:
        return f" (pid {pid})"
