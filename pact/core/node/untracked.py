"""Untracked things in requests: ``commit`` declares them, ``rollback`` removes those that it names.

A removal is probed like a rollback. If nothing blocks it, it becomes a separate change that is rolled back at once. If
something does, nothing has changed.  # U1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pact.core.node import access, below, payloads, recording, replies
from pact.core.node.desk import Desk
from pact.core.node.events import Asked, Caller, Looked, Probe, Probed
from pact.core.node.jobs import Committing, Job, RollingBack
from pact.core.node.tracked import declare_absent, flush
from pact.core.ops import Op
from pact.core.plan import Nature, Step, ordered
from pact.core.records import in_pieces
from pact.errors import EXIT_BLOCKED, EXIT_CONFLICT, EXIT_DONE, EXIT_FAILED, ConflictError
from pact.model import Attrs, Declared, Json, Observation, Owner, Unreadable


def split(
    node: Desk, caller: Caller, what: str, names: Sequence[str], *, everything: bool
) -> tuple[Sequence[str] | None, list[str]]:
    """The untracked things that a request means, and the rest of its names (``None`` if it means nothing else). Raises
    DeniedError for things that the caller may not settle."""
    access.require(caller, "ops", what)  # before any record is made for the request
    flush(node, everything=True)
    untracked = node.state.untracked
    targets = [r for t in names for r in _meant(node, caller, t)]
    named = [t for t in dict.fromkeys(targets) if t in untracked]
    if named:
        for resource in named:
            access.require_settle_of(caller, owner_of(node, resource), f"{what} {resource}")
        rest = [t for t in targets if t not in untracked]
        return rest or None, named
    if what != "commit" or targets or not untracked:
        return names, []
    whose = {r: owner_of(node, r) for r in untracked}
    if everything:
        return names, [r for r, o in whose.items() if access.may_settle_of(caller, o)]
    mine = [r for r, o in whose.items() if caller.owns(o)]
    has_change = any(caller.owns(c.owner) for c in node.state.changes.values())
    return (names if has_change or not mine else None), mine


def _meant(node: Desk, caller: Caller, target: str) -> list[str]:
    """A pattern means the untracked things that match it; any other text means itself. Things in closed directories
    that the caller may not settle are passed over: a refusal would name them.  # S2"""
    state = node.state
    if target in state or target in state.untracked or not any(c in target for c in "*?["):
        return [target]
    return [r for r in state.untracked if node.rules.matches(target, r) and _may_name(node, caller, r)] or [target]


def _may_name(node: Desk, caller: Caller, resource: str) -> bool:
    untracked = node.state.untracked[resource]
    return not untracked.actual.get("secret") or access.may_settle_of(caller, untracked.owner)


def owner_of(node: Desk, resource: str) -> Owner:
    return node.state.untracked[resource].owner


def refuse_named(node: Desk, job: Job[Committing], event: Looked) -> None:
    """Raises ConflictError for named things that cannot be taken in.  # C5"""
    fresh = job.work.untracked if job.work.named else ()
    for sighting in event.sightings if fresh else ():
        why = _why_not(node, sighting.resource, sighting.observation)
        if why and sighting.resource in fresh:
            raise ConflictError(f"{sighting.resource} {why}; nothing was committed", "see pact status")


def record_commits(node: Desk, job: Job[Committing], event: Looked) -> tuple[list[Json], list[str]]:
    """Take in the untracked things that the commit observed. Returns what was done, and what was left out and why."""
    ttl_ns, fresh = job.work.ttl_ns, set(job.work.untracked)
    by_owner: dict[str, Json] = {}
    notes, out = [], []
    for sighting in event.sightings:
        resource, seen = sighting.resource, sighting.observation
        if resource not in fresh or resource not in node.state.untracked:
            continue
        why = _why_not(node, resource, seen)
        if why or isinstance(seen, Unreadable):
            notes.append(f"{resource} {why}")
            continue
        attrs = node.taken(resource, seen, None)
        if attrs is not None and resource in event.secret:  # S2
            attrs = {**attrs, "secret": True}
        value = Declared(attrs, restorable=resource not in event.unkept)
        by_owner.setdefault(node.state.untracked[resource].owner.key, {})[resource] = value.to_json()
    expires_ns = None if ttl_ns is None else node.t_ns + ttl_ns
    expires = None if expires_ns is None else node.wall_of(expires_ns)
    for resources in by_owner.values():
        owner = node.state.untracked[next(iter(resources))].owner
        for piece in in_pieces(list(resources)):
            node.record(
                payloads.Committed(
                    change=None,
                    owner=owner,
                    committer=job.caller.owner,
                    resources={r: resources[r] for r in piece},
                    message=job.work.message,
                    split=False,
                    expires_ns=expires_ns,
                    expires=expires,
                ),
                job.caller.actor,
            )
            out.append(
                {
                    "change": None,
                    "resources": sorted(piece),
                    "seq": node.state.seq,
                    "split": False,
                    "also": [],
                    "expires": expires,
                }
            )
    return out, notes


def _why_not(node: Desk, resource: str, seen: Observation) -> str:
    if isinstance(seen, Unreadable):
        return f"cannot be read: {seen.why}"
    if seen is None:
        return "is gone"
    return undeclarable(node.nature(resource), seen)


def undeclarable(nature: Nature, seen: Observation) -> str:
    """Why an observed thing cannot be declared: it could not be restored, and an export of it could not be read
    again."""
    what = nature.undeclarable(seen) if isinstance(seen, dict) else ""
    return f"is {what}: it cannot be declared" if what else ""


def begin_removal(node: Desk, event: Asked[Op], resources: Sequence[str], *, dry: bool, force: bool) -> None:
    """Probe before anything is touched, as before a rollback; one job for each owner."""
    by_owner: dict[str, list[str]] = {}
    for resource in resources:
        by_owner.setdefault(node.state.untracked[resource].owner.key, []).append(resource)
    for ids in by_owner.values():
        own = [Step(r, None, node.state.untracked[r].actual) for r in ids]
        job = node.job(
            "rollback",
            event.caller,
            RollingBack(force=force, dry=dry, untracked=True),
            token=event.token,
            cause="manual",
            ids=tuple(ids),
        )
        job.steps = ordered([*own, *below.joined(node, own)], node.nature, node.in_turns)
        node.waiting[event.token].jobs.add(job.n)
        node.emit(Probe(job.n, job.steps, consumers=True, force=force, dry=dry))


def probed_removal(node: Desk, job: Job[RollingBack], event: Probed) -> None:
    """Nothing blocks the removal: it becomes a separate change, which is rolled back at once."""

    state, seen = node.state, {s.resource: s.observation for s in event.sightings}
    ids = [r for r in job.ids if r in state.untracked]
    if len(ids) < len(job.ids):
        raise ConflictError("what was named was settled meanwhile", "see pact status")
    steps = below.filled(node, job.steps, job.ids, event.sightings)
    job.steps = tuple(replace(s, actual=_attrs(seen.get(s.id))) if s.id in ids else s for s in steps)
    refusals = [*below.unread(node, job.steps, event.sightings), *event.refusals]
    result: Json = {
        "change": None,
        "resources": sorted(ids),
        "notes": list(event.notes),
        "consumers": [h.to_json() for h in event.holders],
    }
    why = replies.holder_text(event.holders) if event.holders else "; ".join(refusals[:5])
    if why or job.work.dry:
        result |= (
            {"plan": [s.to_json() for s in job.steps], "refused": refusals}
            if job.work.dry
            else {"state": "untracked", "reason": why}
        )
        would = "would not be" if job.work.dry else "was not"
        replies.done(
            node,
            job,
            result,
            EXIT_BLOCKED if event.holders else EXIT_FAILED if why else EXIT_DONE,
            f"what is untracked {would} removed: {why}" if why else "",
        )
        return
    if all(_attrs(seen.get(r)) is None for r in ids):
        node.pace.leaving.update(dict.fromkeys(ids))
        replies.done(node, job, {**result, "state": "gone"}, EXIT_CONFLICT, "it is gone already")
        return
    owner, cid = owner_of(node, ids[0]), node.new_change_id()
    closed = {r for r in ids if state.untracked[r].actual.get("secret")}
    declare_absent(node, {r: state.untracked[r] for r in ids}, "rolled back by name")
    for resource in ids:
        actual = _attrs(seen.get(resource))
        declared = state.declared(resource)
        if actual is None or declared is None:
            continue
        node.record(
            payloads.DriftDetected(
                resource=resource,
                change=cid,
                owner=owner,
                opened_ns=node.t_ns,
                actual=actual,
                deviation_n=node.deviation_n(resource, declared, actual),
                weight_n=node.weight_n(resource, declared),
                secret=resource in closed,
            )
        )
    job.change, job.ids, job.work.notes = cid, tuple(state.changes[cid].members), list(event.notes)
    node.busy[cid] = job.n
    recording.started(
        node,
        state.changes[cid],
        job.steps,
        job.cause,
        job.caller.actor,
        saves=event.saves,
        notes=list(event.notes),
    )
    below.act(node, job, event.saves, [s.id for s in job.steps])


def _attrs(seen: Observation) -> Attrs | None:
    return None if isinstance(seen, Unreadable) else seen
