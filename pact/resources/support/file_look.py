"""The observation of a file: its attributes, its content's digest, and a signature that shows whether it has
changed."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import stat
import struct
import time
from typing import TYPE_CHECKING, Final

from pact._fast import syscalls
from pact.limits import XATTRS_MAX
from pact.model import Attrs, Observation, Unreadable, encode_name
from pact.resources.base import Keep
from pact.resources.support.accounts import group_name, user_name
from pact.resources.support.dress import is_private
from pact.resources.support.flags import flags_at, get_flags, letters_of
from pact.resources.support.reading import SMALL, read_whole
from pact.resources.support.way import open_parent, open_regular

if TYPE_CHECKING:
    from pact._fast.syscalls import Small

TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
}
SIGNATURE: Final = struct.Struct("=QQIIIQqq")
#: A status this young is not reliable: a later write may have left the same times. Neither is one of a file system that
#: counts whole seconds.
FRESH_NS: Final = 20_000_000


def metadata(st: os.stat_result) -> Attrs:
    """The attributes in its status."""
    return _metadata(st.st_mode, st.st_uid, st.st_gid)


def _metadata(mode: int, uid: int, gid: int) -> Attrs:
    return {
        "type": TYPES.get(stat.S_IFMT(mode), "unknown"),
        "mode": f"{stat.S_IMODE(mode):04o}",
        "owner": user_name(uid),
        "group": group_name(gid),
    }


def glance(path: bytes) -> Attrs | None:
    """A short description, without content. A link that other accounts can replace is not followed."""
    try:
        above, leaf, _ = open_parent(path)
    except (OSError, ValueError):
        return None
    try:
        st = os.stat(leaf, dir_fd=above, follow_symlinks=False)
    except OSError:
        return None
    finally:
        os.close(above)
    out = metadata(st)
    return {**out, "size": st.st_size} if out["type"] == "file" else out


def look_at(
    name: str, dirfd: int, leaf: bytes, keep: Keep | None, signed: dict[str, bytes] | None = None
) -> Observation:
    """Observe the thing with this name in an open directory. Raises OSError."""
    small = syscalls.look_small(dirfd, leaf, SMALL)
    if small is not None:
        return _small(name, small, keep, signed)
    st = os.stat(leaf, dir_fd=dirfd, follow_symlinks=False)
    if stat.S_ISREG(st.st_mode):
        return _regular(name, dirfd, leaf, keep, signed)
    attrs = metadata(st)
    if stat.S_ISLNK(st.st_mode):
        attrs["target"] = encode_name(os.readlink(leaf, dir_fd=dirfd))
        del attrs["mode"]
    found = read_xattrs(b"/proc/self/fd/%d/%b" % (dirfd, leaf))
    if isinstance(found, str):
        return Unreadable(found)
    attrs["xattrs"] = found
    if stat.S_ISDIR(st.st_mode) and (letters := flags_at(dirfd, leaf)):
        attrs["flags"] = letters
    return attrs


def _small(name: str, looked: Small, keep: Keep | None, signed: dict[str, bytes] | None) -> Attrs:
    """As ``_regular``, of what the kernel has told in one turn."""
    mode, uid, gid, content, bits, same, (dev, ino, size, mtime_ns, ctime_ns), xattrs = looked
    attrs, digest = _metadata(mode, uid, gid), hashlib.sha256(content).hexdigest()
    attrs["sha256"], attrs["size"] = digest, len(content)
    attrs["xattrs"] = {encode_name(n): base64.b64encode(raw).decode() for n, raw in sorted(xattrs) if not is_private(n)}
    if letters := letters_of(bits):
        attrs["flags"] = letters
    if signed is not None and same and _is_old(ctime_ns):
        signed[name] = SIGNATURE.pack(dev, ino, mode, uid, gid, size, mtime_ns, ctime_ns)
    if keep is not None:
        keep.take(f"file:{name}", digest, len(content), content if keep.hold and len(content) <= keep.limit else None)
    return attrs


def _is_old(ctime_ns: int) -> bool:
    """Whether a status with this time of change is reliable."""
    return time.time_ns() - ctime_ns > FRESH_NS and ctime_ns % 1_000_000_000 != 0


def signed_as(st: os.stat_result) -> bytes:
    """Every part of a file's status that changes with the file: content, owner, mode, attributes, flags."""
    return SIGNATURE.pack(
        st.st_dev, st.st_ino, st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns, st.st_ctime_ns
    )


def _regular(
    name: str, dirfd: int, leaf: bytes, keep: Keep | None, signed: dict[str, bytes] | None = None
) -> Observation:
    try:
        fd = open_regular(dirfd, leaf)
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            return Unreadable("file: replaced while it was read")
        raise
    try:
        st = os.fstat(fd)
        attrs = metadata(st)
        whole = read_whole(fd, st, keep.limit if keep is not None and keep.hold else 0)
        if isinstance(whole, str):
            return Unreadable(whole)
        content, digest, size = whole
        attrs["sha256"], attrs["size"] = digest, size
        found = read_xattrs(fd)
        if isinstance(found, str):
            return Unreadable(found)
        attrs["xattrs"] = found
        if letters := get_flags(fd):
            attrs["flags"] = letters
        if signed is not None and _is_old(st.st_ctime_ns):
            before = signed_as(st)
            if signed_as(os.fstat(fd)) == before:
                signed[name] = before
    finally:
        os.close(fd)
    if keep is not None:
        keep.take(f"file:{name}", digest, size, content)
    return attrs


def read_xattrs(target: bytes | int) -> dict[str, str] | str:
    """The file's own extended attributes, without private ones of file systems. For more than ``XATTRS_MAX`` bytes, the
    reason why not: some file systems let a file's owner give it a hundred megabytes.  # S6
    """
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target) if follow else os.listxattr(target, follow_symlinks=False)
        if not names:
            return {}
        out, size = {}, 0
        for name in sorted(names):
            if not is_private(os.fsencode(name)):
                raw = os.getxattr(target, name) if follow else os.getxattr(target, name, follow_symlinks=False)
                size += len(name) + len(raw)
                if size > XATTRS_MAX:
                    return f"file: its extended attributes have more than {XATTRS_MAX >> 10} KiB"
                out[encode_name(name)] = base64.b64encode(raw).decode()
        return out
    except OSError as exc:
        if exc.errno in (errno.ENOTSUP, errno.ENODATA):  # none here, or one was just removed
            return {}
        raise
