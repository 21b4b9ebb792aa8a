"""One node as its records tell of it: the data that ``sight`` folds them into, and how people see it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pact.core.node.windows import Windows
from pact.core.settings import Settings
from pact.model import Json

OPEN: Final = "open"
HELD: Final = "held"
BLOCKED: Final = "blocked"
FAILED: Final = "failed"
ROLLING: Final = "rolling_back"


class Pace(NamedTuple):
    """The settings on which the end of a window depends; one object for all nodes that have the same."""

    base_ns: int
    sensitivity_n: int
    floor_ns: int
    enforce: bool


_DEFAULT: Final = Settings()
DEFAULT: Final = Pace(_DEFAULT.base_ns, _DEFAULT.sensitivity_n, _DEFAULT.floor_ns, _DEFAULT.enforce)


class Change:
    """An unsettled change of a node. ``members``: resource -> [opened, square of its deviation, time of holds];
    ``more``: how many resources are beyond the limits."""

    __slots__ = (
        "extension_ns",
        "group",
        "held_since_ns",
        "holders",
        "id",
        "intents",
        "members",
        "message",
        "more",
        "opened",
        "owner",
        "prepared",
        "program",
        "split",
        "state",
        "why",
    )

    def __init__(self, cid: str, owner: str, program: str, opened: str) -> None:
        self.id, self.owner, self.program, self.opened = cid, owner, program, opened
        self.state = OPEN
        self.members: dict[str, list[int]] = {}
        self.more = self.extension_ns = self.held_since_ns = 0
        self.intents: set[str] | frozenset[str] = frozenset()  # of an application that goes on
        self.message = self.why = self.group = ""
        self.prepared = False  # voted yes: only the root can say how its group ends
        self.split = False  # was a part of the change that its group made
        self.holders: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.members) + self.more

    def reopen(self, t_ns: int) -> None:
        self.extension_ns = 0
        self.held_since_ns = t_ns if self.state == HELD else 0
        for member in self.members.values():
            member[0], member[2] = t_ns, 0


#: Of a node without any: most nodes have nothing open, and share it.
NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class Session(NamedTuple):
    """An open session of a person. No more of it is kept: the rest is for administrators, who ask the node.  # S2"""

    user: str
    since_ns: int


class Node:
    """One node, according to its records."""

    __slots__ = (
        "blind",
        "changes",
        "emergency",
        "heard_ns",
        "holds",
        "not_before_ns",
        "offset_ns",
        "pace",
        "rack",
        "sessions",
        "t_ns",
        "windows",
    )

    def __init__(self) -> None:
        self.rack = ""
        self.pace = DEFAULT
        self.changes: dict[str, Change] | Mapping[str, Any] = NONE
        self.emergency: tuple[str, str, str] | None = None  # who, why, until when
        self.holds: Mapping[str, tuple[str, str, str, str]] = NONE  # change ("" for the node), who, why, until when
        self.sessions: Mapping[str, Session] = NONE
        self.blind: tuple[str, ...] = ()
        self.windows: Windows | None = None
        self.not_before_ns = 0  # no window ends before
        self.t_ns = self.offset_ns = 0  # node time of the newest record; wall time minus node time
        self.heard_ns = 0

    @property
    def state(self) -> str:
        """``committed`` stands for ``unconfigured``, too: records do not tell them apart."""
        if self.emergency is not None:
            return "emergency"
        states = {c.state for c in self.changes.values() if c.count}
        return next((s for s in (FAILED, BLOCKED) if s in states), "drifted" if states else "committed")

    def ends_ns(self, change: Change) -> int | None:
        """When its window ends by the wall clock if nothing else happens; ``None`` while no clock runs for it."""
        if change.state != OPEN or change.intents or change.group or not change.members or self.windows is None:
            return None
        if self.emergency is not None or not self.pace.enforce:
            return None
        opening_ns = min(m[0] + m[2] for m in change.members.values()) + change.extension_ns
        return max(self.windows.end(opening_ns), self.not_before_ns) + self.offset_ns


def details(node: Node) -> Json:
    """One node, whole, for a person."""
    changes = [
        {
            "id": c.id,
            "state": c.state,
            "owner": c.owner,
            "program": c.program,
            "opened": c.opened,
            "ends_ms": _ms(node.ends_ns(c)),
            "count": c.count,
            "resources": list(c.members),
            "message": c.message,
            "group": c.group,
            "why": c.why,
            "holders": list(c.holders),
        }
        for c in node.changes.values()
    ]
    return {
        "changes": changes,
        "emergency": None
        if node.emergency is None
        else dict(zip(("by", "reason", "ends"), node.emergency, strict=True)),
        "holds": [
            {"hold": h, **dict(zip(("change", "owner", "reason", "ends"), row, strict=True))}
            for h, row in node.holds.items()
        ],
        "sessions": [{"session": s, "user": found.user} for s, found in node.sessions.items()],
        "blind": list(node.blind),
    }


def _ms(wall_ns: int | None) -> int | None:
    return None if wall_ns is None else wall_ns // 1_000_000
