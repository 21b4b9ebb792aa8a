"""What a group forbids on a member: who else may settle its change, and which root may still give
commands.  # G3, G4"""

from __future__ import annotations

from typing import Any

from pact.core.node import payloads
from pact.core.node.change import Change
from pact.core.node.desk import Desk
from pact.core.node.events import Caller
from pact.core.node.membership import Membership
from pact.core.node.state import State
from pact.core.phases import DECIDED, OPEN, PREPARED
from pact.errors import ConflictError


def check_fence(state: State, fence: int) -> int:
    """Raises ConflictError if this root has been replaced by a newer one.  # G4"""
    if fence < state.fence:
        raise ConflictError(f"stale fence {fence}: this node has obeyed {state.fence}")
    return fence


def stopped_here(node: Desk, group: Membership, force: bool) -> str:
    """Why this node rolls back nothing of the group now. The reasons that stop the node's own rollbacks also stop a
    group's rollback, even one that was decided while the node was away.  # P1, E2, H1, G8
    """
    state = node.state
    if not state.settings.enforce:
        return "the node is in observe mode: nothing is rolled back"
    if force:
        return ""
    if state.emergency is not None:
        return f"the node is in emergency mode: {state.emergency.reason}"
    if state.holds:
        concerned = {None, *group.changes, *(state.member_of.get(r) for r in group.resources)}
        for hold in state.holds.values():
            if hold.change in concerned:
                return f"held by {hold.owner.user}: {hold.reason}"
    return ""


def settled_alone(node: Desk, change: Change, how: str, caller: Caller) -> None:
    """A person settled the member's part on the node itself: the node leaves the group and reports that."""
    group = node.state.groups.get(change.group)
    if group is not None and group.phase != DECIDED:
        node.record(
            payloads.GroupFinished(
                group=group.id,
                outcome=f"left: {how} on this node by {caller.owner.user}",
                forced=group.phase == PREPARED,
            ),
            caller.actor,
        )


def bound(node: Desk, change: Change) -> bool:
    """Whether this node has voted yes or the group is decided: then the node may not decide about this change
    alone.  # G3"""
    group = node.state.groups.get(change.group)
    return group is not None and group.phase != OPEN


def require_free(node: Desk, change: Change, what: str, force: bool) -> None:
    """After a yes vote nobody settles the change on this node alone, except with force. Raises ConflictError.  # G3"""
    group = node.state.groups.get(change.group)
    if group is None:
        return
    if group.phase == DECIDED and what != group.action:
        raise ConflictError(f"too late: {group.id} is decided: {group.action}", "see pact log")
    if what == "extend":
        raise ConflictError(
            f"{change.id} belongs to {group.id}, whose window the root keeps",
            f"pact extend {group.id} D, from where the cluster is managed",
        )
    if group.phase == PREPARED and not force:
        raise ConflictError(
            f"undecided: {change.id} belongs to {group.id}, which is being settled by the root",
            "wait for it, or settle it on this node alone with --force",
        )


def unfinished(node: Desk) -> list[list[Any]]:
    """``[group, phase, ballot]`` of each unfinished group, for the root."""
    return [[g.id, g.phase, g.ballot] for g in node.state.groups.values()]
