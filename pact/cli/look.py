"""status, diff, check, consumers."""

from __future__ import annotations

import argparse
import re
from typing import Final

from pact.cli import login
from pact.cli.client import ask
from pact.cli.render import clean, diff_page, emit, holders_table, say, status_page
from pact.errors import EXIT_DONE, EXIT_DRIFT

DECIDE: Final = re.compile(r"needs a decision: [^;]*")  # which change it is, each node counts for itself


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
