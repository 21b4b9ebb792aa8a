"""``pact groups``: changes on many nodes, and where each member is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from pact.cli.arguments import Parser
from pact.cli.command import RootCommand, RootRequest


class Groups(RootCommand):
    examples = ("pact groups", "pact groups g7", "pact groups --all")

    def arguments(self, parser: Parser) -> None:
        parser.add_argument("group", nargs="?", metavar="GROUP")
        parser.add_argument("--all", action="store_true", help="also those that are settled")

    def at_root(self, args: argparse.Namespace) -> RootRequest:
        from pact.cli.groups import show_groups, show_table

        fields = {"group": args.group, "all": args.all}
        return RootRequest("groups", fields, None, show_groups if args.group else show_table, _document)


def _document(result: Mapping[str, Any]) -> dict[str, Any]:
    from pact.cli.groups import each_node

    return {**result, "groups": [each_node(g) for g in result.get("groups", ())]}


COMMAND = Groups()
