"""``pact agent``: the daemon in the foreground."""

from __future__ import annotations

import argparse

from pact.errors import EXIT_DONE


def run(args: argparse.Namespace) -> int:
    from pact.agent import config
    from pact.agent.agent import serve

    settings = config.load(args.config)
    if args.socket is not None:
        settings.socket = args.socket
    serve(settings)
    return EXIT_DONE
