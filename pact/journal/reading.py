"""What is read of the journal in a SQLite file: its records, its contents, and the snapshot."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pact.core import strict
from pact.core.records import GENESIS, Record, digest, parse
from pact.errors import ChainError, JournalError
from pact.journal.stored import MISFILED, check_stored

BUSY_TIMEOUT_S: Final = 5.0
PAGE_ROWS: Final = 256
SINCE_ROWS: Final = 1000  # whose times are looked at in one go: clocks are set, so an old record may be the newest
#: In place of a record: a part of the journal was looked through, and had none.
NOTHING_YET: Final = (b"", "")
SEQ_MAX: Final = (1 << 63) - 1


def connect(path: str, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in which each statement is its own transaction. Raises sqlite3.Error."""
    uri = "file:" + "".join(f"%{b:02x}" if b in b"?#%" else chr(b) for b in os.fsencode(path))
    db = sqlite3.connect(
        uri + ("?mode=ro" if read_only else ""),
        uri=True,
        isolation_level=None,
        timeout=BUSY_TIMEOUT_S,
        check_same_thread=False,
    )
    db.execute("PRAGMA cache_size=-1024")
    return db


class Reading:
    """One file of which ``seq`` is the last record that counts. Not thread-safe."""

    path: str
    read_only: bool
    seq: int
    unverified: int  # records that ``load_state`` has left to a check in the background
    _last: int  # a reader shows no record after it
    _db: sqlite3.Connection | None

    @property
    def _open(self) -> sqlite3.Connection:
        assert self._db is not None, "closed"
        return self._db

    def _rows(self, sql: str, args: tuple[Any, ...]) -> Iterator[Any]:
        try:
            for row in self._open.execute(sql, args):  # noqa: UP028  (it would close the cursor after its database)
                yield row
        except sqlite3.Error as exc:
            raise JournalError(f"journal {self.path}: {exc}") from None

    def records(self, first: int = 0) -> Iterator[Record]:
        """Records from ``first`` on, not yet verified. Raises ChainError for a malformed or wrongly filed one."""
        rows = self._rows(
            "SELECT seq, type, time, hash, body FROM record WHERE seq BETWEEN ? AND ? ORDER BY seq",
            (first, self._last if self.read_only else self.seq),
        )
        for seq, type_, time, hash_, body in rows:
            try:
                record = parse(body, hash_)
                whole = digest(record.prev, body) == hash_  # the bytes themselves, not only their meaning  # J3
            except (ValueError, TypeError) as exc:
                raise ChainError(seq, f"is no record ({exc})") from None
            if not whole:
                raise ChainError(seq, "its content does not match its hash")
            if (record.type, record.time) != (type_, time):
                raise ChainError(seq, MISFILED)
            yield record

    def verify_stored(self, last: int, most: int) -> None:
        """Check the chain up to record ``last`` (at most ``most`` records) by the stored bytes, without parsing;
        ``unverified`` is the number of records before those.

        Raises ChainError. Takes two microseconds for each record: for every start whose snapshot saves the fold.
        """
        first = max(0, last + 1 - most)
        prev = GENESIS
        for (hash_,) in self._rows("SELECT hash FROM record WHERE seq = ?", (first - 1,)):
            prev = hash_
        rows = self._rows(
            "SELECT seq, type, time, hash, body FROM record WHERE seq BETWEEN ? AND ? ORDER BY seq", (first, last)
        )
        seq, _ = check_stored(rows, first, prev)
        if seq != last + 1:
            raise ChainError(seq, "is missing")
        self.unverified = first

    def newest(self, count: int | None, *, since: str = "", type_: str = "") -> Iterator[tuple[bytes, str]]:
        before, left = self.seq + 1, self.seq + 1 if count is None else count
        of = "type = ?" if type_ else "'' = ?"  # with "or" in it, the index would not serve
        while left > 0 and before > 0:  # in pages: no reader holds memory, or a transaction, for long
            least, most = max(0, before - SINCE_ROWS) if since else 0, min(left, PAGE_ROWS)
            sql = f"SELECT body, hash, seq FROM record WHERE {of} AND seq BETWEEN ? AND ? AND time >= ?"
            page = list(self._rows(sql + " ORDER BY seq DESC LIMIT ?", (type_, least, before - 1, since, most)))
            yield from ((body, hash_) for body, hash_, _ in page)
            if not page and least > 0:
                yield NOTHING_YET
            before, left = page[-1][2] if len(page) == most else least, left - len(page)

    def bodies(self, first: int, limit: int, type_: str = "") -> Iterator[tuple[str, bytes]]:
        """Hash and canonical bytes of at most ``limit`` records from ``first`` on, of this type if it is not empty."""
        of = "type = ?" if type_ else "'' = ?"
        yield from self._rows(
            f"SELECT hash, body FROM record WHERE {of} AND seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
            (type_, first, self.seq, limit),
        )

    def hash_of(self, seq: int) -> str:
        """The hash of this record as it is stored, "" if there is none. Raises JournalError."""
        for (hash_,) in self._rows("SELECT hash FROM record WHERE seq = ?", (seq,)):
            return str(hash_)
        return ""

    def get(self, seq: int) -> Record | None:
        for hash_, body in self._rows("SELECT hash, body FROM record WHERE seq = ?", (seq,)):
            return parse(body, hash_)
        return None

    def blob(self, digest: str) -> bytes | None:
        for (data,) in self._rows("SELECT data FROM blob WHERE digest = ?", (digest,)):
            return bytes(data)
        return None

    def blobs(self) -> Iterator[tuple[str, bytes]]:
        yield from self._rows("SELECT digest, data FROM blob ORDER BY id", ())

    def load_snapshot(self) -> Mapping[str, Any] | None:
        """The cached fold, if it is whole and belongs to this chain."""
        for seq, hash_, sum_, raw in self._rows("SELECT seq, hash, digest, state FROM snapshot", ()):
            if not isinstance(raw, bytes) or hashlib.sha256(raw).hexdigest() != sum_:
                continue  # a damaged cache: data that can be parsed may still be wrong
            record = self.get(seq)
            if record is not None and record.hash == hash_:
                state: Mapping[str, Any] = strict.own(raw)
                return state
        return None

    def has(self, digest: str) -> bool:
        """Whether this content is stored, as far as it can be read."""
        try:
            return any(True for _ in self._rows("SELECT 1 FROM blob WHERE digest = ?", (digest,)))
        except JournalError:
            return False
