"""Taking back an ``apply`` of which a step failed: the steps that were done are undone at once, in reverse.  # C7

Each resource returns to its state before the application, which may have been another owner's drift. Consumers are not
checked again: pact itself just wrote the resource, and the ``applied`` record saves what it overwrote. What cannot be
undone stays as a ``failed`` change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from pact.core.node import below, debts, recording, untold
from pact.core.node import change as life
from pact.core.node.desk import Desk
from pact.core.node.events import Acted, Sighting
from pact.core.node.jobs import Applying, Job, Undoing
from pact.core.plan import Step, anyhow
from pact.errors import EXIT_FAILED
from pact.model import Attrs, Unreadable

SHOWN_MAX: Final = 5
UNTOUCHED: Final = "nothing was changed"
CHANGED_AGAIN: Final = "changed again while it was applied; it was left as it is"


def undo(node: Desk, job: Job[Applying], event: Acted) -> None:
    """Undo the application. ``event`` says how it ended: at least one step failed."""
    cid = job.change
    assert cid is not None
    inverse = _inverse(node, job, event)
    applied = {s.id: s for s in job.steps}
    theirs = {s.id: CHANGED_AGAIN for s in inverse if _is_others(node, s, applied.get(s.id, s))}
    steps = tuple(s for s in inverse if s.id not in theirs)
    holders = {s.id: c.owner for s in job.steps if (c := node.state.change_of(s.id)) is not None and c.id != cid}
    here = {s.id for s in job.steps}
    node.sight(s for s in event.sightings if s.resource in here)
    below.look(node, job, event, job.caller.owner, node.state.changes.get(cid))
    node.sight_moved(event, job.caller.owner, node.state.changes.get(cid))
    node.finish(job)
    undone = {s.id for s in steps}
    if rest := {s.id: theirs.get(s.id, UNTOUCHED) for s in job.steps if s.id in node.state.telling.keys() - undone}:
        owed = {r: event.untold[r] for r in rest if r in event.untold}  # R14
        recording.converged(node, rest, "undo", job.caller.actor, owed=owed)
    change = node.state.changes.get(cid)
    if change is not None and change.intents:
        node.window_opened(cid)
    work = Undoing(
        applied=cid,
        left={r: why for r, why in event.results.items() if why},
        holders=holders,
        theirs=theirs,
        baseline=job.work.baseline,
    )
    busy = cid if cid in node.state.changes else None
    undoing = node.job("undo", job.caller, work, token=job.token, change=busy, ids=tuple(s.id for s in steps))
    if not steps:
        node.finish(undoing)
        _end(node, undoing, theirs)
        return
    undoing.steps = steps
    recording.planned(node, steps, "undo", job.caller.actor)
    below.act(node, undoing, {}, undoing.ids, put_back=False)


def _inverse(node: Desk, job: Job[Applying], event: Acted) -> tuple[Step, ...]:
    """The steps back to the earlier state, the last first; with the resources that the writes moved beside the plan."""
    seen = {s.resource: s.observation for s in event.sightings}
    out = []
    for sighting in event.moved:
        declared, member = node.state.declared(sighting.resource), node.state.change_of(sighting.resource)
        if declared is not None and not isinstance(sighting.observation, Unreadable):
            before = declared.attrs if member is None else member.members[sighting.resource].actual
            out.append(Step(sighting.resource, before, sighting.observation))
    back = []
    for step in reversed(job.steps):
        now: Attrs | Unreadable | None = seen.get(step.id, step.actual)
        if isinstance(now, Unreadable):  # the step may have been done: the undoing finds out, or reports that it cannot
            now = None if step.target is None else {**(step.actual or {}), **step.target}
        # What was moved and is as it was again is told, too: who could not be told may have read it meanwhile.  # R14
        back.append(Step(step.id, step.actual, now, notify=step.notify, owed=step.id in event.untold))
    moved = [s for s in back if s.actual != s.target or s.owed]
    through = below.carried(
        node.nature, moved, (s.id for s in back)
    )  # seen as before through a link that gives way again  # R10
    return (*out, *(s for s in back if s in moved or s.id in through))


def _is_others(node: Desk, step: Step, applied: Step) -> bool:
    """Whether the present state is neither the earlier nor the applied one: another writer changed it meanwhile, and
    none of its content is kept.  # R4"""
    known = [a for a in (applied.actual, {**(applied.actual or {}), **applied.target} if applied.target else None) if a]
    return step.actual is not None and node.nature(step.id).is_anothers(step.actual, known)


def acted_undo(node: Desk, job: Job[Undoing], event: Acted) -> None:
    owed = untold.owed(node, job, event)
    node.finish(job)
    results = dict(event.results)
    recording.converged(node, results, "undo", job.caller.actor, owed=owed)
    holders = job.work.holders
    node.sight(
        replace(s, owner=holders.get(s.resource)) if s.resource in holders and not results.get(s.resource) else s
        for s in event.sightings
    )  # what was another's drift is his again
    node.sight(Sighting(s.resource, s.observation) for s in event.moved)
    owing = untold.keep(node, event, job.caller.owner, "undo", job.caller.actor)
    node.recheck(job.ids)
    _end(node, job, {**results, **job.work.theirs}, owing)


def _end(node: Desk, job: Job[Undoing], results: Mapping[str, str], owing: str = "") -> None:
    """Record what could not be undone as a failed change, and reply. ``owing``: the change that has what is undone,
    and of which somebody could not be told."""
    stays = {r: why for r, why in results.items() if why}
    change = node.state.changes.get(job.work.applied)
    if stays and change is not None and change.can("start") and change.state != life.ROLLING:
        reason = "; ".join(f"{r}: {why}" for r, why in list(stays.items())[:SHOWN_MAX])
        plan = below.steps_for(node, change.members, anyhow)
        owed = {r: names for r in change.members if (names := debts.of(node.state, r))}
        recording.started(node, change, plan, "undo", job.caller.actor)
        reason = f"an application could not be undone: {reason}"
        recording.failed(node, change, stays, reason, "undo", job.caller.actor, owed=owed, moved=list(owed))
    if not stays:
        _forget(node, job)
    _reply(node, job, results, owing)


def _forget(node: Desk, job: Job[Undoing]) -> None:
    """End the declarations that the application had made of the earlier state."""
    state = node.state
    gone = [
        r
        for r, value in job.work.baseline.items()
        if r not in state.member_of and (declared := state.declared(r)) is not None and declared.to_json() == value
    ]
    recording.forgotten(node, gone, "an application was undone", job.caller.actor)


def _reply(node: Desk, job: Job[Undoing], results: Mapping[str, str], owing: str) -> None:
    left = job.work.left
    undone = sorted(r for r, why in results.items() if not why)
    stays = {r: why for r, why in results.items() if why}
    why = "; ".join(f"{r}: {text}" for r, text in list(left.items())[:SHOWN_MAX])
    if stays:
        text = f"{why}; and these could not be undone: {', '.join(list(stays)[:SHOWN_MAX])}"
    else:
        text = f"nothing was applied; {why}"
    if undone:
        more = f" and {len(undone) - SHOWN_MAX} more" if len(undone) > SHOWN_MAX else ""
        text += f"; undone: {', '.join(undone[:SHOWN_MAX])}{more}"
    cid = job.work.applied if stays and job.work.applied in node.state.changes else owing or None
    tells = f"pact rollback {owing} tells them again" if owing else ""
    node.reply(
        job.token,
        {
            "change": cid,
            "applied": [],
            "left": {**left, **stays},
            "undone": undone,
            "deadline": None,
            "moved": [],
            "reads": {},
        },
        EXIT_FAILED,
        text,
        tells or (f"settle {cid}: pact status" if cid else ""),
    )
