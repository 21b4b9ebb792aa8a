"""What stands in the journal of commands that people run on many nodes (``executing``): that one begins, durable before
it does, and how it has ended, durable before anybody hears that.  # X9

Whatever begins or ends at about the same time shares one write to the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple, Protocol

from pact.core.node.commands import UNKNOWN
from pact.core.node.events import CommandsTold, Event
from pact.core.node.payloads import ExecBegun, Executed
from pact.core.node.step import Node
from pact.model import Actor

ENDS_MAX: Final = 16
ENDS_S: Final = 0.01  # how long an end may wait for others, while other commands have said something


class Journal(Protocol):
    """The agent."""

    journal_error: str

    @property
    def node(self) -> Node: ...

    def now(self) -> tuple[int, int]: ...

    def step(self, event: Event) -> None: ...

    def require_journal(self) -> None: ...


class End(NamedTuple):
    """``name``: of the command's files. ``then`` is called when it is on record, or owed."""

    name: str
    executed: Executed
    actor: Actor
    then: Callable[[], None]


def _nothing() -> None: ...


class CommandRecords:
    """``forget`` is called with the name of a command whose end is on record: until then its files stay, and the next
    agent would find them."""

    def __init__(
        self, agent: Journal, forget: Callable[[str], None], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._agent, self._forget, self._now_s = agent, forget, now_s
        self._ends: list[End] = []
        self._since_s = 0.0
        self._owed: dict[str, tuple[Executed, Actor]] = {}  # by name: they have ended, and cannot be recorded now  # J9

    def begin(self, rows: Sequence[tuple[ExecBegun, Actor]]) -> list[int]:
        """Make durable that these are about to begin. Returns the numbers of their records. Raises UnreachableError:
        then none of them may begin."""
        agent = self._agent
        agent.require_journal()
        agent.step(CommandsTold(*agent.now(), rows))
        agent.require_journal()
        by_call = {command.actor.call: seq for seq, command in agent.node.state.commands.items()}
        return [by_call[actor.call] for _, actor in rows]

    def begun(self, call: str) -> int | None:
        """The number of the record that this call's command begins, if it has one, and no end yet."""
        found = [seq for seq, c in self._agent.node.state.commands.items() if call and c.actor.call == call]
        return found[-1] if found else None

    def end(self, name: str, executed: Executed, actor: Actor, then: Callable[[], None] = _nothing) -> None:
        """One has ended. It is recorded soon, with others."""
        if not self._ends:
            self._since_s = self._now_s()
        self._ends.append(End(name, executed, actor, then))

    @property
    def ending(self) -> list[str]:
        """Those that have ended, and are to be recorded: who asked for each."""
        return [end.actor.user for end in self._ends]

    @property
    def busy(self) -> bool:
        return bool(self._ends or self._owed)

    def turn(self, *, alone: bool) -> None:
        """Record what has ended. ``alone``: no other command is about to be heard."""
        if not self._agent.journal_error and self._owed:
            owed, self._owed = self._owed, {}
            self._write([(name, executed, actor) for name, (executed, actor) in owed.items()])
        if self._ends and (alone or len(self._ends) >= ENDS_MAX or self._now_s() >= self._since_s + ENDS_S):
            ends, self._ends = self._ends, []
            self._write([end[:3] for end in ends])
            for end in ends:
                end.then()

    def _write(self, rows: Sequence[tuple[str, Executed, Actor]]) -> None:
        agent = self._agent
        if not agent.journal_error:
            agent.step(CommandsTold(*agent.now(), [row[1:] for row in rows]))
        for name, executed, actor in rows:
            if agent.journal_error:
                self._owed[name] = executed, actor
            else:
                self._forget(name)

    def settle(self, running: Collection[int]) -> None:
        """Of what has begun, and does not run, and left nothing behind, nobody will tell the end. Call it when all that
        was left is looked at. ``running``: the numbers of records of what runs."""
        agent = self._agent
        commands = agent.node.state.commands
        if agent.journal_error or not commands:
            return
        known = {*running, *(end.executed.begun for end in self._ends), *(e.begun for e, _ in self._owed.values())}
        lost = [(f"#{seq}", c.ended(seq, UNKNOWN), c.actor) for seq, c in commands.items() if seq not in known]
        if lost:
            self._write(lost)
