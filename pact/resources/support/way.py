"""The way to a file: its directory as a descriptor, reached without trusting links that other accounts can replace.

The owner of a directory on the way may put a symbolic link in its place, to a directory that only root can enter. Such
a link is not followed; a link in a directory that only root can write belongs to the system (``/lib``, ``/var/run``).

Content is read through the descriptor, and the same descriptor shows whether other accounts could reach it.  # S2
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Final

from pact._fast import syscalls
from pact.observe.places import LINKS_MAX, MOUNTS, RemotePlaces, may_hang
from pact.resources.support.flags import flags_at

MAKE_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
STEP_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TurnableLink(OSError):
    """A symbolic link on the way stands where accounts other than root may put one: it is not followed."""


_places: tuple[int, RemotePlaces] = (-1, RemotePlaces())


def hangs(path: bytes) -> bool:
    """Whether it lies on a file system that depends on another machine or process: the loop does not touch it."""
    global _places
    generation = MOUNTS.generation()
    if generation != _places[0]:
        _places = generation, RemotePlaces.now()
    return may_hang(path, _places[1])


def open_parent(path: bytes) -> tuple[int, bytes, bool]:
    """A descriptor (``O_PATH``) of the directory of ``path``, the name in it, and whether there was no link on the way.
    Raises OSError; TurnableLink for a link that other accounts can replace."""
    parent, leaf = os.path.split(path)
    try:
        flags = STEP_FLAGS & ~os.O_NOFOLLOW  # with it, a link at the end would give the same error as a file
        fd = syscalls.openat2(syscalls.AT_FDCWD, parent, flags, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
        return _walk(parent), leaf or b".", False
    return fd, leaf or b".", True


def open_regular(dirfd: int, leaf: bytes) -> int:
    """A descriptor for reading a regular file. Anything else with this name is not opened: a FIFO would block, a device
    may act. Raises OSError; EINVAL if it is not a regular file.  # S2
    """
    return syscalls.open_regular(dirfd, leaf)


@dataclass(frozen=True, slots=True)
class Way:
    """A directory's path: ``missing``: its missing parts, from the top; ``other``: a part that is not a directory, and
    what it is, with all parts after it counted as missing; ``last``: the last existing part, with its inode
    ``flags``."""

    missing: list[bytes]
    other: tuple[bytes, str] | None
    last: bytes
    flags: str


def on_the_way(path: bytes) -> Way:
    """Examine the path. Raises OSError."""
    here, missing = b"/", list[bytes]()
    other: tuple[bytes, str] | None = None
    fd = os.open(b"/", STEP_FLAGS)
    try:
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            before = missing[-1] if missing else other[0] if other is not None else here
            further = before.rstrip(b"/") + b"/" + name
            if missing or other is not None:
                missing.append(further)
                continue
            try:
                below = os.open(name, STEP_FLAGS, dir_fd=fd)
            except FileNotFoundError:
                missing.append(further)
            except NotADirectoryError:
                link = stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
                other = further, "a symbolic link" if link else "a file"
            else:
                os.close(fd)
                fd, here = below, further
        return Way(missing, other, here, flags_at(fd, b"."))
    finally:
        os.close(fd)


def make_directory(path: bytes, closed: Container[bytes] = ()) -> tuple[int, list[bytes]]:
    """A descriptor of this directory, made with the missing parts of its path (root's, 0755; those that are to be
    ``closed``: 0700), and the parts that were made. No link is followed. Raises OSError."""
    fd, here, made = os.open(b"/", MAKE_FLAGS), b"", list[bytes]()
    try:
        for name in path.split(b"/"):
            if not name:
                continue
            here += b"/" + name
            try:
                below = _enter(fd, name)
            except FileNotFoundError:
                below = _make(fd, name, 0o700 if here in closed else 0o755)
                made.append(here)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        unmake(made)
        raise
    return fd, made


def _enter(fd: int, name: bytes) -> int:
    return syscalls.openat2(fd, name, MAKE_FLAGS, resolve=syscalls.RESOLVE_NO_SYMLINKS)


def _make(fd: int, name: bytes, mode: int) -> int:
    """Make one directory. An account that may write here can replace it: only an empty directory that this process made
    is given away."""
    os.mkdir(name, mode, dir_fd=fd)
    below = _enter(fd, name)
    try:
        if os.fstat(below).st_uid != os.geteuid() or os.listdir(below):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.fchown(below, 0, 0)
        os.fchmod(below, mode)
        os.fsync(fd)
    except BaseException:
        os.close(below)
        raise
    return below


def missing(path: bytes) -> list[bytes]:
    """The missing ones of this path and its parents."""
    out = []
    while path != b"/" and not os.path.lexists(path):
        out.append(path)
        path = os.path.dirname(path)
    return out


def unmake(made: Iterable[bytes]) -> None:
    """Remove what was made and is still empty."""
    for path in sorted(made, key=len, reverse=True):
        try:
            fd, leaf, _ = open_parent(path)
        except OSError:
            continue
        try:
            os.rmdir(leaf, dir_fd=fd)
        except OSError:
            pass
        finally:
            os.close(fd)


def _walk(path: bytes) -> int:
    fd, todo, links = os.open(b"/", STEP_FLAGS), path.split(b"/")[::-1], 0
    try:
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            try:
                below = os.open(name, STEP_FLAGS, dir_fd=fd)
            except NotADirectoryError:
                target = _turn(fd, name)
                links += 1
                if links > LINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                todo += target.split(b"/")[::-1]
                if not target.startswith(b"/"):
                    continue
                below = os.open(b"/", STEP_FLAGS)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


def _turn(fd: int, name: bytes) -> bytes:
    """The target of the link. Raises OSError: ENOTDIR if it is no link, TurnableLink if others than root can replace
    it."""
    try:
        target = os.readlink(name, dir_fd=fd)
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        raise
    st = os.fstat(fd)
    if st.st_uid not in (0, os.geteuid()) or st.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise TurnableLink(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def closed(dirfd: int) -> bool:
    """Whether others cannot enter this directory, or one above it; the roots of mounts count as they are
    mounted.  # S2"""
    root, above, up = os.stat(b"/"), (-1, -1), b"."
    top = root.st_dev, root.st_ino
    while True:
        st = os.stat(up, dir_fd=dirfd)
        here = st.st_dev, st.st_ino
        if not st.st_mode & stat.S_IXOTH or here == above:  # the latter: in a mount that was just taken off
            return True
        if here == top:
            return False
        above, up = here, up + b"/.."


def turners(dirfd: int, leaf_uid: int) -> frozenset[int]:
    """Users besides root who can replace a name in this directory, or in one above it. -1: a group, or all users. In a
    sticky directory only the owner of an entry can; ``leaf_uid`` owns the entry in question.  # R13"""
    top, out = os.stat(b"/"), set[int]()
    fd, below_uid = os.dup(dirfd), leaf_uid
    try:
        while True:
            st = os.fstat(fd)
            sticky = bool(st.st_mode & stat.S_ISVTX)
            out.add(st.st_uid)
            if st.st_mode & stat.S_IWOTH or (st.st_mode & stat.S_IWGRP and st.st_gid != 0):
                out.add(below_uid if sticky else -1)
            if (st.st_dev, st.st_ino) == (top.st_dev, top.st_ino):
                return frozenset(out - {0, os.geteuid()})
            above = os.open(b"..", STEP_FLAGS, dir_fd=fd)
            os.close(fd)
            fd, below_uid = above, st.st_uid
            up = os.fstat(fd)
            if (up.st_dev, up.st_ino) == (st.st_dev, st.st_ino):  # in a mount that was just taken off
                return frozenset(out | {-1})
    finally:
        os.close(fd)


def turners_above(path: bytes) -> frozenset[int]:
    """Users besides root who can replace this path. -1: a group, or all users. Empty if that cannot be found
    out.  # R13"""
    try:
        fd, leaf, _ = open_parent(path)
    except (OSError, ValueError):
        return frozenset()
    try:
        return turners(fd, os.stat(leaf, dir_fd=fd, follow_symlinks=False).st_uid)
    except OSError:
        return frozenset()
    finally:
        os.close(fd)


def enterable(path: bytes) -> bool | None:
    """Whether everybody could reach it by its name now; ``None`` if there is no such place. False also for a
    replaceable link on the way, which could lead to a closed place, and for a path that may hang, which is not
    examined."""
    try:
        if hangs(path):
            return False
        fd, _, straight = open_parent(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return False
    try:
        return straight and not closed(fd)
    except OSError:
        return False
    finally:
        os.close(fd)
