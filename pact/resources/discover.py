"""Walking the file system for ``adopt``: what matches a pattern, what is passed over, and why.

``**`` matches any depth, ``*`` and ``?`` one component. Symbolic links are not followed; other file systems' mounts
below are entered only where they are local and not a container's or automounter's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final

from pact.model import encode_name
from pact.observe.mountinfo import is_remote
from pact.resources.base import path_of
from pact.resources.litter import is_litter
from pact.resources.mount import FOREIGN_TYPES
from pact.resources.mount_table import read_mounts
from pact.resources.patterns import WILD, compile_pattern

NAMES_MAX: Final = 1_000_000
LITTER: Final = "a temporary name of an editor, package or configuration manager"


def discover_files(pattern: str, passed_over: Sequence[str], passed: dict[str, int]) -> Iterator[str]:
    """Names of existing paths that match. ``passed`` counts what was left out, by reason."""
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
    foreign = _foreign_mounts()
    for path in _walk(start, b"**" in raw, raw.count(b"/"), foreign, passed):
        if not matcher.match(path):
            continue
        text = path.decode("utf-8", "replace")
        if any(fnmatchcase(text, p) for p in passed_over):
            passed["rotates, or identifies the node or its users"] = (
                passed.get("rotates, or identifies the node or its users", 0) + 1
            )
            continue
        if is_litter(path):
            passed[LITTER] = passed.get(LITTER, 0) + 1
            continue
        yield encode_name(path)


def is_literal(pattern: str) -> bool:
    """It is one path: nothing in it stands for something else, or what exists has this very name."""
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


def _foreign_mounts() -> set[bytes]:
    return {
        m.mount_point for m in read_mounts()
        if m.fstype in FOREIGN_TYPES or is_remote(m.fstype) or m.fstype in ("proc", "sysfs", "devtmpfs")
    }  # fmt: skip
