"""Adopt: what the machine has becomes declared state, by patterns that are remembered.  # U1"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pact.core.node import access, bonds, payloads, tracked
from pact.core.node import change as life
from pact.core.node.desk import Desk
from pact.core.node.events import Asked, Discover, Discovered
from pact.core.node.ledger import Job
from pact.core.records import in_pieces
from pact.errors import EXIT_FAILED, UsageError
from pact.model import Declared


def asked_adopt(node: Desk, event: Asked) -> None:
    access.require(event.caller, "admin", "adopt")
    patterns = tuple(event.args["patterns"])
    if not patterns:
        raise UsageError("adopt needs a pattern", "for example: pact adopt 'file:/etc/**'")
    totals: dict[str, Any] = {
        "adopted": 0,
        "unchanged": 0,
        "in_changes": [],
        "not_restorable": [],
        "notes": [],
        "trials_ended": [],
    }
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
        if change is not None and (
            resource not in event.exact or change.state == life.ROLLING or bonds.bound(node, change)
        ):
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
        node.record(
            payloads.Adopted(
                resources={r: new[r] for r in names},
                patterns=job.args["patterns"],
                members={r: 0 for r in names if r in members},
            ),
            job.caller.actor,
        )
    if event.last:
        node.finish(job)
        nothing = not (totals["adopted"] or totals["unchanged"] or totals["in_changes"])
        if not nothing:  # U1
            fresh = [p for p in event.patterns if p not in node.state.tracked]
            tracked.remember(node, dict.fromkeys(fresh, tracked.REPORT), job.caller)
            totals["tracked"] = fresh
        node.reply(
            job.token,
            totals,
            EXIT_FAILED if nothing else 0,
            "nothing matches " + ", ".join(job.args["patterns"]) if nothing else "",
        )


def _adopted(node: Desk, resource: str, found: Mapping[str, Any]) -> Declared:
    """The found value; what the operator said beside an earlier declaration stays."""
    value, earlier = Declared.from_json(found), node.state.declared(resource)
    if earlier is None:
        return value
    return replace(earlier, attrs=value.attrs, restorable=value.restorable)
