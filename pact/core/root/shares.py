"""How much of the root's log one node may write: so much at once, and then so much a second.

Everybody's records share one log, which keeps a bounded number of events. What a node sends beyond its share is not
taken, and not lost: it stands in the node's journal, is not acknowledged, and is sent again.  # T9
"""

from __future__ import annotations

from typing import Final

from pact.limits import SHARE_BYTES, SHARE_EVENTS
from pact.model import NS_PER_S

BYTES_PER_EVENT: Final = 16 << 10  # of each event of the share


class Shares:
    """``per_s``: events a second of each node, beyond ``SHARE_EVENTS``; 0: as many as come."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._used: dict[str, tuple[int, float, float]] = {}  # at which time, events and bytes over what was given back

    def takes(self, node: str, events: int, size: int, t_ns: int) -> bool:
        """So many new events of this node are taken now. What is taken once may go beyond the share by one batch."""
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
        """Those of them that have used nothing of late need not be remembered."""
        for node in nodes:
            at_ns, used, volume = self._used.get(node, (t_ns, 0.0, 0.0))
            back = (t_ns - at_ns) * self._per_s / NS_PER_S
            if used <= back and volume <= back * BYTES_PER_EVENT:
                self._used.pop(node, None)
