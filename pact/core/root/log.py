"""The root's log: chunks, and the state that is their fold.  # K1

A chunk holds records of many nodes in the order of their global numbers; one transaction of the store makes it durable.
Its head links to the chunk before it. The root's own records belong to a node named ``_root``, with their own chain, so
that decisions and events have one order and one kind of proof.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from operator import itemgetter
from typing import Any, Final

import orjson

from pact.core import strict
from pact.core.payload import Payload
from pact.core.records import GENESIS, TYPES, Record, parse, rfc3339, seal
from pact.core.root import payloads, shapes
from pact.core.root.chunks import INCARNATION_CHARS, Batch, Chunk, build_chunk, chunk_hash, read_chunk
from pact.core.root.payloads import Terms
from pact.errors import ChainError
from pact.limits import RECORD_MAX
from pact.model import Json, JsonRead, Owner
from pact.values import dataclass

ROOT: Final = "_root"
SNAPSHOT_VERSION: Final = 1
FINISHED_MAX: Final = 2000
EARLIER_MAX: Final = 4
_TYPE: Final = re.compile(r"[a-z_]{1,40}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
HEADS: Final = "heads"
TIME_MAX: Final = 64
TYPES_MAX: Final = 256  # of all nodes: heads name the newest event of each type, every second

ACTIVE: Final = "active"
DECIDED: Final = "decided"
FINISHED: Final = "finished"


@dataclass(frozen=True, slots=True)
class Cursor:
    """Up to which record the log has a node's journal."""

    incarnation: str
    seq: int
    hash: str


_UNBEGUN: Final = Cursor("", -1, GENESIS)


@dataclass(slots=True)
class Group:
    """A change on many nodes, according to its records. ``nodes`` is folded text. Times are the root's node time."""

    id: str
    owner: Owner
    message: str
    nodes: str
    resources: list[str]
    window_ns: int
    begun_ns: int
    begun: str
    require_all: bool = False
    state: str = ACTIVE
    extension_ns: int = 0
    shift_ns: int = 0
    decision: str = ""
    ballot: int = 0
    why: str = ""
    terms: Terms = field(default_factory=Terms)
    decided: str = ""
    outcome: str = ""
    # {state: node set}, if some members ended otherwise than the outcome says
    ended: dict[str, str] = field(default_factory=dict)
    by: Json = field(default_factory=dict)

    def to_json(self) -> Json:
        own = {name: getattr(self, name) for name in self.__slots__ if name != "terms"}
        terms = self.terms.to_json() if self.decision else {}
        return {**own, "owner": self.owner.to_json(), "args": terms}

    @classmethod
    def from_json(cls, row: JsonRead) -> Group:
        """Raises KeyError, TypeError or ValueError."""
        own = dict(row)
        owner, terms = Owner.from_json(own.pop("owner")), Terms.from_json(own.pop("args", {}))
        return cls(owner=owner, terms=terms, **own)

    @property
    def ends_ns(self) -> int:
        return self.begun_ns + self.window_ns + self.extension_ns + self.shift_ns


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold of the whole fleet. ``ends`` and ``placed`` are clock times, for people."""

    id: str
    user: str
    reason: str
    ends_ns: int
    ends: str
    placed: str
    fence: int = 0

    def to_json(self) -> Json:
        """For snapshots, and for subscribers that come late."""
        return {
            "hold": self.id,
            "change": None,
            "owner": {"user": self.user},
            "reason": self.reason,
            "ends_ns": self.ends_ns,
            "ends": self.ends,
            "placed": self.placed,
            "fence": self.fence,
        }

    @classmethod
    def from_json(cls, row: JsonRead) -> Hold:
        return cls(
            row["hold"],
            row["owner"]["user"],
            row["reason"],
            row["ends_ns"],
            row["ends"],
            row["placed"],
            row.get("fence", 0),
        )


class RootState:
    """The fold. Only ``apply``, ``apply_written`` and ``pass_over`` change it."""

    def __init__(self) -> None:
        self.gseq = -1
        self.chunk_hash = GENESIS
        self.last: dict[str, int] = {}
        self.cursors: dict[str, Cursor] = {}
        self.earlier: dict[str, list[tuple[str, int, str]]] = {}  # of a node's earlier incarnations, newest last
        self.groups: dict[str, Group] = {}
        self.group_n = 0
        self.forgotten: dict[str, str] = {}  # node that was taken out of service -> when
        self.holds: dict[str, Hold] = {}
        self.hold_n = 0
        self.held_since_ns = 0
        self.fence = 0
        self.t_ns = 0
        self.wall_ns = 0
        self.boot_id = ""
        self.offset_ns = 0

    @property
    def chain(self) -> Cursor:
        """The cursor of the root's own records."""
        return self.cursors.get(ROOT, _UNBEGUN)

    def cursor_of(self, node: str, incarnation: str) -> Cursor | None:
        """The cursor of this incarnation of the node, even if another incarnation came later: two machines with one
        key, or a machine that was reinstalled and restored, may alternate, and nothing is recorded twice.  # K2
        """
        cursor = self.cursors.get(node)
        if cursor is None or cursor.incarnation == incarnation:
            return cursor
        return next((Cursor(*row) for row in self.earlier.get(node, ()) if row[0] == incarnation), None)

    def _move(self, node: str, cursor: Cursor) -> None:
        old = self.cursors.get(node)
        if old is not None and old.incarnation != cursor.incarnation:
            kept = [row for row in self.earlier.get(node, ()) if row[0] not in (old.incarnation, cursor.incarnation)]
            self.earlier[node] = [*kept, (old.incarnation, old.seq, old.hash)][-EARLIER_MAX:]
        self.cursors[node] = cursor
        self.forgotten.pop(node, None)  # the node is back

    def apply(self, raw: bytes, chunk: Chunk | None = None) -> Chunk:
        """Fold one chunk in; ``chunk``: what its bytes say, if they were read already. Raises ChainError."""
        try:
            chunk = chunk or read_chunk(raw)
        except ValueError as exc:
            raise ChainError(self.gseq + 1, str(exc)) from None
        if chunk.first != self.gseq + 1 or chunk.prev != self.chunk_hash:
            raise ChainError(self.gseq + 1, f"the chunk from {chunk.first} on does not follow")
        gseq = chunk.first
        for batch in chunk.batches:
            hash_ = ""
            for at, line in enumerate(batch.lines):
                try:
                    hash_ = self._apply_line(batch, at, line, gseq)
                except (ValueError, KeyError, TypeError) as exc:
                    raise ChainError(gseq, f"record {batch.first + at} of {batch.node} makes no sense: {exc}") from None
                gseq += 1
            self._move(batch.node, Cursor(batch.incarnation, batch.first + len(batch.lines) - 1, hash_))
        self._folded(chunk, raw)
        return chunk

    def _apply_line(self, batch: Batch, at: int, line: bytes, gseq: int) -> str:
        record = strict.own(line)
        type_, hash_ = record["type"], record["hash"]
        if not type(type_) is type(hash_) is type(record["time"]) is str or record["seq"] != batch.first + at:
            raise ValueError("its type, hash, time or number is none")
        self.last[type_] = gseq
        if batch.node == ROOT:
            self._apply_own(parse(line))
        return str(hash_)

    def apply_written(self, writer: Writer) -> Chunk:
        """The same for a chunk whose lines this process checked when it wrote them: no line is read again."""
        chunk, raw, last = writer.written
        assert (chunk.first, chunk.prev) == (self.gseq + 1, self.chunk_hash), chunk.first
        for batch in chunk.batches:
            if batch.node == ROOT:
                for line in batch.lines:
                    self._apply_own(parse(line))
            cursor = writer.cursor(batch.node, batch.incarnation)
            assert cursor is not None
            self._move(batch.node, cursor)
        self.last.update(last)
        self._folded(chunk, raw)
        return chunk

    def pass_over(self, following: Chunk) -> None:
        """What comes before this chunk is damaged: go on with it.  # F37"""
        self.gseq, self.chunk_hash = following.first - 1, following.prev

    def _folded(self, chunk: Chunk, raw: bytes) -> None:
        self.gseq, self.chunk_hash = chunk.first + chunk.count - 1, chunk_hash(raw)
        self.fence, self.wall_ns = max(self.fence, chunk.fence), chunk.wall_ns

    def _apply_own(self, record: Record) -> None:
        self.t_ns = max(self.t_ns, record.t_ns)
        handler = _HANDLERS.get(record.type)
        if handler is not None:
            handler(self, record, payloads.of(record))

    # -- one a type ---------------------------------------------------------------------------------------------

    def _started(self, record: Record, said: payloads.AgentStarted) -> None:
        self.boot_id, self.offset_ns = said.boot_id, said.offset_ns

    def _begun(self, record: Record, said: payloads.GroupBegun) -> None:
        self.groups[said.group] = Group(
            said.group,
            said.owner,
            said.message,
            said.nodes,
            list(said.resources),
            said.window_ns,
            record.t_ns,
            record.time,
            said.require_all,
        )
        self.group_n = max(self.group_n, int(said.group[1:]))
        finished = [g.id for g in self.groups.values() if g.state == FINISHED]
        for gid in finished[: max(0, len(finished) - FINISHED_MAX)]:
            del self.groups[gid]

    def _decided(self, record: Record, said: payloads.GroupDecided) -> None:
        group = self.groups[said.group]
        if group.state != ACTIVE:  # G1: a group has one decision
            raise ValueError(f"{group.id} is decided already")
        group.state, group.decision, group.ballot = DECIDED, said.decision, said.ballot
        group.why, group.terms, group.decided, group.by = said.why, said.args, record.time, dict(record.actor)

    def _forced(self, record: Record, said: payloads.GroupForced) -> None:
        """Carry out the decision with force, as an act of the person who requested force."""
        group = self.groups.get(said.group)
        if group is not None:
            group.terms, group.by, group.why = replace(group.terms, force=True), dict(record.actor), said.why

    def _finished(self, record: Record, said: payloads.GroupFinished) -> None:
        group = self.groups.pop(said.group, None)
        if group is not None:
            group.state, group.outcome = FINISHED, said.outcome
            group.ended = dict(said.members)
            self.groups[group.id] = group  # moved to the end: groups that finished first are forgotten first

    def _extended(self, record: Record, said: payloads.WindowExtended) -> None:
        group = self.groups.get(said.group)
        if group is None:
            return
        if said.reopened:
            group.begun_ns, group.extension_ns, group.shift_ns = record.t_ns, 0, 0
        group.extension_ns += said.by_ns

    def _node_forgotten(self, record: Record, said: payloads.NodeForgotten) -> None:
        self.forgotten.update(dict.fromkeys(said.nodes, record.time))

    def _hold_placed(self, record: Record, said: payloads.HoldPlaced) -> None:
        if not self.holds:
            self.held_since_ns = record.t_ns
        self.holds[said.hold] = Hold(
            said.hold, said.owner.user, said.reason, said.ends_ns, said.ends, record.time, said.fence
        )
        self.hold_n = max(self.hold_n, int(said.hold[1:]))

    def _hold_released(self, record: Record, said: payloads.HoldReleased) -> None:
        del self.holds[said.hold]
        if not self.holds:
            for group in self.groups.values():
                if group.state == ACTIVE:
                    group.shift_ns += record.t_ns - max(self.held_since_ns, group.begun_ns)

    # -- snapshot -----------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        return orjson.dumps(
            {
                "version": SNAPSHOT_VERSION,
                "gseq": self.gseq,
                "chunk_hash": self.chunk_hash,
                "last": self.last,
                "cursors": {n: [c.incarnation, c.seq, c.hash] for n, c in self.cursors.items()},
                "earlier": self.earlier,
                "forgotten": self.forgotten,
                "groups": [g.to_json() for g in self.groups.values()],
                "group_n": self.group_n,
                "holds": {n: h.to_json() for n, h in self.holds.items()},
                "hold_n": self.hold_n,
                "held_since_ns": self.held_since_ns,
                "fence": self.fence,
                "t_ns": self.t_ns,
                "wall_ns": self.wall_ns,
                "boot_id": self.boot_id,
                "offset_ns": self.offset_ns,
            }
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> RootState:
        """Raises ValueError for a snapshot of another version or shape."""
        data = strict.own(raw)
        if not isinstance(data, dict) or data.pop("version", None) != SNAPSHOT_VERSION:
            raise ValueError("the snapshot has another version")
        shapes.require_snapshot(data)
        state = cls()
        state.cursors = {n: Cursor(*row) for n, row in data.pop("cursors").items()}
        state.groups = {row["id"]: Group.from_json(row) for row in data.pop("groups")}
        state.holds = {n: Hold.from_json(row) for n, row in data.pop("holds", {}).items()}
        for name, value in data.items():
            setattr(state, name, value)
        return state


def load(snapshot: bytes | None, chunks: Iterable[bytes]) -> RootState:
    """The state that the log gives. Raises ChainError if chunks do not follow each other, ValueError for a chunk that
    is malformed."""
    state = RootState() if snapshot is None else RootState.from_bytes(snapshot)
    covered = state.gseq
    for raw in chunks:
        chunk = read_chunk(raw)
        if chunk.first > covered:
            state.apply(raw, chunk)
        elif chunk_hash(raw) != state.chunk_hash:  # covered by the snapshot: only the last covered chunk may come
            raise ChainError(chunk.first, "the chunk is not the last that the snapshot covers")
    return state


_HANDLERS: Final[Mapping[str, Callable[[RootState, Record, Any], None]]] = {
    payloads.AgentStarted.type: RootState._started,
    payloads.GroupBegun.type: RootState._begun,
    payloads.GroupDecided.type: RootState._decided,
    payloads.GroupForced.type: RootState._forced,
    payloads.GroupFinished.type: RootState._finished,
    payloads.WindowExtended.type: RootState._extended,
    payloads.HoldPlaced.type: RootState._hold_placed,
    payloads.HoldReleased.type: RootState._hold_released,
    payloads.NodeForgotten.type: RootState._node_forgotten,
}


class Writer:
    """Builds the next chunk on top of a state: checks batches of nodes, and chains the root's own records.

    The records that it takes are durable only when the chunk is; until then ``state`` does not have them.
    """

    def __init__(self, state: RootState, fence: int, name: str) -> None:
        self.state = state
        self.fence = fence
        self.name = name
        self.size = 0
        self._batches: list[Batch] = []
        self._types: list[str] = []
        self._cursors: dict[tuple[str, str], Cursor] = {}
        self._own: list[bytes] = []
        self._own_types: list[str] = []
        self._chain = state.chain
        self._own_first = self._chain.seq + 1
        self.written: tuple[Chunk, bytes, dict[str, int]]  # with the last number of each type in it; set by ``chunk``

    def __bool__(self) -> bool:
        return bool(self._batches or self._own)

    def _too_many_types(self, type_: str, types: Iterable[str]) -> bool:
        """Whether this is a type of another version of pact, beyond the number of such types that are kept apart. Types
        of this version always have room: no node's records keep out records of other nodes.
        """
        seen = {*self.state.last, *self._types, *types}
        return type_ not in seen and len(seen - TYPES) >= TYPES_MAX

    def cursor(self, node: str, incarnation: str) -> Cursor | None:
        """The cursor, including the records that this chunk has already taken."""
        if node == ROOT:
            return self._chain
        return self._cursors.get((node, incarnation)) or self.state.cursor_of(node, incarnation)

    def take(self, batch: Batch) -> str:
        """Take a batch in. Returns ``""`` if all of it is taken, now or before, and ``"hole"`` if records are missing
        before it. Raises ValueError with the reason for a batch that does not fit its node's chain.  # K2
        """
        if batch.node == ROOT:
            raise ValueError("no node may call itself root")
        known = self.cursor(batch.node, batch.incarnation)
        if known is None:
            if batch.first != 0:
                return "hole"
            known = Cursor(batch.incarnation, -1, GENESIS)
        if batch.first > known.seq + 1:
            return "hole"
        lines = list(batch.lines[known.seq + 1 - batch.first :])
        if batch.first <= known.seq < batch.first + len(batch.lines):
            last = _object(batch.lines[known.seq - batch.first])
            if last["hash"] != known.hash:  # K2
                raise ValueError(f"its record {known.seq} is not that in the log: an older copy was put back")
        if not lines:
            return ""
        seq, hash_, types = known.seq, known.hash, list[str]()
        for line in lines:
            record = _object(line)
            if record["seq"] != seq + 1 or record["prev"] != hash_ or record["node"] != batch.node:
                raise ValueError(f"record {record['seq']} of {record['node']} does not follow {seq} of {batch.node}")
            seq, hash_ = seq + 1, record["hash"]
            type_ = record["type"]
            if type_ not in TYPES and self._too_many_types(type_, types):
                raise ValueError("a type of record that nobody has heard of, beyond what is kept apart")
            types.append(type_)
        if known.seq < 0 and _object(lines[0])["hash"][:INCARNATION_CHARS] != batch.incarnation:
            raise ValueError("its incarnation is not that of its first record")
        self._cursors[batch.node, batch.incarnation] = Cursor(batch.incarnation, seq, hash_)
        self._batches.append(Batch(batch.node, batch.rack, batch.incarnation, known.seq + 1, lines))
        self._types += types
        self.size += sum(map(len, lines))
        return ""

    def record(self, payload: Payload, actor: JsonRead, t_ns: int, wall_ns: int) -> Record:
        """Write one of the root's own records."""
        type_, data = payload.type, payload.to_data()
        record, body = seal(self._chain.seq + 1, self._chain.hash, rfc3339(wall_ns), t_ns, ROOT, type_, actor, data)
        incarnation = self._chain.incarnation or record.hash[:INCARNATION_CHARS]
        self._chain = Cursor(incarnation, record.seq, record.hash)
        line = body[:-1] + b',"hash":"' + record.hash.encode() + b'"}'
        self._own.append(line)
        self._own_types.append(type_)
        self.size += len(line)
        return record

    def chunk(self, wall_ns: int) -> tuple[int, int, bytes]:
        """First number, count and bytes. The root's records come first: their decisions were made before."""
        batches, types = list(self._batches), [*self._own_types, *self._types]
        if self._own:
            batches.insert(0, Batch(ROOT, "", self._chain.incarnation, self._own_first, self._own))
        prevs = {t: self.state.last.get(t, -1) for t in types}
        first, prev = self.state.gseq + 1, self.state.chunk_hash
        raw = build_chunk(first, self.fence, wall_ns, prev, prevs, batches)
        chunk = Chunk(first, len(types), self.fence, wall_ns, prev, prevs, batches)
        self.written = (chunk, raw, {t: first + at for at, t in enumerate(types)})
        return first, len(types), raw


def _object(line: bytes) -> Json:
    try:
        obj = strict.loads_object(line, RECORD_MAX)
    except strict.NotStrictError as exc:
        raise ValueError(f"a line that is no JSON: {exc}") from None
    if not _SHAPE.keys() <= obj.keys():
        raise ValueError("a line that is no record")
    if tuple(map(type, _FIELDS(obj))) != _FIELD_TYPES:
        key = next(k for k, kind in _SHAPE.items() if type(obj[k]) is not kind)
        raise ValueError(f"a record whose {key} has the wrong type")
    type_ = obj["type"]
    if type_ not in TYPES and (not _TYPE.fullmatch(type_) or type_ == HEADS):  # only the root writes heads
        raise ValueError("a record whose type is no word for one")
    if not _HASH.fullmatch(obj["hash"]) or not _HASH.fullmatch(obj["prev"]) or len(obj["time"]) > TIME_MAX:
        raise ValueError("a record whose hash or time is none")
    return obj


_SHAPE: Final[Mapping[str, type]] = {
    "seq": int,
    "prev": str,
    "hash": str,
    "node": str,
    "type": str,
    "time": str,
    "actor": dict,
    "data": dict,
}
_FIELDS: Final = itemgetter(*_SHAPE)
_FIELD_TYPES: Final = tuple(_SHAPE.values())
