"""``pact sessions``: the sessions that are open, and what commands of ``pact exec`` have left behind."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pact.cli.arguments import Parser
from pact.cli.command import NodeCommand, Request
from pact.errors import UsageError

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View


class Sessions(NodeCommand):
    examples = ("pact sessions", "pact sessions --nodes @login", "pact sessions --end s41")
    nothing = "no session is open"

    def arguments(self, parser: Parser) -> None:
        parser.add_argument("--end", metavar="ID", help="hang this one up, or end what a command left")

    def request(self, args: argparse.Namespace) -> Request:
        if args.end is None:
            return Request("sessions", {})
        node = {"node": self._only(args)} if args.nodes is not None and not args.end.startswith("x") else {}
        return Request("session_end", {"session": args.end, **node})

    def _only(self, args: argparse.Namespace) -> str:
        """The node whose session is meant. Raises UsageError."""
        from pact.cluster import nodesets

        names = nodesets.NodeSets().expand(nodesets.resolved(args.nodes))
        if len(names) != 1:
            raise UsageError(
                f"--nodes names {len(names)} nodes, and each node counts its sessions for itself: on another node"
                f" the same name is another person's session",
                "pact sessions --nodes NODE --end ID, with one node; what a command left has one name on all nodes",
            )
        return names[0]

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli.render import clean, local_time

        for s in answer.result.get("sessions", ()):
            account = "" if s["account"] == s["user"] else f" as {s['account']}"
            where = s["terminal"] or "no terminal"
            there = f"attached: {s['attached']}" if s["attached"] else "ended" if s["ended"] else "nobody attached"
            what = f"  {s['command']}" if s["command"] else ""
            since = local_time(s["since"]) if view.terminal else s["since"][:19] + "Z"
            yield clean(f"{s['id']:<8}{s['user']}{account}  from {s['from']}  {where}  since {since}  {there}{what}")
        for one in answer.result.get("left", ()):
            account = "" if one["account"] == one["user"] else f" as {one['account']}"
            since = local_time(one["since"]) if view.terminal else one["since"][:19] + "Z"
            count = one["processes"]
            left = f"left behind: {count} process{'es' if count > 1 else ''} ({', '.join(one['programs'])})"
            yield clean(f"{one['id']:<7} {one['user']}{account}  {left}  since {since}  {one['command']}")
        if not (answer.result.get("sessions") or answer.result.get("left")) and args.end is None and view.terminal:
            yield self.nothing


COMMAND = Sessions()
