"""A request is answered when all that was touched before it was looked at: an answer is not older than its question.

That may be much (an upgrade has just touched a hundred thousand files): it is looked at a piece at a time, and other
requests and events have their turns in between.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from pact.agent.control import Client
from pact.errors import explained

if TYPE_CHECKING:
    from pact.agent.sightings import Sightings

#: How long a turn of the loop looks.
SLICE_NS: Final = 8_000_000


class Waiting(NamedTuple):
    """``token``: nothing else of this client is carried out meanwhile."""

    client: Client
    token: int
    looking: Iterator[None]
    then: Callable[[], None]


class LookFirst:
    """The requests that wait, in order."""

    def __init__(self, agent: Sightings) -> None:
        self._agent = agent
        self._waiting: deque[Waiting] = deque()

    def add(self, client: Client, then: Callable[[], None], *, everything: bool) -> None:
        """Call ``then`` when it was looked: at once if nobody waits and little was touched. ``everything``: also what
        is in constant motion."""
        wait = Waiting(client, self._agent.next_token(), self._agent.looking(everything=everything), then)
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
            first = self._waiting[0]
            connected = control.connected(first.client)
            if connected and not self._looked(first, ends_ns):
                return
            self._waiting.popleft()
            if connected:
                control.flush(first.client)

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
            wait.client.tokens.discard(wait.token)
            wait.then()
        return True
