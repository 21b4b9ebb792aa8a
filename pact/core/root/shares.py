"""How much of the root's log one node may write: a burst, and then a rate per second.

The records of all nodes share one log, which keeps a bounded number of events. Events beyond a node's share are not
taken, and not lost: they stay in the node's journal, are not acknowledged, and are sent again.  # T9
"""

from __future__ import annotations

from typing import Final

from pact.limits import SHARE_BYTES, SHARE_EVENTS
from pact.model import NS_PER_S

BYTES_PER_EVENT: Final = 16 << 10  # the bytes that each event of the share allows


class Shares:
    """``per_s``: events per second of each node, beyond ``SHARE_EVENTS``; 0: no limit."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        # Node -> time, and the events and bytes used beyond what was given back by then.
        self._used: dict[str, tuple[int, float, float]] = {}

    def takes(self, node: str, events: int, size: int, t_ns: int) -> bool:
        """Whether this number of new events of the node is taken now. One batch may exceed the share."""
        if not self._per_s:
            return True
        at_ns, used, volume = self._used.get(node, (t_ns, 0.0, 0.0))
        back = max(0, t_ns - at_ns) * self._per_s / NS_PER_S
        used, volume = max(0.0, used - back), max(0.0, volume - back * BYTES_PER_EVENT)
        over = used >= SHARE_EVENTS or volume >= SHARE_BYTES
        if not over:
            used, volume = used + events, volume + size
        self._used[node] = (t_ns, used, volume)
        return not over

    def forget(self, nodes: list[str], t_ns: int) -> None:
        """Forget those of these nodes that have used nothing lately."""
        for node in nodes:
            at_ns, used, volume = self._used.get(node, (t_ns, 0.0, 0.0))
            back = (t_ns - at_ns) * self._per_s / NS_PER_S
            if used <= back and volume <= back * BYTES_PER_EVENT:
                self._used.pop(node, None)
