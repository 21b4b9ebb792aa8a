"""The node's state: a fold over the journal.  # J2

``State.apply`` is the only thing that changes it. What is derived for speed (timer wheels, probes under way) lives in
``Node`` and is rebuilt from here. Everything is JSON, so that a snapshot is the state and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from pact.core import change as life
from pact.core import membership, strict, tracked
from pact.core.change import Change, Member
from pact.core.records import GENESIS, Record
from pact.core.settings import DIMENSION_OF, Settings
from pact.core.windows import Windows, magnitude, square, window
from pact.model import DIMENSIONS, NS_PER_S, Attrs, Declared, Owner

HOUR_NS: Final = 3600 * NS_PER_S
RECENT_MAX: Final = 20_000
DECODED_MAX: Final = 64
_CLOSED: Final = frozenset({life.BLOCKED, life.FAILED, life.ROLLING, life.SETTLED})  # takes no more drift
SNAPSHOT_VERSION: Final = 2


@dataclass(slots=True)
class Ttl:
    """A commit with an end: ``earlier`` is the declared value (JSON, ``None`` if undeclared) that comes back."""

    expires_ns: int
    earlier: dict[str, Any] | None
    owner: dict[str, Any]
    seq: int


@dataclass(slots=True)
class Emergency:
    reason: str
    by: str
    key: str
    started: str
    started_ns: int
    ends_ns: int
    ends: str
    stale: bool = False


@dataclass(slots=True)
class Hold:
    id: str
    change: str | None
    owner: dict[str, Any]
    reason: str
    placed: str
    placed_ns: int
    ends_ns: int
    ends: str


@dataclass(slots=True)
class Touched:
    """What an ``apply`` moved, for those who keep derived indexes. Not part of the state. In order, without doubles:
    what is due at one moment is taken in the order of its scheduling, and that is the same in every run."""

    members: dict[str, None] = field(default_factory=dict)
    changes: dict[str, None] = field(default_factory=dict)
    timers: bool = False

    def __bool__(self) -> bool:
        return bool(self.members or self.changes or self.timers)


#: Instead of names: everything that a reboot resets.
ALL: Final = "*"
#: What a node as a whole can be, the gravest first.
STATES: Final = ("emergency", life.FAILED, life.BLOCKED, "drifted", "unconfigured", "committed")


class State:
    """See the module. Attributes are read by everyone and written by ``apply`` alone."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.seq = -1
        self.hash = GENESIS
        self.t_ns = 0
        self.wall = ""
        self.boot_id = ""
        self.offset_ns = 0
        self.running = False
        self.not_before_ns = 0
        self._declared: dict[str, bytes] = {}
        self._decoded: dict[str, Declared] = {}  # the last few that were looked at: a rollback looks six times
        self.changes: dict[str, Change] = {}
        self.member_of: dict[str, str] = {}
        self.ambient: dict[str, str] = {}
        self.recent: dict[str, int] = {}
        self.ttls: dict[str, Ttl] = {}
        #: What a reboot reset, with what it was reset to, and is not brought back yet; ALL: that is not known yet.
        self.boot_owed: dict[str, Attrs | None] | None = None
        self.emergency: Emergency | None = None
        self.holds: dict[str, Hold] = {}
        self.blind: dict[str, str] = {}
        self.auto_rollbacks: dict[str, list[int]] = {}
        self.change_n = 0
        self.hold_n = 0
        self.open_sum_n = 0
        self.groups: dict[str, membership.Membership] = {}
        self.groups_done: dict[str, str] = {}
        self.fence = 0
        self.fleet_seq = 0
        self.tracked: dict[str, str] = {}  # pattern -> what becomes of what is new below it
        self.untracked: dict[str, tracked.Untracked] = {}
        self.untracked_of: dict[str, int] = {}  # owner -> how many of them are his
        self.enforced: dict[str, dict[str, Any]] = {}  # declared absent for being new -> who made it
        self.windows = Windows(self.settings.floor_ns, self.settings.base_ns)
        self.touched = Touched()
        self._noted: tuple[int, Settings | None, int] = (0, None, 0)  # drift and settings, and their window

    # -- reading ------------------------------------------------------------------------------------------------

    def __contains__(self, resource: str) -> bool:
        return resource in self._declared

    @property
    def declared_count(self) -> int:
        return len(self._declared)

    def declared_ids(self) -> Iterator[str]:
        return iter(self._declared)

    def declared(self, resource: str) -> Declared | None:
        known = self._decoded.get(resource)
        if known is None:
            raw = self._declared.get(resource)
            if raw is None:
                return None
            if len(self._decoded) >= DECODED_MAX:
                self._decoded.clear()
            known = self._decoded[resource] = Declared.from_json(strict.own(raw))
        return known

    def declared_raw(self, resource: str) -> bytes | None:
        """Canonical JSON of the declared value: small in memory, and equal exactly when the values are."""
        return self._declared.get(resource)

    def all_declared_raw(self) -> dict[str, bytes]:
        """The same of all, as of now: it moves no more."""
        return dict(self._declared)

    def change_of(self, resource: str) -> Change | None:
        cid = self.member_of.get(resource)
        return None if cid is None else self.changes[cid]

    def held_by(self, change_id: str) -> list[Hold]:
        return [h for h in self.holds.values() if h.change in (None, change_id)]

    @property
    def suspended(self) -> bool:
        """No window runs: observe mode or an emergency.  # P1, E1"""
        return not self.settings.enforce or self.emergency is not None

    def deadline_ns(self, change: Change) -> int | None:
        """When its window ends if nothing else happens; ``None`` while no clock runs for it."""
        if change.state != life.OPEN or self.suspended or not change.members or change.intents or change.group:
            return None  # a group's window is the root's  # G2
        return max(self.windows.end(change.opening_ns), self.not_before_ns)

    def sums(self) -> dict[str, int]:
        """The full drift (settled by nobody yet, in whatever state) by dimension, as exact sums."""
        out = dict.fromkeys(DIMENSIONS, 0)
        for change in self.changes.values():
            for member in change.members.values():
                out[DIMENSION_OF[member.resource.partition(":")[0]]] += member.square
        return out

    def overall(self) -> str:
        """One of ``STATES``: the gravest that is true."""
        if self.emergency is not None:
            return "emergency"
        states = {c.state for c in self.changes.values() if c.members}
        for state in (life.FAILED, life.BLOCKED):
            if state in states:
                return state
        if states:
            return "drifted"
        return "committed" if self._declared else "unconfigured"

    # -- the fold -----------------------------------------------------------------------------------------------

    def apply(self, record: Record) -> None:
        """Fold one record in. Records come in order; ``assert`` holds what only a bug could break."""
        assert record.seq == self.seq + 1, (record.seq, self.seq)
        assert record.prev == self.hash
        self.seq, self.hash, self.wall = record.seq, record.hash, record.time
        self.t_ns = max(self.t_ns, record.t_ns)
        handler = _HANDLERS.get(record.type)
        if handler is not None:
            handler(self, record)
        self._note(self.t_ns)

    def _note(self, t_ns: int) -> None:
        s = self.settings
        if self._noted[0] != self.open_sum_n or self._noted[1] is not s:  # most records move neither
            shortest_ns = min(s.floor_ns, s.base_ns)  # W3: none is shorter than the floor, none longer than the base
            w_ns = max(shortest_ns, window(self.open_sum_n, s.base_ns, s.sensitivity_n))
            self._noted = (self.open_sum_n, s, w_ns)
        self.windows.note(t_ns, self._noted[2])

    def _take(self, change: Change, what: str) -> None:
        """One transition, keeping the sum of open drift right.  # A2"""
        before, was = change.sum_n if change.state == life.OPEN else 0, change.state
        change.take(what)
        after = change.sum_n if change.state == life.OPEN else 0
        self.open_sum_n += after - before
        if change.state != was:
            self.touched.changes[change.id] = None
        if change.state in _CLOSED:
            if self.ambient.get(change.owner.key) == change.id:
                del self.ambient[change.owner.key]
        elif change.ambient:
            self.ambient.setdefault(change.owner.key, change.id)
        if change.state == life.SETTLED:
            self._settle(change)

    def _settle(self, change: Change) -> None:
        for resource in list(change.members):
            self._remove(change, resource)
        del self.changes[change.id]
        for hold_id in [h.id for h in self.holds.values() if h.change == change.id]:
            del self.holds[hold_id]
            self.touched.timers = True

    def _put(self, change: Change, member: Member) -> None:
        before = change.sum_n
        change.put(member)
        if change.state == life.OPEN:
            self.open_sum_n += change.sum_n - before
        self.member_of[member.resource] = change.id
        self.touched.members[member.resource] = None

    def _remove(self, change: Change, resource: str) -> Member:
        before = change.sum_n
        member = change.drop(resource)
        if change.state == life.OPEN:
            self.open_sum_n += change.sum_n - before
        del self.member_of[resource]
        self.touched.members[resource] = None
        return member

    def _leave(self, resource: str) -> None:
        """A resource leaves its change; an emptied change is settled.  # C3"""
        change = self.change_of(resource)
        if change is None:
            return
        self._remove(change, resource)
        self._take(change, "clear")
        self._settle_if_empty(change)

    def _settle_if_empty(self, change: Change) -> None:
        if not change.members and not change.intents and change.state != life.ROLLING:
            self._take(change, "emptied")

    def _reopen(self, change: Change, t_ns: int) -> None:
        """A new window from ``t_ns``: the members open now, extensions and stopped time are spent."""
        change.extension_ns, change.closing = 0, False
        change.held_since_ns = t_ns if change.state == life.HELD else 0
        for member in change.members.values():
            member.opened_ns, member.shift_ns = t_ns, 0
            self.touched.members[member.resource] = None
        self.touched.changes[change.id] = None

    # -- handlers, one a type -----------------------------------------------------------------------------------

    def _agent_started(self, record: Record) -> None:
        data = record.data
        was_enforcing, fresh = self.settings.enforce, record.seq == 0
        self.settings = Settings.from_json(data["settings"])
        self.boot_id, self.offset_ns = data["boot_id"], data["offset_ns"]
        self.not_before_ns = data["not_before_ns"]
        self.running = True
        if data.get("reboot"):
            self.boot_owed = {ALL: None} if data.get("boot_owed") else None
        self.blind = {}
        self.windows.floor_ns = self.settings.floor_ns
        if fresh:
            self.windows = Windows(self.settings.floor_ns, self.settings.base_ns)
        if self.settings.enforce and not was_enforcing:  # P2: existing drift opens at this moment
            for change in self.changes.values():
                self._reopen(change, record.t_ns)

    def _agent_stopped(self, record: Record) -> None:
        self.running = False

    def _declared_moved(self, record: Record) -> None:
        data = record.data
        for resource, value in data["resources"].items():
            self._declare(resource, value)
            self._void_ttl(resource)
        for resource in data.get("forgotten", ()):
            self._declare(resource, None)
            self._void_ttl(resource)
            self._leave(resource)
        for resource, deviation_n in data.get("members", {}).items():
            self._redeviate(resource, deviation_n)
        for resource in data.get("taken", ()):
            self._leave(resource)
        self.enforced.update(data.get("enforced", {}))

    def _declare(self, resource: str, value: Any) -> None:
        """``None``: declared no more."""
        self._decoded.pop(resource, None)
        tracked.drop(self, resource)
        self.enforced.pop(resource, None)
        if value is None:
            self._declared.pop(resource, None)
        else:
            self._declared[resource] = compact(value)

    def _redeviate(self, resource: str, deviation_n: int) -> None:
        change = self.change_of(resource)
        if change is None:
            return
        if deviation_n == 0:
            self._leave(resource)
            return
        old = change.members[resource]
        self._put(change, Member(
            resource, old.actual, deviation_n, old.weight_n, old.opened_ns, old.seen, old.shift_ns,
            old.command, old.moved_with, old.also))  # fmt: skip

    def _void_ttl(self, resource: str) -> None:
        if self.ttls.pop(resource, None) is not None:
            self.touched.timers = True

    def _new_change(self, cid: str, owner: Owner, *, ambient: bool, t_ns: int) -> Change:
        change = Change(cid, owner, ambient)
        self.changes[cid] = change
        self.change_n = max(self.change_n, int(cid[1:]))
        if ambient:
            self.ambient.setdefault(owner.key, cid)
        if self.held_by(cid):
            self._take(change, "hold")
            change.held_since_ns = t_ns
        self.touched.changes[cid] = None
        return change

    def _applied(self, record: Record) -> None:
        data = record.data
        for resource, value in data["baseline"].items():
            self._declare(resource, value)
        change = self.changes.get(data["change"])
        if change is None:
            change = self._new_change(data["change"], Owner.from_json(data["owner"]), ambient=False, t_ns=record.t_ns)
        change.message = data["message"]
        change.intents |= set(data["resources"])
        if data.get("group"):
            membership.joined(self, data["group"], change)

    def _drift_detected(self, record: Record) -> None:
        data = record.data
        resource, cid = data["resource"], data["change"]
        change = self.changes.get(cid)
        if change is None:
            change = self._new_change(cid, Owner.from_json(data["owner"]), ambient=True, t_ns=record.t_ns)
        shift_ns = 0
        before = self.change_of(resource)
        if before is not None and before.id != cid:
            shift_ns = before.members[resource].shift_ns
            self._remove(before, resource)
            self._take(before, "clear")
            self._settle_if_empty(before)
        elif before is not None:
            shift_ns = before.members[resource].shift_ns
        change.intents.discard(resource)
        self._put(change, Member(
            resource, data["actual"], data["deviation_n"], data["weight_n"], data["opened_ns"], record.time, shift_ns,
            data["owner"]["command"], data.get("with", ""), list(data.get("also", ())),
        ))  # fmt: skip
        self._take(change, "drift")
        self.recent.pop(recent_key(change.owner.key, resource), None)

    def _drift_cleared(self, record: Record) -> None:
        resource = record.data["resource"]
        change = self.change_of(resource)
        if change is not None:
            if len(self.recent) >= RECENT_MAX:
                horizon = record.t_ns - self.settings.base_ns
                self.recent = {k: v for k, v in self.recent.items() if v > horizon}
                if len(self.recent) >= RECENT_MAX:
                    self.recent.clear()
            self.recent[recent_key(change.owner.key, resource)] = change.members[resource].opened_ns
            self._leave(resource)
        self._forget_enforced([resource])

    def _forget_enforced(self, resources: Iterable[str]) -> None:
        """What was new below an enforced pattern is gone again.  # U2"""
        for resource in resources:
            if resource in self.enforced and resource not in self.member_of:
                self._declare(resource, None)

    def _window_opened(self, record: Record) -> None:
        change = self.changes[record.data["change"]]
        group = self.groups.get(change.group)
        if group is not None:
            membership.learn(group, record.data.get("reads", {}))
        if record.data.get("reopened"):
            self._reopen(change, record.t_ns)
        if change.intents or not change.members:
            change.intents = set()
            self._settle_if_empty(change)
        self.touched.changes[change.id] = None

    def _window_closing(self, record: Record) -> None:
        self.changes[record.data["change"]].closing = True
        self.touched.changes[record.data["change"]] = None

    def _window_extended(self, record: Record) -> None:
        change = self.changes[record.data["change"]]
        reopened = change.state in (life.BLOCKED, life.FAILED)
        self._take(change, "extend")
        if reopened:
            change.reason, change.holders = "", []
            self._reopen(change, record.t_ns)
            if self.held_by(change.id):
                self._take(change, "hold")
                change.held_since_ns = record.t_ns
        change.extension_ns += record.data["by_ns"]
        change.closing = False
        self.touched.changes[change.id] = None
        membership.extended(self, record)

    def _committed(self, record: Record) -> None:
        data = record.data
        for resource, value in data["resources"].items():
            earlier = self._declared.get(resource)
            trial = self.ttls.get(resource)
            if trial is not None:  # what a trial of a trial goes back to is what was declared for good  # T1
                earlier = None if trial.earlier is None else orjson.dumps(trial.earlier)
            self._void_ttl(resource)
            if data["expires_ns"] is not None:
                self.ttls[resource] = Ttl(
                    data["expires_ns"], None if earlier is None else strict.own(earlier),
                    data.get("committer", data["owner"]), record.seq,
                )
                self.touched.timers = True
            self._declare(resource, value)
            change = self.change_of(resource)
            if change is not None:
                self._remove(change, resource)
                self._take(change, "commit")
                self._settle_if_empty(change)

    def _commit_expired(self, record: Record) -> None:
        for resource, value in record.data["resources"].items():
            self._void_ttl(resource)
            if value is None:
                self._declare(resource, None)
                self._leave(resource)
            else:
                self._declare(resource, value)

    def _rollback_started(self, record: Record) -> None:
        data = record.data
        change = self.changes[data["change"]]
        self._take(change, "start")
        change.reason, change.holders = "", []
        change.rolling = {
            "cause": data["cause"], "steps": [s["id"] for s in data["plan"]], "skipped": data["skipped"],
            "saved": {r: v["sha256"] for r, v in data.get("saves", {}).items() if v.get("sha256")},
            "seq": record.seq, "joined": {s["id"]: s["target"] for s in data["plan"] if s["id"] not in change.members},
        }  # fmt: skip

    def _learn(self, record: Record) -> None:
        """What the kernel made of a declared value that it took is what is compared from now on.  # D5"""
        for resource, text in record.data.get("reads", {}).items():
            declared = self.declared(resource)
            if declared is not None and declared.attrs is not None:
                self._declare(resource, replace(declared, attrs={**declared.attrs, "reads": text}).to_json())

    def _converge_started(self, record: Record) -> None:
        """What a boot has to bring back is remembered until it has been brought back.  # B3"""
        if record.data["cause"] == "boot" and self.boot_owed is not None:
            self.boot_owed.pop(ALL, None)
            self.boot_owed.update({s["id"]: s["actual"] for s in record.data["plan"]})

    def _converged(self, record: Record) -> None:
        self._learn(record)
        if record.data.get("cause") == "boot":
            self.boot_owed = None

    def _rolled_back(self, record: Record) -> None:
        self._learn(record)
        change = self.changes[record.data["change"]]
        members = list(change.members)
        self._count_automatic(change, members, record.t_ns)
        self._take(change, "done")
        self._forget_enforced(members)

    def _count_automatic(self, change: Change, resources: list[str], t_ns: int) -> None:
        if change.rolling is None or change.rolling["cause"] not in ("expired", "retry"):
            return
        horizon = t_ns - HOUR_NS
        if len(self.auto_rollbacks) > RECENT_MAX:
            self.auto_rollbacks = {r: ts for r, ts in self.auto_rollbacks.items() if ts[-1] > horizon}
        for resource in resources:
            times = [t for t in self.auto_rollbacks.get(resource, ()) if t > horizon]
            self.auto_rollbacks[resource] = [*times, t_ns]

    def _rollback_blocked(self, record: Record) -> None:
        change = self.changes[record.data["change"]]
        self._take(change, "block")
        change.reason, change.holders = record.data["reason"], list(record.data["holders"])
        change.rolling = None

    def _rollback_failed(self, record: Record) -> None:
        self._learn(record)
        change = self.changes[record.data["change"]]
        restored = [r for r in record.data["restored"] if r in change.members]
        self._count_automatic(change, restored, record.t_ns)
        for resource in restored:
            self._remove(change, resource)
        self._forget_enforced(restored)
        change.rolling = None
        change.reason = record.data["reason"]
        self._take(change, "fail")
        if not change.members:
            self._take(change, "emptied")

    def _change_split(self, record: Record) -> None:
        """Some members go on as a change of their own, with the time they had."""
        data = record.data
        old = self.changes[data["change"]]
        new = self._new_change(data["into"], old.owner, ambient=False, t_ns=record.t_ns)
        if data.get("ambient"):  # what its owner drifts next joins this one
            new.ambient, self.ambient[old.owner.key] = True, new.id
        new.message, new.extension_ns = old.message, old.extension_ns
        if new.state == life.HELD and old.state == life.HELD:
            new.held_since_ns = old.held_since_ns
        if data.get("group"):
            new.group = data["group"]
            self.groups[new.group].also.append(new.id)
        for resource in data["resources"]:
            self._put(new, self._remove(old, resource))
        self._take(old, "clear")
        self._settle_if_empty(old)

    def _emergency_started(self, record: Record) -> None:
        d = record.data
        self.emergency = Emergency(
            d["reason"], d["by"], d["key"], record.time, record.t_ns, d["ends_ns"], d["ends"], False
        )
        self.touched.timers = True
        self.touched.changes.update(dict.fromkeys(self.changes))

    def _emergency_stale(self, record: Record) -> None:
        assert self.emergency is not None
        self.emergency.stale = True

    def _emergency_ended(self, record: Record) -> None:
        self.emergency = None
        self.touched.timers = True
        for change in self.changes.values():  # E3: what was not settled starts a new window
            if change.state in (life.OPEN, life.HELD):
                self._reopen(change, record.t_ns)
            self.touched.changes[change.id] = None

    def _hold_placed(self, record: Record) -> None:
        d = record.data
        self.holds[d["hold"]] = Hold(
            d["hold"], d["change"], d["owner"], d["reason"], record.time, record.t_ns, d["ends_ns"], d["ends"]
        )
        if "fleet_seq" in d:  # the fleet's stop, numbered by the root
            membership.raise_fence(self, record)
            self.fleet_seq = d["fleet_seq"]
        else:
            self.hold_n = max(self.hold_n, int(d["hold"][1:]))
        self.touched.timers = True
        for change in self.changes.values():
            if change.state == life.OPEN and d["change"] in (None, change.id):
                self._take(change, "hold")
                change.held_since_ns = record.t_ns

    def _hold_released(self, record: Record) -> None:
        del self.holds[record.data["hold"]]
        membership.raise_fence(self, record)
        self.fleet_seq = record.data.get("fleet_seq", self.fleet_seq)
        self.touched.timers = True
        for change in self.changes.values():
            if change.state == life.HELD and not self.held_by(change.id):
                for member in change.members.values():  # H1: the clock stood still
                    member.shift_ns += record.t_ns - max(member.opening_ns, change.held_since_ns)
                    self.touched.members[member.resource] = None
                change.held_since_ns, change.closing = 0, False
                self._take(change, "release")

    def _observer_blind(self, record: Record) -> None:
        self.blind[record.data["observer"]] = record.data["why"]

    def _observer_restored(self, record: Record) -> None:
        self.blind.pop(record.data["observer"], None)

    # -- snapshot -----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The whole state as JSON values; ``from_json`` gives an equal one."""
        return {
            "version": SNAPSHOT_VERSION, "settings": self.settings.to_json(), "seq": self.seq, "hash": self.hash,
            "t_ns": self.t_ns, "wall": self.wall, "boot_id": self.boot_id, "offset_ns": self.offset_ns,
            "running": self.running, "not_before_ns": self.not_before_ns,
            "declared": {k: v.decode() for k, v in self._declared.items()},
            "changes": [c.to_json() for c in self.changes.values()], "ambient": dict(self.ambient),
            "recent": dict(self.recent),
            "ttls": {r: [t.expires_ns, t.earlier, t.owner, t.seq] for r, t in self.ttls.items()},
            "boot_owed": None if self.boot_owed is None else dict(self.boot_owed),
            "emergency": None if self.emergency is None else _slots(self.emergency),
            "holds": [_slots(h) for h in self.holds.values()], "blind": dict(self.blind),
            "auto_rollbacks": {r: list(ts) for r, ts in self.auto_rollbacks.items()},
            "change_n": self.change_n, "hold_n": self.hold_n,
            "windows": self.windows.to_json(),
            "groups": [g.to_json() for g in self.groups.values()], "groups_done": dict(self.groups_done),
            "fence": self.fence, "fleet_seq": self.fleet_seq, "tracked": tracked.to_json(self),
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> State:
        """Raises KeyError, TypeError or ValueError on a snapshot of another version or shape."""
        if data["version"] != SNAPSHOT_VERSION:
            raise ValueError(f"snapshot version {data['version']}")
        state = cls(Settings.from_json(data["settings"]))
        state.seq, state.hash, state.t_ns, state.wall = data["seq"], data["hash"], data["t_ns"], data["wall"]
        state.boot_id, state.offset_ns, state.running = data["boot_id"], data["offset_ns"], data["running"]
        state.not_before_ns = data["not_before_ns"]
        state._declared = {k: v.encode() for k, v in data["declared"].items()}
        for row in data["changes"]:
            change = Change.from_json(row)
            state.changes[change.id] = change
            state.member_of.update(dict.fromkeys(change.members, change.id))
            if change.state == life.OPEN:
                state.open_sum_n += change.sum_n
        state.ambient, state.recent = dict(data["ambient"]), dict(data["recent"])
        state.ttls = {r: Ttl(*row) for r, row in data["ttls"].items()}
        state.boot_owed = data.get("boot_owed")
        state.emergency = None if data["emergency"] is None else Emergency(**data["emergency"])
        state.holds = {row["id"]: Hold(**row) for row in data["holds"]}
        state.blind, state.auto_rollbacks = dict(data["blind"]), dict(data["auto_rollbacks"])
        state.change_n, state.hold_n = data["change_n"], data["hold_n"]
        state.windows.load(data["windows"])
        state.groups, state.groups_done = membership.load(data["groups"]), dict(data["groups_done"])
        state.fence, state.fleet_seq = data["fence"], data["fleet_seq"]
        tracked.load(state, data.get("tracked", {}))
        return state

    def check(self) -> None:
        """Assert what must hold between the parts of the state. Cheap enough for tests and for every start."""
        for resource, cid in self.member_of.items():
            assert resource in self.changes[cid].members, (resource, cid)
            assert resource in self._declared, resource
        for resource, known in self._decoded.items():
            assert known == Declared.from_json(strict.own(self._declared[resource])), resource
        owners = [u.owner["key"] for u in self.untracked.values()]
        assert self.untracked_of == {k: owners.count(k) for k in set(owners)}
        assert self._declared.keys().isdisjoint(self.untracked) and self._declared.keys() >= self.enforced.keys()
        assert sum(len(c.members) for c in self.changes.values()) == len(self.member_of)
        for change in self.changes.values():
            assert change.sum_n == sum(square(m.weight_n, m.deviation_n) for m in change.members.values())
            assert all(m.deviation_n > 0 for m in change.members.values())
        open_sum = sum(c.sum_n for c in self.changes.values() if c.state == life.OPEN)
        assert open_sum == self.open_sum_n, (open_sum, self.open_sum_n)
        for group in self.groups.values():
            assert group.change not in self.changes or self.changes[str(group.change)].group == group.id
        for key, cid in self.ambient.items():
            assert self.changes[cid].owner.key == key and self.changes[cid].state in (life.OPEN, life.HELD)

    def magnitude(self) -> float:
        return magnitude(sum(self.sums().values()))


def compact(value: Any) -> bytes:
    """Canonical JSON in exactly as many bytes as it has: orjson's own result keeps its oversized buffer."""
    return bytes(memoryview(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)))


def recent_key(owner_key: str, resource: str) -> str:
    return f"{owner_key} {resource}"


def _slots(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


_HANDLERS: Final[Mapping[str, Callable[[State, Record], None]]] = {
    "agent_started": State._agent_started,
    "agent_stopped": State._agent_stopped,
    "declared": State._declared_moved,
    "adopted": State._declared_moved,
    "applied": State._applied,
    "drift_detected": State._drift_detected,
    "drift_cleared": State._drift_cleared,
    "window_opened": State._window_opened,
    "window_extended": State._window_extended,
    "window_closing": State._window_closing,
    "committed": State._committed,
    "commit_expired": State._commit_expired,
    "rollback_started": State._rollback_started,
    "rolled_back": State._rolled_back,
    "rollback_blocked": State._rollback_blocked,
    "rollback_failed": State._rollback_failed,
    "converge_started": State._converge_started,
    "converged": State._converged,
    "change_split": State._change_split,
    "emergency_started": State._emergency_started,
    "emergency_stale": State._emergency_stale,
    "emergency_ended": State._emergency_ended,
    "hold_placed": State._hold_placed,
    "hold_released": State._hold_released,
    "observer_blind": State._observer_blind,
    "observer_restored": State._observer_restored,
    "tracked": tracked.folded_tracked,
    "untracked_seen": tracked.folded_seen,
    "untracked_gone": tracked.folded_gone,
    "group_begun": membership.begun,
    "group_prepared": membership.prepared,
    "group_decided": membership.decided,
    "group_finished": membership.finished,
}
