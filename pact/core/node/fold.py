"""Folds the records of the journal into the state: one handler for each record type.  # J2"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from pact.core import strict
from pact.core.node import change as life
from pact.core.node import debts, payloads
from pact.core.node import fold_groups as groups
from pact.core.node.change import Change, Member, Rolling
from pact.core.node.commands import Command
from pact.core.node.membership import learn
from pact.core.node.pace import Untracked
from pact.core.node.state import ALL, RECENT_MAX, Emergency, Hold, State, Ttl, recent_key
from pact.core.node.windows import Windows
from pact.core.payload import Value
from pact.core.records import Record, is_last, is_later


def apply(state: State, record: Record) -> None:
    """Fold one record in. Records come in order; each ``assert`` checks what only a bug could break. Raises ValueError
    for data that do not fit the record's type.
    """
    assert record.seq == state.seq + 1, (record.seq, state.seq)
    assert record.prev == state.hash
    state.seq, state.hash, state.wall = record.seq, record.hash, record.time
    state.t_ns = max(state.t_ns, record.t_ns)
    handler = _HANDLERS.get(record.type)
    if handler is not None:
        said = record.payload
        handler(state, record, payloads.of(record) if said is None else said)
    state.note(state.t_ns)


def _agent_started(state: State, record: Record, said: payloads.AgentStarted) -> None:
    was_enforcing, fresh = state.settings.enforce, record.seq == 0
    known, state.settings = state.settings.dimensions, said.settings
    if not known.keys() <= said.settings.dimensions.keys():
        # A kind that is gone keeps its dimension: its drift is part of the sums.
        state.settings = replace(state.settings, dimensions={**known, **state.settings.dimensions})
    state.boot_id, state.offset_ns = said.boot_id, said.offset_ns
    state.not_before_ns = said.not_before_ns
    state.running = True
    if said.reboot:
        state.boot_owed = {ALL: None} if said.boot_owed else None
    state.blind = {}
    state.windows.floor_ns = state.settings.floor_ns
    if fresh:
        state.windows = Windows(state.settings.floor_ns, state.settings.base_ns)
    if state.settings.enforce and not was_enforcing:  # P2: the windows of existing drift open at this moment
        for change in state.changes.values():
            state.reopen(change, record.t_ns)


def _exec_begun(state: State, record: Record, said: payloads.ExecBegun) -> None:
    state.commands[record.seq] = Command.of(said, record.actor, record.data.get("call", ""))


def _executed(state: State, record: Record, said: payloads.Executed) -> None:
    if said.begun is not None:
        state.commands.pop(said.begun, None)


def _agent_stopped(state: State, record: Record, said: payloads.AgentStopped) -> None:
    state.running = False


def _declared(state: State, record: Record, said: payloads.Declared) -> None:
    _declare(state, said.resources)
    for resource in said.forgotten or ():
        state.declare(resource, None)
        state.void_ttl(resource)
        state.leave(resource)
    for resource, deviation_n in (said.members or {}).items():
        state.redeviate(resource, deviation_n)
    for resource in said.taken or ():
        state.leave(resource)
    state.enforced.update(said.enforced)
    state.closed.add(said.enforced.keys() & set(said.closed))


def _adopted(state: State, record: Record, said: payloads.Adopted) -> None:
    _declare(state, said.resources)
    for resource, deviation_n in said.members.items():
        state.redeviate(resource, deviation_n)


def _declare(state: State, resources: Mapping[str, Value]) -> None:
    for resource, value in resources.items():
        state.declare(resource, value)
        state.void_ttl(resource)


def _applied(state: State, record: Record, said: payloads.Applied) -> None:
    for resource, value in said.baseline.items():
        state.declare(resource, value)
    change = state.changes.get(said.change)
    if change is None:
        change = state.new_change(said.change, said.owner, ambient=False, t_ns=record.t_ns)
    change.message = said.message
    change.intents |= set(said.resources)
    if said.tells:  # older versions told, and did not record that they had
        debts.begin(state, said.resources, said.notify)
    if said.group:
        groups.joined(state, said.group, change)


def _drift_detected(state: State, record: Record, said: payloads.DriftDetected) -> None:
    resource, cid = said.resource, said.change
    change = state.changes.get(cid)
    if change is None:
        change = state.new_change(cid, said.owner, ambient=True, t_ns=record.t_ns)
    shift_ns, owed = 0, list[str]()
    before = state.change_of(resource)
    if before is not None:
        shift_ns, owed = before.members[resource].shift_ns, before.members[resource].owed
    if resource in state.telling and debts.is_all(state, resource, said.actual):
        owed = debts.of(state, resource)
        del state.telling[resource]
    if before is not None and before.id != cid:
        state.remove(before, resource)
        state.take(before, "clear")
        state.settle_if_empty(before)
    change.intents.discard(resource)
    state.put(
        change,
        Member(
            resource,
            said.actual,
            said.deviation_n,
            said.weight_n,
            said.opened_ns,
            record.time,
            shift_ns,
            said.owner.command,
            said.with_,
            list(said.also),
            owed,
        ),
    )
    state.take(change, "drift")
    state.recent.pop(recent_key(change.owner.key, resource), None)


def _drift_cleared(state: State, record: Record, said: payloads.DriftCleared) -> None:
    resource = said.resource
    change = state.change_of(resource)
    if change is not None:
        if len(state.recent) >= RECENT_MAX:
            horizon = record.t_ns - state.settings.base_ns
            state.recent = {k: v for k, v in state.recent.items() if v > horizon}
            if len(state.recent) >= RECENT_MAX:
                state.recent.clear()
        state.recent[recent_key(change.owner.key, resource)] = change.members[resource].opened_ns
        state.leave(resource)
    state.forget_enforced([resource])


def _window_opened(state: State, record: Record, said: payloads.WindowOpened) -> None:
    change = state.changes[said.change]
    group = state.groups.get(change.group)
    if group is not None:
        learn(group, said.reads)
    if said.reopened:
        state.reopen(change, record.t_ns)
    if change.intents or not change.members:
        change.intents = set()
        state.settle_if_empty(change)
    state.touched.changes[change.id] = None


def _window_closing(state: State, record: Record, said: payloads.WindowClosing) -> None:
    state.changes[said.change].closing = True
    state.touched.changes[said.change] = None


def _window_extended(state: State, record: Record, said: payloads.WindowExtended) -> None:
    change = state.changes[said.change]
    reopened = change.state in (life.BLOCKED, life.FAILED)
    state.take(change, "extend")
    if reopened:
        change.reason, change.holders = "", []
        state.reopen(change, record.t_ns)
        if state.held_by(change.id):
            state.take(change, "hold")
            change.held_since_ns = record.t_ns
    change.extension_ns += said.by_ns
    change.closing = False
    state.touched.changes[change.id] = None
    groups.extended(state, said)


def _committed(state: State, record: Record, said: payloads.Committed) -> None:
    for resource, value in said.resources.items():
        earlier = state.declared_raw(resource)
        trial = state.ttls.get(resource)
        if trial is not None:  # the end of a trial of a trial restores the permanently declared value  # T1
            earlier = None if trial.earlier is None else orjson.dumps(trial.earlier)
        state.void_ttl(resource)
        if said.expires_ns is not None:
            state.ttls[resource] = Ttl(
                said.expires_ns,
                None if earlier is None else strict.own(earlier),
                said.committer or said.owner,
                record.seq,
            )
            state.touched.timers = True
        state.declare(resource, value)
        state.telling.pop(resource, None)
        if resource in said.owed:
            state.telling[resource] = list(said.owed[resource])
        change = state.change_of(resource)
        if change is not None:
            state.remove(change, resource)
            state.take(change, "commit")
            state.settle_if_empty(change)


def _commit_expired(state: State, record: Record, said: payloads.CommitExpired) -> None:
    for resource, value in said.resources.items():
        state.void_ttl(resource)
        if value is None:
            state.declare(resource, None)
            state.leave(resource)
        else:
            state.declare(resource, value)


def _rollback_started(state: State, record: Record, said: payloads.RollbackStarted) -> None:
    change = state.changes[said.change]
    before = change.rolling if is_later(said.part) else None
    if before is None:
        state.take(change, "start")
        change.reason, change.holders = "", []
        before = Rolling(said.cause, (), list(said.skipped), {}, record.seq, {})
    debts.begin(state, (s.id for s in said.plan))
    saved = {r: v["sha256"] for r, v in said.saves.items() if v.get("sha256")}
    joined = {s.id: s.target for s in said.plan if s.id not in change.members}
    change.rolling = Rolling(
        before.cause,
        [*before.steps, *(s.id for s in said.plan)],
        before.skipped,
        {**(before.saved or {}), **saved},
        before.seq,
        {**before.joined, **joined},
    )


def _converge_started(state: State, record: Record, said: payloads.ConvergeStarted) -> None:
    """Remember what a boot must bring back until it has been brought back, and of what somebody must be told until
    the plan has ended.  # B3, R14"""
    debts.begin(state, (s.id for s in said.plan))
    if said.cause == "boot" and state.boot_owed is not None:
        state.boot_owed.pop(ALL, None)
        state.boot_owed.update({s.id: s.actual for s in said.plan})


def _converged(state: State, record: Record, said: payloads.Converged) -> None:
    state.learn(said.reads)
    debts.end(state, said.results, said.owed)
    if said.cause == "boot":
        state.boot_owed = None


def _rolled_back(state: State, record: Record, said: payloads.RolledBack) -> None:
    state.learn(said.reads)
    change, last = state.changes[said.change], is_last(said.part)
    members = list(change.members) if last else [r for r in said.results if r in change.members]
    _told(state, change, said.results, said.part)
    state.count_automatic(change, members, record.t_ns)
    if last:
        state.take(change, "done")
    else:
        for resource in members:
            state.remove(change, resource)
    state.forget_enforced(members)


def _told(state: State, change: Change, resources: Iterable[str], part: Sequence[int]) -> None:
    """A rollback has ended: who reads these was told, and who reads anything of its plan; who is owed more is said by
    its records, this one and those that follow.  # R14"""
    plan = change.rolling.steps if change.rolling is not None and not is_later(part) else ()
    for resource in (*resources, *plan):
        state.telling.pop(resource, None)


def _rollback_blocked(state: State, record: Record, said: payloads.RollbackBlocked) -> None:
    change = state.changes[said.change]
    state.take(change, "block")
    change.reason, change.holders = said.reason, list(said.holders)
    change.rolling = None


def _rollback_failed(state: State, record: Record, said: payloads.RollbackFailed) -> None:
    state.learn(said.reads)
    change = state.changes[said.change]
    restored = [r for r in said.restored if r in change.members]
    state.count_automatic(change, restored, record.t_ns)
    for resource in restored:
        state.remove(change, resource)
    state.forget_enforced(restored)
    _told(state, change, said.restored, said.part)
    for resource, owed in said.owed.items():
        debts.owe(state, change, resource, owed, verified=resource not in said.moved)
    if not is_last(said.part):
        return
    change.rolling = None
    change.reason = said.reason
    state.take(change, "fail")
    if not change.members:
        state.take(change, "emptied")


def _change_split(state: State, record: Record, said: payloads.ChangeSplit) -> None:
    """Some members go on as a separate change, with the time that they had."""
    old = state.changes[said.change]
    if is_later(said.part):
        _split_off(state, old, state.changes[said.into], said)
        return
    new = state.new_change(said.into, old.owner, ambient=False, t_ns=record.t_ns)
    if said.ambient:  # the owner's next drift joins this change
        new.ambient, state.ambient[old.owner.whose] = True, new.id
    new.message, new.extension_ns = old.message, old.extension_ns
    if new.state == life.HELD and old.state == life.HELD:
        new.held_since_ns = old.held_since_ns
    if said.group:
        new.group = said.group
        state.groups[new.group].also.append(new.id)
    _split_off(state, old, new, said)


def _split_off(state: State, old: Change, new: Change, said: payloads.ChangeSplit) -> None:
    for resource in said.resources:
        state.put(new, state.remove(old, resource))
    if is_last(said.part):
        state.take(old, "clear")
        state.settle_if_empty(old)


def _emergency_started(state: State, record: Record, said: payloads.EmergencyStarted) -> None:
    state.emergency = Emergency(
        said.reason, said.by, said.key, record.time, record.t_ns, said.ends_ns, said.ends, False
    )
    state.touched.timers = True
    state.touched.changes.update(dict.fromkeys(state.changes))


def _emergency_stale(state: State, record: Record, said: payloads.EmergencyStale) -> None:
    assert state.emergency is not None
    state.emergency.stale = True


def _emergency_ended(state: State, record: Record, said: payloads.EmergencyEnded) -> None:
    state.emergency = None
    state.touched.timers = True
    for change in state.changes.values():  # E3: unsettled changes start new windows
        if change.state in (life.OPEN, life.HELD):
            state.reopen(change, record.t_ns)
        state.touched.changes[change.id] = None


def _hold_placed(state: State, record: Record, said: payloads.HoldPlaced) -> None:
    state.holds[said.hold] = Hold(
        said.hold, said.change, said.owner, said.reason, record.time, record.t_ns, said.ends_ns, said.ends
    )
    if said.fleet_seq is not None:  # a hold of the whole fleet, numbered by the root
        groups.raise_fence(state, said.fence)
        state.fleet_seq = said.fleet_seq
    else:
        state.hold_n = max(state.hold_n, int(said.hold[1:]))
    state.touched.timers = True
    for change in state.changes.values():
        if change.state == life.OPEN and said.change in (None, change.id):
            state.take(change, "hold")
            change.held_since_ns = record.t_ns


def _hold_released(state: State, record: Record, said: payloads.HoldReleased) -> None:
    del state.holds[said.hold]
    groups.raise_fence(state, said.fence)
    if said.fleet_seq is not None:
        state.fleet_seq = said.fleet_seq
    state.touched.timers = True
    for change in state.changes.values():
        if change.state == life.HELD and not state.held_by(change.id):
            change.go_on(record.t_ns)
            state.touched.members.update(dict.fromkeys(change.members))
            change.held_since_ns, change.closing = 0, False
            state.take(change, "release")


def _observer_blind(state: State, record: Record, said: payloads.ObserverBlind) -> None:
    state.blind[said.observer] = said.why


def _observer_restored(state: State, record: Record, said: payloads.ObserverRestored) -> None:
    state.blind.pop(said.observer, None)


def _tracked(state: State, record: Record, said: payloads.Tracked) -> None:
    state.tracked.update(said.patterns)
    for pattern in said.forgotten:
        state.tracked.pop(pattern, None)


def _untracked_seen(state: State, record: Record, said: payloads.UntrackedSeen) -> None:
    for resource, row in said.resources.items():
        before = state.untracked.get(resource)
        actual, owner = {k: v for k, v in row.items() if k != "by"}, said.owners[row["by"]]
        state.drop_untracked(resource)
        state.untracked_of[owner.key] = state.untracked_of.get(owner.key, 0) + 1
        state.untracked[resource] = Untracked(owner, before.seen if before else said.seen, actual)


def _untracked_gone(state: State, record: Record, said: payloads.UntrackedGone) -> None:
    for resource in (*said.resources, *said.closed):
        state.drop_untracked(resource)


#: A record type without a handler does not change the state: the record is there for people.
_HANDLERS: Final[Mapping[str, Callable[[State, Record, Any], None]]] = {
    payloads.AgentStarted.type: _agent_started,
    payloads.AgentStopped.type: _agent_stopped,
    payloads.ExecBegun.type: _exec_begun,
    payloads.Executed.type: _executed,
    payloads.Declared.type: _declared,
    payloads.Adopted.type: _adopted,
    payloads.Applied.type: _applied,
    payloads.DriftDetected.type: _drift_detected,
    payloads.DriftCleared.type: _drift_cleared,
    payloads.WindowOpened.type: _window_opened,
    payloads.WindowExtended.type: _window_extended,
    payloads.WindowClosing.type: _window_closing,
    payloads.Committed.type: _committed,
    payloads.CommitExpired.type: _commit_expired,
    payloads.RollbackStarted.type: _rollback_started,
    payloads.RolledBack.type: _rolled_back,
    payloads.RollbackBlocked.type: _rollback_blocked,
    payloads.RollbackFailed.type: _rollback_failed,
    payloads.ConvergeStarted.type: _converge_started,
    payloads.Converged.type: _converged,
    payloads.ChangeSplit.type: _change_split,
    payloads.EmergencyStarted.type: _emergency_started,
    payloads.EmergencyStale.type: _emergency_stale,
    payloads.EmergencyEnded.type: _emergency_ended,
    payloads.HoldPlaced.type: _hold_placed,
    payloads.HoldReleased.type: _hold_released,
    payloads.ObserverBlind.type: _observer_blind,
    payloads.ObserverRestored.type: _observer_restored,
    payloads.Tracked.type: _tracked,
    payloads.UntrackedSeen.type: _untracked_seen,
    payloads.UntrackedGone.type: _untracked_gone,
    payloads.GroupBegun.type: groups.begun,
    payloads.GroupPrepared.type: groups.prepared,
    payloads.GroupDecided.type: groups.decided,
    payloads.GroupFinished.type: groups.finished,
}
