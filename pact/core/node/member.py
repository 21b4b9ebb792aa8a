"""The member's side of a group: vote, and carry out the decision. Only the root asks, through the tree; ``join`` comes
before.

A yes vote is durable before it leaves the node, and it binds: from then on the node asks the root and never decides
alone, unless a person forces it on this node, which is recorded.  # G3
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from pact.core.node import below, commit, debts, payloads, recording, replies, rollback
from pact.core.node import change as life
from pact.core.node.bonds import check_fence, stopped_here
from pact.core.node.change import Change
from pact.core.node.desk import Desk
from pact.core.node.events import AGENT_CALLER, Asked, Caller, Look, Looked, Probe, Probed, Sighting
from pact.core.node.jobs import Job
from pact.core.node.membership import Membership
from pact.core.node.untold import UNSEEN
from pact.core.ops import GroupDecide, GroupState, GroupVote, MemberExtend
from pact.core.phases import DECIDED, NOT_APPLIED, OPEN, PREPARED
from pact.errors import EXIT_BLOCKED, EXIT_FAILED, ConflictError
from pact.model import Attrs, Declared, Holder, Json, Unreadable

HOLDERS_MAX: Final = 20


# -- vote -----------------------------------------------------------------------------------------------------------


def asked_vote(node: Desk, event: Asked[GroupVote]) -> None:
    """Answer the root's question for a vote. A repeated question gets the same answer."""
    request = event.request
    check_fence(node.state, request.fence)
    gid, action, ballot = request.group, request.action, request.ballot
    state = node.state
    group = state.groups.get(gid)
    if group is None:
        _vote_of_a_stranger(node, event, gid, action)
        return
    # Already bound; the root's log was restored to a state before the decision.
    if group.phase == DECIDED and action == group.action:
        node.reply(event.token, {"vote": "yes"})
        return
    if group.phase == DECIDED:
        raise ConflictError(f"{gid} is decided already: {group.action}")
    if ballot < group.ballot:  # the root has forgotten this ballot, or the message was delayed for long
        raise ConflictError(f"stale ballot {ballot}: this node has answered {group.ballot}")
    if group.phase == PREPARED and ballot == group.ballot:
        node.reply(event.token, {"vote": "yes"})
        return
    for job in node.jobs.values():
        if job.kind == "group_vote" and (job.group, job.work.ballot) == (gid, ballot):
            node.refuse(job.token, ConflictError("asked again"))  # one answer, to the latest request
            job.token = event.token
            return
    why = _cannot_vote_yes(node, group, request)
    if why:
        _say_no(node, group, request, event.caller, event.token, why, [])
        return
    ids = tuple(group.resources)
    job = node.job("group_vote", event.caller, request, token=event.token, group=gid, ids=ids)
    if action == "commit":
        node.emit(Look(job.n, ids))
    else:
        job.steps = below.steps_for(node, [r for r in ids if r in state.member_of])
        node.emit(Probe(job.n, job.steps, consumers=True, force=request.force))


def _vote_of_a_stranger(node: Desk, event: Asked[GroupVote], gid: str, action: str) -> None:
    """The answer for a group that was never applied here, or has ended here: nothing blocks a rollback, but nothing can
    be committed. If the group was committed, only a root with a restored log asks for a rollback: other members must
    not roll back.
    """
    outcome = node.state.groups_done.get(gid, "never applied here")
    if action == "rollback" and outcome == "committed":
        node.reply(event.token, {"vote": "no", "why": f"{gid} has ended here: committed", "holders": []})
    elif action == "rollback":
        node.reply(event.token, {"vote": "yes", "nothing": outcome})
    elif outcome == "committed":
        node.reply(event.token, {"vote": "yes"})
    else:
        absent = gid not in node.state.groups_done
        node.reply(event.token, {"vote": "no", "why": f"{gid}: {outcome}", "holders": [], "absent": absent})


def _cannot_vote_yes(node: Desk, group: Membership, request: GroupVote) -> str:
    """Why the vote is no, before any observation."""
    state = node.state
    if any(j.change in group.changes or j.group == group.id for j in node.jobs.values()):
        return "it is being changed just now"
    if request.action == "commit":
        return ""
    for resource in group.resources:
        change = state.change_of(resource)
        if change is not None and change.state == life.ROLLING:
            return f"{resource} is being rolled back with {change.id}"
    why = stopped_here(node, group, request.force)
    if why:
        return why
    change = state.changes.get(group.change or "")
    return rollback.refusal(node, change, "expired") if change is not None and request.automatic else ""


def _say_no(
    node: Desk,
    group: Membership,
    request: GroupVote,
    caller: Caller,
    token: int | None,
    why: str,
    holders: Sequence[Holder],
) -> None:
    named = [h.to_json() for h in holders]
    change = node.state.changes.get(group.change or "")
    again = (
        group.why == why
        and group.action == request.action
        and (
            change is None
            or request.action == "commit"
            or (change.state == life.BLOCKED and list(change.holders) == list(holders))
        )
    )
    if not again:
        node.record(
            payloads.GroupPrepared(
                group=group.id,
                change=group.change,
                action=request.action,
                ballot=request.ballot,
                fence=request.fence,
                vote="no",
                why=why,
                holders=list(holders),
            ),
            caller.actor,
        )
        if request.action == "rollback" and change is not None and change.state == life.BLOCKED:
            node.record(
                payloads.RollbackBlocked(
                    change=change.id, group=group.id, cause="group", reason=why, holders=list(holders)
                ),
                caller.actor,
            )
    node.reply(token, {"vote": "no", "why": why, "holders": named[:HOLDERS_MAX]})


def looked_vote(node: Desk, job: Job[GroupVote], event: Looked) -> None:
    """Commit: every resource must be as the group wants it; otherwise the member has diverged.  # G6"""
    node.finish(job)
    group = _still_asked(node, job)
    node.sight(event.sightings)
    apart = []
    for sighting in event.sightings:
        seen = sighting.observation
        change = node.state.change_of(sighting.resource)
        if isinstance(seen, Unreadable):
            apart.append(f"{sighting.resource} cannot be read: {seen.why}")
        elif node.rules.distance_n(sighting.resource, group.resources[sighting.resource], seen):
            apart.append(_diverged(group, sighting.resource, change))
    try:
        commit.require_whole(node, job.ids)
    except ConflictError as exc:
        apart.append(exc.message)
    if apart:
        _say_no(node, group, job.work, job.caller, job.token, "; ".join(apart[:5]), [])
    else:
        _say_yes(node, group, job)


def probed_vote(node: Desk, job: Job[GroupVote], event: Probed) -> None:
    """Rollback: no process may be using what would be restored.  # F5"""
    node.finish(job)
    group = _still_asked(node, job)
    node.sight(event.sightings)
    unread = below.unread(node, job.steps, event.sightings)
    if event.holders:
        _say_no(node, group, job.work, job.caller, job.token, _used_by(event.holders), event.holders)
    elif unread or event.refusals:
        _say_no(node, group, job.work, job.caller, job.token, "; ".join([*unread, *event.refusals][:5]), [])
    else:
        _say_yes(node, group, job)


def _used_by(holders: Sequence[Holder]) -> str:
    return replies.holder_text(holders).removeprefix("blocked: ")


def _still_asked(node: Desk, job: Job[GroupVote]) -> Membership:
    """Observing may take long: the vote counts only if meanwhile the node obeyed no newer root and nothing was
    decided.  # G4"""
    check_fence(node.state, job.work.fence)
    group = node.state.groups.get(job.group)
    if group is None or group.phase != OPEN or job.work.ballot < group.ballot:
        raise ConflictError(f"{job.group} was settled meanwhile")
    return group


def _say_yes(node: Desk, group: Membership, job: Job[GroupVote]) -> None:
    node.record(
        payloads.GroupPrepared(
            group=group.id,
            change=group.change,
            action=job.work.action,
            ballot=job.work.ballot,
            fence=job.work.fence,
            vote="yes",
            why="",
            holders=[],
        ),
        job.caller.actor,
    )
    node.reply(job.token, {"vote": "yes"})


def asked_state(node: Desk, event: Asked[GroupState]) -> None:
    """The member's state, for people. It comes from the records; nothing is observed or changed."""
    check_fence(node.state, event.request.fence)
    gid, state = event.request.group, node.state
    group = state.groups.get(gid)
    if group is None:
        node.reply(event.token, {"state": state.groups_done.get(gid, NOT_APPLIED)})
        return
    apart = []
    for resource, wanted in group.resources.items():
        change, declared = state.change_of(resource), state.declared(resource)
        actual = change.members[resource].actual if change is not None else declared.attrs if declared else None
        if node.rules.distance_n(resource, wanted, actual):
            apart.append(_diverged(group, resource, change))
    node.reply(event.token, {"state": "; ".join(apart[:5]) or "member"})


def _diverged(group: Membership, resource: str, change: Change | None) -> str:
    by = change.owner.user if change is not None and change.id != group.change else "unattributed"
    return f"diverged: {resource} was changed again by {by}"


# -- the decision ---------------------------------------------------------------------------------------------------


def asked_decide(node: Desk, event: Asked[GroupDecide]) -> None:
    """Carry out a decision: commit, rollback, abort or unknown. Carrying it out twice has the same result as once."""
    request = event.request
    fence = check_fence(node.state, request.fence)
    gid, decision, ballot = request.group, request.decision, request.ballot
    group, force = node.state.groups.get(gid), request.force
    if group is None:
        node.reply(event.token, {"done": True, "outcome": node.state.groups_done.get(gid, "never applied here")})
        return
    if decision == "unknown":
        _forgotten(node, event, group)
        return
    if group.phase == DECIDED and decision != group.action:
        raise ConflictError(f"{gid} is decided already: {group.action}")  # G1: a group has one decision
    if decision == "abort":
        _abort(node, event, group, ballot, fence)
        return
    if group.phase != DECIDED or (force and not group.force):
        lost = _lost(node, group)
        node.record(
            payloads.GroupDecided(
                group=gid,
                ballot=ballot,
                fence=fence,
                decision=decision,
                action=decision,
                why=request.why,
                lost=lost,
                force=force,
            ),
            event.caller.actor,
        )
        for job in [j for j in node.jobs.values() if j.kind in ("group_vote", "apply") and j.group == gid]:
            node.finish(job)
        for cid in group.changes:
            if (change := node.state.changes.get(cid)) is not None and change.intents:
                node.window_opened(cid)  # its apply hangs and was ended above: the remaining steps will not be done
    if decision == "commit":
        _refuse_rolling(node, group)
    node.deciding.setdefault(gid, []).append(event.token)
    if decision == "commit":
        _commit(node, group, event)
    else:
        roll_back(node, group, event.caller, force=force)


def _refuse_rolling(node: Desk, group: Membership) -> None:
    """A resource that another rollback has frozen is committed after that rollback: the root asks again. Raises
    ConflictError.  # R2"""
    own = node.state.changes.get(group.change or "")
    for resource in (*group.resources, *(own.bound_together(group.resources) if own is not None else ())):
        change = node.state.change_of(resource)
        if change is not None and change.state == life.ROLLING:
            raise ConflictError(f"{resource} is being rolled back with {change.id}", "it is committed after that")


def _forgotten(node: Desk, event: Asked[GroupDecide], group: Membership) -> None:
    """The root's log does not contain this group: no timer of the root will end it.  # A4

    If the node voted yes, the group stays undecided until a person forces it here. If it is decided, the decision is
    carried out. Otherwise the change is blocked here and reported: nobody knows how the group ended elsewhere.
    """
    if group.phase == PREPARED:
        why = f"undecided: the root's log has no {group.id}"
        node.reply(event.token, {"done": False, "why": why, "holders": []}, EXIT_FAILED, why)
        return
    if group.phase == DECIDED:
        node.deciding.setdefault(group.id, []).append(event.token)
        roll_back(node, group, event.caller)
        return
    change = node.state.changes.get(group.change or "")
    node.record(payloads.GroupFinished(group=group.id, outcome="forgotten by the root"), event.caller.actor)
    if change is not None and change.members:
        node.record(
            payloads.RollbackBlocked(
                change=change.id,
                cause="group",
                holders=[],
                reason=f"the root's log has no {group.id} any more: commit or roll back on this node",
            ),
            event.caller.actor,
        )
    node.reply(event.token, {"done": True, "outcome": "forgotten by the root"})


def _abort(node: Desk, event: Asked[GroupDecide], group: Membership, ballot: int, fence: int) -> None:
    if ballot < group.ballot and group.phase == PREPARED:
        raise ConflictError(f"stale ballot {ballot}: this node has answered {group.ballot}")
    action, why = event.request.action, event.request.why
    for job in [j for j in node.jobs.values() if j.kind == "group_vote" and j.group == group.id]:
        # That vote has ended: a hanging observation must not block another vote, and binds nobody.
        if job.work.ballot <= ballot:
            node.finish(job)
            node.refuse(job.token, ConflictError(f"the vote has ended: {why}"))
    change = node.state.changes.get(group.change or "")
    blocked = action == "rollback" and change is not None and change.state != life.BLOCKED
    if group.phase == PREPARED or blocked:
        node.record(
            payloads.GroupDecided(
                group=group.id, ballot=ballot, fence=fence, decision="abort", action=action, why=why, lost=[]
            ),
            event.caller.actor,
        )
    node.reply(event.token, {"done": True, "outcome": "aborted"})


def _lost(node: Desk, group: Membership) -> list[Json]:
    """Changes that other owners made again on the group's resources: a rollback takes these resources from them and
    reports that.  # G6"""
    out = []
    for resource in group.resources:
        change = node.state.change_of(resource)
        if change is not None and change.id != group.change:
            out.append({"resource": resource, "change": change.id, "owner": change.owner.to_json()})
    return out


def _commit(node: Desk, group: Membership, event: Asked[GroupDecide]) -> None:
    """Declare what the group wants. What the machine has instead becomes drift of the owner who made it."""
    state = node.state
    apart = []
    for resource in group.resources:
        change = state.change_of(resource)
        if change is not None:
            actual = change.members[resource].actual
            if node.rules.distance_n(resource, group.resources[resource], actual):
                apart.append(Sighting(resource, actual, change.owner))
    resources = {}
    for resource, attrs in group.resources.items():
        declared = state.declared(resource) or Declared(attrs)
        resources[resource] = replace(declared, attrs=_over(declared.attrs, attrs), restorable=True).to_json()
    own = state.changes.get(group.change or "")
    for resource in own.bound_together(group.resources) if own is not None else ():  # C8
        followed = state.declared(resource)
        if resource not in resources and followed is not None and own is not None:
            attrs = node.taken(resource, own.members[resource].actual, followed.attrs)
            resources[resource] = replace(followed, attrs=attrs).to_json()
    ttl_ns = event.request.ttl_ns
    expires_ns = None if ttl_ns is None else node.t_ns + ttl_ns
    node.record(
        payloads.Committed(
            change=group.change or "",
            group=group.id,
            owner=group.owner,
            committer=event.caller.owner,
            resources=resources,
            message=event.request.message,
            split=False,
            expires_ns=expires_ns,
            expires=None if expires_ns is None else node.wall_of(expires_ns),
            owed=_owed(node, resources),
        ),
        event.caller.actor,
    )
    node.record(payloads.GroupFinished(group=group.id, outcome="committed"), event.caller.actor)
    node.sight(apart)
    node.recheck(tuple(resources))


def _owed(node: Desk, resources: Iterable[str]) -> dict[str, Sequence[str]]:
    """Who must still be told of what is committed, as far as it is known: nothing is looked at now.  # R14"""
    seen = []
    for resource in resources:
        change = node.state.change_of(resource)
        if change is not None:
            seen.append(Sighting(resource, change.members[resource].actual))
        elif debts.of(node.state, resource) or any(resource in ids for ids in node.converging.values()):
            seen.append(Sighting(resource, UNSEEN))
    return commit.owed(node, seen)


def _over(declared: Attrs | None, wanted: Attrs | None) -> Attrs | None:
    """The group's wanted value, completed with declared attributes that it does not name (owner, mode, secret)."""
    if declared is None or wanted is None or declared.get("type") != wanted.get("type") or "fstype" in wanted:
        return wanted
    kept = {k: v for k, v in declared.items() if k not in ("reads", "sha256", "size", "target")}
    return {**kept, **wanted}


def roll_back(node: Desk, group: Membership, caller: Caller, *, force: bool = False) -> None:
    """Start the parts of a decided rollback that are still missing. Parts that already run go on."""
    state, force = node.state, force or group.force
    if stopped_here(node, group, force):
        return  # the root gets the reason, and asks again
    theirs: dict[str, list[str]] = {}
    for resource in group.resources:
        change = state.change_of(resource)
        if change is None or change.id in group.changes or change.state == life.ROLLING or change.id in node.busy:
            continue
        theirs.setdefault(change.id, []).append(resource)
    for cid, ids in theirs.items():
        recording.split(node, state.changes[cid], node.new_change_id(), ids, caller.actor, group=group.id)
    for cid in group.changes:
        found = state.changes.get(cid)
        if found is not None and found.state != life.ROLLING and cid not in node.busy and found.members:
            rollback.start_rollback(node, found, "group", caller, force=force)


def finish_done(node: Desk) -> None:
    """Finish decided rollbacks whose work is done, and answer the root's questions. Called once for each step.  # G5"""
    state = node.state
    for group in [g for g in state.groups.values() if g.phase == DECIDED and g.action == "rollback"]:
        if state.changes.keys().isdisjoint(group.changes):
            node.record(payloads.GroupFinished(group=group.id, outcome="rolled back"))
    for gid in list(node.deciding):
        found = state.groups.get(gid)
        if found is None:
            for token in node.deciding.pop(gid):
                node.reply(token, {"done": True, "outcome": state.groups_done.get(gid, "")})
        elif node.busy.keys().isdisjoint(found.changes):
            left = [state.changes[c] for c in found.changes if c in state.changes]
            result, code, text = _undone(left, stopped_here(node, found, found.force))
            for token in node.deciding.pop(gid):
                node.reply(token, result, code, text)


def _undone(left: Sequence[Change], stop: str) -> tuple[Json, int, str]:
    holders = [h for c in left for h in c.holders]
    why = stop or "; ".join(c.reason for c in left if c.reason)
    if holders and not stop:
        why = _used_by(holders)
    return (
        {"done": False, "why": why, "holders": [h.to_json() for h in holders[:HOLDERS_MAX]]},
        EXIT_BLOCKED if holders and not stop else EXIT_FAILED,
        why,
    )


def asked_extend(node: Desk, event: Asked[MemberExtend]) -> None:
    """The root moved the group's end, or reopened the group."""
    fence, gid = check_fence(node.state, event.request.fence), event.request.group
    group = node.state.groups.get(gid)
    if group is None:
        node.reply(event.token, {"done": True})
        return
    if group.phase != OPEN:
        raise ConflictError(f"{gid} is being settled")
    left_ns = event.request.left_ns
    change = node.state.changes.get(group.change or "")
    if change is not None:
        node.record(
            payloads.WindowExtended(
                change=change.id,
                group=gid,
                by_ns=0,
                fence=fence,
                ends_ns=node.t_ns + left_ns,
                ends=node.wall_of(node.t_ns + left_ns),
                reopened=change.state in (life.BLOCKED, life.FAILED),
            ),
            event.caller.actor,
        )
    node.reply(event.token, {"done": True})


def resume(node: Desk) -> None:
    """After a start: begin decided rollbacks that had not begun. A member of a cluster first waits for its root, which
    may have stopped the whole fleet since and will send the decision again.  # G9
    """
    if node.t_ns < node.alone_until_ns:
        return
    for group in list(node.state.groups.values()):
        if group.phase == DECIDED and group.action == "rollback":
            roll_back(node, group, AGENT_CALLER)
