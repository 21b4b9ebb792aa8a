"""``pact emergency``: suspend auto-rollback on a node, or end that."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from pact.cli import arguments
from pact.cli.command import NodeCommand, Request
from pact.errors import PactError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pact.cli.client import Answer, Local
    from pact.cli.render import Lines, View


class Emergency(NodeCommand):
    examples = (
        'pact emergency start --reason "the storage is down" --for 6h',
        'pact emergency start --reason "cooling" --nodes @rack7',
        'pact emergency end --commit -m "as it was left" --dry-run',
        "pact emergency end --rollback --all",
    )

    def arguments(self, parser: arguments.Parser) -> None:
        actions = arguments.actions(parser, "start|end")
        start = arguments.action(actions, "start", "suspend every window", self.examples)
        start.add_argument("--reason", required=True, metavar="TEXT")
        arguments.nodes(start, again=True)
        start.add_argument("--for", dest="for_ns", type=arguments.duration, metavar="D", help="default 4h")
        text = "settle what is yours and what came since; the rest starts a new window"
        end = arguments.action(actions, "end", text, self.examples)
        arguments.nodes(end, again=True)
        how = end.add_mutually_exclusive_group(required=True)
        how.add_argument("--commit", action="store_const", dest="how", const="commit")
        how.add_argument("--rollback", action="store_const", dest="how", const="rollback")
        end.add_argument("-m", "--message", default="", metavar="TEXT")
        end.add_argument("--force", action="store_true", help="although another person started it")
        end.add_argument("--all", action="store_true", help="also other people's changes from before the emergency")
        arguments.shared(end)
        arguments.dry_run(end, "show what it would settle; change nothing")
        end.add_argument("--yes", action="store_true", help="do not ask on a terminal")

    def prepare(self, args: argparse.Namespace, agent: Local) -> None:
        """On a terminal, first show the person what would be settled. Raises PactError if the person refuses."""
        from pact.cli.render import on_terminal, put

        asks = args.action == "end" and not args.dry_run and not args.json and not args.yes
        if not asks or not on_terminal() or not sys.stdin.isatty():
            return
        op, fields = self.request(args)
        answer = agent.ask(op, {**fields, "dry_run": True})
        if not answer.ok:
            raise answer.error()
        put(_preview(answer.result))
        if not _confirmed("End the emergency so?"):
            raise PactError("the emergency goes on; nothing was changed")

    def request(self, args: argparse.Namespace) -> Request:
        if args.action == "start":
            return Request("emergency_start", {"reason": args.reason, "for_ns": args.for_ns})
        fields = {
            "how": args.how,
            "message": args.message,
            "force": args.force,
            "all": args.all,
            "shared": args.shared,
            **({"dry_run": True} if args.dry_run else {}),
        }
        return Request("emergency_end", fields)

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        if args.action == "start":
            if answer.ok:
                yield f"emergency mode{view.until(answer.result['ends'])}: no window runs, nothing is rolled back"
        elif not args.dry_run:
            yield from _ended(answer, view)
        elif answer.ok:
            yield from _preview(answer.result)


def _ended(answer: Answer, view: View) -> Lines:
    from pact.cli import outcome
    from pact.cli.render import View

    named = View(view.terminal)
    if answer.ok:
        yield "emergency mode has ended"
    for done in answer.result.get("committed", ()):
        yield from outcome.committed(done, named)
    for done in answer.result.get("rolled_back", ()):
        yield from outcome.rolled_back(done, named)
    yield from outcome.still_open(answer.result, named)


def _preview(result: Mapping[str, Any]) -> Lines:
    from pact.cli.outcome import some
    from pact.cli.render import clean

    verb = "would commit" if result["how"] == "commit" else "would roll back"
    for item in result["would"]:
        yield f"{verb} {item['change']} of {clean(item['owner'])} ({some(item['resources'])})"
    if not result["would"]:
        yield f"{verb} nothing"
    for item in result["left"]:
        yield f"left alone, with a new window: {item['change']} of {clean(item['owner'])} (--all takes it in)"


def _confirmed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


COMMAND = Emergency()
