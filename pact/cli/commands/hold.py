"""``pact hold``: pause auto-rollback of one change, of the node, or (``--all``) of the whole fleet."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pact.cli import arguments
from pact.cli.command import NodeCommand, Request, RootRequest
from pact.errors import UsageError

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View


class Hold(NodeCommand):
    examples = (
        'pact hold place --reason "vendor on site" --for 2h',
        'pact hold place c7 --reason "until the meeting" --for 1d',
        "pact hold release",
        "pact hold release h2",
    )

    def arguments(self, parser: arguments.Parser) -> None:
        actions = arguments.actions(parser, "place|release")
        place = arguments.action(actions, "place", "stop the clock", self.examples)
        place.add_argument("change", nargs="?", metavar="CHANGE", help="default: the whole node")
        arguments.nodes(place, again=True)
        place.add_argument("--all", action="store_true", help="the whole fleet: nothing rolls back anywhere")
        place.add_argument("--reason", required=True, metavar="TEXT")
        place.add_argument("--for", dest="for_ns", type=arguments.duration, required=True, metavar="D")
        release = arguments.action(actions, "release", "let it run again", self.examples)
        arguments.nodes(release, again=True)
        release.add_argument("--all", action="store_true", help="a hold of the whole fleet")
        release.add_argument("name", nargs="?", metavar="HOLD|CHANGE", help="default: your holds")

    def request(self, args: argparse.Namespace) -> Request:
        if args.action == "place":
            return Request("hold_place", {"reason": args.reason, "for_ns": args.for_ns, "change": args.change})
        return Request("hold_release", {"name": args.name})

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        if not answer.ok:
            return
        if args.action == "place":
            what = answer.result["change"] or "the node"
            name = f"{answer.result['hold']}: " if view.ids else ""
            yield f"{name}{what} is held{view.until(answer.result['ends'])}"
        else:
            yield "released " + (", ".join(answer.result["released"]) if view.ids else "holds")

    def at_root(self, args: argparse.Namespace) -> RootRequest | None:
        if not args.all:
            return None
        from pact.cli import groups

        arguments.refuse_beside(args, "--all is every node", "nodes")
        if args.action == "release":
            return RootRequest("fleet_release", {"hold": args.name}, None, _released, groups.heard)
        if args.change is not None:
            raise UsageError("--all stops everything: name no change beside it")
        fields = {"reason": args.reason, "for_ns": args.for_ns}
        return RootRequest("fleet_hold", fields, None, _stopped, groups.heard)


def _stopped(result: Mapping[str, Any], view: View) -> Lines:
    until = view.until(result["ends"])
    yield f"{result['hold']}: nothing rolls back anywhere{until}; {result['nodes']} nodes know"


def _released(result: Mapping[str, Any], view: View) -> Lines:
    from pact.cli.groups import show_holds
    from pact.cli.render import clean

    yield f"released {', '.join(map(clean, result['released']))}; {result['nodes']} nodes know"
    yield from show_holds("still held", result.get("held", ()), view)


COMMAND = Hold()
