"""The contents of the records of a node's journal: one class for each record type.

A field that the fold does not read has a default here, so that a record of another version without it can be read, too.
``part``: which record of how many this is, of one decision (``records.in_parts``). What is recorded of people's
sessions and commands stands in ``people``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pact.core.node import people
from pact.core.payload import Payload, Planned, Saved, Value, always
from pact.core.records import Record
from pact.core.settings import Settings
from pact.model import Attrs, Holder, Owner
from pact.values import NOTHING, dataclass

# -- the agent --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentStarted(Payload):
    """``boot_owed``: a reboot reset resources that must still be brought back. ``reloaded``: the settings were read
    again."""

    boot_id: str
    offset_ns: int
    settings: Settings
    not_before_ns: int
    wall_ns: int = always(0)
    version: str = always("")
    reboot: bool = always(False)
    unclean: bool = always(False)
    boot_owed: bool = False
    reloaded: bool = False


@dataclass(frozen=True, slots=True)
class AgentStopped(Payload):
    reason: str = always("")


@dataclass(frozen=True, slots=True)
class ObserverBlind(Payload):
    observer: str
    why: str


@dataclass(frozen=True, slots=True)
class ObserverRestored(Payload):
    observer: str


@dataclass(frozen=True, slots=True)
class Denied(Payload):
    """``beyond``: how many more refusals have no record."""

    request: str
    why: str
    beyond: int = 0


@dataclass(frozen=True, slots=True)
class LossAccepted(Payload):
    """Records ``first`` to ``last`` (with its ``hash``) were acknowledged and are lost; ``None``: the last one is not
    known."""

    first: int
    last: int | None
    hash: str | None
    message: str


SessionOpened = people.SessionOpened
SessionClosed = people.SessionClosed
ExecBegun = people.ExecBegun
Executed = people.Executed


# -- declared state ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Declared(Payload):
    """``members``: the deviation of members of changes against the new value. ``taken``: members that leave their
    change. ``enforced``: resources declared absent because they are new below an enforced pattern, with their owners.
    ``closed``: those of them whose names only administrators see. ``part``: the number of this record, and how many
    records together are one decision."""

    resources: Mapping[str, Value]
    cause: str = always("")
    forgotten: Sequence[str] | None = None
    members: Mapping[str, int] | None = None
    taken: Sequence[str] | None = None
    sources: Sequence[str] | None = None
    to_seq: int | None = None
    enforced: Mapping[str, Owner] = NOTHING
    closed: Sequence[str] = ()
    saves: Mapping[str, Saved] = NOTHING
    notes: Sequence[str] = ()
    part: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Adopted(Payload):
    resources: Mapping[str, Value]
    patterns: Sequence[str] = always(())
    members: Mapping[str, int] = always(NOTHING)


@dataclass(frozen=True, slots=True)
class Applied(Payload):
    """``baseline``: resources declared as they were before, so that a rollback has a state to return to. ``tells``:
    somebody is told, and then ``converged`` follows; ``notify``: who, if that is not who is declared."""

    change: str
    owner: Owner
    message: str
    resources: Mapping[str, Attrs | None]
    baseline: Mapping[str, Value]
    saves: Mapping[str, Saved] = always(NOTHING)
    notes: Sequence[str] = ()
    group: str = ""
    notify: Mapping[str, Sequence[str]] = NOTHING
    tells: bool = False
    part: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class ConvergeStarted(Payload):
    """``cause``: ``boot``, ``returned`` if a device came back, or ``undo`` if an application is taken back."""

    cause: str
    plan: Sequence[Planned]


@dataclass(frozen=True, slots=True)
class Converged(Payload):
    """``results``: ``restored``, or the reason why not. ``reads``: how the kernel shows a value that it accepted.
    ``owed``: of what was moved, who must still be told."""

    results: Mapping[str, str]
    cause: str = ""
    reads: Mapping[str, str] = always(NOTHING)
    owed: Mapping[str, Sequence[str]] = NOTHING


@dataclass(frozen=True, slots=True)
class Tracked(Payload):
    patterns: Mapping[str, str]
    forgotten: Sequence[str]


@dataclass(frozen=True, slots=True)
class UntrackedSeen(Payload):
    """``resources``: a short description of each; its ``by`` is the index of its owner in ``owners``."""

    owner: Owner
    owners: Sequence[Owner]
    resources: Mapping[str, Attrs]
    seen: str
    count: int = always(0)


@dataclass(frozen=True, slots=True)
class UntrackedGone(Payload):
    resources: Sequence[str]
    closed: Sequence[str]
    count: int = always(0)


# -- drift ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DriftDetected(Payload):
    """``from_``: the change that had the resource before. ``with_``: the resource whose write moved it. ``also``: the
    other owners who have written it since it conformed."""

    resource: str
    change: str
    owner: Owner
    opened_ns: int
    actual: Attrs | None
    deviation_n: int
    weight_n: int
    from_: str = ""
    with_: str = ""
    also: Sequence[Owner] = ()
    secret: bool = False


@dataclass(frozen=True, slots=True)
class DriftCleared(Payload):
    resource: str
    change: str = always("")


@dataclass(frozen=True, slots=True)
class WindowOpened(Payload):
    """``resources``: the first of ``count``, if that is said; else all."""

    change: str
    owner: Owner
    reopened: bool
    resources: Sequence[str] = always(())
    window_ns: int = always(0)
    magnitude_n: int = always(0)
    deadline: str | None = always(None)
    reads: Mapping[str, str] = NOTHING
    count: int | None = None


@dataclass(frozen=True, slots=True)
class WindowClosing(Payload):
    """``resources``: the first few of ``count``."""

    change: str
    owner: Owner
    deadline: str
    resources: Sequence[str] = always(())
    count: int = always(0)


@dataclass(frozen=True, slots=True)
class WindowExtended(Payload):
    """``group``: the root keeps its window, which ends at ``ends_ns``."""

    change: str
    by_ns: int
    reopened: bool
    group: str = ""
    fence: int | None = None
    ends_ns: int | None = None
    ends: str | None = None


@dataclass(frozen=True, slots=True)
class ChangeSplit(Payload):
    """``ambient``: the new change collects the owner's next drift."""

    change: str
    into: str
    resources: Sequence[str]
    ambient: bool | None = None
    group: str = ""
    part: Sequence[int] = ()


# -- settling ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Committed(Payload):
    """``change`` is ``None`` if untracked things are taken in. ``also``: the other owners who changed the settled
    resources. ``owed``: who must still be told of what plans made of them before."""

    change: str | None
    owner: Owner
    resources: Mapping[str, Value]
    expires_ns: int | None
    message: str = always("")
    split: bool = always(False)
    expires: str | None = always(None)
    committer: Owner | None = None
    group: str = ""
    also: Mapping[str, Sequence[Owner]] = NOTHING
    part: Sequence[int] = ()
    owed: Mapping[str, Sequence[str]] = NOTHING


@dataclass(frozen=True, slots=True)
class CommitExpired(Payload):
    """``resources``: the values that are declared again, ``None`` if undeclared. ``commit``: the number of that
    record."""

    resources: Mapping[str, Value | None]
    owner: Owner
    commit: int = always(0)


@dataclass(frozen=True, slots=True)
class RollbackStarted(Payload):
    """``saves``: the state before, by resource."""

    change: str
    cause: str
    owner: Owner
    plan: Sequence[Planned]
    skipped: Sequence[str] = always(())
    saves: Mapping[str, Saved] = always(NOTHING)
    notes: Sequence[str] = ()
    also: Mapping[str, Sequence[Owner]] = NOTHING
    part: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class RolledBack(Payload):
    change: str
    owner: Owner
    cause: str = always("")
    results: Mapping[str, str] = always(NOTHING)
    reads: Mapping[str, str] = always(NOTHING)
    also: Mapping[str, Sequence[Owner]] = NOTHING
    part: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class RollbackBlocked(Payload):
    change: str
    reason: str
    holders: Sequence[Holder]
    cause: str = always("")
    group: str = ""


@dataclass(frozen=True, slots=True)
class RollbackFailed(Payload):
    """``owed``: resources that were moved, and who is not told of it; ``moved``: which may not be as declared."""

    change: str
    restored: Sequence[str]
    reason: str
    cause: str = always("")
    left: Mapping[str, str] = always(NOTHING)
    reads: Mapping[str, str] = always(NOTHING)
    also: Mapping[str, Sequence[Owner]] = NOTHING
    owed: Mapping[str, Sequence[str]] = NOTHING
    moved: Sequence[str] = ()
    part: Sequence[int] = ()


# -- suspending -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EmergencyStarted(Payload):
    reason: str
    by: str
    key: str
    ends_ns: int
    ends: str


@dataclass(frozen=True, slots=True)
class EmergencyStale(Payload):
    reason: str = always("")
    by: str = always("")


@dataclass(frozen=True, slots=True)
class EmergencyEnded(Payload):
    how: str = always("")
    message: str | None = None


@dataclass(frozen=True, slots=True)
class HoldPlaced(Payload):
    """``change`` is ``None`` if the whole node is held. ``fleet_seq``: the root's number of a hold of the fleet."""

    hold: str
    change: str | None
    owner: Owner
    reason: str
    ends_ns: int
    ends: str
    fence: int | None = None
    fleet_seq: int | None = None


@dataclass(frozen=True, slots=True)
class HoldReleased(Payload):
    hold: str
    change: str | None = always(None)
    cause: str = always("")
    fence: int | None = None
    fleet_seq: int | None = None


# -- a member of groups -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GroupBegun(Payload):
    """``resources``: the values that the group wants here."""

    group: str
    fence: int
    owner: Owner
    message: str
    resources: Mapping[str, Attrs | None]
    ends_ns: int
    ends: str = always("")


@dataclass(frozen=True, slots=True)
class GroupPrepared(Payload):
    group: str
    change: str | None
    action: str
    ballot: int
    fence: int
    vote: str
    why: str
    holders: Sequence[Holder]


@dataclass(frozen=True, slots=True)
class GroupDecided(Payload):
    """``lost``: changes that other owners made again on the group's resources, which a rollback takes from them."""

    group: str
    ballot: int
    fence: int
    decision: str
    action: str
    why: str
    lost: Sequence[Attrs] = always(())
    force: bool = False


@dataclass(frozen=True, slots=True)
class GroupFinished(Payload):
    group: str
    outcome: str
    forced: bool | None = None


#: By record type.
CLASSES: Final[Mapping[str, type[Payload]]] = {
    cls.type: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, Payload) and cls is not Payload
}


def of(record: Record) -> Payload | None:
    """The payload of a record; ``None`` for a type that this version does not know. Raises ValueError."""
    if record.payload is not None:
        return record.payload
    cls = CLASSES.get(record.type)
    return None if cls is None else cls.from_data(record.data)


def declared_by(said: Payload | None) -> list[str]:
    """Every resource that a record declares anew or forgets; none for other records."""
    if isinstance(said, Applied):
        return [*said.resources, *said.baseline]
    if isinstance(said, Declared):
        return [*said.resources, *(said.forgotten or ())]
    return list(said.resources) if isinstance(said, Adopted | Committed | CommitExpired) else []


def conforming(said: Payload | None) -> Sequence[str]:
    """Resources that conform according to this record: they came back, or were brought back."""
    if isinstance(said, DriftCleared):
        return [said.resource]
    if isinstance(said, RolledBack):
        return list(said.results)
    return said.restored if isinstance(said, RollbackFailed) else ()
