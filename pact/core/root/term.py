"""One term of a leading root: its log, the nodes that it knows, its messages, and time. No socket, no disk.

A ``Commit`` is durable when the shell calls ``durable``; everything that depends on it waits for that.  # K1
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field
from typing import Any, Final, Protocol

from pact.core.node.refusals import Refusals
from pact.core.payload import Payload
from pact.core.root import chunks, payloads
from pact.core.root.chunks import Batch
from pact.core.root.envelope import Asker
from pact.core.root.log import Cursor, RootState, Writer
from pact.core.root.persons import Persons
from pact.core.root.shares import Shares
from pact.core.root.twins import Twins
from pact.core.tree.seals import HASH_CHARS, RootSeals
from pact.core.tree.wire import TO_CLIENTS, Head, Message, NewHead, beside, sections
from pact.errors import UsageError
from pact.limits import ROOT_DENIED_PER_MINUTE, ROOT_DENIED_RESERVED, UNKNOWN_NAMES_MAX
from pact.model import NS_PER_S, Json, JsonRead
from pact.values import dataclass

#: How long a disconnected node may take to come back, under another aggregator or with a new agent, to be asked again.
AWAY_NS: Final = 10 * NS_PER_S
#: A chunk with this many bytes of lines takes no more.
CHUNK_SOFT_BYTES: Final = 512 << 10
#: The most bytes of batches that wait for a chunk. Further batches are dropped; their senders are told to send again.
WAITING_MAX_BYTES: Final = 64 << 20
REWIND_NS: Final = NS_PER_S
DENIED_USERS_MAX: Final = 1000
REFUSED_MAX: Final = 4096  # nodes whose faults are counted one by one in the log
DETAIL_MAX: Final = 200


class NodeSets(Protocol):
    """ClusterShell's node sets, passed in so that the core needs no library."""

    def expand(self, text: str, most: int = ...) -> list[str]:
        """Raises UsageError for a text that is not a node set, or that names more than ``most`` nodes."""

    def fold(self, names: Iterable[str]) -> str: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings for groups from the root's configuration. Times in nanoseconds."""

    wave: int = 2000
    waves_at_once: int = 2
    breaker_share: float = 0.05
    breaker_least: int = 3
    answer_ns: int = 60 * NS_PER_S
    retry_ns: int = 30 * NS_PER_S
    floor_ns: int = 60 * NS_PER_S
    on_busy_retry: bool = False
    share_per_s: int = 10  # events per second of one node, beyond those that it may send at once


@dataclass(frozen=True, slots=True)
class Down:
    """A message to the tree below."""

    kind: str
    head: Head
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Commit:
    first: int
    count: int
    chunk: bytes


@dataclass(frozen=True, slots=True)
class Publish:
    """A durable chunk, for the public side. ``last``: its last number of each type; ``incarnation``: of the log, which
    has none before its first chunk.
    """

    chunk: bytes
    last: Mapping[str, int]
    incarnation: str


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the service's log."""

    text: str


Effect = Down | Commit | Publish | Note


@dataclass(slots=True)
class _Flying:
    first: int
    count: int
    chunk: bytes
    writer: Writer
    then: list[Callable[[], None]]
    acks: dict[str, Cursor]


@dataclass(slots=True)
class Known:
    """A node that is connected below the root."""

    rack: str
    session: int
    since_ns: int


@dataclass(slots=True)
class Counters:
    events: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class Term:
    """Made from the log's state at the election, discarded when the root is deposed. ``Root`` handles the requests."""

    def __init__(
        self,
        name: str,
        state: RootState,
        fence: int,
        sets: NodeSets,
        limits: Limits | None = None,
        seals: RootSeals | None = None,
        secret: bytes = b"",
    ) -> None:
        """``seals``: of this term; ``secret``: random bytes for people's challenges, known to nobody else."""
        self.name = name
        self.seals = seals
        self.persons = Persons(seals, secret) if seals is not None else None
        self.state = state
        self.fence = fence
        self.sets = sets
        self.limits = limits or Limits()
        #: Around work for an earlier request of this person: the shell counts what it takes.  # S8
        self.spending: Callable[[Asker], AbstractContextManager[object]] = lambda asker: nullcontext()
        self.t_ns = state.t_ns
        self.wall_ns = state.wall_ns
        self.nodes: dict[str, Known] = {}
        self.counters = Counters()
        self._effects: list[Effect] = []
        self._waiting: deque[Batch] = deque()
        self._waiting_bytes = 0
        self._own: deque[tuple[Payload, JsonRead, Callable[[], None]]] = deque()
        self._flying: _Flying | None = None
        self._acks: dict[str, Cursor] = {}
        self.rewound: dict[str, int] = {}
        self.behind: dict[str, str] = {}  # node whose records were not taken -> its incarnation
        self.watchers: dict[tuple[str, int], frozenset[str] | None] = {}
        self.fleet_seq = max(0, state.chain.seq)  # a new log has no record yet, but a child may already connect
        self._refusals = Refusals()
        self._denied: tuple[int, dict[str, int]] = (0, {})  # a minute, and how often each user was denied in it
        self.twins = Twins()
        self.shares = Shares(self.limits.share_per_s)
        # The number of a message about holds, and the time that each hold had left then.
        self._whole: tuple[int, dict[str, int]] = (-1, {})
        self.left_ns: dict[str, int] = {}  # recently disconnected node -> when, the earliest first
        self.begun_ns = self.t_ns
        self._said: dict[tuple[str, str], int] = {}  # (who, what was refused) -> how often

    def durable(self, first: int, count: int, t_ns: int, wall_ns: int) -> list[Effect]:
        """The chunk of the last ``Commit`` is in the log."""
        self.at(t_ns, wall_ns)
        flying, self._flying = self._flying, None
        assert flying is not None and (flying.first, flying.count) == (first, count), (first, count)
        chunk = self.state.apply_written(flying.writer)
        self.counters.events += count
        self._emit(Publish(flying.chunk, flying.writer.written[2], self.state.chain.incarnation))
        self._acks.update(flying.acks)
        self._to_watchers(chunk)
        for then in flying.then:
            then()
        return self.flush()

    def actor(self, caller: Asker | None = None) -> Json:
        if caller is None:
            return {"user": "pact", "uid": None, "role": "agent", "via": "timer"}
        return {"user": caller.user, "uid": None, "role": caller.role, "via": "cluster"}

    def record(self, payload: Payload, actor: JsonRead, then: Callable[[], None] | None = None) -> None:
        """Write one of the root's own records; ``then`` is called when it is durable, never before.  # G1"""
        self._own.append((payload, actor, then or _nothing))

    def down(self, kind: str, head: Head, body: bytes = b"") -> None:
        if self.persons is not None and kind in TO_CLIENTS:
            head = self.persons.sealed(kind, head, body)
        self._emit(Down(kind, head, body))

    def note(self, text: str) -> None:
        self._emit(Note(text))

    def refuse(self, what: str, who: str = "", detail: str = "") -> None:
        """Refuse something that no member should send. ``what`` is one of a few fixed texts: a node must not be able to
        make every line different. Refusals are counted, and logged at the first time and at powers of two.  # T13
        """
        self.counters.refused[what] = self.counters.refused.get(what, 0) + 1
        if (who, what) not in self._said and len(self._said) >= REFUSED_MAX:
            who, detail = "others", ""
        count = self._said[who, what] = self._said.get((who, what), 0) + 1
        if count & (count - 1) == 0:
            more = f": {detail[:DETAIL_MAX]!r}" if detail else ""
            self.note(f"refused: {what}{f' of {who}' if who else ''}{more} ({count})")

    def record_denied(self, op: str, why: str, caller: Asker) -> None:
        """Record refusals, but not so many that they fill the log: of one person, and of all together. The next record
        says how many have none. Who is refused once in a while is always on record.  # S3"""
        minute = self.t_ns // (60 * NS_PER_S)
        if minute != self._denied[0]:
            self._denied = (minute, {})
        counts, user = self._denied[1], caller.user
        if user in counts or len(counts) < DENIED_USERS_MAX:
            counts[user] = counts.get(user, 0) + 1
        refusals = self._refusals
        if counts.get(user, 0) > ROOT_DENIED_PER_MINUTE:
            refusals.beyond += 1
            return
        if not refusals.admit(self.t_ns):
            if counts.get(user) != 1 or len(counts) > ROOT_DENIED_RESERVED:
                return
            refusals.beyond -= 1  # it has a record all the same
        self.record(payloads.Denied(request=op, why=why, beyond=refusals.told()), self.actor(caller))

    def tell_refusals(self) -> None:
        """After the last refusal, record how many have no record of their own."""
        refusals = self._refusals
        if refusals.beyond and refusals.next_ns <= self.t_ns and refusals.admit(self.t_ns):
            beyond = refusals.told()
            said = payloads.Denied(request="several", why=f"{beyond} more were refused", beyond=beyond)
            self.record(said, self.actor())

    def fleet(self) -> NewHead:
        """The head of a ``fleet`` message, which ``welcome`` also carries. ``whole_ns``: the time that each hold had
        left when this table was first sent; the seal covers that.
        """
        holds = [{**h, "left_ns": max(0, self.state.holds[h["hold"]].ends_ns - self.t_ns)} for h in self.holds()]
        if self.seals is None:
            return {"fence": self.fence, "seq": self.fleet_seq, "holds": holds}
        if self._whole[0] != self.fleet_seq:
            self._whole = (self.fleet_seq, {})
        for hold in holds:
            hold["whole_ns"] = self._whole[1].setdefault(hold["hold"], hold["left_ns"])
        return {"fence": self.fence, "seq": self.fleet_seq, "holds": holds, "term": self.seals.term}

    def tell_fleet(self, names: Iterable[str]) -> None:
        """Send the holds of the whole fleet to these nodes, sealed for each."""
        head = self.fleet()
        if self.seals is not None:
            head["seals"] = self.seals.fleet(head, names)
        self.down("fleet", head)

    def named(self, text: str) -> list[str]:
        """The nodes that a person names. Raises UsageError; so it does for many more nodes than there are, and for many
        that nobody has heard of: to look each up, and to fold the names of those that are not there, takes time.  # S7
        """
        known, here = self.state.cursors, self.nodes
        names = self.sets.expand(text, max(len(known), len(here)) + UNKNOWN_NAMES_MAX)
        strange = sum(n not in here and n not in known for n in names)
        if strange > UNKNOWN_NAMES_MAX:
            raise UsageError(f"the root has never heard of {strange} of the {len(names)} nodes that are named")
        return names

    def holds(self) -> list[Json]:
        """The holds of the whole fleet, in the form for people and programs."""
        return [{"hold": h.id, "owner": h.user, "reason": h.reason, "ends": h.ends} for h in self.state.holds.values()]

    def take_effects(self) -> list[Effect]:
        """The effects of a call from outside a step."""
        return self.flush()

    def at(self, t_ns: int, wall_ns: int) -> None:
        """Set the time: it passes also while no message comes, and later timeouts count from it."""
        self.t_ns, self.wall_ns = max(self.t_ns, t_ns), wall_ns

    def _emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    def flush(self) -> list[Effect]:
        self._acknowledge()
        if self._flying is None and (self._waiting or self._own):
            self._commit()
            self._acknowledge()  # of records that were in the log already
        if self.behind:
            self._rewind()
        effects, self._effects = self._effects, []
        return effects

    def _acknowledge(self) -> None:
        if self._acks:
            rows = [[n, c.incarnation, c.seq, False] for n, c in self._acks.items()]
            hashes = [c.hash for c in self._acks.values()]
            self._acks = {}
            self._ack(rows, hashes)

    def _ack(self, rows: list[list[Any]], hashes: list[str]) -> None:
        """``hashes``: of these records in the log. A second machine with a node's key and journal sees that its own was
        not taken.  # K2"""
        head: NewHead = {"cursors": rows}
        if self.seals is not None:
            head.update(seals=self.seals.acks(rows), fence=self.seals.fence, term=self.seals.term)
            head["hashes"] = self.seals.hashes(rows, hashes)
        else:
            head["hashes"] = [hash_[:HASH_CHARS] for hash_ in hashes]
        self.down("ack", head)

    def _commit(self) -> None:
        writer = Writer(self.state, self.fence, self.name)
        then = []
        while self._own and writer.size < CHUNK_SOFT_BYTES:
            payload, actor, callback = self._own.popleft()
            writer.record(payload, actor, self.t_ns, self.wall_ns)
            then.append(callback)
        acks: dict[str, Cursor] = {}
        while self._waiting and writer.size < CHUNK_SOFT_BYTES:
            batch = self._waiting.popleft()
            self._waiting_bytes -= sum(map(len, batch.lines))
            self._take(writer, batch, acks)
        if not writer:
            self._acks.update(acks)  # all of it was in the log already
            return
        first, count, chunk = writer.chunk(self.wall_ns)
        self._flying = _Flying(first, count, chunk, writer, then, acks)
        self._emit(Commit(first, count, chunk))

    def _take(self, writer: Writer, batch: Batch, acks: dict[str, Cursor]) -> None:
        try:
            hole = writer.take(batch)
        except ValueError as exc:
            self.refuse("events", batch.node, str(exc))
            self.behind[batch.node] = batch.incarnation
            return
        cursor = writer.cursor(batch.node, batch.incarnation)
        if not hole:
            assert cursor is not None
            acks[batch.node] = cursor
        else:
            self.behind[batch.node] = batch.incarnation

    def _rewind(self) -> None:
        """From time to time, tell the nodes whose records were not taken from where on to send them. Members on the way
        drop the records that they keep, so that these block nothing.  # T5
        """
        rows, hashes = [], []
        for node, incarnation in list(self.behind.items()):
            if self.rewound.get(node, -REWIND_NS) + REWIND_NS <= self.t_ns:
                del self.behind[node]
                self.rewound[node] = self.t_ns
                # Only the durable number: for the node it is an acknowledgement.  # K1
                cursor = self.state.cursor_of(node, incarnation)
                seq = cursor.seq if cursor is not None else -1
                rows.append([node, incarnation, seq, True])
                hashes.append(cursor.hash if cursor is not None else "")
        if rows:
            self._ack(rows, hashes)

    def _events(self, message: Message) -> None:
        seals = beside(message.head["seals"], message.head["batches"]) if self.seals is not None else ()
        for i, (row, body) in enumerate(sections(message, "batches")):
            node, incarnation, first, count, size = row
            if self.seals is not None and not self.seals.events(row, body, seals[i]):
                self.refuse("records without their node's seal", node)
                self.behind[node] = incarnation  # on their way these records block the real ones
                continue
            cursor = self.state.cursor_of(node, incarnation)
            new = first + count - 1 - max(first - 1, cursor.seq if cursor is not None else -1)
            if new > 0 and not self.shares.takes(node, new, size, self.t_ns):
                self.refuse("events over its share (they are not lost, and sent again)", node)
                self.behind[node] = incarnation
                continue
            lines = body.removesuffix(b"\n").split(b"\n") if body else []
            if len(lines) != count or not count:
                self.refuse("a batch whose count is wrong", node)
                self.behind[node] = incarnation
                continue
            if self._waiting_bytes + size > WAITING_MAX_BYTES:
                self.refuse("events beyond the root's buffer, to be sent again,", node)
                continue
            known = self.nodes.get(node)
            self._waiting.append(Batch(node, known.rack if known else "", incarnation, first, lines))
            self._waiting_bytes += sum(map(len, lines))

    def _to_watchers(self, chunk: chunks.Chunk) -> None:
        if not self.watchers:
            return
        for batch in chunk.batches:
            for (client, id_), names in self.watchers.items():
                if names is None or batch.node in names:
                    for line in batch.lines:
                        self.down("event", {"client": client, "id": id_}, line)

    def watch(self, client: str, id_: int, names: Iterable[str] | None) -> None:
        self.watchers[client, id_] = None if names is None else frozenset(names)

    def expected(self, absent: Iterable[str]) -> dict[str, int]:
        """Which of these nodes may come back, until when, the earliest first: nodes that have just disconnected, and
        nodes that a new root knows and has not heard of yet.
        """
        known, begun_ns = self.state, self.begun_ns
        last = {
            n: self.left_ns.get(n, begun_ns if n in known.cursors and n not in known.forgotten else -AWAY_NS)
            for n in absent
        }
        return dict(
            sorted(
                ((n, at_ns + AWAY_NS) for n, at_ns in last.items() if at_ns + AWAY_NS > self.t_ns),
                key=lambda row: row[1],
            )
        )


def _nothing() -> None:
    pass
