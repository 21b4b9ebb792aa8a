"""Adopt: pact declares the resources that the machine has, by patterns that it remembers.  # U1"""

from __future__ import annotations

from dataclasses import replace

from pact.core import ops
from pact.core.node import access, bonds, payloads, tracked
from pact.core.node import change as life
from pact.core.node.desk import Desk
from pact.core.node.events import Asked, Discover, Discovered
from pact.core.node.jobs import Adopting, Job
from pact.core.payload import Value
from pact.core.records import in_pieces
from pact.errors import EXIT_FAILED, UsageError
from pact.model import Declared


def asked_adopt(node: Desk, event: Asked[ops.Adopt]) -> None:
    access.require(event.caller, "admin", "adopt")
    patterns = tuple(event.request.patterns)
    if not patterns:
        raise UsageError("adopt needs a pattern", "for example: pact adopt 'file:/etc/**'")
    job = node.job("adopt", event.caller, Adopting(list(patterns)), token=event.token)
    node.emit(Discover(job.n, patterns))


def discovered_adopt(node: Desk, job: Job[Adopting], event: Discovered) -> None:
    """Take in a part of what matched. Resources of open changes are skipped unless the request named them exactly."""
    work = job.work
    new: dict[str, Value] = {}
    members: dict[str, int] = {}
    intended = node.intended()
    for resource, found in event.found.items():
        change = node.state.change_of(resource)
        if resource in intended:
            work.in_changes.append(resource)
            continue
        if change is not None and (
            resource not in event.exact or change.state == life.ROLLING or bonds.bound(node, change)
        ):
            work.in_changes.append(resource)
            continue
        value = _adopted(node, resource, found)
        if change is None and value == node.state.declared(resource):
            work.unchanged += 1
            continue
        if change is not None:
            members[resource] = 1 if change.members[resource].owed else 0  # somebody must still be told  # R14
        new[resource] = value.to_json()
        if resource in node.state.ttls:
            work.trials_ended.append(resource)
        if not value.restorable:
            work.not_restorable.append(resource)
    work.notes.extend(event.notes)
    work.adopted += len(new)
    for names in in_pieces(list(new)):
        node.record(
            payloads.Adopted(
                resources={r: new[r] for r in names},
                patterns=work.patterns,
                members={r: members[r] for r in names if r in members},
            ),
            job.caller.actor,
        )
    if event.last:
        node.finish(job)
        nothing = not (work.adopted or work.unchanged or work.in_changes)
        if not nothing:  # U1
            fresh = [p for p in event.patterns if p not in node.state.tracked]
            tracked.remember(node, dict.fromkeys(fresh, tracked.REPORT), job.caller)
            work.tracked = fresh
        node.reply(
            job.token,
            {
                "adopted": work.adopted,
                "unchanged": work.unchanged,
                "in_changes": work.in_changes,
                "not_restorable": work.not_restorable,
                "notes": work.notes,
                "trials_ended": work.trials_ended,
                **({} if nothing else {"tracked": work.tracked}),
            },
            EXIT_FAILED if nothing else 0,
            "nothing matches " + ", ".join(work.patterns) if nothing else "",
        )


def _adopted(node: Desk, resource: str, found: Value) -> Declared:
    """The found value, with the metadata that the operator gave in an earlier declaration."""
    value, earlier = Declared.from_json(found), node.state.declared(resource)
    value = replace(value, attrs=node.taken(resource, value.attrs, None if earlier is None else earlier.attrs))
    if earlier is None:
        return value
    return replace(earlier, attrs=value.attrs, restorable=value.restorable)
