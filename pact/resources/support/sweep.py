"""What a kill left beside files: unfinished new files are removed; a content that is in no store is kept.  # R4, R6

A file is exchanged with its replacement and only then examined once more. A kill in between leaves the old file under a
temporary name, and if it was written at the last moment that is the only copy.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from typing import Final

from pact._fast import syscalls
from pact.core.plan import Step
from pact.model import Attrs, decode_name, split_id
from pact.resources.base import Blobs
from pact.resources.support.dress import FILE_FLAGS

STALE: Final = re.compile(rb"\.pact-[0-9a-f]{16}\Z")
#: A longer file is pact's own only if something in this plan is as long.
READ_MAX: Final = 4 << 20
#: Whatever the sizes in this plan: a user may have made those files as large as possible.
READ_AT_MOST: Final = 256 << 20
KEPT: Final = b"kept"


def sweep(steps: Sequence[Step], blobs: Blobs) -> dict[bytes, list[bytes]]:
    """Remove temporary files beside the files of this plan. Those whose content is kept nowhere get a name that stays;
    returns these, by directory. No symbolic link is followed."""
    beside: dict[bytes, list[Step]] = {}
    for step in steps:
        if step.id.startswith("file:"):
            beside.setdefault(os.path.dirname(decode_name(split_id(step.id)[1])), []).append(step)
    kept: dict[bytes, list[bytes]] = {}
    for parent, own in beside.items():
        try:
            fd = syscalls.openat2(
                syscalls.AT_FDCWD,
                parent,
                os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC,
                resolve=syscalls.RESOLVE_NO_SYMLINKS,
            )
        except OSError:
            continue
        try:
            names = [n for n in map(os.fsencode, os.listdir(fd)) if STALE.match(n)]
            values = [v for s in own for v in (s.target, s.actual) if v is not None] if names else []
            _, stays = _each_swept(fd, names, values, blobs)
            if stays:
                kept[parent] = stays
        except OSError:
            continue
        finally:
            os.close(fd)
    return kept


def sweep_directory(
    fd: int, values: Sequence[Attrs], blobs: Blobs, still: Callable[[], bool]
) -> tuple[bool, list[bytes]]:
    """Remove temporary files from one directory. ``still()``, after they are listed, says whether what is listed is
    nobody's. Returns whether nothing is left, and the names of what was kept. Raises OSError if it cannot be listed."""
    names = [n for n in map(os.fsencode, os.listdir(fd)) if STALE.match(n)]
    if not still():
        return False, []
    return _each_swept(fd, names, values, blobs)


def _each_swept(fd: int, names: Sequence[bytes], values: Sequence[Attrs], blobs: Blobs) -> tuple[bool, list[bytes]]:
    """Whether all are gone, and the names of what was kept. One that cannot be removed, or read, does not stop the
    others: its owner may have arranged that."""
    gone, kept = True, list[bytes]()
    for name in names:
        try:
            if not _swept(fd, name, values, blobs):
                kept.append(_keep(fd, name))
        except FileNotFoundError:
            continue  # somebody else has removed it
        except OSError as exc:
            gone = False
            if exc.errno in (errno.EPERM, errno.EROFS):
                break  # the directory is immutable, or its file system read-only: thousands may be in it
    return gone, kept


def _swept(dirfd: int, name: bytes, values: Sequence[Attrs], blobs: Blobs) -> bool:
    """Whether it was removed, or is harmless and still there. False if it is the only copy of a content."""
    st = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    if stat.S_ISDIR(st.st_mode):
        try:
            os.rmdir(name, dir_fd=dirfd)
        except OSError:
            return False
        return True
    if stat.S_ISLNK(st.st_mode):
        target = os.readlink(name, dir_fd=dirfd)
        known = any("target" in v and decode_name(v["target"]) == target for v in values)
    else:
        known = stat.S_ISREG(st.st_mode) and _is_known(dirfd, name, values, blobs)
    if known:
        os.unlink(name, dir_fd=dirfd)
    return known


def _is_known(dirfd: int, name: bytes, values: Sequence[Attrs], blobs: Blobs) -> bool:
    """Whether its content is in the store, or is the beginning of one that this plan was about to write. One content is
    in memory at a time, and a file that is longer than anything that pact writes is not read."""
    with open(os.open(name, FILE_FLAGS, dir_fd=dirfd), "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size > READ_MAX and size > min(max((v.get("size", 0) for v in values), default=0), READ_AT_MOST):
            return False
        content = f.read(size)
    if not content or blobs(hashlib.sha256(content).hexdigest()) is not None:
        return True
    longer = dict.fromkeys(v["sha256"] for v in values if v.get("size", 0) > len(content) and "sha256" in v)
    return any(whole is not None and whole.startswith(content) for whole in map(blobs, longer))


def _keep(dirfd: int, name: bytes) -> bytes:
    try:
        syscalls.renameat2(dirfd, name, dirfd, KEPT + name, syscalls.RENAME_NOREPLACE)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        # The file system has no such flag; the name is random.
        os.rename(name, KEPT + name, src_dir_fd=dirfd, dst_dir_fd=dirfd)
    return KEPT + name
