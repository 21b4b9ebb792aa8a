"""Which paths depend on another machine or process, which may never answer: found out without touching them.

The mount table can change between two accesses. So code on the loop calls ``MOUNTS.generation()`` right before each
access: a call of one microsecond that tells whether the table is still the one that was read.  # F13
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterable
from typing import Final

from pact.observe.mountinfo import is_remote, read_mounts

LINKS_MAX: Final = 40


class MountClock:
    """Counts the changes of this process's mount table. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._poll: select.poll | None = None
        self._fd = -1
        self._count = 0

    def generation(self) -> int:
        """A different number than before if the mount table has changed since, or if that cannot be known."""
        with self._lock:
            if self._poll is None:
                self._count += 1
                try:
                    self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    return self._count
                self._poll = select.poll()
                self._poll.register(self._fd, select.POLLPRI)
            elif self._poll.poll(0):
                self._count += 1
            return self._count


MOUNTS: Final = MountClock()


class RemotePlaces:
    """Which paths lie on remote file systems: the deepest mount above a path decides. If ``/`` itself is remote,
    everything hangs with it, the agent too: that case is not distinguished. Later mounts do not change this object."""

    def __init__(self, mounts: Iterable[tuple[bytes, bytes | str]] = ()) -> None:
        """``mounts``: mount point and file system type, in mount order."""
        points = {point: is_remote(fstype) for point, fstype in mounts}  # the last one on a point is visible
        points.pop(b"/", None)
        tops = tuple(p + b"/" for p, remote in points.items() if remote)
        self._points = {p: r for p, r in points.items() if r or (tops and p.startswith(tops))}

    @classmethod
    def now(cls) -> RemotePlaces:
        """The present ones. Raises OSError, ValueError."""
        return cls((m.mount_point, m.fstype) for m in read_mounts())

    def differing(self, other: RemotePlaces) -> list[bytes]:
        """The mount points at which these are other places than ``other``."""
        return [point for point, _ in self._points.items() ^ other._points.items()]

    def __bool__(self) -> bool:
        return bool(self._points)

    def __contains__(self, path: bytes) -> bool:
        while self._points and path not in (b"", b"/"):
            if path in self._points:
                return self._points[path]
            path = path.rpartition(b"/")[0]
        return False


def leads_away(directory: bytes, places: RemotePlaces) -> bool:
    """Whether the directory lies on a remote file system, by its name or by a symbolic link on the way. Finding out
    touches nothing remote: each name is looked up in a path that has no link and is not remote."""
    here, todo, links = b"", directory.split(b"/")[::-1], 0
    while places and todo:
        name = todo.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            here = here.rpartition(b"/")[0]
            continue
        here += b"/" + name
        if here in places:
            return True
        try:
            target = os.readlink(here)
        except OSError:
            continue
        links += 1
        if links > LINKS_MAX:
            return False
        here = b"" if target.startswith(b"/") else here.rpartition(b"/")[0]
        todo += target.split(b"/")[::-1]
    return False


def may_hang(path: bytes, places: RemotePlaces) -> bool:
    """Whether an access to ``path`` itself (a link there is not followed) may wait for ever."""
    return bool(places) and (path in places or leads_away(os.path.dirname(path), places))
