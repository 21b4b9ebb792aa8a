"""Contents of the store, for threads other than the journal's own."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pact.errors import JournalError
from pact.journal.reading import connect

#: How many contents are asked about at once.
ASKED_MAX: Final = 500


class BlobReader:
    """Contents for another thread, through a separate connection."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None

    def _all(self, sql: str, asked: Sequence[str]) -> list[Any]:
        try:
            if self._db is None:
                self._db = connect(self.path, read_only=True)
            return self._db.execute(sql, asked).fetchall()
        except sqlite3.Error as exc:
            raise JournalError(f"journal: {exc}") from None

    def has(self, digest: str) -> bool:
        """Whether the store has the content. Raises JournalError."""
        return bool(self._all("SELECT 1 FROM blob WHERE digest = ?", (digest,)))

    def known(self, digests: Iterable[str]) -> set[str]:
        """Those of these contents that the store has. Raises JournalError."""
        asked, out = list(digests), set[str]()
        for at in range(0, len(asked), ASKED_MAX):
            some = asked[at : at + ASKED_MAX]
            marks = ",".join("?" * len(some))
            out.update(row[0] for row in self._all(f"SELECT digest FROM blob WHERE digest IN ({marks})", some))
        return out

    def __call__(self, digest: str) -> bytes | None:
        rows = self._all("SELECT data FROM blob WHERE digest = ?", (digest,))
        row = rows[0] if rows else None
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
