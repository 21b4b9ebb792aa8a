"""One virtual node. The core is the real one; the machine is a dictionary, the journal a list, the clock a number.

The simulation can fail as the real system does: the process dies between any two effects, the disk refuses a
transaction (``Disk`` has the ways), a resource cannot be restored, a consumer holds it, somebody changes it between
decision and action. The shell here is an ideal one, which observes everything at once; ``ShellWorld`` has one with the
memory and the delays of the real one.

What is checked, and how often:

- at every step: no automatic rollback begins under a hold of the fleet that the node has got; no refused record is in
  the journal; no two jobs act on one change;
- at every ``CHECK_EVERY``-th start or reload, and in ``check`` (the end of every life): the journal folded from zero
  is the state that went on from a snapshot;
- when the caller says so: ``state.check()``, that the parts of the state agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pact.core.node import debts
from pact.core.node.events import (
    Act,
    Acted,
    Appeared,
    AppendRecord,
    Asked,
    Caller,
    ContactChanged,
    Covered,
    Denied,
    Discover,
    Effect,
    Event,
    FleetTold,
    JobsEnded,
    Look,
    Looked,
    New,
    Observed,
    Probe,
    Probed,
    Recheck,
    Reconfigured,
    Reply,
    Scanned,
    Sighting,
    Started,
    Ticked,
)
from pact.core.node.step import Node
from pact.core.node.suspend import older
from pact.core.ops import Op, made
from pact.core.plan import Step
from pact.core.records import Record
from pact.core.settings import Settings
from pact.errors import EXIT_UNREACHABLE
from pact.model import NS_PER_S, Attrs, Declared, Holder, Owner, Unreadable
from pact.sim import working
from pact.sim.disk import Disk, DiskFull
from pact.sim.parts import Bell, SimRules, person, with_settings

__all__ = ["EPOCH_NS", "FORGETS", "NO_MARK", "Bell", "Crashed", "SimRules", "World", "person", "with_settings"]

EPOCH_NS = 1_800_000_000 * NS_PER_S
DRAIN_MAX = 10_000
#: Events that a node must get, if not now, then when there is a journal again; of the last three only the newest
#: counts.
OWED: Final = (Covered, Denied, JobsEnded, FleetTold, ContactChanged, Reconfigured)
NEWEST: Final = (FleetTold, ContactChanged, Reconfigured)

#: The possible members of ``World.faults``.
FORGETS: Final = "what is owed is forgotten"
NO_MARK: Final = "nothing says that a record was refused"


class Crashed(Exception):
    """The process died at this point."""


@dataclass
class World:
    """A machine with one agent."""

    settings: Settings = field(default_factory=with_settings)
    machine: dict[str, Attrs | None] = field(default_factory=dict)
    boot_values: dict[str, Attrs | None] = field(default_factory=dict)
    holders: dict[str, list[Holder]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    stubborn: set[str] = field(default_factory=set)
    #: Resources of which nobody can be told that a plan has moved them.
    deaf: set[str] = field(default_factory=set)
    #: Resources that do not stay as they were restored.
    fickle: set[str] = field(default_factory=set)
    #: Resources that a plan has moved, and whose readers do not know it.
    stale: set[str] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)
    t_ns: int = 0
    wall_ns: int = EPOCH_NS
    boot: int = 1
    journal: list[Record] = field(default_factory=list)
    replies: dict[int, Reply] = field(default_factory=dict)
    disk_full: bool = False
    crash_after: int | None = None
    killed: dict[str, int] = field(default_factory=dict)  # change -> runs in a row that ended during its rollback
    before_act: Callable[[World, Step], None] | None = None
    before_told: Callable[[World], None] | None = None
    after_told: Callable[[World, Sequence[str]], None] | None = None
    offset_ns: int = 0
    name: str = "sim"
    clustered: bool = False
    #: Rules of the shell that are broken on purpose: tests show that a simulation notices.
    faults: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.queue: deque[Callable[[], Event]] = deque()
        self.disk = Disk(self.journal)
        self.bell = Bell()
        self.token = 0
        self.node: Node
        self.running = False
        self.lost = False  # nothing can be recorded
        self.reload_owed = False  # nor can the durable state be read
        self.owed: list[Event] = []
        self.unrecorded: dict[str, Owner | None] = {}  # resource seen meanwhile -> the last identified writer
        self._asked: set[int] = set()  # requests that wait for their replies
        self._acting: dict[int, str] = {}  # job that acts -> its change
        self._stops: dict[str, int] = {}  # hold of the fleet that this process has got -> when it ends
        self._stops_mark = (0, 0)  # the newest message about holds
        self._wake: int | None = None  # when the node wants to be woken
        self._asleep = False  # ``_wake`` is valid

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self, declared: dict[str, Declared] | None = None, *, reboot: bool = False) -> None:
        """Start the agent with the present journal. It does not start on a disk that fails completely."""
        self._forget()
        self.running = not (self.disk.unreadable and self.journal)
        if not self.running:
            return
        self.node = Node(self.name, SimRules(), self.disk.load())
        given = {r: d.to_json() for r, d in (declared or {}).items()}
        self.feed(
            lambda: Started(
                self.t_ns,
                self.wall_ns,
                f"boot{self.boot}",
                self.offset_ns,
                self.settings,
                "sim",
                reboot,
                given,
                clustered=self.clustered,
            )
        )
        if self.lost:
            self.crash()
        if self.running:
            seen = self._first_sightings()
            self.feed(lambda: Scanned(self.t_ns, self.wall_ns, seen, reboot, self.killed))

    def _first_sightings(self) -> list[Sighting]:
        return [Sighting(r, self.look(r)) for r in self.node.state.declared_ids()]

    def _forget(self) -> None:
        """Drop everything that a process had in memory."""
        self.queue.clear()
        self.bell.rung = True
        self._asleep = self.lost = self.reload_owed = False
        self.owed.clear()
        self.unrecorded.clear()
        self._asked.clear()
        self._acting.clear()
        self._stops.clear()
        self._stops_mark = (0, 0)

    def crash(self) -> None:
        """SIGKILL: everything outside the journal is lost."""
        self.running = False
        self._forget()
        self.disk.killed(self.node.state)

    def reboot(self, down_ns: int = 0) -> None:
        """Power cycle: volatile resources get their boot values, and the clock advances by the time down."""
        self.crash()
        self.boot += 1
        self.t_ns += down_ns
        self.wall_ns += down_ns
        self.holders.clear()
        for resource in self.machine:
            if self.node.rules.volatile(resource):
                self.machine[resource] = self.boot_values.get(resource)
        self.start(reboot=True)

    # -- what people and processes do ---------------------------------------------------------------------------

    def write(self, resource: str, value: Attrs | None, owner: Owner | None, moved_with: str = "") -> None:
        """Somebody changes the machine, or a write moves another resource, and the observers see it."""
        self.machine[resource] = value
        self.see(resource, owner, moved_with)

    def see(self, resource: str, owner: Owner | None = None, moved_with: str = "") -> None:
        seen = self.look(resource)
        self.feed(lambda: Observed(self.t_ns, self.wall_ns, [Sighting(resource, seen, owner, moved_with)]))

    def create(self, resource: str, value: Attrs | None, owner: Owner | None) -> None:
        """Somebody makes, or removes, an undeclared thing."""
        self.machine[resource] = value
        found = [] if value is None else [New(resource, {"type": "file"}, owner)]
        gone = [resource] if value is None else []
        self.feed(lambda: Appeared(self.t_ns, self.wall_ns, found, gone))
        if resource in self.node.state:
            self.see(resource, owner)

    def ask(self, op: str, caller: Caller, **args: Any) -> Reply | None:
        """Send a request; returns ``None`` if a crash interrupted it."""
        return self.request(made(op, args), caller)

    def request(self, request: Op, caller: Caller) -> Reply | None:
        self.token += 1
        token = self.token
        self.feed(lambda: Asked(self.t_ns, self.wall_ns, token, request, caller))
        return self.replies.pop(token, None)

    def advance(self, ns: int) -> None:
        """Let time pass, waking the agent when it asked to be woken."""
        end = self.t_ns + ns
        while self.running:
            wake = self.wake_ns()
            if wake is None or wake > end:
                break
            self._to(max(wake, self.t_ns))
            before = len(self.journal), wake
            self.tick()
            if self.running and (len(self.journal), self.wake_ns()) == before:
                self._to(min(end, self.t_ns + NS_PER_S // 100))  # an early wake: nothing was due yet
                if self.t_ns == end:
                    break
        self._to(end)
        if self.running:
            self.tick()

    def wake_ns(self) -> int | None:
        """When the agent wants to be woken; ``None`` while nothing waits, or nothing can be recorded."""
        if self.lost:
            return None if self._cannot_return() else self.t_ns
        if not self._asleep:
            self._wake, self._asleep = self.node.next_wake_ns(), True
        return self._wake

    def tick(self) -> None:
        self._step(Ticked(self.t_ns, self.wall_ns))
        if self.queue:
            self._drain()

    def _to(self, t_ns: int) -> None:
        self.wall_ns += t_ns - self.t_ns
        self.t_ns = t_ns

    # -- the shell ----------------------------------------------------------------------------------------------

    def feed(self, make: Callable[[], Event]) -> None:
        """Step the core with an event and carry out everything that follows."""
        self.queue.append(make)
        self._drain()

    def _drain(self) -> None:
        queue = self.queue
        for _ in range(DRAIN_MAX):
            if not queue or not self.running:
                return
            make = queue.popleft()
            try:
                event = make()
            except Crashed:
                self.crash()
            else:
                self._step(event)
        raise AssertionError("the effects do not end")

    def _step(self, event: Event) -> None:
        self.bell.rung = True
        if self.lost:
            self._return()
            if not self.running:
                return
            if self.lost:
                self._heard_without_journal(event)
                return
        try:
            if type(event) is Asked:
                self._asked.add(event.token)
            self._asleep = False
            acted = event if isinstance(event, Acted) and event.job in self.node.jobs else None
            effects = self.node.step(event)
            if acted is not None:
                self._check_owed(acted)
            if effects or self.crash_after is not None:
                self._perform(effects)
        except Crashed:
            self.crash()
        except DiskFull as exc:
            try:
                self._journal_lost(event, exc)
            except Crashed:
                self.crash()

    def _check_owed(self, event: Acted) -> None:
        """Who could not be told is told with a rollback of the change that has the resource, when an application is
        taken back, or later.  # R14"""
        state, undone = self.node.state, {r for ids in self.node.converging.values() for r in ids}
        lost = [r for r in event.untold if r in state and not debts.of(state, r) and r not in undone]
        assert not lost, f"who reads these was not told, and will not be: {lost}"

    def _perform(self, effects: list[Effect]) -> None:
        if not effects:
            if self.crash_after is not None:
                self.maybe_crash()
            return
        records = [e.record for e in effects if type(e) is AppendRecord]
        if records and self.disk_full:
            raise self.disk.refuse(records)
        if self.crash_after is not None:
            self.maybe_crash()
        if records:
            self.disk.append(records)
            self._recorded(records)
        for effect in effects:
            if self.crash_after is not None:
                self.maybe_crash()
            if type(effect) is not AppendRecord:
                self._carry_out(effect)

    def _recorded(self, records: Iterable[Record]) -> None:
        """These records are durable."""
        for record in records:
            if record.type == "hold_released":
                self._stops.pop(record.data["hold"], None)
            if record.type == "rollback_started" and record.data["cause"] in ("expired", "retry"):
                stopped = [hold for hold, end in self._stops.items() if end > self.t_ns]
                assert not stopped, (record.seq, "rolled back though the fleet was stopped", stopped)  # G8

    # -- a journal that cannot be written -----------------------------------------------------------------------

    def _cannot_return(self) -> bool:
        return self.disk_full or (self.reload_owed and self.disk.unreadable)

    def _journal_lost(self, event: Event, error: DiskFull) -> None:
        """Nothing of this step has happened: return to the durable state, and go on watching.  # J4"""
        self.lost = True
        if error.torn:
            self.maybe_crash()
            if NO_MARK not in self.faults:
                self.disk.note_refused()  # before anybody is told
        for token in self._asked:
            self.replies[token] = Reply(token, {}, EXIT_UNREACHABLE, "journal: the disk is full")
        if self._asked and not self.disk.unknown:
            self.disk.never.update(r.hash for r in error.records)
        self._asked.clear()
        self._reload()
        self._heard_without_journal(event)

    def _reload(self) -> None:
        """Return to the durable state; if that cannot be read either, go on with the state in memory.  # F3"""
        self.reload_owed = self.disk.unreadable
        if self.reload_owed:
            return
        before = self.node
        self.node = Node(self.name, SimRules(), self.disk.load(), jobs_from=before.jobs_numbered)
        self.node.unreadable = before.unreadable
        self.node.alone_since_ns, self.node.ended_runs = before.alone_since_ns, before.ended_runs
        self.node.fleet_fence, self.node.fleet_seq = before.fleet_before
        self._asleep = False

    def _heard_without_journal(self, event: Event) -> None:
        if isinstance(event, OWED):
            if FORGETS not in self.faults:
                self._owe(event)
        elif isinstance(event, Asked):
            self.replies[event.token] = Reply(event.token, {}, EXIT_UNREACHABLE, "journal: the disk is full")
        elif isinstance(event, Observed | Scanned | Acted | Probed | Looked):
            for sighting in event.sightings:
                named = sighting.owner or self.unrecorded.get(sighting.resource)
                self.unrecorded[sighting.resource] = named
        if isinstance(event, Acted):
            self._acting.pop(event.job, None)

    def _owe(self, event: Event) -> None:
        """Keep an event as owed. If only the newest of its type counts, keep only that.  # J9"""
        if isinstance(event, FleetTold) and any(isinstance(e, FleetTold) and older(event, e) for e in self.owed):
            return
        if isinstance(event, NEWEST):
            self.owed = [e for e in self.owed if type(e) is not type(event)]
        self.owed.append(event)

    def tell(self, event: Event) -> None:
        """Pass an event to the core, now or when there is a journal again.  # J9"""
        if isinstance(event, FleetTold) and self.running:
            self._note_stops(event)
        self.feed(lambda: event)

    def _note_stops(self, event: FleetTold) -> None:
        """Note the holds of the whole fleet, whether they can be recorded or not. An older message is ignored."""
        state, mark = self.node.state, (event.fence, event.seq)
        if mark >= self._stops_mark and mark >= (state.fence, state.fleet_seq):
            self._stops_mark = mark
            self._stops = {h["hold"]: self.t_ns + h["left_ns"] for h in event.holds}

    def _return(self) -> None:
        """If the journal can be written again: record what is owed first, then the later observations."""
        if self._cannot_return():
            return
        if self.reload_owed:
            self._reload()
        self.lost = False
        while self.owed and self.running and not self.lost:
            event = self.owed.pop(0)
            self._step(replace(event, t_ns=self.t_ns, wall_ns=self.wall_ns))
        if self.running and not self.lost:
            self._record_backlog()

    def _record_backlog(self) -> None:
        """Record the observations, and resume interrupted rollbacks."""
        waiting, self.unrecorded = self.unrecorded, {}
        if self.node.state.boot_owed is not None:  # B3
            waiting = {r: waiting.get(r) for r in self.node.state.declared_ids()}
        seen = [Sighting(r, self.look(r), owner) for r, owner in waiting.items()]
        self._step(Scanned(self.t_ns, self.wall_ns, seen, False))

    # -- effects ------------------------------------------------------------------------------------------------

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Reply):
            self.replies[effect.token] = effect
            self._asked.discard(effect.token)
        elif isinstance(effect, Look | Probe | Act | Discover):
            self._submit(effect)
        elif isinstance(effect, Recheck):
            for resource in effect.resources:
                self.touch(resource)

    def maybe_crash(self) -> None:
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                self.crash_after = None
                raise Crashed

    def observe(self, resource: str) -> Attrs | Unreadable | None:
        if resource in self.unreadable:
            return Unreadable(self.unreadable[resource])
        return self.machine.get(resource)

    def look(self, resource: str) -> Attrs | Unreadable | None:
        """An observation by the shell itself, not for a job."""
        return self.observe(resource)

    def touch(self, resource: str, owner: Owner | None = None) -> None:
        """The resource may have changed: it is observed after the present work."""
        self.queue.append(lambda: Observed(self.t_ns, self.wall_ns, [Sighting(resource, self.look(resource), owner)]))

    def meanwhile(self, effect: Act) -> None:
        """What happens after a plan has told its readers, and before it has looked again."""
        if self.after_told is not None:
            self.after_told(self, [s.id for s in effect.steps])

    # -- jobs ---------------------------------------------------------------------------------------------------

    def _submit(self, effect: Look | Probe | Act | Discover) -> None:
        """Give the job to a worker; here it is done at once, and answered next."""
        self._note_acting(effect)
        self.queue.append(self._work(effect))

    def _work(self, effect: Look | Probe | Act | Discover) -> Callable[[], Event]:
        """Observe, or act, now; the returned function makes the answer when it comes."""
        answer = working.WORKS[type(effect)](self, effect)

        def answered() -> Event:
            self._acting.pop(effect.job, None)
            return answer()

        return answered if type(effect) is Act else answer

    def _note_acting(self, effect: Effect) -> None:
        """Assert that no two jobs act on one change."""
        if isinstance(effect, Act):
            job = self.node.jobs[effect.job]
            if job.change is not None:
                others = [n for n, c in self._acting.items() if c == job.change and n in self.node.jobs]
                assert not others, (job.change, job.n, others)
                self._acting[job.n] = job.change

    # -- checks -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert what must hold at rest: replay from zero gives the state, and the parts agree."""
        self.node.state.check()
        assert self.disk.replayed().to_json() == self.node.state.to_json()
