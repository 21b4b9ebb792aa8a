"""Who may have a session on this node, as which account, and whether there is room for one more."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Final

from pact.agent.config import Config
from pact.core.node.events import Caller
from pact.errors import ConflictError, DeniedError
from pact.observe.attribution import printable

LAUNCHING_MAX: Final = 8
OTHERS_SHARE: Final = 4  # of so many places one is kept from a person who has all the others


def account(config: Config, caller: Caller, account: str) -> tuple[str, str]:
    """The person, and the account of the session; ``account``: the one that was asked for, or "". Raises
    DeniedError."""
    actor = caller.actor
    if actor.role not in config.shell_roles:
        roles = " or ".join(config.shell_roles) or "nobody's"
        raise DeniedError(
            f"a session needs the role {roles}; {actor.user} is {actor.role}", "see [shell] roles in agent.toml"
        )
    person = caller.owner.user
    if caller.owner.key.startswith(("unit:", "unattributed", "agent")):
        raise DeniedError(f"{person} is no person: a session belongs to an account")
    account = account or person
    if account == "root" and person not in config.shell_root:
        raise DeniedError(
            f"{person} may not open a session of root", "log in as yourself; or see [shell] root in agent.toml"
        )
    if account not in (person, "root"):
        raise DeniedError(f"{person} may not open a session of {printable(os.fsencode(account))[:64]}")
    return person, account


def require_room(most: int, person: str, running: Iterable[str], launching: Collection[str]) -> None:
    """Nobody takes all of ``most`` places, not even by sessions that nobody is at. ``running`` and ``launching``: the
    persons of those sessions. Raises ConflictError.  # X7"""
    each = most - most // OTHERS_SHARE
    taken = [*running, *launching]
    if len(taken) >= most:
        raise ConflictError(
            f"{most} sessions are open on this node", "see [shell] sessions in agent.toml, pact sessions"
        )
    if taken.count(person) >= each:
        raise ConflictError(
            f"{each} sessions of {person} are open on this node, and the other {most - each} places are for others",
            "pact sessions --end ID ends one",
        )
    if len(launching) >= LAUNCHING_MAX:
        raise ConflictError("several sessions are just being opened", "repeat it in a moment")
