"""The way to a file: its directory as a descriptor, reached without trusting links that somebody else can turn.

Who owns a directory on the way may put a symbolic link in its place, to somewhere that only root can enter. Such a link
is not followed; one in a directory that only root can write is the system's own (``/lib``, ``/var/run``).
What is read is read through the descriptor, and whether others could get at it is asked of the same one.  # S2
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Final

from pact._fast import syscalls
from pact.observe.mountinfo import parse_mountinfo
from pact.observe.places import LINKS_MAX, RemotePlaces, may_hang

#: So old may the mount table be that says what may hang, for answers to people.
PLACES_FRESH_S: Final = 0.05
STEP_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TurnableLink(OSError):
    """A symbolic link on the way stands where others than root may put one: it is not followed."""


_places: tuple[float, RemotePlaces] = (float("-inf"), RemotePlaces())


def hangs(path: bytes) -> bool:
    """It lies on a file system that another machine or process answers for: the loop does not touch it."""
    global _places
    now = time.monotonic()
    if now - _places[0] > PLACES_FRESH_S:
        with open("/proc/self/mountinfo", "rb") as f:
            _places = now, RemotePlaces((m.mount_point, m.fstype) for m in parse_mountinfo(f.read()))
    return may_hang(path, _places[1])


def open_parent(path: bytes) -> tuple[int, bytes, bool]:
    """A descriptor (``O_PATH``) of the directory that holds ``path``, the name in it, and whether no link was on the
    way. Raises OSError; TurnableLink for a link that somebody else can turn."""
    parent, leaf = os.path.split(path)
    try:
        flags = STEP_FLAGS & ~os.O_NOFOLLOW  # with it a link at the end would be no directory, and not told apart
        fd = syscalls.openat2(syscalls.AT_FDCWD, parent, flags, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
        return _walk(parent), leaf or b".", False
    return fd, leaf or b".", True


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
    """Where the link leads. Raises OSError: ENOTDIR if it is none, TurnableLink if not only root can turn it."""
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
    """Others cannot enter this directory, or one above it; the roots of mounts count as they are mounted.  # S2"""
    top = os.stat(b"/")
    fd = os.dup(dirfd)
    try:
        while True:
            st = os.fstat(fd)
            if not st.st_mode & stat.S_IXOTH:
                return True
            if (st.st_dev, st.st_ino) == (top.st_dev, top.st_ino):
                return False
            above = os.open(b"..", STEP_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = above
            up = os.fstat(fd)
            if (up.st_dev, up.st_ino) == (st.st_dev, st.st_ino):  # of a mount that was just taken off
                return True
    finally:
        os.close(fd)


def enterable(path: bytes) -> bool | None:
    """Anybody could get at it by its name now; ``None`` if there is no such place. A link on the way can be turned to a
    place that is closed, and what may hang is not looked at: both are no."""
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
