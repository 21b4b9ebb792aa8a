"""What the rules for writers want done with their work: accept it, take it back, hold it, or leave it as long as a job
runs. Pure; ``Owner.then`` carries the rule's answer into the records, so that a replay needs no configuration.  # O5
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from pact.core.node import change as life
from pact.core.node.change import Change
from pact.model import NS_PER_S, Owner

COMMIT: Final = "commit"
ROLLBACK: Final = "rollback"
HOLD: Final = "hold"
JOB: Final = "job:"
JOB_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\[\]-]{0,127}")
#: How long nothing of a run's change may move before the rule is carried out, while the run goes on, and after its end.
QUIET_NS: Final = 5 * NS_PER_S
ENDED_NS: Final = NS_PER_S
TRIES_MAX: Final = 5
#: The hold of a job's change ends with the job; this is for a job of whose end nobody tells.
JOB_MAX_NS: Final = 30 * 24 * 3600 * NS_PER_S


def job_of(owner: Owner) -> str:
    """The job as long as which this owner's work lasts; ``""`` for none."""
    return owner.then.removeprefix(JOB) if owner.then.startswith(JOB) else ""


def together(before: Owner | None, writer: Owner | None) -> Owner | None:
    """Whose a resource is that both have written since it was last looked at: the last identified one's. But what is
    seen then is not the work of one run alone, so no rule accepts it, or takes it back.  # C9, O5"""
    if before is None or writer is None or before.whose == writer.whose or writer.then not in (COMMIT, ROLLBACK):
        return writer or before
    return replace(writer, run="", then="")


def takes_over(change: Change, writer: Owner | None) -> bool:
    """Whether an equal value is this writer's from now on: another job wants it too, and the first one may end
    before.  # O7"""
    return (
        writer is not None
        and bool(job_of(writer))
        and writer.whose != change.owner.whose
        and change.state in (life.OPEN, life.HELD)
    )


def settles(change: Change) -> bool:
    """Whether the rule for its owner settles this change, once the run is done with it."""
    return (
        change.owner.then in (COMMIT, ROLLBACK)
        and change.state == life.OPEN
        and not change.group
        and not change.intents
        and bool(change.members)
    )


def why_held(owner: Owner) -> str:
    """The reason of the hold that such an owner's change begins with; ``""`` if it begins with none."""
    if job := job_of(owner):
        return f"job {job} runs"
    return f"by the rule for {owner.named}" if owner.then == HOLD else ""


def own_members(change: Change) -> list[str]:
    """The members that nobody else has changed: a rule for one writer settles no other's work.  # C9"""
    return [r for r, m in change.members.items() if not m.also]
