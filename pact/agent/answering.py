"""Who waits for an answer, and what each is told."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from pact.agent.client import Client
from pact.agent.control import Control
from pact.agent.veil import Veil
from pact.agent.worker import Result
from pact.core.node.events import Event, Reply, Ticked
from pact.core.node.step import Node
from pact.errors import EXIT_DENIED, DeniedError, PactError, explained


class Answering:
    """The requests whose answers come later, each with its token."""

    control: Control
    node: Node
    veil: Veil

    def __init__(self) -> None:
        self._tokens: dict[int, Client] = {}
        self._begun: set[int] = set()  # requests for which work has begun
        self._token = 0

    def next_token(self) -> int:
        """The token of a request whose answer comes later."""
        self._token += 1
        return self._token

    def fail(self, client: Client, error: PactError) -> None:
        if isinstance(error, DeniedError) and not client.admin:
            self.control.note_denied(client.caller.actor.uid)
        client.send({"ok": False, "exit": error.exit_code, "message": error.message, "hint": error.hint, "result": {}})

    def answer(self, client: Client, result: Any, exit_code: int = 0, message: str = "", hint: str = "") -> None:
        said = {"ok": exit_code == 0, "exit": exit_code, "message": message, "hint": hint, "result": result}
        client.send(said if client.admin else self.veil.unnamed(said, self.node.closed_names()))

    def answering(self, client: Client, token: int, work: Callable[[], Result]) -> Callable[[], Result]:
        """The work; if it fails, the client gets the error."""

        def guarded() -> Result:
            try:
                return work()
            except Exception as exc:
                if not isinstance(exc, PactError | OSError):
                    traceback.print_exc()
                error = explained(exc)
                return Result(0, make=lambda t, w: self.failed_read(client, token, error, t, w))

        return guarded

    def expect(self, client: Client, token: int) -> None:
        self._tokens[token] = client
        client.tokens.add(token)

    def _reply(self, effect: Reply) -> None:
        """What the core answers."""
        client = self._tokens.pop(effect.token, None)
        self._begun.discard(effect.token)
        if client is not None and self.control.connected(client):
            client.tokens.discard(effect.token)
            if effect.exit_code == EXIT_DENIED and not client.admin:
                self.control.note_denied(client.caller.actor.uid)
            result = effect.result if client.admin else self.veil.masked(effect.result, client.caller)  # S2
            said = effect.message if client.admin else self.veil.told(effect.message, effect.result)
            self.answer(client, result, effect.exit_code, said, effect.hint)
            self.control.flush(client)

    def _fail_one(self, token: int, error: PactError) -> None:
        if (client := self._tokens.pop(token, None)) is not None:
            client.tokens.discard(token)
            self.fail(client, error)
            self.control.flush(client)

    def _fail_all(self, untouched: PactError, begun: PactError) -> None:
        """Tell all who wait. ``begun``: for those whose work has begun."""
        for token, client in self._tokens.items():
            if self.control.connected(client):
                client.tokens.discard(token)
                self.fail(client, begun if token in self._begun else untouched)
                self.control.flush(client)
        self._tokens.clear()
        self._begun.clear()

    def failed_read(self, client: Client, token: int, error: PactError, t_ns: int, wall_ns: int) -> Event:
        """Answer a request that a worker could not carry out, unless it was answered meanwhile."""
        self._tokens.pop(token, None)
        if token in client.tokens and self.control.connected(client):
            client.tokens.discard(token)
            self.fail(client, error)
            self.control.flush(client)
        return Ticked(t_ns, wall_ns)
