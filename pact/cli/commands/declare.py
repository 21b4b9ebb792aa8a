"""``pact declare``: make a file the declared state, and converge to it at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pact.cli import arguments
from pact.cli.command import NodeCommand, Request

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View


class Declare(NodeCommand):
    examples = (
        "pact declare node.toml --dry-run",
        "pact declare node.toml --prune",
        "pact declare node.toml --take",
    )

    def arguments(self, parser: arguments.Parser) -> None:
        parser.add_argument("file", metavar="FILE")
        parser.add_argument("--prune", action="store_true", help="forget what FILE does not name (deletes nothing)")
        parser.add_argument("--take", action="store_true", help="include resources of open changes")
        arguments.dry_run(parser)

    def request(self, args: argparse.Namespace) -> Request:
        from pact.cli import declared

        # An empty file is fine, as an export of nothing gives one; but not together with --prune, which would forget
        # everything.
        fields = declared.fields(args.file, empty=not args.prune)
        return Request("declare", {**fields, "prune": args.prune, "take": args.take, "dry_run": args.dry_run})

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli import outcome

        return outcome.converged(answer.result, view)


COMMAND = Declare()
