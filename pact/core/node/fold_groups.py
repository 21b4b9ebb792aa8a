"""Folds the records of groups into the state: one handler for each record type.  # J2"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pact.core.node import change as life
from pact.core.node import payloads
from pact.core.node.change import Change
from pact.core.node.membership import Membership
from pact.core.node.state import State
from pact.core.phases import DECIDED, OPEN, PREPARED
from pact.core.records import Record
from pact.model import Holder

#: How many finished groups are remembered with their outcomes, so that a late question gets the right answer.
DONE_MAX: Final = 1000


def begun(state: State, record: Record, said: payloads.GroupBegun) -> None:
    raise_fence(state, said.fence)
    state.groups[said.group] = Membership(
        said.group, said.owner, said.message, dict(said.resources), ends_ns=said.ends_ns
    )


def joined(state: State, group: str, change: Change) -> None:
    """``change`` carries the group's drift."""
    change.group = group
    state.groups[group].change = change.id


def prepared(state: State, record: Record, said: payloads.GroupPrepared) -> None:
    """Fold a vote in. A yes binds; a no against a rollback leaves the change blocked, as the whole group will be."""
    raise_fence(state, said.fence)
    group = state.groups[said.group]
    group.ballot, group.action = said.ballot, said.action
    if said.vote == "yes":
        group.phase = PREPARED
        _block(state, group, f"undecided: {group.id} is being settled by the root", [])
        return
    group.why = said.why
    if said.action == "rollback":
        _block(state, group, said.why, said.holders)


def decided(state: State, record: Record, said: payloads.GroupDecided) -> None:
    raise_fence(state, said.fence)
    group = state.groups[said.group]
    group.ballot, group.action, group.why = max(group.ballot, said.ballot), said.action, said.why
    if said.decision != "abort":
        group.phase, group.force = DECIDED, said.force
        return
    was_prepared, group.phase = group.phase == PREPARED, OPEN
    change = state.changes.get(group.change or "")
    if said.action == "rollback":
        if change is None or was_prepared or change.state != life.BLOCKED:
            _block(state, group, said.why, [])  # the member that voted no keeps the names of the holders
    elif change is not None and change.state == life.BLOCKED and was_prepared:
        reopen(state, change, record.t_ns)


def finished(state: State, record: Record, said: payloads.GroupFinished) -> None:
    group = state.groups.pop(said.group)
    state.groups_done[group.id] = said.outcome
    while len(state.groups_done) > DONE_MAX:
        del state.groups_done[next(iter(state.groups_done))]
    for cid in group.changes:
        change = state.changes.get(cid)
        if change is not None and change.group == group.id:  # the rest of the change belongs to the node again
            change.group = ""
            if change.state == life.BLOCKED:
                reopen(state, change, record.t_ns)
            state.touched.changes[cid] = None


def extended(state: State, said: payloads.WindowExtended) -> None:
    raise_fence(state, said.fence)
    group = state.groups.get(said.group)
    if group is not None and said.ends_ns is not None:
        group.ends_ns = said.ends_ns


def reopen(state: State, change: Change, t_ns: int) -> None:
    """End the blocked state."""
    change.reason, change.holders = "", []
    state.take(change, "reopen")
    if state.held_by(change.id):
        state.take(change, "hold")
        change.held_since_ns = t_ns


def raise_fence(state: State, fence: int | None) -> None:
    """Keep the highest fence that was ever accepted; lower ones are refused from now on.  # G4"""
    state.fence = max(state.fence, fence or 0)


def _block(state: State, group: Membership, why: str, holders: Sequence[Holder]) -> None:
    change = state.changes.get(group.change or "")
    if change is not None and change.can("block"):
        state.take(change, "block")
        change.reason, change.holders = why, list(holders)
