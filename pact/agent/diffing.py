"""``pact diff``: gathered on the loop, a few milliseconds in each turn, and written out by a separate thread.

However much has drifted, no other request waits for it, and only a piece of it is in memory. Drift that is settled
meanwhile is left out.
"""

from __future__ import annotations

import heapq
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from pact.agent import views
from pact.agent.client import Client
from pact.agent.telling import Tellers
from pact.agent.worker import Result
from pact.core.node import tracked
from pact.core.node.events import Ticked
from pact.errors import PactError
from pact.limits import ANSWER_PIECE, ANSWER_PIECE_S
from pact.resources.base import Blobs

if TYPE_CHECKING:
    from pact.agent.driver import Driver

#: How long one turn of the loop gathers.
TURN_NS: Final = 4_000_000
LOOK_EVERY: Final = 16
#: Entries of an answer that are in memory at once.
PIECE: Final = 256
SORTED_AT_ONCE: Final = 1_000
HEAD: Final = b'{"ok":true,"exit":0,"message":"","hint":"","result":{"v":1,"resources":['


def gather(
    tellers: Tellers, long_answers: LongAnswers, client: Client, token: int, targets: Sequence[str]
) -> Iterator[bool]:
    """Gather step by step; each step is short. True: a piece is being written, and the next step is for when the client
    has read it. Raises UsageError for an unknown target."""
    ids = views.diff_ids(tellers.agent.node, client.caller, targets)
    return _gather(Answer(tellers, long_answers, client, token), frozenset(targets), ids)


def _gather(answer: Answer, targets: Collection[str], ids: list[str]) -> Iterator[bool]:
    agent, client = answer.tellers.agent, answer.client  # whose role may change before the last piece
    found = deque[views.Differing]()
    for resource in in_order(ids):
        one = None if resource is None else views.differing(agent.node, client.caller, agent.veil, resource)
        if one is not None:
            found.append(one)
        if len(found) < PIECE:
            yield False
        else:
            answer.write(found)
            found = deque()
            yield True
    new: list[dict[str, Any]] = []
    listed = views.each_untracked(agent.node, client.caller, agent.veil, targets or None)
    for entry in listed:
        if entry is not None:
            new.append({"id": entry["resource"], **entry})
            if len(new) == views.UNTRACKED_MAX:
                break
        yield False
    state = agent.node.state
    unknown = sorted(r for r in agent.unrecorded if r not in state.member_of and (not targets or r in targets))
    rest: dict[str, Any] = {"untracked": new, "untracked_count": tracked.count(agent.node)}
    if unknown:
        rest["unrecorded"] = unknown if client.admin else agent.veil.unnamed(unknown, agent.node.closed_names())
    answer.write(found, rest)


def in_order(names: list[str]) -> Iterator[str | None]:
    """The names in order, in short steps: ``None`` where there is no name yet. Sorting all of them at once would take
    as long as many steps."""
    pieces = []
    for at in range(0, len(names), SORTED_AT_ONCE):
        pieces.append(sorted(names[at : at + SORTED_AT_ONCE]))
        yield None
    yield from heapq.merge(*pieces)


@dataclass(slots=True)
class Answer:
    """An answer that is written by a thread and sent a piece at a time: with a hundred thousand entries it is larger
    than what the agent may use."""

    tellers: Tellers
    long_answers: LongAnswers
    client: Client
    token: int
    begun: bool = False  # a piece was sent
    named: bool = False  # an entry was sent

    def write(self, found: deque[views.Differing], rest: Mapping[str, Any] | None = None) -> None:
        """Let the thread write entries, a moment's work at a time: a comparison of two texts may take long, and an
        administrator's answer waits for one piece only, whoever else asks. ``rest``: these are the last, and what
        follows them.  # S7"""
        agent, client = self.tellers.agent, self.client

        def work() -> Result:
            ends_s, size, bodies = time.monotonic() + ANSWER_PIECE_S, 0, list[bytes]()
            while found:
                bodies.append(_written(found.popleft(), agent.telling.blobs))
                size += len(bodies[-1])
                if time.monotonic() >= ends_s or size > ANSWER_PIECE:
                    break
            last = not found and rest is not None
            text = b",".join(bodies)
            end = b"]," + orjson.dumps(rest)[1:-1] + b"}}" if last else b""

            def done(t_ns: int, wall_ns: int) -> Ticked:
                if self.token in client.tokens and agent.control.connected(client):
                    if last:
                        client.tokens.discard(self.token)
                    self._send(text, end, last=last)
                    if found:
                        client.when_taken(lambda: self.write(found, rest))
                    elif not last:
                        client.when_taken(lambda: self.long_answers.resume(self.token))
                    agent.control.flush(client)
                return Ticked(t_ns, wall_ns)

            return Result(0, make=done)

        self.tellers.add(client, self._guarded(agent.answering(client, self.token, work), work))

    def _send(self, text: bytes, end: bytes, *, last: bool) -> None:
        comma = b"," if self.named and text else b""
        part = (b"" if self.begun else HEAD) + comma + text + end
        self.named |= bool(text)
        if last and not self.begun:
            self.client.send(part)
        else:
            self.client.send_part(part, last=last)
        self.begun = True

    def _guarded(self, answering: Callable[[], Result], work: Callable[[], Result]) -> Callable[[], Result]:
        """The work; if it fails, the client gets the error, or, in the middle of its answer, is hung up."""

        def guarded() -> Result:
            if not self.begun:
                return answering()
            try:
                return work()
            except Exception:
                traceback.print_exc()

                def done(t_ns: int, wall_ns: int) -> Ticked:
                    self.client.tokens.discard(self.token)
                    self.client.break_off()
                    self.tellers.agent.control.flush(self.client)
                    return Ticked(t_ns, wall_ns)

                return Result(0, make=done)

        return guarded


def _written(found: views.Differing, blobs: Blobs) -> bytes:
    try:
        return found.written(blobs)
    except PactError as exc:  # the store cannot be read: the rest of the entry can be shown
        return orjson.dumps({**found.entry, "unreadable": exc.message})


@dataclass(slots=True)
class LongAnswer:
    """One long piece of work for a client."""

    client: Client
    token: int
    steps: Iterator[bool]


class LongAnswers:
    """Long work on the loop: one piece at a time, and the next piece of one person only after that person has read the
    answer of the one before. So the memory is bounded, however many clients ask, and however often. Administrators'
    pieces come first."""

    def __init__(self) -> None:
        self._waiting: list[LongAnswer] = []
        self._active: LongAnswer | None = None
        self._given: list[LongAnswer] = []  # their pieces are being written, or wait to be read
        self._stuck = False  # every waiting client has unread answers: an event will tell when one reads

    def add(self, client: Client, token: int, steps: Iterator[bool]) -> None:
        self._wait(LongAnswer(client, token, steps))

    def _wait(self, one: LongAnswer) -> None:
        self._waiting.append(one)
        self._waiting.sort(key=lambda s: not s.client.admin)
        self._stuck = False

    def resume(self, token: int) -> None:
        """The client of this work has read its piece: the work goes on when its turn comes."""
        for one in self._given:
            if one.token == token:
                self._given.remove(one)
                self._wait(one)
                return

    def runs(self) -> bool:
        """Whether there is work to do in this turn."""
        return self._active is not None or (bool(self._waiting) and not self._stuck)

    def turn(self, agent: Driver) -> None:
        """A few milliseconds for the active piece of work."""
        self._given = [s for s in self._given if agent.control.connected(s.client) and _is_owed(s)]
        if self._active is None or not agent.control.connected(self._active.client) or self._gives_way(self._active):
            self._active = self._next(agent, self._active)
            self._stuck = self._active is None
        active = self._active
        if active is None:
            return
        ends_ns = time.monotonic_ns() + TURN_NS
        for at, is_written in enumerate(active.steps):
            if is_written:
                break
            if at % LOOK_EVERY == 0 and time.monotonic_ns() >= ends_ns:
                return
        self._active = None
        self._given.append(active)

    def _gives_way(self, active: LongAnswer) -> bool:
        return not active.client.admin and any(s.client.admin for s in self._waiting)

    def _next(self, agent: Driver, active: LongAnswer | None) -> LongAnswer | None:
        if active is not None:
            self._wait(active)
        self._waiting = [s for s in self._waiting if agent.control.connected(s.client)]
        busy = {s.client.caller.owner.key for s in self._given}
        for found in self._waiting:
            if found.client.caller.owner.key not in busy or found.client.admin:
                self._waiting.remove(found)
                return found
        return None


def _is_owed(one: LongAnswer) -> bool:
    return one.token in one.client.tokens or one.client.wants_write()
