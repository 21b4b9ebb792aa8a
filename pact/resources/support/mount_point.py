"""A mount point that is held: the owner of a directory on the way may put another directory, or a link, there at any
moment.

The kernel gets a descriptor's entry in /proc, so that what was checked is what is mounted on, or unmounted. A helper of
mount(8) (NFS, FUSE) resolves the path again: it is only called if nobody but root can replace a part of the way.  # R12
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pact._fast import syscalls
from pact.errors import RestoreError
from pact.model import encode_name
from pact.observe.mountinfo import MountEntry, read_mounts
from pact.resources.support.loose import LOOSE, MADE
from pact.resources.support.way import STEP_FLAGS, hangs, make_directory, missing, unmake

HOLD: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
HELPERS: Final = ("/sbin", "/usr/sbin", "/sbin/fs.d", "/sbin/fs")
TURNED: Final = "another user can turn a directory on the way, and {} needs a helper that would follow it"


def turnable(path: bytes) -> bool:
    """Whether accounts other than root can replace a directory on the way, or the last name. True if it cannot be
    examined."""
    try:
        fd = os.open(b"/", STEP_FLAGS)
        try:
            names = [n for n in path.split(b"/") if n]
            for at, name in enumerate(names):
                above = os.fstat(fd)
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                open_to_others = above.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                guarded = above.st_mode & stat.S_ISVTX and st.st_uid == 0
                if above.st_uid != 0 or (open_to_others and not guarded) or stat.S_ISLNK(st.st_mode):
                    return True
                if at == len(names) - 1:
                    return False  # it is not opened: an automounter may wait there
                below = os.open(name, STEP_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = below
        finally:
            os.close(fd)
    except OSError:
        return True
    return False


def has_helper(fstype: str) -> bool:
    """Whether mount(8) calls another program for this type."""
    return any(os.path.exists(f"{place}/mount.{fstype}") for place in HELPERS)


@contextmanager
def held(path: bytes, fstype: str) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """The form of ``path`` for mount(8), and the descriptors that it needs. Raises RestoreError."""
    if not turnable(path):
        yield path, ()
        return
    if has_helper(fstype):
        raise RestoreError(TURNED.format(fstype))
    fd = _open(path)
    try:
        yield b"/proc/self/fd/%d" % fd, (fd,)
        now = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        if now != path:
            _take_off(now)
            raise RestoreError(f"a directory on the way was moved to {encode_name(now)}; nothing stays mounted")
    finally:
        os.close(fd)


@contextmanager
def held_source(path: bytes) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """The source path of a mount, in the form for mount(8). Raises RestoreError."""
    if not turnable(path):
        yield path, ()
        return
    fd = _open(path)
    try:
        yield b"/proc/self/fd/%d" % fd, (fd,)
    finally:
        os.close(fd)


def _open(path: bytes) -> int:
    try:
        return syscalls.openat2(syscalls.AT_FDCWD, path, HOLD, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise RestoreError("a directory on the way is a symbolic link; it is not followed") from None
        raise RestoreError(f"{encode_name(path)}: {os.strerror(exc.errno or 0).lower()}") from None


def _take_off(point: bytes) -> None:
    """Unmount what was just mounted in the wrong place."""
    if any(m.mount_point == point for m in read_mounts()):
        try:
            with beside(point) as name:
                syscalls.umount2(name, syscalls.UMOUNT_NOFOLLOW)
        except OSError as exc:
            raise RestoreError(f"it was mounted on {encode_name(point)}, and is still there: {exc.strerror}") from None


@contextmanager
def beside(point: bytes, entry: MountEntry | None = None) -> Iterator[bytes]:
    """The form of a mount for the kernel: by its directory, reached without a link. A mount point cannot be renamed, so
    with ``entry``, which must be mounted there, the name means exactly that mount. Raises OSError."""
    parent, leaf = os.path.split(point)
    flags = STEP_FLAGS & ~os.O_NOFOLLOW  # with it, a link at the end would give the same error as a file
    dirfd = syscalls.openat2(syscalls.AT_FDCWD, parent, flags, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    try:
        name = b"/proc/self/fd/%d/%b" % (dirfd, leaf or b".")
        if entry is not None and _mount_id(dirfd, leaf or b".") != entry.mount_id:
            raise OSError(errno.ESTALE, "another mount stands there now")
        yield name
    finally:
        os.close(dirfd)


def _mount_id(dirfd: int, leaf: bytes) -> int:
    fd = os.open(leaf, HOLD, dir_fd=dirfd)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as f:
            return int(next(line for line in f if line.startswith("mnt_id:")).split()[1])
    finally:
        os.close(fd)


@contextmanager
def made(path: bytes, bound: bytes) -> Iterator[None]:
    """Make the missing parts of a mount point: its last part is a file if ``bound`` (``b""``: not a bind mount) is not
    a directory. They are removed again if mounting fails. Raises RestoreError, OSError."""
    lacking = missing(path)
    if not lacking:
        yield
        return
    number = LOOSE.begin(MADE, paths=[encode_name(p) for p in lacking])
    try:
        as_file = bool(bound) and not hangs(bound) and not os.path.isdir(bound)
        fd, _ = make_directory(os.path.dirname(path) if as_file else path)
        try:
            if as_file:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(os.path.basename(path), flags, 0o644, dir_fd=fd))
        finally:
            os.close(fd)
        try:
            yield
        except BaseException:
            unmake(lacking)
            raise
    finally:
        LOOSE.end(number)
