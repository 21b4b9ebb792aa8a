"""The state that the journal had at an earlier record, read through a separate connection, off the loop."""

from __future__ import annotations

from pact.core import strict
from pact.core.node import below, fold
from pact.core.node.state import State
from pact.core.ops import GoBack, Rollback
from pact.core.plan import Step
from pact.core.records import verify
from pact.errors import UsageError
from pact.journal.sqlite import SqliteJournal
from pact.model import Attrs
from pact.resources.rules import nature


def rolled_back_state(path: str, change: str) -> dict[str, Attrs | None]:
    """What the newest rollback of a change found on the machine, and replaced. Raises UsageError if there was none."""
    journal = SqliteJournal(path, read_only=True)
    try:
        steps = list[Step]()
        for body, _ in journal.newest(None, type_="rollback_started"):
            data = strict.own(body)["data"]
            if data["change"] == change:
                steps += [Step(s["id"], s["target"], s["actual"]) for s in data["plan"]]
                if data.get("part", (1, 1))[0] > 1:  # a long plan has several records
                    continue
                # Seen again together with what hid them.
                through = below.carried(nature, steps, (s.id for s in steps))  # R10
                return {s.id: s.actual for s in steps if s.id not in through}
    finally:
        journal.close()
    raise UsageError(f"no rollback of {change} is on record", "pact log --type rollback_started")


def state_at(path: str, seq: int) -> State:
    """The state after record ``seq`` and the whole decision to which that record belongs, by replay through a separate
    connection. Raises UsageError or ChainError."""
    journal = SqliteJournal(path, read_only=True)
    try:
        if not 0 <= seq <= journal.seq:
            raise UsageError(f"there is no record {seq}", f"the newest is {journal.seq}")
        state = State()
        for record in verify(journal.records()):
            fold.apply(state, record)
            at, of = record.data.get("part", (1, 1))
            if record.seq >= seq and at == of:  # one decision is taken whole
                break
        return state
    finally:
        journal.close()


def as_declared(path: str, to_seq: int, request: Rollback) -> GoBack:
    """The arguments of a ``declare`` that brings back the declared state after record ``to_seq``, all of it or the
    resources that the request names. Raises UsageError or ChainError."""
    targets = request.targets
    then = state_at(path, to_seq)
    wanted = {r: d.to_json() for r in then.declared_ids() if (d := then.declared(r)) is not None}
    if targets:
        missing = [t for t in targets if t not in wanted]
        if missing:
            raise UsageError(f"{missing[0]} was not declared at record {to_seq}")
        wanted = {r: wanted[r] for r in targets}
    return GoBack(
        resources=wanted,
        prune=not targets,
        take=True,
        dry_run=request.dry_run,
        to_seq=to_seq,
        force=request.force,
        trials=request.trials,
        track={} if targets else dict(then.tracked),
        enforced={r: o for r, o in then.enforced.items() if r in wanted},
        closed=[r for r in then.closed if r in wanted],
    )
