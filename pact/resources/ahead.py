"""New files that are written before their turn, many at once, so that the disk makes them durable together: one at a
time, each costs a commit of the file system's journal.

Nothing gets its name here. Whatever is otherwise when a file's turn comes (its directory, what it replaces) makes what
was written worth nothing, and it is written again then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from pact._fast import syscalls
from pact.core.plan import Step
from pact.errors import PactError
from pact.resources.base import Blobs, path_of
from pact.resources.replace import DIR_FLAGS, FILE_FLAGS, drop, keeps_content, lstat, write_fresh

FILES_MAX: Final = 512
BYTES_MAX: Final = 4 << 20
DIRECTORIES_MAX: Final = 8

#: Device and inode of a directory, and a name in it.
Place = tuple[int, int, bytes]


class Ahead:
    """For one plan, carried out by one thread. ``finish`` must be called in the end."""

    def __init__(self) -> None:
        self._ready: dict[Place, tuple[bytes, tuple[int, ...]]] = {}
        self._directories: dict[tuple[int, int], int] = {}

    def write(self, steps: Iterable[Step], blobs: Blobs) -> None:
        """Write what these steps will put in place, as far as that can be said now, and make it durable."""
        size = 0
        for step in steps:
            size += self._write(path_of(step.id.partition(":")[2]), step, blobs)
            if size > BYTES_MAX or len(self._ready) >= FILES_MAX or len(self._directories) >= DIRECTORIES_MAX:
                break
        for (device, inode, _), (fresh, _) in list(self._ready.items()):
            fd = os.open(fresh, FILE_FLAGS, dir_fd=self._directories[device, inode])
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _write(self, path: bytes, step: Step, blobs: Blobs) -> int:
        target = step.target
        if target is None or target["type"] != "file" or "sha256" not in target:
            return 0
        parent, leaf = os.path.split(path)
        try:
            dirfd = syscalls.openat2(syscalls.AT_FDCWD, parent, DIR_FLAGS, resolve=syscalls.RESOLVE_NO_SYMLINKS)
        except OSError:
            return 0  # it is tried, and said, when its turn comes
        try:
            st = lstat(dirfd, leaf)
            content = None if keeps_content(target, step.actual, st) else blobs(target["sha256"])
            if content is None:
                return 0
            directory = self._directory(dirfd)
            self._ready[*directory, leaf] = write_fresh(dirfd, leaf, target, st, content, durable=False), _identity(st)
            return len(content)
        except (OSError, PactError):
            return 0
        finally:
            os.close(dirfd)

    def _directory(self, dirfd: int) -> tuple[int, int]:
        """Remember a directory in which something has changed."""
        st = os.fstat(dirfd)
        key = st.st_dev, st.st_ino
        if key not in self._directories:
            self._directories[key] = os.dup(dirfd)
        return key

    def take(self, dirfd: int, leaf: bytes, st: os.stat_result | None) -> bytes | None:
        """The name of the new file for this place, if it is still right; it is the caller's from now on."""
        here = os.fstat(dirfd)
        found = self._ready.pop((here.st_dev, here.st_ino, leaf), None)
        if found is None:
            return None
        fresh, before = found
        if before == _identity(st):
            return fresh
        drop(dirfd, fresh)
        return None

    def touched(self, dirfd: int) -> None:
        """Its names have changed: they are durable when the plan is done."""
        self._directory(dirfd)
        if len(self._directories) >= DIRECTORIES_MAX and not self._ready:
            self._sync()

    def _sync(self) -> None:
        directories, self._directories = self._directories, {}
        for fd in directories.values():
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def finish(self) -> None:
        """Take away what nobody took; everything is durable when this returns. Raises OSError."""
        for (device, inode, _), (fresh, _) in self._ready.items():
            try:
                drop(self._directories[device, inode], fresh)
            except OSError:
                pass  # the next plan sweeps there
        self._ready.clear()
        self._sync()


def _identity(st: os.stat_result | None) -> tuple[int, ...]:
    return () if st is None else (st.st_ino, st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns)
