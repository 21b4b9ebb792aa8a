"""Draining the node in the batch system while it needs a person: a stale emergency, a failed or a blocked change.

pact's reasons begin with ``pact:``; what anybody else has drained is neither touched nor put back into service.  # O8
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import orjson

from pact.agent.config import Config
from pact.agent.scheduler import MARK, Outcome, Scheduler, tidy
from pact.core import strict
from pact.core.node import change as life
from pact.core.node.events import Event, Ticked
from pact.core.node.state import State
from pact.core.node.step import Node
from pact.errors import explained
from pact.host.clock import Clock
from pact.host.notify import log
from pact.model import NS_PER_S

#: What passes within this time drains nothing.
SETTLE_NS: Final = 2 * NS_PER_S
#: Up to so much later, by the node's name: a group that is blocked on thousands of nodes is no storm at the controller.
SPREAD_NS: Final = 20 * NS_PER_S
SPREAD_STEPS: Final = 1000
RETRY_NS: Final = 5 * NS_PER_S
RETRY_MAX_NS: Final = 300 * NS_PER_S
#: How often a node that is somebody else's, or down, is looked at again.
AGAIN_NS: Final = 300 * NS_PER_S
NAMED_MAX: Final = 3
MINE_MAX: Final = 8


class Shell(Protocol):
    """What is needed of the agent."""

    config: Config
    clock: Clock
    node: Node


def reason(state: State) -> str:
    """Why the node should take no jobs; ``""`` if nothing is wrong. The same state gives the same text."""
    parts = []
    if state.emergency is not None and state.emergency.stale:
        parts.append(f"emergency by {tidy(state.emergency.by)} is stale")
    for what, text in ((life.FAILED, "failed"), (life.BLOCKED, "blocked")):
        names = [c.id for c in state.changes.values() if c.state == what]
        if names:
            more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
            parts.append(f"{', '.join(names[:NAMED_MAX])}{more} {text}")
    return f"{MARK} {'; '.join(parts)}" if parts else ""


class Drains:
    """Brings the batch system to what the node's state wants, one question at a time, off the loop. ``mine`` are the
    reasons that it has set and that may still stand; they are in a file, so that a restart knows its own."""

    def __init__(
        self,
        agent: Shell,
        scheduler: Scheduler | None,
        call: Callable[[Callable[[], Callable[[int, int], Event]]], None],
    ) -> None:
        self.agent, self._scheduler, self._call = agent, scheduler, call
        self._path = os.path.join(agent.config.state_dir, "drained")
        self._spread_ns = zlib.crc32(agent.config.name.encode()) % SPREAD_STEPS * SPREAD_NS // SPREAD_STEPS
        self._mine, self._done = self._load()
        self._wanted = ""
        self._seq, self._state = -1, agent.node.state
        self._busy = False
        self._next_ns: int | None = None
        self._pause_ns = RETRY_NS
        self.stands = self._mine[-1] if self._mine and self._done else ""
        self.left = ""
        self.error = ""
        if self._scheduler is not None and (agent.config.drain or self._mine):
            self._next_ns = agent.clock.now_ns() + SETTLE_NS + self._spread_ns  # a drain of the last run may stand

    def next_ns(self) -> int | None:
        return None if self._busy else self._next_ns

    def turn(self, now_ns: int) -> None:
        if self._scheduler is None or not (self.agent.config.drain or self._mine):
            return
        state = self.agent.node.state
        if state.seq != self._seq or state is not self._state:
            self._seq, self._state = state.seq, state
            wanted = reason(state) if self.agent.config.drain else ""
            if wanted != self._wanted:
                self._wanted, self.left = wanted, ""
                self._pause_ns = RETRY_NS
                self._next_ns = now_ns + SETTLE_NS + self._spread_ns
        if self._busy or self._next_ns is None or now_ns < self._next_ns:
            return
        self._busy, self._next_ns = True, None
        wanted = self._wanted
        if wanted and wanted not in self._mine:
            self._mine, self._done = [*self._mine, wanted][-MINE_MAX:], False
            self._save()
        mine, was_set = list(self._mine), self._done and bool(wanted)
        self._call(lambda: self._settle(wanted, mine, was_set))

    def _settle(self, wanted: str, mine: Sequence[str], was_set: bool) -> Callable[[int, int], Event]:
        """Not on the loop."""
        assert self._scheduler is not None
        try:
            outcome, error = self._scheduler.settle(wanted, mine, was_set=was_set), ""
        except Exception as exc:
            failed = explained(exc)
            outcome, error = Outcome(""), failed.message + (f" ({failed.hint})" if failed.hint else "")
        return lambda t, w: self._settled(wanted, outcome, error, t, w)

    def _settled(self, wanted: str, outcome: Outcome, error: str, t_ns: int, wall_ns: int) -> Event:
        self._busy = False
        if error:
            if error != self.error:
                log(f"the node could not be {'drained' if wanted else 'put back into service'}: {error}", 4)
            self._next_ns = t_ns + self._pause_ns
            self._pause_ns = min(2 * self._pause_ns, RETRY_MAX_NS)
        elif outcome.left:
            if wanted and outcome.left != self.left:
                log(f"the node is not drained: {outcome.left}", 4)
            self.stands = ""
            if not wanted and not outcome.later:  # what pact had set is gone, by somebody else's hand
                self._mine, self._done = [], True
                self._save()
            self._next_ns = t_ns + AGAIN_NS if wanted or outcome.later else None
        else:
            self._pause_ns = RETRY_NS
            if outcome.reason != self.stands:
                log(f"drained: {outcome.reason}" if outcome.reason else "put back into service")
            self.stands = outcome.reason
            self._mine, self._done = ([outcome.reason] if outcome.reason else []), True
            self._save()
        self.error, self.left = error, outcome.left
        if wanted != self._wanted:
            self._next_ns = t_ns + SETTLE_NS
        return Ticked(t_ns, wall_ns)

    def _save(self) -> None:
        """Best effort: without it a later run knows its drain by how the reason begins."""
        try:
            with open(self._path + ".new", "wb") as f:
                f.write(orjson.dumps({"reasons": self._mine, "done": self._done}))
            os.replace(self._path + ".new", self._path)
        except OSError:
            return

    def _load(self) -> tuple[list[str], bool]:
        try:
            with open(self._path, "rb") as f:
                known: Any = strict.loads_object(f.read(), strict.SMALL_MAX)
            return [r for r in known["reasons"] if isinstance(r, str) and r.startswith(MARK)], known["done"] is True
        except (OSError, ValueError, KeyError, TypeError):
            return [], True

    def status(self) -> dict[str, Any]:
        return {
            "drained": self.stands or None,
            **({"not_drained": self.left} if self.left and self._wanted else {}),
            **({"error": self.error} if self.error else {}),
        }
