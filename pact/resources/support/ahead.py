"""New files that are written before their turn, many at once, so that the disk makes them durable together: written one
at a time, each costs a commit of the file system's journal. And the old files that they were exchanged for, which a
separate thread removes meanwhile: that takes as long as all else that a small file costs.

No file gets its name here. If anything has changed when a file's turn comes (its directory, the file that it replaces),
the file that was written ahead is useless, and a new one is written then. An old file was examined before it came here,
and is asked about once more in the same breath as it is removed: if it has changed it gets its name back.  # R4
"""

from __future__ import annotations

import errno
import os
import threading
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pact._fast import syscalls
from pact.core.plan import Step
from pact.errors import PactError
from pact.resources.base import Blobs, path_of
from pact.resources.support import strewn
from pact.resources.support.replace import DIR_FLAGS, drop, exchange_back, identified, keeps_content, lstat, write_fresh

FILES_MAX: Final = 512
#: Rows that are begun, and whose turn has not come: while the disk makes one durable, the next is written. All that a
#: usual plan makes is made before the first old file goes: ext4 without a journal leaves the place of a removed file
#: empty for a minute, and looks at each such place whenever a file is made.
ROWS_MAX: Final = 24
BYTES_MAX: Final = 4 << 20
#: A file system with less room, or fewer free inodes, has one row at a time.
ROOM_MIN: Final = 256 << 20
INODES_MIN: Final = 2 * ROWS_MAX * FILES_MAX
DIRECTORIES_MAX: Final = 8

#: Its device and inode.
Directory = tuple[int, int]
#: Device and inode of a directory, and a name in it.
Place = tuple[int, int, bytes]
#: The temporary name of the new file, and what it replaces (``_identity``).
Written = tuple[bytes, tuple[int, ...]]


class Left(NamedTuple):
    """An old file under its temporary name, and what it was when it was examined: inode, size, times. ``put``: the new
    file that has its name."""

    aside: bytes
    leaf: bytes
    seen: tuple[int, int, int, int]
    resource: str
    put: tuple[int, int, int]


#: Old files by the descriptor of their directory.
Lefts = dict[int, list[Left]]


class Lane:
    """A separate thread that does one piece of work after the other. Where no more threads are possible, whoever asks
    for it does it at once. It ends when there is nothing left to do, and an agent that ends does not wait for it, as it
    would for the threads of ``concurrent.futures``: the disk may hang."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._todo: deque[Work] = deque()
        self._runs = False

    def do(self, work: Work) -> None:
        with self._lock:
            self._todo.append(work)
            if self._runs:
                return
            self._runs = True
        try:
            threading.Thread(target=self._work, name="pact-ahead", daemon=True).start()
        except RuntimeError:
            self._work()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._todo:
                    self._runs = False
                    return
                work = self._todo.popleft()
            try:
                work.run()
            except Exception:  # nobody expected it: the rest is done all the same
                traceback.print_exc()
                self._broke(work)
            finally:
                work.done.set()  # whoever waits for it waits no longer, whatever else breaks

    @staticmethod
    def _broke(work: Work) -> None:
        try:
            work.broke()
        except Exception:  # the disk is gone, too
            traceback.print_exc()


class Work(ABC):
    """Something for a ``Lane``."""

    def __init__(self) -> None:
        self.done = threading.Event()

    @abstractmethod
    def run(self) -> None:
        """Do it."""

    @abstractmethod
    def broke(self) -> None:
        """``run`` has raised something: what it leaves is as if it had failed."""


class Directories:
    """Descriptors of directories that several rows share. For one thread."""

    def __init__(self) -> None:
        self._held: dict[Directory, tuple[int, int]] = {}  # the descriptor, and how many have it

    def hold(self, there: Directory, dirfd: int) -> int:
        """One that stays open until it is let go; ``dirfd`` is one of the same directory."""
        fd, count = self._held.get(there, (-1, 0))
        self._held[there] = fd if count else os.dup(dirfd), count + 1
        return self._held[there][0]

    def let_go(self, there: Directory) -> None:
        fd, count = self._held.pop(there)
        if count > 1:
            self._held[there] = fd, count - 1
        else:
            os.close(fd)


class Row(Work):
    """Files that are written, and that a separate thread makes durable while others are written, or renamed into place.
    ``count`` is the number of steps that were taken into account, ``size`` that of the bytes."""

    def __init__(self, shared: Directories) -> None:
        super().__init__()
        self.count = self.size = 0
        self.begun: dict[Place, Written] = {}
        self.directories: dict[Directory, int] = {}
        self._shared = shared

    def place(self, dirfd: int, leaf: bytes) -> Place:
        """Open and remember the directory."""
        st = os.fstat(dirfd)
        there = st.st_dev, st.st_ino
        if there not in self.directories:
            self.directories[there] = self._shared.hold(there, dirfd)
        return st.st_dev, st.st_ino, leaf

    def close(self) -> None:
        """Its turn is over: remove what nobody took."""
        self.drop()
        for there in self.directories:
            self._shared.let_go(there)
        self.directories.clear()

    def run(self) -> None:
        for there, dirfd in self.directories.items():
            places = [place for place in self.begun if place[:2] == there]
            names = tuple(self.begun[place][0] for place in places)
            for place, code in zip(places, syscalls.make_durable(dirfd, names), strict=True):
                if code:  # it is written again when its turn comes, and the disk's error is reported then
                    _drop(dirfd, self.begun.pop(place)[0])

    def broke(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Remove them; each is written again when its turn comes."""
        for place, (fresh, _) in self.begun.items():
            _drop(self.directories[place[:2]], fresh)
        self.begun.clear()

    def is_roomy(self) -> bool:
        """Whether its file systems have so much room that nobody misses what is written ahead. One that does not say
        has not: the server of a mount may have gone, which concerns its files alone."""
        try:
            said = [os.fstatvfs(fd) for fd in self.directories.values()]
        except OSError:
            return False
        return all(
            (not st.f_blocks or st.f_bavail * st.f_frsize >= ROOM_MIN) and (not st.f_files or st.f_favail >= INODES_MIN)
            for st in said
        )


class Removal(Work):
    """Old files that a separate thread removes. ``kept``, when it is done: those that are still there."""

    def __init__(self, lefts: Lefts) -> None:
        super().__init__()
        self._lefts = lefts
        self.kept: list[tuple[int, Left, int]] = []

    def run(self) -> None:
        self.kept += remove(self._lefts)

    def broke(self) -> None:
        rows = ((dirfd, left) for dirfd, row in self._lefts.items() for left in row)
        self.kept = [(dirfd, left, errno.EIO) for dirfd, left in rows if _may_be_there(dirfd, left.aside)]


def remove(lefts: Lefts) -> Iterator[tuple[int, Left, int]]:
    """Remove old files. Returns those that are still there, with their directory and the errno."""
    for dirfd, row in lefts.items():
        for at in range(0, len(row), FILES_MAX):
            some = row[at : at + FILES_MAX]
            codes = syscalls.unlink_unchanged(dirfd, tuple(r.aside for r in some), tuple(r.seen for r in some))
            yield from ((dirfd, left, code) for left, code in zip(some, codes, strict=True) if code)


class Ahead:
    """For one plan, carried out by one thread, in a ``with``: files that nobody took are removed at its end, however it
    ends. ``unsafe`` are the directories whose names the disk did not make durable; ``late`` says by resource why an old
    file could not be removed: most have their name again.
    """

    def __init__(self) -> None:
        self.unsafe: set[bytes] = set()
        self.late: dict[str, str] = {}
        self._lefts: Lefts = {}
        self._lefts_size = 0
        self._row: Row | None = None  # whose turn it is
        self._coming: deque[Row] = deque()
        self._removal: Removal | None = None
        self._syncing, self._removing = Lane(), Lane()
        self._directories: dict[Directory, tuple[int, bytes]] = {}
        self._shared = Directories()

    def __enter__(self) -> Ahead:
        strewn.PLANS.begin()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.finish()
        finally:
            strewn.PLANS.end()

    @property
    def begun(self) -> int:
        """Steps of the rows whose turn has not come."""
        return sum(row.count for row in self._coming)

    def takes_more(self) -> bool:
        """Whether another row may begin."""
        if not self._coming:
            return True
        size = sum(row.size for row in self._coming)
        few = len(self._coming) < ROWS_MAX and size <= BYTES_MAX and self._open() < DIRECTORIES_MAX
        return few and self._coming[-1].is_roomy()

    def _open(self) -> int:
        """Directories that rows hold open."""
        return len({there for row in self._coming for there in row.directories})

    def begin(self, steps: Iterable[Step], blobs: Blobs) -> None:
        """Write what these steps will put in place, as far as it is known now; it becomes durable meanwhile."""
        row, others = Row(self._shared), {there for row in self._coming for there in row.directories}
        self._coming.append(row)
        at, dirfd = b"", -1
        try:
            for step in steps:
                row.count += 1
                parent, leaf = os.path.split(path_of(step.id.partition(":")[2]))
                if dirfd < 0 or parent != at:  # many in a row lie in one directory; which it is shows at their turn
                    dirfd, at = _instead(dirfd, parent), parent
                row.size += 0 if dirfd < 0 else self._begin(dirfd, leaf, step, blobs, row)
                if row.size > BYTES_MAX or len(row.begun) >= FILES_MAX:
                    break
                if len(others | row.directories.keys()) >= DIRECTORIES_MAX:
                    break
        finally:
            if dirfd >= 0:
                os.close(dirfd)
            self._syncing.do(row)

    def turn(self) -> int:
        """The turn of the row that began first has come: unused files of the row before are removed, and the row is
        durable when this returns. Returns the number of its steps; 0 if nothing was begun."""
        if not self._coming:
            return 0
        self._turn_over()
        self._row = row = self._coming.popleft()
        row.done.wait()
        if self._lefts:
            self._removed()
            self._removal = Removal(self._handed_over())
            self._removing.do(self._removal)
        return row.count

    def _begin(self, dirfd: int, leaf: bytes, step: Step, blobs: Blobs, row: Row) -> int:
        target = step.target
        if target is None or target["type"] != "file" or "sha256" not in target:
            return 0
        try:
            st = lstat(dirfd, leaf)
            content = None if keeps_content(target, step.actual, st) else blobs(target["sha256"])
            if content is None:
                return 0
            place = row.place(dirfd, leaf)
            if place in row.begun:
                return 0  # the same place by another path: only the first one's content fits the first turn
            row.begun[place] = write_fresh(dirfd, leaf, target, st, content, durable=False), _identity(st)
            return len(content)
        except (OSError, PactError):
            return 0

    def take(self, dirfd: int, leaf: bytes, st: os.stat_result | None) -> bytes | None:
        """The name of the new file for this place, if it is still right; from now on it belongs to the caller."""
        here = os.fstat(dirfd)
        found = self._row.begun.pop((here.st_dev, here.st_ino, leaf), None) if self._row is not None else None
        if found is None:
            return None
        fresh, before = found
        if before == _identity(st):
            return fresh
        _drop(dirfd, fresh)
        return None

    def removes(self, dirfd: int, aside: bytes, leaf: bytes, st: os.stat_result, resource: str) -> bool:
        """Whether it takes over what was set aside, and removes it soon, if it is still as in ``st`` then. Not one with
        other names, whose status they move; and not many bytes: the disk may need their room."""
        new = lstat(dirfd, leaf)
        if new is None or st.st_nlink != 1 or self._lefts_size + st.st_size > BYTES_MAX:
            return False
        here = os.fstat(dirfd)
        known = self._directories.get((here.st_dev, here.st_ino))
        fd = known[0] if known else self._directory(dirfd, os.path.dirname(path_of(resource.partition(":")[2])))
        self._lefts_size += st.st_size
        seen = st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns
        self._lefts.setdefault(fd, []).append(Left(aside, leaf, seen, resource, identified(new)))
        return True

    def settle(self) -> dict[str, str]:
        """All old files are gone when this returns, or it says why not: ``late``."""
        self._removed()
        self._say(remove(self._handed_over()))
        return self.late

    def _removed(self) -> None:
        """Waits for the removal that has begun."""
        removal, self._removal = self._removal, None
        if removal is not None:
            removal.done.wait()
            self._say(removal.kept)

    def makes_room(self) -> bool:
        """Remove everything that only waits: new files whose turn has not come, which are written again then, and old
        files. Returns whether there was anything, so that it is worth trying again on a full disk."""
        rows = [*self._coming, *([self._row] if self._row is not None else [])]
        waits = bool(self._lefts or self._removal is not None or any(row.begun for row in rows))
        for row in rows:
            row.done.wait()
            row.drop()
        self.settle()
        return waits

    def _handed_over(self) -> Lefts:
        lefts, self._lefts, self._lefts_size = self._lefts, {}, 0
        return lefts

    def _say(self, kept: Iterable[tuple[int, Left, int]]) -> None:
        for dirfd, left, code in kept:
            if code == errno.ENOENT:
                continue
            try:
                changed = code == errno.ESTALE
                why = exchange_back(dirfd, left.aside, left.leaf, left.put) if changed else os.strerror(code).lower()
                if not changed:
                    strewn.note(dirfd, code)
            except OSError as exc:
                why = os.strerror(exc.errno or 0).lower()
                strewn.note(dirfd, exc.errno or 0)
            self.late[left.resource] = why

    def touched(self, dirfd: int, path: bytes) -> None:
        """Names in this directory have changed: they are durable when the plan is done. Few directories are open at
        once."""
        self._directory(dirfd, path)
        if len(self._directories) > DIRECTORIES_MAX:
            self._sync()

    def _directory(self, dirfd: int, path: bytes) -> int:
        """A descriptor of it that stays open until the names are durable."""
        st = os.fstat(dirfd)
        there = st.st_dev, st.st_ino
        if there not in self._directories:
            self._directories[there] = os.dup(dirfd), path
        return self._directories[there][0]

    def _sync(self) -> None:
        self.settle()
        directories, self._directories = self._directories, {}
        for fd, path in directories.values():
            try:
                os.fsync(fd)
            except OSError:
                self.unsafe.add(path)
            finally:
                os.close(fd)

    def finish(self) -> None:
        """Remove files that nobody took; everything else is durable when this returns, except in ``unsafe``
        directories."""
        while self.turn():
            pass
        self._turn_over()
        self._sync()

    def _turn_over(self) -> None:
        if self._row is not None:
            self._row.close()
            self._row = None


def _instead(dirfd: int, parent: bytes) -> int:
    """A descriptor of this directory, instead of another one that is closed. -1: it is tried again, and an error is
    reported, when the turn of its files comes."""
    if dirfd >= 0:
        os.close(dirfd)
    try:
        return syscalls.openat2(syscalls.AT_FDCWD, parent, DIR_FLAGS, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    except OSError:
        return -1


def _may_be_there(dirfd: int, leaf: bytes) -> bool:
    try:
        return lstat(dirfd, leaf) is not None
    except OSError:
        return True


def _drop(dirfd: int, fresh: bytes) -> None:
    try:
        drop(dirfd, fresh)
    except OSError:
        pass  # it is on record, and the next plan there cleans up, too


def _identity(st: os.stat_result | None) -> tuple[int, ...]:
    """What changes with anything of the file, its attributes too: the new one may have been given those."""
    if st is None:
        return ()
    return st.st_ino, st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns, st.st_ctime_ns
