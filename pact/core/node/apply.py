"""Apply: pact makes changes now, as one change with its own window, and declares what was there before.  # C7"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pact.core import ops, phases
from pact.core.node import access, below, bonds, debts, payloads, recording, undo, untold
from pact.core.node import change as life
from pact.core.node.desk import Desk
from pact.core.node.events import Acted, Asked, Probe, Probed
from pact.core.node.jobs import Applying, Job
from pact.core.node.replies import holder_text
from pact.core.plan import Step, ordered
from pact.core.records import in_parts, is_later
from pact.errors import BlockedError, ConflictError, PactError, UsageError
from pact.model import Declared, Json, Unreadable


def asked_apply(node: Desk, event: Asked[ops.Apply]) -> None:
    """Make changes now, as one change that the caller owns.  # C7"""
    access.require(event.caller, "admin", "apply")
    declared = {r: Declared.from_json(v) for r, v in event.request.resources.items()}
    if not declared:
        raise UsageError("the file names no resource")
    node.refuse_intended(declared)
    for resource in declared:
        change = node.state.change_of(resource)
        if change is not None and (change.state == life.ROLLING or change.intents):
            raise ConflictError(f"{resource} is being changed with {change.id}", "try again when it is done")
        if change is not None:
            bonds.require_free(node, change, "apply", False)
    begin_apply(node, event, Applying(declared, event.request.message, event.request.dry_run))


def begin_apply(node: Desk, event: Asked[ops.Op], work: Applying, group: str = "") -> None:
    """Observe the resources first. ``group``: the group of which this node is a member."""
    steps = ordered((_step(node, r, d) for r, d in work.declared.items()), node.nature, node.in_turns)
    job = node.job("apply", event.caller, work, token=event.token, group=group, ids=tuple(work.declared), steps=steps)
    node.emit(Probe(job.n, steps, consumers=True, applying=True, dry=work.dry_run))


def _step(node: Desk, resource: str, wanted: Declared) -> Step:
    step = replace(Step.back(resource, wanted), notify=told(node, resource, wanted))
    return below.with_owed(step, debts.of(node.state, resource))


def told(node: Desk, resource: str, wanted: Declared) -> tuple[str, ...]:
    """What is told when an application moves a resource: as its declaration says, if the application does not say."""
    declared = node.state.declared(resource)
    return wanted.notify or (declared.notify if declared is not None else ())


def probed_apply(node: Desk, job: Job[Applying], event: Probed) -> None:
    state, declared = node.state, job.work.declared
    node.refuse_intended(job.ids)
    for resource in job.ids:
        change = state.change_of(resource)
        if change is not None and (change.state == life.ROLLING or change.intents):
            raise ConflictError(f"{resource} is being changed with {change.id}", "try again when it is done")
        if change is not None and not job.group:
            bonds.require_free(node, change, "apply", False)
    steps = below.differing(node, job.steps, event.sightings, declared)
    try:
        refuse_what_would_fail(event, "nothing was applied")
    except PactError as exc:
        node.finish(job)
        result: Json = {"consumers": [h.to_json() for h in event.holders]}
        if job.work.dry_run:
            result |= {"dry_run": True, "plan": [s.to_json() for s in steps], "refused": list(event.refusals)}
        node.reply(job.token, result, exc.exit_code, exc.message, exc.hint)
        return
    if job.work.dry_run:
        node.finish(job)
        node.reply(
            job.token,
            {
                "dry_run": True,
                "plan": [s.to_json() for s in steps],
                "refused": [],
                "consumers": [],
                "notes": list(event.notes),
            },
        )
        return
    if not steps:
        node.finish(job)
        node.reply(job.token, {"change": None, "applied": [], "left": {}}, 0, "the machine is so already")
        return
    seen = {s.resource: s.observation for s in event.sightings}
    baseline = {}
    for step in steps:
        if step.id not in state:
            kept = not event.saves.get(step.id, {}).get("unkept")
            found = seen[step.id]
            assert not isinstance(found, Unreadable), step.id  # refused above
            attrs = node.taken(step.id, found, step.target)
            baseline[step.id] = replace(declared[step.id], attrs=attrs, restorable=kept).to_json()
    gid = job.group
    member = state.groups.get(gid)
    if gid and (member is None or member.phase != phases.OPEN):
        raise ConflictError(f"{gid} was settled meanwhile")
    cid = member.change if member is not None and member.change in state.changes else node.new_change_id()
    assert cid is not None
    tells = any(s.notify for s in steps)
    notify = {s.id: s.notify for s in steps if s.notify and s.notify != _named(node, s.id, baseline)}
    beside = list(event.saves.keys() - {s.id for s in steps})  # what is kept of others goes with the first
    for piece, part in in_parts(steps):
        here, beside = [*(s.id for s in piece), *beside], []
        node.record(
            payloads.Applied(
                change=cid,
                owner=job.caller.owner,
                message=job.work.message,
                resources={s.id: s.target for s in node.in_turns(piece)},
                baseline={s.id: baseline[s.id] for s in piece if s.id in baseline},
                saves={r: event.saves[r] for r in here if r in event.saves},
                notes=[] if is_later(part) else list(event.notes),
                group=gid,
                tells=tells,
                notify={s.id: notify[s.id] for s in piece if s.id in notify},
                part=part,
            ),
            job.caller.actor,
        )
    job.change, job.steps, job.work.notes, job.work.baseline = cid, steps, list(event.notes), baseline
    node.busy[cid] = job.n
    below.act(node, job, event.saves, (), put_back=False)


def _named(node: Desk, resource: str, baseline: Mapping[str, Json]) -> tuple[str, ...]:
    """Whom its declaration names, with those that the application makes."""
    return tuple(baseline[resource].get("notify", ()) if resource in baseline else node.state.readers(resource))


def refuse_what_would_fail(event: Probed, what: str) -> None:
    """Ask everything that can be known before anything is touched. Raises an error for any refusal.  # C7, F5"""
    unread = [f"{r}: {why}" for r, why in below.unreadable(event.sightings).items()]
    problems = [*unread, *event.refusals]
    if problems:
        raise PactError(f"{what}; " + "; ".join(problems[:5]))
    if event.holders:
        raise BlockedError(f"{what}; {holder_text(event.holders)}", "let them finish, or leave it out")


def acted_apply(node: Desk, job: Job[Applying], event: Acted) -> None:
    """Record the application. If a step failed, undo at once what was done before it.  # C7"""
    if any(event.results.values()):
        undo.undo(node, job, event)
        return
    owed = untold.owed(node, job, event)
    node.finish(job)
    assert job.change is not None
    if read := {r: debts.RESTORED for r in event.results if r in node.state.telling}:  # who reads these was told  # R14
        recording.converged(node, read, "apply", job.caller.actor, owed=owed)
    here = {s.id for s in job.steps}
    node.sight(s for s in event.sightings if s.resource in here)
    below.look(node, job, event, job.caller.owner, node.state.changes.get(job.change))
    moved = node.sight_moved(event, job.caller.owner, node.state.changes.get(job.change))
    if job.change in node.state.changes:
        node.window_opened(job.change, reads=node.public_reads(event))
    change = node.state.changes.get(job.change)
    deadline_ns = None if change is None else node.state.deadline_ns(change)
    node.recheck(job.ids)
    node.reply(
        job.token,
        {
            "change": job.change if change is not None else None,
            "applied": sorted(event.results),
            "left": {},
            "undone": [],
            "deadline": None if deadline_ns is None else node.wall_of(deadline_ns),
            "moved": moved,
            "reads": dict(event.reads),
            "notes": list(job.work.notes),
        },
    )
