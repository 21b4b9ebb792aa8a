"""The roles: which role may do what.  # S1

Viewers read. Ops settle, extend and hold their own and unattributed changes, start emergencies and end them. Admins do
everything. Every refusal names the role that would be allowed; the caller journals the refusal.
"""

from __future__ import annotations

from pact.core.node.change import Change
from pact.core.node.events import Caller
from pact.core.roles import BY_GROUP, BY_KEY, RANK
from pact.errors import DeniedError
from pact.model import UNATTRIBUTED, Owner


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
