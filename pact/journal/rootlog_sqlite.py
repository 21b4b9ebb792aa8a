"""The root's log in one SQLite file: for one machine, or a root that needs no second one.

A lock on a file beside it is the election, and a counter in the file is the fence. The lock alone is not enough
(somebody may remove the file), so every write compares the counter in its own transaction.  # Q1

The counter is never behind the clock: nodes that have obeyed a log that was lost, or restored from a backup, obey the
next one too. The newest event's number is also kept separately (``root.head``): a log that has lost its end reports
that, and goes on, as after restoring a backup.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pact.core.records import GENESIS
from pact.errors import Fenced, JournalError
from pact.journal.files import file_of, require_file
from pact.journal.head import Head, HeadFile, head_path
from pact.journal.reading import connect
from pact.journal.rootlog import CHUNK_MAX, TRIM_MAX, require_snapshot
from pact.journal.walindex import WalIndex

APPLICATION_ID: Final = 0x70616372  # "pacr"
SCHEMA_VERSION: Final = 1
PAGE_BYTES: Final = 4 << 20
HINT: Final = "nothing was changed; free space or mend the disk"
SCHEMA: Final = """
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), cluster TEXT NOT NULL, fence INTEGER NOT NULL,
                   leader TEXT NOT NULL, next INTEGER, trimmed INTEGER NOT NULL);
CREATE TABLE chunk (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), gseq INTEGER NOT NULL, digest TEXT NOT NULL,
                       data BLOB NOT NULL)
"""


class SqliteLog:
    """See ``LogStore``. WAL with ``synchronous=FULL``: a finished transaction survives a power cut.  # Q3"""

    def __init__(self, path: str, cluster: str) -> None:
        """Open or create. Raises JournalError if that fails or the file is something else."""
        self.path = path
        self._cluster = cluster
        self._lock_fd = -1
        self._fence = 0
        self._reader: sqlite3.Connection | None = None
        self._reader_lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._index: WalIndex | None = None
        self._head: HeadFile | None = None
        self.lost = ""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            self._index = WalIndex(path)
            self._db = connect(path)
            self._file = file_of(path)
            self._db.execute("PRAGMA synchronous=FULL")
            self._check_or_create(self._db)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA journal_size_limit=67108864")
            directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except (sqlite3.Error, OSError) as exc:
            self.close()
            raise JournalError(f"root's log {path}: {exc}", "check the disk, its space and the permissions") from None
        except BaseException:
            self.close()
            raise

    def _check_or_create(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")  # two roots may create the same file
        try:
            (app,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if app == 0 and tables == 0:
                for statement in SCHEMA.split(";"):
                    db.execute(statement)
                db.execute("INSERT INTO meta VALUES (1, ?, 0, '', NULL, 0)", (self._cluster,))
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            elif app != APPLICATION_ID:
                raise JournalError(f"{self.path} is not the log of a root")
            elif version != SCHEMA_VERSION:
                raise JournalError(f"{self.path} has schema {version}; this version of pact reads {SCHEMA_VERSION}")
            (cluster,) = db.execute("SELECT cluster FROM meta").fetchone()
            if cluster != self._cluster:
                raise JournalError(f"{self.path} is the log of cluster {cluster}, not of {self._cluster}")
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    # -- leadership -------------------------------------------------------------------------------------------------

    def campaign(self, name: str) -> int | None:
        if self._fence and self.leading():
            return self._fence
        if self._lock_fd < 0 and not self._take_lock():
            return None
        try:
            with self._writing() as db:
                db.execute("UPDATE meta SET fence = max(fence + 1, ?), leader = ?", (int(time.time()), name))
                (fence,) = db.execute("SELECT fence FROM meta").fetchone()
        except BaseException:
            self._resign()
            raise
        self._fence = fence  # Q4
        try:
            self._look_for_loss()
        except BaseException:
            self._resign()
            raise
        return self._fence

    def _look_for_loss(self) -> None:
        """The leader checks whether the log ends where its head says. Raises JournalError."""
        ((following,),) = self._rows("SELECT next FROM meta")
        newest = -1 if following is None else following - 1
        head = self._opened_head(newest).head
        self.lost = (
            ""
            if head.seq <= newest
            else (
                f"the root's log {self.path} ends at event {newest}, and events up to {head.seq} were committed: its "
                "disk or SQLite's log was damaged, or an older copy was put back; nodes send again what they have"
            )
        )

    def _opened_head(self, newest: int) -> HeadFile:
        if self._head is not None:
            self._head.close()
            self._head = None
        path = head_path(self.path)
        try:
            self._head = HeadFile(path, Head(newest, GENESIS))
        except JournalError:  # damaged: its contents are lost
            try:
                os.unlink(path)
            except OSError as exc:
                raise JournalError(f"root's log {path}: {exc}", HINT) from None
            self._head = HeadFile(path, Head(newest, GENESIS))
        return self._head

    def _take_lock(self) -> bool:
        path = self.path + ".lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    self._lock_fd, fd = fd, -1
            except (BlockingIOError, FileNotFoundError):
                pass  # another root has it, or somebody removed it just now
            finally:
                if fd >= 0:
                    os.close(fd)
        except OSError as exc:
            raise JournalError(f"root's log {path}: {exc}", HINT) from None
        return self._lock_fd >= 0

    def _resign(self) -> None:
        self._fence = 0
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def leading(self) -> bool:
        return self._fence > 0

    # -- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self, size: int = 0) -> Iterator[sqlite3.Connection]:
        """One transaction that writes about ``size`` bytes. Raises JournalError for errors of the disk; any exception
        undoes everything.
        """
        if self._db is None:
            raise JournalError(f"root's log {self.path} is closed")
        if self._index is not None:
            self._index.reserve(size)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            require_file(self.path, self._file)
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.Error as exc:
            raise JournalError(f"root's log {self.path}: {exc}", HINT) from None
        finally:
            try:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            except sqlite3.Error:
                pass

    @contextmanager
    def _fenced(self, fence: int, size: int = 0) -> Iterator[sqlite3.Connection]:
        """A transaction of the leader with this fence; it resigns if it turns out that it does not lead."""
        try:
            with self._writing(size) as db:
                (found, leader) = db.execute("SELECT fence, leader FROM meta").fetchone()
                if fence <= 0 or not found == fence == self._fence:  # Q1
                    raise Fenced(f"fence {fence} is not in force: {leader} leads with {found}")
                yield db
        except Fenced:
            self._resign()
            raise

    def append(self, fence: int, first: int, count: int, chunk: bytes) -> None:
        assert count > 0 and len(chunk) <= CHUNK_MAX, (count, len(chunk))
        with self._fenced(fence, len(chunk)) as db:
            (following,) = db.execute("SELECT next FROM meta").fetchone()
            if following is not None and following != first:  # Q2
                row = db.execute("SELECT count, data FROM chunk WHERE first = ?", (first,)).fetchone()
                if row is None or row[0] != count or bytes(row[1]) != chunk:
                    raise Fenced(f"the log goes on at {following}, not at {first}")
            else:
                db.execute("INSERT INTO chunk VALUES (?, ?, ?)", (first, count, chunk))
                db.execute("UPDATE meta SET next = ?", (first + count,))
        newest = first + count - 1
        try:
            if self._head is not None and (following in (None, first) or following == first + count):
                self._head.write(newest, hashlib.sha256(chunk).hexdigest())
        except OSError as exc:  # the same chunk will come again, and is there already
            raise JournalError(f"root's log {head_path(self.path)}: {exc.strerror or exc}", HINT) from None

    def save_snapshot(self, fence: int, gseq: int, snapshot: bytes) -> None:
        require_snapshot(snapshot)
        with self._fenced(fence, len(snapshot)) as db:  # Q6
            row = db.execute("SELECT gseq FROM snapshot").fetchone()
            if row is None or row[0] < gseq:
                digest = hashlib.sha256(snapshot).hexdigest()
                db.execute("INSERT OR REPLACE INTO snapshot VALUES (1, ?, ?, ?)", (gseq, digest, snapshot))

    def trim(self, fence: int, before: int) -> None:
        with self._fenced(fence) as db:
            row = db.execute("SELECT gseq FROM snapshot").fetchone()
            if row is None:
                return
            limit = min(before, row[0] + 1)  # Q6
            (size,) = db.execute(
                "SELECT coalesce(sum(length(data)), 0) FROM (SELECT data FROM chunk WHERE first < ?"
                " ORDER BY first LIMIT ?)",
                (limit, TRIM_MAX),
            ).fetchone()
            if self._index is not None:
                self._index.reserve(size)  # freed pages may be overwritten first
            gone = db.execute(
                "DELETE FROM chunk WHERE first IN (SELECT first FROM chunk WHERE first < ?1 AND first + count <= ?1"
                " ORDER BY first LIMIT ?2)",
                (limit, TRIM_MAX),
            ).rowcount
            if gone > 0:
                db.execute("UPDATE meta SET trimmed = 1")

    # -- reading ----------------------------------------------------------------------------------------------------

    def _rows(self, sql: str, args: tuple[Any, ...] = (), *, most: int = PAGE_BYTES) -> list[Any]:
        """Rows until they hold ``most`` bytes, through a separate connection: any thread may call it."""
        with self._reader_lock:
            if self._db is None:
                raise JournalError(f"root's log {self.path} is closed")
            try:
                if self._reader is None:
                    self._reader = connect(self.path, read_only=True)
                out: list[Any] = []
                cursor = self._reader.execute(sql, args)
                for row in cursor:
                    out.append(row)
                    most -= sum(len(v) for v in row if isinstance(v, bytes))
                    if most <= 0:
                        break
                cursor.close()
                return out
            except sqlite3.Error as exc:
                raise JournalError(f"root's log {self.path}: {exc}") from None

    def load(self) -> tuple[bytes | None, Iterator[bytes]]:
        for gseq, digest, data in self._rows("SELECT gseq, digest, data FROM snapshot"):
            if hashlib.sha256(data).hexdigest() == digest:
                return data, self.read(gseq + 1)
            if self._rows("SELECT trimmed FROM meta")[0][0]:
                raise JournalError(
                    f"root's log {self.path}: the snapshot is damaged, and what was before it is gone",
                    "restore the file from a backup",
                )
        return None, self.read(0)

    def read(self, gseq: int) -> Iterator[bytes]:
        at = gseq
        for first, count in self._rows(
            "SELECT first, count FROM chunk WHERE first <= ? ORDER BY first DESC LIMIT 1", (gseq,)
        ):
            at = first if first + count > gseq else gseq
        begun = False
        while True:
            page = self._rows("SELECT first, count, data FROM chunk WHERE first >= ? ORDER BY first LIMIT 256", (at,))
            for first, count, data in page:
                if begun and first != at:
                    return  # trimmed meanwhile
                yield data
                begun, at = True, first + count
            if not page:
                return

    def oldest(self) -> int:
        rows = self._rows("SELECT coalesce((SELECT min(first) FROM chunk), next, 0) FROM meta")
        return int(rows[0][0])

    def close(self) -> None:
        self._resign()
        if self._head is not None:
            self._head.close()
            self._head = None
        with self._reader_lock:
            for db in (self._reader, self._db):
                if db is not None:
                    db.close()
            self._reader = self._db = None
            if self._index is not None:
                self._index.close()  # last: closing it releases SQLite's own locks, too
                self._index = None
