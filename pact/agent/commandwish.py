"""A command that a person asks for (``executing``): whether it can be one, and what the keeper of sessions is told."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from pact.agent.config import Config
from pact.core import ops
from pact.core.node.events import Caller
from pact.errors import UsageError

STDIN_MAX: Final = 1 << 20
OUTPUT_LEAST, OUTPUT_MOST = 1 << 10, 64 << 20
LIMIT_MAX_MS: Final = 3600 * 1000
COMMAND_MAX: Final = 64 << 10
LEFT_S: Final = 2.0  # how long a command goes on whose agent has gone


def input_of(request: ops.Exec) -> bytes:
    """The command's input. Raises UsageError for a request that is none."""
    words = request.words
    if not words or sum(map(len, words)) > COMMAND_MAX or any("\0" in word for word in words):
        raise UsageError("the command is too long, or no command")
    try:
        stdin = base64.b64decode(request.stdin, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("the command's input is not base64") from None
    if len(stdin) > STDIN_MAX:
        raise UsageError(f"input of {len(stdin)} bytes; at most {STDIN_MAX} travel to many nodes")
    if not OUTPUT_LEAST <= request.output_max <= OUTPUT_MOST:
        raise UsageError(f"a bound on output lies between {OUTPUT_LEAST} and {OUTPUT_MOST} bytes")
    if not 0 < request.limit_ms <= LIMIT_MAX_MS:
        raise UsageError(f"a command may take between 1 and {LIMIT_MAX_MS} ms")
    return stdin


def wish_of(
    name: str, directory: str, person: str, account: str, caller: Caller, request: ops.Exec, config: Config
) -> dict[str, Any]:
    """``name``: of its files in ``directory``."""
    return {
        "id": name,
        "dir": directory,
        "account": account,
        "person": person,
        "root": person in config.shell_root,
        "who": f"{caller.actor.user} ({caller.actor.via})",
        "where": "the cluster",
        "rhost": "",
        "command": list(request.words),
        "terminal": False,
        "term": "",
        "rows": 0,
        "cols": 0,
        "env": {k: v for k, v in list(request.env.items())[:32] if isinstance(v, str)},
        "idle_s": 0,
        "detached_s": LEFT_S,
        "tasks": config.shell_tasks,
        "transcript": "",
        "whole": True,
        "twin": True,  # the one that knows what ``whole`` means
        "about": {
            "actor": caller.actor.to_json(),
            "user": caller.owner.user,
            "call": caller.actor.call,
            "begins": True,  # that it begins is on record before it does
        },
    }
