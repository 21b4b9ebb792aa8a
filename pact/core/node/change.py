"""A change and its states. One table holds all transitions; no other code writes ``state``.  # C1"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pact.core.node.windows import square
from pact.model import Attrs, Holder, Json, JsonRead, Owner

OPEN: Final = "open"
HELD: Final = "held"
BLOCKED: Final = "blocked"
FAILED: Final = "failed"
ROLLING: Final = "rolling_back"
SETTLED: Final = "settled"
STATES: Final = (OPEN, HELD, BLOCKED, FAILED, ROLLING, SETTLED)

INPUTS: Final = (
    "drift",
    "clear",
    "emptied",
    "commit",
    "start",
    "done",
    "fail",
    "block",
    "extend",
    "hold",
    "release",
    "reopen",
)

#: (state, input) -> next state. A pair that is absent is refused by name (``LifeError``), never ignored.
TABLE: Final[Mapping[tuple[str, str], str]] = {
    (OPEN, "drift"): OPEN,
    (OPEN, "clear"): OPEN,
    (OPEN, "emptied"): SETTLED,
    (OPEN, "commit"): OPEN,
    (OPEN, "start"): ROLLING,
    (OPEN, "block"): BLOCKED,
    (OPEN, "extend"): OPEN,
    (OPEN, "hold"): HELD,
    (OPEN, "reopen"): OPEN,
    (HELD, "drift"): HELD,
    (HELD, "clear"): HELD,
    (HELD, "emptied"): SETTLED,
    (HELD, "commit"): HELD,
    (HELD, "start"): ROLLING,
    (HELD, "block"): BLOCKED,
    (HELD, "extend"): HELD,
    (HELD, "release"): OPEN,
    (BLOCKED, "drift"): BLOCKED,
    (BLOCKED, "clear"): BLOCKED,
    (BLOCKED, "emptied"): SETTLED,
    (BLOCKED, "commit"): BLOCKED,
    (BLOCKED, "start"): ROLLING,
    (BLOCKED, "block"): BLOCKED,
    (BLOCKED, "extend"): OPEN,
    (BLOCKED, "reopen"): OPEN,
    (FAILED, "drift"): FAILED,
    (FAILED, "clear"): FAILED,
    (FAILED, "emptied"): SETTLED,
    (FAILED, "commit"): FAILED,
    (FAILED, "start"): ROLLING,
    (FAILED, "block"): BLOCKED,
    (FAILED, "extend"): OPEN,
    (FAILED, "reopen"): OPEN,
    (ROLLING, "clear"): ROLLING,
    (ROLLING, "emptied"): SETTLED,
    (ROLLING, "done"): SETTLED,
    (ROLLING, "fail"): FAILED,
    (ROLLING, "block"): BLOCKED,
}


class LifeError(AssertionError):
    """A (state, input) pair that the table does not know: a bug in the caller, which must ask first."""

    def __init__(self, change: str, state: str, what: str) -> None:
        super().__init__(f"change {change} is {state}: {what!r} is not possible")


@dataclass(slots=True)
class Member:
    """One drifted resource of a change. ``opened_ns`` is when it first drifted, ``seen`` when the drift was last seen.
    ``moved_with`` is the resource whose write moved this one, if nobody wrote this one itself. ``also`` are other
    owners than the change's who have written it since it last conformed.  # C8, C9

    ``owed``: it is as declared again, but these could not be told of it.  # R14
    """

    resource: str
    actual: Attrs | None
    deviation_n: int
    weight_n: int
    opened_ns: int
    seen: str
    shift_ns: int = 0
    command: str = ""  # of the process that last drifted it, if known
    moved_with: str = ""
    also: list[Owner] = field(default_factory=list)
    owed: list[str] = field(default_factory=list)

    @property
    def opening_ns(self) -> int:
        """When its window starts to count: when it first drifted, plus the time during which holds stopped the
        clock."""
        return self.opened_ns + self.shift_ns

    @property
    def square(self) -> int:
        return square(self.weight_n, self.deviation_n)

    def to_json(self) -> list[Any]:
        return [
            self.resource,
            self.actual,
            self.deviation_n,
            self.weight_n,
            self.opened_ns,
            self.seen,
            self.shift_ns,
            self.command,
            self.moved_with,
            [o.to_json() for o in self.also],
            *([list(self.owed)] if self.owed else ()),
        ]

    @classmethod
    def from_json(cls, row: Sequence[Any]) -> Member:
        plain: Sequence[Any] = (
            0,
            "",
            "",
            (),
            (),
        )  # defaults of the last columns, which rows of older versions may lack
        whole = [*row, *plain[len(row) - 6 :]]
        resource, actual, deviation_n, weight_n, opened_ns, seen, shift_ns, command, moved_with, also, owed = whole
        return cls(
            resource,
            actual,
            deviation_n,
            weight_n,
            opened_ns,
            seen,
            shift_ns,
            command,
            moved_with,
            [Owner.from_json(o) for o in also],
            list(owed),
        )


@dataclass(frozen=True, slots=True)
class Rolling:
    """A rollback in progress. ``saved``: digests of the contents that were kept, by resource. ``seq``: number of its
    record. ``joined``: resources that the plan takes along and that are no members, with their targets. A snapshot of
    an older version may lack both what was kept (``None``) and what joined.
    """

    cause: str
    steps: Sequence[str]
    skipped: Sequence[str]
    saved: Mapping[str, str] | None
    seq: int
    joined: Mapping[str, Attrs | None]

    def to_json(self) -> Json:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, row: JsonRead) -> Rolling:
        return cls(row["cause"], row["steps"], row["skipped"], row.get("saved"), row["seq"], row.get("joined", {}))


@dataclass(slots=True)
class Change:
    """The unsettled drift of one owner. It is committed or rolled back as one."""

    id: str
    owner: Owner
    ambient: bool = True
    state: str = OPEN
    members: dict[str, Member] = field(default_factory=dict)
    extension_ns: int = 0
    held_since_ns: int = 0
    message: str = ""
    reason: str = ""
    holders: list[Holder] = field(default_factory=list)
    rolling: Rolling | None = None
    intents: set[str] = field(default_factory=set)
    group: str = ""
    closing: bool = False  # the end of its window was announced
    sum_n: int = 0
    _first_ns: int | None = field(default=None, compare=False, repr=False)  # cache of the earliest opening

    def can(self, what: str) -> bool:
        return (self.state, what) in TABLE

    def take(self, what: str) -> None:
        """Make one transition. Raises LifeError if the table has no such transition."""
        try:
            self.state = TABLE[self.state, what]
        except KeyError:
            raise LifeError(self.id, self.state, what) from None

    def put(self, member: Member) -> None:
        old = self.members.get(member.resource)
        self.sum_n += member.square - (old.square if old else 0)
        self.members[member.resource] = member
        if self._first_ns is not None:
            if member.opening_ns <= self._first_ns:
                self._first_ns = member.opening_ns
            elif old is not None and old.opening_ns == self._first_ns:
                self._first_ns = None

    def drop(self, resource: str) -> Member:
        member = self.members.pop(resource)
        self.sum_n -= member.square
        if member.opening_ns == self._first_ns:
            self._first_ns = None
        return member

    def reopen(self, t_ns: int) -> None:
        """All members open at this moment."""
        self._first_ns = None
        for member in self.members.values():
            member.opened_ns, member.shift_ns = t_ns, 0

    def go_on(self, t_ns: int) -> None:
        """A hold has ended: the clock stood still since the hold began, or since a member opened if that was
        later.  # H1"""
        self._first_ns = None
        for member in self.members.values():
            member.shift_ns += t_ns - max(member.opening_ns, self.held_since_ns)

    def bound_together(self, resources: Iterable[str]) -> list[str]:
        """These members, and the members that one write moved together with them: none is settled without the
        others.  # C8"""
        picked = dict.fromkeys(resources)
        roots = {self.members[r].moved_with or r for r in picked if r in self.members}
        if any(m.moved_with for m in self.members.values()):
            picked.update(dict.fromkeys(r for r, m in self.members.items() if (m.moved_with or r) in roots))
        return list(picked)

    @property
    def opened_ns(self) -> int:
        """When its first member drifted."""
        return min((m.opened_ns for m in self.members.values()), default=0)

    @property
    def opening_ns(self) -> int:
        """The opening time from which its window counts: that of the earliest member, plus extensions.  # W4"""
        if self._first_ns is None and self.members:
            self._first_ns = min(m.opening_ns for m in self.members.values())
        return (self._first_ns or 0) + self.extension_ns

    def to_json(self) -> Json:
        return {
            "id": self.id,
            "owner": self.owner.to_json(),
            "ambient": self.ambient,
            "state": self.state,
            "members": [m.to_json() for m in self.members.values()],
            "extension_ns": self.extension_ns,
            "held_since_ns": self.held_since_ns,
            "message": self.message,
            "reason": self.reason,
            "holders": [h.to_json() for h in self.holders],
            "rolling": None if self.rolling is None else self.rolling.to_json(),
            "intents": sorted(self.intents),
            "group": self.group,
            "closing": self.closing,
        }

    @classmethod
    def from_json(cls, data: JsonRead) -> Change:
        change = cls(
            data["id"],
            Owner.from_json(data["owner"]),
            data["ambient"],
            data["state"],
            {},
            data["extension_ns"],
            data["held_since_ns"],
            data["message"],
            data["reason"],
            [Holder.from_json(h) for h in data["holders"]],
            None if data["rolling"] is None else Rolling.from_json(data["rolling"]),
            set(data["intents"]),
            data["group"],
            data.get("closing", False),
        )
        for row in data["members"]:
            change.put(Member.from_json(row))
        return change
