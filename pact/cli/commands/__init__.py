"""The commands, in the order of ``pact --help``: each is a file here, with its arguments and an instance ``COMMAND``.

Their names and one-line descriptions stand here, so that ``pact`` imports only the command that is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

from pact.cli.command import Command

COMMANDS: Final[Mapping[str, str]] = {
    "agent": "run the node agent in the foreground",
    "aggregator": "run one member of the cluster's tree in the foreground",
    "keygen": "make a key pair: NAME.key (public) and NAME.secret",
    "status": "state, drift, open changes and the time they have left",
    "diff": "declared against actual for each drifted resource",
    "commit": "accept changes: what the machine has becomes declared",
    "rollback": "restore declared state now",
    "extend": "move a deadline later; reopens what is blocked or failed",
    "redo": "apply again what was rolled back, as a new change with its own window",
    "apply": "make the changes in FILE now, as one change with its own window",
    "declare": "make FILE the declared state and converge to it at once",
    "show": "one journal record whole, with the content that a rollback replaced",
    "adopt": "make the live state of the matching resources declared",
    "track": "what becomes of what is new below a pattern; without arguments: what is tracked",
    "export": "the declared state as TOML that declare accepts",
    "consumers": "who uses this resource now",
    "emergency": "suspend auto-rollback on this node, or end that",
    "hold": "pause auto-rollback of one change or of the node",
    "log": "journal records, newest first",
    "watch": "live events until interrupted",
    "top": "a live view in a terminal: of this node, or of the fleet with --nodes",
    "check": "for health checks: one line, exit 0 or 11",
    "epilog": "for a batch system's epilog: a job has ended",
    "nodes": "the nodes of the cluster, and how far their records have come",
    "groups": "changes on many nodes, and where each member is",
    "shell": "a recorded terminal session on a node, as yourself; or one command",
    "exec": "one command on many nodes, as yourself; equal outputs are shown once",
    "sessions": "the sessions that are open, and who is in them",
    "journal": "verify, export or import a journal",
}


def load(name: str) -> Command:
    """The command of this name."""
    found: Command = import_module(f"{__name__}.{name}").COMMAND
    return found
