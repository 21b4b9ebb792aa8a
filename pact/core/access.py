"""Who may do what.  # S1

Viewers read. Ops settle, extend and hold their own and unattributed changes, start emergencies and end them. Admins do
everything. Every refusal names the role that would be allowed; the caller journals it.
"""

from __future__ import annotations

from typing import Final

from pact.core.change import Change
from pact.core.events import Caller
from pact.errors import DeniedError
from pact.model import UNATTRIBUTED, Owner

RANK: Final = {"viewer": 0, "ops": 1, "admin": 2, "agent": 2}


#: How somebody comes by another role: on the node itself, and over the cluster.
BY_GROUP: Final = "ask for membership in one of the groups of [access] in agent.toml"
BY_KEY: Final = "whoever administers the cluster gives your key another role, in authorized_keys.toml"


def require(caller: Caller, role: str, what: str) -> None:
    """Raises DeniedError unless the caller has ``role`` or more."""
    if RANK[caller.actor.role] < RANK[role]:
        raise DeniedError(
            f"{what} needs the role {role}; {caller.actor.user} is {caller.actor.role}",
            BY_KEY if caller.actor.via == "cluster" else BY_GROUP,
        )


def may_settle(caller: Caller, change: Change) -> bool:
    return may_settle_of(caller, change.owner)


def may_settle_of(caller: Caller, owner: Owner) -> bool:
    """Whether the caller may settle what this owner changed."""
    if RANK[caller.actor.role] >= RANK["admin"]:
        return True
    if RANK[caller.actor.role] < RANK["ops"]:
        return False
    return owner.key == UNATTRIBUTED.key or caller.owns(owner)


def require_settle_of(caller: Caller, owner: Owner, what: str) -> None:
    """Raises DeniedError unless the caller may settle what this owner changed."""
    require(caller, "ops", what)
    if not may_settle_of(caller, owner):
        raise DeniedError(f"{what} of {owner.user} needs the role admin")


def require_settle(caller: Caller, change: Change, what: str) -> None:
    """Raises DeniedError unless the caller may settle this change."""
    require(caller, "ops", what)
    if not may_settle(caller, change):
        raise DeniedError(f"{what} {change.id} of {change.owner.user} needs the role admin")
