"""How the resources of kinds relate to each other, in the form for the core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

from pact.core.plan import Nature
from pact.model import Declared, split_id
from pact.resources import KINDS


def nature(resource: str) -> Nature:
    """The nature of a resource, by its id."""
    return KINDS[resource.partition(":")[0]]


def moved_by(kinds: Set[str]) -> tuple[str, ...]:
    """The id prefixes of resources that may move when resources of these kinds are written."""
    return tuple(f"{k.name}:" for k in KINDS.values() if not kinds.isdisjoint(k.moved_by))


def teach(resources: Iterable[str], declared: Callable[[str], Declared | None]) -> None:
    """Tell the kinds what is declared of these resources: some need it to look at them."""
    for resource in resources:
        kind, name = split_id(resource)
        value = declared(resource)
        KINDS[kind].learn(name, None if value is None else value.attrs)


class KindRules:
    """The part of ``core.node.ledger.Rules`` that is the same on a real machine and on a simulated one."""

    def nature(self, resource: str) -> Nature:
        return KINDS[resource.partition(":")[0]]

    def moved_by(self, kinds: Set[str]) -> tuple[str, ...]:
        return moved_by(kinds)
