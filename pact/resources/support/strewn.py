"""Temporary files that a plan could not remove: its directory became immutable, or read-only, in the middle of it.

The directory is on record until nothing of pact's is in it any more, also after a restart; it is looked at now and
then. What is in no store is not removed: it gets a name that stays, as after a kill. A file system that has become
read-only is unmounted and mounted again before it can be written: while it is away, its record waits.  # R4, R11
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
from pact.observe.mountinfo import read_mounts
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
        mount = encode_name(_mount_of(decode_name(where)))
        LOOSE.begin(STREWN, BYTES_MAX // 2, path=where, inode=st.st_ino, mount=mount)
        log(f"temporary files of a plan stay in {where} for now: {os.strerror(code).lower()}", 4)
    except (OSError, ValueError) as exc:
        log(f"temporary files of a plan stay somewhere, and that is not on record: {exc}", 4)


def clear(blobs: Blobs, ends: LooseEnds | None = None) -> Iterator[str]:
    """Remove what can be removed now. Not while a plan is under way. Gives lines for the log; may take as long as the
    disk does."""
    ends = ends or LOOSE
    for number, about in ends.of(STREWN):
        try:
            path, inode, mount = decode_name(about["path"]), about["inode"], about.get("mount")
            there, kept = _cleared(path, inode, None if mount is None else decode_name(mount), blobs)
        except OSError:
            continue  # still immutable, or not there now: it is tried again
        except (ValueError, KeyError, TypeError, AttributeError):
            there, kept, path = False, [], b""  # a record that makes no sense
        if there is not None:
            ends.end(number)
        if kept:
            shown = ", ".join(encode_name(path.rstrip(b"/") + b"/" + name) for name in kept)
            yield f"what a plan has left, and is in no store, stays as {shown}"
        if there:
            yield f"no temporary file of a plan is in {encode_name(path)} any more"
        elif there is False:
            yield f"{encode_name(path)}, where temporary files of a plan had to stay, is gone, or another directory"


def _mount_of(path: bytes) -> bytes:
    """The mount point on whose file system a path lies. Raises OSError, ValueError."""
    inside = path.rstrip(b"/") + b"/"
    above = (m.mount_point for m in read_mounts() if inside.startswith(m.mount_point.rstrip(b"/") + b"/"))
    return max(above, key=len, default=b"/")


def _cleared(path: bytes, inode: int, mount: bytes | None, blobs: Blobs) -> tuple[bool | None, list[bytes]]:
    """Whether nothing of a plan that has ended is there, and the names of what was kept. None: it is not known now, or
    something is; False: the directory is gone. ``mount``: where its file system was mounted, if that is on record.
    Raises OSError."""
    quiet = PLANS.rest()
    if quiet is None:
        return None, []
    try:
        fd = syscalls.openat2(syscalls.AT_FDCWD, path, DIR_FLAGS, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    except (FileNotFoundError, NotADirectoryError):
        fd = -1
    try:
        if mount is not None and _mount_of(path) != mount:
            return None, []  # it is not mounted now, or something else is mounted over it
        if fd < 0 or os.fstat(fd).st_ino != inode:
            return False, []
        gone, kept = sweep_directory(fd, (), blobs, lambda: PLANS.rest() == quiet)
        return gone or None, kept
    finally:
        if fd >= 0:
            os.close(fd)


LASTING.add(STREWN)
STAYING.add(STREWN)
