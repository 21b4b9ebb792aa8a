"""``pact keygen``: a key pair for a node, an aggregator or a person."""

from __future__ import annotations

import argparse
import os
import re

from pact.cli.arguments import Parser
from pact.cli.command import Program
from pact.errors import EXIT_DONE, PactError, UsageError


class Keygen(Program):
    examples = ("pact keygen n001 --dir /etc/pact/keys", "pact keygen ann --dir ~/.config/pact")

    def arguments(self, parser: Parser) -> None:
        parser.add_argument("name", metavar="NAME", help="the node, aggregator or person that it is for")
        parser.add_argument("--dir", metavar="DIR", default=".", help="where to (default: here)")

    def run(self, args: argparse.Namespace) -> int:
        from pact.cli.render import emit
        from pact.net import keys

        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", args.name):
            raise UsageError(f"{args.name!r} is no name: letters, digits, '.', '_' and '-'")
        try:
            os.makedirs(args.dir, mode=0o755, exist_ok=True)
        except OSError as exc:
            raise PactError(f"{args.dir}: {exc.strerror}") from None
        public_path, secret_path, public = keys.keygen(args.name, args.dir)
        if args.json:
            emit({"v": 1, "name": args.name, "public": public, "key": public_path, "secret": secret_path})
        else:
            print(f"{public_path}: {public}\n{secret_path}: keep it on {args.name} only")
        return EXIT_DONE


COMMAND = Keygen()
