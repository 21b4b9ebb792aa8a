"""Resources that were gone with their device and are there again, with values that nobody chose.

A device that is plugged in has the kernel's defaults, as everything has after a reboot. That is nobody's drift: the
declared values are brought back at once. The drift is recorded first, so a node that is killed meanwhile has ordinary
drift with a window. A write of somebody who is known is his drift, and stays so.  # B4
"""

from __future__ import annotations

from collections.abc import Sequence

from pact.core.node import below, recording, untold
from pact.core.node import change as life
from pact.core.node.desk import Desk
from pact.core.node.events import AGENT_CALLER, Acted, Sighting
from pact.core.node.jobs import Job
from pact.core.plan import anyhow
from pact.model import UNATTRIBUTED

CAUSE = "returned"


def found(node: Desk, sightings: Sequence[Sighting]) -> list[Sighting]:
    """Those of these observations, which are not taken in yet, that show a returned resource."""
    state = node.state
    if not state.changes or state.suspended or state.holds:
        return []
    return [s for s in sightings if s.owner is None and isinstance(s.observation, dict) and _was_gone(node, s)]


def _was_gone(node: Desk, sighting: Sighting) -> bool:
    change = node.state.change_of(sighting.resource)
    if change is None or not node.nature(sighting.resource).comes_back:
        return False
    if change.state == life.ROLLING or change.intents or change.group or change.id in node.busy:
        return False
    return change.members[sighting.resource].actual is None


def converge(node: Desk, sightings: Sequence[Sighting]) -> None:
    """Bring those that are not as declared to declared state."""
    steps = []
    for sighting in sightings:
        declared, change = node.state.declared(sighting.resource), node.state.change_of(sighting.resource)
        if declared is not None and declared.attrs is not None and change is not None:
            actual = change.members[sighting.resource].actual
            steps.append(below.back(node, sighting.resource, declared, actual))
    if not steps:
        return
    job = node.job(
        CAUSE, AGENT_CALLER, None, ids=tuple(s.id for s in steps), steps=anyhow(steps, node.nature, node.in_turns)
    )
    recording.planned(node, job.steps, CAUSE)
    below.act(node, job, {}, job.ids)


def acted(node: Desk, job: Job[None], event: Acted) -> None:
    owed = untold.owed(node, job, event)
    node.finish(job)
    recording.converged(node, event.results, CAUSE, owed=owed, reads=node.learn(event))
    node.sight(event.sightings)
    node.sight(event.moved)
    untold.keep(node, event, UNATTRIBUTED, CAUSE)
    node.recheck(job.ids)
