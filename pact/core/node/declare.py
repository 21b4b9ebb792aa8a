"""Declare: the contents of a file become declared state, and the machine is brought to that state at once.

``declare`` uses the plan, the consumer check and the verification of a rollback. It records nothing if consumers block
it.  # L1
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from pact.core import ops
from pact.core.node import access, below, bonds, debts, payloads, recording, tracked, untold
from pact.core.node import change as life
from pact.core.node.desk import Desk
from pact.core.node.events import AGENT_CALLER, Acted, Asked, Probe, Probed, Sighting
from pact.core.node.jobs import Declaring, Job
from pact.core.node.replies import holder_text
from pact.core.node.rollback import refuse_held_or_busy
from pact.core.node.state import revised
from pact.core.plan import Step, anyhow, ordered
from pact.core.records import PIECE_MAX, in_pieces
from pact.errors import EXIT_BLOCKED, EXIT_FAILED, ConflictError, PactError, UsageError
from pact.model import UNATTRIBUTED, Declared, Json, Unreadable


def asked_declare(node: Desk, event: Asked[ops.Declare]) -> None:
    """Answer a declaration. A return to an earlier record also ends up here."""
    state, request = node.state, event.request
    access.require(event.caller, "admin", _cause(request))
    back = request if isinstance(request, ops.GoBack) else None
    declared = {r: Declared.from_json(v) for r, v in node.in_turns(request.resources.items())}
    kept = _trials_kept(node, back, declared) if back is not None else frozenset()
    declared = {r: d for r, d in declared.items() if r not in kept}
    in_changes, probe = [], []
    for resource in node.in_turns(declared):
        change = state.change_of(resource)
        if change is not None and change.state == life.ROLLING:
            raise ConflictError(f"{resource} is being rolled back with {change.id}", "try again when it is done")
        if change is not None and back is not None:  # H1
            refuse_held_or_busy(node, change.id, back.force or back.dry_run)
        if change is not None and request.take:
            bonds.require_free(node, change, "declare", False)
        if change is not None and not request.take:
            in_changes.append(resource)
        else:
            probe.append(resource)
    forgotten = [r for r in state.declared_ids() if r not in declared and r not in kept] if request.prune else []
    ended = [r for r in [*declared, *forgotten] if r in state.ttls]
    node.refuse_intended([*declared, *forgotten])
    for resource in node.in_turns(forgotten):
        change = state.change_of(resource)
        if change is not None and change.state == life.ROLLING:
            raise ConflictError(f"{resource} is being rolled back with {change.id}", "try again when it is done")
        if change is not None:
            bonds.require_free(node, change, "declare", False)
    wanted = (below.with_owed(Step.back(r, declared[r]), _owed(node, r, declared[r])) for r in node.in_turns(probe))
    steps = ordered(wanted, node.nature, node.in_turns)
    work = Declaring(request, declared, forgotten, in_changes, sorted(kept), sorted(ended))
    job = node.job("declare", event.caller, work, token=event.token, ids=tuple(probe), steps=steps)
    node.emit(Probe(job.n, steps, consumers=state.settings.enforce, dry=request.dry_run))


def _cause(request: ops.Declare) -> str:
    return request.cause if isinstance(request, ops.GoBack) else "declare"


def _trials_kept(node: Desk, request: ops.GoBack, declared: Mapping[str, Declared]) -> frozenset[str]:
    """Which trials a return to an earlier state leaves as they are. The return neither ends a trial nor makes it
    permanent silently. Raises ConflictError that names the trials if the caller did not choose.  # T1"""
    concerned = [r for r in node.state.ttls if r in declared or request.prune]
    how = request.trials
    if how not in (None, "keep", "end"):
        raise UsageError("trials are kept or ended: keep, end")
    if not concerned or how == "end":
        return frozenset()
    if how == "keep":
        return frozenset(concerned)
    named = ", ".join(f"{r} (until {node.wall_of(node.state.ttls[r].expires_ns)[:19]}Z)" for r in concerned[:5])
    more = f" and {len(concerned) - 5} more" if len(concerned) > 5 else ""
    raise ConflictError(
        f"these are committed for a time: {named}{more}", "say what becomes of them: --trials keep, or --trials end"
    )


def probed_declare(node: Desk, job: Job[Declaring], event: Probed) -> None:
    state, work, request = node.state, job.work, job.work.request
    declared = work.declared
    node.refuse_intended([*declared, *work.forgotten])
    for resource in node.in_turns(job.ids):
        change = state.change_of(resource)
        if change is not None and (change.state == life.ROLLING or not request.take):
            raise ConflictError(f"{resource} drifted into {change.id} meanwhile", "use --take, or settle it first")
    for resource in node.in_turns([*job.ids, *work.forgotten]):  # the node may have voted meanwhile  # G3
        change = state.change_of(resource)
        if change is not None:
            bonds.require_free(node, change, "declare", False)
    steps = below.differing(node, job.steps, event.sightings, declared) if state.settings.enforce else ()
    steps = (*steps, *_owing(node, job, event, {s.id for s in steps}))
    result: Json = {
        "resources": len(declared),
        "forgotten": work.forgotten,
        "in_changes": sorted(work.in_changes),
        "converge": [s.to_json() for s in node.in_turns(steps)],
        "unreadable": below.unreadable(event.sightings),
        "consumers": [h.to_json() for h in event.holders],
        "notes": list(event.notes),
        "trials": {"kept": work.kept, "ended": work.ended},
        "track": dict(request.track),
        "patterns_forgotten": [p for p in state.tracked if p not in request.track] if request.prune else [],
    }
    if request.dry_run:  # a dry run ends as the real run would
        node.finish(job)
        why = holder_text(event.holders) if event.holders else "; ".join(event.refusals[:5])
        problems = why or "; ".join(f"{r}: {text}" for r, text in list(result["unreadable"].items())[:5])
        node.reply(
            job.token,
            {**result, "dry_run": True, "refused": list(event.refusals)},
            EXIT_BLOCKED if event.holders else EXIT_FAILED if problems else 0,
            f"this would not be done: {problems}" if problems else "",
        )
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
        # In observe mode the difference becomes drift now.
        node.sight(replace(s, owner=job.caller.owner) for s in event.sightings)
        _declare_done(node, job, result, {})
        return
    telling = [s for s in steps if s.notify]  # who is told also after a kill  # R14
    recording.planned(node, telling, _cause(request), job.caller.actor)
    job.steps, work.result = steps, result
    below.act(node, job, event.saves, [s.id for s in steps])


def _owed(node: Desk, resource: str, declared: Declared) -> tuple[str, ...]:
    """Who reads the resource, and could not be told of what an earlier plan made of it.  # R14"""
    return tuple(revised(debts.of(node.state, resource), node.state.readers(resource), declared.notify))


def _owing(node: Desk, job: Job[Declaring], event: Probed, moving: Container[str]) -> list[Step]:
    """Steps that move nothing: the resource is taken out of its change as it is, and those who are owed it are told."""
    seen, declared = {s.resource: s.observation for s in event.sightings}, job.work.declared
    out = []
    for step in node.in_turns(job.steps) if node.state.settings.enforce else ():
        owed, actual = _owed(node, step.id, declared[step.id]), seen.get(step.id)
        if owed and step.id in seen and step.id not in moving and not isinstance(actual, Unreadable):
            out.append(replace(step, actual=actual, notify=owed, owed=True))
    return out


def _record_declared(node: Desk, job: Job[Declaring], event: Probed, converge: set[str]) -> int:
    """Record what this declaration changes. Returns how many of its resources were already declared so."""
    state, work, request = node.state, job.work, job.work.request
    declared = work.declared
    back = request if isinstance(request, ops.GoBack) else None
    to_seq = back.to_seq if back is not None else None
    found, closed = (back.enforced, frozenset(back.closed)) if back is not None else ({}, frozenset())
    members = {}
    for resource in node.in_turns(work.in_changes):
        change = state.change_of(resource)
        if change is not None:
            member = change.members[resource]
            deviation_n = node.deviation_n(resource, declared[resource], member.actual)
            owed = _owed(node, resource, declared[resource])
            members[resource] = max(1, deviation_n) if owed else deviation_n  # they must still be told  # R14
    taken = [r for r in job.ids if r in state.member_of and (r in converge or not _owed(node, r, declared[r]))]
    wanted = converge.union(taken, state.ttls)
    each = node.in_turns(declared.items())
    moved = {r: d.to_json() for r, d in each if r in wanted or d != state.declared(r)}
    gone = work.forgotten
    if len(moved) + len(gone) <= PIECE_MAX:
        pieces: list[tuple[Sequence[str], Sequence[str]]] = [(list(moved), gone)] if moved or gone else []
    else:
        pieces = [*((names, ()) for names in in_pieces(list(moved))), *(((), names) for names in in_pieces(gone))]
    members_taken = set(taken)
    # One decision in several records, so that no record exceeds the journal's limit.
    for at, (names, forgotten) in enumerate(pieces):
        last = at == len(pieces) - 1
        saves = {r: event.saves[r] for r in names if r in event.saves}
        if last:
            # The contents of a mount that is taken off.
            saves |= {r: s for r, s in event.saves.items() if r not in moved}
        node.record(
            payloads.Declared(
                resources={r: moved[r] for r in names},
                cause=_cause(request),
                forgotten=list(forgotten) if last or forgotten else None,
                taken=[r for r in names if r in members_taken],
                members={r: members[r] for r in names if r in members},
                saves=saves,
                notes=list(event.notes) if last else (),
                to_seq=to_seq if last else None,
                enforced={r: found[r] for r in names if r in found},
                closed=[r for r in names if r in closed],
                part=[at + 1, len(pieces)] if len(pieces) > 1 else (),
            ),
            job.caller.actor,
        )
    return len(declared) - len(moved)


def acted_declare(node: Desk, job: Job[Declaring], event: Acted) -> None:
    owed = untold.owed(node, job, event)
    node.finish(job)
    below.look(node, job, event, job.caller.owner)
    recording.converged(
        node, event.results, _cause(job.work.request), job.caller.actor, owed=owed, reads=node.learn(event)
    )
    left = {r: why for r, why in event.results.items() if why}
    node.sight(replace(s, owner=job.caller.owner) for s in event.sightings if s.resource in left)
    moved = node.sight_moved(event, job.caller.owner, None)
    owing = untold.keep(node, event, job.caller.owner, _cause(job.work.request), job.caller.actor)
    node.recheck(job.ids)
    result = {**job.work.result, "moved": moved, "reads": dict(event.reads)}
    _declare_done(node, job, result, left, owing)


def _declare_done(node: Desk, job: Job[Declaring], result: Json, left: Mapping[str, str], owing: str = "") -> None:
    unread = result["unreadable"]
    problems = {**unread, **left}
    text = "; ".join(f"{r}: {why}" for r, why in list(problems.items())[:5])
    node.reply(
        job.token,
        {**result, "left": dict(left)},
        EXIT_FAILED if problems else 0,
        f"declared, but not converged: {text}" if problems else "",
        f"pact rollback {owing} tells them again" if owing else "",
    )


def converge_after_boot(node: Desk, sightings: Sequence[Sighting]) -> None:
    """The drift that the reboot itself caused belongs to nobody: bring those resources to declared state.  # B1"""
    steps = []
    for sighting in sightings:
        declared, seen = node.state.declared(sighting.resource), sighting.observation
        assert declared is not None and not isinstance(seen, Unreadable)
        steps.append(below.back(node, sighting.resource, declared, seen))
    job = node.job(
        "boot", AGENT_CALLER, None, ids=tuple(s.id for s in steps), steps=anyhow(steps, node.nature, node.in_turns)
    )
    # A person may have set the resource by hand since the boot: record what will be overwritten first.
    recording.planned(node, job.steps, "boot")
    below.act(node, job, {}, job.ids)


def acted_boot(node: Desk, job: Job[None], event: Acted) -> None:
    owed = untold.owed(node, job, event)
    node.finish(job)
    recording.converged(node, event.results, "boot", owed=owed, reads=node.learn(event))
    node.sight(event.sightings)
    node.sight(event.moved)
    untold.keep(node, event, UNATTRIBUTED, "boot")
    node.recheck(job.ids)
