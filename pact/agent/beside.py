"""Writing much to the journal: another thread does it. The loop has turns meanwhile, which leave it alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pact.core.records import Record
from pact.journal.sqlite import SqliteJournal

#: To make more durable than this takes long.
LARGE_BYTES: Final = 256 << 10
#: A row takes as long as so many bytes.
ROW_BYTES: Final = 256
WAIT_S: Final = 0.005


def append(
    journal: SqliteJournal,
    rows: Sequence[tuple[Record, bytes]],
    blobs: Mapping[str, bytes],
    pause: Callable[[bool], None],
) -> None:
    """``journal.append``, with its errors; much is made durable ``beside`` the loop."""
    size = sum(len(body) for _, body in rows) + sum(map(len, blobs.values()))
    if size + ROW_BYTES * (len(rows) + len(blobs)) < LARGE_BYTES:
        journal.append(rows, blobs)
    else:
        beside(lambda: journal.append(rows, blobs), pause)


def beside(work: Callable[[], None], pause: Callable[[bool], None]) -> None:
    """Do this work in another thread, and ``pause`` meanwhile, which must leave alone what the work needs. Raises what
    the work raises."""
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=guarded, name="pact-journal", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread is left: the loop waits
        work()
        return
    while thread.is_alive():
        thread.join(WAIT_S)
        pause(True)
    if failed:
        raise failed[0]
