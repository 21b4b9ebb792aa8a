"""A virtual node with a shell like the real one: it remembers signatures, works off the loop, and observes twice.

``World`` observes and answers at once. Here

- signatures of observations are saved with the record for which they are true, and a start observes only resources for
  which they are no proof (as ``agent/signatures.py`` does);  # J5
- a job's observation may be old when its answer comes, or is made late, or is never answered; other jobs go on
  meanwhile;
- resources that a job observed are observed once more after they were recorded (as ``Agent._recorded`` does);  # C5
- new things below tracked patterns, and mounts over declared paths, are found by comparing with what was known
  before.  # U1, R7

``faults`` names rules that may be left out, so that tests can show that a simulation notices.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from pact.core.node.events import (
    Act,
    Acted,
    Appeared,
    Covered,
    Discover,
    Effect,
    Event,
    Look,
    Looked,
    New,
    Observed,
    Probe,
    Probed,
    Sighting,
    Ticked,
)
from pact.core.node.tracked import mode_of
from pact.core.records import Record
from pact.model import NS_PER_S, Attrs, Owner, Unreadable
from pact.resources import KINDS
from pact.resources.base import MOUNTS
from pact.sim.world import World

#: A mount here hides declared paths.
OVER: Final = "mount:/over"
#: How long a slow worker may take.
WAITS_NS: Final = tuple(ms * NS_PER_S // 1000 for ms in (1, 100, 5_000, 70_000, 2_000_000))
NEVER_NS: Final = 1 << 62
#: After more records than this a start observes everything.
RECORDS_MAX: Final = 64
_UNSEEN: Final = object()
_READ: Final = (Looked, Probed)
_DECLARING: Final = frozenset({"declared", "adopted", "applied", "committed", "commit_expired"})

LOOSE_CACHE: Final = "signatures are true for any journal"
ONE_LOOK: Final = "what a job has read is not looked at again"


@dataclass
class ShellWorld(World):
    """See the module. ``slow`` is the share of jobs that take long, or hang; ``rng`` decides which."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))
    slow: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.table: dict[str, Any] = {}  # what the shell itself observed last
        self.saved: tuple[int, str, dict[str, Any]] | None = None  # on disk: number and hash of the record, the table
        self.points: set[str] = set()
        self.saved_points: set[str] = set()
        self.covered: list[str] = []  # mounts that are new, and neither recorded nor owed
        self._late: list[tuple[int, int, Callable[[], Event]]] = []
        self._late_n = 0
        self._busy_until_ns: dict[str, int] = {}  # change -> when the last job about it has ended
        self._moving: dict[int, frozenset[str]] = {}  # running job -> resources that it changes
        self._held: dict[str, Owner | None] = {}  # touched meanwhile

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self, declared: Any = None, *, reboot: bool = False) -> None:
        super().start(declared, reboot=reboot)
        if self.running:
            self.cover()
        if self.running:
            self.feed(self._walked)

    def _first_sightings(self) -> list[Sighting]:
        """Only resources for which the saved signatures are no proof."""
        self._notice()
        state = self.node.state
        self.table = self._vouched()
        suspect = [r for r in state.declared_ids() if r in state.member_of or self._suspect(r)]
        return [Sighting(r, self.look(r)) for r in suspect]

    def _vouched(self) -> dict[str, Any]:
        if self.saved is None:
            return {}
        seq, hash_, table = self.saved
        if LOOSE_CACHE in self.faults:
            return dict(table)
        records = self.journal
        if not seq < len(records) <= seq + RECORDS_MAX or records[seq].hash != hash_:
            return {}
        said = orjson.dumps([record.data for record in records[seq + 1 :]])
        return {r: seen for r, seen in table.items() if orjson.dumps(r) not in said}

    def save(self) -> None:
        """Save the signatures, unless there are observations that the journal lacks."""
        if self.lost or not self.running or self.node.jobs or self.queue or self._held or self._moving:
            return
        state, unreadable = self.node.state, self.node.unreadable
        kept = {r: seen for r, seen in self.table.items() if r in state and r not in unreadable}
        self.saved = state.seq, state.hash, kept

    def _forget(self) -> None:
        super()._forget()
        self.table.clear()
        self._late.clear()
        self._busy_until_ns.clear()
        self._moving.clear()
        self._held.clear()
        self.covered, self.points = [], set(self.saved_points)

    def reboot(self, down_ns: int = 0) -> None:
        self.saved_points = set()  # no mount of another boot exists
        super().reboot(down_ns)

    # -- looking ------------------------------------------------------------------------------------------------

    def look(self, resource: str) -> Attrs | Unreadable | None:
        self.table[resource] = self.machine.get(resource)
        return self.observe(resource)

    def _suspect(self, resource: str) -> bool:
        if KINDS[resource.partition(":")[0]].heeds(MOUNTS) or resource in self.unreadable:
            return True
        return bool(self.table.get(resource, _UNSEEN) != self.machine.get(resource))

    def see(self, resource: str, owner: Owner | None = None, moved_with: str = "") -> None:
        if not self._hold(resource, owner):
            super().see(resource, owner, moved_with)

    def touch(self, resource: str, owner: Owner | None = None) -> None:
        def make() -> Event:
            if self._hold(resource, owner):
                return Ticked(self.t_ns, self.wall_ns)
            return Observed(self.t_ns, self.wall_ns, [Sighting(resource, self.look(resource), owner)])

        self.queue.append(make)

    def _hold(self, resource: str, owner: Owner | None) -> bool:
        """Whether a job changes the resource now: then it is observed afterwards.  # R10"""
        if not self._moving or not any(resource in ids for ids in self._moving.values()):
            return False
        self._held[resource] = owner or self._held.get(resource)
        return True

    def rescan(self) -> None:
        """Find changes without events: declared resources whose signatures have changed, and new or gone things."""
        self._rescan()
        self._drain()

    def _rescan(self) -> None:
        for resource in list(self.node.state.declared_ids()):
            if self._suspect(resource):
                self.touch(resource)
        self.queue.append(self._walked)

    def _walked(self) -> Event:
        """New things below tracked patterns, and those that are gone."""
        node, state = self.node, self.node.state
        waiting = node.pace.waiting
        fresh = [
            r
            for r, v in self.machine.items()
            if v is not None and r not in state and r not in state.untracked and r not in waiting and mode_of(node, r)
        ]
        gone = [r for r in (*state.untracked, *waiting) if self.machine.get(r) is None]
        if not fresh and not gone:
            return Ticked(self.t_ns, self.wall_ns)
        return Appeared(self.t_ns, self.wall_ns, [New(r, {"type": "file"}, None) for r in fresh], gone)

    def cover(self, owner: Owner | None = None) -> None:
        """Report mounts over declared paths that are new since the last look."""
        self._notice()
        while self.covered and self.running:
            value = self.machine[self.covered[0]]
            if value is not None:
                self.tell(Covered(self.t_ns, self.wall_ns, {self.covered[0]: value}, owner))
            del self.covered[:1]  # it is durable, or owed
        self._save_points()

    def _notice(self) -> None:
        there = {r for r, value in self.machine.items() if r.startswith(OVER) and value is not None}
        self.covered += sorted(there - self.points - set(self.covered))
        self.points = there

    def _save_points(self) -> None:
        """Not while such a mount is owed: a later run that finds it saved would never record it."""
        if self.running and not self.lost and not self.owed and not self.covered:
            self.saved_points = set(self.points)

    # -- the step -----------------------------------------------------------------------------------------------

    def _step(self, event: Event) -> None:
        if isinstance(event, Acted):
            self._moving.pop(event.job, None)
            if not self._moving:
                held, self._held = self._held, {}
                for resource, owner in held.items():
                    self.touch(resource, owner)
        super()._step(event)
        if isinstance(event, _READ) and self.running and not self.lost and ONE_LOOK not in self.faults:
            self._touch_declared(s.resource for s in event.sightings)

    def _recorded(self, records: Iterable[Record]) -> None:
        super()._recorded(records)
        for record in records:
            self._note_readers(record)
            if record.type in _DECLARING:
                self._save_points()
                data = record.data
                for resource in data.get("forgotten", ()):
                    self.table.pop(resource, None)
                if ONE_LOOK not in self.faults:  # the observation may be old, and no more events come  # C5
                    self._touch_declared((*data.get("resources", ()), *data.get("baseline", ())))

    def _note_readers(self, record: Record) -> None:
        """Nobody has to be told any more of what a person accepts, or of what nobody reads.  # R14"""
        if not self.stale:
            return
        for resource, value in record.data.get("resources", {}).items() if record.type in _DECLARING else ():
            accepted = record.type == "committed" and resource not in record.data.get("owed", ())
            if accepted or value is None or (record.type != "applied" and not value.get("notify")):
                self.stale.discard(resource)
        self.stale.difference_update(record.data.get("forgotten") or ())

    def _touch_declared(self, resources: Iterable[str]) -> None:
        for resource in resources:
            if resource in self.node.state:
                self.touch(resource)

    def _return(self) -> None:
        super()._return()
        self._save_points()

    def _record_backlog(self) -> None:
        super()._record_backlog()
        if self.running and not self.lost:
            self._rescan()

    # -- workers ------------------------------------------------------------------------------------------------

    def wake_ns(self) -> int | None:
        wake = super().wake_ns()
        if self._late and (wake is None or self._late[0][0] < wake):
            return self._late[0][0]
        return wake

    def tick(self) -> None:
        while self._late and self._late[0][0] <= self.t_ns:
            self.queue.append(heapq.heappop(self._late)[2])
        super().tick()

    def _later(self, at_ns: int, make: Callable[[], Event]) -> None:
        self._late_n += 1
        heapq.heappush(self._late, (at_ns, self._late_n, make))
        self.bell.rung = True

    @property
    def takes_time(self) -> bool:
        """Whether an answer comes late, or may."""
        return bool(self.slow or self._late)

    def unhang(self) -> None:
        """Work that hung or was slow goes on now, in its order."""
        self.slow = 0.0
        while self._late and self.running:
            late, self._late = sorted(self._late), []
            self._busy_until_ns.clear()
            self.queue.extend(make for _, _, make in late)
            self._drain()

    def _note_acting(self, effect: Effect) -> None:
        super()._note_acting(effect)
        if isinstance(effect, Act):
            self._moving[effect.job] = frozenset((*(s.id for s in effect.steps), *effect.below))

    def _submit(self, effect: Look | Probe | Act | Discover) -> None:
        """Observe, or act, now or late; answer then or later, or never. Jobs about one change are done in order."""
        self._note_acting(effect)
        job = self.node.jobs.get(effect.job)
        about = (job.change if job is not None else None) or ""
        free_ns = self._busy_until_ns.get(about, 0) if about else 0
        takes = self.slow and self.rng.random() < self.slow
        if not takes and free_ns <= self.t_ns:
            self.queue.append(self._work(effect))
            return
        read_ns = max(self.t_ns, free_ns)
        answer_ns = read_ns
        if takes:
            wait_ns = WAITS_NS[int(self.rng.random() * len(WAITS_NS))]
            how = self.rng.random()
            if how < 0.1:
                read_ns = answer_ns = NEVER_NS
            elif how < 0.6:
                answer_ns += wait_ns
            else:
                read_ns, answer_ns = read_ns + wait_ns, answer_ns + 2 * wait_ns
        if about:
            self._busy_until_ns[about] = answer_ns
        if read_ns <= self.t_ns:
            self._later(answer_ns, self._work(effect))
        else:
            self._later(read_ns, lambda: self._read(effect, answer_ns))

    def _read(self, effect: Look | Probe | Act | Discover, answer_ns: int) -> Event:
        answer = self._work(effect)
        if answer_ns <= self.t_ns:
            return answer()
        self._later(answer_ns, answer)
        return Ticked(self.t_ns, self.wall_ns)
