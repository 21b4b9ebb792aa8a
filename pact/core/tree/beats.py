"""When a parent asks its children whether they are alive: ``BEAT_NS`` after the last moment at which both are known to
have sent something. Children whose times are close are asked together.

Children that are asked together answer together: the loop runs a few times a second for any number of children, not
once for each child's clock, and a node wakes once for each beat, not twice. While a node works, its calls and answers
show that both sides are alive; the parent still asks after ``ASKED_NS``, because a beat also says who leads and which
holds there are.
"""

from __future__ import annotations

from typing import Final

from pact.core.tree.directory import Child, Directory, Rid
from pact.core.tree.uplink import BEAT_NS

TOGETHER_NS: Final = BEAT_NS // 8
ASKED_NS: Final = 3 * BEAT_NS


class Beats:
    """Nodes and aggregators, in the order of their times; clients send beats by themselves."""

    def __init__(self, tree: Directory) -> None:
        self._tree = tree
        # Time in units of ``TOGETHER_NS`` -> children to ask, with the number of the entry.
        self._due: dict[int, list[tuple[Rid, int]]] = {}
        self._n = 0

    def enter(self, child: Child, t_ns: int) -> None:
        """A session has begun."""
        self._n += 1
        child.beat, child.asked_ns = self._n, t_ns
        self._put(child, t_ns + BEAT_NS)

    def _put(self, child: Child, at_ns: int) -> None:
        self._due.setdefault(at_ns // TOGETHER_NS, []).append((child.rid, child.beat))

    def due(self, t_ns: int) -> list[Child]:
        """The children to ask now. Children whose session has ended are dropped."""
        out: list[Child] = []
        now = t_ns // TOGETHER_NS
        for slot in sorted(s for s in self._due if s <= now):
            for rid, entry in self._due.pop(slot):
                child = self._tree.children.get(rid)
                if child is None or child.beat != entry:
                    continue
                next_ns = _next_ns(child)
                if next_ns // TOGETHER_NS > now:
                    self._put(child, next_ns)
                else:
                    out.append(child)
                    child.asked_ns = t_ns
                    self._put(child, t_ns + BEAT_NS)
        return out

    def next_wake_ns(self, t_ns: int) -> int:
        return min(self._due) * TOGETHER_NS if self._due else t_ns + BEAT_NS


def _next_ns(child: Child) -> int:
    """With each beat an aggregator also reports a checksum of the nodes below it, so it is always asked."""
    if child.below is not None:
        return child.asked_ns + BEAT_NS
    return min(min(child.heard_ns, child.told_ns) + BEAT_NS, child.asked_ns + ASKED_NS)
