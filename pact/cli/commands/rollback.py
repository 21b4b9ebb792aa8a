"""``pact rollback``: restore declared state now, or that of an earlier record."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pact.cli import arguments
from pact.cli.command import COMMITTED_GROUP, NodeCommand, Request, RootRequest
from pact.errors import UsageError

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View


class Rollback(NodeCommand):
    examples = (
        "pact rollback --dry-run",
        "pact rollback c7 --force",
        "pact rollback c7 --shared",
        "pact rollback --to 1200 --trials keep --dry-run",
    )
    group_only = (("allow_missing", COMMITTED_GROUP),)

    def arguments(self, parser: arguments.Parser) -> None:
        arguments.targets(parser)
        arguments.dry_run(parser, "show the plan and who is in its way; change nothing")
        alone, group = "although a hold was placed or a package manager works", "without members that do not answer"
        parser.add_argument("--force", action="store_true", help=f"{alone}; of a group: {group}")
        parser.add_argument(
            "--to", type=arguments.whole, metavar="SEQ", help="restore the declared state of an earlier journal record"
        )
        parser.add_argument(
            "--trials", choices=["keep", "end"], help="with --to: what becomes of commits that have an end"
        )
        arguments.allow_missing(parser, False)

    def request(self, args: argparse.Namespace) -> Request:
        if args.trials is not None and args.to is None:
            raise UsageError("--trials goes with --to SEQ")
        fields = {
            "targets": args.targets,
            "all": args.all,
            "dry_run": args.dry_run,
            "force": args.force,
            "shared": args.shared,
            "to_seq": args.to,
            "trials": args.trials,
        }
        return Request("rollback", fields)

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli import outcome

        for done in answer.result.get("rolled_back", ()):
            yield from outcome.rolled_back(done, view)
        if args.to is not None and (answer.ok or answer.result.get("blocked")):
            yield from outcome.converged(answer.result, view, back=True)
        yield from outcome.still_open(answer.result, view)

    def at_root(self, args: argparse.Namespace) -> RootRequest | None:
        group = arguments.group_among(args.targets)
        if group is None:
            return None
        from pact.cli import groups

        asked = groups.settle(args, group, force=args.force)
        arguments.refuse_beside(args, "rollback of a group", "allow_missing")
        if args.dry_run or args.to is not None:
            raise UsageError("a group is rolled back whole: --dry-run and --to are for single nodes")
        return asked


COMMAND = Rollback()
