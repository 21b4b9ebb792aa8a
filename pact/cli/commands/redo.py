"""``pact redo``: apply again what was rolled back."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pact.cli import arguments
from pact.cli.command import NodeCommand, Request

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View


class Redo(NodeCommand):
    examples = ("pact redo c12 --dry-run", 'pact redo c12 -m "it was needed after all"')

    def arguments(self, parser: arguments.Parser) -> None:
        parser.add_argument("change", metavar="CHANGE", help="the change as it was called: c12")
        arguments.dry_run(parser)
        arguments.why(parser)

    def request(self, args: argparse.Namespace) -> Request:
        return Request("redo", {"change": args.change, "dry_run": args.dry_run, "message": args.message})

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli import outcome

        return outcome.applied(answer.result, view)


COMMAND = Redo()
