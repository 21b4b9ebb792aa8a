"""``pact track``: what happens to new things below a pattern."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pact.cli.arguments import Parser
from pact.cli.command import NodeCommand, Request
from pact.errors import UsageError

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View


class Track(NodeCommand):
    examples = ("pact track", "pact track 'file:/etc/**' report", "pact track 'mount:**' enforce")

    def arguments(self, parser: Parser) -> None:
        parser.add_argument("pattern", nargs="?", metavar="PATTERN")
        parser.add_argument(
            "mode",
            nargs="?",
            metavar="report|enforce|ignore",
            help="report: show it; enforce: drift, with a window; ignore: neither",
        )

    def request(self, args: argparse.Namespace) -> Request:
        if args.pattern is None:
            return Request("tracked", {})
        if args.mode is None:
            raise UsageError("say what becomes of what is new below it", "pact track PATTERN report|enforce|ignore")
        return Request("track", {"patterns": {args.pattern: args.mode}})

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli.render import clean

        if args.pattern is not None:
            yield f"{clean(args.pattern)}: {args.mode}"
            return
        for pattern, mode in sorted(answer.result["tracked"].items()):
            yield f"{mode:8} {clean(pattern)}"
        if not answer.result["tracked"]:
            yield "nothing is tracked: pact adopt PATTERN, or pact track PATTERN report"


COMMAND = Track()
