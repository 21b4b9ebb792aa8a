"""``pact consumers``: who uses a resource now."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pact.cli.arguments import Parser
from pact.cli.command import NodeCommand, Request

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View


class Consumers(NodeCommand):
    examples = ("pact consumers mount:/scratch", "pact consumers file:/etc/chrony.conf --timeout 60")

    def arguments(self, parser: Parser) -> None:
        parser.add_argument("id", metavar="ID")

    def request(self, args: argparse.Namespace) -> Request:
        return Request("consumers", {"resource": args.id})

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli.render import clean, holders_table

        if answer.result["consumers"]:
            return holders_table(answer.result["consumers"], view, answer.result.get("more", 0))
        return [f"nobody uses {clean(answer.result['resource'])}"]

    def long(self, args: argparse.Namespace, *, far: bool) -> bool:
        return True


COMMAND = Consumers()
