"""``pact export``: the declared state as TOML that ``declare`` accepts."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pact.cli.command import Request, StreamCommand
from pact.errors import EXIT_DONE

if TYPE_CHECKING:
    from pact.cli.client import Local


class Export(StreamCommand):
    examples = ("pact export > node.toml", "pact --json export")
    far = False

    def request(self, args: argparse.Namespace) -> Request:
        return Request("export", {})

    def here(self, args: argparse.Namespace, agent: Local) -> int:
        from pact.cli.render import emit

        text = "".join(line["text"] for line in agent.lines(*self.request(args)))
        if args.json:
            emit({"v": 1, "toml": text})
        else:
            sys.stdout.write(text.lstrip("\n"))
        return EXIT_DONE

    def long(self, args: argparse.Namespace, *, far: bool) -> bool:
        return True


COMMAND = Export()
