"""Slurm: its jobs are seen by its own processes and cgroups, as every version of it has them; ``scontrol`` asks and
tells the controller only about this node's state and about single jobs.

``scontrol listjobs`` and ``listpids`` ask the same step daemons that are looked at here. Slurm 22.05 has only the
second; both need Slurm's configuration, for which a configless node may have to ask the controller.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection
from typing import Final

from pact.agent.scheduler import BACK, Outcome, SchedulerError, Seen, is_mine, ran, tool
from pact.observe.jobs import job_in_environment, job_of_title, of_root

#: The step cgroups, of both versions of the cgroup plugin.
V2: Final = "/sys/fs/cgroup/system.slice/*slurmstepd.scope/job_*"
V1: Final = "/sys/fs/cgroup/freezer/slurm*/uid_*/job_*"
CGROUPS_MAX: Final = 4096
#: What a job may be while it has ended on this node: a requeued one waits to begin again, with a prolog of its own.
ENDED: Final = frozenset(
    {
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"),
        *("PREEMPTED", "REVOKED", "PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "LAUNCH_FAILED"),
    }
)
#: A node in one of these states is not to be touched: draining says nothing there, reasons are somebody else's, and a
#: reboot that somebody has asked for would be called off.
DOWN: Final = frozenset(
    {
        *("DOWN", "ERROR", "FAIL", "FAILING", "FUTURE", "POWERED_DOWN", "POWERING_DOWN", "POWER_DOWN"),
        *("REBOOT_REQUESTED", "REBOOT_ISSUED"),
    }
)
REASON: Final = re.compile(r" Reason=(.*?)(?: \[[^\[\]]*@[^\[\]]*\])?(?= [A-Z][A-Za-z]*=|\s*$)")


class Slurm:
    """``node``: its NodeName."""

    def __init__(self, node: str, directory: str = "") -> None:
        self.node, self.directory = node, directory

    def running(self) -> Seen:
        """Jobs with a step daemon, with processes in a cgroup of theirs, or whose prolog or epilog runs."""
        processes = list(of_root())
        daemons = {p.pid for p in processes if p.name == "slurmd"}
        jobs = {job for p in processes if p.name == "slurmstepd" and (job := job_of_title(p.title))}
        jobs |= {job for p in processes if p.parent in daemons and (job := job_in_environment(p.pid))}
        return Seen(frozenset(jobs | _in_cgroups()), "" if daemons else "slurmd does not run")

    def ended(self, jobs: Collection[str]) -> frozenset[str]:
        """A job without a process here may run all the same: an allocation between two steps has none. So the
        controller is asked about that one job."""
        return frozenset(job for job in jobs if not re.fullmatch(r"\d+", job) or self._has_ended(job))

    def _has_ended(self, job: str) -> bool:
        said = ran([tool("scontrol", self.directory), "-o", "show", "job", job])
        if said.code != 0:
            if "Invalid job id" in said.err + said.out:  # it ended so long ago that the controller has forgotten it
                return True
            raise SchedulerError(f"scontrol show job {job}: {said.first}")
        # Its name, which comes first, is its user's choice, and may look like the rest, or like lines of other jobs:
        # every state that stands there counts. Only jobs in an array, or of several parts, have such lines.
        states = re.findall(r"\bJobState=(\w*)", said.out)
        if said.out.count("\nJobId="):
            states = self._states_of(job) or states
        return bool(states) and all(state in ENDED for state in states)

    def _states_of(self, job: str) -> list[str]:
        """Without anybody's text; empty if that cannot be had."""
        try:
            said = ran([tool("squeue", self.directory), "-h", "-a", "-t", "all", "-o", "%A %T", "-j", job])
        except SchedulerError:
            return []
        rows = [line.split() for line in said.out.splitlines()] if said.code == 0 else []
        return [row[1] for row in rows if len(row) == 2 and row[0] == job]

    def settle(self, wanted: str, mine: Collection[str], *, was_set: bool) -> Outcome:
        flags, reason = self._state()
        if "UNKNOWN" in flags:  # a controller that has just started waits for the node to register
            raise SchedulerError("the controller does not know yet how the node is")
        if flags & DOWN:
            return Outcome("", f"the node is {'+'.join(sorted(flags & DOWN))}", later=True)
        drained = "DRAIN" in flags or "DRAINED" in flags or "DRAINING" in flags
        ours = drained and is_mine(reason, mine)
        if drained and not ours:
            return Outcome("", f"somebody else has drained it: {reason or 'without a reason'}")
        if not wanted:
            if ours:
                self._update("state=undrain")  # unlike resume it starts no node that is down meanwhile
            return Outcome("")
        if not drained and was_set:
            return Outcome("", BACK)
        if reason != wanted or not drained:
            self._update("state=drain", f"reason={wanted}")
        return Outcome(wanted)

    def _state(self) -> tuple[frozenset[str], str]:
        """The node's state in its parts, and the reason that stands beside it."""
        said = ran([tool("scontrol", self.directory), "-o", "show", "node", self.node])
        state = re.search(r" State=([A-Z_+*~#!%$@^-]+) ", said.out)
        if said.code != 0 or state is None:
            raise SchedulerError(f"scontrol show node {self.node}: {said.first}", "is [scheduler] node its NodeName?")
        reason = REASON.search(said.out)
        return frozenset(re.findall(r"[A-Z_]+", state[1])), reason[1] if reason else ""

    def _update(self, *words: str) -> None:
        said = ran([tool("scontrol", self.directory), "update", f"nodename={self.node}", *words])
        if said.code != 0:
            raise SchedulerError(f"scontrol update {words[0]}: {said.first}")


def _in_cgroups() -> set[str]:
    """Jobs in whose cgroups processes are. Empty ones are left behind now and then, and count for nothing."""
    found = set()
    for path in glob.glob(V2)[:CGROUPS_MAX]:
        try:
            with open(f"{path}/cgroup.events", encoding="ascii", errors="replace") as f:
                populated = "populated 1" in f.read(4096)
        except OSError:
            continue
        if populated:
            found.add(os.path.basename(path))
    for path in glob.glob(V1)[:CGROUPS_MAX]:
        if any(_has_processes(where) for where, _, _ in os.walk(path)):
            found.add(os.path.basename(path))
    return {name[4:] for name in found if name[4:].isdigit()}


def _has_processes(path: str) -> bool:
    try:
        with open(f"{path}/cgroup.procs", "rb") as f:
            return bool(f.read(1))
    except OSError:
        return False
