"""Allocates the blocks of SQLite's mapped index (``-shm``) before it is mapped: a full disk causes an error, never
SIGBUS.

SQLite extends that file by one byte for each page. If a block of the file system is smaller than a page, or the disk is
full, the mapping has holes, and touching one kills the process. The first process that opens the file also truncates
it, and would lose the allocated blocks. So this module holds a lock that says "somebody uses it" from before SQLite
opens the file (an open file description lock, which SQLite's locks in this process see as another process's), and
allocates blocks under it, ahead of every write.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from contextlib import suppress
from typing import Final

from pact.errors import JournalError

DMS_BYTE: Final = 128  # sqlite3's os_unix.c: UNIX_SHM_DMS
REGION_BYTES: Final = 32 << 10
REGION_FRAMES: Final = 4096  # the first region has 34 less
FIRST_LESS: Final = 34
PAGE_BYTES: Final = 4096
FRAME_HEADER: Final = 24
LOCK_WAIT_S: Final = 5.0
#: Pages that one transaction may write besides those of its rows: trees, free list, the snapshot's and the probe's.
SPARE_FRAMES: Final = 512

#: Errors that end a start or a write. After any other (no permission, no such locks) SQLite itself reports what fails.
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBUSY})

#: Files that this process guards: opening one again and closing it would release SQLite's own locks.
_guarded: dict[tuple[int, int], WalIndex] = {}


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, DMS_BYTE, 1, 0))
    except OSError as exc:
        if exc.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def _why(exc: OSError) -> str:
    text = os.strerror(exc.errno or 0)
    return f"{text}: the disk is full" if exc.errno == errno.ENOSPC else text


class WalIndex:
    """Keep it open as long as a connection of this process is open; close it after the last one."""

    def __init__(self, database: str) -> None:
        """Call it before the database is opened. Raises JournalError (no space, another process has a lock)."""
        self._database = database
        self._bytes = 0
        self._key: tuple[int, int] | None = None
        self._fd = -1
        path = database + "-shm"
        self._made = not os.path.exists(path)
        try:
            found = os.stat(path)
            if (found.st_dev, found.st_ino) in _guarded:
                return
        except OSError:
            pass
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._take()
            found = os.fstat(self._fd)
            self._key = found.st_dev, found.st_ino
            _guarded[self._key] = self
            self.reserve(0)
        except OSError as exc:
            self.close(remove=True)
            if exc.errno not in FULL:
                return
            raise JournalError(
                f"journal's index {path}: {_why(exc)}", "free space or mend the disk, then start again"
            ) from None
        except BaseException:
            self.close(remove=True)
            raise

    def _take(self) -> None:
        if _lock(self._fd, fcntl.F_WRLCK):
            os.ftruncate(self._fd, 0)  # nobody uses it: what a killed process left in it is not reliable
        end = time.monotonic() + LOCK_WAIT_S
        while not _lock(self._fd, fcntl.F_RDLCK):
            if time.monotonic() > end:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            time.sleep(0.01)

    def reserve(self, more: int) -> None:
        """Allocate blocks for the present log and ``more`` bytes of rows. Raises JournalError if there are none."""
        if self._fd < 0:
            return
        try:
            log_bytes = os.stat(self._database + "-wal").st_size
        except FileNotFoundError:
            log_bytes = 0
        frames = log_bytes // (PAGE_BYTES + FRAME_HEADER) + 3 * more // PAGE_BYTES + SPARE_FRAMES
        wanted = -(-(frames + FIRST_LESS) // REGION_FRAMES) * REGION_BYTES
        if wanted <= self._bytes:
            return
        try:
            os.posix_fallocate(self._fd, 0, wanted)  # present data stay; holes get blocks
        except OSError as exc:
            if exc.errno not in FULL:  # a file system that cannot allocate: it works as without this
                self._bytes = wanted
                return
            raise JournalError(
                f"journal's index {self._database}-shm: {_why(exc)}", "nothing was changed; free space or mend the disk"
            ) from None
        self._bytes = wanted

    def close(self, *, remove: bool = False) -> None:
        """``remove`` the file if it is not SQLite's."""
        if remove and self._made and self._fd >= 0 and _lock(self._fd, fcntl.F_WRLCK):
            with suppress(FileNotFoundError):
                os.unlink(self._database + "-shm")
        if self._key is not None:
            _guarded.pop(self._key, None)
            self._key = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
