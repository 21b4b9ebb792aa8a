"""New files that are written before their turn, many at once, so that the disk makes them durable together: one at a
time, each costs a commit of the file system's journal.

Nothing gets its name here. Whatever is otherwise when a file's turn comes (its directory, what it replaces) makes what
was written worth nothing, and it is written again then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Final

from pact._fast import syscalls
from pact.core.plan import Step
from pact.errors import PactError
from pact.resources.base import Blobs, path_of
from pact.resources.support.dress import FILE_FLAGS
from pact.resources.support.replace import DIR_FLAGS, drop, keeps_content, lstat, write_fresh

FILES_MAX: Final = 512
BYTES_MAX: Final = 4 << 20
DIRECTORIES_MAX: Final = 8

#: Device and inode of a directory, and a name in it.
Place = tuple[int, int, bytes]


class Ahead:
    """For one plan, carried out by one thread. ``finish`` must be called in the end.

    ``unsafe`` are the directories whose names the disk did not make durable.
    """

    def __init__(self) -> None:
        self.unsafe: set[bytes] = set()
        self._ready: dict[Place, tuple[bytes, bytes, tuple[int, ...]]] = {}
        self._directories: dict[tuple[int, int], tuple[int, bytes]] = {}

    def write(self, steps: Iterable[Step], blobs: Blobs) -> int:
        """Write what these steps will put in place, as far as that can be said now, and make it durable. What is left
        of the row before goes first. For how many of them that was done: the others are the next row."""
        self.finish()
        size, count, begun = 0, 0, dict[Place, tuple[bytes, bytes, tuple[int, ...]]]()
        for step in steps:
            count += 1
            size += self._begin(path_of(step.id.partition(":")[2]), step, blobs, begun)
            if size > BYTES_MAX or len(begun) >= FILES_MAX or len(self._directories) >= DIRECTORIES_MAX:
                break
        self._make_durable(begun)
        return count

    def _make_durable(self, begun: dict[Place, tuple[bytes, bytes, tuple[int, ...]]]) -> None:
        """All of them are on their way to the disk before the first is waited for: then the file system's journal has
        most of them in one commit, and not each in its own."""
        for place, (fresh, _, _) in begun.items():
            with contextlib.suppress(OSError):
                _on(self._directories[place[:2]][0], fresh, syscalls.start_writing)
        for place, (fresh, parent, before) in begun.items():
            dirfd = self._directories[place[:2]][0]
            try:
                _on(dirfd, fresh, os.fsync)
            except OSError:  # it is written once more when its turn comes, and what the disk says then is said
                _drop(dirfd, fresh)
            else:
                self._ready[place] = fresh, parent, before

    def _begin(self, path: bytes, step: Step, blobs: Blobs, begun: dict[Place, tuple[bytes, bytes, tuple[int, ...]]]
               ) -> int:  # fmt: skip
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
            directory = self._directory(dirfd, parent)
            if (*directory, leaf) in begun:
                return 0  # the same place by another path: only the first one's content is right for the first turn
            fresh = write_fresh(dirfd, leaf, target, st, content, durable=False)
            begun[*directory, leaf] = fresh, parent, _identity(st)
            return len(content)
        except (OSError, PactError):
            return 0
        finally:
            os.close(dirfd)

    def _directory(self, dirfd: int, path: bytes) -> tuple[int, int]:
        """Remember a directory in which something has changed."""
        st = os.fstat(dirfd)
        key = st.st_dev, st.st_ino
        if key not in self._directories:
            self._directories[key] = os.dup(dirfd), path
        return key

    def take(self, dirfd: int, leaf: bytes, st: os.stat_result | None) -> bytes | None:
        """The name of the new file for this place, if it is still right; it is the caller's from now on."""
        here = os.fstat(dirfd)
        found = self._ready.pop((here.st_dev, here.st_ino, leaf), None)
        if found is None:
            return None
        fresh, _, before = found
        if before == _identity(st):
            return fresh
        _drop(dirfd, fresh)
        return None

    def touched(self, dirfd: int, path: bytes) -> None:
        """Names in it have changed: they are durable when the plan is done. Few directories are open at once."""
        self._directory(dirfd, path)
        if len(self._directories) > DIRECTORIES_MAX:
            self._sync()

    def _sync(self) -> None:
        directories, self._directories = self._directories, {}
        for fd, path in directories.values():
            try:
                os.fsync(fd)
            except OSError:
                self.unsafe.add(path)
            finally:
                os.close(fd)

    def finish(self) -> None:
        """Take away what nobody took; all else is durable when this returns, but for what is ``unsafe``."""
        for fresh, parent, _ in self._ready.values():
            try:
                dirfd = syscalls.openat2(syscalls.AT_FDCWD, parent, DIR_FLAGS, resolve=syscalls.RESOLVE_NO_SYMLINKS)
            except OSError:
                continue  # the next plan sweeps there
            _drop(dirfd, fresh)
            os.close(dirfd)
        self._ready.clear()
        self._sync()


def _on(dirfd: int, fresh: bytes, act: Callable[[int], object]) -> None:
    fd = os.open(fresh, FILE_FLAGS, dir_fd=dirfd)
    try:
        act(fd)
    finally:
        os.close(fd)


def _drop(dirfd: int, fresh: bytes) -> None:
    try:
        drop(dirfd, fresh)
    except OSError:
        pass  # the next plan sweeps there


def _identity(st: os.stat_result | None) -> tuple[int, ...]:
    return () if st is None else (st.st_ino, st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns)
