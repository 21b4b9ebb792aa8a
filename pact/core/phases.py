"""Where a member of a group stands, as nodes and the root call it.  # G3"""

from __future__ import annotations

from typing import Final

OPEN: Final = "open"
PREPARED: Final = "prepared"
DECIDED: Final = "decided"
NOT_APPLIED: Final = "not applied"
