"""A batch system of the site's own: two executables. One prints the jobs of this node, one a line; the other is called
with ``drain`` or ``resume`` and the reason. What others could have written is not run.  # S9
"""

from __future__ import annotations

from collections.abc import Collection

from pact.agent.scheduler import Outcome, SchedulerError, Seen, names, ran
from pact.host import owned

#: With this code the second executable says that somebody else has taken the node out of service.
OTHERS: int = 3


class Scripts:
    """``jobs`` and ``control`` are the paths."""

    def __init__(self, jobs: str, control: str) -> None:
        self.jobs, self.control = jobs, control

    def running(self) -> Seen:
        try:
            owned.require(self.jobs, "[scheduler] jobs")
            said = ran([self.jobs])
        except owned.NotOurs as exc:
            raise SchedulerError(exc.message, exc.hint) from None
        if said.code != 0:
            return Seen(frozenset(), f"{self.jobs}: {said.first}")
        return Seen(names(said.out.splitlines(), self.jobs))

    def ended(self, jobs: Collection[str]) -> frozenset[str]:
        return frozenset(jobs)  # a list that was printed whole is believed

    def settle(self, wanted: str, mine: Collection[str], *, was_set: bool) -> Outcome:
        if wanted and was_set:
            return Outcome(wanted)
        if not wanted and not mine:
            return Outcome("")  # nothing of pact's stands: a script that cannot say whose a drain is, is not asked
        try:
            owned.require(self.control, "[scheduler] control")
        except owned.NotOurs as exc:
            raise SchedulerError(exc.message, exc.hint) from None
        said = ran([self.control, *(("drain", wanted) if wanted else ("resume", list(mine)[-1]))])
        if said.code == OTHERS:
            return Outcome("", f"somebody else has drained it: {said.first}")
        if said.code != 0:
            raise SchedulerError(f"{self.control}: {said.first}")
        return Outcome(wanted)
