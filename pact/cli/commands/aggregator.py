"""``pact aggregator``: one member of the cluster's tree in the foreground."""

from __future__ import annotations

import argparse

from pact.cli.arguments import Parser
from pact.cli.command import Program
from pact.errors import EXIT_DONE


class Aggregator(Program):
    examples = ("pact aggregator --config /etc/pact/aggregator.toml", "pact aggregator")
    daemon = pids = True

    def arguments(self, parser: Parser) -> None:
        parser.add_argument("--config", metavar="FILE", help="default: /etc/pact/aggregator.toml")

    def run(self, args: argparse.Namespace) -> int:
        from pact.cluster import aggregator, config, rootpart

        aggregator.serve(config.load(args.config), rootpart.make_root)
        return EXIT_DONE


COMMAND = Aggregator()
