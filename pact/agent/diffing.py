"""``pact diff``: gathered on the loop, a few milliseconds in each turn, and written out by a separate thread.

However much has drifted, no other request waits for it. Drift that is settled meanwhile is left out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from pact.agent import views
from pact.agent.control import Client
from pact.agent.telling import Tellers
from pact.agent.worker import Result
from pact.core.node import tracked
from pact.core.node.events import Ticked
from pact.errors import PactError
from pact.limits import ANSWER_PIECE_S
from pact.resources.base import Blobs

if TYPE_CHECKING:
    from pact.agent.driver import Driver

#: How long one turn of the loop gathers.
SLICE_NS: Final = 4_000_000
LOOK_EVERY: Final = 16


def gather(tellers: Tellers, client: Client, token: int, targets: Sequence[str]) -> Iterator[None]:
    """Gather step by step; each step is short. Raises UsageError for an unknown target."""
    ids = views.diff_ids(tellers.agent.node, targets)
    return _gather(tellers, client, token, frozenset(targets), ids)


def _gather(
    tellers: Tellers, client: Client, token: int, targets: Collection[str], ids: Sequence[str]
) -> Iterator[None]:
    agent = tellers.agent
    found = deque[views.Differing]()
    for resource in ids:
        one = views.differing(agent.node, client.caller, agent.veil, resource)
        if one is not None:
            found.append(one)
        yield
    new: list[dict[str, Any]] = []
    listed = views.each_untracked(agent.node, client.caller, agent.veil, targets or None)
    for entry in listed:
        if entry is not None:
            new.append({"id": entry["resource"], **entry})
            if len(new) == views.UNTRACKED_MAX:
                break
        yield
    state = agent.node.state
    unknown = sorted(r for r in agent.unrecorded if r not in state.member_of and (not targets or r in targets))
    rest: dict[str, Any] = {"untracked": new, "untracked_count": tracked.count(agent.node)}
    if unknown:
        rest["unrecorded"] = unknown
    _write(tellers, client, token, found, [], rest)


def _write(
    tellers: Tellers,
    client: Client,
    token: int,
    found: deque[views.Differing],
    entries: list[tuple[str, bytes]],
    rest: Mapping[str, Any],
) -> None:
    """Let the thread write entries, a moment's work at a time: a comparison of two texts may take long, and an
    administrator's answer waits for one piece only, whoever else asks.  # S7"""
    agent = tellers.agent

    def work() -> Result:
        ends_s = time.monotonic() + ANSWER_PIECE_S
        while found:
            entries.append(_written(found.popleft(), agent.telling.blobs))
            if time.monotonic() >= ends_s:
                break
        body = b"" if found else _answer(entries, rest)

        def done(t_ns: int, wall_ns: int) -> Ticked:
            if token in client.tokens and agent.control.connected(client):
                if body:
                    client.tokens.discard(token)
                    client.send(body)
                    agent.control.flush(client)
                else:
                    _write(tellers, client, token, found, entries, rest)
            return Ticked(t_ns, wall_ns)

        return Result(0, done)

    tellers.add(client, agent.answering(client, token, work))


def _written(found: views.Differing, blobs: Blobs) -> tuple[str, bytes]:
    try:
        return found.entry["id"], found.written(blobs)
    except PactError as exc:  # the store cannot be read: the rest of the entry can be shown
        return found.entry["id"], orjson.dumps({**found.entry, "unreadable": exc.message})


def _answer(entries: list[tuple[str, bytes]], rest: Mapping[str, Any]) -> bytes:
    entries.sort()
    return (
        b'{"ok":true,"exit":0,"message":"","hint":"","result":{"v":1,"resources":['
        + b",".join(body for _, body in entries)
        + b"],"
        + orjson.dumps(rest)[1:-1]
        + b"}}"
    )


@dataclass(slots=True)
class Slice:
    """One long piece of work for a client. ``writing``: its answer is being written, or waits to be read."""

    client: Client
    token: int
    steps: Iterator[None]
    writing: bool = False


class Slices:
    """Long work on the loop: one piece at a time, and the next piece of one person only after that person has read the
    answer of the one before. So the memory is bounded, however many clients ask, and however often. For an admin's
    piece another's is set aside."""

    def __init__(self) -> None:
        self._waiting: list[Slice] = []
        self._active: Slice | None = None
        self._aside: Slice | None = None
        self._given: list[Slice] = []
        self._stuck = False  # every waiting client has unread answers: an event will tell when one reads

    def add(self, client: Client, token: int, steps: Iterator[None]) -> None:
        self._waiting.append(Slice(client, token, steps))
        self._waiting.sort(key=lambda s: not s.client.admin)
        self._stuck = False

    def runs(self) -> bool:
        """Whether there is work to do in this turn."""
        if self._active is not None:
            return not self._active.writing or self._gives_way(self._active)
        return self._aside is not None or (bool(self._waiting) and not self._stuck)

    def _gives_way(self, active: Slice) -> bool:
        return not active.client.admin and any(s.client.admin for s in self._waiting)

    def turn(self, agent: Driver) -> None:
        """A few milliseconds for the active piece of work."""
        active = self._active
        if active is not None and self._gives_way(active):
            self._aside, self._active = active, None
            active = None
        if active is not None and active.writing and active.token not in active.client.tokens:
            self._given.append(active)
            self._active = active = None
        self._given = [s for s in self._given if agent.control.connected(s.client) and s.client.wants_write()]
        if active is not None and not agent.control.connected(active.client):
            self._active = active = None
        if active is None:
            self._active = active = self._next(agent)
            self._stuck = active is None
        if active is None or active.writing:
            return
        ends_ns = time.monotonic_ns() + SLICE_NS
        for at, _ in enumerate(active.steps):
            if at % LOOK_EVERY == 0 and time.monotonic_ns() >= ends_ns:
                return
        active.writing = True

    def _next(self, agent: Driver) -> Slice | None:
        self._waiting = [s for s in self._waiting if agent.control.connected(s.client)]
        if self._aside is not None and not any(s.client.admin for s in self._waiting):
            found, self._aside = self._aside, None
            return found
        busy = {s.client.caller.owner.key for s in self._given}
        for found in self._waiting:
            if found.client.caller.owner.key not in busy or found.client.admin:
                self._waiting.remove(found)
                return found
        return None
