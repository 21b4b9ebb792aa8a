"""How many refusals are recorded: a user without a role could ask for ever, and must not fill the journal.

The first hundred are recorded one by one, then one in each second; the next record says how many were left out.  # S3
"""

from __future__ import annotations

from typing import Final

from pact.limits import REFUSALS_AT_ONCE
from pact.model import NS_PER_S

EACH_NS: Final = NS_PER_S


class Bucket:
    """A token bucket: ``at_once`` tokens at first, and another one after each ``each_ns``. Time is node time."""

    def __init__(self, at_once: int, each_ns: int) -> None:
        self._whole_ns, self._each_ns = at_once * each_ns, each_ns
        self._spent_ns = -self._whole_ns

    def admit(self, t_ns: int) -> bool:
        """Take one token. Returns whether there was one."""
        if self.next_ns > t_ns:
            return False
        self._spent_ns = max(self._spent_ns, t_ns - self._whole_ns) + self._each_ns
        return True

    def take(self, tokens: int, t_ns: int) -> None:
        """Take so many more, also those that there will be."""
        self._spent_ns = max(self._spent_ns, t_ns - self._whole_ns) + tokens * self._each_ns

    def left(self, t_ns: int) -> int:
        """How many tokens there are."""
        return max(0, (t_ns - max(self._spent_ns, t_ns - self._whole_ns)) // self._each_ns)

    @property
    def next_ns(self) -> int:
        """When the next token is available."""
        return self._spent_ns


class Refusals(Bucket):
    """One bucket for all users who are not administrators. ``beyond``: refusals since the last record that have no
    record."""

    def __init__(self) -> None:
        super().__init__(REFUSALS_AT_ONCE, EACH_NS)
        self.beyond = 0

    def admit(self, t_ns: int) -> bool:
        """Whether one more refusal is recorded. If not, it is counted."""
        admitted = super().admit(t_ns)
        self.beyond += not admitted
        return admitted

    def told(self) -> int:
        """How many refusals a record must mention besides its own."""
        beyond, self.beyond = self.beyond, 0
        return beyond
