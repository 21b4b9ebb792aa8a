"""A node's records on their way to the root: which are sent, which acknowledged, which must be sent again.

The journal keeps the records, so this keeps only numbers. Records go in order, at most ``credit`` bytes unacknowledged;
an acknowledgement is the root's and cumulative. In doubt, records are sent again: the root skips those that it
has.  # T5

If a root has more of this journal than the node has, an older copy of the journal was restored; if it has another
record under a number, that too, or a second machine has a copy of this journal, and its key. From then on nothing that
the root sends counts as an acknowledgement: what is here and not there is kept. Where the root has not sealed that, it
is so only until the root acknowledges a record that is here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from pact.core.records import Record
from pact.core.tree.checks import BATCH_BYTES_MAX, BATCH_RECORDS_MAX
from pact.core.tree.wire import Head
from pact.model import NS_PER_S

RESEND_NS: Final = 10 * NS_PER_S
RESEND_MAX_NS: Final = 120 * NS_PER_S
LATER_NS: Final = 5 * NS_PER_S
BEGUN_NS: Final = NS_PER_S  # most commands have ended by then, and their end goes with their beginning
# Bytes of events that may share the frame of an answer: an answer must not wait for more.
WITH_ANSWER_MAX: Final = 8 << 10
WITH_ANSWER_RECORDS: Final = 32


class Read(NamedTuple):
    """Read at most ``limit`` records from ``first`` on, as viewers may see them, and give them to ``rows``."""

    first: int
    limit: int


class Up(NamedTuple):
    """A message for the parent."""

    kind: str
    head: Head
    body: bytes = b""


class Outbox:
    """``acked`` is the last record that the root is known to have (-1: none)."""

    def __init__(
        self,
        node: str,
        incarnation: str,
        *,
        newest: int,
        acked: int = -1,
        hash_of: Callable[[int], str | None] = lambda seq: "",
    ) -> None:
        """``hash_of`` the record with a number: "" if that is not kept any more, None if it cannot be read now."""
        self.node = node
        self._hash_of = hash_of
        self.incarnation = incarnation
        self.newest = newest
        self.acked = min(acked, newest)
        self.forked = 0  # the root has records up to this one of a journal of which this one is an older copy
        self.differs = False  # the root has another record under that number, which is also here
        self.proven = True  # the root itself has said so, with its seal; otherwise whoever carries its words may have
        self._next = self.acked + 1
        self._credit = 0
        self._flight: deque[tuple[int, int]] = deque()  # (last record of a batch, bytes)
        self._bytes = 0
        self._progress_ns = 0
        self._patience_ns = RESEND_NS
        self._later_ns: int | None = None  # until when an unsent record may wait for more
        # The record of the last rewind, its time, and the pause before the next one.
        self._rewound: tuple[int, int, int] = (-2, 0, 0)
        self._fence = -1
        self._proving = False

    @property
    def following(self) -> int:
        """The number of the next record to read and send."""
        return self._next

    @property
    def waiting(self) -> int:
        """The number of records that the root is not known to have."""
        return self.newest - self.acked

    def recorded(self, newest: int, t_ns: int = 0, *, wait_ns: int = 0) -> list[Read]:
        """Records up to ``newest`` are durable here. ``wait_ns``: more will follow the new ones; they are sent with
        those, or after this time.
        """
        all_sent = self._next > self.newest
        self.newest = max(self.newest, newest)
        if wait_ns and all_sent and self._credit:
            self._later_ns = t_ns + wait_ns
            return []
        return self.more()

    def welcomed(self, credit: int, t_ns: int) -> list[Read]:
        """A parent has welcomed this node: everything unacknowledged goes to it."""
        self._credit = max(credit, BATCH_BYTES_MAX)
        self._patience_ns = RESEND_NS
        return self._again(t_ns)

    def led(self, fence: int) -> list[Read]:
        """Another root leads, perhaps with a lost or restored log. If nothing is on its way that would show that, send
        the last acknowledged record once more: the root has it, or tells what it lacks.
        """
        if fence <= self._fence or not self._credit:
            return []
        self._fence, self._proving = fence, True  # until the root has told what it has, however often it must be asked
        if self.forked or self._flight or self.acked < 0 or self._next <= self.newest:
            return []
        self._next = self.acked
        return self.more()

    def lost(self) -> None:
        """There is no parent any more."""
        self._credit = 0
        self._later_ns = None

    def _again(self, t_ns: int) -> list[Read]:
        self._next = self.acked if self._proving and self.acked >= 0 else self.acked + 1
        self._flight.clear()
        self._bytes = 0
        self._progress_ns = t_ns
        return self.more()

    def more(self) -> list[Read]:
        """The records to read now, if the credit allows any."""
        if self._bytes >= self._credit or self._next > self.newest:
            return []
        self._later_ns = None
        return [Read(self._next, min(BATCH_RECORDS_MAX, self.newest - self._next + 1))]

    def rows(self, first: int, lines: Sequence[bytes], t_ns: int) -> list[Up | Read]:
        """The records that ``Read`` asked for: as many as the credit allows are sent."""
        if first != self._next or not self._credit:
            return []
        out: list[Up | Read] = []
        at = 0
        while at < len(lines) and self._bytes < self._credit:
            end, size = at, 0
            while end < len(lines) and (end == at or size + len(lines[end]) <= BATCH_BYTES_MAX):
                size += len(lines[end])
                end += 1
            if self._flight and self._bytes + size > self._credit:
                return out
            if not self._flight:
                self._progress_ns = t_ns
            batch = [self.node, self.incarnation, self._next, end - at, size]
            out.append(Up("events", {"batches": [batch]}, b"".join(lines[at:end])))
            self._next += end - at
            self._flight.append((self._next - 1, size))
            self._bytes += size
            at = end
        return [*out, *self.more()] if lines else out

    def acknowledged(
        self, incarnation: str, seq: int, rewind: bool, t_ns: int, hash_: str = "", *, sealed: bool = False
    ) -> list[Read]:
        """The root has everything up to ``seq``; with ``rewind`` it lacks what follows. ``hash_``: the first characters
        of that record's hash there; a root of the last version does not say it. ``sealed``: the root itself says so, as
        far as can be checked here."""
        if incarnation == self.incarnation and seq > self.newest:
            self._apart(max(self.forked, seq), self.differs, sealed)
        elif incarnation == self.incarnation and hash_ and (rewind or seq > self.acked or self.forked):
            here = self._hash_of(seq)
            if here is None:
                return []  # the root says it again
            if here and not here.startswith(hash_):  # K2
                self._apart(seq, True, sealed)
            elif here and self.forked and (not self.proven or (sealed and seq >= self.forked)):
                # Records are chained: the root has these. That it has others was never so, or is so no more.
                self.forked, self.differs, self.proven = 0, False, True
        if incarnation != self.incarnation or self.forked:
            # The records that were written here since differ from the root's records with these numbers.
            return []  # K2
        self._proving = False
        lowered = rewind and seq < self.acked
        # A root that lost its log may ask for the old records again.
        if seq > self.acked or (rewind and seq < self.acked):
            self.acked = seq
            self._progress_ns, self._patience_ns = t_ns, RESEND_NS
        while self._flight and self._flight[0][0] <= seq:
            self._bytes -= self._flight.popleft()[1]
        self._next = max(self._next, self.acked + 1)
        if rewind:
            last, at_ns, pause_ns = self._rewound
            if last != seq:
                pause_ns = NS_PER_S
            elif t_ns - at_ns < pause_ns:
                if lowered:  # a late rewind: the records that it asks for must be sent again, after the pause
                    self._next = seq + 1
                    self._flight.clear()
                    self._bytes = 0
                    self._later_ns = at_ns + pause_ns
                return []
            else:  # the same rewind again: perhaps the root cannot take the record
                pause_ns = min(pause_ns * 2, RESEND_MAX_NS)
            self._rewound = (seq, t_ns, pause_ns)
            return self._again(t_ns)
        return self.more()

    def _apart(self, seq: int, differs: bool, sealed: bool) -> None:
        """The root has another journal than this. What it says itself counts more than what may be another's word."""
        if not self.forked or (sealed and not self.proven):
            self.forked, self.differs, self.proven = seq, differs, sealed
        elif sealed or not self.proven:
            self.forked = max(self.forked, seq)

    def next_wake_ns(self) -> int | None:
        if not self._credit or not self._flight:
            return self._later_ns
        again_ns = self._progress_ns + self._patience_ns
        return again_ns if self._later_ns is None else min(again_ns, self._later_ns)

    def tick(self, t_ns: int) -> list[Read]:
        """Send what waited for more. If nothing was acknowledged for a while, send again, at growing intervals."""
        wake_ns = self.next_wake_ns()
        if wake_ns is None or t_ns < wake_ns:
            return []
        if wake_ns == self._later_ns:
            self._later_ns = None
            return self.more()
        self._patience_ns = min(self._patience_ns * 2, RESEND_MAX_NS)
        return self._again(t_ns)


def with_answer(up: Up) -> bool:
    """Few enough events to share the frame of the answer with which they came: one message instead of two."""
    return up.kind == "events" and len(up.body) <= WITH_ANSWER_MAX


def wait_ns(records: Iterable[Record]) -> int:
    """How long these may wait for more. Yes votes: the root already has each in an answer, and will soon send its
    decision. Commands that have just begun: their ends follow."""
    return min(map(_wait_ns, records), default=0)


def _wait_ns(record: Record) -> int:
    if record.type == "group_prepared":
        return LATER_NS if record.data["vote"] == "yes" else 0
    return BEGUN_NS if record.type == "exec_begun" else 0
