"""Contents of the store, for threads other than the journal's own."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Any

from pact.errors import JournalError
from pact.journal.sqlite import connect


class BlobReader:
    """Contents for another thread, through a separate connection."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    def _one(self, sql: str, digest: str) -> Any:
        try:
            if self._db is None:
                self._db = connect(self._path, read_only=True)
            return self._db.execute(sql, (digest,)).fetchone()
        except sqlite3.Error as exc:
            raise JournalError(f"journal: {exc}") from None

    def has(self, digest: str) -> bool:
        """Whether the store has the content. Raises JournalError."""
        return self._one("SELECT 1 FROM blob WHERE digest = ?", digest) is not None

    def __call__(self, digest: str) -> bytes | None:
        row = self._one("SELECT data FROM blob WHERE digest = ?", digest)
        if row is not None and hashlib.sha256(row[0]).hexdigest() != digest:
            # Part of a digest would reveal a short content to anybody who may read the log.  # S2
            raise JournalError(
                f"a content of {len(row[0])} bytes is damaged in the store", "pact journal import an export of it"
            )
        return None if row is None else bytes(row[0])

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
