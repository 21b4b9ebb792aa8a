"""``pact nodes``: the nodes of the cluster, and how many of their records the root has."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pact.cli.arguments import Parser, refuse_beside
from pact.cli.command import RootCommand, RootRequest

if TYPE_CHECKING:
    from pact.cli.render import Lines, View


class Nodes(RootCommand):
    examples = ("pact nodes", "pact nodes --forget n[007,009]")

    def arguments(self, parser: Parser) -> None:
        text = "these are out of service: nothing waits for them any more"
        parser.add_argument("--forget", metavar="NODESET", help=text)

    def at_root(self, args: argparse.Namespace) -> RootRequest:
        if args.forget is None:
            return RootRequest("nodes", {}, args.nodes, _shown)
        refuse_beside(args, "--forget names its nodes itself", "nodes")
        return RootRequest("nodes_forget", {}, args.forget, _forgotten)


def _shown(result: Mapping[str, Any], view: View) -> Lines:
    from pact.cli.render import clean
    from pact.cli.roots import fold

    states: dict[str, list[str]] = {}
    for name, row in result["nodes"].items():
        states.setdefault("connected" if row["connected"] else "away", []).append(name)
    yield f"root {clean(result['root'])}, {result['gseq'] + 1} events"
    for state, names in sorted(states.items(), reverse=True):
        yield f"{state} ({len(names)}): {fold(names)}"


def _forgotten(result: Mapping[str, Any], view: View) -> Lines:
    from pact.cli.render import clean

    yield f"forgotten: {clean(result['forgotten'])}"


COMMAND = Nodes()
