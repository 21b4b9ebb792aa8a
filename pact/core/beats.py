"""When a parent asks its children whether they live: each every ``BEAT_NS``, those whose times are close all at once.

Who asks together is answered together: the loop turns a few times a second for any number of children, not once for
each of their clocks, and a node is woken once a beat, not twice.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from pact.core.directory import Child, Directory, Rid
from pact.core.uplink import BEAT_NS

TOGETHER_NS: Final = BEAT_NS // 8


class Beats:
    """Nodes and aggregators, in the order of their times; clients ask by themselves."""

    def __init__(self, tree: Directory) -> None:
        self._tree = tree
        self._due: deque[tuple[int, Rid, int]] = deque()  # time, whom, by which entry
        self._n = 0

    def enter(self, child: Child, t_ns: int) -> None:
        """A session has begun."""
        self._n += 1
        child.beat = self._n
        self._due.append((t_ns + BEAT_NS, child.rid, child.beat))

    def due(self, t_ns: int) -> list[Child]:
        """Whom to ask now. Whose session has ended is passed over from now on."""
        out: list[Child] = []
        if self.next_wake_ns(t_ns) > t_ns:
            return out
        while self._due and self._due[0][0] <= t_ns + TOGETHER_NS:
            _, rid, entry = self._due.popleft()
            child = self._tree.children.get(rid)
            if child is not None and child.beat == entry:
                out.append(child)
        self._due.extend((t_ns + BEAT_NS, child.rid, child.beat) for child in out)
        return out

    def next_wake_ns(self, t_ns: int) -> int:
        return self._due[0][0] if self._due else t_ns + BEAT_NS
