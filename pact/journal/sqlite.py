"""The journal in one SQLite file: WAL, ``synchronous=FULL``, a hash chain, a gapless sequence.  # J1, J3

Records are stored as their canonical bytes, so that what is verified is what was written. Contents live once each,
by digest. A snapshot is a cache of the fold; deleting it loses nothing.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sqlite3
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import IO, Any, Final

import orjson

from pact.core.records import GENESIS, Record, canonical, digest, parse, unhashed, verify
from pact.core.state import State
from pact.errors import ChainError, JournalError

FILE_NAME: Final = "journal.db"
APPLICATION_ID: Final = 0x70616374  # "pact"
SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 5.0
PAGE_ROWS: Final = 256
VERIFY_MAX: Final = 200_000
MISFILED: Final = "is filed under another type or time than its content says"
SCHEMA: Final = """
CREATE TABLE record (seq INTEGER PRIMARY KEY, type TEXT NOT NULL, time TEXT NOT NULL, hash TEXT NOT NULL,
                     body BLOB NOT NULL);
CREATE INDEX record_type ON record (type, seq);
CREATE TABLE blob (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL,
                       digest TEXT NOT NULL, state BLOB NOT NULL);
CREATE TABLE probe (id INTEGER PRIMARY KEY CHECK (id = 1), data BLOB NOT NULL);
"""


def _connect(path: str, *, read_only: bool = False) -> sqlite3.Connection:
    uri = "file:" + "".join(f"%{b:02x}" if b in b"?#%" else chr(b) for b in os.fsencode(path))
    db = sqlite3.connect(
        uri + ("?mode=ro" if read_only else ""), uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S,
        check_same_thread=False,
    )  # fmt: skip
    db.execute("PRAGMA cache_size=-1024")
    return db


def file_of(path: str) -> tuple[int, int]:
    """Which file stands there now."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def require_file(path: str, opened: tuple[int, int]) -> None:
    """SQLite goes on writing into a file that was removed or replaced: all of it would be lost with the process.
    Raises JournalError.
    """
    try:
        there = file_of(path) == opened
    except OSError:
        there = False
    if not there:
        raise JournalError(f"journal: {path} was removed or replaced under this process",
                           "put it, or a backup, back there, then restart")  # fmt: skip


class SqliteJournal:
    """One file. Not thread-safe; a thread that needs contents opens a ``BlobReader``."""

    def __init__(self, path: str, *, read_only: bool = False, store_limit: int | None = None) -> None:
        """Open or create. Raises JournalError if that fails or the file is something else."""
        self.path = path
        self.read_only = read_only
        self.store_limit = store_limit
        try:
            if not read_only:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            self._db = _connect(path, read_only=read_only)
            self._file = file_of(path)
            if not read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("PRAGMA journal_size_limit=16777216")
            self._check_or_create()
            row = self._db.execute("SELECT seq, hash FROM record ORDER BY seq DESC LIMIT 1").fetchone()
            self._stored = self._db.execute("SELECT coalesce(sum(size), 0) FROM blob").fetchone()[0]
        except (sqlite3.Error, OSError) as exc:
            hint = "check the disk, its space and the file's permissions"
            raise JournalError(f"journal {path}: {exc}", hint) from None
        self.seq: int = row[0] if row else -1
        self.hash: str = row[1] if row else GENESIS

    def _check_or_create(self) -> None:
        (app,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if app == 0 and tables == 0 and not self.read_only:
            self._db.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA.split(";"):
                if statement.strip():
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        elif app != APPLICATION_ID:
            raise JournalError(f"{self.path} is not a pact journal")
        elif version != SCHEMA_VERSION:
            raise JournalError(f"{self.path} has schema {version}; this version of pact reads {SCHEMA_VERSION}")

    # -- writing ------------------------------------------------------------------------------------------------

    def append(self, rows: Sequence[tuple[Record, bytes]], blobs: Mapping[str, bytes]) -> None:
        """All of it or nothing. Raises JournalError (full disk, I/O error, store limit)."""
        if not rows and not blobs:
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            require_file(self.path, self._file)
            added = 0
            for digest, data in blobs.items():
                cursor = self._db.execute(
                    "INSERT OR IGNORE INTO blob (digest, size, data) VALUES (?, ?, ?)", (digest, len(data), data)
                )
                added += len(data) if cursor.rowcount > 0 else 0
            if self.store_limit is not None and added and self._stored + added > self.store_limit:
                raise JournalError(f"the content store's limit of {self.store_limit} bytes is reached",
                                   "raise [state] store_limit")  # fmt: skip
            seq, prev = self.seq, self.hash
            for record, body in rows:
                assert record.seq == seq + 1 and record.prev == prev, (record.seq, seq)
                self._db.execute("INSERT INTO record (seq, type, time, hash, body) VALUES (?, ?, ?, ?, ?)",
                                 (record.seq, record.type, record.time, record.hash, body))  # fmt: skip
                seq, prev = record.seq, record.hash
            self._db.execute("COMMIT")
        except sqlite3.Error as exc:
            self._undo()
            raise JournalError(f"journal: {exc}", "nothing was changed; free space or mend the disk") from None
        except BaseException:
            self._undo()
            raise
        self.seq, self.hash = seq, prev
        self._stored += added

    def _undo(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            pass

    def probe(self) -> None:
        """Write and take back a page or two: is the journal usable again? Raises JournalError."""
        require_file(self.path, self._file)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("INSERT OR REPLACE INTO probe VALUES (1, randomblob(65536))")
            self._db.execute("COMMIT")
            self._db.execute("DELETE FROM probe")
        except sqlite3.Error as exc:
            self._undo()
            raise JournalError(f"journal: {exc}") from None

    def save_snapshot(self, seq: int, state: Mapping[str, Any]) -> None:
        """A cache of the fold after record ``seq``. Raises JournalError."""
        try:
            raw = orjson.dumps(state)
            self._db.execute("INSERT OR REPLACE INTO snapshot VALUES (1, ?, ?, ?, ?)",
                             (seq, state["hash"], hashlib.sha256(raw).hexdigest(), raw))  # fmt: skip
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as exc:
            raise JournalError(f"snapshot: {exc}") from None

    @property
    def room(self) -> int:
        """How many bytes of contents the store still takes."""
        return (1 << 62) if self.store_limit is None else max(0, self.store_limit - self._stored)

    def prune(self, wanted: Container[str]) -> int:
        """Forget contents that are not wanted; how many. Raises JournalError."""
        try:
            gone = [(d,) for (d,) in self._db.execute("SELECT digest FROM blob") if d not in wanted]
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("DELETE FROM blob WHERE digest = ?", gone)
            self._db.execute("COMMIT")
            self._stored = self._db.execute("SELECT coalesce(sum(size), 0) FROM blob").fetchone()[0]
        except sqlite3.Error as exc:
            self._undo()
            raise JournalError(f"journal: {exc}") from None
        return len(gone)

    # -- reading ------------------------------------------------------------------------------------------------

    def _rows(self, sql: str, args: tuple[Any, ...]) -> Iterator[Any]:
        try:
            for row in self._db.execute(sql, args):  # noqa: UP028  (it would close the cursor after its database)
                yield row
        except sqlite3.Error as exc:
            raise JournalError(f"journal {self.path}: {exc}") from None

    def records(self, first: int = 0) -> Iterator[Record]:
        """Records from ``first`` on, not yet verified. Raises ChainError for what is none, or is filed wrongly."""
        rows = self._rows("SELECT seq, type, time, hash, body FROM record WHERE seq >= ? ORDER BY seq", (first,))
        for seq, type_, time, hash_, body in rows:
            try:
                record = parse(body, hash_)
                whole = digest(record.prev, body) == hash_  # the bytes themselves, not only what they mean  # J3
            except (ValueError, TypeError) as exc:
                raise ChainError(seq, f"is no record ({exc})") from None
            if not whole:
                raise ChainError(seq, "its content does not match its hash")
            if (record.type, record.time) != (type_, time):
                raise ChainError(seq, MISFILED)
            yield record

    def verify_stored(self, last: int) -> None:
        """Check the chain up to record ``last`` (at most ``VERIFY_MAX`` records) by the stored bytes, without parsing.

        Raises ChainError. Two microseconds a record: for every start, where a snapshot spares the fold.
        """
        first = max(0, last + 1 - VERIFY_MAX)
        prev, seq = GENESIS, first
        for (hash_,) in self._rows("SELECT hash FROM record WHERE seq = ?", (first - 1,)):
            prev = hash_
        rows = self._rows(
            "SELECT seq, type, time, hash, body FROM record WHERE seq BETWEEN ? AND ? ORDER BY seq", (first, last)
        )
        for found, type_, time, hash_, body in rows:
            if found != seq:
                break
            if not isinstance(body, bytes) or digest(prev, body) != hash_:
                raise ChainError(seq, "its content does not match its hash")
            if not body.endswith(f',"time":"{time}","type":"{type_}","v":1}}'.encode()):
                raise ChainError(seq, MISFILED)
            prev, seq = hash_, seq + 1
        if seq != last + 1:
            raise ChainError(seq, "is missing")

    def newest(self, count: int | None, *, since: str = "", type_: str = "") -> Iterator[tuple[bytes, str]]:
        before, left = self.seq + 1, self.seq + 1 if count is None else count
        while left > 0:  # in pages: nobody's reading holds memory, or a transaction, for long
            page = list(self._rows(
                "SELECT body, hash, seq FROM record WHERE seq < ? AND time >= ? AND (? = '' OR type = ?)"
                " ORDER BY seq DESC LIMIT ?", (before, since, type_, type_, min(left, PAGE_ROWS)),
            ))  # fmt: skip
            if not page:
                return
            yield from ((body, hash_) for body, hash_, _ in page)
            before, left = page[-1][2], left - len(page)

    def bodies(self, first: int, limit: int) -> Iterator[tuple[str, bytes]]:
        """Hash and canonical bytes of at most ``limit`` records from ``first`` on."""
        yield from self._rows("SELECT hash, body FROM record WHERE seq >= ? ORDER BY seq LIMIT ?", (first, limit))

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
                continue  # a cache that rotted: what parses is not yet true
            record = self.get(seq)
            if record is not None and record.hash == hash_:
                state: Mapping[str, Any] = orjson.loads(raw)
                return state
        return None

    def close(self) -> None:
        self._db.close()


class BlobReader:
    """Contents for another thread, through a connection of its own."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    def _one(self, sql: str, digest: str) -> Any:
        try:
            if self._db is None:
                self._db = _connect(self._path, read_only=True)
            return self._db.execute(sql, (digest,)).fetchone()
        except sqlite3.Error as exc:
            raise JournalError(f"journal: {exc}") from None

    def has(self, digest: str) -> bool:
        """Whether the store has it. Raises JournalError."""
        return self._one("SELECT 1 FROM blob WHERE digest = ?", digest) is not None

    def __call__(self, digest: str) -> bytes | None:
        row = self._one("SELECT data FROM blob WHERE digest = ?", digest)
        if row is not None and hashlib.sha256(row[0]).hexdigest() != digest:
            raise JournalError(f"content {digest[:12]} is damaged in the store", "pact journal import an export of it")
        return None if row is None else bytes(row[0])

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def load_state(journal: SqliteJournal, *, use_snapshot: bool = True) -> State:
    """The fold of the whole, verified journal. Raises ChainError or JournalError.  # J2"""
    state = State()
    if use_snapshot:
        try:
            snapshot = journal.load_snapshot()
            if snapshot is not None:
                state = State.from_json(snapshot)
                journal.verify_stored(state.seq)
        except (KeyError, TypeError, ValueError, orjson.JSONDecodeError):
            state = State()  # another version's cache: fold from the beginning
    for record in verify(journal.records(state.seq + 1), seq=state.seq + 1, prev=state.hash):
        state.apply(record)
    if state.seq != journal.seq:
        raise ChainError(state.seq + 1, "is missing")
    return state


# -- moving a journal -----------------------------------------------------------------------------------------------


def export(journal: SqliteJournal, out: IO[bytes]) -> tuple[int, int]:
    """JSON lines: every record with its hash, then every content as ``{"blob", "data"}`` (base64)."""
    records = blobs = 0
    for record in journal.records():
        out.write(orjson.dumps(record.to_json(), option=orjson.OPT_SORT_KEYS) + b"\n")
        records += 1
    for name, data in journal.blobs():
        out.write(orjson.dumps({"blob": name, "data": base64.b64encode(data).decode()}) + b"\n")
        blobs += 1
    return records, blobs


def read_export(lines: Iterator[bytes]) -> Iterator[Record | tuple[str, bytes]]:
    """What ``export`` wrote. Raises ChainError with the line that is wrong."""
    for at, line in enumerate(lines):
        try:
            obj = orjson.loads(line)
            if isinstance(obj, dict) and "blob" in obj:
                yield obj["blob"], base64.b64decode(obj["data"], validate=True)
            else:
                yield parse(line)
        except (ValueError, KeyError, TypeError) as exc:
            raise ChainError(at, f"line {at + 1} is no record ({exc})") from None


def import_lines(journal: SqliteJournal, lines: Iterator[bytes]) -> tuple[int, int]:
    """Fill an empty journal from an export, verifying the chain and every content. All of it or nothing."""
    if journal.seq >= 0:
        raise JournalError(f"{journal.path} is not empty", "import into a new state directory")
    rows: list[tuple[Record, bytes]] = []
    blobs: dict[str, bytes] = {}

    def records() -> Iterator[Record]:
        for item in read_export(lines):
            if isinstance(item, Record):
                yield item
            elif hashlib.sha256(item[1]).hexdigest() != item[0]:
                raise JournalError(f"content {str(item[0])[:12]} does not match its digest")
            else:
                blobs[item[0]] = item[1]

    for record in verify(records()):
        rows.append((record, canonical(unhashed(record))))
    journal.append(rows, blobs)
    return len(rows), len(blobs)
