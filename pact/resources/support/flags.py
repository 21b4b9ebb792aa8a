"""Inode flags that stop even root: immutable (``i``) and append-only (``a``), as chattr(1) sets them.

A file system without flags has none set. If a declaration names the flags, they are cleared for a change and set again
afterwards; if it does not, a person must clear them.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from typing import Final

from pact.model import Attrs

GETFLAGS: Final = 0x80086601  # FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of 64-bit x86 and ARM
SETFLAGS: Final = 0x40086602
BITS: Final = {"a": 0x20, "i": 0x10}
ALL: Final = 0x30
WORDS: Final = {"a": "append-only", "i": "immutable"}
OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def parse_flags(value: object) -> str:
    """The letters, sorted. Raises ValueError unless the text has only these letters, each at most once."""
    if not isinstance(value, str) or set(value) - set(BITS) or len(set(value)) != len(value):
        raise ValueError('flags must be "i" (immutable), "a" (append-only), "ai" or "" (neither)')
    return "".join(sorted(value))


def _read(fd: int) -> int:
    room = bytearray(8)
    fcntl.ioctl(fd, GETFLAGS, room)
    return int(struct.unpack_from("=I", room)[0])


def get_flags(fd: int) -> str:
    """The letters of the flags that are set; none if the file system has no flags or does not say."""
    try:
        bits = _read(fd)
    except OSError:
        return ""
    return letters_of(bits)


def letters_of(bits: int) -> str:
    """The letters of these inode flags."""
    return "".join(letter for letter, bit in BITS.items() if bits & bit) if bits & ALL else ""


def flags_at(dirfd: int, leaf: bytes) -> str:
    """The flags of a regular file or directory with this name; none if it cannot be opened. Nothing else is opened."""
    try:
        mode = os.stat(leaf, dir_fd=dirfd, follow_symlinks=False).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return ""
        fd = os.open(leaf, OPEN, dir_fd=dirfd)
    except OSError:
        return ""
    try:
        return get_flags(fd)
    finally:
        os.close(fd)


def set_flags(fd: int, letters: str) -> None:
    """Set exactly these two flags; others stay. Raises OSError if the file system has none, unless none are wanted."""
    try:
        before = _read(fd)
    except OSError:
        if not letters:
            return
        raise
    after = before & ~sum(BITS.values()) | sum(BITS[c] for c in letters)
    if after != before:
        fcntl.ioctl(fd, SETFLAGS, struct.pack("=II", after, 0))


def set_flags_at(dirfd: int, leaf: bytes, letters: str) -> None:
    fd = os.open(leaf, OPEN, dir_fd=dirfd)
    try:
        set_flags(fd, letters)
    finally:
        os.close(fd)


def said(letters: str) -> str:
    """``immutable (chattr -i)``."""
    return f"{' and '.join(WORDS[c] for c in letters)} (chattr -{letters})"


def stuck(actual: Attrs | None, target: Attrs | None) -> str:
    """Why it cannot be changed: it has flags that its declaration does not mention. ``""`` if it can."""
    letters = "" if actual is None else actual.get("flags", "")
    if not letters or (target is not None and "flags" in target):
        return ""
    return f"it is {said(letters)}, and its declaration says nothing about flags"
