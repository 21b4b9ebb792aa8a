"""The phases of a member of a group, under the names that nodes and the root use.  # G3"""

from __future__ import annotations

from typing import Final

OPEN: Final = "open"
PREPARED: Final = "prepared"
DECIDED: Final = "decided"
NOT_APPLIED: Final = "not applied"
