"""Commit, roll back, extend: how changes end.

A rollback is probed first (observe again, look for consumers, keep what would be overwritten), then recorded as
started, then carried out, then verified and recorded.  # A4, F5, R1-R6
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from pact.core import below, groups, taking
from pact.core import change as life
from pact.core.change import Change
from pact.core.events import AGENT_CALLER, Acted, Asked, Caller, Look, Looked, Probe, Probed, Sighting
from pact.core.plan import ordered
from pact.core.records import in_pieces
from pact.core.select import select, shared_with, some
from pact.core.state import HOUR_NS
from pact.errors import (
    EXIT_BLOCKED,
    EXIT_DONE,
    EXIT_FAILED,
    ConflictError,
    PactError,
    UnreachableError,
    UsageError,
    gravest,
)
from pact.model import NS_PER_S, Declared, Holder, Unreadable

if TYPE_CHECKING:
    from pact.core.node import Job, Node

TTL_MIN_NS: Final = 15 * 60 * NS_PER_S
TTL_MAX_NS: Final = 10 * 24 * 3600 * NS_PER_S
AUTO_ROLLBACKS_MAX: Final = 2
#: So many runs in a row that end in the middle of the same job: it is left to a person.  # F65
KILLED_MAX: Final = 3
LOOKS_MAX: Final = 3  # so often what joins a plan that is being looked at is looked at, too
AUTOMATIC: Final = ("expired", "retry")


@dataclass(slots=True)
class Waiting:
    """A request that several rollbacks answer together."""

    jobs: set[int] = field(default_factory=set)
    results: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int = EXIT_DONE
    messages: list[str] = field(default_factory=list)
    hint: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


# -- commit ---------------------------------------------------------------------------------------------------------


def asked_commit(node: Node, event: Asked) -> None:
    message, ttl_ns = event.args.get("message", ""), event.args.get("ttl_ns")
    rest, untracked = taking.split(node, event, "commit")
    picked = select(node, rest, "commit") if rest is not None else {}
    if not message.strip():
        raise UsageError("a commit needs a message", "pact commit -m 'why'")
    if ttl_ns is not None and not TTL_MIN_NS <= ttl_ns <= TTL_MAX_NS:
        raise UsageError("--ttl must lie between 15m and 10d")
    ids = [r for members in picked.values() for r in members]
    if not ids and not untracked:
        node.reply(event.token, {"committed": [], "left": _left(node)}, EXIT_DONE, "nothing to commit")
        return
    begin_commit(node, event, [*ids, *untracked], {
        "message": message, "ttl_ns": ttl_ns, "force": bool(event.args.get("force")),
        "untracked": untracked, "named": bool(event.args.get("targets")),
        "without_content": bool(event.args.get("without_content"))})  # fmt: skip


def begin_commit(node: Node, event: Asked, ids: Sequence[str], args: dict[str, Any]) -> None:
    require_whole(node, ids)
    state = node.state
    seen = {r: (c.id, list(c.members[r].also), c.members[r].actual)
            for r in ids if (c := state.change_of(r)) is not None}  # fmt: skip
    job = node.job("commit", event.caller, token=event.token, ids=tuple(ids), args={**args, "asked": seen})
    node.emit(Look(job.n, job.ids))


def require_whole(node: Node, ids: Sequence[str]) -> None:
    """A committed resource must not require an uncommitted one.  # C6"""
    chosen = set(ids)
    for resource in ids:
        declared = node.state.declared(resource)
        for need in declared.requires if declared else ():
            if need in node.state.member_of and need not in chosen:
                raise ConflictError(f"{resource} requires {need}, which is not committed", f"commit {need} with it")


def require_room(job: Job, event: Looked) -> None:
    """What is committed can be restored: where the store has no room, that is for a person to decide. Raises
    UnreachableError.  # F63
    """
    if event.full and not job.args.get("without_content"):
        names = sorted(event.full)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UnreachableError(
            f"the content store is full: there is no room to keep {', '.join(names[:5])}{more}; nothing was committed",
            "raise [state] store_limit, or lower keep, and restart; commit what has room by name; or --without-content",
        )


def looked_commit(node: Node, job: Job, event: Looked) -> None:
    """The machine must still be as last recorded.  # C5"""
    node.finish(job)
    state = node.state
    moved: list[str] = []
    fresh = set(job.args.get("untracked", ()))
    taking.refuse_named(job, event)
    require_room(job, event)
    for sighting in event.sightings:
        if sighting.resource in fresh:
            continue
        change = state.change_of(sighting.resource)
        if change is None or change.state == life.ROLLING:
            raise ConflictError(f"too late: {sighting.resource} was settled or is being rolled back", "see pact log")
        if isinstance(sighting.observation, Unreadable):
            raise ConflictError(f"{sighting.resource} cannot be read now: {sighting.observation.why}")
        if why := taking.undeclarable(sighting.resource, sighting.observation):
            raise ConflictError(f"{sighting.resource} {why}; nothing was committed",
                                "remove it, or commit the others by name")  # fmt: skip
        member, (cid, also, actual) = change.members[sighting.resource], job.args["asked"][sighting.resource]
        if (cid, also) != (change.id, list(member.also)):  # another's by now, whom nobody has asked about  # C9, S1
            raise ConflictError(f"{sighting.resource} was changed by {change.owner.user} meanwhile", "see pact diff")
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
        groups.require_free(node, change, "commit", bool(job.args.get("force")))
    committed = _record_commits(node, job, event)
    taken_in, left_out = taking.record_commits(node, job, event)
    for change in of_groups:
        groups.left_alone(node, change, "committed", job.caller)
    if job.args.get("end_emergency"):
        node.record("emergency_ended", {"how": "commit", "message": job.args["message"]}, job.caller.actor)
    notes = [f"{r}: {why}; it can be declared but not restored" for r, why in event.unkept.items()]
    node.reply(job.token, {"committed": committed + taken_in, "left": _left(node), "notes": notes + left_out})


def _record_commits(node: Node, job: Job, event: Looked) -> list[dict[str, Any]]:
    state, ttl_ns = node.state, job.args["ttl_ns"]
    by_change: dict[str, dict[str, Declared]] = {}
    fresh = set(job.args.get("untracked", ()))
    for sighting in event.sightings:
        if sighting.resource in fresh:
            continue
        declared = state.declared(sighting.resource)
        assert declared is not None and not isinstance(sighting.observation, Unreadable)
        attrs = sighting.observation
        if attrs is not None and sighting.resource in event.secret:  # S2
            attrs = {**attrs, "secret": True}
        value = replace(declared, attrs=attrs, restorable=sighting.resource not in event.unkept)
        by_change.setdefault(state.member_of[sighting.resource], {})[sighting.resource] = value
    out = []
    expires_ns = None if ttl_ns is None else node.t_ns + ttl_ns
    expires = None if expires_ns is None else node.wall_of(expires_ns)
    for cid, resources in by_change.items():
        change = state.changes[cid]
        ended = sorted(r for r in resources if r in state.ttls)
        split, shared = len(resources) < len(change.members), shared_with(change, resources)
        parts = list(in_pieces(list(resources)))
        for at, names in enumerate(parts):  # one decision, and no record that outgrows what a journal takes
            node.record("committed", {
                "change": cid, "owner": change.owner.to_json(), "committer": job.caller.owner.to_json(),
                "resources": {r: resources[r].to_json() for r in names}, "message": job.args["message"],
                "split": split, "expires_ns": expires_ns, "expires": expires, **shared_with(change, names),
                **({"part": [at + 1, len(parts)]} if len(parts) > 1 else {}),
            }, job.caller.actor)  # fmt: skip
        out.append({"change": cid, "resources": sorted(resources), "seq": state.seq, "split": split,
                    "also": _names(shared), "trials_ended": ended, "expires": expires})  # fmt: skip
    return out


def _names(shared: Mapping[str, Any]) -> list[str]:
    return sorted({str(o["user"]) for also in shared.get("also", {}).values() for o in also})


def _left(node: Node) -> list[dict[str, Any]]:
    return [{"change": c.id, "owner": c.owner.user} for c in node.state.changes.values() if c.members]


# -- rollback -------------------------------------------------------------------------------------------------------


def asked_rollback(node: Node, event: Asked) -> None:
    dry, force = bool(event.args.get("dry_run")), bool(event.args.get("force"))
    rest, untracked = taking.split(node, event, "rollback")
    picked = select(node, rest, "rollback") if rest is not None else {}
    refuse_in_observe_mode(node, dry)
    if untracked:
        refuse_held_or_busy(node, "", force or dry)
    for cid in picked:
        refuse_held_or_busy(node, cid, force or dry)
    if not picked and not untracked:
        node.reply(event.token, {"rolled_back": [], "left": _left(node)}, EXIT_DONE, "nothing to roll back")
        return
    rollback_many(node, event, picked, dry=dry, force=force)
    taking.begin_removal(node, event, untracked, dry=dry, force=force)


def refuse_in_observe_mode(node: Node, dry: bool) -> None:
    if not node.state.settings.enforce and not dry:
        raise ConflictError("the node is in observe mode: nothing is rolled back",
                            "set [mode] enforcement = \"enforce\" and restart the agent")  # fmt: skip


def refuse_held_or_busy(node: Node, cid: str, force: bool) -> None:
    holds = node.state.held_by(cid)
    if holds and not force:
        hold = holds[0]
        raise ConflictError(f"{cid or 'the node'} is held by {hold.owner['user']}: {hold.reason}", "use --force")
    if cid in node.busy:
        raise ConflictError(f"a rollback of {cid} is being prepared already", "see pact status")


def rollback_many(node: Node, event: Asked, picked: Mapping[str, Sequence[str]], *, dry: bool, force: bool,
                  extra: dict[str, Any] | None = None) -> None:  # fmt: skip
    """Roll each of these back; one reply when the last has ended."""
    waiting = Waiting(extra=extra or {})
    node.waiting[event.token] = waiting
    begun: list[tuple[Change, tuple[str, ...]]] = []
    for cid, ids in picked.items():
        change = node.state.changes[cid]
        if len(ids) < len(change.members) and not dry:
            into = node.new_change_id()
            node.record("change_split", {"change": cid, "into": into, "resources": list(ids)}, event.caller.actor)
            change = node.state.changes[into]
        begun.append((change, tuple(ids)))
    for change, ids in begun:
        start_rollback(node, change, "manual", event.caller, token=event.token, force=force, dry=dry, ids=ids)


def start_rollback(node: Node, change: Change, cause: str, caller: Caller, *, token: int | None = None,
                   force: bool = False, dry: bool = False, ids: tuple[str, ...] = ()) -> None:  # fmt: skip
    """Ask the shell to look before anything is touched; or refuse what a person should decide."""
    ids = ids or tuple(change.members)
    job = node.job("rollback", caller, token=token, change=change.id, cause=cause, ids=ids,
                   args={"force": force, "dry": dry})  # fmt: skip
    if token is not None:
        node.waiting[token].jobs.add(job.n)
    reason = refusal(node, change, cause)
    if reason:
        block(node, job, change, reason, [])
        return
    try:
        job.steps, job.planned_at = node.steps_for(ids), node.state.seq
    except ConflictError as exc:
        block(node, job, change, exc.message, [])
        return
    node.emit(Probe(job.n, job.steps, consumers=True, force=force, dry=dry))


def refusal(node: Node, change: Change, cause: str) -> str:
    """Why a rollback that nobody has just asked for should wait for a person.  # R3"""
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
            return f"{resource} was rolled back {len(times)} times within the hour: contended by {change.owner.user}"
    return ""


def killed_text(times: int) -> str:
    return f"the agent was killed {times} times in a row while it was at this"


def resume_rollback(node: Node, change: Change, reset: Mapping[str, Sighting]) -> None:
    """Go on with a rollback that a crash cut off. Steps already done are found done.  # R6"""
    assert change.rolling is not None
    job = node.job("rollback", AGENT_CALLER, change=change.id, cause=change.rolling["cause"],
                   ids=tuple(change.members), args={"force": False, "dry": False, "resumed": True})  # fmt: skip
    if (times := node.killed.pop(change.id, 0)) >= KILLED_MAX:
        block(node, job, change, killed_text(times), [])
        return
    joined = below.resumed(node, change)
    known = {s.id for s in joined}
    steps = [*(s for s in node.steps_for(job.ids) if s.id not in known), *joined]
    for at, step in enumerate(steps):
        seen = reset.get(step.id)
        if seen is not None and not isinstance(seen.observation, Unreadable):
            steps[at] = replace(step, actual=seen.observation)
    job.steps = ordered(steps)
    node.converging[job.n] = frozenset(s.id for s in job.steps)
    node.emit(Probe(job.n, job.steps, consumers=True))


def probed_rollback(node: Node, job: Job, event: Probed) -> None:
    state = node.state
    change = state.changes.get(job.change or "")
    if job.args.get("untracked"):
        taking.probed_removal(node, job, event)
        return
    if change is None:
        raise ConflictError(f"{job.change} was settled while its rollback was prepared", "see pact log")
    if job.args.get("resumed"):
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
        job.steps, job.planned_at = node.steps_for(ids), node.state.seq
        if job.looks < LOOKS_MAX and below.unseen(job.steps, event.sightings):
            job.looks += 1
            node.emit(Probe(job.n, job.steps, consumers=True, force=job.args["force"], dry=job.args["dry"]))
            return
    refusals = [*below.unread(node, job.steps, event.sightings), *event.refusals]
    job.steps, job.args["notes"] = below.filled(job.steps, change.members, event.sightings), list(event.notes)
    if job.args["dry"]:  # it ends as the real one would
        why = holder_text(event.holders) if event.holders else "; ".join(refusals[:5])
        done(node, job, {
            "change": change.id, "plan": [s.to_json() for s in job.steps], "refused": refusals,
            "notes": job.args["notes"], "consumers": [h.to_json() for h in event.holders]},
            EXIT_BLOCKED if event.holders else EXIT_FAILED if refusals else EXIT_DONE,
            f"the rollback of {change.id} would not be done: {why}" if why else "")  # fmt: skip
    elif event.holders:
        block(node, job, change, "consumers", event.holders)
    elif refusals:
        block(node, job, change, "; ".join(refusals[:5]), [])
    else:
        wanted = frozenset(ids)
        _leave_out(node, job, change, [r for r in change.members if r not in wanted])
        node.record("rollback_started", {
            "change": change.id, "cause": job.cause, "owner": change.owner.to_json(), "skipped": [],
            "plan": [s.to_json() for s in job.steps], "saves": dict(event.saves), **shared_with(change, ids),
            **({"notes": job.args["notes"]} if event.notes else {})}, job.caller.actor)  # fmt: skip
        below.act(node, job, event.saves, [s.id for s in job.steps])


def _leave_out(node: Node, job: Job, change: Change, late: list[str]) -> None:
    """What joined the change while its rollback was prepared was not looked at: it goes on by itself.  # R2"""
    if late:
        node.record("change_split", {"change": change.id, "into": node.new_change_id(), "resources": late,
                                     "ambient": change.ambient}, job.caller.actor)  # fmt: skip


def _still_wanted(node: Node, job: Job, change: Change) -> bool:
    """An automatic rollback gives way to what happened while it was prepared: extension, hold, emergency."""
    if job.cause == "expired":
        return node.due(change)
    group = node.state.groups.get(change.group) if job.cause == "group" else None
    if group is not None:
        return not groups.stopped_here(node, group, job.args["force"])
    if job.cause == "retry":
        return change.state == life.BLOCKED and not node.state.suspended and not node.state.held_by(change.id)
    return True


def _probed_resumed(node: Node, job: Job, change: Change, event: Probed) -> None:
    if event.holders or event.refusals:
        why = holder_text(event.holders) if event.holders else "; ".join(event.refusals)
        done = {s.resource for s in event.sightings if not _differs(node, s)}
        results = {r: "" if r in done else why for r in job.ids}
        acted_rollback(node, job, Acted(event.t_ns, event.wall_ns, job.n, results, event.sightings))
        return
    # what the record of the start does not name was written since, and is nobody's to take away  # R4
    saved = (change.rolling or {}).get("saved")
    saves = event.saves if saved is None else {
        r: s for r, s in event.saves.items() if s.get("sha256") is None or saved.get(r) == s["sha256"]}  # fmt: skip
    below.act(node, job, saves, [s.id for s in job.steps], resumed=True)


def _differs(node: Node, sighting: Sighting) -> bool:
    declared: Declared | None = node.state.declared(sighting.resource)
    if declared is None or isinstance(sighting.observation, Unreadable):
        return True
    return node.deviation_n(sighting.resource, declared, sighting.observation) > 0


def block(node: Node, job: Job, change: Change, reason: str, holders: Sequence[Holder]) -> None:
    """The whole rollback waits for a person; nothing was changed.  # F5"""
    named = [h.to_json() for h in holders]
    again = change.state == life.BLOCKED and change.reason == reason and (
        {(h["pid"], h["resource"]) for h in change.holders} == {(h["pid"], h["resource"]) for h in named}
    )  # fmt: skip
    if not job.args.get("dry") and not again:
        node.record("rollback_blocked", {
            "change": change.id, "cause": job.cause, "reason": reason, "holders": named}, job.caller.actor)  # fmt: skip
    node.finish(job)
    text = f"{change.id}: " + (holder_text(holders) if holders else reason)
    done(node, job, {"change": change.id, "state": "blocked", "reason": reason, "consumers": named},
          EXIT_BLOCKED if holders else EXIT_FAILED, f"rollback of {text}",
          "let them finish or stop them, then: pact rollback " + change.id)  # fmt: skip


def holder_text(holders: Sequence[Holder]) -> str:
    """One line for people that names the holders; their pids stand beside it, so that equal nodes say the same."""
    named = list(dict.fromkeys(
        f"{h.command.split(' ')[0] if h.command else h.how} of {h.user or h.uid}{f', job {h.job}' if h.job else ''}"
        for h in holders))  # fmt: skip
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return f"blocked: {', '.join(sorted({h.resource for h in holders})[:5])} used by {', '.join(named[:5])}{more}"


def acted_rollback(node: Node, job: Job, event: Acted) -> None:
    change = node.state.changes[job.change or ""]
    assert change.state == life.ROLLING, change.state
    left = {r: why for r, why in event.results.items() if why}
    restored = sorted(r for r, why in event.results.items() if not why)
    actor = job.caller.actor
    drifted = below.look(node, job, event, change.owner)
    if left:
        reason = "; ".join(f"{r}: {why}" for r, why in list(left.items())[:5])
        data = {"change": change.id, "cause": job.cause, "restored": restored, "left": left, "reason": reason,
                "reads": node.learn(event), **shared_with(change, left)}  # fmt: skip
        node.record("rollback_failed", data, actor)
        node.sight(replace(s, owner=change.owner) for s in event.sightings if s.resource in left)
    else:
        node.record("rolled_back", {
            "change": change.id, "cause": job.cause, "owner": change.owner.to_json(),
            "results": dict.fromkeys(restored, "restored"), "reads": node.learn(event),
            **shared_with(change, restored)}, actor)  # fmt: skip
        if job.cause != "group":
            groups.left_alone(node, change, "rolled back", job.caller)
    node.sight_moved(event, change.owner, change if left else None)
    node.recheck([s.id for s in job.steps] or job.ids)
    notes = [*job.args.get("notes", ()), *(f"{r}: it has drifted with this, and has its window" for r in drifted),
             *(f"{r}: the kernel made {text} of what is declared" for r, text in node.learn(event).items())]
    result = {"change": change.id, "state": "failed" if left else "settled", "restored": restored, "left": left,
              "notes": notes}  # fmt: skip
    done(node, job, result, EXIT_FAILED if left else EXIT_DONE,
         f"rollback of {change.id} failed for {some(list(left))}" if left else "")  # fmt: skip


def give_up(node: Node, job: Job, error: PactError) -> None:
    """A job ended with an error. A change whose time is up must not lie there forgotten: it is blocked.  # A4"""
    change = node.state.changes.get(job.change or "")
    lasting = change is not None and not job.args.get("dry") and not isinstance(error, ConflictError)
    if job.kind == "rollback" and lasting:
        assert change is not None
        if change.state == life.ROLLING:
            results = dict.fromkeys(change.members, error.message)
            acted_rollback(node, job, Acted(node.t_ns, node.wall_ns, job.n, results, ()))
        else:
            block(node, job, change, error.message, [])
    elif job.kind == "rollback":
        done(node, job, {"change": job.change, "error": error.message}, error.exit_code, error.message, error.hint)
    else:
        node.refuse(job.token, error)


def done(node: Node, job: Job, result: dict[str, Any], exit_code: int = EXIT_DONE, message: str = "",
          hint: str = "") -> None:  # fmt: skip
    node.finish(job)
    waiting = node.waiting.get(job.token) if job.token is not None else None
    if waiting is None:
        return
    waiting.jobs.discard(job.n)
    waiting.results.append(result)
    if message:
        waiting.messages.append(message)
        waiting.hint = hint
    waiting.exit_code = gravest((waiting.exit_code, exit_code))


def _answer_if_complete(node: Node, token: int) -> None:
    waiting = node.waiting.get(token)
    if waiting is None or waiting.jobs:
        return
    del node.waiting[token]
    result = {**waiting.extra, "rolled_back": waiting.results, "left": _left(node)}
    node.reply(token, result, waiting.exit_code, "; ".join(waiting.messages), waiting.hint)


def answer_complete(node: Node) -> None:
    """Reply to requests whose last rollback has ended. Called once a step."""
    for token in list(node.waiting):
        _answer_if_complete(node, token)
