"""The contents of the root's own records: one class for each record type. Fields that only this version writes have a
default, so that the records of older roots can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pact.core.payload import Id, Payload, always
from pact.core.records import Record
from pact.model import Json, JsonRead, Owner
from pact.values import NOTHING, dataclass


@dataclass(frozen=True, slots=True)
class Person:
    """The person who made a request, by name."""

    user: str

    def to_json(self) -> Json:
        return {"user": self.user}

    @classmethod
    def from_json(cls, data: JsonRead) -> Person:
        """Raises ValueError or KeyError."""
        if type(data["user"]) is not str:
            raise ValueError("a name that is no text")
        return cls(data["user"])


@dataclass(frozen=True, slots=True)
class Terms:
    """How a decision is carried out: a commit's message and time limit; whether force is used."""

    message: str = ""
    ttl_ns: int | None = None
    force: bool = False

    def to_json(self) -> Json:
        return {"message": self.message, "ttl_ns": self.ttl_ns, **({"force": True} if self.force else {})}

    @classmethod
    def from_json(cls, data: JsonRead) -> Terms:
        """Never raises, because a decision that is written must be carried out: a malformed message or time, which an
        older root took unchecked from a client, is ignored.
        """
        message, ttl_ns = data.get("message", ""), data.get("ttl_ns")
        return cls(
            message if type(message) is str else "",
            ttl_ns if type(ttl_ns) is int else None,
            data.get("force") is True,
        )


#: A decision without a message, a time limit or force.
PLAIN: Final = Terms()


@dataclass(frozen=True, slots=True)
class AgentStarted(Payload):
    """A root began its term: ``fence`` is the term's number."""

    boot_id: str
    offset_ns: int
    wall_ns: int = always(0)
    fence: int = always(0)
    name: str = always("")


@dataclass(frozen=True, slots=True)
class GroupBegun(Payload):
    """``nodes``: folded, ``count`` of them. ``require_all``: the group is committed only if no member is away."""

    group: Id
    owner: Owner
    message: str
    nodes: str
    resources: Sequence[str]
    window_ns: int
    require_all: bool
    count: int = always(0)
    fence: int = always(0)


@dataclass(frozen=True, slots=True)
class GroupDecided(Payload):
    """``owed``: folded, the members that were away and get the decision when they return."""

    group: Id
    decision: str
    ballot: int
    why: str
    args: Terms
    fence: int = always(0)
    owed: str = always("")


@dataclass(frozen=True, slots=True)
class GroupForced(Payload):
    group: Id
    why: str
    fence: int = always(0)


@dataclass(frozen=True, slots=True)
class GroupFinished(Payload):
    """``members``: {state: folded nodes}, if some members ended otherwise than the outcome says."""

    group: Id
    outcome: str
    fence: int = always(0)
    members: Mapping[str, str] = NOTHING


@dataclass(frozen=True, slots=True)
class WindowExtended(Payload):
    group: Id
    by_ns: int
    reopened: bool
    fence: int = always(0)


@dataclass(frozen=True, slots=True)
class HoldPlaced(Payload):
    """``change`` is always ``None``: the whole fleet is held."""

    hold: Id
    owner: Person
    reason: str
    ends_ns: int
    ends: str
    change: None = always(None)
    fence: int = always(0)


@dataclass(frozen=True, slots=True)
class HoldReleased(Payload):
    hold: Id
    cause: str = always("")
    change: None = always(None)
    fence: int = always(0)


@dataclass(frozen=True, slots=True)
class NodeForgotten(Payload):
    nodes: Sequence[str]
    fence: int = always(0)


@dataclass(frozen=True, slots=True)
class Denied(Payload):
    """``beyond``: how many more refusals have no record."""

    request: str
    why: str
    beyond: int = 0


#: By record type.
CLASSES: Final[Mapping[str, type[Payload]]] = {
    cls.type: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, Payload) and cls is not Payload
}


def of(record: Record) -> Payload | None:
    """The payload of one of the root's own records; ``None`` for a type that no root writes. Raises ValueError."""
    cls = CLASSES.get(record.type)
    return None if cls is None else cls.from_data(record.data)
