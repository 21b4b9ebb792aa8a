"""What lies below the resources that a plan replaces.

A directory, a link to a directory and a mount show what lies below them. If one gives way to an empty directory, the
declared files that were seen through it are gone: the same plan brings them back. Everything else below is observed
again right after, before anybody is told that the plan is done.  # R10
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pact.core.node import debts
from pact.core.node.change import Change
from pact.core.node.desk import Desk
from pact.core.node.events import Act, Acted, Sighting
from pact.core.node.jobs import Job
from pact.core.payload import Saved
from pact.core.plan import Natures, Step, Turns, ordered
from pact.model import Attrs, Declared, Observation, Owner, Unreadable, split_id

Order = Callable[[Iterable[Step], Natures, Turns], tuple[Step, ...]]


def under(nature: Natures, steps: Iterable[Step], resources: Iterable[str]) -> Iterator[str]:
    """Those of these resources that lie below one of the steps."""
    paths = {split_id(s.id)[1] for s in steps}
    for resource in resources if paths else ():
        path = split_id(resource)[1]
        if not nature(resource).is_path:
            continue
        while path != "/":
            path = posixpath.dirname(path)
            if path in paths:
                yield resource
                break


def carried(nature: Natures, steps: Iterable[Step], resources: Iterable[str]) -> set[str]:
    """Which of these resources lie below a step that turns: they are seen through the step's resource, and the plan
    brings them back with it."""
    turning = [s for s in steps if nature(s.id).turns(s)]
    return set(under(nature, turning, (r for r in resources if nature(r).carried))) if turning else set()


def steps_for(node: Desk, resources: Iterable[str], order: Order = ordered) -> tuple[Step, ...]:
    """The plan that returns these drifted resources to declared state, with the resources that they take along; in
    order. Raises ConflictError if there is none, unless ``order`` is ``anyhow``."""
    steps = []
    for resource in node.in_turns(resources):
        declared, change = node.state.declared(resource), node.state.change_of(resource)
        assert declared is not None and change is not None, resource
        member = change.members[resource]
        step = back(node, resource, declared, member.actual)
        if member.owed and member.actual == declared.attrs:  # it was moved before, and these do not know it yet
            step = replace(step, notify=tuple(member.owed))
        steps.append(step)
    return order([*steps, *joined(node, steps)], node.nature, node.in_turns)


def back(node: Desk, resource: str, declared: Declared, actual: Attrs | None = None) -> Step:
    """The step to this declared value. If somebody must still be told of the resource, that is done also if it is as
    declared by then.  # R14"""
    owed, step = debts.of(node.state, resource), Step.back(resource, declared, actual)
    return with_owed(step, owed) if owed else step


def with_owed(step: Step, owed: Sequence[str]) -> Step:
    """The step, which tells these too, whether it moves anything or not."""
    return replace(step, notify=(*step.notify, *(n for n in owed if n not in step.notify)), owed=bool(owed))


def joined(node: Desk, steps: Sequence[Step]) -> list[Step]:
    """The steps that join this plan: declared files that conform now and that the plan would remove, to be brought
    back; and directories that are declared immutable or append-only, to be opened for the plan's work in them."""
    state, ids = node.state, {s.id for s in steps}
    through, out = carried(node.nature, steps, state.declared_ids()), []
    around = {node.nature(s.id).directory(split_id(s.id)[1]) for s in steps if moves_names(s)}
    for resource in sorted(through | {d for d in around if _is_sealed(node, d)}):
        declared = state.declared(resource)
        if resource in ids or resource in state.member_of or declared is None:
            continue
        if declared.attrs is not None:
            out.append(back(node, resource, declared))
    return out


def moves_names(step: Step) -> bool:
    """Whether the step makes, removes or replaces the resource, and does not only change its owner, mode or flags."""
    a, t = step.actual, step.target
    return a is None or t is None or any(t.get(k, a.get(k)) != a.get(k) for k in ("type", "sha256", "target"))


def _is_sealed(node: Desk, directory: str) -> bool:
    declared = node.state.declared(directory) if directory else None
    return declared is not None and declared.attrs is not None and bool(declared.attrs.get("flags"))


def as_seen(step: Step, seen: Attrs) -> Step:
    """The step that brings the resource back exactly as it was seen, with the attributes that its declaration does not
    name."""
    assert step.target is not None
    return replace(step, target={**seen, **step.target}, actual=None)


def filled(
    node: Desk, steps: Iterable[Step], members: Iterable[str], sightings: Iterable[Sighting]
) -> tuple[Step, ...]:
    """The plan, with each joined resource as it was seen. A resource that was not observed (it was declared meanwhile,
    or is ignored) joins no plan."""
    own, seen = set(members), {s.resource: s.observation for s in sightings}
    steps = tuple(steps)
    through, out = carried(node.nature, steps, (s.id for s in steps)), []
    for step in node.in_turns(steps):
        found = seen.get(step.id)
        if step.id in own or (step.id in seen and not isinstance(found, dict)):
            out.append(step)
        elif isinstance(found, dict):
            whole = as_seen(step, found)
            out.append(whole if step.id in through else replace(whole, actual=found))
    return tuple(out)


def unseen(steps: Iterable[Step], sightings: Iterable[Sighting]) -> bool:
    """Whether a resource has joined these steps since they were observed, because it left another change meanwhile."""
    seen = {s.resource for s in sightings}
    return any(s.id not in seen for s in steps)


def unread(node: Desk, steps: Sequence[Step], sightings: Iterable[Sighting]) -> list[str]:
    """The unreadable resources that stop these steps, with reasons. A resource behind a link that gives way need not be
    readable if the store has its declared content."""
    through = carried(node.nature, steps, (s.id for s in steps))
    return [
        f"{s.resource} cannot be read: {s.observation.why}"
        for s in sightings
        if isinstance(s.observation, Unreadable) and not (s.resource in through and _stored(node, s.resource))
    ]


def _stored(node: Desk, resource: str) -> bool:
    declared = node.state.declared(resource)
    if declared is None or declared.attrs is None:
        return declared is not None
    has_content = node.nature(resource).has_content(declared.attrs)
    return declared.restorable and (not has_content or "sha256" in declared.attrs)


def resumed(node: Desk, change: Change) -> list[Step]:
    """The steps that had joined a rollback before a crash interrupted it."""
    out = []
    for resource, target in (change.rolling.joined if change.rolling is not None else {}).items():
        declared = node.state.declared(resource)
        if declared is not None and resource not in node.state.member_of:
            out.append(replace(Step.back(resource, declared), target=target))
    return out


def act(
    node: Desk,
    job: Job[Any],
    saves: Mapping[str, Saved],
    held: Iterable[str],
    *,
    resumed: bool = False,
    put_back: bool = True,
) -> None:
    """Carry out the job's steps. Until the answer comes, no drift is recorded for the job's resources, for resources
    below them, or for resources that move with them. ``put_back``: resources that move beside the plan are brought
    back.  # C8"""
    here = {s.id for s in job.steps}
    beside: tuple[str, ...] = ()
    if moved := node.rules.moved_by({split_id(s.id)[0] for s in job.steps}):
        beside = tuple(r for r in node.state.declared_ids() if r.startswith(moved) and r not in here)
        node.stirring[job.n] = beside
    wanted = {r: d.attrs for r in beside if r in node.state.member_of and (d := node.state.declared(r)) is not None}
    nature = node.nature
    shifting = (s for s in job.steps if nature(s.id).shifts(s))
    others = tuple(r for r in under(nature, shifting, node.state.declared_ids()) if r not in here)
    node.converging[job.n] = frozenset([*held, *others])
    tells = _tells(node, job.steps)
    node.emit(Act(job.n, job.steps, saves, resumed, others, beside, put_back, wanted, tells))


def _tells(node: Desk, steps: Iterable[Step]) -> dict[str, Attrs | None]:
    """What the steps' resources tell, with the declared attributes of whom they tell.  # R14"""
    out = {}
    for each in dict.fromkeys(n for s in steps for n in s.notify):
        declared = node.state.declared(each.partition(" ")[0])
        out[each] = None if declared is None else declared.attrs
    return out


def look(node: Desk, job: Job[Any], event: Acted, owner: Owner, into: Change | None = None) -> list[str]:
    """Take in observations of what lies below the replaced resources, as changes by ``owner``. Returns the ids that
    have drifted."""
    node.converging.pop(job.n, None)
    here = {s.id for s in job.steps}
    others = [replace(s, owner=owner) for s in event.sightings if s.resource not in here]
    node.sight((s for s in others if s.resource not in node.state.member_of), into)
    node.sight(replace(s, owner=None) for s in others if s.resource in node.state.member_of)
    node.recheck([s.resource for s in others])
    return [s.resource for s in others if s.resource in node.state.member_of]


def differing(
    node: Desk, steps: Sequence[Step], sightings: Iterable[Sighting], declared: Mapping[str, Declared]
) -> tuple[Step, ...]:
    """The steps to carry out: resources that differ, and resources that are seen through one that gives way."""
    seen: dict[str, Observation] = {s.resource: s.observation for s in sightings}
    out = []
    for step in node.in_turns(steps):
        actual = seen.get(step.id)
        if isinstance(actual, Unreadable) or step.id not in seen:
            continue
        if node.deviation_n(step.id, declared[step.id], actual) > 0:
            out.append(replace(step, actual=actual))
    through = carried(node.nature, out, (s.id for s in steps))
    met = {s.id for s in out}
    for step in steps:
        actual = seen.get(step.id)
        if step.id in through and step.id not in met and step.target is not None and isinstance(actual, dict):
            out.append(as_seen(step, actual))
    return ordered(out, node.nature, node.in_turns)


def unreadable(sightings: Iterable[Sighting]) -> dict[str, str]:
    return {s.resource: s.observation.why for s in sightings if isinstance(s.observation, Unreadable)}
