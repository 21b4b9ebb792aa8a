"""Which declared paths the loop may look at itself: those that no other machine and no user's process can hold up.

The others leave the table of signatures, and a worker looks at them. Anybody may mount a file system of his own, again
and again: such a change must cost the loop no more than what it concerns. What is named at or below the mount is placed
anew at once; what only a symbolic link can lead there, right before the next look at it.  # F13
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from pact._fast import FileTable
from pact.model import decode_name, encode_name, split_id
from pact.observe.places import RemotePlaces, leads_away
from pact.resources import KINDS

#: Kinds whose names are paths.
PATHS: Final = [k for k in KINDS.values() if k.is_path]


class Above:
    """The directories above some paths, to know at once whether any of them lies below a directory."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()  # directory -> how many paths and counted directories are right in it

    def add(self, path: bytes) -> None:
        while path:
            path = path.rpartition(b"/")[0]  # of a path right in the root: empty
            self._counts[path] += 1
            if self._counts[path] > 1:
                return

    def drop(self, path: bytes) -> None:
        """Take back one ``add`` of this path."""
        while path:
            path = path.rpartition(b"/")[0]
            self._counts[path] -= 1
            if self._counts[path]:
                return
            del self._counts[path]

    def __contains__(self, directory: bytes) -> bool:
        return directory.rstrip(b"/") in self._counts


class Placing:
    """Keeps in the table of signatures what may be looked at on the loop."""

    def __init__(self, table: FileTable, key_of: Mapping[str, int], bad: Collection[str]) -> None:
        """``key_of``: the declared resources and their keys in the table; ``bad``: those whose names are impossible.
        Both belong to the caller, who changes them."""
        self.table = table
        self.remote = RemotePlaces()
        self._key_of = key_of
        self._bad = bad
        self._changes = 0  # of ``remote``
        self._placed = array("Q")  # key -> the number of changes when it was placed
        self._above = Above()

    def add(self, resource: str, key: int, path: bytes | None, away: dict[bytes, bool]) -> None:
        """Place what is new. ``path``: the first that it watches. ``away``: what is known of directories, within one
        pass."""
        self._placed.extend([0] * (key + 1 - len(self._placed)))
        self._placed[key] = self._changes
        kind, name = split_id(resource)
        if KINDS[kind].is_path and resource not in self._bad:
            self._above.add(decode_name(name))
        if path is not None and not self._is_away(path, away) and not KINDS[kind].lingers(name):
            self.table.put(key, path, KINDS[kind].always_read)

    def drop(self, resource: str, key: int) -> None:
        kind, name = split_id(resource)
        if KINDS[kind].is_path and resource not in self._bad:
            self._above.drop(decode_name(name))
        self.table.remove(key)

    def hides(self, point: bytes) -> bool:
        """Whether a declared path lies below this mount point, or at it and is no mount itself."""
        name = encode_name(point)
        return point in self._above or any(f"{k.name}:{name}" in self._key_of for k in PATHS if not k.bears)

    def change(self, remote: RemotePlaces) -> list[str]:
        """From now on these are the places that may hang. Returns what moved of that which is named at or below those
        that changed."""
        points = self.remote.differing(remote)
        self.remote = remote
        if not points:
            return []
        self._changes += 1
        names = [encode_name(p) for p in points]
        at = [r for name in names for k in PATHS if (r := f"{k.name}:{name}") in self._key_of]
        below = tuple(f"{k.name}:{encode_name(p.rstrip(b'/'))}/" for p in points if p in self._above for k in PATHS)
        return self.again([*at, *(r for r in self._key_of if r.startswith(below))] if below else at)

    def late(self, keys: Iterable[int]) -> list[int]:
        """Those that were placed before the last change."""
        return [key for key in keys if self._placed[key] != self._changes]

    def again(self, resources: Iterable[str]) -> list[str]:
        """Place these anew: a link on the way may have been replaced. Returns those that moved."""
        away: dict[bytes, bool] = {}
        moved: list[str] = []
        for resource in resources:
            kind, name = split_id(resource)
            paths = KINDS[kind].watch(name) if resource not in self._bad else ()
            key = self._key_of[resource]
            self._placed[key] = self._changes
            if not paths or KINDS[kind].lingers(name) or (key in self.table) != self._is_away(paths[0], away):
                continue
            if key in self.table:
                self.table.remove(key)
            else:
                self.table.put(key, paths[0], KINDS[kind].always_read)
            moved.append(resource)
        return moved

    def _is_away(self, path: bytes, away: dict[bytes, bool]) -> bool:
        """Whether the path may hang."""
        if not self.remote or path in self.remote:
            return bool(self.remote)
        parent = os.path.dirname(path)
        if parent not in away:
            away[parent] = leads_away(parent, self.remote)
        return away[parent]
