"""status, diff, check, consumers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any, Final

from pact.cli import login
from pact.cli.client import ask
from pact.cli.render import clean, diff_page, emit, holders_table, on_terminal, say, status_lines
from pact.errors import EXIT_DONE, EXIT_DRIFT

DECIDE: Final = re.compile(r"needs a decision: [^;]*")  # which change it is, each node counts for itself


def status_page(doc: Mapping[str, Any], *, verbose: bool = False, ids: bool = True) -> None:
    """``ids``: with the numbers that a node counts by itself, which differ where nodes are equal otherwise."""
    if on_terminal():
        from pact.cli import screen

        screen.show(doc, verbose=verbose)
        return
    for line in status_lines(doc, ids=ids, verbose=verbose):
        say(line)


def status(args: argparse.Namespace) -> int:
    answer = ask(args.socket, "status")
    if args.json:
        emit(answer.result)
    elif args.login:
        if text := login.line(answer.result):
            say(text)
    else:
        status_page(answer.result, verbose=args.verbose, ids=getattr(args, "ids", True))
    return EXIT_DONE


def diff(args: argparse.Namespace) -> int:
    answer = ask(args.socket, "diff", targets=args.targets)
    if args.json:
        emit(answer.result)
    else:
        diff_page(answer.result)
    drift = answer.result["resources"] or answer.result.get("unrecorded")
    return EXIT_DRIFT if args.exit_code and drift else EXIT_DONE


def check(args: argparse.Namespace) -> int:
    answer = ask(args.socket, "check")
    if args.json:
        emit({"v": 1, **answer.result})
    else:
        line = clean(answer.result["line"])
        say(line if getattr(args, "ids", True) else DECIDE.sub("needs a decision", line))
    return answer.exit


def consumers(args: argparse.Namespace) -> int:
    answer = ask(args.socket, "consumers", resource=args.id)
    if args.json:
        emit(answer.result)
    elif answer.result["consumers"]:
        holders_table(answer.result["consumers"], answer.result.get("more", 0))
    else:
        say(f"nobody uses {clean(answer.result['resource'])}")
    return EXIT_DONE
