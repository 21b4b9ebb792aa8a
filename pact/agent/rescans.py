"""When which part of the declared set is scanned: a slice at a time, so that a cycle takes as long as configured."""

from __future__ import annotations

from typing import Final

from pact.model import NS_PER_S

SLICES_MAX: Final = 100
SLICE_MIN_NS: Final = NS_PER_S // 10


class Rescans:
    """The slices of a cycle, in turn. Now and then a cycle reads contents, too."""

    def __init__(self, rescan_ns: int, full_ns: int, now_ns: int) -> None:
        """``rescan_ns``: how long a cycle takes. ``full_ns``: how often one reads contents."""
        self.count = max(1, min(SLICES_MAX, rescan_ns // SLICE_MIN_NS))
        self.at = 0
        self.cycles = 0  # that have ended
        self.full = False  # this cycle reads contents
        self._slice_ns = max(rescan_ns // self.count, 1)
        self.next_ns = now_ns + self._slice_ns
        self._full_ns = full_ns
        self._next_full_ns = now_ns + full_ns

    def begins(self, now_ns: int) -> bool:
        """A slice begins now. Returns whether a cycle begins with it."""
        self.next_ns = max(now_ns, self.next_ns + self._slice_ns)
        if self.at:
            return False
        self.full = now_ns >= self._next_full_ns
        if self.full:
            self._next_full_ns = now_ns + self._full_ns
        return True

    def part(self, total: int) -> range:
        """Of so many things, those of the present slice."""
        return range(total * self.at // self.count, total * (self.at + 1) // self.count)

    def ended(self) -> bool:
        """The slice has ended. Returns whether the cycle has ended with it."""
        self.at = (self.at + 1) % self.count
        self.cycles += not self.at
        return not self.at
