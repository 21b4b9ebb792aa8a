"""The decisions of one node: ``step(event) -> effects``.

Every decision becomes a record, the record is folded into ``State`` at once, and the caller makes it durable before it
carries out what follows in the effect list.  # J1

What operators ask for stands in ``settle`` (commit, rollback, extend), ``declaring`` (declare, adopt, apply) and
``suspend`` (emergency, holds); this module keeps time, sightings and the jobs under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from pact.core import below, declaring, extending, groups, joining, settle, suspend, tracked, undoing
from pact.core import change as life
from pact.core.change import Change
from pact.core.events import (
    AGENT_CALLER,
    Acted,
    Appeared,
    AppendRecord,
    Asked,
    Caller,
    Covered,
    Denied,
    Discovered,
    Effect,
    Event,
    FleetTold,
    JobFailed,
    LinkChanged,
    Looked,
    Observed,
    ObserverChanged,
    Probed,
    Recheck,
    Reconfigured,
    Reply,
    Scanned,
    Sighting,
    Started,
    Stopping,
    Ticked,
)
from pact.core.plan import Step, ordered
from pact.core.records import in_pieces, rfc3339, seal
from pact.core.refusals import Refusals
from pact.core.settings import BILLION, DIMENSION_OF
from pact.core.state import ALL, State, recent_key
from pact.core.timers import NamedTimers
from pact.core.windows import magnitude
from pact.errors import ConflictError, DeniedError, PactError, UsageError
from pact.model import AGENT_ACTOR, NS_PER_S, UNATTRIBUTED, Actor, Attrs, Declared, Owner, Unreadable

#: So long before its end a window is announced, or for half of it where it is shorter than twice that.
CLOSING_NS: Final = 120 * NS_PER_S
CLOSING_NAMED_MAX: Final = 20
#: Others than the last who are named as having written a resource.
ALSO_MAX: Final = 8


class Rules(Protocol):
    """What the kinds know, as pure functions: handed in, so that the core needs no kind."""

    def distance_n(self, resource: str, declared: Attrs | None, actual: Attrs | None) -> int:
        """0 if ``actual`` conforms, else up to 1,000,000,000 (billionths of the kind's severity)."""

    def volatile(self, resource: str) -> bool:
        """A reboot resets it (sysctl, module, mount): not a file."""

    def meant_secret(self, resource: str, attrs: Attrs | None) -> bool:
        """A declared value says itself that its content is not for everybody, whatever mode the resource has now."""

    def matches(self, pattern: str, resource: str) -> bool:
        """An adopt pattern means this resource, were it there."""


@dataclass(slots=True)
class Job:
    """Something the shell was asked to do, and what is to happen with the answer. Ephemeral; a restart begins anew."""

    n: int
    kind: str
    caller: Caller
    token: int | None = None
    change: str | None = None
    cause: str = ""
    ids: tuple[str, ...] = ()
    args: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    planned_at: int = -1  # the newest record when ``steps`` were made of the state
    looks: int = 0  # how often the plan was looked at again because something had joined it


class Node:
    """One node. ``state`` is the fold; everything else here is derived from it or forgotten by a restart."""

    def __init__(self, name: str, rules: Rules, state: State | None = None, *, jobs_from: int = 0,
                 key: bytes = b"") -> None:  # fmt: skip
        """``jobs_from``: jobs are numbered above this, so that answers to another node's jobs are nobody's. ``key``: of
        this node, for the salts of records; without one they have none."""
        self.name = name
        self.rules = rules
        self.state = state or State()
        self.unreadable: dict[str, str] = {}
        self.jobs: dict[int, Job] = {}
        self.busy: dict[str, int] = {}  # change -> job that probes or acts for it
        self.converging: dict[int, frozenset[str]] = {}  # job -> what it is bringing to declared state just now
        self.stirring: dict[int, tuple[str, ...]] = {}  # job -> what its writes may move just now, beside its plan
        self.waiting: dict[int, settle.Waiting] = {}  # request -> what its reply still waits for
        self.refusals = Refusals()
        self.pace = tracked.Pace()  # what is new below tracked patterns and not yet recorded
        self.deciding: dict[str, list[int]] = {}  # group -> the root's questions whether its decision is carried out
        self.killed: dict[str, int] = {}  # change -> so many runs have ended in the middle of its rollback  # F65
        self.fleet_fence = 0  # the root that said
        self.fleet_seq = 0  # the newest word of the root about holds that needed no record
        self.alone_since_ns: int | None = None  # a member of a cluster that is cut off from it
        self.t_ns = self.state.t_ns
        self.wall_ns = 0
        self._time = (0, rfc3339(0))  # of records: several in a row have the same
        self.jobs_numbered = jobs_from
        self._key = key
        self._effects: list[Effect] = []
        self._windows: NamedTimers[str] = NamedTimers()
        self._closing: NamedTimers[str] = NamedTimers()  # changes whose end is not announced yet, by opening time
        self._alarms: NamedTimers[tuple[str, str]] = NamedTimers()
        self._rebuild()

    # -- the step -----------------------------------------------------------------------------------------------

    def step(self, event: Event) -> list[Effect]:
        """Decide. Never raises for what an operator or the machine did; an AssertionError is a bug."""
        self._effects = []
        self.t_ns = max(self.t_ns, event.t_ns)
        self.wall_ns = event.wall_ns
        kind = type(event)
        if kind is not Started and (self._alarms or self._windows):
            self._expire()
        _STEPS[kind](self, event)
        if self.refusals.beyond:
            self._tell_refusals()
        if self.pace:
            tracked.flush(self)
        if self.state.groups or self.deciding:
            groups.finish_done(self)
        if self.waiting:
            settle.answer_complete(self)
        touched = self.state.touched
        if touched.members or touched.changes or touched.timers:
            self._reindex()
        return self._effects

    def emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    def record(self, type_: str, data: Mapping[str, Any], actor: Actor = AGENT_ACTOR) -> None:
        """Append a record and fold it in."""
        if actor.call:  # T12
            data = {**data, "call": actor.call}
        if self._time[0] != self.wall_ns:
            self._time = (self.wall_ns, rfc3339(self.wall_ns))
        record, body = seal(
            self.state.seq + 1, self.state.hash, self._time[1], self.t_ns, self.name, type_, actor.to_json(), data,
            key=self._key,
        )  # fmt: skip
        self._effects.append(AppendRecord(record, body))
        self.state.apply(record)

    def job(self, kind: str, caller: Caller, **fields: Any) -> Job:
        self.jobs_numbered += 1
        job = Job(self.jobs_numbered, kind, caller, **fields)
        self.jobs[job.n] = job
        if job.change is not None:
            self.busy[job.change] = job.n
        return job

    def finish(self, job: Job) -> None:
        self.jobs.pop(job.n, None)
        self.converging.pop(job.n, None)
        self.recheck(self.stirring.pop(job.n, ()))  # what was seen of it meanwhile was passed over
        if job.change is not None and self.busy.get(job.change) == job.n:
            del self.busy[job.change]
            self.reschedule(job.change)  # its time may have come meanwhile  # A4

    def reply(self, token: int | None, result: Mapping[str, Any], exit_code: int = 0, message: str = "",
              hint: str = "") -> None:  # fmt: skip
        if token is not None:
            self.emit(Reply(token, result, exit_code, message, hint))

    def refuse(self, token: int | None, error: PactError) -> None:
        self.reply(token, {}, error.exit_code, error.message, error.hint)

    # -- time ---------------------------------------------------------------------------------------------------

    def wall_of(self, t_ns: int) -> str:
        """The wall clock's reading at a node time, as far as the clock stays as it is."""
        return rfc3339(self.wall_ns + t_ns - self.t_ns)

    def next_wake_ns(self) -> int | None:
        """Node time at which ``Ticked`` is due, ``None`` if nothing waits."""
        first = self._alarms.next_deadline()
        opening, closing = self._windows.next_deadline(), self._closing.next_deadline()
        if (opening is not None or closing is not None) and not self.state.suspended:
            alone_until_ns = self.alone_until_ns
            if opening is not None:
                ends_ns = max(self.state.windows.end(opening), self.state.not_before_ns, alone_until_ns)
                first = ends_ns if first is None else min(first, ends_ns)
            if closing is not None:
                announced_ns = max(self._announced_ns(closing), alone_until_ns)
                first = announced_ns if first is None else min(first, announced_ns)
        if self.refusals.beyond:
            first = self.refusals.next_ns if first is None else min(first, self.refusals.next_ns)
        if self.pace and (paced_ns := self.pace.next_ns()) is not None:
            first = paced_ns if first is None else min(first, paced_ns)
        return first

    @property
    def alone_until_ns(self) -> int:
        """Cut off from the root, no window ends before this: it may have stopped the whole fleet.  # G9"""
        return 0 if self.alone_since_ns is None else self.alone_since_ns + self.state.settings.alone_ns

    def _expire(self) -> None:
        """Everything that is due at this moment.  # A4"""
        state = self.state
        for kind, name in self._alarms.advance(self.t_ns):
            _ALARMS[kind](self, name)
        if not self._windows or state.suspended or self.t_ns < self.alone_until_ns:
            return
        self._announce()  # also within the floor after a reboot: that is when it can still be told
        if self.t_ns < state.not_before_ns:
            return
        due = self._windows.advance(self.t_ns - state.windows.effective(self.t_ns))
        for cid in dict.fromkeys(state.member_of[r] for r in due if r in state.member_of):
            change = state.changes.get(cid)
            if change is not None and change.state == life.OPEN and cid not in self.busy:
                settle.start_rollback(self, change, "expired", AGENT_CALLER)

    def _announced_ns(self, opening_ns: int) -> int:
        """When the end of a window with this opening time is announced."""
        windows = self.state.windows
        ends_ns = max(windows.end(opening_ns), self.state.not_before_ns)
        return ends_ns - min(CLOSING_NS, windows.now_w // 2)

    def _announce(self) -> None:
        """Say which changes will soon be rolled back.  # N1"""
        while (opening := self._closing.next_deadline()) is not None and self._announced_ns(opening) <= self.t_ns:
            found = self._closing.advance(opening)
            for change in map(self.state.changes.get, found):
                deadline_ns = None if change is None else self.state.deadline_ns(change)
                if change is None or deadline_ns is None or deadline_ns <= self.t_ns:
                    continue
                self.record("window_closing", {
                    "change": change.id, "owner": change.owner.to_json(), "deadline": self.wall_of(deadline_ns),
                    "resources": sorted(change.members)[:CLOSING_NAMED_MAX], "count": len(change.members)})  # fmt: skip
            if not found and self._closing.next_deadline() == opening:
                break

    def due(self, change: Change) -> bool:
        """Its window has ended."""
        deadline = self.state.deadline_ns(change)
        return deadline is not None and deadline <= self.t_ns

    def reschedule(self, change_id: str) -> None:
        """Put a change's windows (back) into the wheel."""
        self.state.touched.changes[change_id] = None

    def _alarm_retry(self, name: str) -> None:
        change = self.state.changes.get(name)
        if change is None or change.state != life.BLOCKED or name in self.busy or self.state.suspended:
            return
        if self.state.held_by(name) or self.t_ns < self.alone_until_ns:
            self._alarms.schedule(("retry", name), self.t_ns + self.state.settings.retry_ns)
            return
        settle.start_rollback(self, change, "retry", AGENT_CALLER)

    def _alarm_ttl(self, name: str) -> None:
        declaring.expire_commits(self, name)

    def retry_ttl(self, resource: str) -> None:
        """Try a commit's end again soon."""
        self._alarms.schedule(("ttl", resource), self.t_ns + NS_PER_S)

    def _alarm_hold(self, name: str) -> None:
        suspend.expire_hold(self, name)

    def _alarm_emergency(self, name: str) -> None:
        suspend.stale(self)

    def _rebuild(self) -> None:
        self.state.touched.members.update(dict.fromkeys(self.state.member_of))
        self.state.touched.changes.update(dict.fromkeys(self.state.changes))
        self.state.touched.timers = True
        self._reindex()

    def _reindex(self) -> None:
        """Bring the wheels up to date with what the step's records moved: O(what moved)."""
        touched, state = self.state.touched, self.state
        for cid in touched.changes:
            change = state.changes.get(cid)
            if change is None:
                self._alarms.cancel(("retry", cid))
                continue
            touched.members.update(dict.fromkeys(change.members))
            wants_retry = (
                change.state == life.BLOCKED and state.settings.on_busy_retry and bool(change.holders)
                and not change.group
            )
            if not wants_retry:
                self._alarms.cancel(("retry", cid))
            elif ("retry", cid) not in self._alarms and cid not in self.busy:
                self._alarms.schedule(("retry", cid), self.t_ns + state.settings.retry_ns)
        for resource in touched.members:
            change = state.change_of(resource)
            if change is not None:
                touched.changes[change.id] = None
            if change is None or change.state != life.OPEN or change.intents or change.group:
                self._windows.cancel(resource)
            else:
                self._windows.schedule(resource, change.members[resource].opening_ns + change.extension_ns)
        for cid in touched.changes:
            change = state.changes.get(cid)
            if change is None or change.state != life.OPEN or not change.members or change.closing or change.intents:
                self._closing.cancel(cid)
            elif not change.group:
                self._closing.schedule(cid, change.opening_ns)
        if touched.timers:
            self._rearm()
        touched.members.clear()
        touched.changes.clear()
        touched.timers = False

    def _rearm(self) -> None:
        """TTLs, holds and the emergency's end, in real time. They are few; all are set anew."""
        state = self.state
        wanted: dict[tuple[str, str], int] = {("ttl", r): t.expires_ns for r, t in state.ttls.items()}
        wanted.update({("hold", h.id): h.ends_ns for h in state.holds.values()})
        if state.emergency is not None and not state.emergency.stale:
            wanted["emergency", ""] = state.emergency.ends_ns
        for name, deadline in wanted.items():
            if self._alarms.deadline(name) != deadline:
                self._alarms.schedule(name, deadline)
        for name in [n for n in self._alarms.names() if n[0] != "retry" and n not in wanted]:
            self._alarms.cancel(name)

    # -- sightings ----------------------------------------------------------------------------------------------

    def sight(self, sightings: Iterable[Sighting], into: Change | None = None) -> list[str]:
        """Take observations in; what drifted belongs to ``into``. Returns the resources whose record moved."""
        intents = self.intended()
        return [s.resource for s in sightings if self._sight(s, intents.get(s.resource, into))]

    def intended(self) -> dict[str, Change]:
        """What an ``apply`` under way is about to change, and the change that it will be in."""
        return {r: c for c in self.state.changes.values() if c.intents for r in c.intents}

    def refuse_intended(self, resources: Iterable[str]) -> None:
        """Raises ConflictError for what an ``apply`` is changing just now: two of them cannot own one resource."""
        intended = self.intended()
        for resource in resources if intended else ():
            if resource in intended:
                raise ConflictError(f"{resource} is being changed with {intended[resource].id}",
                                    "try again when it is done")  # fmt: skip

    def deviation_n(self, resource: str, declared: Declared, actual: Attrs | None) -> int:
        """``severity x distance`` in billionths; at least 1 where it does not conform."""
        distance_n = self.rules.distance_n(resource, declared.attrs, actual)
        if distance_n == 0:
            return 0
        severity_n = declared.severity_n
        if severity_n is None:
            severity_n = self.state.settings.severity_n[resource.partition(":")[0]]
        return max(1, severity_n * distance_n // BILLION)

    def weight_n(self, resource: str, declared: Declared) -> int:
        if declared.weight_n is not None:
            return declared.weight_n
        return self.state.settings.weights_n[DIMENSION_OF[resource.partition(":")[0]]]

    def _sight(self, sighting: Sighting, intent: Change | None) -> bool:
        resource, seen = sighting.resource, sighting.observation
        declared = self.state.declared(resource)
        if declared is None:
            self.unreadable.pop(resource, None)
            return False
        if isinstance(seen, Unreadable):  # D1: unreadable is never drift
            self.unreadable[resource] = seen.why
            return False
        self.unreadable.pop(resource, None)
        change = self.state.change_of(resource)
        if change is not None and change.state == life.ROLLING:  # R2: it is frozen
            return False
        if self.converging and any(resource in ids for ids in self.converging.values()):
            return False  # not there yet; looked at again when it is
        if sighting.owner is None and any(resource in ids for ids in self.stirring.values()):
            return False  # the plan may be moving it, and may put it back; looked at again when it has ended  # C8
        deviation_n = self.deviation_n(resource, declared, seen)
        if deviation_n == 0:
            if change is not None:
                self.record("drift_cleared", {"resource": resource, "change": change.id})
            elif resource in self.state.enforced:
                tracked.conforms(self, resource)
            return change is not None
        if change is None and sighting.owner is None and resource in self.state.enforced:
            sighting = replace(sighting, owner=Owner.from_json(self.state.enforced[resource]))
        return self._drift(sighting, seen, deviation_n, self.weight_n(resource, declared), intent)

    def _drift(self, sighting: Sighting, actual: Attrs | None, deviation_n: int, weight_n: int,
               intent: Change | None) -> bool:  # fmt: skip
        state, resource, writer, moved_with = self.state, sighting.resource, sighting.owner, sighting.moved_with
        change = state.change_of(resource)
        identified = writer is not None and writer.key != UNATTRIBUTED.key
        if change is not None:
            member = change.members[resource]
            named_late = (  # a rescan was there before the event that names the writer
                identified and change.owner.key == UNATTRIBUTED.key and change.state in (life.OPEN, life.HELD)
            )
            same = (member.actual, member.deviation_n, member.weight_n) == (actual, deviation_n, weight_n)
            if same and not named_late:
                return False
        if intent is not None:
            self.detect(resource, intent.id, intent.owner, actual, deviation_n, weight_n, self._opened(resource),
                        moved_with, secret=sighting.secret)  # fmt: skip
            return True
        if change is not None and (not identified or (writer is not None and writer.key == change.owner.key)):
            member = change.members[resource]
            by = writer if identified and writer is not None else replace(change.owner, command=member.command)
            moved_with = moved_with if identified else moved_with or member.moved_with
            self.detect(resource, change.id, by, actual, deviation_n, weight_n, member.opened_ns, moved_with,
                        secret=sighting.secret)  # fmt: skip
            return True
        owner = writer if writer is not None and identified else UNATTRIBUTED
        cid = self._joins(moved_with, owner) or state.ambient.get(owner.key) or self.new_change_id()
        self.detect(resource, cid, owner, actual, deviation_n, weight_n, self._opened(resource, owner), moved_with,
                    secret=sighting.secret)  # fmt: skip
        return True

    def _joins(self, moved_with: str, owner: Owner) -> str:
        """The change of what was written, if it is the same owner's and takes drift.  # C8"""
        change = self.state.change_of(moved_with) if moved_with else None
        if change is None or change.owner.key != owner.key or change.state not in (life.OPEN, life.HELD):
            return ""
        return change.id

    def _opened(self, resource: str, owner: Owner | None = None) -> int:
        """When the resource's window opened: drift keeps the time it first had.  # C2, C4"""
        state, settings = self.state, self.state.settings
        change = state.change_of(resource)
        if change is not None and change.state in (life.OPEN, life.HELD):
            return change.members[resource].opened_ns
        if owner is not None and change is None:
            earlier = state.recent.get(recent_key(owner.key, resource))
            if earlier is not None and self.t_ns - earlier < settings.base_ns:
                spent_ns = state.windows.effective(self.t_ns) - settings.floor_ns  # W3: a floor of notice is left
                return max(earlier, self.t_ns - max(0, spent_ns))
        return self.t_ns

    def new_change_id(self) -> str:
        return f"c{self.state.change_n + 1}"

    def detect(self, resource: str, cid: str, owner: Owner, actual: Attrs | None, deviation_n: int, weight_n: int,
               opened_ns: int, moved_with: str = "", *, secret: bool = False) -> None:  # fmt: skip
        """Record drift, and the window if this is what opens one."""
        fresh = cid not in self.state.changes
        also = self._also(resource, owner)
        before = self.state.member_of.get(resource)
        data: dict[str, Any] = {
            "resource": resource, "change": cid, "owner": owner.to_json(), "opened_ns": opened_ns, "actual": actual,
            "deviation_n": deviation_n, "weight_n": weight_n,
        }  # fmt: skip
        if before is not None and before != cid:
            data["from"] = before
        if moved_with:
            data["with"] = moved_with
        if also:
            data["also"] = also
        declared = self.state.declared(resource)
        if secret or (declared is not None and self.rules.meant_secret(resource, declared.attrs)):
            data["secret"] = True  # also where its mode lets everybody read it just now  # S2
        self.record("drift_detected", data)
        if fresh:
            self.window_opened(cid)

    def _also(self, resource: str, owner: Owner) -> list[dict[str, Any]]:
        """The others who wrote a resource since it last conformed: nobody is forgotten when somebody takes it over.
        # C9"""
        change = self.state.change_of(resource)
        if change is None:
            return []
        member = change.members[resource]
        holder = replace(change.owner, command=member.command).to_json()
        others = {o["key"]: o for o in [*member.also, holder] if o["key"] != UNATTRIBUTED.key}
        return [o for o in others.values() if not owner.same_person(Owner.from_json(o))][-ALSO_MAX:]

    def window_opened(self, cid: str, *, reopened: bool = False, reads: Mapping[str, str] | None = None) -> None:
        """Say that a change has a window now, if one runs. ``reads``: what the kernel made of values just applied."""
        change = self.state.changes[cid]
        deadline_ns = None
        if change.members and change.state == life.OPEN and not self.state.suspended:
            deadline_ns = max(self.state.windows.end(change.opening_ns), self.state.not_before_ns)
        if deadline_ns is None and not change.intents and not reopened and not reads:
            return
        self.record("window_opened", {
            "change": cid, "owner": change.owner.to_json(), "resources": sorted(change.members),
            "window_ns": self.state.windows.now_w, "reopened": reopened,
            "magnitude_n": round(magnitude(self.state.open_sum_n) * BILLION),
            "deadline": None if deadline_ns is None else self.wall_of(deadline_ns),
            **({"reads": dict(reads)} if reads else {}),
        })  # fmt: skip

    # -- events -------------------------------------------------------------------------------------------------

    def _started(self, event: Started) -> None:
        state = self.state
        first, was_enforcing = state.seq < 0, state.settings.enforce
        self.alone_since_ns = self.t_ns if event.clustered else None
        not_before_ns = self.t_ns + event.settings.floor_ns if event.reboot else state.not_before_ns
        unclean = state.running
        self.record("agent_started", {
            "boot_id": event.boot_id, "offset_ns": event.offset_ns, "wall_ns": event.wall_ns,
            "settings": event.settings.to_json(), "version": event.version, "reboot": event.reboot,
            "unclean": unclean, "not_before_ns": not_before_ns, **({"boot_owed": True} if event.reboot else {}),
        })  # fmt: skip
        if first and event.declared:
            for names in in_pieces(list(event.declared)):
                self.record("declared", {"resources": {r: event.declared[r] for r in names}, "cause": "first start",
                                         "sources": list(event.sources)})  # fmt: skip
        if first and event.track:
            self.record("tracked", {"patterns": dict(event.track), "forgotten": []})
        self._open_at_last(was_enforcing or first)
        self._rebuild()

    def _reconfigured(self, event: Reconfigured) -> None:
        """Other figures from now on; everything else stays as it is."""
        state = self.state
        was_enforcing = state.settings.enforce
        self.record("agent_started", {
            "boot_id": state.boot_id, "offset_ns": state.offset_ns, "wall_ns": event.wall_ns,
            "settings": event.settings.to_json(), "version": event.version, "reboot": False, "unclean": False,
            "not_before_ns": state.not_before_ns, "reloaded": True,
        })  # fmt: skip
        self._open_at_last(was_enforcing)
        self._rebuild()

    def _open_at_last(self, was_enforcing: bool) -> None:
        """From observing to enforcing: existing drift opens at this moment.  # P2"""
        state = self.state
        if state.settings.enforce and not was_enforcing:
            for change in list(state.changes.values()):
                if change.state == life.OPEN:
                    self.window_opened(change.id, reopened=True)

    def _scanned(self, event: Scanned) -> None:
        self.killed = dict(event.killed)
        owed = self.state.boot_owed
        reset = [] if owed is None else [s for s in event.sightings if self._is_reset(s, owed, event.reboot)]
        if self.state.suspended or self.state.holds:
            reset = []
        reset = [s for s in reset if self.rules.volatile(s.resource)]
        rolling = [c for c in self.state.changes.values() if c.state == life.ROLLING]
        joined = {r for c in rolling for r in (c.rolling or {}).get("joined", ())}
        frozen = {r for c in rolling for r in c.members}
        elsewhere = {s.resource for s in reset if self._differs(s) and s.resource not in frozen}
        if owed is not None and (not elsewhere or (times := self.killed.pop("boot", 0)) >= settle.KILLED_MAX):
            why = settle.killed_text(times) if elsewhere else ""
            self.record("converged", {"results": dict.fromkeys(sorted(elsewhere), why), "cause": "boot"})
            elsewhere.clear()
        self.sight(s for s in event.sightings if s.resource not in elsewhere and s.resource not in joined)
        for change in list(self.state.changes.values()):
            if change.intents:
                self.window_opened(change.id)  # an apply that was cut off: what it did not do, it will not do
            elif change.state == life.ROLLING:
                settle.resume_rollback(self, change, {s.resource: s for s in reset if s.resource in change.members})
                if change.state != life.ROLLING:  # it is tried no more: what it has brought back has drifted no more
                    self.sight(s for s in event.sightings if s.resource in {*change.members, *joined})
        groups.resume(self)
        if elsewhere:
            declaring.converge_after_boot(self, [s for s in reset if s.resource in elsewhere])

    def frozen(self) -> set[str]:
        """What belongs to rollbacks under way: what is seen of it is theirs."""
        rolling = [c for c in self.state.changes.values() if c.state == life.ROLLING]
        return {r for c in rolling for r in (*c.members, *(c.rolling or {}).get("joined", ()))}

    def _is_reset(self, sighting: Sighting, owed: Mapping[str, Attrs | None], reboot: bool) -> bool:
        """The boot did that: nobody has set it since, and it has not drifted into a change since."""
        if ALL in owed:
            return reboot or sighting.resource not in self.state.member_of
        return (sighting.resource in owed and owed[sighting.resource] == sighting.observation
                and sighting.resource not in self.state.member_of)  # fmt: skip

    def _differs(self, sighting: Sighting) -> bool:
        declared, seen = self.state.declared(sighting.resource), sighting.observation
        if declared is None or isinstance(seen, Unreadable):
            return False
        return self.deviation_n(sighting.resource, declared, seen) > 0

    def _observed(self, event: Observed) -> None:
        self.sight(event.sightings)

    def _covered(self, event: Covered) -> None:
        """A mount that hides declared paths: what was there before, nothing, is declared; so it is drift.  # R7"""
        fresh = {r: Declared(None).to_json() for r in event.mounts if r not in self.state}
        if fresh:
            self.record("declared", {"resources": fresh, "cause": "mounted over declared paths"})
            self.sight(Sighting(r, event.mounts[r], event.owner) for r in fresh)

    def _appeared(self, event: Appeared) -> None:
        tracked.appeared(self, event)

    def _ticked(self, event: Ticked) -> None:
        pass

    def _asked(self, event: Asked) -> None:
        handler = _OPS.get(event.op)
        try:
            if handler is None:
                raise UsageError(f"unknown request {event.op!r}")
            handler(self, event)
        except DeniedError as exc:
            self._record_denied(event.op, exc.message, event.caller.actor)
            self.refuse(event.token, exc)
        except PactError as exc:
            self.refuse(event.token, exc)

    def _denied(self, event: Denied) -> None:
        self._record_denied(event.op, event.why, event.caller.actor)

    def _record_denied(self, op: str, why: str, actor: Actor) -> None:
        """An administrator's always; of all others together so many.  # S3"""
        if actor.role != "admin" and not self.refusals.admit(self.t_ns):
            return
        beyond = self.refusals.told()
        self.record("denied", {"request": op, "why": why, **({"beyond": beyond} if beyond else {})}, actor)

    def _tell_refusals(self) -> None:
        """Nobody is refused any more: those that are in no record."""
        if self.refusals.next_ns <= self.t_ns and self.refusals.admit(self.t_ns):
            beyond = self.refusals.told()
            self.record("denied", {"request": "several", "why": f"{beyond} more were refused", "beyond": beyond})

    def _answered(self, event: Looked | Probed | Acted | Discovered) -> None:
        job = self.jobs.get(event.job)
        if job is None:
            return
        try:
            _ANSWERS[type(event), job.kind](self, job, event)
        except PactError as exc:
            self.finish(job)
            settle.give_up(self, job, exc)

    def _job_failed(self, event: JobFailed) -> None:
        job = self.jobs.get(event.job)
        if job is not None:
            self.finish(job)
            settle.give_up(self, job, event.error)

    def _observer_changed(self, event: ObserverChanged) -> None:
        known = self.state.blind.get(event.observer)
        if event.why and known != event.why:
            self.record("observer_blind", {"observer": event.observer, "why": event.why})
        elif not event.why and known is not None:
            self.record("observer_restored", {"observer": event.observer})

    def _fleet_told(self, event: FleetTold) -> None:
        suspend.told(self, event)

    def _link_changed(self, event: LinkChanged) -> None:
        self.alone_since_ns = None if event.connected else self.t_ns

    def _stopping(self, event: Stopping) -> None:
        self.record("agent_stopped", {"reason": event.reason})

    # -- help for the operations --------------------------------------------------------------------------------

    def steps_for(self, resources: Iterable[str]) -> tuple[Step, ...]:
        """The plan that returns these drifted resources to declared state, and what they would take along; in order."""
        steps = []
        for resource in resources:
            declared, change = self.state.declared(resource), self.state.change_of(resource)
            assert declared is not None and change is not None, resource
            actual = change.members[resource].actual
            steps.append(Step(resource, declared.attrs, actual, declared.requires, declared.consumers))
        return ordered([*steps, *below.joined(self, steps)])

    def sight_moved(self, event: Acted, owner: Owner, into: Change | None) -> list[str]:
        """What a plan moved beside its own resources, and did not put back, is drift of whoever had it carried out; in
        the change ``into`` if there is one. Returns what has drifted by it.  # C8"""
        drifted = []
        for sighting in event.moved:
            before = self.state.change_of(sighting.resource)
            if before is not None and before.state == life.ROLLING:
                continue
            takes = into if into is not None and into.id in self.state.changes else None
            self._sight(replace(sighting, owner=owner), takes)
            after = self.state.change_of(sighting.resource)
            if after is not None and (before is None or before.id != after.id):
                drifted.append(sighting.resource)
        return drifted

    def learn(self, event: Acted) -> dict[str, str]:
        """What the kernel made of declared values that it took, for the record: they are compared with that from now
        on.  # D5"""
        out = {}
        for resource, text in self.public_reads(event).items():
            declared = self.state.declared(resource)
            if declared is not None and declared.attrs is not None and not declared.attrs.get("secret"):
                out[resource] = text
        return out

    @staticmethod
    def public_reads(event: Acted) -> dict[str, str]:
        """What the kernel made of values, but for secrets: records are shown to viewers and leave the node.  # S2"""
        seen = {s.resource: s.observation for s in event.sightings}
        return {r: text for r, text in event.reads.items()
                if isinstance(found := seen.get(r), dict) and not found.get("secret")}  # fmt: skip

    def recheck(self, resources: Sequence[str]) -> None:
        if resources:
            self.emit(Recheck(tuple(resources)))


_STEPS: Final[Mapping[type, Callable[[Node, Any], None]]] = {
    Started: Node._started,
    Reconfigured: Node._reconfigured,
    Scanned: Node._scanned,
    Observed: Node._observed,
    Covered: Node._covered,
    Appeared: Node._appeared,
    Ticked: Node._ticked,
    Asked: Node._asked,
    Denied: Node._denied,
    Looked: Node._answered,
    Probed: Node._answered,
    Acted: Node._answered,
    Discovered: Node._answered,
    JobFailed: Node._job_failed,
    ObserverChanged: Node._observer_changed,
    FleetTold: Node._fleet_told,
    LinkChanged: Node._link_changed,
    Stopping: Node._stopping,
}

_ALARMS: Final[Mapping[str, Callable[[Node, str], None]]] = {
    "retry": Node._alarm_retry,
    "ttl": Node._alarm_ttl,
    "hold": Node._alarm_hold,
    "emergency": Node._alarm_emergency,
}

_OPS: Final[Mapping[str, Callable[[Node, Asked], None]]] = {
    "commit": settle.asked_commit,
    "rollback": settle.asked_rollback,
    "extend": extending.asked_extend,
    "declare": declaring.asked_declare,
    "apply": declaring.asked_apply,
    "adopt": declaring.asked_adopt,
    "track": tracked.asked_track,
    "emergency_start": suspend.asked_emergency_start,
    "emergency_end": suspend.asked_emergency_end,
    "hold_place": suspend.asked_hold_place,
    "hold_release": suspend.asked_hold_release,
    "group_check": joining.asked_check,
    "group_apply": joining.asked_apply,
    "group_vote": groups.asked_vote,
    "group_state": groups.asked_state,
    "group_decide": groups.asked_decide,
    "group_extend": groups.asked_extend,
    "fleet_seen": suspend.asked_fleet_seen,
}

_ANSWERS: Final[Mapping[tuple[type, str], Callable[[Node, Job, Any], None]]] = {
    (Looked, "commit"): settle.looked_commit,
    (Probed, "rollback"): settle.probed_rollback,
    (Acted, "rollback"): settle.acted_rollback,
    (Probed, "declare"): declaring.probed_declare,
    (Acted, "declare"): declaring.acted_declare,
    (Probed, "apply"): declaring.probed_apply,
    (Acted, "apply"): declaring.acted_apply,
    (Acted, "undo"): undoing.acted_undo,
    (Discovered, "adopt"): declaring.discovered_adopt,
    (Acted, "boot"): declaring.acted_boot,
    (Probed, "group_check"): joining.probed_check,
    (Looked, "group_vote"): groups.looked_vote,
    (Probed, "group_vote"): groups.probed_vote,
}
