"""The interface of a store of the root's log. ``specs/cluster.md`` defines chunks.

A store keeps bytes in order and decides who may add to them; it never looks inside a chunk. It is used from one thread,
except ``read`` and ``oldest``, which any thread may call. Every call ends within seconds: without a disk or a quorum it
raises.  # Q5
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol, runtime_checkable

from pact.errors import JournalError

#: A larger chunk is a bug of its builder; stores split chunks that their backend cannot take whole.
CHUNK_MAX: Final = 64 << 20
SNAPSHOT_MAX: Final = 256 << 20
TRIM_MAX: Final = 1000


def require_snapshot(snapshot: bytes) -> None:
    """Raises JournalError for a snapshot that is too large to keep; the root goes on, with the chunks since the last
    one."""
    if len(snapshot) > SNAPSHOT_MAX:
        raise JournalError(
            f"the state is {len(snapshot)} bytes, more than the {SNAPSHOT_MAX} that a snapshot may have",
            "settle groups; they are forgotten after a while, and the state shrinks",
        )


@runtime_checkable
class LogStore(Protocol):
    """Raises JournalError if the disk or the quorum is missing, Fenced if another root leads."""

    def campaign(self, name: str) -> int | None:
        """The fence (> 0, larger than every earlier one) if this root leads now, else None; keeps a lease alive."""

    def leading(self) -> bool:
        """Whether this process still has the lease, as far as it knows. True promises nothing: only ``append``
        decides."""

    def load(self) -> tuple[bytes | None, Iterator[bytes]]:
        """The newest snapshot, and the chunks after it. Chunks are fetched during the iteration."""

    def append(self, fence: int, first: int, count: int, chunk: bytes) -> None:
        """Durable on return. After a JournalError the chunk may be written or not; writing the same chunk twice counts
        once.

        Raises Fenced if ``fence`` is not in force, if ``first`` is not the next number, or if another chunk is there.
        """

    def save_snapshot(self, fence: int, gseq: int, snapshot: bytes) -> None:
        """Save the state after event ``gseq``. It replaces the older snapshot, completely or not at all."""

    def read(self, gseq: int) -> Iterator[bytes]:
        """Chunks from the one that holds ``gseq`` on (or from the oldest). Ends early, without a hole, if they are
        trimmed. No bytes stand for a chunk that is damaged."""

    def oldest(self) -> int:
        """The first gseq that is still stored; the next one if there is none."""

    def trim(self, fence: int, before: int) -> None:
        """Delete chunks that lie completely before ``before``, at most TRIM_MAX of them; never beyond the newest
        snapshot."""

    def close(self) -> None:
        """Give up leadership, if any, so that another can have it at once."""
