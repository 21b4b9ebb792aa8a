"""Observations become drift, and drift joins the change of its owner.  # D1, C2"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from pact.core.node import change as life
from pact.core.node import payloads, writers
from pact.core.node.change import Change, Member
from pact.core.node.events import Acted, Sighting
from pact.core.node.ledger import Ledger
from pact.core.node.state import Hold, recent_key
from pact.core.settings import BILLION
from pact.errors import ConflictError
from pact.model import UNATTRIBUTED, Attrs, Declared, Owner, Unreadable

#: How many owners besides the last one are named as writers of a resource.
ALSO_MAX: Final = 8
#: For how many jobs of one node a change is held at the same time.
JOBS_MAX: Final = 512
#: Of how many resources it is remembered what jobs wanted whose value another job has replaced.
MEANT_MAX: Final = 4096


class Desk(Ledger):
    """A ledger that takes observations in: everything that an operation needs."""

    def sight(self, sightings: Iterable[Sighting], into: Change | None = None) -> list[str]:
        """Take observations in; drift joins the change ``into``. Returns the resources whose record moved."""
        intents = self.intended()
        return [s.resource for s in self.in_turns(sightings) if self._sight(s, intents.get(s.resource, into))]

    def intended(self) -> dict[str, Change]:
        """The resources that a running ``apply`` will change, each with the change that it will join."""
        return {r: c for c in self.state.changes.values() if c.intents for r in c.intents}

    def refuse_intended(self, resources: Iterable[str]) -> None:
        """Raises ConflictError for resources that a running ``apply`` changes: two applications cannot own one
        resource."""
        intended = self.intended()
        for resource in resources if intended else ():
            if resource in intended:
                raise ConflictError(
                    f"{resource} is being changed with {intended[resource].id}", "try again when it is done"
                )

    def deviation_n(self, resource: str, declared: Declared, actual: Attrs | None) -> int:
        """``severity x distance`` in billionths; at least 1 if the resource does not conform."""
        distance_n = self.rules.distance_n(resource, declared.attrs, actual)
        if distance_n == 0:
            return 0
        severity_n = declared.severity_n
        if severity_n is None:
            severity_n = self.state.settings.severity_of(resource)
        return max(1, severity_n * distance_n // BILLION)

    def weight_n(self, resource: str, declared: Declared) -> int:
        if declared.weight_n is not None:
            return declared.weight_n
        return self.state.settings.weights_n[self.state.settings.dimension_of(resource)]

    def _sight(self, sighting: Sighting, intent: Change | None) -> bool:
        resource, seen = sighting.resource, sighting.observation
        declared = self.state.declared(resource)
        if declared is None:
            self.unreadable.pop(resource, None)
            return False
        if isinstance(seen, Unreadable):  # D1: unreadable is never drift
            self.unreadable[resource] = seen.why
            return False
        if self.unreadable:
            self.unreadable.pop(resource, None)
        change = self.state.change_of(resource)
        if change is not None and change.state == life.ROLLING:  # R2: the change is frozen
            return False
        if self.converging and any(resource in ids for ids in self.converging.values()):
            return False  # not finished yet; observed again afterwards
        if sighting.owner is None and any(resource in ids for ids in self.stirring.values()):
            return False  # the plan may be moving it, and may put it back; observed again after the plan  # C8
        deviation_n = self.deviation_n(resource, declared, seen)
        if deviation_n == 0:
            blocked = change is not None and change.state == life.BLOCKED and resource in self.state.telling
            if change is not None and (change.members[resource].owed or blocked):
                return self._still_owed(change, change.members[resource], declared)
            if change is not None:
                self._remember_meant(change, resource, sighting.owner, cleared=True)
                self.record(payloads.DriftCleared(resource=resource, change=change.id))
            elif resource in self.state.enforced:
                self.record(payloads.Declared(resources={}, forgotten=[resource], cause="it is gone"))
            return change is not None
        if change is None and sighting.owner is None and resource in self.state.enforced:
            sighting = replace(sighting, owner=self.state.enforced[resource])
        if change is not None and change.members[resource].actual != seen:
            self._remember_meant(change, resource, sighting.owner, cleared=False)
        drifted = self._drift(sighting, change, seen, deviation_n, self.weight_n(resource, declared), intent)
        if drifted and resource in self.meant:
            self._meant_again(resource, sighting)
        return drifted

    def _still_owed(self, change: Change, member: Member, declared: Declared) -> bool:
        """It is as declared, and somebody must still be told of that. If it was something else meanwhile, record that
        it is not any more: they alone are told then.  # R14"""
        if member.owed and member.actual == declared.attrs:
            return False
        by = change.owner.with_command(member.command)
        self.detect(
            member.resource, change.id, by, declared.attrs, 1, member.weight_n, member.opened_ns, member.moved_with
        )
        return True

    def _drift(
        self,
        sighting: Sighting,
        change: Change | None,
        actual: Attrs | None,
        deviation_n: int,
        weight_n: int,
        intent: Change | None,
    ) -> bool:
        """``change``: the one that has the resource now."""
        state, resource, writer, moved_with = self.state, sighting.resource, sighting.owner, sighting.moved_with
        identified = writer is not None and writer.key != UNATTRIBUTED.key
        if change is not None:
            member = change.members[resource]
            unnamed = [change.owner] if writer is None or writer.whose != change.owner.whose else member.also
            named_late = (  # a rescan saw the drift before the event that names the writer
                identified
                and any(o.key == UNATTRIBUTED.key for o in unnamed)
                and change.state in (life.OPEN, life.HELD)
            )
            same = (member.actual, member.deviation_n, member.weight_n) == (actual, deviation_n, weight_n)
            if same and not named_late and not writers.takes_over(change, writer):
                return False
            if same and writer is not None and (shared := self._held_for_jobs(change)):
                return self._share(change, resource, writer, shared, sighting)
        if intent is not None:
            self.detect(
                resource,
                intent.id,
                intent.owner,
                actual,
                deviation_n,
                weight_n,
                self._with_notice(self._opened(resource)),
                moved_with,
                secret=sighting.secret,
            )
            return True
        if change is not None and (not identified or (writer is not None and writer.whose == change.owner.whose)):
            member = change.members[resource]
            by = writer if identified and writer is not None else change.owner.with_command(member.command)
            moved_with = moved_with if identified else moved_with or member.moved_with
            self.detect(
                resource,
                change.id,
                by,
                actual,
                deviation_n,
                weight_n,
                member.opened_ns,
                moved_with,
                secret=sighting.secret,
                known=identified,
            )
            return True
        owner = writer if writer is not None and identified else UNATTRIBUTED
        cid = self._joins(moved_with, owner) or state.ambient.get(owner.whose) or self.new_change_id()
        self.detect(
            resource,
            cid,
            owner,
            actual,
            deviation_n,
            weight_n,
            self._opened(resource, owner),
            moved_with,
            secret=sighting.secret,
        )
        return True

    def _joins(self, moved_with: str, owner: Owner) -> str:
        """The id of the change that has the written resource, if it has the same owner and accepts drift; else
        empty.  # C8"""
        change = self.state.change_of(moved_with) if moved_with else None
        if change is None or change.owner.whose != owner.whose or change.state not in (life.OPEN, life.HELD):
            return ""
        return change.id

    def _opened(self, resource: str, owner: Owner | None = None) -> int:
        """When the resource's window opened: drift keeps its first opening time.  # C2, C4"""
        state, settings = self.state, self.state.settings
        change = state.change_of(resource)
        if owner is not None and writers.job_of(owner):  # what the last job had does not shorten this one's time  # O7
            return self.t_ns
        if change is not None and change.state in (life.OPEN, life.HELD):
            return change.members[resource].opened_ns
        if owner is not None and change is None:
            earlier = state.recent.get(recent_key(owner.key, resource))
            if earlier is not None and self.t_ns - earlier < settings.base_ns:
                return self._with_notice(earlier)
        return self.t_ns

    def _with_notice(self, opened_ns: int) -> int:
        """The opening time, or a later one that leaves the floor: what a person has just done is not undone at
        once.  # W3"""
        spent_ns = self.state.windows.before(self.t_ns) - self.state.settings.floor_ns
        return max(opened_ns, self.t_ns - max(0, spent_ns))

    def detect(
        self,
        resource: str,
        cid: str,
        owner: Owner,
        actual: Attrs | None,
        deviation_n: int,
        weight_n: int,
        opened_ns: int,
        moved_with: str = "",
        *,
        secret: bool = False,
        known: bool = True,
    ) -> None:
        """Record drift; record the window too if this drift opens one. ``known``: the owner is known to have written
        this value, and not only to be the last one who is known to have written any."""
        fresh = cid not in self.state.changes
        also = self._also(resource, owner, actual, known)
        before = self.state.member_of.get(resource)
        declared = self.state.declared(resource)
        meant_secret = declared is not None and self.rules.meant_secret(resource, declared.attrs)
        self.record(
            payloads.DriftDetected(
                resource=resource,
                change=cid,
                owner=owner,
                opened_ns=opened_ns,
                actual=actual,
                deviation_n=deviation_n,
                weight_n=weight_n,
                from_=before if before is not None and before != cid else "",
                with_=moved_with,
                also=also,
                secret=bool(secret or meant_secret),  # even if its mode currently lets everybody read it  # S2
            )
        )
        if fresh:
            self._hold_new(cid)
            self.window_opened(cid)

    def _hold_new(self, cid: str) -> None:
        """The change of a writer whose work is to be held begins with a hold, and has no window before.  # O6, O7"""
        change, state = self.state.changes[cid], self.state
        why = writers.why_held(change.owner)
        if why:
            for_ns = writers.JOB_MAX_NS if writers.job_of(change.owner) else state.settings.emergency_ns
            self._place(cid, change.owner, why, self.t_ns + for_ns)

    def _held_for_jobs(self, change: Change) -> list[Hold]:
        return [h for h in self.state.holds.values() if h.change == change.id and writers.job_of(h.owner)]

    def _share(self, change: Change, resource: str, writer: Owner, shared: Sequence[Hold], sighting: Sighting) -> bool:
        """Another job wants what is held for running jobs already: it lasts as long as any of them. What this job wants
        of a change that has more becomes a change of its own, held for all of them.  # O7"""
        if any(h.owner.then == writer.then for h in shared):
            return False
        if len(change.members) > 1:
            self._hold_as_well(self._apart(change, resource, writer, sighting), shared)
        elif len(shared) < JOBS_MAX:
            self._place(change.id, writer, writers.why_held(writer), self.t_ns + writers.JOB_MAX_NS)
        return True

    def _apart(self, change: Change, resource: str, writer: Owner, sighting: Sighting) -> str:
        """The id of a new change of this writer with this member, as it is."""
        member, cid = change.members[resource], self.new_change_id()
        args = (member.actual, member.deviation_n, member.weight_n, self.t_ns, sighting.moved_with)
        self.detect(resource, cid, writer, *args, secret=sighting.secret)
        return cid

    def _hold_as_well(self, cid: str, holds: Sequence[Hold]) -> None:
        for hold in holds[-JOBS_MAX:]:
            self._place(cid, hold.owner, hold.reason, hold.ends_ns)

    def _remember_meant(self, change: Change, resource: str, writer: Owner | None, *, cleared: bool) -> None:
        """Another value than running jobs have set is there. A job's prolog may be on its way to theirs: who writes a
        file empties it first, and who sets a value may reset it first. Of a value that nobody is known to have put back
        as declared nothing is remembered: it may be an epilog's work.  # O7"""
        job = writers.job_of(writer) if writer is not None else ""
        named = writer is not None and writer.key != UNATTRIBUTED.key
        if (named and not job) or (cleared and not named):
            return
        wanted, before = self.meant.get(resource, (None, []))
        before = [h for h in before if writer is None or h.owner.then != writer.then]
        shared = [h for h in self._held_for_jobs(change) if writer is None or h.owner.then != writer.then]
        if not {h.id for h in shared} <= {h.id for h in before}:
            wanted, before = change.members[resource].actual, shared
        if before and (resource in self.meant or len(self.meant) < MEANT_MAX):
            self.meant[resource] = wanted, before
        else:
            self.meant.pop(resource, None)

    def _meant_again(self, resource: str, sighting: Sighting) -> None:
        """The value of which jobs are still in need has come back by another job's hand: it lasts as long as any of
        them.  # O7"""
        change, (wanted, holds) = self.state.change_of(resource), self.meant[resource]
        if change is None or change.members[resource].actual != wanted or not writers.job_of(change.owner):
            return
        del self.meant[resource]
        known = {h.owner.then for h in self._held_for_jobs(change)}
        lacking = [h for h in holds if h.owner.then not in known and h.ends_ns > self.t_ns]
        if not known or not lacking:
            return  # a person has released it, or it is shared already
        cid = change.id
        if len(change.members) > 1:
            member = change.members[resource]
            cid = self._apart(change, resource, change.owner.with_command(member.command), sighting)
        self._hold_as_well(cid, lacking)

    def _place(self, cid: str, owner: Owner, why: str, ends_ns: int) -> None:
        hold, ends = f"h{self.state.hold_n + 1}", self.wall_of(ends_ns)
        self.record(payloads.HoldPlaced(hold=hold, change=cid, owner=owner, reason=why, ends_ns=ends_ns, ends=ends))

    def _also(self, resource: str, owner: Owner, actual: Attrs | None, known: bool) -> list[Owner]:
        """The other owners who have written a resource since it last conformed: no writer is forgotten when another
        owner takes the resource over. Whom the kernel did not name counts only before a rule, which must not accept
        that work with its own.  # C9, O5"""
        change = self.state.change_of(resource)
        if change is None:
            return []
        member = change.members[resource]
        holder = change.owner.with_command(member.command)
        by_rule = owner.then in (writers.COMMIT, writers.ROLLBACK) and member.actual != actual
        before = [*member.also, holder, *([] if known else [UNATTRIBUTED])]
        others = {o.key: o for o in before if by_rule or o.key != UNATTRIBUTED.key}
        return [o for o in others.values() if not owner.same_person(o)][-ALSO_MAX:]

    def sight_moved(self, event: Acted, owner: Owner, into: Change | None) -> list[str]:
        """Resources that a plan moved beside its own and did not put back are drift of the person who requested the
        plan, in the change ``into`` if given. Returns the ids that drifted.  # C8"""
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

    def frozen(self) -> set[str]:
        """The resources of rollbacks in progress: observations of them belong to those rollbacks."""
        rolling = [c for c in self.state.changes.values() if c.state == life.ROLLING]
        return {r for c in rolling for r in (*c.members, *(c.rolling.joined if c.rolling is not None else ()))}
