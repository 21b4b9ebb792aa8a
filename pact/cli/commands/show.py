"""``pact show``: one record whole, and the content that a rollback replaced."""

from __future__ import annotations

import argparse
import base64
import os
from typing import TYPE_CHECKING, Any

from pact.cli.arguments import Parser, whole
from pact.cli.command import NodeCommand, Request
from pact.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from pact.cli.client import Answer, Local
    from pact.cli.render import Lines, View


class Show(NodeCommand):
    examples = ("pact show 41", "pact show 41 --resource file:/etc/hosts --restore /root/hosts.lost")

    def arguments(self, parser: Parser) -> None:
        parser.add_argument("seq", type=whole, metavar="SEQ")
        parser.add_argument("--restore", metavar="PATH", help="write the replaced content to PATH (must not exist)")
        parser.add_argument("--resource", metavar="ID", help="which one, where the record keeps several")

    def request(self, args: argparse.Namespace) -> Request:
        if args.restore is not None:
            return Request("content", {"seq": args.seq, "resource": args.resource})
        return Request("show", {"seq": args.seq})

    def refuse_afar(self, args: argparse.Namespace) -> None:
        if args.restore is not None:
            raise UsageError("show --restore works on the node itself")

    def here(self, args: argparse.Namespace, agent: Local) -> int:
        if args.restore is None:
            return super().here(args, agent)
        return _restore(args, agent.ask(*self.request(args)).accepted())

    def show(self, args: argparse.Namespace, answer: Answer, view: View) -> Lines:
        from pact.cli.render import record_page

        return record_page(_meant(args, answer), view)

    def document(self, args: argparse.Namespace, answer: Answer) -> dict[str, Any]:
        return {"v": 1, **_meant(args, answer)}

    def long(self, args: argparse.Namespace, *, far: bool) -> bool:
        return True


def _meant(args: argparse.Namespace, answer: Answer) -> dict[str, Any]:
    """The record with everything that it keeps, or only with that of ``--resource``. Raises UsageError if there is
    none."""
    from pact.cli.render import clean

    if args.resource is None:
        return answer.result
    contents = answer.result["contents"]
    if args.resource not in contents:
        kept = ", ".join(map(clean, sorted(contents)[:5]))
        raise UsageError(
            f"record {args.seq} keeps no content of {clean(args.resource)}",
            f"it keeps: {kept}" if kept else "pact log --type rollback_started",
        )
    return {**answer.result, "contents": {args.resource: contents[args.resource]}}


def _restore(args: argparse.Namespace, answer: Answer) -> int:
    """Write out the replaced content."""
    from pact.cli.render import clean, emit, say

    data = base64.b64decode(answer.result["data"])
    try:
        fd = os.open(args.restore, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
    except FileExistsError:
        raise UsageError(f"{args.restore} exists already", "name a path that does not") from None
    except OSError as exc:
        raise UsageError(f"{args.restore}: {os.strerror(exc.errno or 0)}") from None
    if args.json:
        emit({"v": 1, "resource": answer.result["resource"], "path": args.restore, "bytes": len(data)})
    else:
        say(f"wrote {len(data)} bytes of {clean(answer.result['resource'])} to {args.restore}")
    return EXIT_DONE


COMMAND = Show()
