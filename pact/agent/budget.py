"""The loop's time for people who are no administrators: a share of each second for every one of them.  # S8"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Final

from pact.limits import LOOP_SHARE

KEPT_MAX: Final = 256
ONE_MAX_S: Final = 1.0  # nothing that may be asked takes longer by itself: then the machine was slow


class Budget:
    """Who has used up his share waits until it is there again. Seconds, by a clock that only goes forward."""

    def __init__(self, share: float = LOOP_SHARE) -> None:
        self._share = share
        self._spent: dict[Hashable, tuple[float, float]] = {}  # how much more than was given back, and when that was so

    def spend(self, who: Hashable, seconds: float) -> None:
        """``seconds``: of one request. A disk that hangs under it keeps nobody out afterwards."""
        now_s = time.monotonic()
        self._spent[who] = (self._owed(who, now_s) + min(seconds, ONE_MAX_S), now_s)
        if len(self._spent) > KEPT_MAX:
            self._spent = {w: row for w, row in self._spent.items() if self._owed(w, now_s) > 0.0}

    def wait_s(self, who: Hashable) -> float:
        """In how many seconds the next thing may be done for this person; 0.0: now."""
        return max(0.0, self._owed(who, time.monotonic()) - self._share) / self._share

    def _owed(self, who: Hashable, now_s: float) -> float:
        spent, at_s = self._spent.get(who, (0.0, now_s))
        return max(0.0, spent - (now_s - at_s) * self._share)
