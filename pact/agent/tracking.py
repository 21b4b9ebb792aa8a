"""New things below tracked patterns: finds them, and finds out when they are gone again.

Files are found by their names: every directory that leads to a pattern's matches is marked for entries that come or go,
then listed, so that entries made before the mark are found too. The other kinds discover again when an event shows that
their resources may have moved, and once in every rescan.

It reads no content and follows no symbolic link, enters no file system that may hang, and works in small pieces: ten
thousand directories hold the loop no longer than one. The core decides what happens to the things that it finds.  # U4
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pact.core.node import tracked
from pact.core.node.events import New
from pact.model import NS_PER_S, UNATTRIBUTED, Owner, decode_name, encode_name, split_id
from pact.observe.mountinfo import read_mounts
from pact.observe.places import MOUNTS, RemotePlaces, may_hang
from pact.resources import KINDS, WALKED
from pact.resources.base import LINKS
from pact.resources.base import MOUNTS as MOUNTS_MOVED
from pact.resources.support.discover import Trail, foreign_mounts, passed_over, trail
from pact.resources.support.litter import is_litter
from pact.resources.support.way import open_parent

if TYPE_CHECKING:
    from pact.core.node.step import Node
    from pact.declared.toml import Ignore
    from pact.observe.observers import Observers

#: A new thing is checked again after this time, and reported only if it still exists.
SETTLE_NS: Final = NS_PER_S // 4
#: Walking stops after this time in each turn of the loop.
TURN_NS: Final = 5_000_000
#: The shortest time between two walks over everything that requests cause.
ASKED_REST_NS: Final = NS_PER_S
#: How many directories are marked at most; only the rescan finds new things in further ones.
DIRECTORIES_MAX: Final = 50_000
#: How many names from events may wait to be checked; beyond this everything is walked again.
TOUCHED_MAX: Final = 20_000
#: How many things are reported in one step.
FOUND_MAX: Final = 2_000
#: How many directories are kept with the number of new things in them beyond those that are kept one by one.
BEYOND_MAX: Final = 1_000
#: The shortest time between two checks of all untracked things, of what events do not show, and between two walks over
#: everything because more names came than may wait.
CHECK_NS: Final = NS_PER_S
#: The shortest time between two counts of a directory with more new things than are kept one by one.
COUNT_NS: Final = 5 * NS_PER_S
#: The prefix of ids that walking finds.
PREFIX: Final = f"{WALKED.name}:"

Fresh = tuple[int, "Owner | None"]


class Tracking:
    """See the module. ``follow`` sets the patterns; ``take`` returns what was found."""

    def __init__(self, observers: Observers, ignore: Ignore) -> None:
        self._observers = observers
        self._ignore = ignore
        self._modes: dict[str, str] = {}
        self._trails: list[Trail] = []
        self._bases: set[bytes] = set()  # marked even while they do not exist
        self.kinds: dict[str, list[str]] = {}  # kinds that are not walked -> their patterns
        self._polls: dict[str, Owner | None] = {}  # kinds to be asked again
        self._polled_ns: dict[str, int] = {}
        self._foreign: set[bytes] = set()
        self._remote = RemotePlaces()
        self._mounts = -1  # the generation of the mount table from which both were read
        # Directory -> inode and mtime when it was last listed, or zeros.
        self._directories: dict[bytes, tuple[int, int]] = {}
        self._share: list[bytes] = []
        self._touched: dict[bytes, Owner | None] = {}
        self._overrun = False  # there were more names than may wait: everything is walked again, once for all of them
        self._overrun_ns = 0
        self._todo: dict[bytes, Owner | None] = {}  # directories to mark and list
        self._walk: Generator[None, None, None] | None = None
        self._walked = b""
        self._rests = False
        self._asked_ns = 0  # from this time on a request may cause a walk over everything
        self._fresh: dict[str, Fresh] = {}
        self._gone: dict[str, None] = {}
        self._check: list[str] | None = None
        self._check_wanted = False
        self._checked_ns = 0
        self._beyond: dict[bytes, int] = {}  # directory -> how many new things in it are not kept one by one
        self._crowded: dict[bytes, None] = {}  # directories with new entries since they were counted
        self._counted_ns = 0
        self._beyond_told = True

    # -- what is tracked ----------------------------------------------------------------------------------------

    def follow(self, modes: Mapping[str, str]) -> None:
        """Follow these patterns from now on."""
        if modes == self._modes:
            return
        self._modes, self._trails, self.kinds = dict(modes), [], {}
        for pattern, mode in modes.items():
            kind, text = split_id(pattern)
            if mode == "ignore" or kind not in KINDS:
                continue
            try:
                if KINDS[kind].walked:
                    self._trails.append(trail(text))
                else:
                    KINDS[kind].pattern(text)
                    self.kinds.setdefault(kind, []).append(text)
            except ValueError:
                continue  # an older version accepted it
        bases = {t.base for t in self._trails}
        for base in self._bases - bases:
            self._observers.untrack(base)
        self._bases = bases
        for directory in [d for d in self._directories if not self._leads(d)]:
            self._leave(directory)
        self.walk_again()

    @property
    def follows_files(self) -> bool:
        return bool(self._trails)

    def _leads(self, directory: bytes) -> bool:
        return any(t.leads(directory) for t in self._trails)

    def _enters(self, directory: bytes) -> bool:
        """Whether a pattern may match something in it, and listing it cannot hang."""
        if directory in self._foreign or not self._leads(directory):
            return False
        if is_litter(directory) or passed_over(directory + b"/x"):
            return False
        pattern = self._ignore.match(f"{PREFIX}{encode_name(directory)}/x")
        return pattern is None or not pattern.endswith("*")  # all of it is ignored

    def _means(self, path: bytes) -> bool:
        return any(t.means(path) for t in self._trails)

    # -- what happened ------------------------------------------------------------------------------------------

    def touched(self, path: bytes, owner: Owner | None) -> None:
        """A directory entry appeared or disappeared."""
        if os.path.dirname(path) not in self._directories and path not in self._directories and path not in self._bases:
            return
        if len(self._touched) >= TOUCHED_MAX and path not in self._touched:
            self._overrun = True
            return
        self._touched[path] = owner or self._touched.get(path)

    def mounts_moved(self, owner: Owner | None) -> None:
        if self._trails:
            self._look_for_mounts()
            for directory in [d for d in self._directories if d in self._foreign]:
                self._leave(directory)
            self._list_bases()
            self._check_wanted = True
        for kind in self.kinds:
            if KINDS[kind].heeds(MOUNTS_MOVED):
                self._polls[kind] = owner or self._polls.get(kind)

    def links_moved(self) -> None:
        for kind in self.kinds:
            if KINDS[kind].heeds(LINKS):
                self._polls.setdefault(kind, None)

    def kind_moved(self, kind: str, owner: Owner | None = None) -> None:
        """Something of this kind came or went, by the hand of ``owner`` if that is known."""
        if kind in self.kinds:
            self._polls[kind] = owner or self._polls.get(kind)

    def look(self, resource: str) -> None:
        """The resource is no longer declared: check whether it exists."""
        if resource.startswith(PREFIX) and self._trails:
            self.touched(decode_name(split_id(resource)[1]), None)
        elif split_id(resource)[0] in self.kinds:
            self._polls.setdefault(split_id(resource)[0], None)

    def come_again(self, found: Iterable[New], now_ns: int) -> None:
        """These could not be recorded: nothing that happens tells again whose work they are.  # J9"""
        for new in found:
            kind, owner = split_id(new.resource)[0], new.owner if new.owner != UNATTRIBUTED else None
            if new.resource.startswith(PREFIX):
                self._fresh.setdefault(new.resource, (now_ns, owner))
            elif kind in self.kinds:
                self._polls[kind] = owner or self._polls.get(kind)

    def rest(self, rests: bool) -> None:
        """A plan is being carried out, or nothing can be recorded: an open descriptor of a directory would block its
        unmounting.  # R10"""
        self._rests = rests
        if rests and self._walk is not None:
            self._walk.close()
            self._walk = None
            self._todo.setdefault(self._walked, None)

    def walk_again(self) -> None:
        """Events were lost, or nothing is known yet: walk everything."""
        if self._trails:
            self._look_for_mounts()
            self._list_bases()
            self._todo.update(dict.fromkeys(d for d in self._directories if d not in self._todo))
        for kind in self.kinds:
            self._polls.setdefault(kind, None)
        self._check_wanted = True
        self._beyond_told = False

    def _look_for_mounts(self) -> None:
        generation = MOUNTS.generation()  # before the table is read: a change in between is seen the next time
        try:
            mounts = read_mounts()
        except (OSError, ValueError):
            return  # keep the last known table; the next check comes here again
        self._foreign = foreign_mounts(mounts, self._bases)
        self._remote = RemotePlaces((m.mount_point, m.fstype) for m in mounts)
        self._mounts = generation

    def _away(self, path: bytes) -> bool:
        """Whether an access to ``path`` may hang, or it lies on a foreign file system. Checked right before each
        access.  # F13"""
        if MOUNTS.generation() != self._mounts:
            self._look_for_mounts()
        return path in self._foreign or os.path.dirname(path) in self._foreign or may_hang(path, self._remote)

    def _list_bases(self) -> None:
        for base in self._bases:
            self._todo.setdefault(base, None)

    def rescan(self, number: int, slices: int) -> None:
        """One slice of the periodic rescan: directories that changed since they were listed are listed again."""
        if number == 0:
            self._share = list(self._directories)
            self._check_wanted = True
            if self._trails:
                self._list_bases()
            self._crowded.update(dict.fromkeys(self._beyond))
            for kind in self.kinds:
                self._polls.setdefault(kind, None)
        total = len(self._share)
        for directory in self._share[total * number // slices : total * (number + 1) // slices]:
            if self._away(directory):
                continue  # something was mounted over it since this round began
            if self._signature(directory) != self._directories.get(directory):
                self._todo.setdefault(directory, None)

    @staticmethod
    def _signature(directory: bytes) -> tuple[int, int]:
        try:
            st = os.lstat(directory)
        except OSError:
            return 0, -1
        return st.st_ino, st.st_mtime_ns

    # -- what is due --------------------------------------------------------------------------------------------

    @property
    def has_due(self) -> bool:
        walks = (self._todo or self._walk) and not self._rests
        return bool(self._touched or walks or self._check or self._gone or any(map(_is_quick, self._polls)))

    @property
    def has_more(self) -> bool:
        """Whether a request that waits for everything finds more in another turn."""
        return self.has_due or bool(self._fresh)

    def next_ns(self, now_ns: int) -> int | None:
        """When ``take`` will have something to do; ``None``: after the next event."""
        if self.has_due:
            return now_ns
        dues = [seen_ns + SETTLE_NS for seen_ns, _ in self._fresh.values()][:1]  # in the order of their coming
        if self._check_wanted:
            dues.append(self._checked_ns + CHECK_NS)
        if self._crowded:
            dues.append(self._counted_ns + COUNT_NS)
        if self._overrun:
            dues.append(self._overrun_ns + CHECK_NS)
        dues += [self._polled_ns.get(k, 0) + CHECK_NS for k in self._polls]
        return min(dues, default=None)

    def take(self, node: Node, now_ns: int, *, everything: bool = False) -> tuple[list[New], list[str]]:
        """The new things, and the untracked ones that are gone. ``everything``: a request waits for the answer."""
        begun_ns = time.monotonic_ns()
        asked = everything and begun_ns >= self._asked_ns
        ends_ns = begun_ns + TURN_NS
        while self._touched and time.monotonic_ns() < ends_ns:
            path = next(iter(self._touched))
            self._look_at(path, self._touched.pop(path), node, now_ns)
        if self._overrun and (asked or self._overrun_ns + CHECK_NS <= now_ns):
            self._overrun, self._overrun_ns, self._asked_ns = False, now_ns, begun_ns + ASKED_REST_NS
            self.walk_again()
        if self._crowded and self._counted_ns + COUNT_NS <= now_ns:
            for path in self._crowded:
                self._todo.setdefault(path, None)
            self._crowded, self._counted_ns = {}, now_ns
        while (self._walk or self._todo) and not self._rests and time.monotonic_ns() < ends_ns:
            if self._walk is None:
                self._walked = path = next(iter(self._todo))
                self._walk = self._list(path, self._todo.pop(path), node, now_ns)
            if next(self._walk, self) is self:
                self._walk = None
        self._check_some(node, now_ns, ends_ns)
        found = self._take_fresh(node, now_ns, max(ends_ns, time.monotonic_ns() + TURN_NS), everything)
        for kind in filter(_is_quick, list(self._polls)):
            owner = self._polls.pop(kind)
            more, gone = self.compared(kind, discovered(kind, self.kinds.get(kind, ())), node, owner)
            found += more
            self._gone.update(dict.fromkeys(gone))
        gone_now = list(self._gone)[:FOUND_MAX]
        for resource in gone_now:
            del self._gone[resource]
        return found, gone_now

    def poll(self, now_ns: int) -> list[tuple[str, Owner | None]]:
        """Kinds to be asked now for what exists, with whom that is known to be the work of; that takes long, so the
        caller does it elsewhere."""
        due = [k for k in self._polls if not _is_quick(k) and self._polled_ns.get(k, 0) + CHECK_NS <= now_ns]
        self._polled_ns.update(dict.fromkeys(due, now_ns))
        return [(kind, self._polls.pop(kind)) for kind in due]

    def compared(
        self, kind: str, names: set[str], node: Node, owner: Owner | None = None
    ) -> tuple[list[New], list[str]]:
        """Compare the names that a kind discovered with the known ones."""
        there = {f"{kind}:{n}" for n in names}
        fresh = sorted(r for r in there if r not in node.state and self._ignore.match(r) is None)
        gone = [r for r in tracked.names(node) if r.startswith(kind + ":") and r not in there]
        fresh = [r for r in fresh if tracked.known(node, r) is None]
        return [New(r, {}, owner) for r in fresh if isinstance(KINDS[kind].observe(split_id(r)[1]), dict)], gone

    def closed(self, node: Node) -> list[New]:
        """Enforced things in closed directories of which the journal does not say that: the version before wrote none
        of it.  # S2"""
        state, reachable, out = node.state, dict[bytes, bool](), list[New]()
        for resource, owner in state.enforced.items():
            if not resource.startswith(PREFIX) or resource in state.closed:
                continue  # names of other kinds are no paths
            name = split_id(resource)[1]
            above = os.path.dirname(path := decode_name(name))
            if above not in reachable and not self._away(path):
                reachable[above] = WALKED.reachable(name)
            if not reachable.get(above, True):
                out.append(New(resource, {"secret": True}, owner))
        return out

    def _take_fresh(self, node: Node, now_ns: int, ends_ns: int, everything: bool) -> list[New]:
        out: list[New] = []
        closed: dict[bytes, bool] = {}  # names in closed directories are secrets  # S2
        for resource, (seen_ns, owner) in list(self._fresh.items()):
            if (seen_ns + SETTLE_NS > now_ns and not everything) or len(out) >= FOUND_MAX:
                break
            if time.monotonic_ns() > ends_ns:
                break
            del self._fresh[resource]
            name = split_id(resource)[1]
            path = decode_name(name)
            above = os.path.dirname(path)
            actual = WALKED.glance(name) if resource not in node.state and not self._away(path) else None
            if actual is None or WALKED.undeclarable(actual):
                continue
            if above not in closed:
                closed[above] = not WALKED.reachable(name)
            out.append(New(resource, {**actual, "secret": True} if closed[above] else actual, owner))
        return out

    # -- looking ------------------------------------------------------------------------------------------------

    def _look_at(self, path: bytes, owner: Owner | None, node: Node, now_ns: int) -> None:
        """Check one name from an event."""
        if self._away(path):
            return
        try:
            is_dir = stat.S_ISDIR(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            resource = PREFIX + encode_name(path)
            self._fresh.pop(resource, None)
            if tracked.known(node, resource) is not None:
                self._gone[resource] = None
            if path in self._directories:
                self._leave(path)
            self._check_wanted |= tracked.count(node) > 0  # the things below it are gone with it
            return
        except OSError:
            return
        self._check_wanted |= path in self._directories  # it may be another directory now
        if is_dir and self._enters(path):
            self._todo[path] = owner or self._todo.get(path)
        elif path in self._directories:
            self._leave(path)
        if self._offer(path, owner, node, now_ns):
            self._crowded[os.path.dirname(path)] = None

    def beyond(self) -> dict[str, int] | None:
        """How many things are not kept one by one, by directory, if that changed since the last call."""
        if self._beyond_told:
            return None
        self._beyond_told = True
        return {PREFIX + encode_name(d): n for d, n in self._beyond.items()}

    def _count(self, directory: bytes, more: int) -> None:
        if self._beyond.get(directory, 0) != more:
            self._beyond_told = False
            self._beyond[directory] = more
            if not more or len(self._beyond) > BEYOND_MAX:
                del self._beyond[directory]

    def _offer(self, path: bytes, owner: Owner | None, node: Node, now_ns: int) -> bool:
        """Offer a path: it is new if it is undeclared and a pattern matches it. Returns True if there is no room for
        it."""
        resource = PREFIX + encode_name(path)
        if resource in node.state or not self._means(path) or self._ignore.match(resource) is not None:
            return False
        known = tracked.known(node, resource)
        if known is not None and (owner is None or known.owner.key != UNATTRIBUTED.key):
            return False
        whose = (owner or UNATTRIBUTED).key
        if known is None and resource not in self._fresh and tracked.room(node, whose) <= len(self._fresh):
            return True
        self._gone.pop(resource, None)
        before = self._fresh.get(resource)
        self._fresh[resource] = (now_ns, owner) if before is None else (before[0], owner or before[1])
        return False

    def _list(self, path: bytes, owner: Owner | None, node: Node, now_ns: int) -> Generator[None, None, None]:
        """Mark a directory, then list it, one piece at a time."""
        away = self._away(path)
        signature = (0, -1) if away else self._signature(path)
        if path in self._bases and not away:
            self._observers.track(path)
        if not self._enters(path) or signature == (0, -1):
            self._leave(path)
            return
        if path not in self._directories and len(self._directories) < DIRECTORIES_MAX:
            self._observers.track(path)
        if path in self._directories or len(self._directories) < DIRECTORIES_MAX:
            self._directories[path] = (0, 0)
        more = 0
        try:
            fd = _opened(path, base=path in self._bases)
        except OSError:
            self._leave(path)  # a link replaced it, or it is gone; an event or the rescan comes back to it
            return
        try:
            with os.scandir(fd) as entries:
                for number, entry in enumerate(entries):
                    child = path.rstrip(b"/") + b"/" + os.fsencode(entry.name)
                    if entry.is_dir(follow_symlinks=False) and child not in self._directories and self._enters(child):
                        self._todo[child] = owner or self._todo.get(child)
                    more += self._offer(child, owner, node, now_ns)
                    if number % 64 == 63:
                        yield
        except OSError:
            pass  # it is gone, or closed to this process; the rescan comes back to it
        finally:
            os.close(fd)
        self._count(path, more)
        if path in self._directories and abs(time.time_ns() - signature[1]) > NS_PER_S // 10:
            self._directories[path] = signature  # an entry made in the same tick would not change the mtime
        yield

    def _leave(self, directory: bytes) -> None:
        """Drop a directory that is gone or no longer followed, with everything below it."""
        below = directory.rstrip(b"/") + b"/"
        for path in [d for d in self._directories if d == directory or d.startswith(below)]:
            del self._directories[path]
            self._count(path, 0)
            if path not in self._bases:
                self._observers.untrack(path)
        self._todo.pop(directory, None)

    def _check_some(self, node: Node, now_ns: int, ends_ns: int) -> None:
        """Check which untracked things still exist."""
        if self._check is None:
            if not self._check_wanted or self._checked_ns + CHECK_NS > now_ns:
                return
            self._check = [r for r in tracked.names(node) if r.startswith(PREFIX)]
            self._check_wanted, self._checked_ns = False, now_ns
        while self._check and time.monotonic_ns() < ends_ns:
            resource = self._check.pop()
            path = decode_name(split_id(resource)[1])
            if not self._away(path) and not os.path.lexists(path):
                self._gone[resource] = None
        if not self._check:
            self._check = None

    # -- for people ---------------------------------------------------------------------------------------------

    def health(self) -> str:
        """``ok``, or what is not seen."""
        if away := sorted(b for b in self._bases if may_hang(b, self._remote)):
            return f"{encode_name(away[0])[:80]} may hang: what is new in it is not seen" + (
                f" ({len(away) - 1} more such places)" if away[1:] else ""
            )
        if len(self._directories) < DIRECTORIES_MAX:
            return "ok"
        return f"more than {DIRECTORIES_MAX} directories are tracked: what is new beyond is not seen"


def _opened(directory: bytes, base: bool) -> int:
    """A descriptor for listing it. The owner of a directory on the way may put a link in its place at any moment: such
    a link is not followed. At the beginning of a pattern, the system's own link is followed (``/lib``). Raises
    OSError."""
    above, leaf, _ = open_parent(directory + b"/." if base else directory)
    try:
        return os.open(leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    finally:
        os.close(above)


def _is_quick(kind: str) -> bool:
    """Whether the kind is asked on the loop: the mount table is read in a moment, and the event names the writer."""
    return KINDS[kind].heeds(MOUNTS_MOVED) and not KINDS[kind].off_loop


def discovered(kind: str, patterns: Sequence[str]) -> set[str]:
    """The names that these patterns match now."""
    out: set[str] = set()
    for pattern in patterns:
        try:
            out |= KINDS[kind].newcomers(pattern)
        except (OSError, ValueError):
            continue  # tried again the next time
    return out
