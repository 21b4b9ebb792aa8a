"""How many refusals are recorded: whoever has no role may ask for ever, and must not fill the journal with that.

A first hundred stand there one by one, then one in each second; the next that is recorded says how many were not.  # S3
"""

from __future__ import annotations

from typing import Final

from pact.limits import REFUSALS_AT_ONCE
from pact.model import NS_PER_S

EACH_NS: Final = NS_PER_S


class Bucket:
    """So many at once, and another one each ``each_ns`` after. Time is a node's."""

    def __init__(self, at_once: int, each_ns: int) -> None:
        self._whole_ns, self._each_ns = at_once * each_ns, each_ns
        self._spent_ns = -self._whole_ns

    def admit(self, t_ns: int) -> bool:
        """One more, if there is one."""
        if self.next_ns > t_ns:
            return False
        self._spent_ns = max(self._spent_ns, t_ns - self._whole_ns) + self._each_ns
        return True

    @property
    def next_ns(self) -> int:
        """From when on there is one."""
        return self._spent_ns


class Refusals(Bucket):
    """Of all who are no administrators together. ``beyond``: refused since the last record, and in none."""

    def __init__(self) -> None:
        super().__init__(REFUSALS_AT_ONCE, EACH_NS)
        self.beyond = 0

    def admit(self, t_ns: int) -> bool:
        """Whether one more is recorded. If not, it is counted."""
        admitted = super().admit(t_ns)
        self.beyond += not admitted
        return admitted

    def told(self) -> int:
        """How many a record has to speak of besides its own."""
        beyond, self.beyond = self.beyond, 0
        return beyond
