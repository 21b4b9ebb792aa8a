"""Sessions on another node, through the cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pact.cli.client import Answer
from pact.cli.fleet import sense
from pact.cli.roots import NONSENSE, connected
from pact.cli.session import leave, on_terminal, wish_for
from pact.errors import BY_EXIT_CODE, PactError, UnreachableError, UsageError
from pact.session.client import printable

if TYPE_CHECKING:
    from pact.cluster.client import RootClient

ASK_S: Final = 30.0


class Open(NamedTuple):
    """A session that is open. ``attached``: by whom; ``terminal``: its name, "" if it has none."""

    id: str
    attached: str
    terminal: str


class There:
    """Sessions on one node of the cluster, over one connection."""

    def __init__(self, args: argparse.Namespace, node: str) -> None:
        """Raises UsageError for what is not one node."""
        from pact.cluster import nodesets

        self._args, self.node = args, nodesets.one(node)

    def ask(self, op: str, fields: dict[str, Any]) -> Answer:
        """One question, on a connection of its own: that of the session may be gone."""
        with connected(self._args) as client:
            return self._ask(client, op, fields)

    def _ask(self, client: RootClient, op: str, fields: dict[str, Any]) -> Answer:
        from pact.cluster.client import Parts, Result

        found: Answer | None = None
        for item in client.ask(op, fields, self.node, ASK_S):
            if isinstance(item, Parts) and self.node in item.names:
                found = sense(bytes(item.body))
                if found is None:
                    raise UnreachableError(f"{self.node}: {NONSENSE}")
            elif isinstance(item, Result) and found is None:
                why = next(iter(item.failed.values()), "") or item.message or "no such node"
                kind = BY_EXIT_CODE.get(item.exit, PactError)
                raise kind(f"{self.node}: {why}", item.hint)
        if found is None:
            raise UnreachableError(f"{self.node} has not answered")
        return found.accepted()

    def _texts(self, said: Mapping[str, Any], *keys: str) -> list[str]:
        """These fields of what the node says, which are text. Raises UnreachableError."""
        found = [said.get(key, "") for key in keys]
        if not all(isinstance(value, str) for value in found):
            raise UnreachableError(f"{self.node}: {NONSENSE}")
        return [printable(value) for value in found]

    def _open(self, client: RootClient) -> list[Open]:
        """The person's sessions there. Raises PactError."""
        rows = self._ask(client, "sessions", {}).result.get("sessions")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UnreachableError(f"{self.node}: {NONSENSE}")
        return [Open(*self._texts(row, "id", "attached", "terminal")) for row in rows]

    def open(self, command: list[str], account: str) -> int:
        """A new session. Returns its exit code. Raises PactError."""
        terminal = on_terminal()
        wish = wish_for(command, account, terminal)
        with connected(self._args) as client:
            return self._session(client, "shell_open", wish, terminal)

    def come_back(self, name: str) -> int:
        """To a session that goes on; without a name, to the only one. Returns its exit code. Raises PactError."""
        from pact.session.client import size_here

        with connected(self._args) as client:
            rows = self._open(client)
            if not name:
                mine = [s for s in rows if not s.attached] or rows
                if len(mine) != 1:
                    names = ", ".join(s.id for s in mine[:8])
                    raise UsageError(
                        "which session?", f"pact shell --attach ID {self.node}: {names}" if mine else "none is open"
                    )
                name = mine[0].id
            found = next((s for s in rows if s.id == name), None)
            terminal = bool(found and found.terminal)
            if terminal and not on_terminal():
                raise UsageError(f"session {name} has a terminal, and this is none")
            wish: dict[str, Any] = {"session": name}
            if terminal:
                wish["rows"], wish["cols"] = size_here()[:2]
            return self._session(client, "shell_attach", wish, terminal)

    def _session(self, client: RootClient, op: str, wish: dict[str, Any], terminal: bool) -> int:
        from pact.cluster.streams import TICK_MS, Early, Secrets, Terminal
        from pact.session.client import Client

        secrets, early = Secrets(), Early()
        client.on_frames = early.put
        answer = self._ask(client, op, {**wish, "stream": secrets.public})
        name, owner, theirs = self._texts(answer.result, "session", "owner", "stream")
        if not name or not answer.ok:
            raise UnreachableError(f"{self.node}: {NONSENSE}")
        way = Terminal(client, self.node, secrets.with_node(theirs, needed=client.seals), early)
        ended = Client(way, terminal=terminal, pending=way.pending, unsent=way.unsent, tick_ms=TICK_MS).run()
        way.leave()
        client.cancel()
        if way.why and ended.left:
            ended = ended._replace(why=way.why, told=True)
        code = leave(self, name, ended._replace(left=False), owner, terminal and not ended.left)
        if way.denied:
            print(f"pact: session {name} ends: the key was removed", file=sys.stderr)
        elif ended.left:
            print(f"pact: session {name} goes on: pact shell --attach {name} {self.node}", file=sys.stderr)
        return code
