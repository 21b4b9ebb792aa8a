"""Who must still be told of what plans have moved: the moves of the state that keep it, and the reading of it.  # R14

Before a plan begins, ``State.telling`` gets its resources with those who read them. When it has ended, who was not told
stays there, or with the member that has the resource. Only these end a debt: that they were told, that the resource or
the notification is declared no more, and a person's commit of a resource that is as declared. A resource that drifts,
clears, or is declared otherwise keeps its debt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from pact.core.node.change import Change
from pact.core.node.state import State
from pact.model import Attrs
from pact.values import NOTHING

#: The result of a step that was carried out, in records.
RESTORED: Final = "restored"


def of(state: State, resource: str) -> list[str]:
    """Who must still be told of the resource."""
    change = state.change_of(resource)
    kept = [] if change is None else change.members[resource].owed
    return [*kept, *(n for n in state.telling.get(resource, ()) if n not in kept)]


def is_all(state: State, resource: str, actual: Attrs | None) -> bool:
    """Whether this is the declared state: then a resource is a member only because somebody must be told."""
    declared = state.declared(resource)
    return declared is not None and declared.attrs == actual


# -- moves of the state, for the fold ---------------------------------------------------------------------------------


def begin(state: State, plan: Iterable[str], notify: Mapping[str, Sequence[str]] = NOTHING) -> None:
    """A plan is about to move these. ``notify``: whom it tells, if it names others than the declaration."""
    for resource in plan:
        names, known = notify.get(resource) or state.readers(resource), of(state, resource)
        change = state.change_of(resource)
        member = None if change is None else change.members[resource]
        if member is not None and member.owed and is_all(state, resource, member.actual):
            names = ()  # nothing is moved: only they are told
        if names := [*names, *(n for n in known if n not in names)]:
            state.telling[resource] = names


def end(state: State, results: Mapping[str, str], owed: Mapping[str, Sequence[str]]) -> None:
    """A plan has ended, which is no rollback of a change; these must still be told."""
    for resource, result in results.items():
        state.telling.pop(resource, None)
        names = list(owed.get(resource, ()))
        change = state.change_of(resource)
        member = None if change is None else change.members[resource]
        if change is not None and member is not None and member.owed:
            if names or result == RESTORED:
                state.put(change, replace(member, owed=names))
        elif names:
            state.telling[resource] = names


def owe(state: State, change: Change, resource: str, names: Sequence[str], *, verified: bool) -> None:
    """These could not be told. If it is ``verified``, the member is as declared, and stays until they were; what is not
    in the change is still to be told."""
    declared, old = state.declared(resource), change.members.get(resource)
    if declared is None:
        return
    if old is None:
        state.telling[resource] = list(names)
    elif verified:
        state.put(change, replace(old, actual=declared.attrs, deviation_n=1, owed=list(names)))
    else:
        state.put(change, replace(old, owed=list(names)))
