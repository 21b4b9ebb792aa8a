"""The journal in one SQLite file: WAL, ``synchronous=FULL``, a hash chain, a gapless sequence.  # J1, J3

Records are stored as their canonical bytes, so that the verified bytes are the written ones. Each content is stored
once, by digest. A snapshot is a cache of the fold; deleting it loses nothing. The newest record's number is also kept
separately (``head.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final

import orjson

from pact.core.node import fold
from pact.core.node.state import State
from pact.core.records import GENESIS, Record, verify
from pact.errors import ChainError, JournalError, StoreFullError
from pact.journal.files import file_of, require_file
from pact.journal.head import Head, HeadFile, head_path, read_head
from pact.journal.reading import SEQ_MAX, Reading, connect
from pact.journal.stored import check_stored
from pact.journal.walindex import WalIndex

FILE_NAME: Final = "journal.db"
APPLICATION_ID: Final = 0x70616374  # "pact"
SCHEMA_VERSION: Final = 1
VERIFY_MAX: Final = 200_000
ALIVE_EVERY: Final = 1000  # records
KEPT_LOG: Final = "-wal.kept"
LOST_HINT: Final = "keep the files; put a backup of the whole state directory back, or pact journal accept-loss -m WHY"
DISTRUST_HINT: Final = (
    "nothing was changed; pact journal verify names the record; import an export, or the backup "
    "that you trust, into a new state directory"
)
SCHEMA: Final = """
CREATE TABLE record (seq INTEGER PRIMARY KEY, type TEXT NOT NULL, time TEXT NOT NULL, hash TEXT NOT NULL,
                     body BLOB NOT NULL);
CREATE INDEX record_type ON record (type, seq);
CREATE TABLE blob (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL,
                       digest TEXT NOT NULL, state BLOB NOT NULL);
CREATE TABLE probe (id INTEGER PRIMARY KEY CHECK (id = 1), data BLOB NOT NULL);
"""


class SqliteJournal(Reading):
    """One file. Not thread-safe; a thread that needs contents opens a ``BlobReader``."""

    def __init__(
        self, path: str, *, read_only: bool = False, store_limit: int | None = None, guard: bool = False
    ) -> None:
        """Open or create; ``guard``: protect SQLite's index even for a reader, which may be the only process that has
        it open. Raises JournalError if that fails or the file is something else.
        """
        self.path = path
        self.read_only = read_only
        self.store_limit = store_limit
        self.unverified = 0  # records that ``load_state`` has left to a check in the background
        self._distrusted: JournalError | None = None
        self._last = SEQ_MAX  # a reader shows no record after it
        self._surplus = False  # records after ``seq`` that were never acknowledged, and could not be removed
        self._head: HeadFile | None = None
        self._index: WalIndex | None = None
        self.alive: Callable[[], None] = lambda: None  # called again and again while the journal is read whole
        self._db: sqlite3.Connection | None = None
        try:
            if not read_only:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            if not read_only or (guard and os.path.exists(path)):
                self._index = WalIndex(path)
            self._db = db = connect(path, read_only=read_only)
            self._file = file_of(path)
            if not read_only:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
                db.execute("PRAGMA journal_size_limit=16777216")
            self._check_or_create(db)
            row = db.execute("SELECT seq, hash FROM record ORDER BY seq DESC LIMIT 1").fetchone()
            self._stored = db.execute("SELECT coalesce(sum(size), 0) FROM blob").fetchone()[0]
        except (sqlite3.Error, OSError) as exc:
            self.close(failed=True)
            hint = "check the disk, its space and the file's permissions"
            raise JournalError(f"journal {path}: {exc}", hint) from None
        except BaseException:
            self.close(failed=True)
            raise
        self.seq: int = row[0] if row else -1
        self.hash: str = row[1] if row else GENESIS
        self._void_refused()

    def _check_or_create(self, db: sqlite3.Connection) -> None:
        (app,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if app == 0 and tables == 0 and not self.read_only:
            db.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA.split(";"):
                if statement.strip():
                    db.execute(statement)
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            db.execute("COMMIT")
        elif app != APPLICATION_ID:
            raise JournalError(f"{self.path} is not a pact journal")
        elif version != SCHEMA_VERSION:
            raise JournalError(f"{self.path} has schema {version}; this version of pact reads {SCHEMA_VERSION}")

    # -- the head ---------------------------------------------------------------------------------------------------

    def require_head(self) -> None:
        """Check that the journal holds the newest acknowledged record. Raises ChainError if it does not, JournalError
        for a damaged head.  # J6
        """
        head = read_head(head_path(self.path)) if self._head is None else self._head.head
        if head is None:
            return  # an older version wrote this journal, or it is new
        last = self.seq
        if self.read_only and self._last == SEQ_MAX:  # an agent may be writing: a record is there before its head
            for (seq,) in self._rows("SELECT coalesce(max(seq), -1) FROM record", ()):
                last = seq
        if head.seq > last:
            self._keep_log()
            raise ChainError(
                last + 1,
                f"is missing: the journal ends before it, and {head_path(self.path)} says "
                f"that record {head.seq} was acknowledged",
                LOST_HINT,
            )
        for (hash_,) in self._rows("SELECT hash FROM record WHERE seq = ?", (head.seq,)):
            if hash_ != head.hash:
                raise ChainError(head.seq, "is another one than was acknowledged under this number", LOST_HINT)
        if head.bad is not None and self.trusted:  # otherwise this run itself has found it, and goes on watching
            self._require_one(head.bad)

    def _keep_log(self) -> None:
        """SQLite removes its log with the last connection: keep a copy for a person who looks for lost records."""
        if not self.read_only and os.path.exists(self.path + "-wal") and not os.path.exists(self.path + KEPT_LOG):
            try:
                shutil.copyfile(self.path + "-wal", self.path + KEPT_LOG)
                os.chmod(self.path + KEPT_LOG, 0o600)
            except OSError:
                return

    def _require_one(self, seq: int) -> None:
        """Raises ChainError if this record, found wrong before, still is wrong."""
        prev = GENESIS
        for (hash_,) in self._rows("SELECT hash FROM record WHERE seq = ?", (seq - 1,)):
            prev = hash_
        rows = self._rows("SELECT seq, type, time, hash, body FROM record WHERE seq = ?", (seq,))
        if check_stored(rows, seq, prev)[0] != seq + 1:
            raise ChainError(seq, "is missing")

    def _opened_head(self) -> HeadFile:
        if self._head is None:
            self._head = HeadFile(head_path(self.path), Head(self.seq, self.hash))
        return self._head

    def accept_loss(self, row: tuple[Record, bytes]) -> None:
        """Go on after the newest record that exists; ``row`` is the record that says so. Raises JournalError."""
        self.append([row], {}, accepting=True)  # durable before the head forgets the missing records
        try:
            try:
                head = self._opened_head()
            except JournalError:  # damaged
                os.unlink(head_path(self.path))
                head = self._opened_head()
            head.write(self.seq, self.hash)
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path + KEPT_LOG, f"{self.path}{KEPT_LOG}.{self.seq}")
        except OSError as exc:
            raise JournalError(f"journal's head: {exc.strerror or exc}") from None

    def distrust(self, error: ChainError) -> None:
        """A check in the background found a wrong record: nothing is written any more, and the next start knows it,
        too.  # J7
        """
        self._distrusted = JournalError(error.message, DISTRUST_HINT)
        try:
            self._opened_head().write(self.seq, self.hash, bad=error.seq)
        except (OSError, JournalError):
            return  # the check after the next start finds it again

    @property
    def trusted(self) -> bool:
        return self._distrusted is None

    def distrusted(self) -> JournalError:
        """Why nothing is written any more."""
        assert self._distrusted is not None
        return self._distrusted

    # -- writing ------------------------------------------------------------------------------------------------

    def append(
        self, rows: Sequence[tuple[Record, bytes]], blobs: Mapping[str, bytes], *, accepting: bool = False
    ) -> None:
        """All of it or nothing. Raises JournalError (full disk, I/O error), StoreFullError.  # J6"""
        if not rows and not blobs:
            return
        if self._distrusted is not None:
            raise self._distrusted
        head, db = None if self.read_only or accepting else self._opened_head(), self._open
        if head is not None and head.head.seq > self.seq:
            raise JournalError(f"journal {self.path} ends before record {head.head.seq}", LOST_HINT)
        self._reserve(rows, blobs)
        committing = False
        try:
            db.execute("BEGIN IMMEDIATE")
            require_file(self.path, self._file)
            self._drop_surplus(db)
            added = 0
            for digest, data in blobs.items():
                cursor = db.execute(
                    "INSERT OR IGNORE INTO blob (digest, size, data) VALUES (?, ?, ?)", (digest, len(data), data)
                )
                added += len(data) if cursor.rowcount > 0 else 0
            if self.store_limit is not None and added and self._stored + added > self.store_limit:
                raise StoreFullError(self.store_limit)
            seq, prev = self.seq, self.hash
            for record, body in rows:
                assert record.seq == seq + 1 and record.prev == prev, (record.seq, seq)
                db.execute(
                    "INSERT INTO record (seq, type, time, hash, body) VALUES (?, ?, ?, ?, ?)",
                    (record.seq, record.type, record.time, record.hash, body),
                )
                seq, prev = record.seq, record.hash
            committing = True
            db.execute("COMMIT")
        except sqlite3.Error as exc:
            self._undo()
            raise self._not_taken(exc, rows if committing else ()) from None
        except BaseException:
            self._undo()
            raise
        self._surplus = False
        self._stored += added
        if rows and head is not None:
            self._move_head(head, seq, prev)
        self.seq, self.hash = seq, prev

    def _not_taken(self, exc: sqlite3.Error, rows: Sequence[tuple[Record, bytes]]) -> JournalError:
        """A failed commit may be in SQLite's log all the same, complete: a process that starts after a kill would
        accept it. So the refusal of these records is recorded before anybody is told of it.  # J9"""
        error = JournalError(f"journal: {exc}", "nothing was changed; free space or mend the disk")
        if rows and self._head is not None:
            try:
                self._head.write(self.seq, self.hash, refused=rows[0][0].hash)
            except OSError:
                error.uncertain = True
        return error

    def _void_refused(self) -> None:
        """Remove records that were refused: a kill must not turn them into accepted ones."""
        try:
            head = read_head(head_path(self.path))
        except JournalError:
            return  # damaged: reported when the journal is read
        if head is None or head.refused is None:
            return
        for (hash_,) in self._rows("SELECT hash FROM record WHERE seq = ?", (head.seq + 1,)):
            if hash_ == head.refused:
                if self.read_only:
                    self._last = head.seq
                else:
                    any(self._rows("DELETE FROM record WHERE seq > ?", (head.seq,)))
                self.seq, self.hash = head.seq, head.hash

    def _reserve(self, rows: Sequence[tuple[Record, bytes]], blobs: Mapping[str, bytes]) -> None:
        if self._index is not None:
            self._index.reserve(sum(len(body) for _, body in rows) + sum(map(len, blobs.values())))

    def _move_head(self, head: HeadFile, seq: int, hash_: str) -> None:
        """The head gets a record's number before the record is acknowledged. If the head cannot be written, the record
        is removed."""
        try:
            head.write(seq, hash_)
        except OSError as exc:
            self._surplus = True
            self._take_back()
            error = JournalError(
                f"journal's head: {exc.strerror or exc}", "nothing was changed; free space or mend the disk"
            )
            error.uncertain = self._surplus
            raise error from None

    def _take_back(self) -> None:
        try:
            self._open.execute("BEGIN IMMEDIATE")
            self._drop_surplus(self._open)
            self._open.execute("COMMIT")
            self._surplus = False
        except sqlite3.Error:
            self._undo()  # the next write does it first; readers of this object do not see them

    def _drop_surplus(self, db: sqlite3.Connection) -> None:
        if self._surplus:
            db.execute("DELETE FROM record WHERE seq > ?", (self.seq,))

    def _undo(self) -> None:
        try:
            if self._open.in_transaction:
                self._open.execute("ROLLBACK")
        except sqlite3.Error:
            pass

    def probe(self) -> None:
        """Write and remove a page or two, to find out whether the journal can be written again. Raises JournalError."""
        if self._distrusted is not None:
            raise self._distrusted
        require_file(self.path, self._file)
        self._reserve((), {})
        try:
            self._open.execute("BEGIN IMMEDIATE")
            self._drop_surplus(self._open)
            self._open.execute("INSERT OR REPLACE INTO probe VALUES (1, randomblob(65536))")
            self._open.execute("COMMIT")
            self._open.execute("DELETE FROM probe")
            self._surplus = False
            self._opened_head().write(self.seq, self.hash)
        except (sqlite3.Error, OSError) as exc:
            self._undo()
            raise JournalError(f"journal: {exc}") from None

    def save_snapshot(self, seq: int, state: Mapping[str, Any]) -> None:
        """Save a cache of the fold after record ``seq``. Raises JournalError."""
        try:
            raw = orjson.dumps(state)
            if self._index is not None:
                self._index.reserve(len(raw))
            self._open.execute(
                "INSERT OR REPLACE INTO snapshot VALUES (1, ?, ?, ?, ?)",
                (seq, state["hash"], hashlib.sha256(raw).hexdigest(), raw),
            )
            self._open.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as exc:
            raise JournalError(f"snapshot: {exc}") from None

    @property
    def room(self) -> int:
        """How many more bytes of contents the store takes."""
        return (1 << 62) if self.store_limit is None else max(0, self.store_limit - self._stored)

    def prune(self, wanted: Container[str]) -> int:
        """Delete contents that are not wanted. Returns how many. Raises JournalError."""
        try:
            gone, size = list[tuple[str]](), 0
            for digest, length in self._open.execute("SELECT digest, size FROM blob"):
                if digest not in wanted:
                    gone.append((digest,))
                    size += length
            if self._index is not None:
                self._index.reserve(size)  # freed pages may be overwritten first
            self._open.execute("BEGIN IMMEDIATE")
            self._open.executemany("DELETE FROM blob WHERE digest = ?", gone)
            self._open.execute("COMMIT")
            self._stored = self._open.execute("SELECT coalesce(sum(size), 0) FROM blob").fetchone()[0]
        except sqlite3.Error as exc:
            self._undo()
            raise JournalError(f"journal: {exc}") from None
        return len(gone)

    def close(self, *, failed: bool = False) -> None:
        """``failed``: the file to be opened is not a journal; no file is left beside it."""
        if self._head is not None:
            self._head.close()
            self._head = None
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._index is not None:
            self._index.close(remove=failed or self.read_only)  # last: closing it releases SQLite's own locks, too
            self._index = None


def load_state(journal: SqliteJournal, *, use_snapshot: bool = True, verify_max: int = VERIFY_MAX) -> State:
    """The fold of the whole, verified journal. With a snapshot, records older than the newest ``verify_max`` are left
    to a check in the background. Raises ChainError or JournalError.  # J2, J6
    """
    journal.require_head()
    journal.unverified = 0
    state = State()
    if use_snapshot:
        try:
            snapshot = journal.load_snapshot()
            if snapshot is not None:
                state = State.from_json(snapshot)
                journal.verify_stored(state.seq, verify_max)
        except (KeyError, TypeError, ValueError, orjson.JSONDecodeError):
            state = State()  # the cache of another version: fold from the beginning
    for record in verify(journal.records(state.seq + 1), seq=state.seq + 1, prev=state.hash):
        fold.apply(state, record)
        if not record.seq % ALIVE_EVERY:
            journal.alive()
    if state.seq != journal.seq:
        raise ChainError(state.seq + 1, "is missing")
    return state
