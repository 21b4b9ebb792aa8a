"""``pact top``: a live view of this node, or of the fleet, in a terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from pact.cli.arguments import Parser
from pact.cli.command import Program
from pact.errors import UsageError


class Top(Program):
    examples = ("pact top", "pact top --nodes n[001-128]", "pact top --nodes '*'", "pact top --plain")
    timed = True
    far = True

    def arguments(self, parser: Parser) -> None:
        text = "lines instead of a picture, as they come: for screen readers and pipes"
        parser.add_argument("--plain", action="store_true", help=text)
        parser.add_argument("--no-color", action="store_true", help="without colours (also: NO_COLOR=1)")
        parser.add_argument("--no-mouse", action="store_true", help="leave the mouse to the terminal")

    def ended_by_hand(self, args: argparse.Namespace) -> bool:
        return True

    def run(self, args: argparse.Namespace) -> int:
        if args.json:
            raise UsageError("top is for people", "programs ask: pact --json status, pact --json watch")
        plain = args.plain or _cannot_paint()
        from pact.cli.client import local
        from pact.cli.top.desk import Desk
        from pact.cli.top.feed import Asker, Feed
        from pact.cli.top.fleet import Fleet

        far = args.nodes is not None or bool(args.via)
        fleet = Fleet(_wanted(args.nodes)) if far else None
        asker = Asker(args, None if far else local(args.socket, args.timeout))
        asker.greet()
        desk, feed = Desk(fleet, _test, os.uname().nodename), Feed(asker, fleet=far)
        if plain:
            from pact.cli.top import plain as lines

            return lines.show(desk, feed)
        try:
            from pact.cli.top import draw
        except ModuleNotFoundError as exc:
            raise UsageError(f"the display needs {exc.name}, which is not installed", "pact top --plain") from None
        colours = not args.no_color and not os.environ.get("NO_COLOR")
        return draw.show(desk, feed, colours=colours, mouse=not args.no_mouse)


def _cannot_paint() -> bool:
    return not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") in ("", "dumb")


def _wanted(text: str | None) -> frozenset[str] | None:
    """The nodes that are shown; ``None``: all. Raises UsageError."""
    if text is None or text == "*":
        return None
    from pact.cluster.nodesets import NodeSets, resolved

    return frozenset(NodeSets().expand(resolved(text)))


def _test(text: str) -> Callable[[str], bool]:
    """Which nodes are meant: a node set, or a part of a name. Raises UsageError."""
    if not set(text) & set("[],@*!&^"):
        return lambda name: text in name
    found = _wanted(text)
    return (lambda name: True) if found is None else found.__contains__


COMMAND = Top()
