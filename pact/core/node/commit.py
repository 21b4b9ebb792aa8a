"""Commit: drift becomes declared state, permanently or until a time.  # C6, T1"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from pact.core import ops
from pact.core.node import bonds, debts, payloads, untold, writers
from pact.core.node import change as life
from pact.core.node import untracked as taking
from pact.core.node.change import Change
from pact.core.node.desk import Desk
from pact.core.node.events import AGENT_CALLER, Asked, Caller, Look, Looked, Sighting
from pact.core.node.jobs import Committing, Job
from pact.core.node.replies import left
from pact.core.node.select import select, shared_with
from pact.core.records import in_parts
from pact.errors import EXIT_DONE, ConflictError, UnreachableError, UsageError
from pact.model import NS_PER_S, Declared, Json, Owner, Unreadable

TTL_MIN_NS: Final = 15 * 60 * NS_PER_S
#: The token of a request that nobody waits for.
NOBODY: Final = 0
TTL_MAX_NS: Final = 10 * 24 * 3600 * NS_PER_S


def asked_commit(node: Desk, event: Asked[ops.Commit]) -> None:
    request = event.request
    message, ttl_ns = request.message, request.ttl_ns
    rest, untracked = taking.split(node, event.caller, "commit", request.targets, everything=request.all)
    picked = (
        select(
            node,
            event.caller,
            "commit",
            rest,
            everything=request.all,
            force=request.force,
            shared=request.shared,
        )
        if rest is not None
        else {}
    )
    if not message.strip():
        raise UsageError("a commit needs a message", "pact commit -m 'why'")
    if ttl_ns is not None and not TTL_MIN_NS <= ttl_ns <= TTL_MAX_NS:
        raise UsageError("--ttl must lie between 15m and 10d")
    ids = [r for members in picked.values() for r in members]
    if not ids and not untracked:
        node.reply(event.token, {"committed": [], "left": left(node)}, EXIT_DONE, "nothing to commit")
        return
    begin_commit(
        node,
        event,
        [*ids, *untracked],
        Committing(
            message,
            ttl_ns,
            force=request.force,
            untracked=untracked,
            named=bool(request.targets),
            without_content=request.without_content,
        ),
    )


def commit_by_rule(node: Desk, change: Change) -> None:
    """The run is done, and the rule for its writer accepts its work, in that owner's name. What cannot be accepted
    keeps its window.  # O5"""
    ids = [r for r in change.bound_together(writers.own_members(change)) if not change.members[r].also]
    if not ids:
        node.ruled.pop(change.id, None)
        return
    owner = change.owner
    caller = Caller(AGENT_CALLER.actor, owner)
    asked = Asked(node.t_ns, node.wall_ns, NOBODY, ops.Commit(), caller)
    begin_commit(node, asked, ids, Committing(f"by the rule for {owner.named}"), change.id)


def begin_commit(
    node: Desk, event: Asked[ops.Op], ids: Sequence[str], work: Committing, change: str | None = None
) -> None:
    """``change``: the only one that is concerned, if nothing else may settle it meanwhile."""
    require_whole(node, ids)
    state = node.state
    work.asked = {
        r: (c.id, list(c.members[r].also), c.members[r].actual)
        for r in node.in_turns(ids)
        if (c := state.change_of(r)) is not None
    }
    job = node.job("commit", event.caller, work, token=event.token, ids=tuple(ids), change=change)
    node.emit(Look(job.n, job.ids))


def require_whole(node: Desk, ids: Sequence[str]) -> None:
    """A committed resource must not require an uncommitted one.  # C6"""
    chosen = set(ids)
    for resource in node.in_turns(ids):
        declared = node.state.declared(resource)
        for need in declared.requires if declared else ():
            if need in node.state.member_of and need not in chosen:
                raise ConflictError(f"{resource} requires {need}, which is not committed", f"commit {need} with it")


def require_room(job: Job[Committing], event: Looked) -> None:
    """Every committed content must be restorable: if the store has no room for it, a person must decide. Raises
    UnreachableError.  # F63
    """
    if event.full and not job.work.without_content:
        names = sorted(event.full)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UnreachableError(
            f"the content store is full: there is no room to keep {', '.join(names[:5])}{more}; nothing was committed",
            "raise [state] store_limit, or lower keep, and restart; commit what has room by name; or --without-content",
        )


def looked_commit(node: Desk, job: Job[Committing], event: Looked) -> None:
    """Commit, if the machine is still as last recorded.  # C5"""
    node.finish(job)
    state = node.state
    moved: list[str] = []
    fresh = set(job.work.untracked)
    taking.refuse_named(node, job, event)
    require_room(job, event)
    for sighting in node.in_turns(event.sightings):
        if sighting.resource in fresh:
            continue
        change = state.change_of(sighting.resource)
        if change is None or change.state == life.ROLLING:
            raise ConflictError(f"too late: {sighting.resource} was settled or is being rolled back", "see pact log")
        if isinstance(sighting.observation, Unreadable):
            raise ConflictError(f"{sighting.resource} cannot be read now: {sighting.observation.why}")
        if why := taking.undeclarable(node.nature(sighting.resource), sighting.observation):
            raise ConflictError(
                f"{sighting.resource} {why}; nothing was committed", "remove it, or commit the others by name"
            )
        member, (cid, also, actual) = change.members[sighting.resource], job.work.asked[sighting.resource]
        # Another owner has it now, and nobody was asked about that owner.
        if (cid, also) != (change.id, list(member.also)):  # C9, S1
            raise ConflictError(f"{sighting.resource} was changed by {change.owner.user} meanwhile", "see pact diff")
        # If it is as declared, what it is exactly was not recorded.  # R14
        if member.owed and member.actual == actual and _is_as_declared(node, sighting):
            continue
        if not sighting.observation == member.actual == actual:
            moved.append(sighting.resource)
    if moved:
        node.sight(s for s in event.sightings if s.resource in moved)
        raise ConflictError(
            f"{', '.join(moved[:5])} changed again since it was last recorded", "look with pact diff, then commit again"
        )
    require_whole(node, job.ids)
    of_groups = [c for c in state.changes.values() if c.group and not c.members.keys().isdisjoint(job.ids)]
    for change in of_groups:
        bonds.require_free(node, change, "commit", job.work.force)
    committed = _record_commits(node, job, event)
    if job.change is not None:
        node.ruled.pop(job.change, None)
    taken_in, left_out = taking.record_commits(node, job, event)
    for change in of_groups:
        bonds.settled_alone(node, change, "committed", job.caller)
    if job.work.end_emergency:
        node.record(payloads.EmergencyEnded(how="commit", message=job.work.message), job.caller.actor)
    notes = [f"{r}: {why}; it can be declared but not restored" for r, why in event.unkept.items()]
    node.reply(job.token, {"committed": committed + taken_in, "left": left(node), "notes": notes + left_out})


def _is_as_declared(node: Desk, sighting: Sighting) -> bool:
    declared = node.state.declared(sighting.resource)
    assert declared is not None and not isinstance(sighting.observation, Unreadable)
    return node.deviation_n(sighting.resource, declared, sighting.observation) == 0


def owed(node: Desk, sightings: Iterable[Sighting]) -> dict[str, Sequence[str]]:
    """Who must still be told of what is committed. Who commits what is as declared says that they know it; another
    value says nothing of that.  # R14"""
    out = dict[str, Sequence[str]]()
    for sighting in node.in_turns(sightings):
        resource = sighting.resource
        moving = any(resource in ids for ids in node.converging.values())
        names = node.state.readers(resource) if moving else debts.of(node.state, resource)
        if names and (moving or not untold.is_there(node, resource, sighting.observation)):
            out[resource] = list(names)
    return out


def _record_commits(node: Desk, job: Job[Committing], event: Looked) -> list[Json]:
    state, ttl_ns = node.state, job.work.ttl_ns
    by_change: dict[str, dict[str, Declared]] = {}
    fresh = set(job.work.untracked)
    for sighting in node.in_turns(event.sightings):
        if sighting.resource in fresh:
            continue
        declared = state.declared(sighting.resource)
        assert declared is not None and not isinstance(sighting.observation, Unreadable)
        attrs = node.taken(sighting.resource, sighting.observation, declared.attrs)
        if attrs is not None and sighting.resource in event.secret:  # S2
            attrs = {**attrs, "secret": True}
        value = replace(declared, attrs=attrs, restorable=sighting.resource not in event.unkept)
        by_change.setdefault(state.member_of[sighting.resource], {})[sighting.resource] = value
    out = []
    expires_ns = None if ttl_ns is None else node.t_ns + ttl_ns
    expires = None if expires_ns is None else node.wall_of(expires_ns)
    still = owed(node, event.sightings)
    for cid, resources in by_change.items():
        change = state.changes[cid]
        ended = sorted(r for r in resources if r in state.ttls)
        split, shared = len(resources) < len(change.members), shared_with(change, resources)
        # One decision in several records, so that no record exceeds the journal's limit.
        for names, part in in_parts(list(resources)):
            node.record(
                payloads.Committed(
                    change=cid,
                    owner=change.owner,
                    committer=job.caller.owner,
                    resources={r: resources[r].to_json() for r in node.in_turns(names)},
                    message=job.work.message,
                    split=split,
                    expires_ns=expires_ns,
                    expires=expires,
                    also=shared_with(change, names),
                    part=part,
                    owed={r: still[r] for r in names if r in still},
                ),
                job.caller.actor,
            )
        out.append(
            {
                "change": cid,
                "resources": sorted(resources),
                "seq": state.seq,
                "split": split,
                "also": _names(shared),
                "trials_ended": ended,
                "expires": expires,
            }
        )
    return out


def _names(shared: Mapping[str, Sequence[Owner]]) -> list[str]:
    return sorted({o.user for also in shared.values() for o in also})


def expire_commits(node: Desk, resource: str) -> None:
    """A commit's TTL ended: the earlier value is declared again, and what is there now becomes drift.  # T1"""
    state = node.state
    ttl, committed = state.ttls.get(resource), state.declared(resource)
    if ttl is None or committed is None:
        return
    owner = ttl.owner
    change = state.change_of(resource)
    frozen = change is not None and change.state == life.ROLLING
    if frozen:  # decide again when the rollback has ended
        node.retry_ttl(resource)
        return
    node.record(payloads.CommitExpired(resources={resource: ttl.earlier}, commit=ttl.seq, owner=owner))
    earlier = state.declared(resource)
    if earlier is None:
        return
    actual = change.members[resource].actual if change is not None else committed.attrs
    sighting_owner = None if change is not None else owner
    node.sight([Sighting(resource, actual, sighting_owner)])
    node.recheck([resource])
