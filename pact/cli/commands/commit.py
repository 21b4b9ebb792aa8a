"""``pact commit``: the machine's present state becomes declared."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pact.cli import arguments
from pact.cli.command import COMMITTED_GROUP, NodeCommand, Request, RootRequest
from pact.errors import UsageError

if TYPE_CHECKING:
    from pact.cli.client import Answer, Local
    from pact.cli.render import Lines, View


class Commit(NodeCommand):
    examples = (
        'pact commit -m "more connections on the login nodes"',
        'pact commit sysctl:net.core.somaxconn -m "for a try" --ttl 4h',
        'pact commit --all --shared -m "agreed with bob"',
    )
    group_only = (("allow_missing", COMMITTED_GROUP),)

    def arguments(self, parser: arguments.Parser) -> None:
        parser.add_argument(
            "--without-content",
            action="store_true",
            help="also what the full content store cannot keep: declared, but no rollback can restore it",
        )
        arguments.targets(parser)
        parser.add_argument("-m", "--message", metavar="TEXT", help="why (on a terminal your editor asks for it)")
        parser.add_argument(
            "--force", action="store_true", help="on this node alone, although its group is being settled"
        )
        arguments.allow_missing(parser)
        parser.add_argument(
            "--ttl", type=arguments.duration, metavar="D", help="let the commit end after D (15m to 10d)"
        )

    def prepare(self, args: argparse.Namespace, agent: Local) -> None:
        """Ask for the message in the person's editor, if possible."""
        if args.message is not None or args.json:
            return
        from pact.cli import editor
        from pact.cli.render import View, diff_lines

        if not editor.can_ask():
            return
        me = agent.ask("status", {}).accepted().result.get("you", {}).get("user")
        entries = agent.ask("diff", {"targets": args.targets}).accepted().result["resources"]
        if not args.all and not args.targets:
            entries = [e for e in entries if e["owner"]["user"] == me]
        about = [line for e in entries for line, _ in diff_lines(e, View(terminal=True))]
        args.message = editor.message(about or ["none of the open changes is yours"])

    def request(self, args: argparse.Namespace) -> Request:
        if args.message is None:
            raise UsageError(
                "commit needs -m TEXT: why", 'for example: pact commit -m "more connections for the logins"'
            )
        fields = {
            "targets": args.targets,
            "all": args.all,
            "message": args.message,
            "ttl_ns": args.ttl,
            "force": args.force,
            "shared": args.shared,
            **({"without_content": True} if args.without_content else {}),
        }
        return Request("commit", fields)

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli import outcome

        for done in answer.result.get("committed", ()):
            yield from outcome.committed(done, view)
        for note in answer.result.get("notes", ()):
            yield f"note: {note}"
        yield from outcome.still_open(answer.result, view)

    def at_root(self, args: argparse.Namespace) -> RootRequest | None:
        group = arguments.group_among(args.targets)
        if group is None:
            return None
        from pact.cli import groups

        asked = groups.settle(args, group, message=args.message, ttl_ns=args.ttl)
        arguments.refuse_beside(args, "commit of a group", "force")
        if args.message is None:
            raise UsageError("commit of a group needs -m TEXT: why")
        return asked


COMMAND = Commit()
