"""``pact watch``: live events until interrupted, of this node or, with ``--nodes``, of many."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pact.cli.command import LinesCommand, Request
from pact.errors import BY_EXIT_CODE, EXIT_DONE, PactError

if TYPE_CHECKING:
    from pact.cluster.client import RootClient


class Watch(LinesCommand):
    examples = ("pact watch", "pact --json watch", "pact watch --nodes n[001-128]")

    def request(self, args: argparse.Namespace) -> Request:
        return Request("watch", {})

    def ended_by_hand(self, args: argparse.Namespace) -> bool:
        return True

    def afar(self, args: argparse.Namespace) -> int:
        from pact.cli import roots
        from pact.cluster.client import Event, Result

        with roots.connected(args) as client:
            _say_absent(client, args.nodes)
            for item in client.ask("watch", {}, args.nodes):
                if isinstance(item, Event):
                    _show(item.line, as_json=args.json)
                elif isinstance(item, Result):
                    raise BY_EXIT_CODE.get(item.exit, PactError)(item.message, item.hint)
        return EXIT_DONE


def _show(line: bytes, *, as_json: bool) -> None:
    """Show a node's event. A malformed one does not end the command."""
    from pact.cli.render import View, clean, emit_line, event_line, say
    from pact.cli.roots import NONSENSE
    from pact.core import strict

    try:
        record = strict.loads_object(line, strict.LINE_MAX)
    except strict.NotStrictError:
        print(f"pact: {NONSENSE} was left out", file=sys.stderr)
        return
    if as_json:
        emit_line(record)
        return
    try:
        text = event_line(record, View.here())
    except Exception:  # a record of another version, or a malformed one
        text = f"{clean(record.get('type'))}: {NONSENSE}"
    say(f"{clean(record.get('node'))}: {text}", flush=True)


def _say_absent(client: RootClient, nodes: str | None) -> None:
    """Report absent nodes: a person who watches them would wait in silence."""
    from pact.cli.roots import fold, making_sense, say_failed
    from pact.cluster.client import Result

    for item in client.ask("nodes", {}, nodes) if nodes is not None else ():
        if isinstance(item, Result):
            if item.exit != EXIT_DONE:
                raise BY_EXIT_CODE.get(item.exit, PactError)(item.message, item.hint)
            with making_sense():
                absent = [name for name, row in item.result.get("nodes", {}).items() if not row["connected"]]
            if absent:
                say_failed({fold(absent): "not connected; watched for when they come"})


COMMAND = Watch()
