"""``pact diff``: declared against actual for each drifted resource."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pact.cli import arguments
from pact.cli.command import Documents, NodeCommand, Request
from pact.errors import EXIT_DONE, EXIT_DRIFT, UsageError

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View


class Diff(NodeCommand):
    examples = (
        "pact diff",
        "pact diff c7 file:/etc/chrony.conf",
        "pact diff --stat",
        "pact diff --nodes @rack7 --exit-code",
    )
    nothing = "no drift"

    def arguments(self, parser: arguments.Parser) -> None:
        parser.add_argument("targets", nargs="*", metavar="ID", help="resources or changes (default: all)")
        parser.add_argument("--exit-code", action="store_true", help="exit 11 if anything has drifted")
        parser.add_argument("--stat", action="store_true", help="one line for each, and a count")
        arguments.verbose(parser, arguments.EACH)

    def request(self, args: argparse.Namespace) -> Request:
        return Request("diff", {"targets": args.targets})

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli.render import diff_page

        if args.stat:
            from pact.cli import stat

            return stat.lines(answer.result["resources"])

        return diff_page(answer.result, view)

    def refuse_afar(self, args: argparse.Namespace) -> None:
        if args.stat:
            raise UsageError("diff --stat works on the node itself")

    def exit_code(self, args: argparse.Namespace, answer: Answer) -> int:
        drift = answer.result["resources"] or answer.result.get("unrecorded")
        return EXIT_DRIFT if args.exit_code and drift else EXIT_DONE

    def long(self, args: argparse.Namespace, *, far: bool) -> bool:
        return True

    def page(self, documents: Documents, silent: int, view: View) -> list[tuple[str, str]]:
        from pact.cli import folds

        return list(folds.diff(documents, silent, view))


COMMAND = Diff()
