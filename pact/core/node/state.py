"""The node's state: the data, and the moves of which the fold over the journal consists.  # J2

Only ``fold.apply`` changes it. Data derived for speed (timer wheels, running probes) lives in ``Ledger`` and is rebuilt
from the state. Everything is JSON, so that a snapshot is the state and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

import orjson

from pact.core import strict
from pact.core.node import change as life
from pact.core.node.change import Change, Member
from pact.core.node.closed import Names
from pact.core.node.commands import Command
from pact.core.node.membership import Membership
from pact.core.node.membership import load as load_groups
from pact.core.node.pace import Untracked
from pact.core.node.windows import Windows, magnitude, square, window
from pact.core.payload import Value
from pact.core.records import GENESIS
from pact.core.settings import Settings
from pact.model import DIMENSIONS, NS_PER_S, Attrs, Declared, Json, JsonRead, Owner

HOUR_NS: Final = 3600 * NS_PER_S
#: Causes of rollbacks that nobody has just requested.
AUTOMATIC: Final = ("expired", "retry", "rule")
RECENT_MAX: Final = 20_000
DECODED_MAX: Final = 64
_CLOSED: Final = frozenset({life.BLOCKED, life.FAILED, life.ROLLING, life.SETTLED})  # these states accept no more drift
SNAPSHOT_VERSION: Final = 2


@dataclass(slots=True)
class Ttl:
    """The end of a trial. ``earlier`` is the declared value (JSON, ``None`` if undeclared) that comes back."""

    expires_ns: int
    earlier: Value | None
    owner: Owner
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
    owner: Owner
    reason: str
    placed: str
    placed_ns: int
    ends_ns: int
    ends: str


@dataclass(slots=True)
class Touched:
    """What an ``apply`` moved, for code that keeps derived indexes. Not part of the state. The order is kept and each
    name occurs once: timers that are due at one moment fire in the order of their scheduling, which is the same in
    every run."""

    members: dict[str, None] = field(default_factory=dict)
    changes: dict[str, None] = field(default_factory=dict)
    timers: bool = False

    def __bool__(self) -> bool:
        return bool(self.members or self.changes or self.timers)


#: Stands for the names of all resources that a reboot resets.
ALL: Final = "*"
#: The states of a node as a whole, the gravest first.
STATES: Final = ("emergency", life.FAILED, life.BLOCKED, "drifted", "unconfigured", "committed")


class State:
    """See the module. Any code reads the attributes; only ``fold.apply`` writes them."""

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
        self._decoded: dict[str, Declared] = {}  # cache of the last decoded values: a rollback reads each six times
        self.changes: dict[str, Change] = {}
        self.member_of: dict[str, str] = {}
        self.ambient: dict[str, str] = {}
        self.recent: dict[str, int] = {}
        self.ttls: dict[str, Ttl] = {}
        #: What a reboot reset, with the values after the reset, and is not brought back yet; ALL: that is not known
        #: yet.
        self.boot_owed: dict[str, Attrs | None] | None = None
        #: Who must be told of what a plan is moving, or has moved (``debts``).  # R14
        self.telling: dict[str, list[str]] = {}
        self.emergency: Emergency | None = None
        self.holds: dict[str, Hold] = {}
        self.blind: dict[str, str] = {}
        self.auto_rollbacks: dict[str, list[int]] = {}
        self.change_n = 0
        self.hold_n = 0
        self.open_sum_n = 0
        self._sums: dict[str, int] = {}  # of all drift, by kind
        self.groups: dict[str, Membership] = {}
        self.groups_done: dict[str, str] = {}
        self.fence = 0
        self.fleet_seq = 0
        self.tracked: dict[str, str] = {}  # pattern -> what happens to new things below it
        self.untracked: dict[str, Untracked] = {}
        self.untracked_of: dict[str, int] = {}  # owner -> number of untracked things
        self.commands: dict[int, Command] = {}  # by record: commands of exec whose end is not on record
        self.enforced: dict[str, Owner] = {}  # resource declared absent because it is new -> its owner
        self.closed = Names()  # those of them whose names only administrators see  # S2
        self.windows = Windows(self.settings.floor_ns, self.settings.base_ns)
        self.touched = Touched()
        # Drift, settings, and the window computed from them.
        self._noted: tuple[int, Settings | None, int] = (0, None, 0)

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

    def readers(self, resource: str) -> Sequence[str]:
        """Who is told of the resource, as declared. Plans may have thousands of steps, and few of them are read."""
        if b'"notify"' not in self._declared.get(resource, b""):
            return ()
        declared = self.declared(resource)
        return () if declared is None else declared.notify

    def declared_raw(self, resource: str) -> bytes | None:
        """Canonical JSON of the declared value: small in memory, and equal exactly if the values are equal."""
        return self._declared.get(resource)

    def all_declared_raw(self) -> dict[str, bytes]:
        """Canonical JSON of all declared values, as a copy that later changes do not affect."""
        return dict(self._declared)

    def change_of(self, resource: str) -> Change | None:
        cid = self.member_of.get(resource)
        return None if cid is None else self.changes[cid]

    def held_by(self, change_id: str) -> list[Hold]:
        return [h for h in self.holds.values() if h.change in (None, change_id)]

    @property
    def suspended(self) -> bool:
        """Whether no window runs: observe mode or an emergency.  # P1, E1"""
        return not self.settings.enforce or self.emergency is not None

    def deadline_ns(self, change: Change) -> int | None:
        """When its window ends if nothing else happens; ``None`` while no clock runs for it."""
        if change.state != life.OPEN or self.suspended or not change.members or change.intents or change.group:
            return None  # the root keeps a group's window  # G2
        return max(self.windows.end(change.opening_ns), self.not_before_ns)

    def sums(self) -> dict[str, int]:
        """The full drift (everything unsettled, in any state) by dimension, as exact sums."""
        out = dict.fromkeys(DIMENSIONS, 0)
        for kind, sum_n in self._sums.items():
            out[self.settings.dimension_of(kind)] += sum_n
        return out

    def _add(self, change: Change, resource: str, sum_n: int) -> None:
        kind = resource.partition(":")[0]
        self._sums[kind] = self._sums.get(kind, 0) + sum_n
        if change.state == life.OPEN:
            self.open_sum_n += sum_n

    def overall(self) -> str:
        """The gravest of ``STATES`` that is true now."""
        if self.emergency is not None:
            return "emergency"
        states = {c.state for c in self.changes.values() if c.members}
        for state in (life.FAILED, life.BLOCKED):
            if state in states:
                return state
        if states:
            return "drifted"
        return "committed" if self._declared else "unconfigured"

    # -- its moves: what the fold is made of ---------------------------------------------------------------------

    def note(self, t_ns: int) -> None:
        s, noted, windows = self.settings, self._noted, self.windows
        if noted[0] != self.open_sum_n or noted[1] is not s:  # most records change neither
            shortest_ns = min(s.floor_ns, s.base_ns)  # W3: no window is shorter than the floor or longer than the base
            w_ns = max(shortest_ns, window(self.open_sum_n, s.base_ns, s.sensitivity_n))
            noted = self._noted = (self.open_sum_n, s, w_ns)
        if noted[2] != windows.now_w or windows.past:
            windows.note(t_ns, noted[2])

    def take(self, change: Change, what: str) -> None:
        """Make one transition and keep the sum of open drift right.  # A2"""
        was = change.state
        change.take(what)
        now = change.state
        if now != was:
            if was == life.OPEN:
                self.open_sum_n -= change.sum_n
            elif now == life.OPEN:
                self.open_sum_n += change.sum_n
            self.touched.changes[change.id] = None
        if now in _CLOSED:
            if self.ambient.get(change.owner.whose) == change.id:
                del self.ambient[change.owner.whose]
        elif change.ambient:
            self.ambient.setdefault(change.owner.whose, change.id)
        if now == life.SETTLED:
            self.settle(change)

    def settle(self, change: Change) -> None:
        for resource in list(change.members):
            self.remove(change, resource)
        del self.changes[change.id]
        for hold_id in [h.id for h in self.holds.values() if h.change == change.id]:
            del self.holds[hold_id]
            self.touched.timers = True

    def put(self, change: Change, member: Member) -> None:
        before = change.sum_n
        change.put(member)
        self._add(change, member.resource, change.sum_n - before)
        self.member_of[member.resource] = change.id
        self.touched.members[member.resource] = None

    def remove(self, change: Change, resource: str) -> Member:
        before = change.sum_n
        member = change.drop(resource)
        self._add(change, resource, change.sum_n - before)
        del self.member_of[resource]
        self.touched.members[resource] = None
        return member

    def leave(self, resource: str) -> None:
        """Remove a resource from its change; an emptied change is settled.  # C3"""
        change = self.change_of(resource)
        if change is None:
            return
        if (owed := self.remove(change, resource).owed) and resource in self._declared:
            self.telling[resource] = [*owed, *(n for n in self.telling.get(resource, ()) if n not in owed)]  # R14
        self.take(change, "clear")
        self.settle_if_empty(change)

    def settle_if_empty(self, change: Change) -> None:
        if not change.members and not change.intents and change.state != life.ROLLING:
            self.take(change, "emptied")

    def reopen(self, change: Change, t_ns: int) -> None:
        """Start a new window at ``t_ns``: the members open now, and extensions and stopped time no longer count."""
        change.extension_ns, change.closing = 0, False
        change.held_since_ns = t_ns if change.state == life.HELD else 0
        change.reopen(t_ns)
        self.touched.members.update(dict.fromkeys(change.members))
        self.touched.changes[change.id] = None

    def declare(self, resource: str, value: Any) -> None:
        """Declare a value; ``None`` ends the declaration."""
        self._revise(resource, () if value is None else value.get("notify", ()))
        self._decoded.pop(resource, None)
        self.drop_untracked(resource)
        self.enforced.pop(resource, None)
        self.closed.take_out(resource)
        if value is None:
            self.telling.pop(resource, None)
            self._declared.pop(resource, None)
        else:
            self._declared[resource] = compact(value)

    def _revise(self, resource: str, names: Sequence[str]) -> None:
        """Its declaration is about to name these readers: who is owed is revised.  # R14"""
        change = self.change_of(resource)
        if change is not None and (member := change.members[resource]).owed:
            self.put(change, replace(member, owed=revised(member.owed, self.readers(resource), names)))
        if owed := self.telling.pop(resource, None):
            self.telling |= {resource: left} if (left := revised(owed, self.readers(resource), names)) else {}

    def redeviate(self, resource: str, deviation_n: int) -> None:
        change = self.change_of(resource)
        if change is None:
            return
        old = change.members[resource]
        if deviation_n == 0 and not old.owed:
            self.leave(resource)
            return
        self.put(change, replace(old, deviation_n=max(1, deviation_n)))

    def void_ttl(self, resource: str) -> None:
        if self.ttls.pop(resource, None) is not None:
            self.touched.timers = True

    def new_change(self, cid: str, owner: Owner, *, ambient: bool, t_ns: int) -> Change:
        change = Change(cid, owner, ambient)
        self.changes[cid] = change
        self.change_n = max(self.change_n, int(cid[1:]))
        if ambient:
            self.ambient.setdefault(owner.whose, cid)
        if self.held_by(cid):
            self.take(change, "hold")
            change.held_since_ns = t_ns
        self.touched.changes[cid] = None
        return change

    def forget_enforced(self, resources: Iterable[str]) -> None:
        """Things that were new below an enforced pattern are gone again.  # U2"""
        for resource in resources:
            if resource in self.enforced and resource not in self.member_of:
                self.declare(resource, None)

    def learn(self, reads: Mapping[str, str]) -> None:
        """From now on, compare observations with the kernel's reading of a declared value that it accepted.  # D5"""
        for resource, text in reads.items():
            declared = self.declared(resource)
            if declared is not None and declared.attrs is not None:
                self.declare(resource, replace(declared, attrs={**declared.attrs, "reads": text}).to_json())

    def count_automatic(self, change: Change, resources: list[str], t_ns: int) -> None:
        if change.rolling is None or change.rolling.cause not in AUTOMATIC:
            return
        horizon = t_ns - HOUR_NS
        if len(self.auto_rollbacks) > RECENT_MAX:
            self.auto_rollbacks = {r: ts for r, ts in self.auto_rollbacks.items() if ts[-1] > horizon}
        for resource in resources:
            times = [t for t in self.auto_rollbacks.get(resource, ()) if t > horizon]
            self.auto_rollbacks[resource] = [*times, t_ns]

    def drop_untracked(self, resource: str) -> None:
        """Remove it from the untracked things."""
        before = self.untracked.pop(resource, None)
        if before is not None:
            key = before.owner.key
            self.untracked_of[key] -= 1
            if not self.untracked_of[key]:
                del self.untracked_of[key]

    # -- snapshot -----------------------------------------------------------------------------------------------

    def to_json(self) -> Json:
        """The whole state as JSON values; ``from_json`` returns an equal one."""
        return {
            "version": SNAPSHOT_VERSION,
            "settings": self.settings.to_json(),
            "seq": self.seq,
            "hash": self.hash,
            "t_ns": self.t_ns,
            "wall": self.wall,
            "boot_id": self.boot_id,
            "offset_ns": self.offset_ns,
            "running": self.running,
            "not_before_ns": self.not_before_ns,
            "declared": {k: v.decode() for k, v in self._declared.items()},
            "changes": [c.to_json() for c in self.changes.values()],
            "ambient": dict(self.ambient),
            "recent": dict(self.recent),
            "ttls": {r: [t.expires_ns, t.earlier, t.owner.to_json(), t.seq] for r, t in self.ttls.items()},
            "boot_owed": None if self.boot_owed is None else dict(self.boot_owed),
            **({"telling": dict(self.telling)} if self.telling else {}),
            "emergency": None if self.emergency is None else _slots(self.emergency),
            "holds": [{**_slots(h), "owner": h.owner.to_json()} for h in self.holds.values()],
            "blind": dict(self.blind),
            "auto_rollbacks": {r: list(ts) for r, ts in self.auto_rollbacks.items()},
            "change_n": self.change_n,
            "hold_n": self.hold_n,
            "windows": self.windows.to_json(),
            "groups": [g.to_json() for g in self.groups.values()],
            "groups_done": dict(self.groups_done),
            "fence": self.fence,
            "fleet_seq": self.fleet_seq,
            "tracked": self._tracked_json(),
            **({"commands": [[seq, c.to_json()] for seq, c in self.commands.items()]} if self.commands else {}),
        }

    @classmethod
    def from_json(cls, data: JsonRead) -> State:
        """Raises KeyError, TypeError or ValueError for a snapshot of another version or shape."""
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
            for member in change.members.values():
                state._add(change, member.resource, member.square)
        state.ambient, state.recent = dict(data["ambient"]), dict(data["recent"])
        state.ttls = {
            r: Ttl(expires_ns, earlier, Owner.from_json(owner), seq)
            for r, (expires_ns, earlier, owner, seq) in data["ttls"].items()
        }
        state.boot_owed = data.get("boot_owed")
        telling = data.get("telling", {})  # of older versions: only the resources
        state.telling = {r: list(telling[r] if isinstance(telling, dict) else state.readers(r)) for r in telling}
        state.emergency = None if data["emergency"] is None else Emergency(**data["emergency"])
        state.holds = {row["id"]: Hold(**{**row, "owner": Owner.from_json(row["owner"])}) for row in data["holds"]}
        state.blind, state.auto_rollbacks = dict(data["blind"]), dict(data["auto_rollbacks"])
        state.change_n, state.hold_n = data["change_n"], data["hold_n"]
        state.windows.load(data["windows"])
        state.groups, state.groups_done = load_groups(data["groups"]), dict(data["groups_done"])
        state.fence, state.fleet_seq = data["fence"], data["fleet_seq"]
        state._load_tracked(data.get("tracked", {}))
        state.commands = {seq: Command.from_json(row) for seq, row in data.get("commands", ())}
        return state

    def _tracked_json(self) -> Json:
        """Each owner occurs once. Rows are sorted: a record has one order in memory and another when it is read
        back."""
        owners: dict[str, int] = {}
        rows: list[list[Any]] = []
        table: list[Json] = []
        for resource, u in sorted(self.untracked.items()):
            key = f"{u.owner.whose} {u.owner.session} {u.owner.command} {u.owner.then}"
            if key not in owners:
                owners[key] = len(table)
                table.append(u.owner.to_json())
            rows.append([resource, owners[key], u.seen, u.actual])
        enforced = {r: o.to_json() for r, o in self.enforced.items()}
        closed = {"closed": hidden} if (hidden := sorted(self.closed)) else {}
        return {"patterns": dict(self.tracked), "owners": table, "untracked": rows, "enforced": enforced, **closed}

    def _load_tracked(self, data: JsonRead) -> None:
        self.tracked = dict(data.get("patterns", {}))
        self.enforced = {r: Owner.from_json(o) for r, o in data.get("enforced", {}).items()}
        self.closed = Names(data.get("closed", ()))
        owners = [Owner.from_json(o) for o in data.get("owners", ())]
        for resource, n, seen, actual in data.get("untracked", ()):
            self.untracked[resource] = Untracked(owners[n], seen, actual)
            self.untracked_of[owners[n].key] = self.untracked_of.get(owners[n].key, 0) + 1

    def check(self) -> None:
        """Assert what must hold between the parts of the state. Cheap enough for tests and for every start."""
        for resource, cid in self.member_of.items():
            assert resource in self.changes[cid].members, (resource, cid)
            assert resource in self._declared, resource
        for resource, known in self._decoded.items():
            assert known == _decoded(self._declared[resource]), resource
        owners = [u.owner.key for u in self.untracked.values()]
        assert self.untracked_of == {k: owners.count(k) for k in set(owners)}
        assert self._declared.keys().isdisjoint(self.untracked) and self._declared.keys() >= self.enforced.keys()
        assert self._declared.keys() >= self.telling.keys() and self.enforced.keys() >= set(self.closed)
        assert sum(len(c.members) for c in self.changes.values()) == len(self.member_of)
        for change in self.changes.values():
            assert change.sum_n == sum(square(m.weight_n, m.deviation_n) for m in change.members.values())
            assert all(m.deviation_n > 0 for m in change.members.values())
        open_sum = sum(c.sum_n for c in self.changes.values() if c.state == life.OPEN)
        assert open_sum == self.open_sum_n, (open_sum, self.open_sum_n)
        assert sum(self._sums.values()) == sum(c.sum_n for c in self.changes.values())
        for group in self.groups.values():
            assert group.change not in self.changes or self.changes[str(group.change)].group == group.id
        for key, cid in self.ambient.items():
            assert self.changes[cid].owner.whose == key and self.changes[cid].state in (life.OPEN, life.HELD)

    def magnitude(self) -> float:
        return magnitude(sum(self.sums().values()))


def revised(owed: Sequence[str], before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Who must still be told when the declaration names others than before: who stays (whom only an application named
    is not in either), and who is new. So a name that nobody could be told is put right.  # R14"""
    stay = [n for n in owed if n in now or n not in before]
    return [*stay, *(n for n in now if n not in before and n not in stay)] if owed else []


@lru_cache(maxsize=1024)
def _decoded(raw: bytes) -> Declared:
    """For ``check``, which asks for the same values again and again."""
    return Declared.from_json(strict.own(raw))


def compact(value: Any) -> bytes:
    """Canonical JSON in a buffer of exact size: orjson's own result keeps a larger buffer."""
    return bytes(memoryview(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)))


def recent_key(owner_key: str, resource: str) -> str:
    return f"{owner_key} {resource}"


def _slots(value: Any) -> Json:
    return {name: getattr(value, name) for name in value.__slots__}
