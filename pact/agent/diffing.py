"""``pact diff``: gathered on the loop, a few milliseconds a turn, and written out by a thread of its own.

However much has drifted, nobody else waits for it. What is settled meanwhile is left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import orjson

from pact.agent import views
from pact.agent.control import Client
from pact.agent.worker import Result
from pact.core import tracked
from pact.core.events import Ticked
from pact.errors import PactError
from pact.resources.base import Blobs

if TYPE_CHECKING:
    from pact.agent.agent import Agent

#: So long a turn of the loop gathers.
SLICE_NS: Final = 4_000_000
LOOK_EVERY: Final = 16
#: Entries that are handed over at once.
PIECE_MAX: Final = 200


def gather(agent: Agent, client: Client, token: int, targets: Sequence[str]) -> Iterator[None]:
    """Step by step; each step is short. Raises UsageError for a target that is nothing."""
    ids = views.diff_ids(agent.node, targets)
    return _gather(agent, client, token, targets, ids)


def _gather(agent: Agent, client: Client, token: int, targets: Sequence[str], ids: Sequence[str]) -> Iterator[None]:
    entries: list[tuple[str, bytes]] = []
    piece: list[views.Differing] = []
    for at, resource in enumerate(ids):
        found = views.differing(agent.node, client.caller, resource)
        if found is not None:
            piece.append(found)
        if len(piece) >= PIECE_MAX or at == len(ids) - 1:
            agent.telling.call(partial(_write, piece, entries, agent.telling.blobs))
            piece = []
        yield
    new: list[dict[str, Any]] = []
    listed = views.each_untracked(agent.node, client.caller, targets or None)
    for entry in islice(listed, views.UNTRACKED_MAX):
        new.append({"id": entry["resource"], **entry})
        yield
    state = agent.node.state
    unknown = sorted(r for r in agent.unrecorded if r not in state.member_of and (not targets or r in targets))
    rest: dict[str, Any] = {"untracked": new, "untracked_count": tracked.count(agent.node)}
    if unknown:
        rest["unrecorded"] = unknown

    def work() -> Result:
        body = _answer(entries, rest)

        def done(t_ns: int, wall_ns: int) -> Ticked:
            if token in client.tokens and agent.control.connected(client):
                client.tokens.discard(token)
                client.send(body)
                agent.control.flush(client)
            return Ticked(t_ns, wall_ns)

        return Result(0, done)

    agent.telling.call(agent.requests.answering(client, token, work))


def _write(piece: Sequence[views.Differing], entries: list[tuple[str, bytes]], blobs: Blobs) -> Result:
    """One entry after the other: nobody waits for a large one at once, and only what is written is kept."""
    for found in piece:
        try:
            entries.append((found.entry["id"], found.written(blobs)))
        except PactError as exc:  # the store cannot be read: the rest of it can be shown
            entries.append((found.entry["id"], orjson.dumps({**found.entry, "unreadable": exc.message})))
    return Result(0, Ticked)


def _answer(entries: list[tuple[str, bytes]], rest: dict[str, Any]) -> bytes:
    entries.sort()
    return (b'{"ok":true,"exit":0,"message":"","hint":"","result":{"v":1,"resources":['
            + b",".join(body for _, body in entries) + b"]," + orjson.dumps(rest)[1:-1] + b"}}")  # fmt: skip


class Slices:
    """Long work of the loop's, in turn, a slice at a time."""

    def __init__(self) -> None:
        self._todo: list[tuple[Client, Iterator[None]]] = []

    def add(self, client: Client, steps: Iterator[None]) -> None:
        self._todo.append((client, steps))

    def __bool__(self) -> bool:
        return bool(self._todo)

    def turn(self, agent: Agent) -> None:
        """A few milliseconds for the first of them; then it is the next one's turn. Who has gone is forgotten."""
        if not self._todo:
            return
        client, steps = self._todo.pop(0)
        if not agent.control.connected(client):
            return
        ends_ns = time.monotonic_ns() + SLICE_NS
        for at, _ in enumerate(steps):
            if at % LOOK_EVERY == 0 and time.monotonic_ns() >= ends_ns:
                self._todo.append((client, steps))
                return
