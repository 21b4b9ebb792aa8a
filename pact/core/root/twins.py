"""Two machines with one key: an image that was cloned with it. Each takes the other's place at its parent, again and
again; neither does anything wrong, and all of them look as if their network were bad.

The sessions of one start share their high bits. An agent that starts again, or that moves, never comes back with those
of an earlier start; several that run at once do, in turns.
"""

from __future__ import annotations

from typing import Final

from pact.core.tree.uplink import SESSION_BITS
from pact.model import NS_PER_S

#: One turn may be old news, from a parent that was cut off meanwhile.
TURNS: Final = 3
STARTS_MAX: Final = 16  # that are remembered of a node
FORGET_NS: Final = 600 * NS_PER_S


class Twins:
    """What the root remembers of each node's starts."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[tuple[int, ...], int, int]] = {}  # starts, the newest first; turns; when the last was

    def came(self, node: str, session: int, t_ns: int) -> bool:
        """True if this is one of several that take turns."""
        start = session >> SESSION_BITS
        starts, turns, at_ns = self._of.get(node, ((start,), 0, t_ns))
        if start == starts[0]:
            self._of[node] = starts, turns, at_ns
            return False
        if t_ns - at_ns > FORGET_NS:
            turns = 0
        again = start in starts
        if again:
            turns, at_ns = turns + 1, t_ns
        self._of[node] = (start, *(s for s in starts if s != start))[:STARTS_MAX], turns, at_ns
        return again and turns >= TURNS
