"""The records of a decision over many resources: as many as it takes, so that none exceeds the journal's limit. The
records of one decision are written together, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pact.core.node import debts, payloads
from pact.core.node.change import Change
from pact.core.node.desk import Desk
from pact.core.node.select import shared_with
from pact.core.payload import Saved
from pact.core.plan import Step
from pact.core.records import in_parts, in_pieces
from pact.model import AGENT_ACTOR, Actor, Owner
from pact.values import NOTHING


def started(
    node: Desk,
    change: Change,
    steps: Sequence[Step],
    cause: str,
    actor: Actor,
    *,
    saves: Mapping[str, Saved] = NOTHING,
    also: Mapping[str, Sequence[Owner]] = NOTHING,
    notes: Sequence[str] = (),
) -> None:
    """Record that a rollback of the change begins. It is one decision in several records, so that no record exceeds the
    journal's limit."""
    beside = list(saves.keys() - {s.id for s in steps})  # what is kept of others goes with the first
    for piece, part in in_parts(steps):
        kept, beside = [*(s.id for s in piece), *beside], []
        node.record(
            payloads.RollbackStarted(
                change=change.id,
                cause=cause,
                owner=change.owner,
                plan=[s.planned() for s in node.in_turns(piece)],
                saves={r: saves[r] for r in kept if r in saves},
                notes=notes,
                also={s.id: also[s.id] for s in piece if s.id in also},
                part=part,
            ),
            actor,
        )
        notes = ()


def split(
    node: Desk,
    change: Change,
    into: str,
    resources: Sequence[str],
    actor: Actor,
    *,
    ambient: bool | None = None,
    group: str = "",
) -> None:
    """Record that these members go on as another change."""
    for piece, part in in_parts(resources):
        node.record(
            payloads.ChangeSplit(
                change=change.id, into=into, resources=list(piece), ambient=ambient, group=group, part=part
            ),
            actor,
        )


def ended(
    node: Desk, change: Change, restored: Sequence[str], cause: str, actor: Actor, reads: Mapping[str, str]
) -> None:
    """Record that a rollback of the change has ended, and that all of it was restored."""
    for piece, part in in_parts(restored):
        node.record(
            payloads.RolledBack(
                change=change.id,
                cause=cause,
                owner=change.owner,
                results=dict.fromkeys(node.in_turns(piece), "restored"),
                reads={r: reads[r] for r in piece if r in reads},
                also=shared_with(change, piece),
                part=part,
            ),
            actor,
        )


def failed(
    node: Desk,
    change: Change,
    left: Mapping[str, str],
    reason: str,
    cause: str,
    actor: Actor,
    *,
    restored: Sequence[str] = (),
    reads: Mapping[str, str] = NOTHING,
    owed: Mapping[str, Sequence[str]] = NOTHING,
    moved: Sequence[str] = (),
) -> None:
    """Record that a rollback of the change has failed. ``left``: why not, by resource; ``owed``: who was not told."""
    done, unverified = set(restored), set(moved)
    for piece, part in in_parts(list(dict.fromkeys([*restored, *left, *owed]))):
        node.record(
            payloads.RollbackFailed(
                change=change.id,
                cause=cause,
                restored=[r for r in node.in_turns(piece) if r in done],
                left={r: left[r] for r in piece if r in left},
                reason=reason,
                reads={r: reads[r] for r in piece if r in reads},
                also=shared_with(change, [r for r in piece if r in left]),
                owed={r: owed[r] for r in piece if r in owed},
                moved=[r for r in piece if r in unverified],
                part=part,
            ),
            actor,
        )


def planned(node: Desk, steps: Sequence[Step], cause: str, actor: Actor = AGENT_ACTOR) -> None:
    """Record that a plan begins that no change owns."""
    for piece in in_pieces(steps):
        node.record(payloads.ConvergeStarted(cause=cause, plan=[s.planned() for s in node.in_turns(piece)]), actor)


def converged(
    node: Desk,
    results: Mapping[str, str],
    cause: str,
    actor: Actor = AGENT_ACTOR,
    *,
    owed: Mapping[str, Sequence[str]],
    reads: Mapping[str, str] = NOTHING,
) -> None:
    """Record the results of a plan that no change owns, and who must still be told of them. An empty result: it was
    restored."""
    for names in list(in_pieces(list(results))) or [()]:
        node.record(
            payloads.Converged(
                results={r: results[r] or debts.RESTORED for r in node.in_turns(names)},
                cause=cause,
                reads={r: reads[r] for r in names if r in reads},
                owed={r: owed[r] for r in names if r in owed},
            ),
            actor,
        )


def forgotten(node: Desk, resources: Sequence[str], cause: str, actor: Actor = AGENT_ACTOR) -> None:
    """Record that these are declared no more."""
    for piece in in_pieces(resources):
        node.record(payloads.Declared(resources={}, forgotten=list(piece), cause=cause), actor)
