"""track: what becomes of what is new below adopted patterns."""

from __future__ import annotations

import argparse

from pact.cli.client import ask
from pact.cli.outcome import finish
from pact.cli.render import clean, emit, say
from pact.errors import EXIT_DONE, UsageError


def track(args: argparse.Namespace) -> int:
    if args.pattern is None:
        answer = ask(args.socket, "tracked")
        if args.json:
            emit(answer.result)
            return EXIT_DONE
        for pattern, mode in sorted(answer.result["tracked"].items()):
            say(f"{mode:8} {clean(pattern)}")
        if not answer.result["tracked"]:
            say("nothing is tracked: pact adopt PATTERN, or pact track PATTERN report")
        return EXIT_DONE
    if args.mode is None:
        raise UsageError("say what becomes of what is new below it", "pact track PATTERN report|enforce|ignore")
    answer = ask(args.socket, "track", patterns={args.pattern: args.mode})
    if not args.json:
        say(f"{clean(args.pattern)}: {args.mode}")
    return finish(args, answer)
