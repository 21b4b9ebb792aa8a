"""What one node remembers of the groups that it is a member of: the fold of the ``group_*`` records.  # J2

A group's change is an ordinary change whose window the root keeps. From a yes vote on the node decides nothing about it
alone.  # G3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pact.core import change as life
from pact.core.records import Record
from pact.errors import ConflictError
from pact.model import Attrs, Owner

if TYPE_CHECKING:
    from pact.core.change import Change
    from pact.core.state import State

OPEN: Final = "open"
PREPARED: Final = "prepared"
DECIDED: Final = "decided"
NOT_APPLIED: Final = "not applied"

#: Finished groups whose end is remembered, so that a late question gets the right answer.
DONE_MAX: Final = 1000


@dataclass(slots=True)
class Membership:
    """One unfinished group. ``resources`` are what it wants here; ``ends_ns`` is the root's window, for people."""

    id: str
    owner: dict[str, Any]
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

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def changes(self) -> list[str]:
        """Every change that the group's rollback settles here."""
        return [*([self.change] if self.change else []), *self.also]


def begun(state: State, record: Record) -> None:
    d = record.data
    raise_fence(state, record)
    state.groups[d["group"]] = Membership(
        d["group"], d["owner"], d["message"], dict(d["resources"]), ends_ns=d["ends_ns"]
    )


def joined(state: State, group: str, change: Change) -> None:
    """``change`` carries the group's drift."""
    change.group = group
    state.groups[group].change = change.id


def learn(group: Membership, reads: Mapping[str, str]) -> None:
    """What the kernel made here of values that the group wants: the member is compared with that.  # D5"""
    for resource, text in reads.items():
        wanted = group.resources.get(resource)
        if wanted is not None:
            group.resources[resource] = {**wanted, "reads": text}


def prepared(state: State, record: Record) -> None:
    """A vote. A yes binds; a no against a rollback leaves the change blocked, as the whole group will be."""
    d = record.data
    raise_fence(state, record)
    group = state.groups[d["group"]]
    group.ballot, group.action = d["ballot"], d["action"]
    if d["vote"] == "yes":
        group.phase = PREPARED
        _block(state, group, f"undecided: {group.id} is being settled by the root", [])
        return
    group.why = d["why"]
    if d["action"] == "rollback":
        _block(state, group, d["why"], d["holders"])


def decided(state: State, record: Record) -> None:
    d = record.data
    raise_fence(state, record)
    group = state.groups[d["group"]]
    group.ballot, group.action, group.why = max(group.ballot, d["ballot"]), d["action"], d["why"]
    if d["decision"] != "abort":
        group.phase, group.force = DECIDED, bool(d.get("force"))
        return
    was_prepared, group.phase = group.phase == PREPARED, OPEN
    change = state.changes.get(group.change or "")
    if d["action"] == "rollback":
        if change is None or was_prepared or change.state != life.BLOCKED:
            _block(state, group, d["why"], [])  # who voted no keeps the names of the holders
    elif change is not None and change.state == life.BLOCKED and was_prepared:
        reopen(state, change, record.t_ns)


def finished(state: State, record: Record) -> None:
    d = record.data
    group = state.groups.pop(d["group"])
    state.groups_done[group.id] = d["outcome"]
    while len(state.groups_done) > DONE_MAX:
        del state.groups_done[next(iter(state.groups_done))]
    for cid in group.changes:
        change = state.changes.get(cid)
        if change is not None and change.group == group.id:  # what is left of it is the node's own again
            change.group = ""
            if change.state == life.BLOCKED:
                reopen(state, change, record.t_ns)
            state.touched.changes[cid] = None


def extended(state: State, record: Record) -> None:
    raise_fence(state, record)
    group = state.groups.get(record.data.get("group") or "")
    if group is not None:
        group.ends_ns = record.data["ends_ns"]


def reopen(state: State, change: Change, t_ns: int) -> None:
    """Blocked no more."""
    change.reason, change.holders = "", []
    state._take(change, "reopen")
    if state.held_by(change.id):
        state._take(change, "hold")
        change.held_since_ns = t_ns


def raise_fence(state: State, record: Record) -> None:
    """The highest fence that was ever accepted; a lower one is refused from now on.  # G4"""
    state.fence = max(state.fence, int(record.data.get("fence", 0)))


def check_fence(state: State, args: Mapping[str, Any]) -> int:
    """Raises ConflictError for a root that has been replaced.  # G4"""
    fence = int(args["fence"])
    if fence < state.fence:
        raise ConflictError(f"stale fence {fence}: this node has obeyed {state.fence}")
    return fence


def _block(state: State, group: Membership, why: str, holders: list[dict[str, Any]]) -> None:
    change = state.changes.get(group.change or "")
    if change is not None and change.can("block"):
        state._take(change, "block")
        change.reason, change.holders = why, list(holders)


def load(rows: list[Mapping[str, Any]]) -> dict[str, Membership]:
    return {row["id"]: Membership(**row) for row in rows}


def owner_of(group: Membership) -> Owner:
    return Owner.from_json(group.owner)
