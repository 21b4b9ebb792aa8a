"""declare, apply, adopt, export."""

from __future__ import annotations

import argparse
import base64
import os
import sys
from functools import cache
from typing import Any

from pact.cli.client import ask, stream
from pact.cli.outcome import finish, show_applied, show_converged
from pact.cli.render import clean, emit, say
from pact.declared.toml import DeclaredSet, Ignore, parse_text, read_file
from pact.errors import EXIT_DONE, DeclaredError


@cache
def _read(path: str, *, empty: bool = False) -> dict[str, Any]:
    """The file as a request carries it; ``-`` is standard input. ``empty``: it may declare nothing,
    as long as it says something."""
    found: DeclaredSet
    label = "(standard input)" if path == "-" else path
    if path == "-":
        found = parse_text(sys.stdin.buffer.read(), label, os.getcwd(), Ignore())
    else:
        found = read_file(path, Ignore())
    if not found.resources and not found.track and (found.blank or not empty):
        raise DeclaredError(label, 0, "declares nothing")
    return {
        "resources": {r: d.to_json() for r, d in found.resources.items()},
        "blobs": {digest: base64.b64encode(data).decode() for digest, data in found.blobs.items()},
        **({"track": found.track} if found.track else {}),  # agents of before know no such field
    }


def declare(args: argparse.Namespace) -> int:
    read = _read(args.file, empty=not args.prune)  # as exported of nothing; but none that forgets everything
    answer = ask(args.socket, "declare", **read, prune=args.prune, take=args.take, dry_run=args.dry_run)
    if not args.json:
        show_converged(answer.result)
    return finish(args, answer)


def apply(args: argparse.Namespace) -> int:
    read = dict(_read(args.file))
    if read.pop("track", None):
        raise DeclaredError(args.file, 0, "[track] is for declare: apply changes the machine, not what is tracked")
    answer = ask(args.socket, "apply", **read, dry_run=args.dry_run, message=args.message)
    if not args.json:
        show_applied(answer.result)
    return finish(args, answer)


def adopt(args: argparse.Namespace) -> int:
    answer = ask(args.socket, "adopt", patterns=args.patterns)
    result = answer.result
    if not args.json:
        say(f"adopted {result['adopted']}, unchanged {result['unchanged']}")
        for resource in result["not_restorable"][:10]:
            say(f"  too large to keep: {clean(resource)} is watched, but cannot be restored")
        if result["in_changes"]:
            say(f"  passed over {len(result['in_changes'])} of open changes: {', '.join(result['in_changes'][:5])}")
        for resource in result.get("trials_ended", ())[:10]:
            say(f"  ended the trial of {clean(resource)}: it is declared for good now")
        for note in result["notes"]:
            say(f"  {clean(note)}")
        if result.get("tracked"):
            say(f"  what is new will show: {', '.join(map(clean, result['tracked'][:5]))} (pact track)")
    return finish(args, answer)


def export(args: argparse.Namespace) -> int:
    text = [line["text"] for line in stream(args.socket, "export")]
    if args.json:
        emit({"v": 1, "toml": "".join(text)})
    else:
        sys.stdout.write("".join(text).lstrip("\n"))
    return EXIT_DONE
