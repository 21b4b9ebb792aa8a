"""Older records are verified behind a start that did not wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from journal_kit import damage, lived

from pact.core.node import fold
from pact.core.node.state import State
from pact.errors import ChainError, JournalError
from pact.journal.sqlite import SqliteJournal, load_state
from pact.journal.verifying import Verification

NEWEST = 10


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(str(tmp_path / "journal.db"))
    opened.append(lived(), {})
    state = State()
    for record in opened.records():
        fold.apply(state, record)
    opened.save_snapshot(state.seq, state.to_json())
    yield opened
    opened.close()


def verified(journal: SqliteJournal) -> Verification:
    """Run to its end."""
    woken: list[int] = []
    verification = Verification(journal.path, journal.unverified, lambda: woken.append(1))
    end = time.monotonic() + 10
    while verification.left and verification.error is None and time.monotonic() < end:
        time.sleep(0.001)
    verification.close()
    assert bool(woken) == (verification.error is not None)
    return verification


@pytest.mark.invariant("J7")
def test_what_a_start_left_out_is_verified_to_the_last_record(journal: SqliteJournal) -> None:
    load_state(journal)
    assert journal.unverified == 0, "all of a short journal is verified at once"
    load_state(journal, verify_max=NEWEST)
    assert journal.unverified == journal.seq + 1 - NEWEST > 5
    done = verified(journal)
    assert (done.left, done.error, done.done) == (0, None, journal.unverified)
    load_state(journal, use_snapshot=False, verify_max=NEWEST)
    assert journal.unverified == 0, "a whole fold verifies all"


WRONG = {
    "content": "UPDATE record SET body = CAST(replace(body, '\"t_ns\":', '\"t_ns\":1') AS BLOB) WHERE seq = ?",
    "type": "UPDATE record SET type = 'window_extended' WHERE seq = ?",
    "gone": "DELETE FROM record WHERE seq = ?",
    "no bytes": "UPDATE record SET body = 5 WHERE seq = ?",
    "hash": "UPDATE record SET hash = 'text' WHERE seq = ?",
}


@pytest.mark.invariant("J7", "F4")
@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("seq", [0, 7, -1])
def test_a_record_that_is_wrong_is_found_by_its_number(journal: SqliteJournal, how: str, seq: int) -> None:
    seq = journal.seq - NEWEST if seq < 0 else seq  # the last that the start does not look at
    journal._open.execute(WRONG[how], (seq,))
    if seq == journal.seq - NEWEST and how in ("hash", "gone"):  # the first that it looks at links to it
        with pytest.raises(ChainError):
            load_state(journal, verify_max=NEWEST)
        return
    load_state(journal, verify_max=NEWEST)
    found = verified(journal).error
    assert found is not None and found.seq == seq


@pytest.mark.invariant("J7", "F4")
def test_once_found_nothing_is_written_and_the_next_start_knows_at_once(journal: SqliteJournal) -> None:
    journal._open.execute(WRONG["content"], (7,))
    load_state(journal, verify_max=NEWEST)
    found = verified(journal).error
    assert found is not None
    journal.distrust(found)
    for attempt in (journal.probe, lambda: journal.append([], {"0" * 64: b""})):
        with pytest.raises(JournalError, match="journal record 7: its content does not match"):
            attempt()
    journal.close()
    again = SqliteJournal(journal.path)
    with pytest.raises(ChainError, match="journal record 7: its content does not match"):
        load_state(again, verify_max=NEWEST)
    again._open.execute("UPDATE record SET body = CAST(replace(body, '\"t_ns\":1', '\"t_ns\":') AS BLOB) WHERE seq = 7")
    load_state(again, verify_max=NEWEST)  # somebody mended it
    again.close()


@pytest.mark.invariant("J7", "F4")
def test_a_page_that_cannot_be_read_is_found_too(journal: SqliteJournal) -> None:
    """SQLite itself says of the file that it is no good."""
    journal._open.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (root,) = journal._open.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'record'").fetchone()
    load_state(journal, verify_max=NEWEST)
    count = journal.unverified
    raw = Path(journal.path).read_bytes()
    at = raw.index(b'"seq":3,')
    page = at // 4096
    assert page != root - 1
    damage(journal.path, page * 4096)
    verification = Verification(journal.path, count, lambda: None)
    end = time.monotonic() + 10
    while verification.error is None and time.monotonic() < end:
        time.sleep(0.001)
    verification.close()
    assert verification.error is not None and verification.error.seq <= 3
