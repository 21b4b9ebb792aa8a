"""``pact check``: one line for health checks, exit 0 or 11."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Final

from pact.cli.command import NodeCommand, Request
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.cli.client import Answer
    from pact.cli.render import Lines, View

DECIDE: Final = re.compile(r"needs a decision: [^;]*")  # the number of the change, which each node counts by itself


class Check(NodeCommand):
    examples = ("pact check", "pact check --timeout 500ms", "pact check --nodes @compute")
    patience_ns = 2 * NS_PER_S

    def request(self, args: argparse.Namespace) -> Request:
        return Request("check", {})

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli.render import clean

        line = clean(answer.result["line"])
        return [line if view.ids else DECIDE.sub("needs a decision", line)]


COMMAND = Check()
