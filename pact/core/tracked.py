"""What is new below tracked patterns.

``adopt`` remembers its patterns. What appears below one later is *untracked*: it is listed, with who made it, and has
no window. Where the pattern is enforced it is drift from ``absent`` instead. A user who makes and removes files must
fill no journal: what is new is recorded for each owner at a pace that slackens, many names in a record.

Refuses to know what a pattern means: the kinds do, through ``Rules``.  # U1, U2, U3
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from pact.core import access, strict
from pact.core.events import Appeared, Asked, Caller
from pact.core.records import PIECE_MAX, Record, in_pieces
from pact.errors import UsageError
from pact.model import NS_PER_S, UNATTRIBUTED, Declared

if TYPE_CHECKING:
    from pact.core.node import Node
    from pact.core.state import State

REPORT: Final = "report"
ENFORCE: Final = "enforce"
IGNORE: Final = "ignore"
MODES: Final = (REPORT, ENFORCE, IGNORE)
#: Patterns that are remembered at most.
PATTERNS_MAX: Final = 1_000
#: Untracked things that are kept one by one, in all and of one owner, so that nobody hides his among another's. Beyond
#: it they are counted.
UNTRACKED_MAX: Final = 20_000
OWNER_MAX: Final = 6_000
#: Enforced things that are drift at the same time; beyond it they are only reported.
ENFORCED_MAX: Final = 1_000
#: Names in one record, and of one owner at one time.
AT_ONCE_MAX: Final = 1_000
AT_LAST_MAX: Final = 100  # where it goes on and on
CHUNK_BYTES: Final = 128 << 10  # of names: some have four thousand bytes
#: One owner's next record comes at the soonest so long after his last one, and later and later while it goes on.
PAUSE_NS: Final = NS_PER_S // 2
PAUSE_LONG_NS: Final = 8 * NS_PER_S
PAUSE_MAX_NS: Final = 30 * NS_PER_S
PACES_MAX: Final = 1_000
#: So many things of one owner become drift for being new, one more after each of these times.
ENFORCED_EACH_NS: Final = 3 * NS_PER_S
#: What waits for room to be enforced is weighed again so often.
CROWDED_NS: Final = 15 * NS_PER_S
#: The key under which departures are paced: nobody's.
GONE: Final = ""


@dataclass(slots=True)
class Untracked:
    """One untracked thing: who made it, when it was first seen, and what it is, in short."""

    owner: dict[str, Any]
    seen: str
    actual: dict[str, Any]


@dataclass(slots=True)
class Pace:
    """What waits to be recorded, and until when. Ephemeral: a restart finds it again by looking."""

    waiting: dict[str, Untracked] = field(default_factory=dict)
    whose: dict[str, dict[str, None]] = field(default_factory=dict)  # owner -> what waits of his
    leaving: dict[str, None] = field(default_factory=dict)
    last: dict[str, tuple[int, int]] = field(default_factory=dict)  # owner -> (recorded at, pause after it)
    beyond: dict[str, int] = field(default_factory=dict)  # not kept one by one -> how many in a directory
    folded: tuple[Any, list[Any]] = ((), [])  # the places that were told last, and what they were made of
    spent: dict[str, int] = field(default_factory=dict)  # owner -> when all of his enforced things are paid for
    weighed_ns: int = 0
    crowded: bool = False  # something is to be enforced, and waits until there is room

    def __bool__(self) -> bool:
        return bool(self.waiting or self.leaving or self.crowded)

    def put(self, resource: str, untracked: Untracked) -> None:
        self.drop(resource)
        self.waiting[resource] = untracked
        self.whose.setdefault(untracked.owner["key"], {})[resource] = None

    def drop(self, resource: str) -> None:
        before = self.waiting.pop(resource, None)
        if before is not None:
            key = before.owner["key"]
            del self.whose[key][resource]
            if not self.whose[key]:
                del self.whose[key]

    def keys(self) -> list[str]:
        return [*self.whose, *([GONE] if self.leaving else [])]

    def most(self, key: str) -> int:
        """How many names of this owner's may be recorded at one time."""
        return AT_ONCE_MAX if self.last.get(key, (0, 0))[1] < PAUSE_LONG_NS else AT_LAST_MAX

    def due_ns(self, key: str) -> int:
        return sum(self.last.get(key, (0, 0)))

    def next_ns(self) -> int | None:
        dues = [*map(self.due_ns, self.keys()), *([self.weighed_ns + CROWDED_NS] if self.crowded else [])]
        return min(dues, default=None)

    def affords(self, key: str, now_ns: int) -> int:
        """How many more of this owner's things may become drift now."""
        return (ENFORCED_MAX * ENFORCED_EACH_NS - max(0, self.spent.get(key, 0) - now_ns)) // ENFORCED_EACH_NS

    def spend(self, key: str, count: int, now_ns: int) -> None:
        self.spent[key] = max(self.spent.get(key, 0), now_ns) + count * ENFORCED_EACH_NS
        if len(self.spent) > PACES_MAX:
            self.spent = {k: t for k, t in self.spent.items() if t > now_ns}

    def recorded(self, key: str, now_ns: int) -> None:
        last_ns, pause_ns = self.last.get(key, (0, 0))
        goes_on = pause_ns and now_ns - last_ns < 4 * pause_ns
        self.last[key] = (now_ns, min(2 * pause_ns, PAUSE_MAX_NS) if goes_on else PAUSE_NS)
        if len(self.last) > PACES_MAX:
            self.last = {k: (t, p) for k, (t, p) in self.last.items() if now_ns - t < 4 * p}


# -- patterns -------------------------------------------------------------------------------------------------------


def weight(pattern: str) -> tuple[int, int]:
    """How much a pattern says: of several that match, the one with the longest beginning that is a name decides."""
    first = min((pattern.find(c) for c in "*?[" if c in pattern), default=len(pattern))
    return first, len(pattern)


def mode_of(node: Node, resource: str) -> str:
    """What is to become of this, if nobody has declared it; ``""`` where no pattern means it."""
    kind = resource.partition(":")[0] + ":"
    best, mode = (-1, -1), ""
    for pattern, how in node.state.tracked.items():
        if pattern.startswith(kind) and weight(pattern) > best and node.rules.matches(pattern, resource):
            best, mode = weight(pattern), how
    return mode


def asked_track(node: Node, event: Asked) -> None:
    """``args``: patterns {pattern: mode}."""
    access.require(event.caller, "admin", "track")
    remember(node, event.args["patterns"], event.caller)
    node.reply(event.token, {"tracked": dict(node.state.tracked), "untracked": count(node), "seq": node.state.seq})


def remember(node: Node, patterns: Mapping[str, str], caller: Caller, forget: Iterable[str] = ()) -> None:
    """Record patterns and what is to become of what is new below them; then what that means for what is there."""
    state = node.state
    for pattern, mode in patterns.items():
        if mode not in MODES:
            raise UsageError(f"{pattern}: {strict.shown(mode)} is none of {', '.join(MODES)}")
    moved = {p: m for p, m in patterns.items() if state.tracked.get(p) != m}
    forgotten = [p for p in forget if p in state.tracked and p not in patterns]
    if len(state.tracked.keys() | moved.keys()) - len(forgotten) > PATTERNS_MAX:
        raise UsageError(f"at most {PATTERNS_MAX} patterns are tracked", "forget some: pact declare --prune")
    if not moved and not forgotten:
        return
    node.record("tracked", {"patterns": moved, "forgotten": forgotten}, caller.actor)
    _weigh_again(node)


def _weigh_again(node: Node) -> None:
    """The patterns moved: what is untracked may be enforced now, or no more; and the other way round."""
    state = node.state
    modes = {r: mode_of(node, r) for r in names(node)}
    for resource, mode in modes.items():
        if mode not in (REPORT, ENFORCE):
            node.pace.drop(resource)
    _record_gone(node, [r for r, m in modes.items() if m not in (REPORT, ENFORCE) and r in state.untracked])
    _enforce(node, [(r, u) for r in modes if modes[r] == ENFORCE and (u := known(node, r)) is not None])
    let_go = [r for r in state.enforced if mode_of(node, r) != ENFORCE and not _is_frozen(state, r)]
    for piece in in_pieces(let_go):
        node.record("declared", {"resources": {}, "forgotten": piece, "cause": "not enforced any more"})


def _is_frozen(state: State, resource: str) -> bool:
    change = state.change_of(resource)
    return change is not None and change.state == "rolling_back"


def known(node: Node, resource: str) -> Untracked | None:
    """What is known of it, recorded or not yet; of two, what is newer."""
    return node.pace.waiting.get(resource) or node.state.untracked.get(resource)


def names(node: Node) -> list[str]:
    state = node.state
    return [*state.untracked, *(r for r in node.pace.waiting if r not in state.untracked and r not in state)]


# -- what the observers saw -----------------------------------------------------------------------------------------


def appeared(node: Node, event: Appeared) -> None:
    state, pace, seen = node.state, node.pace, node.wall_of(event.t_ns)
    if event.beyond is not None:
        pace.beyond = dict(event.beyond)
    for new in event.found:
        if new.resource in state:
            continue
        mode = mode_of(node, new.resource)
        before = known(node, new.resource)
        pace.leaving.pop(new.resource, None)
        owner = (new.owner or UNATTRIBUTED).to_json()
        if mode not in (REPORT, ENFORCE):
            continue
        if before is None and room(node, owner["key"]) > 0:
            pace.put(new.resource, Untracked(owner, seen, dict(new.actual)))
        elif before is not None and before.owner["key"] == UNATTRIBUTED.key != owner["key"]:  # named late
            pace.put(new.resource, Untracked(owner, before.seen, dict(new.actual)))
    for resource in event.gone:
        pace.drop(resource)
        if resource in state.untracked:
            pace.leaving[resource] = None
    flush(node)


def room(node: Node, key: str) -> int:
    """How many more of this owner's are kept one by one."""
    state, waiting = node.state, node.pace.whose.get(key, ())
    everybody = UNTRACKED_MAX - len(state.untracked) - len(node.pace.waiting)
    return min(everybody, OWNER_MAX - state.untracked_of.get(key, 0) - len(waiting))


def count(node: Node) -> int:
    """How many are known: recorded, not yet, or only counted."""
    pace, recorded = node.pace, node.state.untracked
    late = sum(r not in recorded and r not in node.state for r in pace.waiting)
    return len(recorded) + late - sum(r in recorded for r in pace.leaving) + sum(pace.beyond.values())


def listed(node: Node) -> Iterator[tuple[str, Untracked]]:
    for resource in sorted(names(node)):
        if resource not in node.pace.leaving:
            yield resource, node.pace.waiting.get(resource) or node.state.untracked[resource]


def flush(node: Node, *, everything: bool = False) -> None:
    """Record what is due: each owner's newest things, then what has gone."""
    pace = node.pace
    if pace.crowded and pace.weighed_ns + CROWDED_NS <= node.t_ns:
        pace.crowded, pace.weighed_ns = False, node.t_ns
        _weigh_again(node)
    for key in sorted(pace.keys()):
        if not everything and pace.due_ns(key) > node.t_ns:
            continue
        most = UNTRACKED_MAX if everything else pace.most(key)
        if key == GONE:
            left = list(islice(pace.leaving, most))
            for resource in left:
                del pace.leaving[resource]
            left = [r for r in left if r in node.state.untracked]  # not settled meanwhile
            _record_gone(node, left)
        else:
            mine = {r: pace.waiting[r] for r in islice(pace.whose[key], most)}
            for resource in mine:
                pace.drop(resource)
            mine = {r: u for r, u in mine.items() if r not in node.state}
            left = _enforce(node, [(r, u) for r, u in mine.items() if mode_of(node, r) == ENFORCE])
            _record_seen(node, {r: u for r, u in mine.items() if r in left or r not in node.state})
        pace.recorded(key, node.t_ns)


def _record_seen(node: Node, mine: Mapping[str, Untracked]) -> None:
    """Those of one owner. The session and command are each one's own."""
    for part in chunked(mine):
        piece = [(r, mine[r]) for r in part]
        owners: list[dict[str, Any]] = []
        resources = {}
        for resource, untracked in piece:
            if untracked.owner not in owners[-1:]:
                owners.append(untracked.owner)
            resources[resource] = {**untracked.actual, "by": len(owners) - 1}
        node.record("untracked_seen", {"owner": owners[0], "owners": owners, "resources": resources,
                                       "seen": piece[0][1].seen, "count": len(piece)})  # fmt: skip


def chunked(resources: Iterable[str]) -> Iterator[list[str]]:
    """In pieces that make no record too large."""
    piece: list[str] = []
    size = 0
    for resource in resources:
        if piece and (len(piece) >= PIECE_MAX or size + len(resource) > CHUNK_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(resource)
        size += len(resource)
    if piece:
        yield piece


def _record_gone(node: Node, left: Sequence[str]) -> None:
    for piece in chunked(left):
        closed = [r for r in piece if node.state.untracked[r].actual.get("secret")]
        node.record("untracked_gone", {"resources": [r for r in piece if r not in closed], "closed": closed,
                                       "count": len(piece)})  # fmt: skip


# -- enforced -------------------------------------------------------------------------------------------------------


def _enforce(node: Node, found: Sequence[tuple[str, Untracked]]) -> list[str]:
    """What was there before, nothing, is declared; so what is there is drift, as soon as it was looked at. Returns
    those for which there is no room, or too many of their owner's were before.  # U2, U3"""
    pace, taken, left = node.pace, list[tuple[str, Untracked]](), list[str]()
    for resource, untracked in found:
        key = untracked.owner["key"]
        if len(node.state.enforced) + len(taken) < ENFORCED_MAX and pace.affords(key, node.t_ns) > 0:
            taken.append((resource, untracked))
            pace.spend(key, 1, node.t_ns)
        else:
            left.append(resource)
    if left and not pace.crowded:
        pace.crowded, pace.weighed_ns = True, node.t_ns
    for piece in in_pieces(taken):
        declare_absent(node, {r: u.owner for r, u in piece}, "new below an enforced pattern")
        node.recheck([r for r, _ in piece])
    return left


def declare_absent(node: Node, owners: Mapping[str, dict[str, Any]], cause: str) -> None:
    absent = Declared(None).to_json()
    node.record("declared", {"resources": dict.fromkeys(owners, absent), "enforced": dict(owners), "cause": cause})
    for resource in owners:
        node.pace.drop(resource)
        node.pace.leaving.pop(resource, None)


def conforms(node: Node, resource: str) -> None:
    """It was enforced and is not there: nothing of it need be known."""
    node.record("declared", {"resources": {}, "forgotten": [resource], "cause": "it is gone"})


# -- the fold -------------------------------------------------------------------------------------------------------


def folded_tracked(state: State, record: Record) -> None:
    state.tracked.update(record.data["patterns"])
    for pattern in record.data["forgotten"]:
        state.tracked.pop(pattern, None)


def folded_seen(state: State, record: Record) -> None:
    data = record.data
    for resource, row in data["resources"].items():
        before = state.untracked.get(resource)
        actual, owner = {k: v for k, v in row.items() if k != "by"}, data["owners"][row["by"]]
        drop(state, resource)
        state.untracked_of[owner["key"]] = state.untracked_of.get(owner["key"], 0) + 1
        state.untracked[resource] = Untracked(owner, before.seen if before else data["seen"], actual)


def folded_gone(state: State, record: Record) -> None:
    for resource in (*record.data["resources"], *record.data["closed"]):
        drop(state, resource)


def drop(state: State, resource: str) -> None:
    """It is untracked no more."""
    before = state.untracked.pop(resource, None)
    if before is not None:
        key = before.owner["key"]
        state.untracked_of[key] -= 1
        if not state.untracked_of[key]:
            del state.untracked_of[key]


def to_json(state: State) -> dict[str, Any]:
    """Owners stand once each. Sorted: a record has one order in memory, and another when it is read back."""
    owners: dict[str, int] = {}
    rows: list[list[Any]] = []
    table: list[dict[str, Any]] = []
    for resource, u in sorted(state.untracked.items()):
        key = f"{u.owner['key']} {u.owner['session']} {u.owner['command']}"
        if key not in owners:
            owners[key] = len(table)
            table.append(u.owner)
        rows.append([resource, owners[key], u.seen, u.actual])
    return {"patterns": dict(state.tracked), "owners": table, "untracked": rows, "enforced": dict(state.enforced)}


def load(state: State, data: Mapping[str, Any]) -> None:
    state.tracked = dict(data.get("patterns", {}))
    state.enforced = dict(data.get("enforced", {}))
    owners = data.get("owners", [])
    for resource, n, seen, actual in data.get("untracked", ()):
        state.untracked[resource] = Untracked(owners[n], seen, actual)
        state.untracked_of[owners[n]["key"]] = state.untracked_of.get(owners[n]["key"], 0) + 1
