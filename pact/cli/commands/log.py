"""``pact log``: journal records, newest first."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from pact.cli import arguments
from pact.cli.command import Documents, LinesCommand, Request
from pact.core.units import parse_duration
from pact.errors import UsageError

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View

DEFAULT_COUNT: Final = 20


class Log(LinesCommand):
    examples = ("pact log -n 50", "pact log --since 2h --type rolled_back", "pact log --follow")
    nothing = "no such records"

    def arguments(self, parser: arguments.Parser) -> None:
        parser.add_argument(
            "-n", type=arguments.whole, metavar="N", help=f"how many (default: {DEFAULT_COUNT}; with --since all)"
        )
        parser.add_argument("--since", metavar="T", help="a duration back (2h) or an RFC 3339 time")
        parser.add_argument("--type", default="", metavar="T", help="only this type, for example rolled_back")
        parser.add_argument("--follow", "-f", action="store_true", help="go on with what comes")
        arguments.verbose(parser, arguments.EACH)

    def request(self, args: argparse.Namespace) -> Request:
        _require_type(args.type)
        count = args.n if args.n is not None else None if args.since is not None else DEFAULT_COUNT
        fields = {"count": count, "since": _since(args.since), "type": args.type, "follow": args.follow}
        return Request("log", fields)

    def wanted(self, args: argparse.Namespace, line: Mapping[str, Any]) -> bool:
        return not args.type or line["record"]["type"] == args.type

    def ended_by_hand(self, args: argparse.Namespace) -> bool:
        return bool(args.follow)

    def long(self, args: argparse.Namespace, *, far: bool) -> bool:
        return not args.follow

    # -- of many nodes ----------------------------------------------------------------------------------------------

    def refuse_afar(self, args: argparse.Namespace) -> None:
        if args.follow:
            raise UsageError("log --follow works on one node; the cluster's events are: pact watch --nodes ...")

    def accept_afar(self, answer: Answer) -> Answer:
        if not answer.ok:
            raise answer.error()
        return answer

    def _records(self, args: argparse.Namespace, answer: Answer) -> list[Any]:
        return [line["record"] for line in answer.result.get("rows", ()) if self.wanted(args, line)]

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli.render import event_line

        return [event_line(record, view) for record in self._records(args, answer)]

    def document(self, args: argparse.Namespace, answer: Answer) -> list[Any]:
        return self._records(args, answer)

    def page(self, documents: Documents, silent: int, view: View) -> list[tuple[str, str]]:
        from pact.cli import folds

        return list(folds.log(documents, silent, view))

    def left_out(self, answer: Answer) -> str:
        cut = answer.result.get("truncated")
        return "older records are left out; ask for fewer: -n, --since" if cut else ""


def _since(text: str | None) -> str:
    """A point in time in the form of records."""
    from pact.core.records import rfc3339

    if text is None:
        return ""
    try:
        then = datetime.now(UTC) - timedelta(microseconds=parse_duration(text) / 1000)
    except ValueError:
        try:
            then = datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(f"--since {text!r} is neither a duration nor an RFC 3339 time") from None
    try:
        at_us = int(then.astimezone(UTC).timestamp() * 1_000_000)
        return rfc3339(max(0, at_us) * 1000)  # a year below 1000 would sort wrongly
    except (ValueError, OverflowError, OSError):  # a time before year 1 or after 9999
        raise UsageError(f"--since {text!r} is no time that a record can have") from None


def _require_type(name: str) -> None:
    """Raises UsageError for a type that no record has: empty output would look as if nothing had happened."""
    from pact.core.records import TYPES

    if name and name not in TYPES:
        near = difflib.get_close_matches(name, sorted(TYPES), 1, arguments.NEAR)
        raise UsageError(
            f"--type {name!r}: there are no such records",
            f"did you mean {near[0]!r}?" if near else f"types: {', '.join(sorted(TYPES))}",
        )


COMMAND = Log()
