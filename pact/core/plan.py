"""Rollback plans: the order in which resources are restored. Pure; nothing is looked up.  # R1"""

from __future__ import annotations

import heapq
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from pact.core.payload import Planned
from pact.errors import ConflictError
from pact.model import Attrs, Declared, Json, split_id
from pact.values import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """Bring ``id`` from ``actual`` (its state when the change was frozen) to ``target``; ``None`` is absent.

    ``inode``: device and inode of the intended thing; another thing that has the name meanwhile is not meant.
    ``notify``: what is told when the step has moved it; ``owed``: it was moved before, and they could not be told.
    """

    id: str
    target: Attrs | None
    actual: Attrs | None
    requires: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    inode: tuple[int, int] | None = None
    notify: tuple[str, ...] = ()
    owed: bool = False

    @classmethod
    def back(cls, resource: str, declared: Declared, actual: Attrs | None = None) -> Step:
        """The step that brings it to this declared value."""
        rest = declared.requires, declared.consumers
        return cls(resource, declared.attrs, actual, *rest, notify=declared.notify)

    def planned(self) -> Planned:
        """The step as its record shows it."""
        return Planned(self.id, action(self), self.target, self.actual)

    def to_json(self) -> Json:
        return self.planned().to_json()


def action(step: Step) -> str:
    """``create``, ``remove``, ``restore`` or ``set``, for people. A mere ``value`` is never created: the kernel either
    has it or not."""
    if step.target is None:
        return "remove"
    if step.actual is None:
        return "set" if "value" in step.target else "create"
    return "restore"


class Nature(Protocol):
    """How the resources of a kind relate to others, as pure functions: ``pact.resources.base.Kind`` describes each of
    them."""

    is_path: bool
    bears: bool
    carried: bool
    comes_back: bool
    follows: tuple[str, ...]

    def rank(self, name: str) -> int: ...

    def turns(self, step: Step) -> bool: ...

    def shifts(self, step: Step) -> bool: ...

    def directory(self, name: str) -> str: ...

    def after(self, step: Step) -> tuple[str, ...]: ...

    def taken(self, seen: Attrs, declared: Attrs | None) -> Attrs: ...

    def has_content(self, attrs: Attrs) -> bool: ...

    def is_anothers(self, actual: Attrs, known: Sequence[Attrs]) -> bool: ...

    def undeclarable(self, attrs: Attrs | None) -> str: ...

    def place(self, name: str) -> str: ...

    def all_in(self, place: str) -> str: ...


#: The nature of a resource, by its id.
Natures = Callable[[str], Nature]
T = TypeVar("T")


class Turns(Protocol):
    """Passes items on; between some of them others may have a turn (``Ledger.in_turns``)."""

    def __call__(self, items: Iterable[T], /) -> Iterator[T]: ...


def below(path: str, root: str) -> bool:
    """Whether ``path`` lies strictly below ``root``."""
    return path != root and (root == "/" or path.startswith(root.rstrip("/") + "/"))


def ordered(steps: Iterable[Step], nature: Natures, turns: Turns = iter) -> tuple[Step, ...]:
    """The steps in an order in which needed resources come first, and resources are taken away from the inside out.

    The order follows explicit ``requires``, what a kind wants first (``after``), paths above other paths, and kinds
    that bring what other kinds set. Raises ConflictError on a cycle, naming its members. ``turns``: between the
    resources of a long plan others may have a turn.
    """
    steps = tuple(steps)
    if len(steps) == 1 and not steps[0].requires and not nature(steps[0].id).after(steps[0]):
        return steps
    by_id = {s.id: s for s in steps}
    after: dict[str, set[str]] = {rid: set() for rid in by_id}  # rid -> the steps that must come before it
    for step in by_id.values():
        for need in (*step.requires, *nature(step.id).after(step)):
            if need in by_id:
                _precede(after, step, by_id[need])
    _containment(by_id, after, nature)
    _bringing(by_id, after, nature)
    order = _topological(after, lambda rid: (nature(rid).rank(split_id(rid)[1]), rid), turns)
    return tuple(by_id[rid] for rid in order)


def anyhow(steps: Iterable[Step], nature: Natures, turns: Turns = iter) -> tuple[Step, ...]:
    """The same for a plan that must go on: of resources that require each other in a circle (each of them
    was declared by itself), the requirements do not count."""
    steps = tuple(steps)
    try:
        return ordered(steps, nature, turns)
    except ConflictError:
        by_id = {s.id: s for s in steps}
    try:
        return tuple(by_id[s.id] for s in ordered((replace(s, requires=()) for s in steps), nature, turns))
    except ConflictError:
        return steps


def _precede(after: dict[str, set[str]], upper: Step, lower: Step) -> None:
    """``upper`` needs ``lower``: ``lower`` comes first when building, ``upper`` when taking away."""
    if upper.target is None:
        after[lower.id].add(upper.id)
    else:  # also if the lower one is taken away: a mount that hides the upper one goes first
        after[upper.id].add(lower.id)


def _containment(by_id: Mapping[str, Step], after: dict[str, set[str]], nature: Natures) -> None:
    """A resource comes after those that contain it. At the same path, only kinds that bear others come first."""
    at: dict[str, list[Step]] = {}
    for rid, step in by_id.items():
        if nature(rid).is_path:
            at.setdefault(split_id(rid)[1], []).append(step)
    for path, steps in at.items():
        here = path
        while True:
            for lower in at.get(here, ()):
                bears = nature(lower.id).bears
                for step in steps:
                    if here != path or (bears and not nature(step.id).bears):
                        _precede(after, step, lower)
            if here == "/":
                break
            here = posixpath.dirname(here)


def _bringing(by_id: Mapping[str, Step], after: dict[str, set[str]], nature: Natures) -> None:
    """A resource that other kinds may bring (a module brings its sysctls) comes after all resources of those kinds that
    are brought, but for those that need it themselves (a mount that requires a service)."""
    coming: dict[str, list[str]] = {}
    for rid, step in by_id.items():
        if step.target is not None:
            coming.setdefault(rid.partition(":")[0], []).append(rid)
    before: dict[str, set[str]] = {}  # the inverse of ``after``, once it is needed
    for rid in sorted(rid for rid in by_id if nature(rid).follows):
        first = {other for kind in nature(rid).follows for other in coming.get(kind, ())}
        if not first:
            continue
        if not before:
            for each, lower in after.items():
                for need in lower:
                    before.setdefault(need, set()).add(each)
        first -= _needing(rid, before)
        after[rid] |= first
        for other in first:
            before.setdefault(other, set()).add(rid)


def _needing(rid: str, before: Mapping[str, set[str]]) -> set[str]:
    """All that comes after it, directly or not."""
    found, todo = set[str](), [rid]
    while todo:
        for upper in before.get(todo.pop(), ()):
            if upper not in found:
                found.add(upper)
                todo.append(upper)
    return found


def _topological(after: Mapping[str, set[str]], rank: Callable[[str], tuple[int, str]], turns: Turns) -> list[str]:
    waiting = {rid: set(needs) for rid, needs in turns(after.items())}
    dependents: dict[str, list[str]] = {rid: [] for rid in after}
    for rid, needs in turns(waiting.items()):
        for need in needs:
            dependents[need].append(rid)
    ready = [(rank(rid), rid) for rid, needs in waiting.items() if not needs]
    heapq.heapify(ready)
    out: list[str] = []
    for _ in turns(after):
        if not ready:
            break
        _, rid = heapq.heappop(ready)
        out.append(rid)
        for other in dependents[rid]:
            waiting[other].discard(rid)
            if not waiting[other]:
                heapq.heappush(ready, (rank(other), other))
    if len(out) != len(after):
        left = sorted(set(after) - set(out))
        raise ConflictError(f"these require each other in a circle: {', '.join(left[:10])}", "change their requires")
    return out
