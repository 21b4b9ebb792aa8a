"""``pact status``: state, drift, open changes and the time they have left."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pact.cli import arguments
from pact.cli.command import Documents, NodeCommand, Request

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View


class Status(NodeCommand):
    examples = ("pact status", "pact status -v", "pact status --nodes n[001-128]")

    def arguments(self, parser: arguments.Parser) -> None:
        text = "one line if something of yours is open, else nothing"
        parser.add_argument("--login", action="store_true", help=text)
        arguments.verbose(parser, "all of it, however long; of many nodes each with its change numbers")

    def request(self, args: argparse.Namespace) -> Request:
        return Request("status", {})

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        if args.login:
            from pact.cli import login

            line = login.line(answer.result)
            return [line] if line else []
        return page(answer.result, view, verbose=args.verbose)

    def long(self, args: argparse.Namespace, *, far: bool) -> bool:
        return bool(far or args.verbose)

    def page(self, documents: Documents, silent: int, view: View) -> list[tuple[str, str]]:
        from pact.cli import folds

        return list(folds.status(documents, silent, view))


def page(doc: Mapping[str, Any], view: View, *, verbose: bool = False) -> Lines:
    """The page of one node."""
    if view.terminal:
        from pact.cli.screen import screen

        return screen(doc, verbose=verbose)
    from pact.cli.render import status_lines

    return status_lines(doc, view, verbose=verbose)


COMMAND = Status()
