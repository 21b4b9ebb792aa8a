"""Which directories are marked so that every change of a declared path is seen, whatever happens above it.

A declared path is a name in its parent directory; that directory is a name in its own parent, and so on to ``/``. Every
directory on the way is marked while it exists, so that creation, removal, renaming and repointed symlinks of any
component are events, and paths that may have changed before a mark was set are reported as touched. Directories are
identified by file handle, not by path: the same path may be another directory by now.

Refuses to touch anything below a mount point of a network or automounted file system: that may block for ever. Such
directories are polled, and so are those that no mechanism can mark.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby, islice
from operator import itemgetter
from typing import Final

from pact._fast.reader import KIND_FID, Reader
from pact.observe.marks import ENTRY, IGNORED, ONDIR, SELF, UNMOUNTED, Marker
from pact.observe.places import MOUNTS, RemotePlaces, leads_away, may_hang

Touch = Callable[[bytes], None]
MountTable = dict[bytes, tuple[tuple[bytes, bytes, bytes], ...]]

MISSING: Final = frozenset((errno.ENOENT, errno.ENOTDIR))
ENDED: Final = SELF | IGNORED | UNMOUNTED
HERE: Final = b"."  # a name that stands for the end of the directory itself
ANY: Final = b"/"  # stands for every name that comes or goes in the directory: no entry can have this name
LISTED_MIN: Final = 8  # from this many declared paths in a directory on, listing it is cheaper than checking each
LISTED_TIMES: Final = 4  # if a directory has this many times as many names, checking each path is cheaper again
OBJECT: Final = b""  # stands for any change of a marked object itself, of any type; inotify reports HERE for it too


class Dir:
    """One directory on the way to a declared path. ``key`` is ``b""`` while it is not marked; ``any``: every name that
    comes or goes in it is reported."""

    __slots__ = ("any", "full", "key", "kind", "names", "parent", "path", "subs", "why")

    def __init__(self, path: bytes, parent: Dir | None) -> None:
        self.path = path
        self.parent = parent
        self.names: set[bytes] = set()
        self.subs: dict[bytes, Dir] = {}
        self.full = self.any = False
        self.kind = 0
        self.key = b""
        self.why = 0  # the errno because of which it has no mark; -1 on a network file system; 0 if it is only missing

    def child(self, name: bytes) -> bytes:
        return self.path + name if self.parent is None else self.path + b"/" + name


def check_path(path: bytes) -> None:
    """Raises ValueError unless the path is absolute and normalised."""
    odd = b"//" in path or b"/./" in path or b"/../" in path or path.endswith((b"/", b"/.", b"/..")) or b"\0" in path
    if path != b"/" and (odd or not path.startswith(b"/")):
        raise ValueError(f"{path!r} is not an absolute, normalised path")


class Tree:
    def __init__(self, reader: Reader, marker: Marker) -> None:
        self.reader = reader
        self.marker = marker
        self.by_key: dict[bytes, list[Dir]] = {}
        self.polled: dict[bytes, Dir] = {}
        self.indirect: set[Dir] = set()  # reached through a symlink: mount points on the way have another name
        self.mounts: MountTable = {}
        self._places = RemotePlaces()
        self._generation = MOUNTS.generation()
        self.anchors: dict[bytes, tuple[int, bytes]] = {}  # declared mount points and directories, marked themselves
        self.anchor_paths: dict[bytes, set[bytes]] = {}
        self._again: list[Dir] = []
        self._anchors_again: list[bytes] = []
        self.root_declared = False
        self.root = Dir(b"/", None)
        self.by_path: dict[bytes, Dir] = {b"/": self.root}

    # ---- what is declared

    def watch(self, path: bytes, *, anchor: bool = True) -> None:
        check_path(path)
        if path == b"/":
            self.root_declared = True
        else:
            head, _, name = path.rpartition(b"/")
            d = self._dir(head or b"/")
            if name in d.names:
                return
            d.names.add(name)
            if not d.full:
                d.full = True
                self._resolve(d)
            if d.key:
                self.reader.want(d.kind, d.key, name)
        if anchor:
            self.anchor(path)

    def unwatch(self, path: bytes) -> None:
        check_path(path)
        self._unanchor(path)
        if path == b"/":
            self.root_declared = False
            return
        head, _, name = path.rpartition(b"/")
        d = self.by_path.get(head or b"/")
        if d is None or name not in d.names:
            return
        d.names.discard(name)
        if d.key:
            self.reader.unwant(d.kind, d.key, name)
        self._prune(d)

    def track(self, path: bytes) -> bool:
        """Report every name that comes or goes in this directory, too. Returns True if a mark reports them."""
        check_path(path)
        d = self._dir(path)
        if not d.any:
            d.any = True
            if d.key:
                self.reader.want(d.kind, d.key, ANY)
            else:
                self._resolve(d)
        return bool(d.key)

    def untrack(self, path: bytes) -> None:
        d = self.by_path.get(path)
        if d is None or not d.any:
            return
        d.any = False
        if d.key:
            self.reader.unwant(d.kind, d.key, ANY)
        self._prune(d)

    def _prune(self, d: Dir) -> None:
        """Forget directories that are on no way any more."""
        while not d.names and not d.subs and not d.any and d.parent is not None:
            up = d.parent
            self._release(d)
            self.polled.pop(d.path, None)
            self.indirect.discard(d)
            del self.by_path[d.path]
            last = d.path.rpartition(b"/")[2]
            del up.subs[last]
            if up.key:
                self.reader.unwant(up.kind, up.key, last)
            d = up

    def is_declared(self, path: bytes) -> bool:
        if path == b"/":
            return self.root_declared
        head, _, name = path.rpartition(b"/")
        d = self.by_path.get(head or b"/")
        return d is not None and name in d.names

    def _dir(self, path: bytes) -> Dir:
        missing: list[bytes] = []
        at = path
        while at not in self.by_path:
            at, _, name = at.rpartition(b"/")
            at = at or b"/"
            missing.append(name)
        d = self.by_path[at]
        for name in reversed(missing):
            child = Dir(d.child(name), d)
            self.by_path[child.path] = child
            d.subs[name] = child
            if not d.key and d is self.root:
                self._resolve(d)
            elif d.key:
                self.reader.want(d.kind, d.key, name)
            self._resolve(child)
            d = child
        return d

    # ---- what happened

    def on_event(self, key: bytes, name: bytes, mask: int, touch: Touch) -> None:
        """Handle an event: of an entry, or (name ``.`` or empty) of the directory or object with this key itself."""
        for path in tuple(self.anchor_paths.get(key, ())) if name in (OBJECT, HERE) else ():
            touch(path)
        for d in tuple(self.by_key.get(key, ())):
            if name == HERE:
                if mask & ENDED:
                    self.reanchor(d, touch)
                continue
            if name in d.names:
                path = d.child(name)
                touch(path)
                if mask & ENTRY:
                    self._unanchor(path)
                    self.anchor(path, None if mask & ONDIR else False)
            sub = d.subs.get(name)
            if sub is not None and mask & ENTRY:
                self.reanchor(sub, touch, passed=True)
            if d.any and mask & ENTRY and name not in d.names and name != OBJECT:
                touch(d.child(name))

    def reanchor(self, top: Dir, touch: Touch | None, everything: bool = False, passed: bool = False) -> None:
        """Find out again which directory ``top`` is; if it is another one, mark it and report the declared paths below.

        ``everything``: check below unchanged directories too. ``passed``: an entry on the way came or went. A directory
        that is the same as before may have been away meanwhile (moved, and a link to it left in its place), and an
        observation in that time found nothing: the declared paths below are reported in any case.
        """
        stack = [top]
        while stack:
            d = stack.pop()
            changed = self._resolve(d)
            for name in d.names if changed else ():
                path = d.child(name)
                self._unanchor(path)
                self.anchor(path)
            if touch is not None and (changed or passed):
                for name in d.names:
                    touch(d.child(name))
                if d.any:
                    touch(d.path)
            if changed or everything or passed:
                stack.extend(d.subs.values())

    def on_mounts(self, table: MountTable, touch: Touch) -> bool:
        """A new mount table: check what was mounted over or uncovered. Returns False if nothing changed."""
        old, self.mounts = self.mounts, table
        if old == table:
            return False
        self._places = RemotePlaces((p, stack[-1][2]) for p, stack in table.items())
        for path in [p for p in old.keys() | table.keys() if old.get(p) != table.get(p)]:
            if self.is_declared(path):
                touch(path)
                self._unanchor(path)
                self.anchor(path)
            d = self.by_path.get(path)
            if d is not None:
                self.reanchor(d, touch, everything=True)
        for d in tuple(self.indirect):
            self.reanchor(d, touch)
        return True

    def places(self) -> RemotePlaces:
        """Where an access may hang at this moment: a change of the table may not have been reported yet.  # F13"""
        generation = MOUNTS.generation()
        if generation != self._generation:
            try:
                self._places = RemotePlaces.now()
            except (OSError, ValueError):
                return self._places
            self._generation = generation
        return self._places

    def remark(self, touch: Touch | None) -> None:
        """Check every directory again."""
        self.reanchor(self.root, touch, everything=True)
        for path in list(self.anchors):
            self._anchor_again(path, touch)

    def remark_some(self, number: int, slices: int, touch: Touch) -> None:
        """The same as ``remark``, one slice at a time: however many directories there are, no slice takes long."""
        if number == 0:
            self._again = list(self.by_path.values())
            self._anchors_again = list(self.anchors)
        total = len(self._again)
        for d in self._again[total * number // slices : total * (number + 1) // slices]:
            if self.by_path.get(d.path) is d:
                self.reanchor(d, touch)
        total = len(self._anchors_again)
        for path in self._anchors_again[total * number // slices : total * (number + 1) // slices]:
            if path in self.anchors:
                self._anchor_again(path, touch)

    def _anchor_again(self, path: bytes, touch: Touch | None) -> None:
        key = self.anchors[path]
        self._unanchor(path)
        self.anchor(path)
        if self.anchors.get(path) != key and touch is not None:
            touch(path)

    def problems(self) -> Counter[int]:
        """How many directories are polled, by errno (-1: network file system)."""
        return Counter(d.why for d in self.polled.values())

    # ---- marks

    def _resolve(self, d: Dir) -> bool:
        """Mark the directory that this path is now. Returns True if it is another one than before (or gone, or
        back)."""
        kind, key, direct, why = 0, b"", True, 0
        up = d.parent
        if (up is not None and up.why == -1) or leads_away(d.path, self.places()):
            why = -1
        elif up is None or up.key or up.why:
            try:
                kind, key, direct = self.marker.mark(d.path, d.full)
            except OSError as e:
                why = 0 if e.errno in MISSING else e.errno or errno.EIO
        was, d.why = d.why, why
        if why:
            self.polled[d.path] = d
        else:
            self.polled.pop(d.path, None)
        if direct:
            self.indirect.discard(d)
        else:
            self.indirect.add(d)
        if (kind, key) == (d.kind, d.key):
            return (why == -1) != (was == -1)  # it now leads to where nothing is marked, or no longer does
        self._release(d)
        if key:
            d.kind, d.key = kind, key
            self.by_key.setdefault(key, []).append(d)
            self.reader.want(kind, key, HERE)
            for name in self._wanted(d):
                self.reader.want(kind, key, name)
        return True

    @staticmethod
    def _wanted(d: Dir) -> tuple[bytes, ...]:
        return (*d.names, *d.subs, ANY) if d.any else (*d.names, *d.subs)

    def _release(self, d: Dir) -> None:
        kind, key = d.kind, d.key
        if not key:
            return
        self.reader.unwant(kind, key, HERE)
        for name in self._wanted(d):
            self.reader.unwant(kind, key, name)
        d.kind, d.key = 0, b""
        users = self.by_key[key]
        users.remove(d)
        if not users:
            del self.by_key[key]
            self._unmark(kind, key, d.path)

    def _unmark(self, kind: int, key: bytes, near: bytes) -> None:
        # A mark on a directory that was renamed away is removed by its handle; a deleted directory has lost its mark.
        if key in self.by_key or key in self.anchor_paths:
            return
        places = self.places()
        while near != b"/" and (leads_away(near, places) or not self.marker.unmark(kind, key, near)):
            near = os.path.dirname(near)
        if near == b"/":
            self.marker.unmark(kind, key, near)

    def anchor(self, path: bytes, is_dir: bool | None = None) -> None:
        """Mark a declared directory or mount point itself.

        Changes of a directory's own attributes are reported under its own handle, and the root of a mounted file system
        has no parent whose mark could see it. ``is_dir``: whether it is a directory, if known already.
        """
        if path in self.anchors or (is_dir is False and path not in self.mounts) or may_hang(path, self.places()):
            return
        if path not in self.mounts:
            up = self.by_path.get(os.path.dirname(path))
            if up is None or up.kind != KIND_FID:
                return
            try:
                if not (stat.S_ISDIR(os.lstat(path).st_mode) if is_dir is None else is_dir):
                    return
            except OSError:
                return
        try:
            kind, key, _ = self.marker.mark(path, full=True, leaf=True)
        except OSError:
            return  # the parent's mark and the rescan remain
        self.anchors[path] = kind, key
        self.anchor_paths.setdefault(key, set()).add(path)
        self.reader.want(kind, key, HERE)
        self.reader.want(kind, key, OBJECT)

    def _unanchor(self, path: bytes) -> None:
        kind, key = self.anchors.pop(path, (0, b""))
        if not key:
            return
        self.reader.unwant(kind, key, HERE)
        self.reader.unwant(kind, key, OBJECT)
        self.anchor_paths[key].discard(path)
        if not self.anchor_paths[key]:
            del self.anchor_paths[key]
            self._unmark(kind, key, os.path.dirname(path))


def watch_many(tree: Tree, paths: Iterable[bytes]) -> None:
    """Watch paths grouped by directory, so that each directory is marked once. If many paths lie in one, a listing
    shows which of them are directories; it is made after the mark, so that none is missed.
    """
    for head, group in groupby(sorted(p.rpartition(b"/")[::2] for p in paths), key=itemgetter(0)):
        mine = [head + b"/" + name for _, name in group]
        for path in mine:
            tree.watch(path, anchor=False)
        listed = len(mine) >= LISTED_MIN and not leads_away(head, tree.places())
        below = directories(head or b"/", LISTED_TIMES * len(mine)) if listed else None
        for path in mine:
            tree.anchor(path, None if below is None else path.rpartition(b"/")[2] in below)


def directories(path: bytes, most: int) -> set[bytes] | None:
    """The names of the directories in a directory. ``None`` if it cannot be listed, or has more than ``most`` names:
    then asking about each path costs less."""
    try:
        with os.scandir(path) as entries:
            found = {e.name for e in islice(entries, most) if e.is_dir(follow_symlinks=False)}
            return found if next(entries, None) is None else None
    except OSError:
        return None
