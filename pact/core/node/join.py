"""How a node becomes a member of a group: the root asks whether it could, and then the node makes the changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pact.core import ops
from pact.core.node import apply, below, payloads
from pact.core.node import change as life
from pact.core.node.bonds import check_fence
from pact.core.node.desk import Desk
from pact.core.node.events import Asked, Probe, Probed
from pact.core.node.jobs import Applying, Job
from pact.core.node.windows import magnitude, square, window
from pact.core.phases import OPEN
from pact.core.plan import Step, ordered
from pact.core.settings import BILLION
from pact.errors import ConflictError
from pact.model import Declared, Unreadable


def asked_check(node: Desk, event: Asked[ops.GroupCheck]) -> None:
    """Whether these changes would work here, and how far they would take the node from declared state. Changes
    nothing."""
    check_fence(node.state, event.request.fence)
    declared = {r: Declared.from_json(v) for r, v in event.request.resources.items()}
    _refuse_busy(node, declared, "")
    steps = ordered((_step(r, d) for r, d in declared.items()), node.nature, node.in_turns)
    job = node.job("group_check", event.caller, Applying(declared), token=event.token, ids=tuple(declared), steps=steps)
    node.emit(Probe(job.n, steps, consumers=True, applying=True, dry=True))


def _step(resource: str, declared: Declared) -> Step:
    return Step.back(resource, declared)


def _refuse_busy(node: Desk, resources: Iterable[str], group: str) -> None:
    node.refuse_intended(resources)
    for resource in resources:
        change = node.state.change_of(resource)
        if change is None:
            continue
        if change.state == life.ROLLING or change.intents:
            raise ConflictError(f"{resource} is being changed with {change.id}", "try again when it is done")
        if change.group and change.group != group:
            raise ConflictError(
                f"{resource} belongs to group {change.group}", f"settle it first: pact groups {change.group}"
            )


def probed_check(node: Desk, job: Job[Applying], event: Probed) -> None:
    node.finish(job)
    declared = job.work.declared
    apply.refuse_what_would_fail(event, "nothing was applied")
    steps = below.differing(node, job.steps, event.sightings, declared)
    seen = {s.resource: s.observation for s in event.sightings}
    total = 0
    for step in steps:
        base = node.state.declared(step.id)
        found = seen[step.id]
        assert not isinstance(found, Unreadable)
        base = replace(declared[step.id], attrs=found) if base is None else base
        total += square(node.weight_n(step.id, base), node.deviation_n(step.id, base, step.target))
    s = node.state.settings
    shortest_ns = min(s.floor_ns, s.base_ns)
    node.reply(
        job.token,
        {
            "changes": len(steps),
            "magnitude_n": round(magnitude(total) * BILLION),
            "window_ns": max(shortest_ns, window(total, s.base_ns, s.sensitivity_n)),
            "enforce": s.enforce,
            "newest": max((int(g[1:]) for g in [*node.state.groups, *node.state.groups_done]), default=0),
        },
    )


def asked_apply(node: Desk, event: Asked[ops.GroupApply]) -> None:
    """Become a member and make the changes. A repeated request does only what is still missing."""
    fence, gid, state = check_fence(node.state, event.request.fence), event.request.group, node.state
    if gid in state.groups_done:
        raise ConflictError(f"{gid} has ended here: {state.groups_done[gid]}")
    group = state.groups.get(gid)
    if group is not None and group.phase != OPEN:
        raise ConflictError(f"{gid} is being settled")
    if any(j.group == gid for j in node.jobs.values()):
        raise ConflictError(f"{gid} is being applied", "ask again")
    declared = {r: Declared.from_json(v) for r, v in event.request.resources.items()}
    _refuse_busy(node, declared, gid)
    if group is None:
        left_ns = event.request.left_ns
        node.record(
            payloads.GroupBegun(
                group=gid,
                fence=fence,
                owner=event.caller.owner,
                message=event.request.message,
                resources={r: d.attrs for r, d in declared.items()},
                ends_ns=node.t_ns + left_ns,
                ends=node.wall_of(node.t_ns + left_ns),
            ),
            event.caller.actor,
        )
    apply.begin_apply(node, event, Applying(declared, event.request.message), gid)
