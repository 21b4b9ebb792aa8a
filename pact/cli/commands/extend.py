"""``pact extend``: move a deadline later."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pact.cli import arguments
from pact.cli.command import COMMITTED_GROUP, NodeCommand, Request, RootRequest
from pact.core.units import parse_duration
from pact.errors import UsageError

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View


class Extend(NodeCommand):
    examples = ("pact extend 30m", "pact extend c7 c9 4h", "pact extend g7 1h")
    group_only = (("allow_missing", COMMITTED_GROUP),)

    def arguments(self, parser: arguments.Parser) -> None:
        parser.usage = "pact extend [-h] [--timeout D] [--nodes NODESET] [--shared] [CHANGE...] D"
        arguments.allow_missing(parser, False)
        text = "changes, then the duration (90, 15m, 4h, 2d)"
        parser.add_argument("words", nargs="+", metavar="[CHANGE...] D", help=text)
        arguments.shared(parser)

    def request(self, args: argparse.Namespace) -> Request:
        *changes, last = args.words
        by_ns = _duration(last, "pact extend [CHANGE...] D, the duration last")
        return Request("extend", {"targets": changes, "by_ns": by_ns, "shared": args.shared})

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        for done in answer.result["extended"]:
            stands = "" if done["deadline"] else " (its clock stands still now)"
            name = done["change"] if view.ids else "a change"
            yield f"{name} has more time{view.until(done['deadline'])}{stands}"

    def at_root(self, args: argparse.Namespace) -> RootRequest | None:
        group = arguments.group_among(args.words[:-1])
        if group is None:
            return None
        from pact.cli import groups

        asked = groups.settle(args, group)
        arguments.refuse_beside(args, "extend of a group", "force", "allow_missing")
        asked.fields["by_ns"] = _duration(args.words[-1], "pact extend GROUP D, the duration last")
        return asked


def _duration(text: str, hint: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as exc:
        raise UsageError(str(exc), hint) from None


COMMAND = Extend()
