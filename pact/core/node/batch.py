"""Jobs of a batch system: what was set for a job is held while the job runs, and what waits for processes to leave is
tried again when a job has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from pact.core import ops
from pact.core.node import access, payloads, writers
from pact.core.node import change as life
from pact.core.node.desk import Desk
from pact.core.node.events import Asked
from pact.core.node.state import Hold, State
from pact.errors import UsageError


def asked_epilog(node: Desk, event: Asked[ops.Epilog]) -> None:
    """A job has ended: try again at once what its processes blocked. The holds of what was set for it end when its
    epilog has had its chance to take that back, which the shell tells with ``JobsEnded``.  # O7"""
    access.require(event.caller, "admin", "epilog")
    job = event.request.job
    if not writers.JOB_NAME.fullmatch(job):
        raise UsageError("this is no name of a job", "pact epilog --job 4711")
    holds = [h for _, h in holds_of_jobs(node.state) if writers.job_of(h.owner) == job]
    node.reply(event.token, {"job": job, "holds": [h.id for h in holds], "woken": wake(node)})


def jobs_ended(node: Desk, jobs: Sequence[str]) -> None:
    """What was set for a job has its window from now on: the holds that lasted as long as these jobs end.  # O7"""
    ended = frozenset(jobs)
    for resource, (wanted, holds) in list(node.meant.items()):
        left = [h for h in holds if writers.job_of(h.owner) not in ended]
        if left:
            node.meant[resource] = wanted, left
        else:
            del node.meant[resource]
    for cid, hold in holds_of_jobs(node.state):
        job = writers.job_of(hold.owner)
        if job in ended:
            node.record(payloads.HoldReleased(hold=hold.id, change=cid, cause=f"job {job} has ended"))
    wake(node)


def holds_of_jobs(state: State) -> list[tuple[str, Hold]]:
    """The holds that end with a job, each with its change."""
    return [
        (h.change, h)
        for h in state.holds.values()
        if h.change is not None and h.change in state.changes and writers.job_of(h.owner)
    ]


def wanted_by_jobs(state: State) -> frozenset[str]:
    """The changes that are held for running jobs: what they set is as it should be for now."""
    return frozenset(cid for cid, _ in holds_of_jobs(state) if state.changes[cid].state == life.HELD)


def all_ended(node: Desk) -> None:
    """The machine was started again: no job of before is left on it.  # O7"""
    jobs_ended(node, [writers.job_of(h.owner) for _, h in holds_of_jobs(node.state)])


def wake(node: Desk) -> list[str]:
    """Try again now what waits for its consumers to leave. Returns the changes."""
    woken = []
    for change in node.state.changes.values():
        if change.state == life.BLOCKED and ("retry", change.id) in node.alarms and change.id not in node.busy:
            node.alarms.schedule(("retry", change.id), node.t_ns)
            woken.append(change.id)
    return woken
