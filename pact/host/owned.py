"""Files that the daemons trust and run must belong to root, or to the daemon's account, and so must the way to them.

An account that may write a configuration, a key, a declared file, a hook or a journal, or a directory above one of
them, can replace it: root would carry out that account's orders. One rule for all of them: every part of the path, and
of the targets of its links, belongs to root or to this account, and nobody else may write it. A sticky directory
(``/tmp``) may be on the way: only the owner of an entry can replace it. A POSIX ACL that lets others write shows in the
group's bit of the mode, so checking modes is enough.  # S9

By induction from ``/`` nobody else can change the answer during the check: nothing is checked below a part that others
could replace.
"""

from __future__ import annotations

import errno
import functools
import grp
import os
import pwd
import stat
from collections.abc import Iterable
from typing import Final

from pact.errors import ConfigError

LINKS_MAX: Final = 40
WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
UID_MAP: Final = "/proc/self/uid_map"
ALL_UIDS: Final = (1 << 32) - 1


class NotOurs(ConfigError):
    """Other accounts could have written it, or could replace it."""


def require(path: str, what: str, *, missing_ok: bool = False, sticky_ok: bool = False) -> None:
    """Raise NotOurs unless only root and this account can change ``path`` or replace a part of the way to it.

    ``what`` it is, for people. ``missing_ok``: a missing file passes if its directory does; its creator checks again.
    ``sticky_ok``: it may itself be a directory in which everybody has entries. Readers call this after reading: then
    the checked file is the one that they have read.
    """
    allowed, here, links = trusted_uids(), "/", 0
    todo = os.path.join(os.getcwd(), path).split("/")[::-1]
    seen = _judged(here, what, allowed)
    try:
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                here = os.path.dirname(here)
                seen = _judged(here, what, allowed)
                continue
            further = os.path.join(here, name)
            seen = _judged(further, what, allowed)
            if not stat.S_ISLNK(seen.st_mode):
                here = further
                continue
            links += 1
            if links > LINKS_MAX:
                raise NotOurs(f"{what} {path}: too many symbolic links")
            target = os.readlink(further)
            here = "/" if target.startswith("/") else here
            todo += target.split("/")[::-1]
        there = os.stat(path)
    except FileNotFoundError:
        if missing_ok:
            return
        raise NotOurs(f"{what} {path}: no such file or directory") from None
    except OSError as exc:
        hint = f"{_account()}, who runs this, may not enter it" if isinstance(exc, PermissionError) else ""
        raise NotOurs(f"{what} {path}: {os.strerror(exc.errno or 0)}", hint) from None
    # A link of /proc that does not lead to the place that it shows.
    if (there.st_dev, there.st_ino) != (seen.st_dev, seen.st_ino):
        raise NotOurs(f"{what} {path}: it does not lead where its links say", "name the place itself")
    if not sticky_ok:
        _require_closed(here, seen, what, sticky_ok=False)


def read_regular(path: str, most: int = -1) -> bytes:
    """What a regular file holds, at most ``most`` bytes of it. Whatever others may have put in its place is not opened:
    a FIFO would block for ever, a device may act. Raises OSError.  # S2"""
    held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = os.fstat(held).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        with open(f"/proc/self/fd/{held}", "rb") as file:
            return file.read(most)
    finally:
        os.close(held)


def require_within(directory: str, what: str) -> None:
    """Check the directory, and each entry of it. Raises NotOurs, and OSError if it cannot be listed."""
    require(directory, what)
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):  # nothing is read from a socket here
            require(path, what, missing_ok=True)


def make_directory(path: str, what: str, mode: int) -> None:
    """Make it with its missing parents, whatever the umask, where nobody else can replace a part of the way. Raises
    NotOurs, and OSError if it cannot be made."""
    require(path, what, missing_ok=True, sticky_ok=True)
    missing, above = list[str](), os.path.join(os.getcwd(), path)
    while not os.path.lexists(above):
        missing.append(above)
        above = os.path.dirname(above)
    for each in reversed(missing):
        try:
            os.mkdir(each, 0o700)
        except FileExistsError:
            continue  # another process was faster: the caller checks its owner
        os.chmod(each, mode)


def trusted_uids() -> frozenset[int]:
    """Root and this account; in a user namespace without the machine's root also the owner of root's files there."""
    return frozenset({0, os.geteuid(), *_machines_root()})


@functools.cache
def _machines_root() -> tuple[int, ...]:
    try:
        with open(UID_MAP) as f:
            ranges = [(int(first), int(count)) for first, _, count in map(str.split, f)]
        with open("/proc/sys/kernel/overflowuid") as f:
            nobody = int(f.read())
    except (OSError, ValueError):
        return ()
    whole = sum(count for _, count in ranges) >= ALL_UIDS
    mapped = any(first <= nobody < first + count for first, count in ranges)
    return () if whole or mapped else (nobody,)


def _judged(path: str, what: str, allowed: Iterable[int]) -> os.stat_result:
    """The status of one part of the path, which may be a sticky directory. Raises NotOurs, and OSError."""
    seen = os.lstat(path)
    if seen.st_uid not in allowed:
        raise NotOurs(
            f"{what}: {path} belongs to {_user(seen.st_uid)}, who could put another in its place",
            f"chown {_account()} {path}, and look at what is there now: it and all above it must belong to {_us()}",
        )
    _require_closed(path, seen, what, sticky_ok=True)
    return seen


def _require_closed(path: str, seen: os.stat_result, what: str, *, sticky_ok: bool) -> None:
    if stat.S_ISLNK(seen.st_mode) or not seen.st_mode & WRITE:
        return
    if sticky_ok and stat.S_ISDIR(seen.st_mode) and seen.st_mode & stat.S_ISVTX:
        return
    who = (
        "everybody"
        if seen.st_mode & stat.S_IWOTH
        else ("others, by its ACL," if _has_acl(path) else f"the group {_group(seen.st_gid)}")
    )
    change = f"setfacl -b {path} and chmod go-w {path}" if _has_acl(path) else f"chmod go-w {path}"
    raise NotOurs(
        f"{what}: {path} may be written by {who} (mode {stat.S_IMODE(seen.st_mode):04o})",
        f"{change}, and look at what is there now: only {_us()} may write it and all above it",
    )


def _has_acl(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _account() -> str:
    return _user(os.geteuid()).partition(" (")[0].removeprefix("uid ")


def _us() -> str:
    return "root" if os.geteuid() == 0 else f"root or {_account()}"
