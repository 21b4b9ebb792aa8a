"""PBS (OpenPBS, PBS Professional): the execution daemon keeps a file for each job that is on this node, from before its
prologue until after its epilogue; ``pbsnodes`` takes the node out of service, with a comment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Final

from pact.agent.scheduler import BACK, JOBS_MAX, Outcome, SchedulerError, Seen, is_mine, ran, tool
from pact.core.node.writers import JOB_NAME
from pact.observe.jobs import of_root

CONF: Final = "/etc/pbs.conf"
HOME: Final = "/var/spool/pbs"
CONF_MAX: Final = 64 << 10
DOWN: Final = frozenset({"down", "stale", "state-unknown", "unresolvable"})


class Pbs:
    """``node``: its name at the server."""

    def __init__(self, node: str, directory: str = "") -> None:
        self.node, self.directory = node, directory

    def running(self) -> Seen:
        if not any(p.name == "pbs_mom" for p in of_root()):
            return Seen(frozenset(), "pbs_mom does not run")
        where = os.path.join(home(), "mom_priv", "jobs")
        try:
            files = os.listdir(where)[:JOBS_MAX]
        except OSError as exc:
            return Seen(frozenset(), f"{where}: {os.strerror(exc.errno or 0).lower()}")
        jobs = {f[:-3] for f in files if f.endswith(".JB")}
        return Seen(frozenset(j for j in jobs if JOB_NAME.fullmatch(j)))

    def ended(self, jobs: Collection[str]) -> frozenset[str]:
        return frozenset(jobs)  # the daemon's files are complete: what has none has ended here

    def settle(self, wanted: str, mine: Collection[str], *, was_set: bool) -> Outcome:
        states, comment = self._state()
        if states & DOWN:
            return Outcome("", f"the node is {'+'.join(sorted(states & DOWN))}", later=True)
        offline = "offline" in states
        ours = offline and is_mine(comment, mine)
        if offline and not ours:
            return Outcome("", f"somebody else has taken it offline: {comment or 'without a comment'}")
        if not wanted:
            if ours:
                self._pbsnodes("-r", "-C", "", self.node)
            return Outcome("")
        if not offline and was_set:
            return Outcome("", BACK)
        if comment != wanted or not offline:
            self._pbsnodes("-o", "-C", wanted, self.node)
        return Outcome(wanted)

    def _state(self) -> tuple[frozenset[str], str]:
        out = self._pbsnodes(self.node)
        found = dict(re.findall(r"^\s+(state|comment) = (.*?)\s*$", out, re.MULTILINE))
        if "state" not in found:
            raise SchedulerError(f"pbsnodes {self.node} says no state", "is [scheduler] node its name at the server?")
        return frozenset(s.strip() for s in found["state"].split(",")), found.get("comment", "")

    def _pbsnodes(self, *words: str) -> str:
        said = ran([tool("pbsnodes", self.directory), *words])
        if said.code != 0:
            raise SchedulerError(f"pbsnodes: {said.first}")
        return said.out


def home() -> str:
    """PBS_HOME, as its configuration says it."""
    try:
        with open(os.environ.get("PBS_CONF_FILE", CONF), encoding="utf-8", errors="replace") as f:
            match = re.search(r"^\s*PBS_HOME\s*=\s*(\S+)", f.read(CONF_MAX), re.MULTILINE)
    except OSError:
        return HOME
    return match[1] if match else HOME
