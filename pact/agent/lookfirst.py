"""A request is answered when all that was touched before it was looked at: an answer is not older than its question.

That may be much (an upgrade has just touched a hundred thousand files): it is looked at a piece at a time, and other
requests and events have their turns in between. Nobody's request waits for those of people with a lesser role: while
somebody keeps many files in motion, each look takes long.  # S8
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from pact.agent.control import Client
from pact.errors import explained
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.agent.sightings import Sightings

#: How long a turn of the loop looks.
SLICE_NS: Final = 8_000_000
#: Whose requests come first, by role; all others' come last. "agent": the root's own.
RANKS: Final = {"agent": 0, "admin": 0, "ops": 1}


class Waiting(NamedTuple):
    """``token``: nothing else of this client is carried out meanwhile."""

    client: Client
    token: int
    looking: Iterator[None]
    then: Callable[[], None]


class LookFirst:
    """The requests that wait, in order; those of administrators come first, viewers' last."""

    def __init__(self, agent: Sightings) -> None:
        self._agent = agent
        self._waiting: list[Waiting] = []

    def add(self, client: Client, then: Callable[[], None], hurries: Callable[[], bool]) -> None:
        """Call ``then`` when it was looked: at once if nobody waits and little was touched. ``hurries``: asked when the
        look begins; whether it includes what is in constant motion."""
        wait = Waiting(client, self._agent.next_token(), self._agent.looking(hurries), then)
        if not self._waiting and self._looked(wait, time.monotonic_ns() + SLICE_NS):
            return
        client.tokens.add(wait.token)
        self._waiting.append(wait)

    def runs(self) -> bool:
        return bool(self._waiting)

    def turn(self) -> None:
        """A few milliseconds for the first ones."""
        control, ends_ns = self._agent.control, time.monotonic_ns() + SLICE_NS
        while self._waiting and time.monotonic_ns() < ends_ns:
            first = min(self._waiting, key=_rank)
            # Who wants signs of life gives its request up when it goes; a request of others counts once it was read.
            counts, began_ns = control.connected(first.client) or not first.client.alive, time.monotonic_ns()
            if counts and not self._looked(first, ends_ns):
                return
            self._waiting.remove(first)
            if counts:
                self._spend(first.client, time.monotonic_ns() - began_ns)
                control.flush(first.client)

    def _spend(self, client: Client, ns: int) -> None:
        """The answer took so long. What was touched would have been looked at without the question, too."""
        if client.remote and self._agent.link is not None:
            self._agent.link.spend(client.caller.actor, ns / NS_PER_S)
        elif not client.admin:
            self._agent.control.budget.spend(client.caller.actor.uid, ns / NS_PER_S)

    def _looked(self, wait: Waiting, ends_ns: int) -> bool:
        """Look until then, and if all is done, go on with the request. Returns whether it is done."""
        try:
            for _ in wait.looking:
                if time.monotonic_ns() >= ends_ns:
                    return False
        except OSError as exc:
            wait.client.tokens.discard(wait.token)
            self._agent.fail(wait.client, explained(exc))
        else:
            wait.then()  # it may decide, and the client's next request must not be answered meanwhile
            wait.client.tokens.discard(wait.token)
        return True


def _rank(wait: Waiting) -> int:
    return RANKS.get(wait.client.caller.actor.role, len(RANKS))
