"""Declared state moves: declare, adopt, apply, and commits that end.

``declare`` converges with the plan, consumer check and verification of a rollback, and records nothing where consumers
stop it.  # L1
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pact.core import phases
from pact.core.node import access, below, bonds, tracked, undo
from pact.core.node import change as life
from pact.core.node.desk import Desk
from pact.core.node.events import AGENT_CALLER, Acted, Asked, Discover, Discovered, Probe, Probed, Sighting
from pact.core.node.ledger import Job
from pact.core.node.replies import holder_text
from pact.core.node.rollback import refuse_held_or_busy
from pact.core.plan import Step, ordered
from pact.core.records import PIECE_MAX, in_pieces
from pact.errors import EXIT_BLOCKED, EXIT_FAILED, BlockedError, ConflictError, PactError, UsageError
from pact.model import AGENT_ACTOR, Actor, Declared, Observation, Owner, Unreadable

# -- declare --------------------------------------------------------------------------------------------------------


def asked_declare(node: Desk, event: Asked) -> None:
    """``args``: resources {id: Declared JSON}, prune, take, dry_run; cause and to_seq for ``rollback --to``."""
    access.require(event.caller, "admin", event.args.get("cause", "declare"))
    state = node.state
    resources: Mapping[str, Any] = event.args["resources"]
    take, back = bool(event.args.get("take")), event.args.get("cause") == "rollback"
    declared = {r: Declared.from_json(v) for r, v in resources.items()}
    kept = _trials_kept(node, event, declared) if back else ()
    declared = {r: d for r, d in declared.items() if r not in kept}
    in_changes, probe = [], []
    for resource in declared:
        change = state.change_of(resource)
        if change is not None and change.state == life.ROLLING:
            raise ConflictError(f"{resource} is being rolled back with {change.id}", "try again when it is done")
        if change is not None and back:  # H1
            refuse_held_or_busy(node, change.id, bool(event.args.get("force") or event.args.get("dry_run")))
        if change is not None and take:
            bonds.require_free(node, change, "declare", False)
        if change is not None and not take:
            in_changes.append(resource)
        else:
            probe.append(resource)
    forgotten = [r for r in state.declared_ids() if r not in declared and r not in kept] if event.args.get(
        "prune") else []  # fmt: skip
    ended = [r for r in [*declared, *forgotten] if r in state.ttls]
    node.refuse_intended([*declared, *forgotten])
    for resource in forgotten:
        change = state.change_of(resource)
        if change is not None and change.state == life.ROLLING:
            raise ConflictError(f"{resource} is being rolled back with {change.id}", "try again when it is done")
        if change is not None:
            bonds.require_free(node, change, "declare", False)
    steps = ordered(
        Step(r, declared[r].attrs, None, declared[r].requires, declared[r].consumers) for r in probe
    )
    args = {**event.args, "forgotten": forgotten, "in_changes": in_changes, "declared": declared,
            "trials": {"kept": sorted(kept), "ended": sorted(ended)}}  # fmt: skip
    job = node.job("declare", event.caller, token=event.token, ids=tuple(probe), args=args, steps=steps)
    dry = bool(event.args.get("dry_run"))
    node.emit(Probe(job.n, steps, consumers=state.settings.enforce, dry=dry))


def _trials_kept(node: Desk, event: Asked, declared: Mapping[str, Declared]) -> frozenset[str]:
    """Which commits with an end a return to an earlier state leaves as they are. It neither ends one nor makes it last
    for good in silence. Raises ConflictError that names them where the caller did not say.  # T1"""
    concerned = [r for r in node.state.ttls if r in declared or event.args.get("prune")]
    how = event.args.get("trials")
    if how not in (None, "keep", "end"):
        raise UsageError("trials are kept or ended: keep, end")
    if not concerned or how == "end":
        return frozenset()
    if how == "keep":
        return frozenset(concerned)
    named = ", ".join(f"{r} (until {node.wall_of(node.state.ttls[r].expires_ns)[:19]}Z)" for r in concerned[:5])
    more = f" and {len(concerned) - 5} more" if len(concerned) > 5 else ""
    raise ConflictError(f"these are committed for a time: {named}{more}",
                        "say what becomes of them: --trials keep, or --trials end")  # fmt: skip


def probed_declare(node: Desk, job: Job, event: Probed) -> None:
    state, args = node.state, job.args
    declared: dict[str, Declared] = args["declared"]
    node.refuse_intended([*declared, *args["forgotten"]])
    for resource in job.ids:
        change = state.change_of(resource)
        if change is not None and (change.state == life.ROLLING or not args.get("take")):
            raise ConflictError(f"{resource} drifted into {change.id} meanwhile", "use --take, or settle it first")
    for resource in [*job.ids, *args["forgotten"]]:  # it may have voted meanwhile  # G3
        change = state.change_of(resource)
        if change is not None:
            bonds.require_free(node, change, "declare", False)
    steps = differing(node, job.steps, event.sightings, declared) if state.settings.enforce else ()
    result = {
        "resources": len(declared), "forgotten": args["forgotten"], "in_changes": sorted(args["in_changes"]),
        "converge": [s.to_json() for s in steps], "unreadable": _unreadable(event.sightings),
        "consumers": [h.to_json() for h in event.holders], "notes": list(event.notes), "trials": args["trials"],
        "track": dict(args.get("track", {})), "patterns_forgotten": [
            p for p in state.tracked if p not in args.get("track", {})] if args.get("prune") else [],
    }  # fmt: skip
    if args.get("dry_run"):  # it ends as the real one would
        node.finish(job)
        why = holder_text(event.holders) if event.holders else "; ".join(event.refusals[:5])
        problems = why or "; ".join(f"{r}: {text}" for r, text in list(result["unreadable"].items())[:5])
        node.reply(job.token, {**result, "dry_run": True, "refused": list(event.refusals)},
                   EXIT_BLOCKED if event.holders else EXIT_FAILED if problems else 0,
                   f"this would not be done: {problems}" if problems else "")  # fmt: skip
        return
    if event.holders:
        node.finish(job)
        why = f"nothing was declared; {holder_text(event.holders)}"
        named = {"blocked": True, "consumers": result["consumers"]}
        node.reply(job.token, named, EXIT_BLOCKED, why, "let them finish, or leave it out")
        return
    if event.refusals:
        raise PactError("nothing was declared; " + "; ".join(event.refusals[:5]))
    result["unchanged"] = _record_declared(node, job, event, {s.id for s in steps})
    tracked.remember(node, result["track"], job.caller, result["patterns_forgotten"])
    result["seq"] = state.seq
    if not steps:
        node.finish(job)
        node.sight(replace(s, owner=job.caller.owner) for s in event.sightings)  # in observe mode it is drift now
        _declare_done(node, job, result, {})
        return
    job.steps, job.args["result"] = steps, result
    below.act(node, job, event.saves, [s.id for s in steps])


def _record_declared(node: Desk, job: Job, event: Probed, converge: set[str]) -> int:
    """Record what this declaration changes; returns how many of its resources were declared so already."""
    state, args = node.state, job.args
    declared: dict[str, Declared] = args["declared"]
    members = {}
    for resource in args["in_changes"]:
        change = state.change_of(resource)
        if change is not None:
            members[resource] = node.deviation_n(resource, declared[resource], change.members[resource].actual)
    taken = [r for r in job.ids if r in state.member_of]
    wanted = converge.union(taken, state.ttls)
    moved = {r: d.to_json() for r, d in declared.items() if r in wanted or d != state.declared(r)}
    gone = args["forgotten"]
    if len(moved) + len(gone) <= PIECE_MAX:
        pieces: list[dict[str, Any]] = [{"resources": moved, "forgotten": list(gone)}] if moved or gone else []
    else:
        pieces = [*({"resources": {r: moved[r] for r in names}} for names in in_pieces(list(moved))),
                  *({"resources": {}, "forgotten": list(names)} for names in in_pieces(gone))]  # fmt: skip
    members_taken = set(taken)
    for at, piece in enumerate(pieces):  # one decision, and no record that outgrows what a journal takes
        names = piece["resources"]
        data = {**piece, "cause": args.get("cause", "declare"), "taken": [r for r in names if r in members_taken],
                "members": {r: members[r] for r in names if r in members}}  # fmt: skip
        saves = {r: event.saves[r] for r in names if r in event.saves}
        if at == len(pieces) - 1:
            data.setdefault("forgotten", [])
            saves |= {r: s for r, s in event.saves.items() if r not in moved}  # what lies in a mount that is taken off
            if event.notes:
                data["notes"] = list(event.notes)
            if "to_seq" in args:
                data["to_seq"] = args["to_seq"]
        if len(pieces) > 1:
            data["part"] = [at + 1, len(pieces)]
        node.record("declared", {**data, **({"saves": saves} if saves else {})}, job.caller.actor)
    return len(declared) - len(moved)


def differing(node: Desk, steps: Sequence[Step], sightings: Iterable[Sighting],
               declared: Mapping[str, Declared]) -> tuple[Step, ...]:  # fmt: skip
    """What is to be done: what differs, and what is seen through what gives way to it."""
    seen: dict[str, Observation] = {s.resource: s.observation for s in sightings}
    out = []
    for step in steps:
        actual = seen.get(step.id)
        if isinstance(actual, Unreadable) or step.id not in seen:
            continue
        if node.deviation_n(step.id, declared[step.id], actual) > 0:
            out.append(replace(step, actual=actual))
    through = below.carried(out, (s.id for s in steps))
    met = {s.id for s in out}
    for step in steps:
        actual = seen.get(step.id)
        if step.id in through and step.id not in met and step.target is not None and isinstance(actual, dict):
            out.append(below.as_seen(step, actual))
    return ordered(out)


def _unreadable(sightings: Iterable[Sighting]) -> dict[str, str]:
    return {s.resource: s.observation.why for s in sightings if isinstance(s.observation, Unreadable)}


def acted_declare(node: Desk, job: Job, event: Acted) -> None:
    node.finish(job)
    below.look(node, job, event, job.caller.owner)
    _record_converged(node, event, job.args.get("cause", "declare"), job.caller.actor)
    left = {r: why for r, why in event.results.items() if why}
    node.sight(replace(s, owner=job.caller.owner) for s in event.sightings if s.resource in left)
    moved = node.sight_moved(event, job.caller.owner, None)
    node.recheck(job.ids)
    result = {**job.args["result"], "moved": moved, "reads": dict(event.reads)}
    _declare_done(node, job, result, left)


def _record_converged(node: Desk, event: Acted, cause: str, actor: Actor = AGENT_ACTOR) -> None:
    reads = node.learn(event)
    for names in in_pieces(list(event.results)):
        node.record("converged", {"results": {r: event.results[r] or "restored" for r in names}, "cause": cause,
                                  "reads": {r: reads[r] for r in names if r in reads}}, actor)  # fmt: skip


def _declare_done(node: Desk, job: Job, result: dict[str, Any], left: Mapping[str, str]) -> None:
    unread = result["unreadable"]
    problems = {**unread, **left}
    text = "; ".join(f"{r}: {why}" for r, why in list(problems.items())[:5])
    node.reply(job.token, {**result, "left": dict(left)}, EXIT_FAILED if problems else 0,
               f"declared, but not converged: {text}" if problems else "")  # fmt: skip


# -- what a reboot reset --------------------------------------------------------------------------------------------


def converge_after_boot(node: Desk, sightings: Sequence[Sighting]) -> None:
    """What the reboot itself reset is nobody's drift: bring it to declared state.  # B1"""
    steps = []
    for sighting in sightings:
        declared, seen = node.state.declared(sighting.resource), sighting.observation
        assert declared is not None and not isinstance(seen, Unreadable)
        steps.append(Step(sighting.resource, declared.attrs, seen, declared.requires, declared.consumers))
    job = node.job("boot", AGENT_CALLER, ids=tuple(s.id for s in steps), steps=ordered(steps))
    # somebody may have set it by hand since the boot: what is overwritten is on record before
    for piece in in_pieces(job.steps):
        node.record("converge_started", {"cause": "boot", "plan": [s.to_json() for s in piece]})
    below.act(node, job, {}, job.ids)


def acted_boot(node: Desk, job: Job, event: Acted) -> None:
    node.finish(job)
    _record_converged(node, event, "boot")
    node.sight(event.sightings)
    node.sight(event.moved)
    node.recheck(job.ids)


# -- adopt ----------------------------------------------------------------------------------------------------------


def asked_adopt(node: Desk, event: Asked) -> None:
    access.require(event.caller, "admin", "adopt")
    patterns = tuple(event.args["patterns"])
    if not patterns:
        raise UsageError("adopt needs a pattern", "for example: pact adopt 'file:/etc/**'")
    totals: dict[str, Any] = {"adopted": 0, "unchanged": 0, "in_changes": [], "not_restorable": [], "notes": [],
                              "trials_ended": []}  # fmt: skip
    job = node.job("adopt", event.caller, token=event.token, args={"patterns": list(patterns), "totals": totals})
    node.emit(Discover(job.n, patterns))


def discovered_adopt(node: Desk, job: Job, event: Discovered) -> None:
    """A part of what matched. Resources of open changes are passed over unless they were named exactly."""
    totals = job.args["totals"]
    new: dict[str, Any] = {}
    members: dict[str, int] = {}
    intended = node.intended()
    for resource, found in event.found.items():
        change = node.state.change_of(resource)
        if resource in intended:
            totals["in_changes"].append(resource)
            continue
        if change is not None and (resource not in event.exact or change.state == life.ROLLING
                                   or bonds.bound(node, change)):  # fmt: skip
            totals["in_changes"].append(resource)
            continue
        value = _adopted(node, resource, found)
        if change is None and value == node.state.declared(resource):
            totals["unchanged"] += 1
            continue
        if change is not None:
            members[resource] = 0
        new[resource] = value.to_json()
        if resource in node.state.ttls:
            totals["trials_ended"].append(resource)
        if not value.restorable:
            totals["not_restorable"].append(resource)
    totals["notes"].extend(event.notes)
    totals["adopted"] += len(new)
    for names in in_pieces(list(new)):
        node.record("adopted", {"resources": {r: new[r] for r in names}, "patterns": job.args["patterns"],
                                "members": {r: 0 for r in names if r in members}}, job.caller.actor)  # fmt: skip
    if event.last:
        node.finish(job)
        nothing = not (totals["adopted"] or totals["unchanged"] or totals["in_changes"])
        if not nothing:  # U1
            fresh = [p for p in event.patterns if p not in node.state.tracked]
            tracked.remember(node, dict.fromkeys(fresh, tracked.REPORT), job.caller)
            totals["tracked"] = fresh
        node.reply(job.token, totals, EXIT_FAILED if nothing else 0,
                   "nothing matches " + ", ".join(job.args["patterns"]) if nothing else "")  # fmt: skip


def _adopted(node: Desk, resource: str, found: Mapping[str, Any]) -> Declared:
    """The found value; what the operator said beside an earlier declaration stays."""
    value, earlier = Declared.from_json(found), node.state.declared(resource)
    if earlier is None:
        return value
    return replace(earlier, attrs=value.attrs, restorable=value.restorable)


# -- apply ----------------------------------------------------------------------------------------------------------


def asked_apply(node: Desk, event: Asked) -> None:
    """Make changes now, as one change of the caller's.  # C7"""
    access.require(event.caller, "admin", "apply")
    declared = {r: Declared.from_json(v) for r, v in event.args["resources"].items()}
    if not declared:
        raise UsageError("the file names no resource")
    node.refuse_intended(declared)
    for resource in declared:
        change = node.state.change_of(resource)
        if change is not None and (change.state == life.ROLLING or change.intents):
            raise ConflictError(f"{resource} is being changed with {change.id}", "try again when it is done")
        if change is not None:
            bonds.require_free(node, change, "apply", False)
    begin_apply(node, event, declared)


def begin_apply(node: Desk, event: Asked, declared: dict[str, Declared]) -> None:
    """Look at what is there; with ``args["group"]`` for a group whose member this node is."""
    steps = ordered(Step(r, d.attrs, None, d.requires, d.consumers) for r, d in declared.items())
    job = node.job("apply", event.caller, token=event.token, ids=tuple(declared), steps=steps,
                   args={**event.args, "declared": declared})  # fmt: skip
    node.emit(Probe(job.n, steps, consumers=True, applying=True, dry=bool(event.args.get("dry_run"))))


def probed_apply(node: Desk, job: Job, event: Probed) -> None:
    state, declared = node.state, job.args["declared"]
    node.refuse_intended(job.ids)
    for resource in job.ids:
        change = state.change_of(resource)
        if change is not None and (change.state == life.ROLLING or change.intents):
            raise ConflictError(f"{resource} is being changed with {change.id}", "try again when it is done")
        if change is not None and not job.args.get("group"):
            bonds.require_free(node, change, "apply", False)
    steps = differing(node, job.steps, event.sightings, declared)
    try:
        refuse_what_would_fail(event, "nothing was applied")
    except PactError as exc:
        node.finish(job)
        result: dict[str, Any] = {"consumers": [h.to_json() for h in event.holders]}
        if job.args.get("dry_run"):
            result |= {"dry_run": True, "plan": [s.to_json() for s in steps], "refused": list(event.refusals)}
        node.reply(job.token, result, exc.exit_code, exc.message, exc.hint)
        return
    if job.args.get("dry_run"):
        node.finish(job)
        node.reply(job.token, {"dry_run": True, "plan": [s.to_json() for s in steps], "refused": [], "consumers": [],
                               "notes": list(event.notes)})  # fmt: skip
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
            baseline[step.id] = replace(declared[step.id], attrs=seen[step.id], restorable=kept).to_json()
    gid = job.args.get("group", "")
    member = state.groups.get(gid)
    if gid and (member is None or member.phase != phases.OPEN):
        raise ConflictError(f"{gid} was settled meanwhile")
    cid = member.change if member is not None and member.change in state.changes else node.new_change_id()
    assert cid is not None
    data = {
        "change": cid, "owner": job.caller.owner.to_json(), "message": job.args.get("message", ""),
        "resources": {s.id: s.target for s in steps}, "baseline": baseline, "saves": dict(event.saves),
        **({"notes": list(event.notes)} if event.notes else {}),
    }  # fmt: skip
    node.record("applied", {**data, "group": gid} if gid else data, job.caller.actor)
    job.change, job.steps, job.args = cid, steps, {**job.args, "notes": list(event.notes), "baseline": baseline}
    node.busy[cid] = job.n
    below.act(node, job, event.saves, (), put_back=False)


def refuse_what_would_fail(event: Probed, what: str) -> None:
    """All that could be known was asked before anything is touched: raises for any no.  # C7, F5"""
    unread = [f"{r}: {why}" for r, why in _unreadable(event.sightings).items()]
    problems = [*unread, *event.refusals]
    if problems:
        raise PactError(f"{what}; " + "; ".join(problems[:5]))
    if event.holders:
        raise BlockedError(f"{what}; {holder_text(event.holders)}", "let them finish, or leave it out")


def acted_apply(node: Desk, job: Job, event: Acted) -> None:
    """Done; or, where a step failed all the same, what was done before it is undone at once.  # C7"""
    if any(event.results.values()):
        undo.undo(node, job, event)
        return
    node.finish(job)
    assert job.change is not None
    here = {s.id for s in job.steps}
    node.sight(s for s in event.sightings if s.resource in here)
    below.look(node, job, event, job.caller.owner, node.state.changes.get(job.change))
    moved = node.sight_moved(event, job.caller.owner, node.state.changes.get(job.change))
    if job.change in node.state.changes:
        node.window_opened(job.change, reads=node.public_reads(event))
    change = node.state.changes.get(job.change)
    deadline_ns = None if change is None else node.state.deadline_ns(change)
    node.recheck(job.ids)
    node.reply(job.token, {
        "change": job.change if change is not None else None, "applied": sorted(event.results), "left": {},
        "undone": [], "deadline": None if deadline_ns is None else node.wall_of(deadline_ns),
        "moved": moved, "reads": dict(event.reads), "notes": job.args.get("notes", []),
    })  # fmt: skip


# -- commits with an end --------------------------------------------------------------------------------------------


def expire_commits(node: Desk, resource: str) -> None:
    """A commit's TTL ended: the earlier declared value is declared again, and what is there is drift.  # T1"""
    state = node.state
    ttl, committed = state.ttls.get(resource), state.declared(resource)
    if ttl is None or committed is None:
        return
    owner = Owner.from_json(ttl.owner)
    change = state.change_of(resource)
    frozen = change is not None and change.state == life.ROLLING
    if frozen:  # decided anew when the rollback has ended
        node.retry_ttl(resource)
        return
    node.record("commit_expired", {"resources": {resource: ttl.earlier}, "commit": ttl.seq, "owner": ttl.owner})
    earlier = state.declared(resource)
    if earlier is None:
        return
    actual = change.members[resource].actual if change is not None else committed.attrs
    sighting_owner = None if change is not None else owner
    node.sight([Sighting(resource, actual, sighting_owner)])
    node.recheck([resource])
