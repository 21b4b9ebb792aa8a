"""What was moved by a plan, while those who read it were not told.

A rollback keeps it in its failed change. After a declaration, a boot, a device that returned, or an application that
was taken back, no change owns it: the resource is as declared, and a daemon still works with what was there before.
Then a failed change is made, which stays until it is rolled back again (only they are told then) or committed. What
nobody tried to tell yet, because the agent was killed, or because the resource was something else meanwhile, is told as
soon as it is as declared and belongs to no change.  # R14
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Final

from pact.core.node import below, recording
from pact.core.node import change as life
from pact.core.node.change import Change
from pact.core.node.desk import Desk
from pact.core.node.events import Acted
from pact.core.node.jobs import Job
from pact.core.plan import anyhow
from pact.model import AGENT_ACTOR, UNATTRIBUTED, Actor, Observation, Owner, Unreadable

SHOWN_MAX: Final = 5
#: Causes of rollbacks that only tell somebody: after a kill, and later.
RESUMED: Final = "restart"
LATER: Final = "owed"
UNSEEN: Final = Unreadable("it was not looked at")


def resume(node: Desk, cause: str, elsewhere: Container[str] = ()) -> Change | None:
    """Begin a rollback of what is as declared, which changes nothing and tells those who must still be told; returns
    its change, whose rollback is resumed as an interrupted one. ``elsewhere``: resources that another plan is about to
    move. Nobody is told while the node only observes, in an emergency or under a hold of the node."""
    state = node.state
    if not state.telling or state.suspended or state.held_by(""):
        return None
    applied = (s.id for job in node.jobs.values() if job.kind == "apply" for s in job.steps)
    moving = node.frozen().union(node.intended(), applied, *node.converging.values())
    idle = [
        r
        for r in state.telling
        if r not in state.member_of and r not in moving and r not in elsewhere and r not in node.unreadable
    ]
    return state.changes[_begin(node, idle, UNATTRIBUTED, cause, AGENT_ACTOR)] if idle else None


def waits(node: Desk) -> str:
    """For people: of what nobody is told now; ``""`` if nothing keeps anybody from being told."""
    state = node.state
    if not state.telling or not (state.suspended or state.held_by("")):
        return ""
    idle = sorted(r for r in state.telling if r not in state.member_of)
    if not idle:
        return ""
    until = "the node enforces" if not state.settings.enforce else "the emergency ends"
    until = until if state.suspended else "the hold is released"
    more = f" and {len(idle) - SHOWN_MAX} more" if len(idle) > SHOWN_MAX else ""
    return f"who reads {', '.join(idle[:SHOWN_MAX])}{more} is not told of it until {until}"


def _detect(node: Desk, resource: str, cid: str, owner: Owner) -> None:
    """It is as declared, and belongs to this change: nothing differs any more, so its deviation is the smallest there
    is."""
    declared = node.state.declared(resource)
    assert declared is not None, resource
    node.detect(resource, cid, owner, declared.attrs, 1, node.weight_n(resource, declared), node.t_ns)


def _begin(node: Desk, resources: Iterable[str], owner: Owner, cause: str, actor: Actor) -> str:
    """Record the beginning of a rollback of resources that are as declared, and return its change's id."""
    state, cid = node.state, node.new_change_id()
    for resource in resources:
        _detect(node, resource, cid, owner)
    plan = below.steps_for(node, state.changes[cid].members, anyhow)
    recording.started(node, state.changes[cid], plan, cause, actor)
    return cid


def unverified(node: Desk, event: Acted) -> list[str]:
    """Of what was moved and not told, that which is not known to be as declared now."""
    seen = {s.resource: s.observation for s in event.sightings}
    return [r for r in event.untold if r in node.state and not is_there(node, r, seen.get(r, UNSEEN))]


def is_there(node: Desk, resource: str, seen: Observation) -> bool:
    """Whether the resource is known to be as declared."""
    declared = node.state.declared(resource)
    if declared is None or isinstance(seen, Unreadable):
        return False
    return node.deviation_n(resource, declared, seen) == 0


def owed(node: Desk, job: Job[Any], event: Acted) -> dict[str, Sequence[str]]:
    """Who must still be told when a plan without a change has ended: who could not be told now; who was owed it before,
    if the plan had nothing to move; and all, if another plan is about to move the resource."""
    state, out = node.state, dict[str, Sequence[str]]()
    others = {r for n, ids in node.converging.items() if n != job.n for r in ids}
    for resource in event.results:
        change, readers = state.change_of(resource), state.readers(resource)
        if resource in others and readers:
            out[resource] = readers
        elif resource in event.untold:
            out[resource] = event.untold[resource]
        elif resource not in event.told and change is not None and change.members[resource].owed:
            out[resource] = change.members[resource].owed
    return {r: list(names) for r, names in out.items() if r in state}


def keep(
    node: Desk,
    event: Acted,
    owner: Owner,
    cause: str,
    actor: Actor = AGENT_ACTOR,
    into: Change | None = None,
) -> str:
    """Call it when the plan's observations were taken in: what has drifted by now has a change already, whose rollback
    tells them. The rest joins the failed change ``into``, if it is not settled. Returns the id of the failed change
    that has them, or ``""``."""
    state = node.state
    left = {
        r: event.results[r]
        for r in event.untold
        if r in state.telling and r not in state.member_of and r not in node.unreadable
    }
    if not left:
        return ""
    if into is not None and into.id in state.changes and into.state == life.FAILED:
        for resource in left:
            _detect(node, resource, into.id, owner)
        return into.id
    names = {r: state.telling[r] for r in left}
    cid = _begin(node, left, owner, cause, actor)
    recording.failed(node, state.changes[cid], left, shown(left), cause, actor, owed=names)
    return cid


def shown(left: Mapping[str, str]) -> str:
    return "; ".join(f"{r}: {why}" for r, why in list(left.items())[:SHOWN_MAX])
