"""Package managers at work: files that they may be about to replace are not restored meanwhile.  # R3

Read from /proc/locks; nothing is locked to find out. Packages own the places in which they install files; sysctls,
links, files of users and mounts elsewhere do not belong to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from pact.core.plan import Step, below
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
KINDS: Final = frozenset({"module", "service", "package"})


def package_locks(steps: Iterable[Step]) -> list[str]:
    """The holders of package managers' locks, if one of these steps touches something that packages may own."""
    return holders() if any(owned(s) for s in steps) else []


def owned(step: Step) -> bool:
    """Whether a package manager may be writing it."""
    kind, name = split_id(step.id)
    if kind in ("file", "mount"):
        inside = any(name == p or below(name, p) for p in PLACES)
        over = kind == "mount" and any(below(p, name) for p in PLACES)
        return over or (inside and not any(name == p or below(name, p) for p in SPARED))
    return kind in KINDS


def holders() -> list[str]:
    inodes: dict[tuple[int, int, int], str] = {}
    for path in PACKAGE_LOCKS:
        try:
            st = os.stat(path)
        except OSError:
            continue
        inodes[os.major(st.st_dev), os.minor(st.st_dev), st.st_ino] = path
    if not inodes:
        return []
    out = []
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as f:
            rows = [line.split() for line in f]
    except OSError as exc:
        return [errno_text("/proc/locks", exc)]
    for row in rows:
        if len(row) < 6 or "->" in row:
            continue
        try:
            major, minor, inode = row[5].split(":")
            path_found = inodes.get((int(major, 16), int(minor, 16), int(inode)))
        except ValueError:
            continue
        if path_found is not None:
            out.append(f"a package manager holds {path_found}{_who(row[4])}")
    return list(dict.fromkeys(out))


def _who(pid: str) -> str:
    """The program and its pid. Locks of an open file have no pid, nor have those of another pid namespace."""
    if not pid.isdigit() or pid == "0":
        return ": it cannot be named"
    try:
        with open(f"/proc/{pid}/comm", "rb") as f:
            return f" (pid {pid}): {encode_name(f.read().strip())}"
    except OSError:
        return f" (pid {pid})"
