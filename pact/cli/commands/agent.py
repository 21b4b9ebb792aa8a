"""``pact agent``: the daemon in the foreground; with ``--wait`` until it answers."""

from __future__ import annotations

import argparse
import time
from typing import Final

from pact.cli import arguments
from pact.cli.command import Program
from pact.errors import EXIT_DONE, UnreachableError, UsageError
from pact.model import NS_PER_S

WAIT_S: Final = 60.0
AGAIN_S: Final = 0.1


class Agent(Program):
    examples = ("pact agent --config /etc/pact/agent.toml", "pact agent --wait --timeout 30")
    daemon = pids = traceback = True

    def arguments(self, parser: arguments.Parser) -> None:
        parser.add_argument("--config", metavar="FILE", help="default: /etc/pact/agent.toml, if it exists")
        parser.add_argument("--wait", action="store_true", help="run none: wait until the one that was started answers")
        parser.add_argument("--sessions", action="store_true", help="run none: keep people's sessions, as systemd asks")
        arguments.timeout(parser, "with --wait: for how long (default 60s)")

    def run(self, args: argparse.Namespace) -> int:
        if args.sessions:
            from pact.session import keeper

            return keeper.main(args.socket or keeper.DEFAULT)
        from pact.agent import config

        settings = config.load(args.config)
        if args.socket is not None:
            settings.socket, settings.given = args.socket, frozenset({"socket"})
        if args.wait:
            return _wait(settings.socket, args.timeout / NS_PER_S if args.timeout else WAIT_S)
        if args.timeout:
            raise UsageError("agent --timeout is for agent --wait")
        from pact.agent.loop import serve

        serve(settings)
        return EXIT_DONE


def _wait(path: str, timeout_s: float) -> int:
    """Wait until an agent answers there. Raises UnreachableError."""
    from pact.cli.client import Local

    ends_s = time.monotonic() + timeout_s
    while True:
        try:
            Local(path, max(AGAIN_S, ends_s - time.monotonic())).ask("ping", {}).accepted()
            return EXIT_DONE
        except UnreachableError:
            if time.monotonic() >= ends_s:
                raise
            time.sleep(AGAIN_S)


COMMAND = Agent()
