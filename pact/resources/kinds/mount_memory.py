"""File systems in memory: their contents end with their last mount, so they are kept before the unmounting.  # R4"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pact.errors import RestoreError
from pact.model import Attrs, Unreadable, encode_name
from pact.observe.mountinfo import MountEntry
from pact.resources.base import Blobs, Keep, errno_text
from pact.resources.kinds.file import KIND as FILE

MEMORY_TYPES: Final = frozenset({"tmpfs", "ramfs"})
LOOKED_AT_MAX: Final = 10_000
FILES_MAX: Final = 1_000
BYTES_MAX: Final = 16 << 20


def keep_contents(entry: MountEntry, mounts: Iterable[MountEntry], keep: Keep) -> tuple[dict[str, Any], str]:
    """Keep what unmounting would destroy. Returns saves by resource id, and why it must not be unmounted (``""``: it
    may).

    Regular files are kept with their contents, links with their targets. Empty directories, sockets and pipes are not
    kept; things in mounts below lie elsewhere; a file system that is also mounted elsewhere is not lost.
    """
    saves: dict[str, Any] = {}
    total = 0
    try:
        for path in _held(entry, mounts):
            name = encode_name(path)
            seen, secret = FILE.look(name, keep, private=True)
            if isinstance(seen, Unreadable):
                return saves, f"{name} cannot be read before it is unmounted: {seen.why}"
            if seen is None or seen["type"] not in ("file", "symlink"):
                continue
            save: dict[str, Any] = {"attrs": seen}
            if seen["type"] == "file":
                total += seen["size"]
                if seen["sha256"] not in keep.known or total > BYTES_MAX or len(saves) >= FILES_MAX:
                    return saves, "it holds more than can be kept, only in memory: move it away first"
                save["sha256"], save["secret"] = seen["sha256"], secret  # S2: its directories are gone later
            saves[f"file:{name}"] = save
    except OSError as exc:
        return saves, errno_text("it cannot be looked through before it is unmounted", exc)
    return saves, ""


def require_kept(
    entry: MountEntry, mounts: Iterable[MountEntry], blobs: Blobs, saves: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Right before the unmounting: check that the store has everything in it, as ``saves`` (if given) names it. Raises
    RestoreError for newer things."""
    try:
        for path in _held(entry, mounts):
            name = encode_name(path)
            seen = FILE.observe(name)
            if isinstance(seen, Unreadable) or not _is_kept(seen, blobs, saves, f"file:{name}"):
                raise RestoreError(f"{name} was written after it was decided, and is only in memory")
    except OSError as exc:
        raise RestoreError(errno_text("it cannot be looked through before it is unmounted", exc)) from None


def _is_kept(seen: Attrs | None, blobs: Blobs, saves: Mapping[str, Mapping[str, Any]] | None, resource: str) -> bool:
    """Whether it is kept. Sockets and pipes need not be."""
    if seen is None or seen["type"] not in ("file", "symlink"):
        return True
    if saves is not None and saves.get(resource, {}).get("attrs") != seen:
        return False
    return seen["type"] != "file" or blobs(seen["sha256"]) is not None


def _held(entry: MountEntry, mounts: Iterable[MountEntry]) -> Iterator[bytes]:
    """The paths in a file system in memory that is mounted nowhere else, without directories. Raises OSError."""
    if entry.fstype not in MEMORY_TYPES:
        return
    device = (entry.major, entry.minor)
    if any(
        (m.major, m.minor) == device and m.mount_id != entry.mount_id and _under(entry.root, m.root) for m in mounts
    ):
        return
    todo, seen = [entry.mount_point], 0
    while todo:
        with os.scandir(todo.pop()) as entries:
            for found in entries:
                st = found.stat(follow_symlinks=False)
                seen += 1
                if seen > LOOKED_AT_MAX:
                    raise OSError(f"more than {LOOKED_AT_MAX} names")
                if (os.major(st.st_dev), os.minor(st.st_dev)) != device:
                    continue
                if stat.S_ISDIR(st.st_mode):
                    todo.append(found.path)
                else:
                    yield found.path


def _under(path: bytes, root: bytes) -> bool:
    return path == root or path.startswith(root.rstrip(b"/") + b"/")
