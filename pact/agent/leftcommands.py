"""Commands of ``executing`` that the last agent has left: nobody waits for them. They are ended, and recorded."""

from __future__ import annotations

import os
import time
from typing import Final, Protocol

from pact.agent.commandfiles import DIRECTORY, executed_of, forget_files, left_of, place_beside, tell_end
from pact.agent.commandrecords import CommandRecords, Journal
from pact.agent.leftbehind import keep, name_of
from pact.agent.sessionfiles import end_host, end_what_is_left, owner_of_session, read_state
from pact.core.node.payloads import Executed
from pact.errors import PactError
from pact.host import owned
from pact.host.notify import log
from pact.model import AGENT_ACTOR, Actor, Owner
from pact.observe.attribution import printable
from pact.session.places import NEVER_BEGAN, started_at, state_path

LOOK_S: Final = 0.1
ENDS_S: Final = 15.0  # when a command's process is killed that does not end


class Commands(Protocol):
    """All commands of this node."""

    directory: str

    def tell_end(self, name: str, why: str) -> None: ...

    def record(self, name: str, executed: Executed, actor: Actor) -> None: ...

    def begun(self, call: str) -> int | None: ...

    def forget_files(self, name: str) -> None: ...


class LeftCommands:
    """``look_s``: when to call ``turn`` next, while ``busy``."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self.unseen = bool(commands.directory) and os.path.isdir(commands.directory)
        self.ending: dict[str, float] = {}  # those whose processes still run -> when to kill them
        self.look_s = 0.0

    @property
    def busy(self) -> bool:
        return self.unseen or bool(self.ending)

    def turn(self, now_s: float) -> None:
        """Look, if it is time. The journal can be written."""
        if not self.busy or now_s < self.look_s:
            return
        names = self._names() if self.unseen else list(self.ending)
        self.unseen, self.look_s = False, now_s + LOOK_S
        for name in names:
            try:
                self._look_at(name, now_s)
            except Exception as exc:  # one file must not keep the agent from starting
                log(f"what is left of command {printable(os.fsencode(name))} makes no sense: {exc!r}", 4)
                self.ending.pop(name, None)
                self._commands.forget_files(name)

    def _names(self) -> list[str]:
        try:
            owned.require(self._commands.directory, DIRECTORY)
            return sorted(n[:-5] for n in os.listdir(self._commands.directory) if n.endswith(".json"))
        except (OSError, PactError) as exc:
            log(f"commands of an earlier run are not looked at: {exc}", 4)
            return []

    def _look_at(self, name: str, now_s: float) -> None:
        """While its process lives its files are its own: it writes them once more, and another command of its name
        would lose its socket to it."""
        path = state_path(self._commands.directory, name)
        state = read_state(path)
        if state is not None and started_at(state["pid"]) == state["start"] != 0:
            if name not in self.ending:
                self.ending[name] = now_s + ENDS_S
                self._commands.tell_end(name, "the agent was started again")
            elif now_s >= self.ending[name]:
                end_host(state)
            return
        self.ending.pop(name, None)
        state = read_state(path) or state  # what it wrote last
        if state is None:
            return
        end = state.get("end") or {}
        left = left_of(end)
        if not left or end.get("why"):
            end_what_is_left(state)
        about = state.get("about", {})
        owner = owner_of_session(state, Owner("", about.get("user", state["person"])))
        why = end.get("why") or "the agent ended while it ran"
        call = about.get("call", "")
        actor = Actor(**about["actor"], call=call) if about.get("actor") else AGENT_ACTOR
        begun = self._commands.begun(call)
        # The last agent was killed before it could record that it begins, or when its end was on record already.
        if begun is None and (why == NEVER_BEGAN or about.get("begins")):
            self._commands.forget_files(name)
            return
        if left:  # it had ended by itself, and nobody was there to hear it
            why = end.get("why", "")
            keep(self._commands.directory, name_of(call, name), state, begun)
        result = {"exit": end.get("exit"), "signal": end.get("signal", ""), "why": why, "left": left}
        made = executed_of(state["command"], owner, state, about.get("user", ""), begun, result)
        executed = made(end.get("ns"), end.get("in"), end.get("out"), False)
        self._commands.record(name, executed, actor)


class LeftAlone:
    """For an agent that belongs to no cluster any more: commands come only from there, but what was left is ended.

    ``busy``: call ``turn`` again within ``LOOK_S``."""

    def __init__(self, agent: Journal, sessions: str) -> None:
        """``sessions``: the directory of sessions."""
        self.directory = place_beside(sessions)
        self._agent = agent
        self._left = LeftCommands(self)
        self._records = CommandRecords(agent, self.forget_files)

    @property
    def busy(self) -> bool:
        return self._left.busy or self._records.busy or bool(self._agent.node.state.commands)

    def turn(self) -> None:
        if self._agent.journal_error or not self.busy:
            return
        self._left.turn(time.monotonic())
        self._records.turn(alone=True)
        if not self._left.busy:
            self._records.settle(())

    def tell_end(self, name: str, why: str) -> None:
        tell_end(self.directory, name, why)

    def record(self, name: str, executed: Executed, actor: Actor) -> None:
        self._records.end(name, executed, actor)

    def begun(self, call: str) -> int | None:
        return self._records.begun(call)

    def forget_files(self, name: str) -> None:
        forget_files(self.directory, name)
