"""New files that are written before their turn, many at once, so that the disk makes them durable together: written one
at a time, each costs a commit of the file system's journal.

No file gets its name here. If anything has changed when a file's turn comes (its directory, the file that it replaces),
the file that was written ahead is useless, and a new one is written then.
"""

from __future__ import annotations

import contextlib
import os
import threading
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
#: The temporary name of the new file, its directory, and what it replaces (``_identity``).
Written = tuple[bytes, bytes, tuple[int, ...]]


class Row:
    """Files that are written, and that a separate thread makes durable while the row before is renamed into place.
    ``count`` is the number of steps that were taken into account.
    """

    def __init__(self) -> None:
        self.count = 0
        self.begun: dict[Place, Written] = {}
        self.directories: dict[tuple[int, int], int] = {}
        self._thread = threading.Thread(target=self._make_durable, name="pact-ahead", daemon=True)

    def place(self, dirfd: int, leaf: bytes) -> Place:
        """Open and remember the directory."""
        st = os.fstat(dirfd)
        if (st.st_dev, st.st_ino) not in self.directories:
            self.directories[st.st_dev, st.st_ino] = os.dup(dirfd)
        return st.st_dev, st.st_ino, leaf

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:  # no more threads are possible: do it at once
            self._make_durable()

    def durable(self) -> dict[Place, Written]:
        """The files that are durable; waits for them."""
        if self._thread.ident is not None:
            self._thread.join()
        for fd in self.directories.values():
            os.close(fd)
        return self.begun

    def _make_durable(self) -> None:
        """Start writing all of them before waiting for the first: then the file system's journal has most of them in
        one commit, and not each in a commit of its own."""
        for place, (fresh, _, _) in self.begun.items():
            with contextlib.suppress(OSError):
                _on(self.directories[place[:2]], fresh, syscalls.start_writing)
        for place, (fresh, _, _) in list(self.begun.items()):
            dirfd = self.directories[place[:2]]
            try:
                _on(dirfd, fresh, os.fsync)
            except OSError:  # it is written again when its turn comes, and the disk's error is reported then
                _drop(dirfd, fresh)
                del self.begun[place]


class Ahead:
    """For one plan, carried out by one thread, in a ``with``: files that nobody took are removed at its end, however it
    ends. ``unsafe`` are the directories whose names the disk did not make durable.
    """

    def __init__(self) -> None:
        self.unsafe: set[bytes] = set()
        self._ready: dict[Place, Written] = {}
        self._coming: Row | None = None
        self._directories: dict[tuple[int, int], tuple[int, bytes]] = {}

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def begin(self, steps: Iterable[Step], blobs: Blobs) -> None:
        """Write what these steps will put in place, as far as it is known now; it becomes durable meanwhile."""
        assert self._coming is None
        self._coming = row = Row()
        size = 0
        for step in steps:
            row.count += 1
            size += self._begin(path_of(step.id.partition(":")[2]), step, blobs, row)
            if size > BYTES_MAX or len(row.begun) >= FILES_MAX or len(row.directories) >= DIRECTORIES_MAX:
                break
        row.start()

    def turn(self) -> int:
        """The turn of the begun row has come: unused files of the row before are removed, and the row is durable when
        this returns. Returns the number of its steps; 0 if nothing was begun."""
        row, self._coming = self._coming, None
        if row is None:
            return 0
        self._drop_left()
        self._ready = row.durable()
        return row.count

    def _begin(self, path: bytes, step: Step, blobs: Blobs, row: Row) -> int:
        target = step.target
        if target is None or target["type"] != "file" or "sha256" not in target:
            return 0
        parent, leaf = os.path.split(path)
        try:
            dirfd = syscalls.openat2(syscalls.AT_FDCWD, parent, DIR_FLAGS, resolve=syscalls.RESOLVE_NO_SYMLINKS)
        except OSError:
            return 0  # it is tried again, and an error reported, when its turn comes
        try:
            st = lstat(dirfd, leaf)
            content = None if keeps_content(target, step.actual, st) else blobs(target["sha256"])
            if content is None:
                return 0
            place = row.place(dirfd, leaf)
            if place in row.begun:
                return 0  # the same place by another path: only the first one's content fits the first turn
            row.begun[place] = write_fresh(dirfd, leaf, target, st, content, durable=False), parent, _identity(st)
            return len(content)
        except (OSError, PactError):
            return 0
        finally:
            os.close(dirfd)

    def take(self, dirfd: int, leaf: bytes, st: os.stat_result | None) -> bytes | None:
        """The name of the new file for this place, if it is still right; from now on it belongs to the caller."""
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
        """Names in this directory have changed: they are durable when the plan is done. Few directories are open at
        once."""
        st = os.fstat(dirfd)
        if (st.st_dev, st.st_ino) not in self._directories:
            self._directories[st.st_dev, st.st_ino] = os.dup(dirfd), path
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
        """Remove files that nobody took; everything else is durable when this returns, except in ``unsafe``
        directories."""
        self._drop_left()
        if self.turn():
            self._drop_left()
        self._sync()

    def _drop_left(self) -> None:
        for fresh, parent, _ in self._ready.values():
            try:
                dirfd = syscalls.openat2(syscalls.AT_FDCWD, parent, DIR_FLAGS, resolve=syscalls.RESOLVE_NO_SYMLINKS)
            except OSError:
                continue  # the next plan cleans up there
            _drop(dirfd, fresh)
            os.close(dirfd)
        self._ready.clear()


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
        pass  # the next plan cleans up there


def _identity(st: os.stat_result | None) -> tuple[int, ...]:
    return () if st is None else (st.st_ino, st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns)
