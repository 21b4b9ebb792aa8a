"""A request is answered when all that was touched before it was looked at: an answer is not older than its question.

That may be much (an upgrade has just touched a hundred thousand files): it is looked at a piece at a time, and other
requests and events have their turns in between. Nobody's request waits for those of people with a lesser role: while
somebody keeps many files in motion, each look takes long. But one turn in eight is for who has waited longest: people
with a role who ask without end do not keep the others out.  # S8
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final

from pact.agent.client import Client
from pact.errors import PactError, explained
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.agent.sightings import Sightings

#: How long a turn of the loop looks.
TURN_NS: Final = 8_000_000
#: Whose requests come first, by role; all others' come last. "agent": the root's own.
RANKS: Final = {"agent": 0, "admin": 0, "ops": 1}
OLDEST_EVERY: Final = 8  # turns


@dataclass(slots=True, eq=False)
class Waiting:
    """``token``: nothing else of this client is carried out meanwhile. ``own_ns``: what the request itself took so far;
    what was touched would have been looked at without it, too."""

    client: Client
    token: int
    then: Callable[[], None]
    steps: Iterator[None] = field(default_factory=lambda: iter(()))
    own_ns: int = 0


class LookFirst:
    """The requests that wait, in order; those of administrators come first, viewers' last."""

    def __init__(self, agent: Sightings) -> None:
        self._agent = agent
        self._waiting: list[Waiting] = []
        self._turns = 0

    def add(
        self,
        client: Client,
        then: Callable[[], None],
        hurries: Callable[[], bool],
        before: Iterable[None] = (),
        after: Iterable[None] = (),
    ) -> None:
        """Call ``then`` when it was looked: at once if nobody waits and little was touched. ``hurries``: asked when the
        look begins; whether it includes what is in constant motion. ``before`` and ``after``: more work for this
        request, in short steps, before and after the look."""
        wait = Waiting(client, self._agent.next_token(), then)
        wait.steps = chain(_counted(wait, before), self._agent.looking(hurries), _counted(wait, after))
        if not self._waiting and self._looked(wait, time.monotonic_ns() + TURN_NS):
            return
        client.tokens.add(wait.token)
        self._waiting.append(wait)

    def runs(self) -> bool:
        return bool(self._waiting)

    def turn(self) -> None:
        """A few milliseconds for the first ones."""
        control, ends_ns = self._agent.control, time.monotonic_ns() + TURN_NS
        self._waiting = [w for w in self._waiting if self._counts(w.client)]
        self._turns += 1
        oldest = self._turns % OLDEST_EVERY == 0
        while self._waiting and time.monotonic_ns() < ends_ns:
            first = self._waiting[0] if oldest else min(self._waiting, key=_rank)
            began_ns, own_ns = time.monotonic_ns(), first.own_ns
            if not self._looked(first, ends_ns):
                return
            self._waiting.remove(first)
            self._spend(first.client, own_ns + time.monotonic_ns() - began_ns)
            control.flush(first.client)

    def _counts(self, client: Client) -> bool:
        """Who wants signs of life gives its request up when it goes; a request of others counts once it was read."""
        return self._agent.control.connected(client) or not client.alive

    def _spend(self, client: Client, ns: int) -> None:
        if client.remote and self._agent.link is not None:
            self._agent.link.spend(client.caller.actor, ns / NS_PER_S)
        elif not client.admin:
            self._agent.control.budget.spend(client.caller.actor.uid, ns / NS_PER_S)

    def _looked(self, wait: Waiting, ends_ns: int) -> bool:
        """Look until then, and if all is done, go on with the request. Returns whether it is done."""
        try:
            for _ in wait.steps:
                if time.monotonic_ns() >= ends_ns:
                    return False
        except (OSError, StepError) as exc:
            wait.client.tokens.discard(wait.token)
            self._agent.fail(wait.client, explained(exc.__cause__ or exc))
        else:
            wait.then()  # it may decide, and the client's next request must not be answered meanwhile
            wait.client.tokens.discard(wait.token)
        return True


class StepError(Exception):
    """A request's own work failed: that ends the request alone."""


def _counted(wait: Waiting, steps: Iterable[None]) -> Iterator[None]:
    began_ns, own = time.monotonic_ns(), iter(steps)
    while True:
        try:
            next(own)
        except StopIteration:
            return
        except Exception as exc:
            if not isinstance(exc, PactError | OSError):
                traceback.print_exc()
            raise StepError from exc
        wait.own_ns += time.monotonic_ns() - began_ns
        yield
        began_ns = time.monotonic_ns()


def _rank(wait: Waiting) -> int:
    return RANKS.get(wait.client.caller.actor.role, len(RANKS))
