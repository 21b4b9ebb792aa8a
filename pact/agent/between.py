"""What is answered in the middle of a long decision.  # S7

The core decides one event at a time, and some take long: ten thousand files are committed at once. Between some of its
resources the core lets the loop look after its clients (``Ledger.in_turns``). Who asks whether the agent is there is
answered, and while a request is decided that has moved nothing yet also who asks what stands in memory. Everything that
needs a decision of its own, or a look at the machine, waits until this decision is made.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from pact.agent.requests import FIELDS, parse_request
from pact.core.node import tracked
from pact.core.node.ledger import PAUSE_EVERY
from pact.core.node.step import Node
from pact.errors import PactError, RequestError, explained

if TYPE_CHECKING:
    from pact.agent.client import Client
    from pact.agent.control import Control
    from pact.agent.requests import Requests
    from pact.host.notify import Notifier

#: How long the core decides before clients have a turn.
DECIDING_NS: Final = 8_000_000
#: How long they are served then: whoever asks in a loop does not keep the decision from being made.
SERVING_S: Final = 0.004
NEVER_NS: Final = 1 << 63
#: Answered from memory while a request is being decided that has moved nothing yet; ``NO_STATE``: always.
FROM_MEMORY: Final = frozenset({"ping", "status", "check", "tracked"})
NO_STATE: Final = frozenset({"ping"})
#: A longer line is none of these, and a status that tells of more new things takes long.
SMALL_BYTES: Final = 1024
NEW_MAX: Final = 200
#: That poll says at once.
EVENTS_MAX: Final = 64

T = TypeVar("T")


class Shell(Protocol):
    """What is needed of the agent."""

    control: Control
    node: Node
    requests: Requests
    notifier: Notifier

    def poll(self, timeout_s: float) -> Sequence[tuple[int, int]]: ...

    def has_looked(self) -> bool: ...

    def fail(self, client: Client, error: PactError) -> None: ...


class Between:
    """The turns of clients in the middle of a decision."""

    def __init__(self, agent: Shell) -> None:
        """``agent`` need not be complete before its first turn."""
        self._agent = agent
        self._next_ns = NEVER_NS
        self._serving = False
        #: Whether clients had a turn in this turn of the loop: what epoll has said before is old, and what it said to
        #: them it may not say again.
        self.served = False

    def begin(self) -> None:
        """A turn of the loop begins."""
        self.served, self._next_ns = False, time.monotonic_ns() + DECIDING_NS

    def end(self) -> None:
        """There are no clients any more."""
        self._next_ns = NEVER_NS

    def pause(self, moved: bool) -> None:
        """Serve clients if it is time. ``moved``: the state in memory is ahead of the durable one, and is not shown."""
        if time.monotonic_ns() < self._next_ns or self._serving:
            return
        self._serving = self.served = True
        try:
            self._serve(moved)
        except Exception:  # the decision goes on, whatever a client does
            traceback.print_exc()
        self._serving = False
        self._next_ns = time.monotonic_ns() + DECIDING_NS

    def in_turns(self, items: Iterable[T]) -> Iterator[T]:
        """The items of other long work on the state; between some of them clients may have a turn."""
        for at, item in enumerate(items, 1):
            if not at % PAUSE_EVERY:
                self.pause(True)
            yield item

    def _serve(self, moved: bool) -> None:
        agent = self._agent
        control = agent.control
        for fd, mask in agent.poll(0.0):
            if fd == control.fd:
                control.accept()
            elif fd in control.clients:
                control.ready(fd, mask)
        looked = not moved and self._nothing_has_happened()
        ends_s = time.monotonic() + SERVING_S
        for client in sorted(control.waiting(), key=lambda c: not c.admin):
            began_s = time.monotonic()
            if began_s >= ends_s:
                break
            if not control.connected(client) or not self._answered(client, looked=looked):
                continue
            control.flush(client)
            if not client.admin:
                control.budget.spend(client.caller.actor.uid, time.monotonic() - began_s)
        control.show_life()
        if agent.notifier.watchdog_ns:
            agent.notifier.send("WATCHDOG=1")

    def _nothing_has_happened(self) -> bool:
        """Whether no event waits, and everything that was touched was looked at. Asked after the requests were read: an
        answer is not older than its question."""
        control, ready = self._agent.control, self._agent.poll(0.0)
        others = any(fd != control.fd and fd not in control.clients for fd, _ in ready)
        return not others and len(ready) < EVENTS_MAX and self._agent.has_looked()

    def _answered(self, client: Client, *, looked: bool) -> bool:
        """Answer the client's next request if that is done from memory. ``looked``: whether the state in memory is
        durable, and nothing has been touched that was not looked at. Returns whether it was one."""
        agent = self._agent
        if len(client.lines[0]) > SMALL_BYTES:
            return False
        try:
            op, args, alive = parse_request(client.lines[0], FIELDS)
        except RequestError:
            return False  # refused in its turn
        if op not in (FROM_MEMORY if looked else NO_STATE):
            return False
        if op == "status" and tracked.count(agent.node) > NEW_MAX:
            return False
        try:
            client.next_request()
        except PactError as exc:
            agent.control.refuse(client, exc.message)
            return True
        client.alive = alive
        try:
            agent.requests.read_now(client, op, args)
        except Exception as exc:
            if not isinstance(exc, PactError | OSError):
                traceback.print_exc()
            agent.fail(client, explained(exc))
        return True
