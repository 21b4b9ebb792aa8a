"""Flags that are taken off so that something else can be done, on record until they are set again or replaced.  # R11

A directory that is immutable is opened for the steps below it. If a kill comes in between and those steps are never
done, it must not stay open.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pact._fast import syscalls
from pact.model import decode_name, encode_name
from pact.resources.support.flags import flags_at, set_flags_at
from pact.resources.support.loose import BYTES_MAX, DURABLE, LASTING, LOOSE, TAKEN_BACK_BY

UNSEALED: Final = "unsealed"
DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def begin(path: bytes, letters: str) -> int:
    """These flags of it are about to be taken off; ``LOOSE.end`` says that they are set again. Raises OSError."""
    inode = os.lstat(path).st_ino
    return LOOSE.begin(UNSEALED, BYTES_MAX // 2, path=encode_name(path), letters=letters, inode=inode)


def flags_of(path: bytes) -> str:
    """The flags of a file or directory; none if it cannot be reached without following a link."""
    parent, leaf = os.path.split(path)
    try:
        dirfd = syscalls.openat2(syscalls.AT_FDCWD, parent, DIR_FLAGS, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    except OSError:
        return ""
    try:
        return flags_at(dirfd, leaf)
    finally:
        os.close(dirfd)


def _taken_back(end: Mapping[str, Any]) -> Iterator[str]:
    path, letters = decode_name(end["path"]), str(end["letters"])
    parent, leaf = os.path.split(path)
    try:
        dirfd = syscalls.openat2(syscalls.AT_FDCWD, parent, DIR_FLAGS, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        return
    try:
        st = os.stat(leaf, dir_fd=dirfd, follow_symlinks=False)
        if st.st_ino == end["inode"] and not flags_at(dirfd, leaf):
            set_flags_at(dirfd, leaf, letters)
            yield f"{end['path']} has its flags ({letters}) again: what they were taken off for was cut off"
    except FileNotFoundError:
        return
    finally:
        os.close(dirfd)


TAKEN_BACK_BY[UNSEALED] = _taken_back
LASTING.add(UNSEALED)
DURABLE.add(UNSEALED)
