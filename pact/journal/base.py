"""What a journal must do. ``append`` is the only writer; when it returns, the records survive a power cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from pact.core.records import Record


class Journal(Protocol):
    def append(self, rows: Sequence[tuple[Record, bytes]], blobs: Mapping[str, bytes]) -> None:
        """Write records with their canonical bytes, and contents by SHA-256, in one transaction. Raises
        JournalError."""

    def records(self, first: int = 0) -> Iterator[Record]:
        """From ``first`` on, in order. Raises JournalError."""

    def newest(self, count: int | None, *, since: str = "", type_: str = "") -> Iterator[tuple[bytes, str]]:
        """Canonical bytes and hash, newest first."""

    def get(self, seq: int) -> Record | None: ...

    def blob(self, digest: str) -> bytes | None: ...

    def load_snapshot(self) -> Mapping[str, Any] | None: ...

    def save_snapshot(self, seq: int, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...
