"""The loop's time for people who are not administrators: each of them gets a share of every second.  # S8"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Final

from pact.limits import LOOP_SHARE

KEPT_MAX: Final = 256
ONE_MAX_S: Final = 1.0  # no request takes longer by itself: if one does, the machine was slow


class Budget:
    """A caller who has used up the share waits until it has grown again. Seconds, by a monotonic clock."""

    def __init__(self, share: float = LOOP_SHARE) -> None:
        self._share = share
        # Caller -> the overdrawn seconds, and the time for which that holds.
        self._spent: dict[Hashable, tuple[float, float]] = {}

    def spend(self, who: Hashable, seconds: float) -> None:
        """``seconds``: of one request. A disk that hangs during it must not keep the caller out afterwards."""
        now_s = time.monotonic()
        self._spent[who] = (self._owed(who, now_s) + min(seconds, ONE_MAX_S), now_s)
        if len(self._spent) > KEPT_MAX:
            self._spent = {w: row for w, row in self._spent.items() if self._owed(w, now_s) > 0.0}

    def wait_s(self, who: Hashable) -> float:
        """In how many seconds the next request of this caller may be handled; 0.0: now."""
        return max(0.0, self.owed_s(who) - self._share) / self._share

    def owed_s(self, who: Hashable) -> float:
        """What this caller has overdrawn."""
        return self._owed(who, time.monotonic())

    def _owed(self, who: Hashable, now_s: float) -> float:
        spent, at_s = self._spent.get(who, (0.0, now_s))
        return max(0.0, spent - (now_s - at_s) * self._share)
