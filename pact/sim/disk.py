"""The disk under a virtual journal: what is durable, what a refused transaction leaves, and what a start reads.

A start or a reload does not fold the whole journal: as the real agent does, it takes a snapshot and the records after
it. The snapshot is that of the previous process, taken when it dies with everything recorded. At every
``CHECK_EVERY``-th load it is compared with the whole journal folded from zero; ``World.check`` does that too, at the
end of every life, so that no error on the way stays unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from pact.core.node import fold
from pact.core.node.state import State
from pact.core.records import Record

CHECK_EVERY: Final = 16


class DiskFull(Exception):
    """The transaction was refused. ``torn``: its frames are in the log all the same."""

    def __init__(self, records: Sequence[Record], torn: bool) -> None:
        super().__init__(len(records))
        self.records = records
        self.torn = torn


class Disk:
    """See the module. ``records`` is the journal as a reader finds it.

    ``unreadable``: not even durable data can be read. ``tears``: a transaction is refused because its sync fails, but
    is in the log: if the process is killed, the next one accepts it. ``unknown``: the head, which would record the
    refusal, cannot be written either.
    """

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.unreadable = self.tears = self.unknown = False
        self.never: set[str] = set()  # hashes of records that were refused
        self._frames: list[Record] = []
        self._snapshot: tuple[int, str, bytes] | None = None
        self._loads = 0

    def append(self, records: Sequence[Record]) -> None:
        """Write all of them durably. Frames of a refused transaction are overwritten."""
        if self.never:
            self.never.difference_update(r.hash for r in records)  # requested again, and done
        self._frames.clear()
        self.records += records

    def refuse(self, records: Sequence[Record]) -> DiskFull:
        self._frames = list(records) if self.tears else []
        return DiskFull(records, self.tears)

    def note_refused(self) -> None:
        """The head records that the log's frames beyond it were refused."""
        if not self.unknown:
            self._frames.clear()

    def killed(self, state: State) -> None:
        """The process is dead; this is its state in memory. The next process finds what the log holds."""
        if state.seq >= 0 and self.records and state.hash == self.records[-1].hash:
            self._keep(state)
        self.records += self._frames
        self._frames.clear()

    def load(self) -> State:
        """The state from the durable data."""
        if self.never:
            assert self.never.isdisjoint(r.hash for r in self.records), "what was answered with no is done"
        state = State()
        if self._snapshot is not None:
            seq, hash_, raw = self._snapshot
            if seq < len(self.records) and self.records[seq].hash == hash_:
                state = State.from_json(orjson.loads(raw))
        for record in self.records[state.seq + 1 :]:
            fold.apply(state, _read(record))
        self._loads += 1
        if self._loads % CHECK_EVERY == 0:
            assert state.to_json() == self.replayed().to_json(), "a snapshot and what came after it are the journal"
        if state.seq >= 0 and (self._snapshot is None or self._snapshot[0] != state.seq):
            self._keep(state)
        return state

    def _keep(self, state: State) -> None:
        if self._snapshot is None or self._snapshot[:2] != (state.seq, state.hash):
            self._snapshot = state.seq, state.hash, orjson.dumps(state.to_json())

    def replayed(self) -> State:
        """The whole journal, folded from zero.  # J2"""
        state = State()
        for record in self.records:
            fold.apply(state, _read(record))
        return state


def _read(record: Record) -> Record:
    """The record as it is read from a file: its dictionaries have another order than in memory."""
    data = orjson.loads(orjson.dumps(record.data, option=orjson.OPT_SORT_KEYS))
    return Record(
        record.seq, record.prev, record.hash, record.time, record.t_ns, record.node, record.type, record.actor, data
    )
