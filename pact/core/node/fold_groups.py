"""The records of groups, folded into the state: one handler a type.  # J2"""

from __future__ import annotations

from typing import Any, Final

from pact.core.node import change as life
from pact.core.node.change import Change
from pact.core.node.membership import Membership
from pact.core.node.state import State
from pact.core.phases import DECIDED, OPEN, PREPARED
from pact.core.records import Record

#: Finished groups whose end is remembered, so that a late question gets the right answer.
DONE_MAX: Final = 1000


def begun(state: State, record: Record) -> None:
    d = record.data
    raise_fence(state, record)
    state.groups[d["group"]] = Membership(
        d["group"], d["owner"], d["message"], dict(d["resources"]), ends_ns=d["ends_ns"]
    )


def joined(state: State, group: str, change: Change) -> None:
    """``change`` carries the group's drift."""
    change.group = group
    state.groups[group].change = change.id


def prepared(state: State, record: Record) -> None:
    """A vote. A yes binds; a no against a rollback leaves the change blocked, as the whole group will be."""
    d = record.data
    raise_fence(state, record)
    group = state.groups[d["group"]]
    group.ballot, group.action = d["ballot"], d["action"]
    if d["vote"] == "yes":
        group.phase = PREPARED
        _block(state, group, f"undecided: {group.id} is being settled by the root", [])
        return
    group.why = d["why"]
    if d["action"] == "rollback":
        _block(state, group, d["why"], d["holders"])


def decided(state: State, record: Record) -> None:
    d = record.data
    raise_fence(state, record)
    group = state.groups[d["group"]]
    group.ballot, group.action, group.why = max(group.ballot, d["ballot"]), d["action"], d["why"]
    if d["decision"] != "abort":
        group.phase, group.force = DECIDED, bool(d.get("force"))
        return
    was_prepared, group.phase = group.phase == PREPARED, OPEN
    change = state.changes.get(group.change or "")
    if d["action"] == "rollback":
        if change is None or was_prepared or change.state != life.BLOCKED:
            _block(state, group, d["why"], [])  # who voted no keeps the names of the holders
    elif change is not None and change.state == life.BLOCKED and was_prepared:
        reopen(state, change, record.t_ns)


def finished(state: State, record: Record) -> None:
    d = record.data
    group = state.groups.pop(d["group"])
    state.groups_done[group.id] = d["outcome"]
    while len(state.groups_done) > DONE_MAX:
        del state.groups_done[next(iter(state.groups_done))]
    for cid in group.changes:
        change = state.changes.get(cid)
        if change is not None and change.group == group.id:  # what is left of it is the node's own again
            change.group = ""
            if change.state == life.BLOCKED:
                reopen(state, change, record.t_ns)
            state.touched.changes[cid] = None


def extended(state: State, record: Record) -> None:
    raise_fence(state, record)
    group = state.groups.get(record.data.get("group") or "")
    if group is not None:
        group.ends_ns = record.data["ends_ns"]


def reopen(state: State, change: Change, t_ns: int) -> None:
    """Blocked no more."""
    change.reason, change.holders = "", []
    state.take(change, "reopen")
    if state.held_by(change.id):
        state.take(change, "hold")
        change.held_since_ns = t_ns


def raise_fence(state: State, record: Record) -> None:
    """The highest fence that was ever accepted; a lower one is refused from now on.  # G4"""
    state.fence = max(state.fence, int(record.data.get("fence", 0)))


def _block(state: State, group: Membership, why: str, holders: list[dict[str, Any]]) -> None:
    change = state.changes.get(group.change or "")
    if change is not None and change.can("block"):
        state.take(change, "block")
        change.reason, change.holders = why, list(holders)
