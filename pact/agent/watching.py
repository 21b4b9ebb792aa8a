"""Which resources to observe, and when: events, the periodic rescan, and the pace of both.

Observers report touched paths; a table of signatures finds changes that they could not see. A resource whose drift was
just recorded is observed again later and later while it keeps moving (``pace``), so that files in constant motion
cannot flood the journal; their last state is always recorded, and every request observes first.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final

from pact._fast import FileTable
from pact.agent.config import Config
from pact.agent.followers import Followers
from pact.agent.pace import Pace
from pact.agent.placing import Placing
from pact.agent.rescans import Rescans
from pact.agent.signatures import loaded, pack, written
from pact.agent.sources import Sources
from pact.agent.tracking import Tracking
from pact.core.node.events import Sighting
from pact.core.node.writers import together
from pact.declared.toml import Ignore
from pact.host.cpus import housekeeping_cpus
from pact.model import NS_PER_S, Attrs, Observation, Owner, Unreadable, decode_name, encode_name, split_id
from pact.observe import open_observers
from pact.observe.base import Lost, MountsChanged, Restored, Touched
from pact.observe.mountinfo import AUTOFS, MountEntry, read_mounts
from pact.observe.places import MOUNTS, RemotePlaces
from pact.observe.runs import Runs
from pact.observe.tree import check_path
from pact.resources import KINDS
from pact.resources.base import MOUNTS as MOUNTS_MOVED
from pact.resources.base import require_short

DRAIN_BATCH_MAX: Final = 4096
OBSERVE_BATCH_MAX: Final = 64  # of small files, a few milliseconds
SLOW_BYTES: Final = 8 << 20
ACTING_PAUSE_NS: Final = NS_PER_S // 50  # between two checks of what a running job does
SCAN_PIECE: Final = 64  # files that are checked before the mount table is checked for changes again
CACHE_NAME: Final = "signatures"
#: Kinds whose writes may move resources of other kinds.
MOVERS: Final = [k for k in KINDS.values() if any(k.name in other.moved_by for other in KINDS.values())]
#: The prefixes of ids about which the mount table gives news.
MOUNTED: Final = tuple(f"{k.name}:" for k in KINDS.values() if k.heeds(MOUNTS_MOVED))


class Watching:
    """Knows every declared resource, which of them are due, and the health of the observers."""

    def __init__(self, config: Config, now_ns: int, ignore: Ignore | None = None) -> None:
        self.observers = open_observers(
            fanotify=config.fanotify,
            inotify=config.inotify,
            realtime=config.realtime,
            proc_connector=config.proc_connector,
            cpus=tuple(config.cpus) or housekeeping_cpus(),
        )
        self.table = FileTable(content_max=SLOW_BYTES)
        self.followers = Followers(self.table, self.touch)
        self.runs = Runs(config.writers)
        self.sources = Sources(self.touch, self.of_kind, self.runs.owner, self.observers.remembered)
        self.tracking = Tracking(self.observers, ignore or Ignore())
        self.in_turns: Callable[[Iterable[Any]], Iterable[Any]] = iter  # who has a turn in between must not drain
        self.pending: dict[str, Owner | None] = {}
        self.lost: dict[str, str] = {}
        self.bad: dict[str, str] = {}  # resources that an older version declared, under impossible names
        self._mounts = -1  # the generation of the mount table that was read
        self.covered: dict[str, tuple[Attrs, Owner | None]] = {}
        self._acting: dict[int, frozenset[str]] = {}  # running job -> resources that it changes, and observes itself
        self._epoll: select.epoll | None = None
        self.quiet_until_ns = 0  # until then no event wakes the loop
        self._held: dict[str, Owner | None] = {}  # resources touched meanwhile: observed when the job has ended
        self._points: set[bytes] | None = None
        self.points_moved = False  # since they were saved
        self.delayed: dict[str, tuple[int, Owner | None]] = {}
        self.pace = Pace()
        self.asked = 0  # how many of the pending ones somebody waits for: the first ones
        self._hurried = 0  # and for how many of them the pace does not count
        self._cache = os.path.join(config.state_dir, CACHE_NAME)
        self._key_of: dict[str, int] = {}
        self.placing = Placing(self.table, self._key_of, self.bad)
        self._with_mounts: dict[str, None] = {}  # resources about which the mount table gives news
        self._resources: list[str | None] = []
        self._free: list[int] = []
        self.rescans = Rescans(config.rescan_ns, config.full_ns, now_ns)
        self._dirty = True
        self.cycle_ended = False

    # -- the declared set ---------------------------------------------------------------------------------------

    def wake_with(self, epoll: select.epoll) -> None:
        """Make ``epoll`` readable when there is something to drain."""
        self._epoll = epoll
        epoll.register(self.observers.fileno(), select.EPOLLIN)
        epoll.register(self.runs.fileno(), select.EPOLLIN)
        self.followers.wake_with(epoll)
        self.sources.wake_with(epoll)

    def add(self, resources: Iterable[str]) -> None:
        """Watch these resources. Watch first, then observe: the caller touches them."""
        paths: list[bytes] = []
        away: dict[bytes, bool] = {}
        for resource in resources:
            if resource in self._key_of:
                continue
            key = self._free.pop() if self._free else len(self._resources)
            if key == len(self._resources):
                self._resources.append(resource)
            else:
                self._resources[key] = resource
            self._key_of[resource] = key
            if KINDS[split_id(resource)[0]].moved_by:
                self.followers.add(resource, key)
            self.sources.want(resource)
            if resource.startswith(MOUNTED):
                self._with_mounts[resource] = None
            try:
                watched = self._watched(resource)
            # An older version accepted it: the journal has it, and one name must not end the agent.
            except ValueError as exc:
                self.bad[resource] = str(exc)
                watched = []
            self.placing.add(resource, key, watched[0] if watched else None, away)
            paths += watched
        self.observers.watch_many(paths)
        self._dirty = True

    @staticmethod
    def _watched(resource: str) -> list[bytes]:
        """The paths to watch for a resource. Raises ValueError if one is impossible."""
        kind, name = split_id(resource)
        paths = KINDS[kind].watch(name)
        for path in paths:
            check_path(path)
            require_short(path)
        return list(paths)

    def drop(self, resource: str) -> None:
        key = self._key_of.pop(resource, None)
        if key is None:
            return
        self.followers.drop(resource)
        self.sources.unwant(resource)
        self._resources[key] = None
        self._free.append(key)
        self._with_mounts.pop(resource, None)
        self.placing.drop(resource, key)
        if self.bad.pop(resource, None) is None:
            kind, name = split_id(resource)
            for path in KINDS[kind].watch(name):
                self.observers.unwatch(path)
        for waiting in (self.pending, self.delayed, self._held):
            waiting.pop(resource, None)
        self.pace.drop(resource)

    def __contains__(self, resource: str) -> bool:
        return resource in self._key_of

    # -- events -------------------------------------------------------------------------------------------------

    def drain_in_time(self, now_ns: int) -> None:
        """The same as ``drain``. While a job runs, most events are its own work: they are taken in bursts, because each
        turn of the loop takes the interpreter away from the job."""
        if now_ns < self.quiet_until_ns:
            return
        before = self.observers.taken
        self.drain()
        self._be_quiet(now_ns + ACTING_PAUSE_NS if self._acting and self.observers.taken != before else 0)

    def _be_quiet(self, until_ns: int) -> None:
        if self._epoll is not None and bool(until_ns) != bool(self.quiet_until_ns):
            self._epoll.modify(self.observers.fileno(), 0 if until_ns else select.EPOLLIN)
        self.quiet_until_ns = until_ns

    def drain(self) -> bool:
        """Take the observers' events. Returns True if there may be more."""
        events = self.observers.drain(DRAIN_BATCH_MAX)
        for event in self.in_turns(events):
            if isinstance(event, Touched):
                self._touched(event)
                self._wrote(event)
            elif isinstance(event, MountsChanged):
                owner = self.runs.owner(event.writer) if event.writer is not None else None
                self.refresh_mounts(owner)
                self.tracking.mounts_moved(owner)
                self._touch_with_mounts(owner)
            elif isinstance(event, Lost):
                self.tracking.walk_again()
                self.lost[event.observer] = event.why
                for resource in self._key_of:
                    self.touch(resource, None)
            elif isinstance(event, Restored):
                self.lost.pop(event.observer, None)
        if self.followers.drain_links():
            self.tracking.links_moved()
        for kind, owner in self.sources.drain().items():
            self.tracking.kind_moved(kind, owner)
        return len(events) >= DRAIN_BATCH_MAX

    def _touched(self, event: Touched) -> None:
        known = event.writer is not None and not event.own  # the core knows the owner of pact's own acts
        owner = self.runs.owner(event.writer) if known and event.writer is not None else None
        if self.tracking.follows_files:
            self.tracking.touched(event.path, owner)
        for kind in KINDS.values():
            name = kind.of_path(event.path)
            if name is not None and f"{kind.name}:{name}" in self._key_of:
                self.touch(f"{kind.name}:{name}", owner)

    def _wrote(self, event: Touched) -> None:
        """The write may have moved others, whether they are declared or not."""
        for kind in MOVERS:
            name = kind.of_path(event.path)
            if name is not None and event.own:
                self.followers.wrote_itself()
            elif name is not None:
                owner = self.runs.owner(event.writer) if event.writer is not None else None
                self.followers.wrote(f"{kind.name}:{name}", owner)

    def _touch_with_mounts(self, owner: Owner | None) -> None:
        """Touch all resources about which the mount table gives news."""
        for resource in self._with_mounts:
            self.touch(resource, owner)

    def touch(self, resource: str, owner: Owner | None) -> None:
        """It may have changed; an unidentified writer does not replace an identified one."""
        if any(resource in ids for ids in self._acting.values()):
            self._held[resource] = together(self._held.get(resource), owner)
            return
        due_ns, before = self.delayed.pop(resource, (0, self.pending.get(resource)))
        if due_ns and not self.pace.overtakes(resource, owner):
            self.delayed[resource] = (due_ns, together(before, owner))
        else:
            self.pending[resource] = together(before, owner)

    def begin(self, job: int, resources: Iterable[str]) -> None:
        """A job now changes these resources. Nothing is recorded of them until it ends, and an open descriptor would
        block the job: they are observed afterwards.  # R10"""
        self._acting[job] = frozenset(resources)
        self.tracking.rest(True)
        for resource in self._acting[job].intersection([*self.pending, *self.delayed]):
            late = self.delayed.pop(resource, (0, None))[1]
            self._held[resource] = together(late, self.pending.pop(resource, None))

    def end(self, job: int) -> None:
        if self._acting.pop(job, None) is not None:
            self.tracking.rest(bool(self._acting))
            self._be_quiet(0)
            held, self._held = self._held, {}
            for resource, owner in held.items():
                self.touch(resource, owner)

    def of_kind(self, kind: str) -> list[str]:
        return [r for r in self._key_of if r.startswith(kind + ":")]

    def refresh_places(self) -> list[MountEntry]:
        """Update which paths lie on file systems that may hang. Returns the mount table; empty if it cannot be read."""
        generation = MOUNTS.generation()  # before the table is read: a change in between is seen the next time
        try:
            mounts = read_mounts()
        except (OSError, ValueError):
            return []
        self._mounts = generation
        for resource in self.placing.change(RemotePlaces((m.mount_point, m.fstype) for m in mounts)):
            self.touch(resource, None)
        return mounts

    def _keep_clear(self) -> None:
        """Called right before an observation on the loop: a newer mount may hang.  # F13"""
        if MOUNTS.generation() != self._mounts:
            self.refresh_places()

    def refresh_mounts(self, owner: Owner | None = None) -> None:
        """Update the places that may hang, and find new mounts over declared paths."""
        mounts = self.refresh_places()
        if not mounts:
            return
        points = {m.mount_point: m for m in mounts}
        fresh = [] if self._points is None else [m for p, m in points.items() if p not in self._points]
        self.points_moved |= self._points != set(points)
        self._points = set(points)
        # What an automounter mounts on itself is its own work.
        on_demand = {m.mount_point for m in mounts if m.fstype == AUTOFS}
        for mount in fresh:
            if mount.mount_point in on_demand:
                continue
            for kind in KINDS.values():
                found = kind.of_mount(mount)
                resource = "" if found is None else f"{kind.name}:{found[0]}"
                if found is not None and resource not in self._key_of and self.placing.hides(mount.mount_point):
                    self.covered[resource] = (found[1], owner)

    def _place_lately(self, keys: Iterable[int]) -> None:
        """Place what was not placed since the places that may hang changed.  # F13"""
        late = [r for r in map(self._resources.__getitem__, self.placing.late(keys)) if r is not None]
        for resource in self.placing.again(late):
            self.touch(resource, None)

    # -- what is due --------------------------------------------------------------------------------------------

    def recorded(self, resources: Iterable[str], now_ns: int, size: int = 0, *, theirs: bool = True) -> None:
        """Their drift was just journaled: observe them again only after a pause, which is longer for those that keep
        moving. ``size``: of what was recorded of each; what is long counts as several. ``theirs``: others than root may
        move it; what root alone moves has its own pace, and is not held up by them."""
        for resource in resources:
            self.look_anew(resource)
            self.pace.recorded(resource, now_ns, size, theirs=theirs)

    def ask(self, now_ns: int, *, everything: bool) -> None:
        """Somebody waits until what is pending now was observed: see ``asked``. ``everything``: without regard to the
        pace."""
        self._awaken(now_ns, everything=everything)
        self.asked = len(self.pending)
        if everything:
            self._hurried = self.asked

    def _awaken(self, now_ns: int, *, everything: bool) -> None:
        self.followers.find(now_ns, everything=everything)
        for resource in [r for r, (t, _) in self.delayed.items() if everything or t <= now_ns]:
            self.pending[resource] = self.delayed.pop(resource)[1]

    def take(self, now_ns: int, *, everything: bool = False) -> list[tuple[str, Owner | None]]:
        """At most a batch of resources to observe now, with the last identified writer."""
        self._awaken(now_ns, everything=everything)
        out: list[tuple[str, Owner | None]] = []
        batch = list(islice(self.pending, OBSERVE_BATCH_MAX))
        hurried = OBSERVE_BATCH_MAX if everything else self._hurried
        self.asked, self._hurried = max(0, self.asked - len(batch)), max(0, self._hurried - len(batch))
        for at, resource in enumerate(batch):
            owner = self.pending.pop(resource)
            if at < hurried:
                self.pace.forget(resource)
                out.append((resource, owner))
            elif (due_ns := self.pace.due_ns(resource, owner, now_ns)) > now_ns:
                self.delayed[resource] = (due_ns, owner)
            else:
                out.append((resource, owner))
        if not self.pending:
            self.asked = self._hurried = 0
        return out

    @property
    def has_due(self) -> bool:
        return bool(self.pending)

    def observe(
        self, wanted: Iterable[tuple[str, Owner | None]], slow: Callable[[str, Owner | None], None]
    ) -> list[Sighting]:
        """Observe each. Resources that may hang or take long go to ``slow``."""
        wanted = [(r, o) for r, o in wanted if r in self._key_of]
        self._keep_clear()
        if self.placing.remote:
            self.placing.again(r for r, _ in wanted)  # a link on the way may have been replaced
        keys = [self._key_of[r] for r, _ in wanted]
        moved = self._scanned(keys)  # an observation is never older than the baseline
        self.followers.seen_moved(moved, wanted)
        out = []
        looks: dict[str, Callable[[str], Observation]] = {}
        for resource, owner in self.in_turns(wanted):
            kind, name = split_id(resource)
            if resource in self.bad:
                out.append(Sighting(resource, Unreadable(self.bad[resource]), owner))
            elif KINDS[kind].off_loop or self._too_slow(resource):
                slow(resource, owner)
            else:
                look = looks.get(kind) or looks.setdefault(kind, KINDS[kind].many())
                out.append(Sighting(resource, look(name), owner, self.followers.cause_of(resource)))
        return out

    def _scanned(self, keys: Sequence[int], full: bool = False, alive: Callable[[], None] = lambda: None) -> list[int]:
        """Those that differ from their last observation; in pieces, so that no new mount is missed in between."""
        found: list[int] = []
        for first in range(0, len(keys), SCAN_PIECE):
            piece = keys[first : first + SCAN_PIECE]
            alive()
            self._keep_clear()
            self._place_lately(piece)
            found += self.table.scan([k for k in piece if k in self.table], full=full)
        return found

    def _too_slow(self, resource: str) -> bool:
        kind, name = split_id(resource)
        if not KINDS[kind].reads_path:
            return KINDS[kind].lingers(name)
        self._keep_clear()
        self._place_lately([self._key_of[resource]])
        if not self._in_table(resource):
            return True
        try:
            return os.lstat(KINDS[kind].watch(name)[0]).st_size > SLOW_BYTES
        except OSError:
            return False

    # -- the rescan ---------------------------------------------------------------------------------------------

    @property
    def cycles(self) -> int:
        """How many rescans have ended."""
        return self.rescans.cycles

    def next_ns(self) -> int:
        """When something here is due by time."""
        slice_ns = self.rescans.next_ns
        delayed = min((t for t, _ in self.delayed.values()), default=slice_ns)
        moved = self.followers.next_ns()
        return min(slice_ns, delayed, self.quiet_until_ns or slice_ns, *(() if moved is None else (moved,)))

    def rescan_due(self, now_ns: int) -> None:
        """One slice of the periodic rescan, if its time has come."""
        rescans = self.rescans
        if now_ns < rescans.next_ns:
            return
        if rescans.begins(now_ns):
            self.refresh_mounts()
            self._touch_with_mounts(None)
        self.observers.remark_some(rescans.at, rescans.count)
        self._scan(rescans.part(len(self._resources)))
        self.tracking.rescan(rescans.at, rescans.count)
        if rescans.ended():
            self.cycle_ended = True
            for name in list(self.lost):
                self.observers.recovered(name)

    def _scan(self, keys: Sequence[int], alive: Callable[[], None] = lambda: None) -> None:
        self._keep_clear()
        self._place_lately(keys)
        scannable: list[int] = []
        others: list[int] = []
        for key in keys:
            resource = self._resources[key]
            if resource is None or any(resource in w for w in (self.pending, self.delayed, self._held)):
                continue  # it is observed anyway, and may hang by now
            (scannable if key in self.table else others).append(key)
        found = self._scanned(scannable, self.rescans.full, alive)
        self._dirty |= bool(found)
        self.followers.seen_moved(found, [])
        for changed in map(self._resources.__getitem__, found):
            assert changed is not None
            self.touch(changed, None)
        for resource in map(self._resources.__getitem__, others):
            if resource is not None and not resource.startswith(MOUNTED):
                self.touch(resource, None)

    def rescan_all(self, alive: Callable[[], None] = lambda: None) -> None:
        """Scan everything at once: after a start, and after an observer was blind. ``alive`` is called again and again
        meanwhile."""
        self._scan(range(len(self._resources)), alive)
        self.tracking.walk_again()
        self._touch_with_mounts(None)

    def points(self) -> list[str]:
        """The mount points known now, for the next run to compare with."""
        return sorted(encode_name(p) for p in self._points or ())

    def remember_points(self, names: Iterable[str] | None) -> None:
        """The mount points that the last run of this boot knew; ``None``: the present ones are accepted."""
        self._points = None if names is None else {decode_name(n) for n in names}

    # -- the cache ----------------------------------------------------------------------------------------------

    def load_cache(self, moved_since: Callable[[int, str], set[str] | None]) -> int:
        """Load the signatures of the last run. Returns how many. Resources that later records mention are
        observed.  # J5"""
        taken, moved = loaded(self._cache, self.table, moved_since)
        for resource in moved:
            self.look_anew(resource)
        return taken

    def look_anew(self, resource: str) -> None:
        """Forget its signature (the observation may not belong to it): the next scan finds the resource changed."""
        if resource in self._key_of and self._in_table(resource):
            kind, name = split_id(resource)
            self.table.put(self._key_of[resource], KINDS[kind].watch(name)[0], KINDS[kind].always_read)

    def save_cache(self, waiting: Iterable[str], unreadable: Iterable[str], seq: int, hash_: str) -> None:
        """A signature must never be newer than the journal's state after record ``seq``: resources that are pending, or
        ``waiting`` to be observed or recorded, are observed again after a start, and so are unreadable ones. One file
        in constant motion must not keep the others from being saved."""
        if not self._dirty:
            return
        self.cycle_ended = False
        for resource in (*self.pending, *self.delayed, *self._held, *waiting, *unreadable):
            self.look_anew(resource)
        self._dirty = not written(self._cache, pack(seq, hash_, self.table.dump()))

    def _in_table(self, resource: str) -> bool:
        return self._key_of[resource] in self.table

    def health(self) -> dict[str, str]:
        health = {**self.observers.health(), **self.sources.health()}
        for name, why in self.lost.items():
            if health.get(name, "ok") == "ok":
                health[name] = why
        if (new := self.tracking.health()) != "ok":
            health["tracking"] = new
        if self.followers.why_blind:
            health["links"] = self.followers.why_blind
        if self.bad:
            first = min(self.bad)
            health["names"] = f"{len(self.bad)} cannot be watched: {first[:80]}: {self.bad[first][:160]}"
        return health

    def close(self) -> None:
        self.observers.close()
        self.followers.close()
        self.sources.close()
        self.runs.close()
