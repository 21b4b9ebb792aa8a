"""The disk under a virtual journal: what is durable, what a refused transaction leaves, and what a start reads.

A start or a reload does not fold the whole journal: as the real agent does, it takes a snapshot and the records after
it. The snapshot is that of the process that was there before, taken when it dies with everything recorded. Every
``CHECK_EVERY``-th time it is compared with the whole journal folded from zero; ``World.check`` does that too, at the
end of every life, so that nothing that went wrong on the way stays unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import orjson

from pact.core.node import fold
from pact.core.node.state import State
from pact.core.records import Record, canonical

CHECK_EVERY: Final = 16


class DiskFull(Exception):
    """The transaction was refused. ``torn``: its frames lie in the log all the same."""

    def __init__(self, records: Sequence[Record], torn: bool) -> None:
        super().__init__(len(records))
        self.records = records
        self.torn = torn


class Disk:
    """See the module. ``records`` is the journal as a reader finds it.

    ``unreadable``: it cannot even be read what is durable. ``tears``: a transaction is refused because its
    sync fails, and stands in the log: a process that is killed then leaves it to the next, which takes it for done.
    ``unknown``: the head, which would say that it was refused, cannot be written either.
    """

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.unreadable = self.tears = self.unknown = False
        self.never: set[str] = set()  # hashes of records that were answered with no
        self._frames: list[Record] = []
        self._snapshot: tuple[int, str, bytes] | None = None
        self._loads = 0

    def append(self, records: Sequence[Record]) -> None:
        """All of them, durable. What a refused transaction left is overwritten."""
        if self.never:
            self.never.difference_update(r.hash for r in records)  # asked again, and done
        self._frames.clear()
        self.records += records

    def refuse(self, records: Sequence[Record]) -> DiskFull:
        self._frames = list(records) if self.tears else []
        return DiskFull(records, self.tears)

    def note_refused(self) -> None:
        """The head says that what the log holds beyond it was refused."""
        if not self.unknown:
            self._frames.clear()

    def killed(self, state: State) -> None:
        """The process is dead; this is what it had in memory. The next one finds what the log holds."""
        if state.seq >= 0 and self.records and state.hash == self.records[-1].hash:
            self._keep(state)
        self.records += self._frames
        self._frames.clear()

    def load(self) -> State:
        """The state that what is durable gives."""
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
    """As it is read from a file: its dictionaries are in another order than they were in memory."""
    return replace(record, data=orjson.loads(canonical(record.data)), payload=None)
