"""Temporary files that a plan could not remove: its directory became immutable, or read-only, in the middle of it.

The directory is on record until nothing of pact's is in it any more, also after a restart; it is looked at now and
then. What is in no store is not removed: it gets a name that stays, as after a kill.  # R4, R11
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from typing import Final

from pact._fast import syscalls
from pact.host.notify import log
from pact.model import decode_name, encode_name
from pact.resources.base import Blobs
from pact.resources.support.loose import BYTES_MAX, LASTING, LOOSE, STAYING, LooseEnds
from pact.resources.support.sweep import sweep_directory

STREWN: Final = "strewn"
DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Plans:
    """Which are under way: their temporary files are not what another one has left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = self._begun = 0

    def begin(self) -> None:
        with self._lock:
            self._now += 1
            self._begun += 1

    def end(self) -> None:
        with self._lock:
            self._now -= 1

    def rest(self) -> int | None:
        """None while there is one; else a number that stays the same until another one begins."""
        with self._lock:
            return None if self._now else self._begun


PLANS: Final = Plans()


def note(dirfd: int, code: int) -> None:
    """Something of pact's cannot be removed from this directory, because of this errno. Never raises."""
    if code in (0, errno.ENOENT, errno.ESTALE):
        return
    try:
        st = os.fstat(dirfd)
        where = encode_name(os.readlink(os.fsencode(f"/proc/self/fd/{dirfd}")))
        if any((about["path"], about["inode"]) == (where, st.st_ino) for _, about in LOOSE.of(STREWN)):
            return
        LOOSE.begin(STREWN, BYTES_MAX // 2, path=where, inode=st.st_ino)
        log(f"temporary files of a plan stay in {where} for now: {os.strerror(code).lower()}", 4)
    except OSError as exc:
        log(f"temporary files of a plan stay somewhere, and that is not on record: {exc}", 4)


def clear(blobs: Blobs, ends: LooseEnds | None = None) -> Iterator[str]:
    """Remove what can be removed now. Not while a plan is under way. Gives lines for the log; may take as long as the
    disk does."""
    ends = ends or LOOSE
    for number, about in ends.of(STREWN):
        try:
            path, inode = decode_name(about["path"]), about["inode"]
            gone, kept = _cleared(path, inode, blobs)
        except OSError:
            continue  # still immutable, or not there now: it is tried again
        except (ValueError, KeyError, TypeError):
            gone, kept, path = True, [], b""  # a record that makes no sense
        if gone:
            ends.end(number)
            shown = ", ".join(encode_name(path.rstrip(b"/") + b"/" + name) for name in kept)
            stays = f"; what is in no store stays as {shown}" if kept else ""
            yield f"no temporary file of a plan is in {encode_name(path)} any more{stays}"


def _cleared(path: bytes, inode: int, blobs: Blobs) -> tuple[bool, list[bytes]]:
    """Whether nothing of a plan that has ended is there, and the names of what was kept. Raises OSError."""
    quiet = PLANS.rest()
    if quiet is None:
        return False, []
    try:
        fd = syscalls.openat2(syscalls.AT_FDCWD, path, DIR_FLAGS, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    except (FileNotFoundError, NotADirectoryError):
        return True, []
    try:
        if os.fstat(fd).st_ino != inode:
            return True, []  # another directory has its name
        return sweep_directory(fd, (), blobs, lambda: PLANS.rest() == quiet)
    finally:
        os.close(fd)


LASTING.add(STREWN)
STAYING.add(STREWN)
