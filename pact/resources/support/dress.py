"""Owner, group, attributes (ACLs, labels) and mode of a file or directory, set on an open descriptor."""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Mapping
from typing import Final

from pact.errors import RestoreError
from pact.limits import XATTRS_MAX
from pact.model import Attrs, decode_name
from pact.resources.support.accounts import group_id, user_id
from pact.resources.support.way import turners

FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
DEFAULTS: Final = {"file": 0o644, "directory": 0o755}
PIECE: Final = 64 << 10
WRITTEN: Final = "somebody has it open for writing, and would go on writing into it"
SET_ID: Final = stat.S_ISUID | stat.S_ISGID
#: The ACLs of XFS as they are stored: what ``system.posix_acl_access`` and ``_default`` say, under a second name.
ACL_AGAIN: Final = b"trusted.SGI_ACL_"
#: Attributes that belong to the file system or the kernel. Those of Lustre say where a content lies, and are made with
#: a file (lustre_idl.h; no Lustre was at hand to try it).
PRIVATE: Final = frozenset(
    {b"security.ima", b"security.evm"}
    | {b"trusted." + name for name in (b"lov", b"lma", b"lmv", b"dmv", b"hsm", b"som", b"link", b"fid")}
)
PRIVATE_BEGINS: Final = (b"trusted.overlay.", b"btrfs.", b"lustre.", ACL_AGAIN)
PROPERTIES: Final = b"btrfs."  # of these a new file gets those of the one that it replaces


def is_private(name: bytes) -> bool:
    """Whether an attribute is not the file's own, but the file system's or the kernel's."""
    return name in PRIVATE or name.startswith(PRIVATE_BEGINS)


def may_dress(dirfd: int, fd: int, target: Attrs) -> bool:
    """Whether owner and mode of this file may be set: nobody but root, or but its owner, could have put it in this
    place. Otherwise an attacker could get another account's file by giving it this name at the right moment. Changes
    that only take rights away are always allowed.  # R13"""
    st = os.fstat(fd)
    if _has_xattrs(fd, target) and ids(target, st) == (st.st_uid, st.st_gid):
        mode = int(target["mode"], 8) if "mode" in target else stat.S_IMODE(st.st_mode)
        if not mode & ~stat.S_IMODE(st.st_mode):
            return True
    # In a sticky directory a file's owner need not be the one who put it there: a name moves without rights to the file
    leaf_uid = -1 if stat.S_ISREG(st.st_mode) else st.st_uid
    return turners(dirfd, leaf_uid) <= {st.st_uid}


def take_over(fd: int, target: Attrs, actual: Attrs | None) -> str:
    """Before a file gets power in place (from a user's it becomes root's or another's, or set-uid, or gets
    capabilities): take away all rights to write it, ask the kernel whether somebody has it open for writing, or mapped
    so, and read once more what is in it. Who has it open would go on writing; who had it may have written since it was
    seen. Returns why not, with the file as it was. If that was found only after its rights had been taken away, it has
    no such power of its own any more: a write takes that away, and one in between found nothing to take.  # R13"""
    st = os.fstat(fd)
    if not empowers(st, target):
        return ""
    if being_written(fd):  # asked before anything is changed: a kill after that would leave it root's, and him writing
        return WRITTEN
    mode = stat.S_IMODE(st.st_mode)
    os.fchown(fd, 0, 0)
    os.fchmod(fd, mode & ~(SET_ID | 0o222))
    why = ""
    try:
        if being_written(fd):
            why = WRITTEN
        elif "sha256" in target and actual is not None and not _holds(fd, actual):
            why = "it was changed again at the last moment"
    except OSError as exc:
        why = f"it cannot be read again: {os.strerror(exc.errno or 0).lower()}"
    if why:
        os.fchown(fd, st.st_uid, st.st_gid)
        os.fchmod(fd, mode & ~SET_ID)
        if mode & SET_ID:
            why += "; it is not set-uid or set-gid any more"
    return why


def _holds(fd: int, actual: Attrs) -> bool:
    """Whether it has the content that was seen."""
    left, sha = os.fstat(fd).st_size, hashlib.sha256()
    if left != actual.get("size", left):
        return False
    os.lseek(fd, 0, os.SEEK_SET)
    while piece := os.read(fd, min(PIECE, max(left, 1))):
        sha.update(piece)
        left -= len(piece)
    return sha.hexdigest() == str(actual["sha256"])


def empowers(st: os.stat_result, target: Attrs) -> bool:
    """Whether a user's file becomes root's or another's, or set-uid, or gets capabilities."""
    uid, mode = ids(target, st)[0], int(target.get("mode", "0"), 8)
    capable = "security.capability" in target.get("xattrs", {})
    return bool(capable or mode & SET_ID or uid != st.st_uid != 0)


def being_written(fd: int) -> bool:
    """Whether a process has the file open for writing, or mapped so. False where leases cannot tell."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _has_xattrs(fd: int, target: Attrs) -> bool:
    """Whether the attributes are as wanted, or not mentioned."""
    if "xattrs" not in target:
        return True
    wanted = _wanted(target)
    try:
        names = {os.fsencode(n) for n in os.listxattr(fd)}
        own = {n for n in names if not is_private(n)}
        return own == wanted.keys() and all(os.getxattr(fd, n) == v for n, v in wanted.items())
    except OSError:
        return False


def ids(target: Attrs, st: os.stat_result | None) -> tuple[int, int]:
    """Numeric owner and group: as declared, else as before, else root's. Raises RestoreError for an unknown name."""
    uid = user_id(target["owner"]) if "owner" in target else st.st_uid if st is not None else 0
    gid = group_id(target["group"]) if "group" in target else st.st_gid if st is not None else 0
    if uid is None or gid is None:
        unknown = target["owner"] if uid is None else target["group"]
        raise RestoreError(f"there is no such user or group here: {unknown}")
    return uid, gid


def dress(fd: int, target: Attrs, st: os.stat_result | None, dirfd: int = -1, old: bytes = b"") -> None:
    """Set owner, group, extended attributes (ACLs, labels), then mode, on an open descriptor.

    What the target does not name stays as in ``st`` (the present file).
    """
    uid, gid = ids(target, st)
    now = os.fstat(fd)
    if (now.st_uid, now.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)
    wanted = _wanted(target)
    if "xattrs" not in target and st is not None and old:
        wanted = _present_xattrs(dirfd, old)
    _set_xattrs(fd, wanted, exact="xattrs" in target)
    if "mode" in target:
        mode = int(target["mode"], 8)
    else:
        mode = stat.S_IMODE(st.st_mode) if st is not None else DEFAULTS[target["type"]]
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)


def own_xattrs(xattrs: Mapping[str, str]) -> dict[str, str]:
    """A file's own among these (name -> base64): a journal of before has the ACLs of XFS under both of their names."""
    return {k: v for k, v in xattrs.items() if not is_private(decode_name(k))}


def _wanted(target: Attrs) -> dict[bytes, bytes]:
    return {decode_name(k): base64.b64decode(v) for k, v in own_xattrs(target.get("xattrs", {})).items()}


def _present_xattrs(dirfd: int, leaf: bytes) -> dict[bytes, bytes]:
    """The attributes of the replaced file; none if there are excessively many.  # S6"""
    fd = os.open(leaf, FILE_FLAGS, dir_fd=dirfd)
    try:
        found, size = {}, 0
        for name in map(os.fsencode, os.listxattr(fd)):
            if is_private(name) and not name.startswith(PROPERTIES):
                continue
            found[name] = os.getxattr(fd, name)
            size += len(name) + len(found[name])
            if size > XATTRS_MAX:
                return {}
        return found
    except OSError:
        return {}
    finally:
        os.close(fd)


def _set_xattrs(fd: int, wanted: dict[bytes, bytes], *, exact: bool) -> None:
    try:
        present = {os.fsencode(n) for n in os.listxattr(fd)}
    except OSError:
        present = set()
    if exact:
        for name in present:
            if name not in wanted and not is_private(name):
                try:
                    os.removexattr(fd, name)
                except OSError as exc:
                    if exc.errno != errno.ENODATA:  # it went with another one, or somebody else has removed it
                        raise
    for name, value in wanted.items():
        if name not in present or os.getxattr(fd, name) != value:
            os.setxattr(fd, name, value)
