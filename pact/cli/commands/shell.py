"""``pact shell``: a session on a node, as oneself; recorded, and with a question on the way out."""

from __future__ import annotations

import argparse
from typing import Final

from pact.cli.arguments import Parser, require_command
from pact.cli.command import Program
from pact.errors import UsageError

THE_ONLY: Final = "the only one"  # no session has such a name


class Shell(Program):
    examples = ("pact shell", "pact shell -- systemctl status chronyd", "pact shell --attach s41")

    def arguments(self, parser: Parser) -> None:
        parser.add_argument(
            "--attach", nargs="?", const=THE_ONLY, metavar="ID", help="come back to a session that goes on"
        )
        parser.add_argument("--account", metavar="NAME", help="root, for those whom [shell] root in agent.toml names")
        parser.add_argument(
            "words",
            nargs=argparse.REMAINDER,
            metavar="[NODE] [-- COMMAND...]",
            help="default: this machine, a login shell",
        )

    def run(self, args: argparse.Namespace) -> int:
        node, command = _parts(args.words)
        if "" in (args.attach, args.account):  # a variable that is not set must not mean the default
            raise UsageError(f"the name after {'--attach' if args.attach == '' else '--account'} is empty")
        session = "" if args.attach == THE_ONLY else args.attach
        if node:
            from pact.cli.there import There

            if args.attach is None:
                return There(args, node).open(command, args.account or "")
            if command:
                raise UsageError("shell --attach takes no command")
            return There(args, node).come_back(session)
        if args.via:
            raise UsageError("--via is for a session on a node: pact shell NODE")
        from pact.cli.client import local
        from pact.cli.session import Here

        agent = local(args.socket, args.timeout)
        if args.attach is not None:
            if command:
                raise UsageError("shell --attach takes no command")
            return Here(agent).come_back(session)
        return Here(agent).open(command, args.account or "")


def _parts(words: list[str]) -> tuple[str, list[str]]:
    """The node and the command of ``[NODE] [-- COMMAND...]``. Raises UsageError."""
    at = words.index("--") if "--" in words else len(words)
    before, command = words[:at], words[at + 1 :]
    if len(before) > 1 or any(word.startswith("-") for word in before):
        raise UsageError("shell takes one node; options come before it, and a command after --")
    if at < len(words) and not command:
        raise UsageError("no command stands after --")
    require_command(command)
    if before and not before[0].strip():  # a variable that is not set must not mean this machine
        raise UsageError("the node's name is empty", "for a session on this machine leave it out")
    return (before[0] if before else ""), command


COMMAND = Shell()
