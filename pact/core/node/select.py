"""Which resources a request means, by change, and whether its caller may settle them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pact.core.node import access, bonds
from pact.core.node import change as life
from pact.core.node.change import Change
from pact.core.node.desk import Desk
from pact.core.node.events import Caller
from pact.errors import ConflictError, DeniedError, PactError, UsageError
from pact.model import Owner

SHOWN_MAX: Final = 5
CHANGE_ID: Final = re.compile(r"c[1-9][0-9]{0,17}")


def some(names: Sequence[str]) -> str:
    """The first few names and the number of the rest: nobody reads hundreds."""
    more = f" and {len(names) - SHOWN_MAX} more" if len(names) > SHOWN_MAX else ""
    return ", ".join(names[:SHOWN_MAX]) + more


def select(
    node: Desk,
    caller: Caller,
    what: str,
    targets: Sequence[str],
    *,
    everything: bool = False,
    force: bool = False,
    shared: bool | None = None,
) -> dict[str, list[str]]:
    """The resources that a request means, by change. Raises for names that are unknown, settled, frozen or not allowed.

    ``shared``: whether resources that other owners also changed may be settled; ``None`` if nothing is settled.
    """
    access.require(caller, "ops", what)
    if targets and everything:
        raise UsageError("--all and names exclude each other")
    changes = node.state.changes
    single = [c for c in changes.values() if not c.group]  # a group is settled everywhere, or here if its name is given
    if targets:
        picked = _named(node, targets)
        for cid in picked:
            access.require_settle(caller, changes[cid], what)
            bonds.require_free(node, changes[cid], what, force)
    elif everything:
        picked = {c.id: list(c.members) for c in single if access.may_settle(caller, c)}
    else:
        picked = {c.id: list(c.members) for c in single if caller.owns(c.owner)}
        if not picked and single:
            others = some([f"{c.id} ({c.owner.user})" for c in single])
            hint = f"name it: pact {what} CHANGE" + ("" if what == "extend" else ", or use --all")
            raise PactError(f"no open change is yours; there is {others}", hint)
    for cid in picked:
        if changes[cid].state == life.ROLLING:
            raise ConflictError(f"too late: the rollback of {cid} has begun", "see pact log")
        if changes[cid].intents:
            raise ConflictError(f"{cid} is still being applied", "try again when it is done")
    picked = {cid: changes[cid].bound_together(ids) for cid, ids in picked.items() if ids}  # C8
    if shared is not None:
        require_shared(node, caller, picked, what, shared)
    return picked


def require_shared(node: Desk, caller: Caller, picked: Mapping[str, Sequence[str]], what: str, shared: bool) -> None:
    """Resources that other owners also changed are not settled as if the caller alone had changed them. Raises
    ConflictError that names the owners, and DeniedError if the caller may not settle the change of one of
    them.  # C9"""
    for cid, ids in picked.items():
        for resource in node.in_turns(ids):
            others = others_of(node, caller, cid, resource)
            if not others:
                continue
            names = ", ".join(dict.fromkeys(o.user for o in others))
            if not shared:
                hint = f"pact diff {resource} shows it; settle it for all with --shared"
                raise ConflictError(f"{resource} of {cid} was also changed by {names}", hint)
            for other in others:
                if not access.may_settle_of(caller, other):
                    raise DeniedError(f"{what} {resource}, which {other.user} also changed, needs the role admin")


def others_of(node: Desk, caller: Caller, cid: str, resource: str) -> list[Owner]:
    """The other owners who have written this member since it last conformed, without the caller and the change's
    owner."""
    also = node.state.changes[cid].members[resource].also
    return [o for o in also if not caller.owns(o)]


def shared_with(change: Change, resources: Iterable[str]) -> dict[str, Sequence[Owner]]:
    """The other owners who had changed these resources, by resource; resources without any are left out."""
    return {r: change.members[r].also for r in resources if r in change.members and change.members[r].also}


def select_one(node: Desk, caller: Caller, target: str, what: str) -> str:
    """The id of one change that the caller may settle and whose rollback has not begun."""
    (cid,) = _named(node, [target])
    change = node.state.changes[cid]
    access.require_settle(caller, change, what)
    if change.state == life.ROLLING:
        raise ConflictError(f"too late: the rollback of {cid} has begun", "see pact log")
    return cid


def _named(node: Desk, targets: Iterable[str]) -> dict[str, list[str]]:
    state = node.state
    picked: dict[str, list[str]] = {}
    for target in dict.fromkeys(targets):
        if target in state.changes:
            picked[target] = list(state.changes[target].members)
            continue
        if CHANGE_ID.fullmatch(target):
            if int(target[1:]) <= state.change_n:
                raise ConflictError(f"{target} is settled already", "see pact log")
            raise UsageError(f"there is no change {target}", "pact status lists them")
        change = state.change_of(target)
        if change is not None:
            ids = picked.setdefault(change.id, [])
            if target not in ids:
                ids.append(target)
        elif target in state:
            raise ConflictError(f"{target} has not drifted, or was settled already")
        else:
            raise UsageError(f"{target} is neither a change nor a declared resource", "pact status lists the changes")
    return picked
