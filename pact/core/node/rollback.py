"""Roll back: a change ends, and its drifted resources return to declared state.

A rollback is probed first (observe again, look for consumers, keep what would be overwritten), then recorded as
started, then carried out, then verified and recorded.  # A4, F5, R1-R6
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pact.core import ops
from pact.core.node import below, bonds, payloads, recording, untold
from pact.core.node import change as life
from pact.core.node import untracked as taking
from pact.core.node.change import Change
from pact.core.node.desk import Desk
from pact.core.node.events import AGENT_CALLER, Acted, Asked, Caller, Probe, Probed, Sighting
from pact.core.node.jobs import Job, RollingBack, Waiting
from pact.core.node.replies import done, holder_text, left
from pact.core.node.select import select, shared_with, some
from pact.core.node.state import AUTOMATIC, HOUR_NS
from pact.core.plan import anyhow
from pact.errors import (
    EXIT_BLOCKED,
    EXIT_DONE,
    EXIT_FAILED,
    ConflictError,
    PactError,
)
from pact.model import Holder, Unreadable

AUTO_ROLLBACKS_MAX: Final = 2
#: After this many runs in a row that end during the same job, the job is left to a person.  # F65
KILLED_MAX: Final = 3
LOOKS_MAX: Final = 3  # how often resources that join a plan during its probe are probed, too


def asked_rollback(node: Desk, event: Asked[ops.Rollback]) -> None:
    request = event.request
    dry, force, shared = request.dry_run, request.force, None if request.dry_run else request.shared
    rest, untracked = taking.split(node, event.caller, "rollback", request.targets, everything=request.all)
    picked = {}
    if rest is not None:
        picked = select(node, event.caller, "rollback", rest, everything=request.all, force=force, shared=shared)
    refuse_in_observe_mode(node, dry)
    if untracked:
        refuse_held_or_busy(node, "", force or dry)
    for cid in picked:
        refuse_held_or_busy(node, cid, force or dry)
    if not picked and not untracked:
        node.reply(event.token, {"rolled_back": [], "left": left(node)}, EXIT_DONE, "nothing to roll back")
        return
    rollback_many(node, event, picked, dry=dry, force=force)
    taking.begin_removal(node, event, untracked, dry=dry, force=force)


def refuse_in_observe_mode(node: Desk, dry: bool) -> None:
    if not node.state.settings.enforce and not dry:
        raise ConflictError(
            "the node is in observe mode: nothing is rolled back",
            'set [mode] enforcement = "enforce" and restart the agent',
        )


def refuse_held_or_busy(node: Desk, cid: str, force: bool) -> None:
    holds = node.state.held_by(cid)
    if holds and not force:
        hold = holds[0]
        raise ConflictError(f"{cid or 'the node'} is held by {hold.owner.user}: {hold.reason}", "use --force")
    if cid in node.busy:
        raise ConflictError(f"a rollback of {cid} is being prepared already", "see pact status")


def rollback_many(
    node: Desk,
    event: Asked[ops.Op],
    picked: Mapping[str, Sequence[str]],
    *,
    dry: bool,
    force: bool,
) -> None:
    """Roll each of these back; one reply follows when the last has ended."""
    node.waiting[event.token] = Waiting()
    begun: list[tuple[Change, tuple[str, ...]]] = []
    for cid, ids in picked.items():
        change = node.state.changes[cid]
        if len(ids) < len(change.members) and not dry:
            into = node.new_change_id()
            recording.split(node, change, into, ids, event.caller.actor)
            change = node.state.changes[into]
        begun.append((change, tuple(ids)))
    for change, ids in begun:
        start_rollback(node, change, "manual", event.caller, token=event.token, force=force, dry=dry, ids=ids)


def start_rollback(
    node: Desk,
    change: Change,
    cause: str,
    caller: Caller,
    *,
    token: int | None = None,
    force: bool = False,
    dry: bool = False,
    ids: tuple[str, ...] = (),
) -> None:
    """Ask the shell to probe before anything is touched, or refuse if a person should decide."""
    ids = ids or tuple(change.members)
    job = node.job("rollback", caller, RollingBack(force, dry), token=token, change=change.id, cause=cause, ids=ids)
    if token is not None:
        node.waiting[token].jobs.add(job.n)
    reason = refusal(node, change, cause)
    if reason:
        block(node, job, change, reason, [])
        return
    try:
        job.steps, job.planned_at = below.steps_for(node, ids), node.state.seq
    except ConflictError as exc:
        block(node, job, change, exc.message, [])
        return
    node.emit(Probe(job.n, job.steps, consumers=True, force=force, dry=dry))


def refusal(node: Desk, change: Change, cause: str) -> str:
    """Why a rollback that nobody has just requested should wait for a person.  # R3"""
    if cause != "manual" and (killed := node.killed.pop(change.id, 0)) >= KILLED_MAX:
        return killed_text(killed)
    if cause not in AUTOMATIC:
        return ""
    most = node.state.settings.max_resources
    if len(change.members) > most:
        return f"{len(change.members)} resources are more than max_resources = {most}: an operator must decide"
    horizon = node.t_ns - HOUR_NS
    for resource in change.members:
        times = [t for t in node.state.auto_rollbacks.get(resource, ()) if t > horizon]
        if len(times) >= AUTO_ROLLBACKS_MAX:
            return f"{resource} was rolled back {len(times)} times within the hour: contended by {change.owner.named}"
    return ""


def killed_text(times: int) -> str:
    return f"the agent was killed {times} times in a row while it was at this"


def resume_rollback(node: Desk, change: Change, reset: Mapping[str, Sighting]) -> None:
    """Continue a rollback that a crash interrupted. Steps that were done before are found done.  # R6"""
    assert change.rolling is not None
    job = node.job(
        "rollback",
        AGENT_CALLER,
        RollingBack(resumed=True),
        change=change.id,
        cause=change.rolling.cause,
        ids=tuple(change.members),
    )
    if (times := node.killed.pop(change.id, 0)) >= KILLED_MAX:
        block(node, job, change, killed_text(times), [])
        return
    joined = below.resumed(node, change)
    known = {s.id for s in joined}
    steps = [*(s for s in below.steps_for(node, job.ids, anyhow) if s.id not in known), *joined]
    for at, step in enumerate(steps):
        step = steps[at] = replace(step, owed=bool(step.notify))  # it may have been moved, and nobody told  # R14
        seen = reset.get(step.id)
        if seen is not None and not isinstance(seen.observation, Unreadable):
            steps[at] = replace(step, actual=seen.observation)
    job.steps = anyhow(steps, node.nature, node.in_turns)
    node.converging[job.n] = frozenset(s.id for s in job.steps)
    node.emit(Probe(job.n, job.steps, consumers=True))


def probed_rollback(node: Desk, job: Job[RollingBack], event: Probed) -> None:
    state = node.state
    change = state.changes.get(job.change or "")
    if job.work.untracked:
        taking.probed_removal(node, job, event)
        return
    if change is None:
        raise ConflictError(f"{job.change} was settled while its rollback was prepared", "see pact log")
    if job.work.resumed:
        _probed_resumed(node, job, change, event)
        return
    if change.state == life.ROLLING:
        raise ConflictError(f"the rollback of {change.id} has begun already", "see pact log")
    node.sight(event.sightings)
    if change.id not in state.changes:
        done(node, job, {"change": change.id, "state": "settled", "resources": []})
        return
    if not _still_wanted(node, job, change):
        node.finish(job)
        return
    ids = [r for r in job.ids if r in change.members]
    if not ids:
        done(node, job, {"change": change.id, "state": "settled", "resources": []})
        return
    if node.state.seq != job.planned_at:
        job.steps, job.planned_at = below.steps_for(node, ids), node.state.seq
        if job.looks < LOOKS_MAX and below.unseen(job.steps, event.sightings):
            job.looks += 1
            node.emit(Probe(job.n, job.steps, consumers=True, force=job.work.force, dry=job.work.dry))
            return
    refusals = [*below.unread(node, job.steps, event.sightings), *event.refusals]
    job.steps = below.filled(node, job.steps, change.members, event.sightings)
    job.work.notes = list(event.notes)
    if job.work.dry:  # a dry run ends as the real run would
        why = holder_text(event.holders) if event.holders else "; ".join(refusals[:5])
        done(
            node,
            job,
            {
                "change": change.id,
                "plan": [s.to_json() for s in node.in_turns(job.steps)],
                "refused": refusals,
                "notes": job.work.notes,
                "consumers": [h.to_json() for h in event.holders],
            },
            EXIT_BLOCKED if event.holders else EXIT_FAILED if refusals else EXIT_DONE,
            f"the rollback of {change.id} would not be done: {why}" if why else "",
        )
    elif event.holders:
        block(node, job, change, "consumers", event.holders)
    elif refusals:
        block(node, job, change, "; ".join(refusals[:5]), [])
    else:
        wanted = frozenset(ids)
        _leave_out(node, job, change, [r for r in change.members if r not in wanted])
        also = shared_with(change, ids)
        recording.started(
            node, change, job.steps, job.cause, job.caller.actor, saves=event.saves, also=also, notes=list(event.notes)
        )
        below.act(node, job, event.saves, [s.id for s in job.steps])


def _leave_out(node: Desk, job: Job[RollingBack], change: Change, late: list[str]) -> None:
    """Resources that joined the change during the preparation were not observed: they go on as a separate
    change.  # R2"""
    if late:
        recording.split(node, change, node.new_change_id(), late, job.caller.actor, ambient=change.ambient)


def _still_wanted(node: Desk, job: Job[RollingBack], change: Change) -> bool:
    """Whether an automatic rollback may go on. It gives way to an extension, hold or emergency during its
    preparation."""
    if job.cause == "expired":
        return node.due(change)
    group = node.state.groups.get(change.group) if job.cause == "group" else None
    if group is not None:
        return not bonds.stopped_here(node, group, job.work.force)
    if job.cause == "rule":
        return change.state == life.OPEN and not node.state.suspended and not node.state.held_by(change.id)
    if job.cause == "retry":
        return change.state == life.BLOCKED and not node.state.suspended and not node.state.held_by(change.id)
    return True


def _probed_resumed(node: Desk, job: Job[RollingBack], change: Change, event: Probed) -> None:
    if event.holders or event.refusals:
        why = holder_text(event.holders) if event.holders else "; ".join(event.refusals)
        done = {s.resource for s in event.sightings if untold.is_there(node, s.resource, s.observation)}
        results = {r: "" if r in done else why for r in job.ids}
        told_of = {s.id: s.notify for s in job.steps if s.notify}  # before the kill nobody was  # R14
        results |= {r: f"restored, but {names[0]} was not told: {why}" for r, names in told_of.items() if r in done}
        as_before = {s.resource for s in event.sightings if _is_as_before(change, s)}
        left_over = {r: names for r, names in told_of.items() if r in done or r not in as_before}
        acted_rollback(node, job, Acted(event.t_ns, event.wall_ns, job.n, results, event.sightings, untold=left_over))
        return
    # A content that was written after the start record is not named in it, and must not be overwritten.  # R4
    saved = None if change.rolling is None else change.rolling.saved
    saves = (
        event.saves
        if saved is None
        else {r: s for r, s in event.saves.items() if s.get("sha256") is None or saved.get(r) == s["sha256"]}
    )
    below.act(node, job, saves, [s.id for s in job.steps], resumed=True)


def _is_as_before(change: Change, sighting: Sighting) -> bool:
    """Whether the rollback that was interrupted had not touched it."""
    member = change.members.get(sighting.resource)
    return member is not None and not member.owed and member.actual == sighting.observation


def block(node: Desk, job: Job[RollingBack], change: Change, reason: str, holders: Sequence[Holder]) -> None:
    """The whole rollback waits for a person; nothing was changed.  # F5"""
    named = [h.to_json() for h in holders]
    again = (
        change.state == life.BLOCKED
        and change.reason == reason
        and ({(h.pid, h.resource) for h in change.holders} == {(h.pid, h.resource) for h in holders})
    )
    # Who holds it may be a new process each time. The change is blocked on record already.  # S3
    often = job.cause == "retry" and change.state == life.BLOCKED and bool(holders) and bool(change.holders)
    if not job.work.dry and not again and (not often or node.busy_told.admit(node.t_ns)):
        node.record(
            payloads.RollbackBlocked(change=change.id, cause=job.cause, reason=reason, holders=list(holders)),
            job.caller.actor,
        )
    node.finish(job)
    text = f"{change.id}: " + (holder_text(holders) if holders else reason)
    done(
        node,
        job,
        {"change": change.id, "state": "blocked", "reason": reason, "consumers": named},
        EXIT_BLOCKED if holders else EXIT_FAILED,
        f"rollback of {text}",
        "let them finish or stop them, then: pact rollback " + change.id,
    )


def acted_rollback(node: Desk, job: Job[RollingBack], event: Acted) -> None:
    change = node.state.changes[job.change or ""]
    assert change.state == life.ROLLING, change.state
    left = {r: why for r, why in event.results.items() if why}
    restored = sorted(r for r, why in event.results.items() if not why)
    actor = job.caller.actor
    drifted = below.look(node, job, event, change.owner)
    if left:
        reason = untold.shown(left)
        recording.failed(
            node,
            change,
            left,
            reason,
            job.cause,
            actor,
            restored=restored,
            reads=node.learn(event),
            owed={r: list(owed) for r, owed in event.untold.items() if r in node.state},
            moved=untold.unverified(node, event),
        )
        node.sight(replace(s, owner=change.owner) for s in event.sightings if s.resource in left)
        untold.keep(node, event, change.owner, job.cause, actor, change)
    else:
        recording.ended(node, change, restored, job.cause, actor, node.learn(event))
        if job.cause != "group":
            bonds.settled_alone(node, change, "rolled back", job.caller)
    node.sight_moved(event, change.owner, change if left else None)
    node.recheck([s.id for s in job.steps] or job.ids)
    notes = [
        *job.work.notes,
        *(f"{r}: it has drifted with this, and has its window" for r in drifted),
        *(f"{r}: the kernel made {text} of what is declared" for r, text in node.learn(event).items()),
    ]
    stays = _stays(node, change, left)
    result = {
        "change": stays,
        "state": "failed" if left else "settled",
        "restored": restored,
        "left": left,
        "notes": notes,
        **({"was": change.id} if stays != change.id else {}),
    }
    if not left:
        done(node, job, result)
        return
    text = f"rollback of {change.id} failed for {some(list(left))}"
    more = f"; that stays as {stays}" if stays != change.id else ""
    what = "tells them again" if event.untold else "tries again"
    done(node, job, result, EXIT_FAILED, text + more, f"pact rollback {stays} {what}")


def _stays(node: Desk, change: Change, left: Mapping[str, str]) -> str:
    """The change that has what is left. If all members were restored, and only what the plan took along was not, that
    is another one: a settled change can be named no more."""
    if change.id in node.state.changes:
        return change.id
    return next((cid for r in left if (cid := node.state.member_of.get(r)) is not None), change.id)


def give_up(node: Desk, job: Job[Any], error: PactError) -> None:
    """A job ended with an error. A change whose time is up must not be forgotten: it becomes blocked.  # A4"""
    change = node.state.changes.get(job.change or "")
    dry = isinstance(job.work, RollingBack) and job.work.dry
    lasting = change is not None and not dry and not isinstance(error, ConflictError)
    if job.kind == "rollback" and lasting:
        assert change is not None
        if change.state == life.ROLLING:
            results = dict.fromkeys(change.members, error.message)
            left = {s.id: s.notify for s in job.steps if s.notify and s.owed}  # it may have been moved  # R14
            acted_rollback(node, job, Acted(node.t_ns, node.wall_ns, job.n, results, (), untold=left))
        else:
            block(node, job, change, error.message, [])
    elif job.kind == "rollback":
        done(node, job, {"change": job.change, "error": error.message}, error.exit_code, error.message, error.hint)
    else:
        node.refuse(job.token, error)
