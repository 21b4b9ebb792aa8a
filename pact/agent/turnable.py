"""Finds paths at which accounts other than root can put something else: adopt reports them.  # R13"""

from __future__ import annotations

import os
from typing import Final

from pact.model import encode_name
from pact.resources.support.accounts import user_name
from pact.resources.support.way import hangs, turners_above

PLACES_MAX: Final = 3


class Turnable:
    """Of many paths, the directories for which this is so."""

    def __init__(self) -> None:
        self._of: dict[bytes, frozenset[int]] = {}

    def look(self, path: bytes) -> None:
        """Check one more path; in each directory only the first one is checked."""
        directory = os.path.dirname(path)
        if directory not in self._of:
            self._of[directory] = frozenset() if hangs(path) else turners_above(path)

    def notes(self) -> list[str]:
        found = {d: who for d, who in self._of.items() if who}
        if not found:
            return []
        users = sorted(set().union(*found.values()))
        named = [user_name(u) for u in users if u >= 0] + (["everybody in a group, or all"] if -1 in users else [])
        places = ", ".join(encode_name(d) for d in sorted(found)[:PLACES_MAX])
        more = f" and {len(found) - PLACES_MAX} others" if len(found) > PLACES_MAX else ""
        return [
            f"in {places}{more} can {', '.join(named)} put other things in the place of what is declared: it is "
            "watched, and a rollback that would give them what is not theirs is refused"
        ]
