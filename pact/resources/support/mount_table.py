"""The structure of the mount table: which mounts stand at a point, one on another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pact.observe.mountinfo import MountEntry


class Stacks:
    """Which mount stands on which. The order of the table does not tell: a mount can be moved, or slid below
    another."""

    def __init__(self, mounts: Iterable[MountEntry]) -> None:
        mounts = list(mounts)
        known = {m.mount_id for m in mounts}
        self._on = {(m.parent_id, m.mount_point): m for m in mounts if m.parent_id != m.mount_id}
        self._first: dict[bytes, MountEntry] = {}  # mounts without a visible parent: the root of the namespace
        for m in mounts:
            if m.parent_id not in known or m.parent_id == m.mount_id:
                self._first[m.mount_point] = m

    def at(self, path: bytes) -> list[MountEntry]:
        """The reachable mounts at this point, the visible one last."""
        here: MountEntry | None = None
        found: list[MountEntry] = []
        for prefix in _prefixes(path):
            found = []
            if prefix in self._first:
                here = self._first[prefix]
                found.append(here)
            while here is not None and (upper := self._on.get((here.mount_id, prefix))) is not None:
                here = upper
                found.append(here)
        return found


def _prefixes(path: bytes) -> Iterator[bytes]:
    yield b"/"
    at = 0
    while path != b"/" and at != -1:
        at = path.find(b"/", at + 1)
        yield path if at == -1 else path[:at]


def under(path: bytes, root: bytes) -> bool:
    """Whether ``path`` is ``root`` or lies below it."""
    return path == root or path.startswith(root.rstrip(b"/") + b"/")
