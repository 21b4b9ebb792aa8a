"""Where untracked things lie, for people: a new tree is one line, whatever it holds. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pact.core.node import tracked
from pact.core.node.desk import Desk

#: How many places are reported at most.
PLACES_MAX: Final = 100
#: How many things a step of the folding takes.
AT_ONCE: Final = 100

#: The place (a resource's id, or a common prefix of several), the owner, the count, and one example.
Place = tuple[str, str, int, str]


def places(node: Desk) -> list[Place]:
    """At most ``PLACES_MAX`` places, by name. Things in a new directory are counted there. Other things are counted
    together with the new things beside them, in the place that their kind names (``Nature.place``)."""
    for _ in folding(node):
        pass
    return node.pace.folded[1]


def folding(node: Desk) -> Iterator[None]:
    """Bring ``node.pace.folded`` up to date, some things at a time: there may be twenty thousand."""
    key = (node.state.seq, len(node.pace.waiting), len(node.pace.leaving))
    if node.pace.folded[0] == key:
        return
    nature = node.rules.nature

    def above(resource: str) -> str:
        kind, _, name = resource.partition(":")
        return f"{kind}:{nature(resource).place(name)}"

    def spelled(place: str) -> str:
        kind, _, name = place.partition(":")
        return f"{kind}:{nature(place).all_in(name)}"

    tops: dict[str, str] = {}  # a new directory -> the topmost new directory that contains it, or itself
    counts: dict[tuple[str, str], tuple[int, str]] = {}
    for at, resource in enumerate(sorted(tracked.names(node)), 1):
        if at % AT_ONCE == 0:
            yield
        found = tracked.shown(node, resource)
        if found is None:
            continue
        outer = above(resource)
        place = tops.get(outer, outer)
        if found.actual.get("type") == "directory":
            tops[resource] = place = tops.get(outer, resource)
        many, first = counts.get((place, found.owner.user), (0, resource))
        counts[place, found.owner.user] = many + 1, first
    for directory, more in node.pace.beyond.items():
        many, first = counts.get((directory, ""), (0, directory))
        counts[directory, ""] = many + more, first
    rows = sorted((p if n > 1 else first, user, n, first) for (p, user), (n, first) in counts.items())
    node.pace.folded = key, [(spelled(p) if n > 1 else p, user, n, first) for p, user, n, first in rows[:PLACES_MAX]]
