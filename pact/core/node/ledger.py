"""What every operation of a node needs: its state and records, effects, running jobs, replies and timers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Final, Protocol, TypeVar

from pact.core.node import change as life
from pact.core.node import fold, payloads, writers
from pact.core.node.change import Change
from pact.core.node.closed import Names
from pact.core.node.events import Acted, AppendRecord, Caller, Effect, Recheck, Reply
from pact.core.node.jobs import Job, W, Waiting
from pact.core.node.pace import Pace
from pact.core.node.refusals import Bucket, Refusals
from pact.core.node.state import Hold, State
from pact.core.node.timers import NamedTimers
from pact.core.node.windows import magnitude
from pact.core.payload import Payload
from pact.core.plan import Nature
from pact.core.records import PIECE_MAX, rfc3339, seal
from pact.core.settings import BILLION
from pact.errors import PactError
from pact.limits import BUSY_AT_ONCE, BUSY_EACH_S
from pact.model import AGENT_ACTOR, NS_PER_S, Actor, Attrs, JsonRead

#: How long before its end a window is announced; a window shorter than twice that is announced at half its length.
CLOSING_NS: Final = 120 * NS_PER_S
#: Between so many resources the shell may have a turn.
PAUSE_EVERY: Final = 32

_SIZED: Final = (list, tuple, dict)

T = TypeVar("T")


class Rules(Protocol):
    """What the kinds know, as pure functions. They are passed in, so that the core depends on no kind."""

    def distance_n(self, resource: str, declared: Attrs | None, actual: Attrs | None) -> int:
        """0 if ``actual`` conforms, else up to 1,000,000,000 (billionths of the kind's severity)."""

    def volatile(self, resource: str) -> bool:
        """Whether a reboot resets the resource."""

    def meant_secret(self, resource: str, attrs: Attrs | None) -> bool:
        """Whether the declared value itself makes the content secret, whatever mode the resource has now."""

    def matches(self, pattern: str, resource: str) -> bool:
        """Whether an adopt pattern would match this resource."""

    def nature(self, resource: str) -> Nature:
        """How the resource relates to others."""

    def moved_by(self, kinds: Set[str]) -> tuple[str, ...]:
        """The id prefixes of resources that may move when resources of these kinds are written."""


class Ledger:
    """One node without its observations. ``state`` is the fold; a restart derives everything else from it or forgets
    it."""

    def __init__(
        self,
        name: str,
        rules: Rules,
        state: State | None = None,
        *,
        jobs_from: int = 0,
        key: bytes = b"",
        pause: Callable[[bool], None] = lambda moved: None,
    ) -> None:
        """``jobs_from``: job numbers start above this, so that an answer to another node's job matches none. ``key``:
        the node's key for the salts of records; without a key records have no salts. ``pause`` is called now and then
        during a long decision. Its argument: whether the state is not to be read now, see ``moved``."""
        self.name = name
        self._pause, self._natures = pause, 0
        #: Whether the state is ahead of what is durable, or behind what is known: only a request that has recorded
        #: nothing yet leaves it as it is.
        self.moved = True
        self.rules = rules
        self.state = state or State()
        self.unreadable: dict[str, str] = {}
        self.jobs: dict[int, Job[Any]] = {}
        self.busy: dict[str, int] = {}  # change -> job that probes or acts for it
        self.converging: dict[int, frozenset[str]] = {}  # job -> resources that it is bringing to declared state
        # Job -> id prefixes of resources beside its plan that its writes may move.
        self.stirring: dict[int, tuple[str, ...]] = {}
        # Resource -> what jobs wanted of it whose value another job has just replaced, with their holds.  # O7
        self.meant: dict[str, tuple[Attrs | None, list[Hold]]] = {}
        self.waiting: dict[int, Waiting] = {}  # request -> results that its reply still waits for
        self.refusals = Refusals()
        self.busy_told = Bucket(BUSY_AT_ONCE, int(BUSY_EACH_S * NS_PER_S))
        self.pace = Pace()  # new things below tracked patterns that are not recorded yet
        # Group -> the root's questions about whether its decision is carried out.
        self.deciding: dict[str, list[int]] = {}
        self.killed: dict[str, int] = {}  # change -> how many runs in a row have ended during its rollback  # F65
        self.ended_runs: dict[str, None] = {}  # the last ones of which the shell has told
        # Change -> how often the rule for its writer was tried. After a few times it has its window.  # O5
        self.ruled: dict[str, int] = {}
        self.fleet_fence = 0  # the fence of the root that sent ``fleet_seq``
        self.fleet_seq = 0  # the number of the root's newest message about holds that needed no record
        # The same two before this event. What the event recorded may be lost, and what the root said then comes again.
        self.fleet_before = (0, 0)
        self.alone_since_ns: int | None = None  # since when this member of a cluster is cut off from the root
        self.scanned = False  # what happened while no agent ran is taken in
        self.owed_at: tuple[int, ...] = ()  # when it was last asked who must still be told
        self.t_ns = self.state.t_ns
        self.wall_ns = 0
        self._time = (0, rfc3339(0))  # the time of records: consecutive records share it
        self.jobs_numbered = jobs_from
        self._key = key
        self.effects: list[Effect] = []
        self.windows: NamedTimers[str] = NamedTimers()
        self.closing: NamedTimers[str] = NamedTimers()  # opening times of changes whose end is not announced yet
        self.alarms: NamedTimers[tuple[str, str]] = NamedTimers()
        self.rebuild()

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def in_turns(self, items: Iterable[T]) -> Iterator[T]:
        """The items of a long decision; between some of them the shell may have a turn."""
        if type(items) in _SIZED and len(items) < PAUSE_EVERY:  # type: ignore[arg-type]
            return iter(items)
        return self._turns(items)

    def _turns(self, items: Iterable[T]) -> Iterator[T]:
        for at, item in enumerate(items, 1):
            if not at % PAUSE_EVERY:
                self._pause(self.moved)
            yield item

    def nature(self, resource: str) -> Nature:
        """How the resource relates to others. Plans ask that of each of their resources, so the shell may have a turn
        here."""
        self._natures += 1
        if not self._natures % PAUSE_EVERY:
            self._pause(self.moved)
        return self.rules.nature(resource)

    def record(self, payload: Payload, actor: Actor = AGENT_ACTOR) -> None:
        """Append a record with this payload, and fold it in."""
        self.moved = True
        data = payload.to_data()
        # S2; what was refused was named by who asked, and must not tell him whether he has guessed well
        told = not isinstance(payload, payloads.Denied)
        if self.state.closed and told and (found := self.closed_names().within(data)):
            data["closed"] = sorted({*found, *data.get("closed", ())})
        if actor.call:  # T12
            data["call"] = actor.call
        if self._time[0] != self.wall_ns:
            self._time = (self.wall_ns, rfc3339(self.wall_ns))
        record, body = seal(
            self.state.seq + 1,
            self.state.hash,
            self._time[1],
            self.t_ns,
            self.name,
            payload.type,
            actor.to_json(),
            data,
            key=self._key,
            payload=payload,
        )
        self.effects.append(AppendRecord(record, body))
        fold.apply(self.state, record)

    def closed_names(self) -> Names:
        """What is hidden in an answer now: things in closed directories, also those that this step has settled."""
        return self.state.closed

    def job(self, kind: str, caller: Caller, work: W, **fields: Any) -> Job[W]:
        self.jobs_numbered += 1
        job = Job(self.jobs_numbered, kind, caller, work, **fields)
        self.jobs[job.n] = job
        if job.change is not None:
            self.busy[job.change] = job.n
        return job

    def finish(self, job: Job[Any]) -> None:
        self.jobs.pop(job.n, None)
        self.converging.pop(job.n, None)
        self.recheck(self.stirring.pop(job.n, ()))  # observations of these were skipped meanwhile
        if job.change is not None and self.busy.get(job.change) == job.n:
            del self.busy[job.change]
            self.reschedule(job.change)  # its window may have ended meanwhile  # A4

    def reply(self, token: int | None, result: JsonRead, exit_code: int = 0, message: str = "", hint: str = "") -> None:
        if token is not None:
            self.emit(Reply(token, result, exit_code, message, hint))

    def refuse(self, token: int | None, error: PactError) -> None:
        self.reply(token, {}, error.exit_code, error.message, error.hint)

    def taken(self, resource: str, seen: Attrs | None, declared: Attrs | None) -> Attrs | None:
        """What of an observation becomes declared, if ``declared`` was declared before."""
        return None if seen is None else self.nature(resource).taken(seen, declared)

    def wall_of(self, t_ns: int) -> str:
        """The wall clock's reading at a node time, assuming that the clock is not set."""
        return rfc3339(self.wall_ns + t_ns - self.t_ns)

    def next_wake_ns(self) -> int | None:
        """Node time at which ``Ticked`` is due; ``None`` if nothing waits."""
        first = self.alarms.next_deadline()
        opening, closing = self.windows.next_deadline(), self.closing.next_deadline()
        if (opening is not None or closing is not None) and not self.state.suspended:
            alone_until_ns = self.alone_until_ns
            if opening is not None:
                ends_ns = max(self.state.windows.end(opening), self.state.not_before_ns, alone_until_ns)
                first = ends_ns if first is None else min(first, ends_ns)
            if closing is not None:
                announced_ns = max(self.announced_ns(closing), alone_until_ns)
                first = announced_ns if first is None else min(first, announced_ns)
        if self.refusals.beyond:
            first = self.refusals.next_ns if first is None else min(first, self.refusals.next_ns)
        if self.pace and (paced_ns := self.pace.next_ns()) is not None:
            first = paced_ns if first is None else min(first, paced_ns)
        return first

    @property
    def alone_until_ns(self) -> int:
        """While the node is cut off from the root, no window ends before this time: the root may have stopped the whole
        fleet.  # G9"""
        return 0 if self.alone_since_ns is None else self.alone_since_ns + self.state.settings.alone_ns

    def announced_ns(self, opening_ns: int) -> int:
        """When the end of a window with this opening time will be announced."""
        windows = self.state.windows
        ends_ns = max(windows.end(opening_ns), self.state.not_before_ns)
        return ends_ns - min(CLOSING_NS, windows.now_w // 2)

    def by_rule(self, change: Change) -> bool:
        """Whether a rule for its writer settles this change, and has not failed too often."""
        return writers.settles(change) and self.ruled.get(change.id, 0) < writers.TRIES_MAX

    def due(self, change: Change) -> bool:
        """Whether the change's window has ended."""
        deadline = self.state.deadline_ns(change)
        return deadline is not None and deadline <= self.t_ns

    def reschedule(self, change_id: str) -> None:
        """Put a change's windows into the wheel (again)."""
        self.state.touched.changes[change_id] = None

    def retry_ttl(self, resource: str) -> None:
        """Try the end of a trial again soon."""
        self.alarms.schedule(("ttl", resource), self.t_ns + NS_PER_S)

    def rebuild(self) -> None:
        self.state.touched.members.update(dict.fromkeys(self.state.member_of))
        self.state.touched.changes.update(dict.fromkeys(self.state.changes))
        self.state.touched.timers = True
        self.reindex()

    def reindex(self) -> None:
        """Update the wheels with what the step's records moved: O(number of moved names)."""
        touched, state, alarms = self.state.touched, self.state, self.alarms
        for cid in touched.changes:
            change = state.changes.get(cid)
            if change is None:
                if ("retry", cid) in alarms:
                    alarms.cancel(("retry", cid))
                continue
            touched.members.update(dict.fromkeys(change.members))
            wants_retry = (
                change.state == life.BLOCKED
                and state.settings.on_busy_retry
                and bool(change.holders)
                and not change.group
            )
            waits = ("retry", cid) in alarms
            if waits and not wants_retry:
                alarms.cancel(("retry", cid))
            elif wants_retry and not waits and cid not in self.busy:
                alarms.schedule(("retry", cid), self.t_ns + state.settings.retry_ns)
        for resource in self.in_turns(touched.members):
            change = state.change_of(resource)
            if change is not None:
                touched.changes[change.id] = None
            if change is None or change.state != life.OPEN or change.intents or change.group:
                self.windows.cancel(resource)
            else:
                self.windows.schedule(resource, change.members[resource].opening_ns + change.extension_ns)
        for cid in touched.changes:
            change = state.changes.get(cid)
            if change is None:
                self.ruled.pop(cid, None)
            if change is None or not change.owner.then or not self.by_rule(change):
                if ("rule", cid) in alarms:
                    alarms.cancel(("rule", cid))
            elif cid not in self.busy:
                ended = change.owner.run in self.ended_runs
                alarms.schedule(("rule", cid), self.t_ns + (writers.ENDED_NS if ended else writers.QUIET_NS))
            if change is None or change.state != life.OPEN or not change.members or change.closing or change.intents:
                self.closing.cancel(cid)
            elif not change.group:
                self.closing.schedule(cid, change.opening_ns)
        if touched.timers:
            self._rearm()
        touched.members.clear()
        touched.changes.clear()
        touched.timers = False

    def _rearm(self) -> None:
        """Set all alarms for TTLs, holds and the emergency's end, in real time. They are few, so all are set anew."""
        state = self.state
        wanted: dict[tuple[str, str], int] = {("ttl", r): t.expires_ns for r, t in state.ttls.items()}
        wanted.update({("hold", h.id): h.ends_ns for h in state.holds.values()})
        if state.emergency is not None and not state.emergency.stale:
            wanted["emergency", ""] = state.emergency.ends_ns
        for name, deadline in wanted.items():
            if self.alarms.deadline(name) != deadline:
                self.alarms.schedule(name, deadline)
        for name in [n for n in self.alarms.names() if n[0] not in ("retry", "rule") and n not in wanted]:
            self.alarms.cancel(name)

    def new_change_id(self) -> str:
        return f"c{self.state.change_n + 1}"

    def window_opened(self, cid: str, *, reopened: bool = False, reads: Mapping[str, str] | None = None) -> None:
        """Announce a change's window, if it has one that runs. ``reads``: how the kernel shows values that were just
        applied."""
        change = self.state.changes[cid]
        deadline_ns = None
        if change.members and change.state == life.OPEN and not self.state.suspended:
            deadline_ns = max(self.state.windows.end(change.opening_ns), self.state.not_before_ns)
        if deadline_ns is None and not change.intents and not reopened and not reads:
            return
        members = sorted(change.members)
        self.record(
            payloads.WindowOpened(
                change=cid,
                owner=change.owner,
                resources=members[:PIECE_MAX],
                count=len(members) if len(members) > PIECE_MAX else None,
                window_ns=self.state.windows.now_w,
                reopened=reopened,
                magnitude_n=round(magnitude(self.state.open_sum_n) * BILLION),
                deadline=None if deadline_ns is None else self.wall_of(deadline_ns),
                reads=dict(reads or {}),
            )
        )

    def learn(self, event: Acted) -> dict[str, str]:
        """How the kernel shows declared values that it accepted, for the record: from now on observations are compared
        with that.  # D5"""
        out = {}
        for resource, text in self.public_reads(event).items():
            declared = self.state.declared(resource)
            if declared is not None and declared.attrs is not None and not declared.attrs.get("secret"):
                out[resource] = text
        return out

    @staticmethod
    def public_reads(event: Acted) -> dict[str, str]:
        """How the kernel shows values, without secrets: viewers may see records, and records leave the node.  # S2"""
        seen = {s.resource: s.observation for s in event.sightings}
        return {
            r: text
            for r, text in event.reads.items()
            if isinstance(found := seen.get(r), dict) and not found.get("secret")
        }

    def recheck(self, resources: Sequence[str]) -> None:
        if resources:
            self.emit(Recheck(tuple(resources)))
