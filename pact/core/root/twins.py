"""Two machines with one key: an image that was cloned with the key. Each takes the other's place at its parent, again
and again; both behave correctly, and both look as if their network were bad.

The sessions of one start share their high bits. An agent that starts again, or that moves, never returns to a session
of an earlier start; several agents that run at once do, by turns.
"""

from __future__ import annotations

from typing import Final

from pact.core.tree.checks import SESSION_BITS
from pact.model import NS_PER_S

#: A single turn may be an old message from a parent that was cut off meanwhile.
TURNS: Final = 3
STARTS_MAX: Final = 16  # starts that are remembered of each node
FORGET_NS: Final = 600 * NS_PER_S


class Twins:
    """The starts of each node that the root remembers."""

    def __init__(self) -> None:
        # Node -> its starts, the newest first; number of turns; time of the last turn.
        self._of: dict[str, tuple[tuple[int, ...], int, int]] = {}

    def came(self, node: str, session: int, t_ns: int) -> bool:
        """Whether this start is one of several that alternate."""
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
