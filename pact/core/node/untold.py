"""What was restored by a plan that no change owns, while those who read it could not be told.

A declaration, a boot, a device that returned, or an application that was taken back: the resource is as declared, and a
daemon still works with what was there before. This is kept as a rollback's would be: in a failed change, until it is
rolled back again (only they are told then) or committed.  # R14
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

from pact.core.node import below, payloads
from pact.core.node.desk import Desk
from pact.core.node.events import Acted
from pact.core.plan import anyhow
from pact.model import AGENT_ACTOR, UNATTRIBUTED, Actor, Owner

SHOWN_MAX: Final = 5
RESUMED: Final = "restart"


def resume(node: Desk, elsewhere: Container[str] = ()) -> None:
    """The agent was killed after such a plan had moved resources, and before it was on record who was told: begin a
    rollback of what is as declared again, which changes nothing and tells them. It is resumed as an interrupted one.
    ``elsewhere``: resources that another plan is about to move. Nobody is told while the node only observes, in an
    emergency or under a hold of the node: at the next start after that."""
    state = node.state
    if not state.settings.enforce or state.suspended or state.holds:
        return
    moving = {r for ids in node.converging.values() for r in ids}
    owed = [r for r in state.telling if r not in state.member_of and r not in elsewhere and r not in moving]
    if owed:
        _begin(node, owed, UNATTRIBUTED, RESUMED, AGENT_ACTOR)


def _begin(node: Desk, resources: Iterable[str], owner: Owner, cause: str, actor: Actor) -> str:
    """Record the beginning of a rollback of resources that are as declared, and return its change's id."""
    state, cid = node.state, node.new_change_id()
    for resource in resources:
        declared = state.declared(resource)
        assert declared is not None, resource
        # Nothing differs any more: the smallest deviation there is.
        node.detect(resource, cid, owner, declared.attrs, 1, node.weight_n(resource, declared), node.t_ns)
    plan = [s.planned() for s in below.steps_for(node, state.changes[cid].members, anyhow)]
    node.record(payloads.RollbackStarted(change=cid, cause=cause, owner=owner, plan=plan), actor)
    return cid


def keep(node: Desk, event: Acted, owner: Owner, cause: str, actor: Actor = AGENT_ACTOR) -> str:
    """Call it when the plan's observations were taken in: what has drifted by now has a change already, whose rollback
    tells them. Returns the id of the failed change, or ``""``."""
    state = node.state
    owed = {r: names for r, names in event.untold.items() if r in state and r not in state.member_of}
    if not owed:
        return ""
    cid = _begin(node, owed, owner, cause, actor)
    left = {r: event.results[r] for r in owed}
    node.record(
        payloads.RollbackFailed(
            change=cid,
            cause=cause,
            restored=[],
            left=left,
            reason="; ".join(f"{r}: {why}" for r, why in list(left.items())[:SHOWN_MAX]),
            owed={r: list(names) for r, names in owed.items()},
        ),
        actor,
    )
    return cid
