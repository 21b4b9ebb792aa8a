"""Checks in the background records that a start from a snapshot did not verify.  # J7

A thread reads them through a separate connection, in pieces of a fraction of a millisecond, and rests between them: the
loop does not notice. It decides nothing: the agent acts on its findings.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import Final

from pact.core.records import GENESIS
from pact.errors import ChainError
from pact.journal.reading import connect
from pact.journal.stored import check_stored

PIECE_RECORDS: Final = 64
PIECE_BYTES: Final = 1 << 20
REST_S: Final = 0.002
AGAIN_S: Final = 5.0


class Verification:
    """Verifies the records before ``count``. Any thread may read ``done``, ``error`` and ``why``."""

    def __init__(self, path: str, count: int, wake: Callable[[], None]) -> None:
        self.count = count
        self.done = 0
        self.error: ChainError | None = None
        self.why = ""  # why the disk cannot be read; it is tried again
        self._path = path
        self._wake = wake
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if count:
            self._thread = threading.Thread(target=self._run, name="pact-verify", daemon=True)
            self._thread.start()

    @property
    def left(self) -> int:
        return self.count - self.done

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(AGAIN_S)

    def _run(self) -> None:
        prev = GENESIS
        while self.left and not self._closing.is_set():
            try:
                prev = self._read(prev)
            except ChainError as exc:
                self.error = exc
            # Locked, or an error of the disk: that says nothing about the record.
            except sqlite3.OperationalError as exc:
                self.why = str(exc)
                self._closing.wait(AGAIN_S)
            except sqlite3.DatabaseError as exc:
                self.error = ChainError(self.done, f"cannot be read ({exc})")
            if self.error is not None:
                self._wake()
                return

    def _read(self, prev: str) -> str:
        """Read piece by piece until all is done, or an error occurs."""
        db = connect(self._path, read_only=True)
        try:
            while self.left and not self._closing.wait(REST_S):
                end = min(self.done + PIECE_RECORDS, self.count)
                sizes = db.execute(
                    "SELECT length(body) FROM record WHERE seq BETWEEN ? AND ? ORDER BY seq", (self.done, end - 1)
                )
                took, size = 0, 0
                for (length,) in sizes:
                    size += length or 0
                    if took and size > PIECE_BYTES:
                        break
                    took += 1
                sizes.close()
                if not took:
                    raise ChainError(self.done, "is missing")
                rows = db.execute(
                    "SELECT seq, type, time, hash, body FROM record WHERE seq BETWEEN ? AND ? ORDER BY seq",
                    (self.done, self.done + took - 1),
                )
                seq, prev = check_stored(rows, self.done, prev)
                rows.close()
                if seq != self.done + took:
                    raise ChainError(seq, "is missing")
                self.done, self.why = seq, ""
        finally:
            db.close()
        return prev
