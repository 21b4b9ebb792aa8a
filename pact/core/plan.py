"""Rollback plans: which resource is restored after which. Pure; nothing is looked up.  # R1"""

from __future__ import annotations

import heapq
import posixpath
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pact.core.payload import Planned
from pact.errors import ConflictError
from pact.model import Attrs, split_id
from pact.values import dataclass

#: Sysctls whose writing changes others: they are restored first.
LEADING_SYSCTLS: Final = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.forwarding")


@dataclass(frozen=True, slots=True)
class Step:
    """Bring ``id`` from ``actual`` (what it was when the change was frozen) to ``target``; ``None`` is absent.
    ``inode``: device and inode of what is meant, where another that has the name meanwhile is not.
    """

    id: str
    target: Attrs | None
    actual: Attrs | None
    requires: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    inode: tuple[int, int] | None = None

    def planned(self) -> Planned:
        """What its record says of it."""
        return Planned(self.id, action(self), self.target, self.actual)

    def to_json(self) -> dict[str, Any]:
        return self.planned().to_json()


def action(step: Step) -> str:
    """``create``, ``remove``, ``restore`` or ``set``, for people. Nobody creates a sysctl: the kernel has it or not."""
    if step.target is None:
        return "remove"
    if step.actual is None:
        return "set" if step.id.startswith("sysctl:") else "create"
    return "restore"


def below(path: str, root: str) -> bool:
    """``path`` lies strictly below ``root``."""
    return path != root and (root == "/" or path.startswith(root.rstrip("/") + "/"))


def ordered(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps so that what others need comes first, and what must leave leaves from the inside out.

    Explicit ``requires`` count, and so do mounts above mounts and files, directories above files, modules before
    sysctls. Raises ConflictError on a cycle, naming its members.
    """
    steps = tuple(steps)
    if len(steps) == 1 and not steps[0].requires:
        return steps
    by_id = {s.id: s for s in steps}
    after: dict[str, set[str]] = {rid: set() for rid in by_id}  # rid -> those that must come before it
    for step in by_id.values():
        for need in step.requires:
            if need in by_id:
                _precede(after, step, by_id[need])
    _containment(by_id, after)
    modules = [s for s in by_id.values() if s.id.startswith("module:") and s.target is not None]
    for step in by_id.values():
        if step.id.startswith("sysctl:"):
            after[step.id].update(m.id for m in modules)
    return tuple(by_id[rid] for rid in _topological(after, lambda rid: _rank(by_id[rid])))


def _precede(after: dict[str, set[str]], upper: Step, lower: Step) -> None:
    """``upper`` needs ``lower``: lower first when building, upper first when taking away."""
    if upper.target is None:
        after[lower.id].add(upper.id)
    else:  # also where the lower one leaves: a mount that hides the upper one goes first
        after[upper.id].add(lower.id)


def _containment(by_id: Mapping[str, Step], after: dict[str, set[str]]) -> None:
    files = {split_id(rid)[1]: s for rid, s in by_id.items() if rid.startswith("file:")}
    mounts = {split_id(rid)[1]: s for rid, s in by_id.items() if rid.startswith("mount:")}
    for rid, step in by_id.items():
        kind, path = split_id(rid)
        if kind not in ("mount", "file"):
            continue
        here = path
        while True:
            for table in (mounts, files):
                lower = table.get(here)
                if lower is not None and lower is not step and (here != path or lower.id.startswith("mount:")):
                    _precede(after, step, lower)
            if here == "/":
                break
            here = posixpath.dirname(here)


def _rank(step: Step) -> tuple[int, str]:
    kind, name = split_id(step.id)
    if kind == "sysctl" and name in LEADING_SYSCTLS:
        return (0, name)
    if kind == "sysctl" and (".all." in name or ".default." in name):
        return (1, name)
    return (2, step.id)


def _topological(after: Mapping[str, set[str]], rank: Callable[[str], tuple[int, str]]) -> list[str]:
    waiting = {rid: set(needs) for rid, needs in after.items()}
    dependents: dict[str, list[str]] = {rid: [] for rid in after}
    for rid, needs in waiting.items():
        for need in needs:
            dependents[need].append(rid)
    ready = [(rank(rid), rid) for rid, needs in waiting.items() if not needs]
    heapq.heapify(ready)
    out: list[str] = []
    while ready:
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
