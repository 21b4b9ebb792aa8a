"""The decisions of one node: ``step(event) -> effects``.

Every decision becomes a record, the record is folded into ``State`` at once, and the caller makes it durable before it
carries out what follows in the effect list.  # J1

Each verb of the operators has its own file; the tables here say which function handles which event and request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pact.core.node import (
    adopt,
    apply,
    batch,
    commit,
    declare,
    extend,
    join,
    payloads,
    recording,
    replies,
    returned,
    rollback,
    suspend,
    tracked,
    undo,
    untold,
    writers,
)
from pact.core.node import change as life
from pact.core.node import member as groups
from pact.core.node.commands import DOWN
from pact.core.node.desk import Desk
from pact.core.node.events import (
    AGENT_CALLER,
    Acted,
    Appeared,
    Asked,
    CommandsTold,
    ContactChanged,
    Covered,
    Denied,
    Discovered,
    Effect,
    Event,
    FleetTold,
    JobFailed,
    JobsEnded,
    Looked,
    Observed,
    ObserverChanged,
    Probed,
    Reconfigured,
    RunsEnded,
    Scanned,
    SessionTold,
    Sighting,
    Started,
    Stopping,
    Ticked,
)
from pact.core.node.jobs import Job
from pact.core.node.state import ALL
from pact.core.ops import Op
from pact.core.records import in_pieces
from pact.errors import DeniedError, PactError, UsageError
from pact.model import Actor, Attrs, Declared, Unreadable

CLOSING_NAMED_MAX: Final = 20
ENDED_RUNS_MAX: Final = 1024


class Node(Desk):
    """One node. Events go in, effects come out; other methods that are called from outside only read."""

    def step(self, event: Event) -> list[Effect]:
        """Decide. Never raises for an act of an operator or of the machine; an AssertionError is a bug."""
        kind = type(event)
        state, pace = self.state, self.pace
        if state.closed.left:
            state.closed.forget()
        self.effects, self.moved = [], kind is not Asked  # the others bring news that the state lacks
        self.fleet_before = self.fleet_fence, self.fleet_seq
        self.t_ns = max(self.t_ns, event.t_ns)
        self.wall_ns = event.wall_ns
        if kind is not Started and (self.alarms or self.windows):
            self._expire()
        _STEPS[kind](self, event)
        if self.refusals.beyond:
            self._tell_refusals()
        if pace.waiting or pace.leaving or pace.crowded:
            tracked.flush(self)
        if state.groups or self.deciding:
            groups.finish_done(self)
        if state.telling and self.scanned:
            self._tell_later()
        if self.waiting:
            replies.answer_complete(self)
        touched = state.touched
        if touched.members or touched.changes or touched.timers:
            self.reindex()
        self.moved = True
        return self.effects

    def _tell_later(self) -> None:
        """Tell who must still be told, if anything has moved since it was last asked who that is.  # R14"""
        now = (self.state.seq, self.jobs_numbered, len(self.jobs), len(self.unreadable))
        if now != self.owed_at and (later := untold.resume(self, untold.LATER)) is not None:
            rollback.resume_rollback(self, later, {})
        self.owed_at = now

    def _expire(self) -> None:
        """Handle everything that is due at this moment.  # A4"""
        state = self.state
        for kind, name in self.alarms.advance(self.t_ns):
            _ALARMS[kind](self, name)
        alone = self.alone_since_ns is not None and self.t_ns < self.alone_until_ns
        if not self.windows or alone or state.suspended:
            return
        if self.closing:
            self._announce()  # also within the floor after a reboot, while there is time to warn
        if self.t_ns < state.not_before_ns:
            return
        due = self.windows.advance(self.t_ns - state.windows.effective(self.t_ns))
        if not due:
            return
        for cid in dict.fromkeys(state.member_of[r] for r in due if r in state.member_of):
            change = state.changes.get(cid)
            if change is None or change.state != life.OPEN or cid in self.busy:
                continue
            if change.owner.then == writers.COMMIT and self.by_rule(change):
                self._alarm_rule(cid)
            else:
                rollback.start_rollback(self, change, "expired", AGENT_CALLER)

    def _announce(self) -> None:
        """Announce the changes that will soon be rolled back.  # N1"""
        while (opening := self.closing.next_deadline()) is not None and self.announced_ns(opening) <= self.t_ns:
            found = self.closing.advance(opening)
            for change in map(self.state.changes.get, found):
                deadline_ns = None if change is None else self.state.deadline_ns(change)
                if change is None or deadline_ns is None or deadline_ns <= self.t_ns:
                    continue
                self.record(
                    payloads.WindowClosing(
                        change=change.id,
                        owner=change.owner,
                        deadline=self.wall_of(deadline_ns),
                        resources=sorted(change.members)[:CLOSING_NAMED_MAX],
                        count=len(change.members),
                    )
                )
            if not found and self.closing.next_deadline() == opening:
                break

    def _alarm_retry(self, name: str) -> None:
        change = self.state.changes.get(name)
        if change is None or change.state != life.BLOCKED or name in self.busy or self.state.suspended:
            return
        if self.state.held_by(name) or self.t_ns < self.alone_until_ns:
            self.alarms.schedule(("retry", name), self.t_ns + self.state.settings.retry_ns)
            return
        rollback.start_rollback(self, change, "retry", AGENT_CALLER)

    def _alarm_rule(self, name: str) -> None:
        """Nothing of a run's change has moved for a while: carry out the rule for its writer.  # O5"""
        change = self.state.changes.get(name)
        if change is None or not self.by_rule(change) or name in self.busy:
            return
        if change.owner.then == writers.ROLLBACK and (self.state.suspended or self.t_ns < self.alone_until_ns):
            return
        self.ruled[name] = self.ruled.get(name, 0) + 1  # a commit that is done takes it back
        if change.owner.then == writers.COMMIT:
            try:
                commit.commit_by_rule(self, change)
            except PactError:
                pass  # it keeps its window
        else:
            rollback.start_rollback(self, change, "rule", AGENT_CALLER)

    def _alarm_ttl(self, name: str) -> None:
        commit.expire_commits(self, name)

    def _alarm_hold(self, name: str) -> None:
        suspend.expire_hold(self, name)

    def _alarm_emergency(self, name: str) -> None:
        suspend.stale(self)

    def _started(self, event: Started) -> None:
        state = self.state
        first, was_enforcing = state.seq < 0, state.settings.enforce
        self.alone_since_ns = self.t_ns if event.clustered else None
        not_before_ns = self.t_ns + event.settings.floor_ns if event.reboot else state.not_before_ns
        unclean = state.running
        self.record(
            payloads.AgentStarted(
                boot_id=event.boot_id,
                offset_ns=event.offset_ns,
                wall_ns=event.wall_ns,
                settings=event.settings,
                version=event.version,
                reboot=event.reboot,
                unclean=unclean,
                not_before_ns=not_before_ns,
                boot_owed=event.reboot,
            )
        )
        if first and event.declared:
            for names in in_pieces(list(event.declared)):
                self.record(
                    payloads.Declared(
                        resources={r: event.declared[r] for r in names},
                        cause="first start",
                        sources=list(event.sources),
                    )
                )
        if first and event.track:
            self.record(payloads.Tracked(patterns=dict(event.track), forgotten=[]))
        self._open_at_last(was_enforcing or first)
        if event.reboot:
            batch.all_ended(self)
            for seq, command in list(state.commands.items()):
                self.record(command.ended(seq, DOWN), command.actor)
        self.rebuild()

    def _reconfigured(self, event: Reconfigured) -> None:
        """Apply new settings; everything else stays as it is."""
        state = self.state
        was_enforcing = state.settings.enforce
        self.record(
            payloads.AgentStarted(
                boot_id=state.boot_id,
                offset_ns=state.offset_ns,
                wall_ns=event.wall_ns,
                settings=event.settings,
                version=event.version,
                reboot=False,
                unclean=False,
                not_before_ns=state.not_before_ns,
                reloaded=True,
            )
        )
        self._open_at_last(was_enforcing)
        self.rebuild()

    def _open_at_last(self, was_enforcing: bool) -> None:
        """From observing to enforcing: the windows of existing drift open at this moment.  # P2"""
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
        joined = {r for c in rolling for r in (c.rolling.joined if c.rolling is not None else ())}
        frozen = {r for c in rolling for r in c.members}
        elsewhere = {s.resource for s in reset if self._differs(s) and s.resource not in frozen}
        if owed is not None and (not elsewhere or (times := self.killed.pop("boot", 0)) >= rollback.KILLED_MAX):
            why = rollback.killed_text(times) if elsewhere else ""
            left, telling = dict.fromkeys(sorted(elsewhere), why), self.state.telling
            recording.converged(self, left, "boot", owed={r: telling[r] for r in left if r in telling})
            elsewhere.clear()
        self.sight(s for s in event.sightings if s.resource not in elsewhere and s.resource not in joined)
        self.scanned = True
        untold.resume(self, untold.RESUMED, elsewhere)
        for change in list(self.state.changes.values()):
            if change.intents:
                self.window_opened(change.id)  # an apply was interrupted: its remaining steps will not be done
            elif change.state == life.ROLLING:
                rollback.resume_rollback(self, change, {s.resource: s for s in reset if s.resource in change.members})
                if change.state != life.ROLLING:  # it is not retried: what it already brought back has no drift
                    self.sight(s for s in event.sightings if s.resource in {*change.members, *joined})
        groups.resume(self)
        if elsewhere:
            declare.converge_after_boot(self, [s for s in reset if s.resource in elsewhere])

    def _is_reset(self, sighting: Sighting, owed: Mapping[str, Attrs | None], reboot: bool) -> bool:
        """Whether the boot reset this resource: nobody has set it since, and it has not drifted into a change since."""
        if ALL in owed:
            return reboot or sighting.resource not in self.state.member_of
        return (
            sighting.resource in owed
            and owed[sighting.resource] == sighting.observation
            and sighting.resource not in self.state.member_of
        )

    def _differs(self, sighting: Sighting) -> bool:
        declared, seen = self.state.declared(sighting.resource), sighting.observation
        if declared is None or isinstance(seen, Unreadable):
            return False
        return self.deviation_n(sighting.resource, declared, seen) > 0

    def _observed(self, event: Observed) -> None:
        back = returned.found(self, event.sightings)
        self.sight(event.sightings)
        if back:
            returned.converge(self, back)

    def _covered(self, event: Covered) -> None:
        """A mount hides declared paths. Its earlier state, absence, is declared, so the mount is drift.  # R7"""
        fresh = {r: Declared(None).to_json() for r in event.mounts if r not in self.state}
        for names in in_pieces(list(fresh)):
            resources = {r: fresh[r] for r in names}
            self.record(payloads.Declared(resources=resources, cause="mounted over declared paths"))
        if fresh:
            self.sight(Sighting(r, event.mounts[r], event.owner) for r in fresh)

    def _appeared(self, event: Appeared) -> None:
        tracked.appeared(self, event)

    def _ticked(self, event: Ticked) -> None:
        pass

    def _asked(self, event: Asked[Op]) -> None:
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

    def _session_told(self, event: SessionTold) -> None:
        self.record(event.said, event.actor)

    def _commands_told(self, event: CommandsTold) -> None:
        for said, actor in event.said:
            self.record(said, actor)

    def _record_denied(self, op: str, why: str, actor: Actor) -> None:
        """An administrator's refusals are always recorded; of all others together, a limited number.  # S3"""
        if actor.role != "admin" and not self.refusals.admit(self.t_ns):
            return
        beyond = self.refusals.told()
        self.record(payloads.Denied(request=op, why=why, beyond=beyond), actor)

    def _tell_refusals(self) -> None:
        """After the last refusal, record how many have no record of their own."""
        if self.refusals.next_ns <= self.t_ns and self.refusals.admit(self.t_ns):
            beyond = self.refusals.told()
            self.record(payloads.Denied(request="several", why=f"{beyond} more were refused", beyond=beyond))

    def _answered(self, event: Looked | Probed | Acted | Discovered) -> None:
        job = self.jobs.get(event.job)
        if job is None:
            return
        try:
            _ANSWERS[type(event), job.kind](self, job, event)
        except PactError as exc:
            self.finish(job)
            rollback.give_up(self, job, exc)

    def _job_failed(self, event: JobFailed) -> None:
        job = self.jobs.get(event.job)
        if job is not None:
            self.finish(job)
            rollback.give_up(self, job, event.error)

    def _observer_changed(self, event: ObserverChanged) -> None:
        known = self.state.blind.get(event.observer)
        if event.why and known != event.why:
            self.record(payloads.ObserverBlind(observer=event.observer, why=event.why))
        elif not event.why and known is not None:
            self.record(payloads.ObserverRestored(observer=event.observer))

    def _fleet_told(self, event: FleetTold) -> None:
        suspend.told(self, event)

    def _contact_changed(self, event: ContactChanged) -> None:
        self.alone_since_ns = None if event.connected else self.t_ns

    def _runs_ended(self, event: RunsEnded) -> None:
        for run in event.runs:
            self.ended_runs[run] = None
        while len(self.ended_runs) > ENDED_RUNS_MAX:
            del self.ended_runs[next(iter(self.ended_runs))]
        for change in self.state.changes.values():
            if change.owner.run in event.runs and change.owner.run:
                self.reschedule(change.id)

    def _jobs_ended(self, event: JobsEnded) -> None:
        batch.jobs_ended(self, event.jobs)

    def _stopping(self, event: Stopping) -> None:
        self.record(payloads.AgentStopped(reason=event.reason))


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
    SessionTold: Node._session_told,
    CommandsTold: Node._commands_told,
    Looked: Node._answered,
    Probed: Node._answered,
    Acted: Node._answered,
    Discovered: Node._answered,
    JobFailed: Node._job_failed,
    ObserverChanged: Node._observer_changed,
    FleetTold: Node._fleet_told,
    ContactChanged: Node._contact_changed,
    RunsEnded: Node._runs_ended,
    JobsEnded: Node._jobs_ended,
    Stopping: Node._stopping,
}

_ALARMS: Final[Mapping[str, Callable[[Node, str], None]]] = {
    "retry": Node._alarm_retry,
    "rule": Node._alarm_rule,
    "ttl": Node._alarm_ttl,
    "hold": Node._alarm_hold,
    "emergency": Node._alarm_emergency,
}

_OPS: Final[Mapping[str, Callable[[Node, Any], None]]] = {
    "commit": commit.asked_commit,
    "rollback": rollback.asked_rollback,
    "extend": extend.asked_extend,
    "declare": declare.asked_declare,
    "apply": apply.asked_apply,
    "adopt": adopt.asked_adopt,
    "track": tracked.asked_track,
    "emergency_start": suspend.asked_emergency_start,
    "emergency_end": suspend.asked_emergency_end,
    "hold_place": suspend.asked_hold_place,
    "hold_release": suspend.asked_hold_release,
    "epilog": batch.asked_epilog,
    "group_check": join.asked_check,
    "group_apply": join.asked_apply,
    "group_vote": groups.asked_vote,
    "group_state": groups.asked_state,
    "group_decide": groups.asked_decide,
    "group_extend": groups.asked_extend,
    "fleet_seen": suspend.asked_fleet_seen,
}

_ANSWERS: Final[Mapping[tuple[type, str], Callable[[Node, Job[Any], Any], None]]] = {
    (Looked, "commit"): commit.looked_commit,
    (Probed, "rollback"): rollback.probed_rollback,
    (Acted, "rollback"): rollback.acted_rollback,
    (Probed, "declare"): declare.probed_declare,
    (Acted, "declare"): declare.acted_declare,
    (Probed, "apply"): apply.probed_apply,
    (Acted, "apply"): apply.acted_apply,
    (Acted, "undo"): undo.acted_undo,
    (Discovered, "adopt"): adopt.discovered_adopt,
    (Acted, "boot"): declare.acted_boot,
    (Acted, "returned"): returned.acted,
    (Probed, "group_check"): join.probed_check,
    (Looked, "group_vote"): groups.looked_vote,
    (Probed, "group_vote"): groups.probed_vote,
}
