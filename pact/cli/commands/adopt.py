"""``pact adopt``: make the live state of the matching resources declared."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pact.cli.arguments import Parser
from pact.cli.command import NodeCommand, Request

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View


class Adopt(NodeCommand):
    examples = ("pact adopt 'file:/etc/**' 'sysctl:**' 'mount:**'", "pact adopt file:/etc/chrony.conf")

    def arguments(self, parser: Parser) -> None:
        parser.add_argument("patterns", nargs="+", metavar="PATTERN")

    def request(self, args: argparse.Namespace) -> Request:
        return Request("adopt", {"patterns": args.patterns})

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli.render import clean

        result = answer.result
        yield f"adopted {result['adopted']}, unchanged {result['unchanged']}"
        for resource in result["not_restorable"][:10]:
            yield f"  too large to keep: {clean(resource)} is watched, but cannot be restored"
        if result["in_changes"]:
            yield f"  passed over {len(result['in_changes'])} of open changes: {', '.join(result['in_changes'][:5])}"
        for resource in result.get("trials_ended", ())[:10]:
            yield f"  ended the trial of {clean(resource)}: it is declared for good now"
        for note in result["notes"]:
            yield f"  {clean(note)}"
        if result.get("tracked"):
            yield f"  what is new will show: {', '.join(map(clean, result['tracked'][:5]))} (pact track)"


COMMAND = Adopt()
