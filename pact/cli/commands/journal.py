"""``pact journal``: verify, export, import and accept-loss, of a node's journal or (``--root``) of a root's log."""

from __future__ import annotations

import argparse
from typing import Final

from pact.cli import arguments
from pact.cli.command import Program

ROOTS: Final = "a root's log in place of an agent's journal; its aggregator.toml"
UNMARKED: Final = "take an export of an older version, which has no mark at its end"


class Journal(Program):
    examples = (
        "pact journal verify",
        "pact journal verify /root/n001.jsonl",
        "pact journal export /root/n001.jsonl",
        "pact journal export > n001.jsonl",
        "pact journal import /root/n001.jsonl",
        "pact journal import /root/n001.jsonl --config /etc/pact/agent.toml",
    )
    pids = True

    def arguments(self, parser: arguments.Parser) -> None:
        actions = arguments.actions(parser, "verify|export|import|accept-loss")
        verify = arguments.action(actions, "verify", "check the hash chain of a journal or an export", self.examples)
        verify.add_argument("file", nargs="?", metavar="FILE", help="default: the configured agent's journal")
        verify.add_argument("--config", metavar="FILE")
        verify.add_argument("--root", metavar="FILE", help=ROOTS)
        verify.add_argument(
            "--expect",
            action="append",
            metavar="SEQ:HASH",
            help="this record has this hash, as pact --json nodes says the root has it",
        )
        verify.add_argument("--without-mark", action="store_true", help=UNMARKED)
        export = arguments.action(actions, "export", "write a journal as JSON lines", self.examples)
        export.add_argument("file", nargs="?", metavar="FILE", help="default: stdout")
        export.add_argument("--config", metavar="FILE")
        export.add_argument("--root", metavar="FILE", help=ROOTS)
        load = arguments.action(actions, "import", "fill an empty state directory from an export", self.examples)
        load.add_argument("file", metavar="FILE")
        load.add_argument("--config", metavar="FILE")
        load.add_argument("--root", metavar="FILE", help=ROOTS)
        load.add_argument("--without-mark", action="store_true", help=UNMARKED)
        text = "go on with a journal whose newest records are gone, on record"
        lost = arguments.action(actions, "accept-loss", text, self.examples)
        lost.add_argument("-m", "--message", required=True, metavar="TEXT", help="why, for the record")
        lost.add_argument("--config", metavar="FILE")

    def run(self, args: argparse.Namespace) -> int:
        if getattr(args, "root", None):
            from pact.cli import rootlog

            return rootlog.run(args)
        from pact.cli import journal

        return journal.run(args)


COMMAND = Journal()
