"""New things below tracked patterns.

``adopt`` remembers its patterns. A thing that appears below one later is *untracked*: it is listed with its owner and
has no window. If the pattern is enforced, the thing is drift from ``absent`` instead. A user who makes and removes
files must not fill the journal: new things are recorded for each owner at a pace that slows down, many names in a
record.

Refuses to know what a pattern means: the kinds know, through ``Rules``.  # U1, U2, U3
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from sys import maxsize
from typing import TYPE_CHECKING, Final

from pact.core import ops, strict
from pact.core.node import access, payloads, recording
from pact.core.node.desk import Desk
from pact.core.node.events import Appeared, Asked, Caller, New
from pact.core.node.pace import AT_LAST_MAX, CROWDED_NS, ENFORCED_MAX, GONE, Pace, Untracked
from pact.core.records import PIECE_MAX, in_pieces
from pact.errors import UsageError
from pact.limits import MOVING_BYTES
from pact.model import UNATTRIBUTED, Declared, Owner

if TYPE_CHECKING:
    from pact.core.node.state import State

REPORT: Final = "report"
ENFORCE: Final = "enforce"
IGNORE: Final = "ignore"
MODES: Final = (REPORT, ENFORCE, IGNORE)
#: How many patterns are remembered at most.
PATTERNS_MAX: Final = 1_000
#: How many untracked things are kept one by one, in all and for each owner, so that an owner cannot hide things by
#: filling the table. Further things are only counted.
UNTRACKED_MAX: Final = 20_000
OWNER_MAX: Final = 6_000
ALONE_MAX: Final = 100  # owners that have a record of their own at one time
OTHERS_BYTES: Final = 64 << 10  # of names, in a record of those who are not root: long names put off what others do
CHUNK_BYTES: Final = 128 << 10  # of names: some are four thousand bytes long


# -- patterns -------------------------------------------------------------------------------------------------------


def weight(pattern: str) -> tuple[int, int]:
    """How specific a pattern is: of several that match, the one with the longest literal prefix decides."""
    first = min((pattern.find(c) for c in "*?[" if c in pattern), default=len(pattern))
    return first, len(pattern)


def mode_of(node: Desk, resource: str) -> str:
    """What should happen to this resource if it is undeclared; ``""`` if no pattern matches it."""
    kind = resource.partition(":")[0] + ":"
    best, mode = (-1, -1), ""
    for pattern, how in node.state.tracked.items():
        if pattern.startswith(kind) and weight(pattern) > best and node.rules.matches(pattern, resource):
            best, mode = weight(pattern), how
    return mode


def asked_track(node: Desk, event: Asked[ops.Track]) -> None:
    access.require(event.caller, "admin", "track")
    remember(node, event.request.patterns, event.caller)
    node.reply(event.token, {"tracked": dict(node.state.tracked), "untracked": count(node), "seq": node.state.seq})


def remember(node: Desk, patterns: Mapping[str, str], caller: Caller, forget: Iterable[str] = ()) -> None:
    """Record patterns with what should happen to new things below them; then treat the present things accordingly."""
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
    node.record(payloads.Tracked(patterns=moved, forgotten=forgotten), caller.actor)
    _weigh_again(node)


def _weigh_again(node: Desk) -> None:
    """The patterns changed: untracked things may have to be enforced now, or enforced things only reported."""
    state = node.state
    modes = {r: mode_of(node, r) for r in names(node)}
    for resource, mode in modes.items():
        if mode not in (REPORT, ENFORCE):
            node.pace.drop(resource)
    _record_gone(node, [r for r, m in modes.items() if m not in (REPORT, ENFORCE) and r in state.untracked])
    _enforce(node, [(r, u) for r in modes if modes[r] == ENFORCE and (u := known(node, r)) is not None])
    let_go = [r for r in state.enforced if mode_of(node, r) != ENFORCE and not _is_frozen(state, r)]
    recording.forgotten(node, let_go, "not enforced any more")


def _is_frozen(state: State, resource: str) -> bool:
    change = state.change_of(resource)
    return change is not None and change.state == "rolling_back"


def known(node: Desk, resource: str) -> Untracked | None:
    """What is known of the thing, recorded or not; the newer of the two."""
    return node.pace.waiting.get(resource) or node.state.untracked.get(resource)


def names(node: Desk) -> list[str]:
    state = node.state
    return [*state.untracked, *(r for r in node.pace.waiting if r not in state.untracked and r not in state)]


# -- what the observers saw -----------------------------------------------------------------------------------------


def appeared(node: Desk, event: Appeared) -> None:
    state, pace, seen = node.state, node.pace, node.wall_of(event.t_ns)
    if event.beyond is not None:
        pace.beyond = dict(event.beyond)
    hide = [new for new in event.found if _names_too_much(state, new)]
    if hide:  # the version before told everybody such names
        known_ = {n.resource: Untracked(state.enforced[n.resource], seen, dict(n.actual)) for n in hide}
        for piece in chunked(known_):
            declare_absent(node, {r: known_[r] for r in piece}, "its directory is closed")
    for new in event.found:
        if new.resource in state:
            continue
        mode = mode_of(node, new.resource)
        before = known(node, new.resource)
        pace.leaving.pop(new.resource, None)
        owner = new.owner or UNATTRIBUTED
        if mode not in (REPORT, ENFORCE):
            continue
        if before is None and room(node, owner.key) > 0:
            pace.put(new.resource, Untracked(owner, seen, dict(new.actual)))
        elif before is not None and before.owner.key == UNATTRIBUTED.key != owner.key:  # its owner was named late
            pace.put(new.resource, Untracked(owner, before.seen, dict(new.actual)))
    for resource in event.gone:
        pace.drop(resource)
        if resource in state.untracked:
            pace.leaving[resource] = None
    flush(node)


def _names_too_much(state: State, new: New) -> bool:
    """Whether this enforced thing is in a closed directory, and the journal does not say so.  # S2"""
    return bool(new.actual.get("secret")) and new.resource in state.enforced and new.resource not in state.closed


def room(node: Desk, key: str) -> int:
    """How many more things of this owner may be kept one by one."""
    state, waiting = node.state, node.pace.whose.get(key, ())
    everybody = UNTRACKED_MAX - len(state.untracked) - len(node.pace.waiting)
    return min(everybody, OWNER_MAX - state.untracked_of.get(key, 0) - len(waiting))


def count(node: Desk) -> int:
    """How many things are known: recorded, waiting, or only counted."""
    pace, recorded = node.pace, node.state.untracked
    late = sum(r not in recorded and r not in node.state for r in pace.waiting)
    return len(recorded) + late - sum(r in recorded for r in pace.leaving) + sum(pace.beyond.values())


def shown(node: Desk, resource: str) -> Untracked | None:
    """The thing as people see it; ``None`` if it is not, or no longer, one of those that are listed."""
    state = node.state
    if resource in node.pace.leaving or (resource not in state.untracked and resource in state):
        return None
    return known(node, resource)


def flush(node: Desk, *, everything: bool = False) -> None:
    """Record what is due: the newest things of each owner, then what has gone."""
    pace = node.pace
    if pace.crowded and pace.weighed_ns + CROWDED_NS <= node.t_ns:
        pace.crowded, pace.weighed_ns = False, node.t_ns
        _weigh_again(node)
    waiting = pace.keys()
    due = [key for key in waiting if everything or pace.due_ns(key) <= node.t_ns]
    others = sorted((key for key in due if pace.is_others(key)), key=pace.due_ns)  # who has waited longest, first
    for key in sorted(set(due).difference(others)):
        _flush_some(node, [key], UNTRACKED_MAX if everything else pace.most(key))
    if everything:
        for keys in [others] if len(others) > ALONE_MAX else [[key] for key in others]:
            _flush_some(node, keys, UNTRACKED_MAX)
            pace.others.take(1, node.t_ns)
    # One person may have thousands of user ids: beyond the account of them all, all are in one record.
    elif len(others) <= pace.others.left(node.t_ns):
        for key in others:
            size = _flush_some(node, [key], pace.most(key), OTHERS_BYTES)
            pace.others.take(1 + size // MOVING_BYTES, node.t_ns)
    elif pace.others.admit(node.t_ns):
        pace.others.take(_flush_some(node, others, AT_LAST_MAX, OTHERS_BYTES) // MOVING_BYTES, node.t_ns)


def _flush_some(node: Desk, keys: Sequence[str], most: int, most_bytes: int = maxsize) -> int:
    """Record at most so many of the things that wait, of these owners together. Returns the length of their names."""
    pace, size = node.pace, 0
    if GONE in keys:
        left = list(islice(pace.leaving, most))
        for resource in left:
            del pace.leaving[resource]
        left = [r for r in left if r in node.state.untracked]  # those that were not settled meanwhile
        _record_gone(node, left)
        pace.recorded(GONE, node.t_ns)
    else:
        mine = _shares(pace, keys, most, most_bytes)
        size = sum(map(len, mine))
        for resource in mine:
            pace.drop(resource)
        told = dict.fromkeys(u.owner.key for u in mine.values())
        mine = {r: u for r, u in mine.items() if r not in node.state}
        left = _enforce(node, [(r, u) for r, u in mine.items() if mode_of(node, r) == ENFORCE])
        _record_seen(node, {r: u for r, u in mine.items() if r in left or r not in node.state})
        for key in told:
            pace.recorded(key, node.t_ns)
    return size


def _shares(pace: Pace, keys: Sequence[str], most: int, most_bytes: int) -> dict[str, Untracked]:
    """Some of what waits for these owners: one thing of each in turn, so that who has most leaves room for the others.
    ``most_bytes``: no more, once their names have these."""
    found: dict[str, list[str]] = {key: [] for key in keys}
    turns = deque((mine, iter(pace.whose[key])) for key, mine in found.items())
    while turns and most > 0 and most_bytes > 0:
        mine, names_ = turns.popleft()
        resource = next(names_, None)
        if resource is not None:
            mine.append(resource)
            turns.append((mine, names_))
            most, most_bytes = most - 1, most_bytes - len(resource)
    return {resource: pace.waiting[resource] for mine in found.values() for resource in mine}


def _record_seen(node: Desk, mine: Mapping[str, Untracked]) -> None:
    """Record these things. Owner, session and command belong to each thing."""
    for part in chunked(mine):
        piece = [(r, mine[r]) for r in part]
        owners: list[Owner] = []
        resources = {}
        for resource, untracked in piece:
            if untracked.owner not in owners[-1:]:
                owners.append(untracked.owner)
            resources[resource] = {**untracked.actual, "by": len(owners) - 1}
        node.record(
            payloads.UntrackedSeen(
                owner=owners[0], owners=owners, resources=resources, seen=piece[0][1].seen, count=len(piece)
            )
        )


def chunked(resources: Iterable[str]) -> Iterator[list[str]]:
    """In pieces small enough for a record."""
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


def _record_gone(node: Desk, left: Sequence[str]) -> None:
    for piece in chunked(left):
        closed = [r for r in piece if node.state.untracked[r].actual.get("secret")]
        node.record(
            payloads.UntrackedGone(resources=[r for r in piece if r not in closed], closed=closed, count=len(piece))
        )


# -- enforced -------------------------------------------------------------------------------------------------------


def _enforce(node: Desk, found: Sequence[tuple[str, Untracked]]) -> list[str]:
    """Declare the absence of these things, so that they become drift as soon as they are observed. Returns those for
    which there is no room, or whose owner has had too many.  # U2, U3"""
    pace, taken, left = node.pace, list[tuple[str, Untracked]](), list[str]()
    for resource, untracked in found:
        owner = untracked.owner
        if len(node.state.enforced) + len(taken) < ENFORCED_MAX and pace.affords(owner, node.t_ns) > 0:
            taken.append((resource, untracked))
            pace.spend(owner, node.t_ns)
        else:
            left.append(resource)
    if left and not pace.crowded:
        pace.crowded, pace.weighed_ns = True, node.t_ns
    for piece in in_pieces(taken):
        declare_absent(node, dict(piece), "new below an enforced pattern")
        node.recheck([r for r, _ in piece])
    return left


def declare_absent(node: Desk, found: Mapping[str, Untracked], cause: str) -> None:
    absent = Declared(None).to_json()
    owners = {r: u.owner for r, u in found.items()}
    closed = [r for r, u in found.items() if u.actual.get("secret")]
    node.record(payloads.Declared(resources=dict.fromkeys(owners, absent), enforced=owners, cause=cause, closed=closed))
    for resource in owners:
        node.pace.drop(resource)
        node.pace.leaving.pop(resource, None)
