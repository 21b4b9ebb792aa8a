"""Two machines with one key: an image that was cloned with it. Each takes the other's place at its parent, again and
again; neither does anything wrong, and both look as if their network were bad.

The sessions of one start share their high bits. An agent that starts again, or that moves, never comes back with those
of an earlier start; two that run at once do, in turns.
"""

from __future__ import annotations

from typing import Final

from pact.core.uplink import SESSION_BITS
from pact.model import NS_PER_S

#: One turn may be old news, from a parent that was cut off meanwhile.
TURNS: Final = 3
FORGET_NS: Final = 600 * NS_PER_S


class Twins:
    """What the root remembers of each node's starts."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[int, int, int, int]] = {}  # start now, the one before, turns, when the last was

    def came(self, node: str, session: int, t_ns: int) -> bool:
        """True if this is one of two that take turns."""
        start = session >> SESSION_BITS
        now, before, turns, at_ns = self._of.get(node, (start, -1, 0, t_ns))
        if start == now:
            self._of[node] = now, before, turns, at_ns
            return False
        if t_ns - at_ns > FORGET_NS:
            turns = 0
        if start == before:
            turns, at_ns = turns + 1, t_ns
        self._of[node] = start, now, turns, at_ns
        return start == before and turns >= TURNS
