"""The events of observers. Values only.

An event never says what a resource *is*, only that it is time to observe: the agent reads the machine itself. So events
may be merged and repeated freely; but they must not be lost silently, hence ``Lost``.
"""

from __future__ import annotations

from dataclasses import dataclass

from pact.model import Writer


@dataclass(slots=True, frozen=True)
class Touched:
    """A declared path may have changed. ``own``: only this process wrote. ``t_ns`` is CLOCK_BOOTTIME."""

    path: bytes
    writer: Writer | None
    own: bool
    t_ns: int


@dataclass(slots=True, frozen=True)
class MountsChanged:
    """The mount table of this mount namespace changed."""

    t_ns: int
    writer: Writer | None = None


@dataclass(slots=True, frozen=True)
class Lost:
    """Events of ``observer`` were lost: observe everything that it watches again, then call ``recovered``."""

    observer: str
    why: str


@dataclass(slots=True, frozen=True)
class Restored:
    """The answer to ``recovered``: the observer is reliable again."""

    observer: str


Event = Touched | MountsChanged | Lost | Restored
