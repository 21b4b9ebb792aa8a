"""What one node remembers of the groups of which it is a member: the fold of the ``group_*`` records.  # J2

A group's change is an ordinary change, but the root keeps its window. After a yes vote the node decides nothing about
it alone.  # G3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pact.core.phases import OPEN
from pact.model import Attrs, Json, JsonRead, Owner


@dataclass(slots=True)
class Membership:
    """One unfinished group. ``resources`` are the values that it wants here; ``ends_ns`` is the end of the root's
    window, for people."""

    id: str
    owner: Owner
    message: str
    resources: dict[str, Attrs | None]
    phase: str = OPEN
    change: str | None = None
    also: list[str] = field(default_factory=list)
    ballot: int = 0
    action: str = ""
    why: str = ""
    ends_ns: int = 0
    force: bool = False

    def to_json(self) -> Json:
        return {**{name: getattr(self, name) for name in self.__slots__}, "owner": self.owner.to_json()}

    @property
    def changes(self) -> list[str]:
        """Every change that the group's rollback settles here."""
        return [*([self.change] if self.change else []), *self.also]


def learn(group: Membership, reads: Mapping[str, str]) -> None:
    """How the kernel here shows values that the group wants: the member is compared with that.  # D5"""
    for resource, text in reads.items():
        wanted = group.resources.get(resource)
        if wanted is not None:
            group.resources[resource] = {**wanted, "reads": text}


def load(rows: list[JsonRead]) -> dict[str, Membership]:
    return {row["id"]: Membership(**{**row, "owner": Owner.from_json(row["owner"])}) for row in rows}
