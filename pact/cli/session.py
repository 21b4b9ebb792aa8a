"""A session from the person's side: opening it, coming back to it, and what is asked on the way out."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from pact.errors import PactError, UsageError

if TYPE_CHECKING:
    from pact.cli.client import Local
    from pact.cli.wayout import Asks
    from pact.session.client import Ended


BROUGHT: Final = ("LANG", "TZ")


def brought() -> dict[str, str]:
    """What a session takes from this environment: what is text."""
    found = {k: v for k, v in os.environ.items() if k in BROUGHT or k.startswith("LC_")}
    return {k: v for k, v in found.items() if k.isprintable() and v.isprintable()}


def on_terminal() -> bool:
    return os.isatty(0) and os.isatty(1)


class Here:
    """Sessions on this machine."""

    def __init__(self, agent: Local) -> None:
        self.agent = agent

    def open(self, command: list[str], account: str) -> int:
        """A new session. Returns its exit code. Raises PactError."""
        terminal = on_terminal()
        wish = wish_for(command, account, terminal)
        answer = self.agent.ask("shell_open", wish).accepted()
        return self._attach(answer.result["session"], terminal)

    def come_back(self, name: str) -> int:
        """To a session that goes on; without a name, to the only one. Returns its exit code. Raises PactError."""
        rows = self.agent.ask("sessions", {}).accepted().result["sessions"]
        if not name:
            mine = [s for s in rows if not s["attached"]] or rows
            if len(mine) != 1:
                names = ", ".join(s["id"] for s in mine[:8])
                raise UsageError("which session?", f"pact shell --attach ID: {names}" if mine else "none is open")
            name = mine[0]["id"]
        found = next((s for s in rows if s["id"] == name), None)
        if found is not None and found["terminal"] and not on_terminal():
            raise UsageError(f"session {name} has a terminal, and this is none")
        return self._attach(name, bool(found and found["terminal"]))

    def _attach(self, name: str, terminal: bool) -> int:
        from pact.session.client import Client, size_here

        wish: dict[str, Any] = {"session": name}
        if terminal:
            wish["rows"], wish["cols"] = size_here()[:2]
        answer, sock = self.agent.ask_for_socket("shell_attach", wish)
        with sock:
            ended = Client(sock, terminal=terminal).run()
        return leave(self.agent, name, ended, answer.result["owner"], terminal)


def wish_for(command: list[str], account: str, terminal: bool) -> dict[str, Any]:
    """What a request for a new session says."""
    from pact.session.client import size_here

    wish: dict[str, Any] = {"terminal": terminal, "env": brought()}
    if terminal:
        rows, columns, _, _ = size_here()
        term = os.environ.get("TERM", "")
        wish |= {"term": term if term.isprintable() else "", "rows": rows, "cols": columns}
    if command:
        wish["words"] = command
    if account:
        wish["account"] = account
    return wish


def leave(agent: Asks, name: str, ended: Ended, owner: str, terminal: bool) -> int:
    """Say how it ended, and ask what becomes of what is open. Returns the exit code."""
    from pact.session.client import printable

    if ended.why and not ended.told:
        print(f"pact: {ended.why}", file=sys.stderr)
    if ended.left:
        print(f"pact: session {name} goes on: pact shell --attach {name}", file=sys.stderr)
    elif terminal and not ended.why:
        from pact.cli import wayout

        try:
            wayout.ask(agent, owner)
        except PactError as exc:  # how the session ended is the answer of this command
            print(f"pact: {printable(exc.message)}", file=sys.stderr)
    return ended.code
