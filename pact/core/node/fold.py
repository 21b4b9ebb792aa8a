"""The records of the journal, folded into the state: one handler a type.  # J2"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import orjson

from pact.core import strict
from pact.core.node import change as life
from pact.core.node import fold_groups as groups
from pact.core.node.change import Member
from pact.core.node.membership import learn
from pact.core.node.pace import Untracked
from pact.core.node.state import ALL, RECENT_MAX, Emergency, Hold, State, Ttl, recent_key
from pact.core.node.windows import Windows
from pact.core.records import Record
from pact.core.settings import Settings
from pact.model import Owner


def apply(state: State, record: Record) -> None:
    """Fold one record in. Records come in order; ``assert`` holds what only a bug could break."""
    assert record.seq == state.seq + 1, (record.seq, state.seq)
    assert record.prev == state.hash
    state.seq, state.hash, state.wall = record.seq, record.hash, record.time
    state.t_ns = max(state.t_ns, record.t_ns)
    handler = _HANDLERS.get(record.type)
    if handler is not None:
        handler(state, record)
    state.note(state.t_ns)


def _agent_started(state: State, record: Record) -> None:
    data = record.data
    was_enforcing, fresh = state.settings.enforce, record.seq == 0
    known, state.settings = state.settings.dimensions, Settings.from_json(data["settings"])
    if known:  # a kind that is gone keeps its place: what has drifted of it is in the sums
        state.settings = replace(state.settings, dimensions={**known, **state.settings.dimensions})
    state.boot_id, state.offset_ns = data["boot_id"], data["offset_ns"]
    state.not_before_ns = data["not_before_ns"]
    state.running = True
    if data.get("reboot"):
        state.boot_owed = {ALL: None} if data.get("boot_owed") else None
    state.blind = {}
    state.windows.floor_ns = state.settings.floor_ns
    if fresh:
        state.windows = Windows(state.settings.floor_ns, state.settings.base_ns)
    if state.settings.enforce and not was_enforcing:  # P2: existing drift opens at this moment
        for change in state.changes.values():
            state.reopen(change, record.t_ns)


def _agent_stopped(state: State, record: Record) -> None:
    state.running = False


def _declared_moved(state: State, record: Record) -> None:
    data = record.data
    for resource, value in data["resources"].items():
        state.declare(resource, value)
        state.void_ttl(resource)
    for resource in data.get("forgotten", ()):
        state.declare(resource, None)
        state.void_ttl(resource)
        state.leave(resource)
    for resource, deviation_n in data.get("members", {}).items():
        state.redeviate(resource, deviation_n)
    for resource in data.get("taken", ()):
        state.leave(resource)
    state.enforced.update(data.get("enforced", {}))


def _applied(state: State, record: Record) -> None:
    data = record.data
    for resource, value in data["baseline"].items():
        state.declare(resource, value)
    change = state.changes.get(data["change"])
    if change is None:
        change = state.new_change(data["change"], Owner.from_json(data["owner"]), ambient=False, t_ns=record.t_ns)
    change.message = data["message"]
    change.intents |= set(data["resources"])
    if data.get("group"):
        groups.joined(state, data["group"], change)


def _drift_detected(state: State, record: Record) -> None:
    data = record.data
    resource, cid = data["resource"], data["change"]
    change = state.changes.get(cid)
    if change is None:
        change = state.new_change(cid, Owner.from_json(data["owner"]), ambient=True, t_ns=record.t_ns)
    shift_ns = 0
    before = state.change_of(resource)
    if before is not None and before.id != cid:
        shift_ns = before.members[resource].shift_ns
        state.remove(before, resource)
        state.take(before, "clear")
        state.settle_if_empty(before)
    elif before is not None:
        shift_ns = before.members[resource].shift_ns
    change.intents.discard(resource)
    state.put(
        change,
        Member(
            resource,
            data["actual"],
            data["deviation_n"],
            data["weight_n"],
            data["opened_ns"],
            record.time,
            shift_ns,
            data["owner"]["command"],
            data.get("with", ""),
            list(data.get("also", ())),
        ),
    )
    state.take(change, "drift")
    state.recent.pop(recent_key(change.owner.key, resource), None)


def _drift_cleared(state: State, record: Record) -> None:
    resource = record.data["resource"]
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


def _window_opened(state: State, record: Record) -> None:
    change = state.changes[record.data["change"]]
    group = state.groups.get(change.group)
    if group is not None:
        learn(group, record.data.get("reads", {}))
    if record.data.get("reopened"):
        state.reopen(change, record.t_ns)
    if change.intents or not change.members:
        change.intents = set()
        state.settle_if_empty(change)
    state.touched.changes[change.id] = None


def _window_closing(state: State, record: Record) -> None:
    state.changes[record.data["change"]].closing = True
    state.touched.changes[record.data["change"]] = None


def _window_extended(state: State, record: Record) -> None:
    change = state.changes[record.data["change"]]
    reopened = change.state in (life.BLOCKED, life.FAILED)
    state.take(change, "extend")
    if reopened:
        change.reason, change.holders = "", []
        state.reopen(change, record.t_ns)
        if state.held_by(change.id):
            state.take(change, "hold")
            change.held_since_ns = record.t_ns
    change.extension_ns += record.data["by_ns"]
    change.closing = False
    state.touched.changes[change.id] = None
    groups.extended(state, record)


def _committed(state: State, record: Record) -> None:
    data = record.data
    for resource, value in data["resources"].items():
        earlier = state._declared.get(resource)
        trial = state.ttls.get(resource)
        if trial is not None:  # what a trial of a trial goes back to is what was declared for good  # T1
            earlier = None if trial.earlier is None else orjson.dumps(trial.earlier)
        state.void_ttl(resource)
        if data["expires_ns"] is not None:
            state.ttls[resource] = Ttl(
                data["expires_ns"],
                None if earlier is None else strict.own(earlier),
                data.get("committer", data["owner"]),
                record.seq,
            )
            state.touched.timers = True
        state.declare(resource, value)
        change = state.change_of(resource)
        if change is not None:
            state.remove(change, resource)
            state.take(change, "commit")
            state.settle_if_empty(change)


def _commit_expired(state: State, record: Record) -> None:
    for resource, value in record.data["resources"].items():
        state.void_ttl(resource)
        if value is None:
            state.declare(resource, None)
            state.leave(resource)
        else:
            state.declare(resource, value)


def _rollback_started(state: State, record: Record) -> None:
    data = record.data
    change = state.changes[data["change"]]
    state.take(change, "start")
    change.reason, change.holders = "", []
    change.rolling = {
        "cause": data["cause"],
        "steps": [s["id"] for s in data["plan"]],
        "skipped": data["skipped"],
        "saved": {r: v["sha256"] for r, v in data.get("saves", {}).items() if v.get("sha256")},
        "seq": record.seq,
        "joined": {s["id"]: s["target"] for s in data["plan"] if s["id"] not in change.members},
    }


def _converge_started(state: State, record: Record) -> None:
    """What a boot has to bring back is remembered until it has been brought back.  # B3"""
    if record.data["cause"] == "boot" and state.boot_owed is not None:
        state.boot_owed.pop(ALL, None)
        state.boot_owed.update({s["id"]: s["actual"] for s in record.data["plan"]})


def _converged(state: State, record: Record) -> None:
    state.learn(record)
    if record.data.get("cause") == "boot":
        state.boot_owed = None


def _rolled_back(state: State, record: Record) -> None:
    state.learn(record)
    change = state.changes[record.data["change"]]
    members = list(change.members)
    state.count_automatic(change, members, record.t_ns)
    state.take(change, "done")
    state.forget_enforced(members)


def _rollback_blocked(state: State, record: Record) -> None:
    change = state.changes[record.data["change"]]
    state.take(change, "block")
    change.reason, change.holders = record.data["reason"], list(record.data["holders"])
    change.rolling = None


def _rollback_failed(state: State, record: Record) -> None:
    state.learn(record)
    change = state.changes[record.data["change"]]
    restored = [r for r in record.data["restored"] if r in change.members]
    state.count_automatic(change, restored, record.t_ns)
    for resource in restored:
        state.remove(change, resource)
    state.forget_enforced(restored)
    change.rolling = None
    change.reason = record.data["reason"]
    state.take(change, "fail")
    if not change.members:
        state.take(change, "emptied")


def _change_split(state: State, record: Record) -> None:
    """Some members go on as a change of their own, with the time they had."""
    data = record.data
    old = state.changes[data["change"]]
    new = state.new_change(data["into"], old.owner, ambient=False, t_ns=record.t_ns)
    if data.get("ambient"):  # what its owner drifts next joins this one
        new.ambient, state.ambient[old.owner.key] = True, new.id
    new.message, new.extension_ns = old.message, old.extension_ns
    if new.state == life.HELD and old.state == life.HELD:
        new.held_since_ns = old.held_since_ns
    if data.get("group"):
        new.group = data["group"]
        state.groups[new.group].also.append(new.id)
    for resource in data["resources"]:
        state.put(new, state.remove(old, resource))
    state.take(old, "clear")
    state.settle_if_empty(old)


def _emergency_started(state: State, record: Record) -> None:
    d = record.data
    state.emergency = Emergency(
        d["reason"], d["by"], d["key"], record.time, record.t_ns, d["ends_ns"], d["ends"], False
    )
    state.touched.timers = True
    state.touched.changes.update(dict.fromkeys(state.changes))


def _emergency_stale(state: State, record: Record) -> None:
    assert state.emergency is not None
    state.emergency.stale = True


def _emergency_ended(state: State, record: Record) -> None:
    state.emergency = None
    state.touched.timers = True
    for change in state.changes.values():  # E3: what was not settled starts a new window
        if change.state in (life.OPEN, life.HELD):
            state.reopen(change, record.t_ns)
        state.touched.changes[change.id] = None


def _hold_placed(state: State, record: Record) -> None:
    d = record.data
    state.holds[d["hold"]] = Hold(
        d["hold"], d["change"], d["owner"], d["reason"], record.time, record.t_ns, d["ends_ns"], d["ends"]
    )
    if "fleet_seq" in d:  # the fleet's stop, numbered by the root
        groups.raise_fence(state, record)
        state.fleet_seq = d["fleet_seq"]
    else:
        state.hold_n = max(state.hold_n, int(d["hold"][1:]))
    state.touched.timers = True
    for change in state.changes.values():
        if change.state == life.OPEN and d["change"] in (None, change.id):
            state.take(change, "hold")
            change.held_since_ns = record.t_ns


def _hold_released(state: State, record: Record) -> None:
    del state.holds[record.data["hold"]]
    groups.raise_fence(state, record)
    state.fleet_seq = record.data.get("fleet_seq", state.fleet_seq)
    state.touched.timers = True
    for change in state.changes.values():
        if change.state == life.HELD and not state.held_by(change.id):
            change.go_on(record.t_ns)
            state.touched.members.update(dict.fromkeys(change.members))
            change.held_since_ns, change.closing = 0, False
            state.take(change, "release")


def _observer_blind(state: State, record: Record) -> None:
    state.blind[record.data["observer"]] = record.data["why"]


def _observer_restored(state: State, record: Record) -> None:
    state.blind.pop(record.data["observer"], None)


def _tracked(state: State, record: Record) -> None:
    state.tracked.update(record.data["patterns"])
    for pattern in record.data["forgotten"]:
        state.tracked.pop(pattern, None)


def _untracked_seen(state: State, record: Record) -> None:
    data = record.data
    for resource, row in data["resources"].items():
        before = state.untracked.get(resource)
        actual, owner = {k: v for k, v in row.items() if k != "by"}, data["owners"][row["by"]]
        state.drop_untracked(resource)
        state.untracked_of[owner["key"]] = state.untracked_of.get(owner["key"], 0) + 1
        state.untracked[resource] = Untracked(owner, before.seen if before else data["seen"], actual)


def _untracked_gone(state: State, record: Record) -> None:
    for resource in (*record.data["resources"], *record.data["closed"]):
        state.drop_untracked(resource)


_HANDLERS: Final[Mapping[str, Callable[[State, Record], None]]] = {
    "agent_started": _agent_started,
    "agent_stopped": _agent_stopped,
    "declared": _declared_moved,
    "adopted": _declared_moved,
    "applied": _applied,
    "drift_detected": _drift_detected,
    "drift_cleared": _drift_cleared,
    "window_opened": _window_opened,
    "window_extended": _window_extended,
    "window_closing": _window_closing,
    "committed": _committed,
    "commit_expired": _commit_expired,
    "rollback_started": _rollback_started,
    "rolled_back": _rolled_back,
    "rollback_blocked": _rollback_blocked,
    "rollback_failed": _rollback_failed,
    "converge_started": _converge_started,
    "converged": _converged,
    "change_split": _change_split,
    "emergency_started": _emergency_started,
    "emergency_stale": _emergency_stale,
    "emergency_ended": _emergency_ended,
    "hold_placed": _hold_placed,
    "hold_released": _hold_released,
    "observer_blind": _observer_blind,
    "observer_restored": _observer_restored,
    "tracked": _tracked,
    "untracked_seen": _untracked_seen,
    "untracked_gone": _untracked_gone,
    "group_begun": groups.begun,
    "group_prepared": groups.prepared,
    "group_decided": groups.decided,
    "group_finished": groups.finished,
}
