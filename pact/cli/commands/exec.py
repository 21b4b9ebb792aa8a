"""``pact exec``: one command on many nodes, as oneself; equal outputs are shown once."""

from __future__ import annotations

import argparse

from pact.cli.arguments import Parser, require_command, whole
from pact.cli.command import Program
from pact.errors import UsageError


class Exec(Program):
    timed = True
    far = True
    examples = (
        "pact exec --nodes node[001-128] -- uptime",
        "pact exec --nodes @rack4 -L --timeout 5m -- 'dnf -y update | tail -3'",
        "pact exec --nodes node[01-04] -- tee /tmp/list < list",
    )

    def arguments(self, parser: Parser) -> None:
        parser.add_argument("-L", "--live", action="store_true", help="show each line when it comes, with its node")
        parser.add_argument("--no-stdin", action="store_true", help="do not pass standard input on to the nodes")
        parser.add_argument(
            "--output-max",
            type=whole,
            metavar="BYTES",
            default=1 << 20,
            help="throw away what each node writes beyond it (default 1048576)",
        )
        parser.add_argument(
            "words", nargs=argparse.REMAINDER, metavar="-- COMMAND...", help="one word is a line for the shell"
        )

    def run(self, args: argparse.Namespace) -> int:
        words = args.words[1:] if args.words[:1] == ["--"] else args.words
        if not args.nodes:
            raise UsageError("exec needs --nodes", "on this machine, run the command itself")
        if not words:
            raise UsageError("no command", "pact exec --nodes NODESET -- COMMAND...")
        require_command(words)
        from pact.cli.everywhere import run

        return run(args, words)


COMMAND = Exec()
