"""A relay's events on their way up: kept in order until the root has them, sent as far as the parent's credit allows.

Batches are opaque. The batches of each node stay in the order in which they came; an acknowledgement is the root's,
covers everything before it, and is the only thing that removes batches. A new parent gets all that is kept.  # T5
"""

from __future__ import annotations

from collections import deque
from typing import Final

from pact.core.tree.outbox import RESEND_MAX_NS, RESEND_NS, Up
from pact.model import NS_PER_S

GATHER_NS: Final = NS_PER_S // 20
GATHER_BYTES: Final = 16 << 10
FRAME_BYTES: Final = 1 << 20
FRAME_BATCHES: Final = 4096
STREAM_MAX: Final = 2 << 20  # of one node: twice the largest credit, since batches may overlap


class _Batch:
    __slots__ = ("data", "gone", "n", "row", "seal", "sent")

    def __init__(self, n: int, row: list[object], data: bytes, seal: str) -> None:
        self.n = n
        self.row = row
        self.data = data
        self.seal = seal
        self.sent = False
        self.gone = False


class _Stream:
    """The kept batches of one node, without gaps."""

    __slots__ = ("batches", "bytes", "first", "incarnation", "last")

    def __init__(self, incarnation: str, first: int) -> None:
        self.incarnation = incarnation
        self.first = first
        self.batches: deque[tuple[int, _Batch]] = deque()  # (last record, batch)
        self.last = -1
        self.bytes = 0


class Backlog:
    """``limit``: the most bytes that are kept; batches that do not fit are not taken, and their node sends them again.
    ``gather_ns``: after a message to the parent the next one waits this long, or for ``GATHER_BYTES``. A single event
    leaves at once; many in a row become few messages.
    """

    def __init__(self, limit: int, gather_ns: int = 0) -> None:
        self.limit = limit
        self._gather_ns = gather_ns
        self._unsent = 0  # bytes in the queue
        self._sent_ns = -gather_ns
        self.bytes = 0
        self.refused = 0
        self._streams: dict[str, _Stream] = {}
        self._queue: deque[_Batch] = deque()
        self._credit = 0
        self._flight = 0
        self._n = 0
        self._progress_ns = 0
        self._patience_ns = RESEND_NS

    def put(
        self, row: list[object], node: str, incarnation: str, first: int, count: int, data: bytes, seal: str = ""
    ) -> bool:
        """Take one batch from below, with its node's seal. Returns False if it was not kept: kept before, or no
        room."""
        stream = self._streams.get(node)
        last = first + count - 1
        if stream is not None and stream.incarnation != incarnation:  # the node was installed anew
            self.forget(node)
            stream = None
        if stream is not None:
            here = stream.first <= first and last <= stream.last
            if here or first > stream.last + 1:  # a gap: the node sends the missing batches, and this one, again
                return False
            if stream.bytes + len(data) > STREAM_MAX:  # beyond every credit
                self.refused += 1
                return False
        if self.bytes + len(data) > self.limit and self.bytes:
            self.refused += 1
            return False
        if stream is None:
            stream = self._streams[node] = _Stream(incarnation, first)
        self._n += 1
        batch = _Batch(self._n, row, data, seal)
        stream.batches.append((last, batch))
        stream.last = max(stream.last, last)
        stream.bytes += len(data)
        self.bytes += len(data)
        self._queue.append(batch)
        self._unsent += len(data)
        return True

    def acknowledged(self, node: str, incarnation: str, seq: int, rewind: bool, t_ns: int) -> int:
        """The root has this node's records up to ``seq``; after a ``rewind`` the node sends the rest again. Returns the
        number of kept bytes that this frees.
        """
        stream = self._streams.get(node)
        if stream is None or stream.incarnation != incarnation:
            return 0
        before = self.bytes
        if rewind:
            self.forget(node)
            return before - self.bytes
        batches = stream.batches
        while batches and batches[0][0] <= seq:
            stream.first = batches[0][0] + 1
            stream.bytes -= len(batches[0][1].data)
            self._release(batches.popleft()[1])
            self._progress_ns, self._patience_ns = t_ns, RESEND_NS
        if not batches:
            del self._streams[node]
        return before - self.bytes

    def _release(self, batch: _Batch) -> None:
        batch.gone = True
        self.bytes -= len(batch.data)
        if batch.sent:
            self._flight -= len(batch.data)
        else:
            self._unsent -= len(batch.data)
        batch.data = b""

    def forget(self, node: str) -> None:
        """The node is no longer below: it sends missing records through another relay."""
        stream = self._streams.pop(node, None)
        if stream is not None:
            for _, batch in stream.batches:
                self._release(batch)

    def clear(self) -> None:
        for node in list(self._streams):
            self.forget(node)
        self._queue.clear()
        assert not self._unsent, self._unsent

    def welcomed(self, credit: int, t_ns: int) -> None:
        """A parent has welcomed this relay."""
        self._credit = credit
        self._patience_ns = RESEND_NS
        self._again(t_ns)

    def lost(self) -> None:
        self._credit = 0

    def _again(self, t_ns: int) -> None:
        kept = sorted((b for s in self._streams.values() for _, b in s.batches), key=lambda b: b.n)
        for batch in kept:
            batch.sent = False
        self._queue = deque(kept)
        self._unsent = self.bytes
        self._flight = 0
        self._progress_ns = t_ns

    def due_ns(self) -> int | None:
        """When ``flush`` will have something to send."""
        if not self._unsent or self._flight >= self._credit:
            return None
        return 0 if self._unsent >= GATHER_BYTES else self._sent_ns + self._gather_ns

    def flush(self, t_ns: int, *, now: bool = False) -> list[Up]:
        """The messages that are due; ``now``: everything that the credit allows."""
        out: list[Up] = []
        due_ns = self.due_ns()
        if due_ns is None or (due_ns > t_ns and not now):
            return out
        self._sent_ns = t_ns
        queue = self._queue
        while queue and self._flight < self._credit:
            rows: list[list[object]] = []
            seals: list[str] = []
            parts: list[bytes] = []
            size = 0
            while queue and self._flight < self._credit and len(rows) < FRAME_BATCHES:
                batch = queue[0]
                if batch.gone:
                    queue.popleft()
                    continue
                if rows and size + len(batch.data) > FRAME_BYTES:
                    break
                queue.popleft()
                if not self._flight:
                    self._progress_ns = t_ns
                batch.sent = True
                rows.append(batch.row)
                seals.append(batch.seal)
                parts.append(batch.data)
                size += len(batch.data)
                self._flight += len(batch.data)
                self._unsent -= len(batch.data)
            if rows:
                sealed = {"seals": seals} if any(seals) else {}
                out.append(Up("events", {"batches": rows, **sealed}, b"".join(parts)))
        return out

    def next_wake_ns(self) -> int | None:
        return self._progress_ns + self._patience_ns if self._credit and self._flight else None

    def tick(self, t_ns: int) -> None:
        """Nothing was acknowledged for a while: send everything again, at growing intervals."""
        wake_ns = self.next_wake_ns()
        if wake_ns is not None and t_ns >= wake_ns:
            self._patience_ns = min(self._patience_ns * 2, RESEND_MAX_NS)
            self._again(t_ns)
