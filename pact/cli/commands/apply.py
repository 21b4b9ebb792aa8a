"""``pact apply``: make the changes in a file now; on many nodes (``--nodes``) as a group."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pact.cli import arguments
from pact.cli.command import NodeCommand, Request, RootRequest
from pact.errors import DeclaredError, UsageError

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View

MANY: Final = "many nodes (--nodes)"


class Apply(NodeCommand):
    examples = (
        "pact apply change.toml --dry-run",
        'pact apply change.toml -m "new scratch"',
        'pact apply change.toml --nodes n[001-128] --require all -m "new scratch"',
    )
    group_only = (("require", MANY), ("allow_missing", MANY))

    def arguments(self, parser: arguments.Parser) -> None:
        parser.add_argument("file", metavar="FILE")
        arguments.dry_run(parser)
        arguments.why(parser)
        parser.add_argument("--require", choices=["all"], help="with --nodes: absence of a node blocks a rollback, too")
        arguments.allow_missing(parser)

    def request(self, args: argparse.Namespace) -> Request:
        from pact.cli import declared

        fields = declared.fields(args.file)
        if fields.pop("track", None):
            raise DeclaredError(args.file, 0, "[track] is for declare: apply changes the machine, not what is tracked")
        return Request("apply", {**fields, "dry_run": args.dry_run, "message": args.message})

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli import outcome

        return outcome.applied(answer.result, view)

    def at_root(self, args: argparse.Namespace) -> RootRequest | None:
        if args.nodes is None and not args.via:
            return None
        if args.nodes is None:
            raise UsageError("a group needs --nodes NODESET")
        from pact.cli import groups

        fields = {
            **self.request(args).fields,
            "allow_missing": arguments.missing_allowed(args),
            "require_all": args.require == "all",
        }
        return RootRequest("apply", fields, args.nodes, _begun, groups.each_node)


def _begun(result: Mapping[str, Any], view: View) -> Lines:
    """The text about a group that was begun, or would be."""
    from pact.cli.render import clean

    if result.get("dry_run"):
        yield f"would change up to {result['changes']} resources on {result['count']} nodes"
    elif result.get("group"):
        window = f", to be committed{view.until(result['deadline'])}" if result.get("deadline") else ""
        yield f"{result['group']}: applied on {clean(result['nodes'])}{window}"


COMMAND = Apply()
