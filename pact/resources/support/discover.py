"""Walking the file system for ``adopt``: what matches a pattern, what is skipped, and why.

``**`` matches any depth, and ``X/**`` the directory X too; ``*`` and ``?`` match one component. Symbolic links are not
followed; mounts of other file systems are entered only if they are local and do not belong to a container or
automounter. What a stateless node lies on, or its /etc, is of the same type as what a container lies on: it is entered
if the pattern begins there.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase, translate
from functools import lru_cache
from itertools import chain
from typing import Final

from pact.model import encode_name
from pact.observe.mountinfo import MountEntry, is_remote, read_mounts
from pact.resources.base import path_of
from pact.resources.support.fstab import FOREIGN_TYPES
from pact.resources.support.litter import PASSED_OVER, is_litter
from pact.resources.support.patterns import WILD, compile_pattern

NAMES_MAX: Final = 1_000_000
LAYERS: Final = ("overlay", "squashfs")
LITTER: Final = "a temporary name of an editor, package or configuration manager"


def discover_files(pattern: str, passed: dict[str, int]) -> Iterator[str]:
    """Names of existing paths that match. ``passed`` counts skipped ones, by reason."""
    if is_literal(pattern):
        yield encode_name(path_of(pattern))
        return
    raw = pattern.encode("utf-8", "surrogateescape")
    if not raw.startswith(b"/"):
        raise ValueError(f"{pattern!r} is not an absolute path pattern")
    matcher = compile_pattern(raw)
    first = WILD.search(raw)
    assert first is not None
    start = raw[: first.start()].rpartition(b"/")[0] or b"/"
    foreign = foreign_mounts(read_mounts(), (start,))
    # The directory before "/**" matches too: if it is removed, it comes back as it was.
    itself = compile_pattern(raw[: -len(b"/**")]) if raw.endswith(b"/**") and raw != b"/**" else None
    walk = _walk(start, b"**" in raw, raw.count(b"/"), foreign, passed)
    for path in chain(_a_directory(start, foreign), walk):
        if not matcher.match(path) and (itself is None or not itself.match(path) or not _is_directory(path)):
            continue
        if passed_over(path):
            why = _why_passed_over(path)
            passed[why] = passed.get(why, 0) + 1
            continue
        if is_litter(path):
            passed[LITTER] = passed.get(LITTER, 0) + 1
            continue
        yield encode_name(path)


def _a_directory(path: bytes, foreign: set[bytes]) -> Iterator[bytes]:
    """The directory where a walk begins, unless the walk may not enter it."""
    if path not in foreign and path != b"/" and _is_directory(path):
        yield path


def _is_directory(path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


class Trail:
    """A path pattern for following: where it begins, which directories lead to its matches, and which paths match.
    Paths that a walk skips do not match.
    """

    def __init__(self, pattern: str) -> None:
        """Raises ValueError for a text that is not a pattern of absolute paths."""
        raw = pattern.encode("utf-8", "surrogateescape")
        first = WILD.search(raw)
        if not raw.startswith(b"/"):
            raise ValueError(f"{pattern!r} is not an absolute path pattern")
        self.base = (raw[: first.start()] if first is not None else raw).rpartition(b"/")[0] or b"/"
        if self.base != b"/":
            path_of(encode_name(self.base))
        self._matcher = compile_pattern(raw)
        above, deep, _ = raw.partition(b"**")
        self._deep = bool(deep)
        parts = above.split(b"/")[1:]
        self._parts = [compile_pattern(p) for p in (parts[:-1] if deep else parts)]  # the last part is cut off

    def means(self, path: bytes) -> bool:
        return self._matcher.match(path) is not None and not passed_over(path) and not is_litter(path)

    def leads(self, directory: bytes) -> bool:
        """Whether something in this directory, or below it, may match."""
        if directory == b"/":
            return True
        names = directory.split(b"/")[1:]
        if len(names) >= len(self._parts) and not self._deep:
            return False
        return all(p.match(n) for p, n in zip(self._parts, names, strict=False))


@lru_cache(maxsize=1024)
def trail(pattern: str) -> Trail:
    """Raises ValueError."""
    return Trail(pattern)


@lru_cache(maxsize=64)
def _passed_over() -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{translate(p)})" for names in PASSED_OVER.values() for p in names))


def passed_over(path: bytes) -> bool:
    """Whether a pattern does not take it (``litter.PASSED_OVER``)."""
    return _passed_over().match(path.decode("utf-8", "replace")) is not None


def _why_passed_over(path: bytes) -> str:
    text = path.decode("utf-8", "replace")
    return next(why for why, names in PASSED_OVER.items() if any(fnmatchcase(text, n) for n in names))


def is_literal(pattern: str) -> bool:
    """Whether it is one path: it has no wildcard, or a thing with exactly this name exists."""
    if not WILD.search(pattern.encode("utf-8", "surrogateescape")):
        return True
    try:
        return os.path.lexists(path_of(pattern))
    except ValueError:
        return False


def _walk(top: bytes, deep: bool, depth: int, foreign: set[bytes], passed: dict[str, int]) -> Iterator[bytes]:
    stack, count = [top], 0
    while stack:
        here = stack.pop()
        if here in foreign:
            passed["a container's, automounter's or network mount"] = (
                passed.get("a container's, automounter's or network mount", 0) + 1
            )
            continue
        try:
            with os.scandir(here) as it:
                entries = sorted(it, key=lambda e: e.name)
        except NotADirectoryError:
            continue
        except OSError:
            passed["unreadable directory"] = passed.get("unreadable directory", 0) + 1
            continue
        below: list[bytes] = []
        for entry in entries:
            count += 1
            if count > NAMES_MAX:
                passed[f"beyond {NAMES_MAX} names"] = 1
                return
            path = here.rstrip(b"/") + b"/" + entry.name
            is_dir = entry.is_dir(follow_symlinks=False)
            if is_dir and (deep or path.count(b"/") < depth):
                below.append(path)
            if is_dir or entry.is_symlink() or entry.is_file(follow_symlinks=False):
                yield path
            else:
                passed["a socket, device or fifo"] = passed.get("a socket, device or fifo", 0) + 1
        stack.extend(reversed(below))


def foreign_mounts(mounts: Iterable[MountEntry], begins: Iterable[bytes]) -> set[bytes]:
    """Mount points that a walk does not enter, if walks begin at ``begins``. A layered file system in which one begins
    is no container's, in any place where it is mounted."""
    visible = {m.mount_point: m for m in mounts}.values()  # the last one on a point
    inside = tuple(b.rstrip(b"/") + b"/" for b in begins)
    own = {
        (m.major, m.minor)
        for m in visible
        if m.fstype in LAYERS and any(b.startswith(m.mount_point.rstrip(b"/") + b"/") for b in inside)
    }
    return {
        m.mount_point
        for m in visible
        if is_remote(m.fstype)
        or m.fstype in ("proc", "sysfs", "devtmpfs")
        or (m.fstype in FOREIGN_TYPES and (m.major, m.minor) not in own)
    }
