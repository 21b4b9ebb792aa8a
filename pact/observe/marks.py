"""How one directory or object is marked: by fanotify if that gives the writer, else by inotify, else not at all.

Each flag is probed by using it. If one mechanism refuses a mark (a file system without file handles, a limit), the next
one is tried, for that directory only. Refuses to interpret errors: the tree decides what a missing directory means.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from pact._fast import reader

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
ENTRY: Final = 0x40 | 0x80 | 0x100 | 0x200  # moved from, moved to, created, deleted
SELF: Final = 0x400 | 0x800  # the directory itself deleted, moved
CONTENT: Final = MODIFY | ATTRIB | CLOSE_WRITE
IGNORED: Final = 0x8000
UNMOUNTED: Final = 0x2000
ON_CHILD: Final = 0x08000000
ONDIR: Final = 0x40000000

MARK_ADD: Final = 0x1
MARK_FILESYSTEM: Final = 0x100
MARK_MNTNS: Final = 0x110
MNT_ATTACH_DETACH: Final = 0x03000000

INIT_BASE: Final = 0x1 | 0x2  # CLOEXEC, NONBLOCK
INIT_UNLIMITED_MARKS: Final = 0x20
INIT_PIDFD: Final = 0x80
INIT_FID_NAMES: Final = 0x200 | 0x400 | 0x800
INIT_MNT: Final = 0x4000

#: Errors about the mechanism, not about the path.
UNSUITABLE: Final = frozenset(
    (
        errno.ENODEV,
        errno.EOPNOTSUPP,
        errno.EXDEV,
        errno.ENOSPC,
        errno.EINVAL,
        errno.EOVERFLOW,
        errno.ENOMEM,
        errno.EPERM,
        errno.ENOSYS,
    )
)


class Marker:
    """Marks through whichever of the two groups exist. ``fan_fd`` and ``in_fd`` are -1 if the group does not exist."""

    def __init__(self, fan_fd: int, in_fd: int) -> None:
        self.fan_fd = fan_fd
        self.in_fd = in_fd

    def mark(self, path: bytes, full: bool, leaf: bool = False) -> tuple[int, bytes, bool]:
        """``(kind, key, direct)``. ``full``: contents of entries too. ``leaf``: the object itself. Raises OSError."""
        mask = CONTENT | SELF if leaf else ENTRY | SELF | (CONTENT if full else 0)
        why = OSError(errno.ENOSYS, "neither fanotify nor inotify")
        if self.fan_fd >= 0:
            try:
                return self._fanotify(path, mask, leaf)
            except OSError as e:
                if e.errno not in UNSUITABLE:
                    raise
                why = e
        if self.in_fd >= 0:
            return (reader.KIND_INOTIFY, *reader.inotify_add(self.in_fd, path, mask, not leaf))
        raise why

    def _fanotify(self, path: bytes, mask: int, leaf: bool) -> tuple[int, bytes, bool]:
        if not leaf:
            return (reader.KIND_FID, *reader.mark(self.fan_fd, path, mask | ONDIR | ON_CHILD, True))
        for fewer in (mask | ONDIR, mask):
            try:
                return (reader.KIND_FID, *reader.mark(self.fan_fd, path, fewer, False))
            except OSError as e:
                if e.errno not in (errno.EINVAL, errno.ENOTDIR):
                    raise
        return (reader.KIND_FID, *reader.mark(self.fan_fd, path, CONTENT, False))

    def unmark(self, kind: int, key: bytes, hint: bytes) -> bool:
        """Remove a mark; ``hint`` is a directory. Returns False if that is on another file system: try another."""
        if kind == reader.KIND_INOTIFY:
            reader.inotify_rm(self.in_fd, key)
            return True
        return reader.unmark(self.fan_fd, hint, key, CONTENT | ENTRY | SELF | ON_CHILD | ONDIR)


def open_names_group(notes: list[str]) -> int:
    """The fanotify group that reports directory, name and writer. Raises OSError if there is none."""
    flags = INIT_BASE | INIT_FID_NAMES | INIT_UNLIMITED_MARKS | INIT_PIDFD
    # Unlimited marks need the same privilege as seeing pids. The queue stays limited on purpose: a stopped agent must
    # not use up the kernel's memory, and an overflow is handled anyway.
    try:
        return reader.fanotify_init(flags, os.O_CLOEXEC)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
    fd = reader.fanotify_init(flags & ~INIT_PIDFD, os.O_CLOEXEC)
    notes.append("fanotify without pidfd: a reused pid could be taken for the writer")
    return fd


def open_proc_group() -> int:
    """The fanotify group for sysctls; events carry a descriptor. Raises OSError."""
    event_flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = reader.fanotify_init(INIT_BASE | INIT_PIDFD, event_flags)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        fd = reader.fanotify_init(INIT_BASE, event_flags)
    try:
        mark_proc(fd, b"/proc")
    except OSError:
        os.close(fd)
        raise
    return fd


def mark_proc(fd: int, mount_point: bytes) -> None:
    """Mark one more instance of procfs. Raises OSError."""
    reader.fanotify_mark(fd, MARK_ADD | MARK_FILESYSTEM, MODIFY, -100, mount_point)


def open_mounts_group() -> int:
    """The fanotify group that names the process that mounts (Linux 6.14). Raises OSError."""
    fd = reader.fanotify_init(INIT_BASE | INIT_MNT, 0)
    try:
        ns = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            reader.fanotify_mark(fd, MARK_ADD | MARK_MNTNS, MNT_ATTACH_DETACH, ns, None)
        finally:
            os.close(ns)
    except OSError:
        os.close(fd)
        raise
    return fd
