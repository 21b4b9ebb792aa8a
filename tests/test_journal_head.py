"""A journal that has lost its end says so, and goes on only when somebody says that it shall."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from journal_kit import damage, damage_frame, frames, rows_after, written_and_killed

from pact.core.records import verify
from pact.errors import ChainError, JournalError
from pact.journal.head import SLOT_BYTES, STRIDE_BYTES, Head, HeadFile, head_path, read_head
from pact.journal.moving import export
from pact.journal.sqlite import KEPT_LOG, SqliteJournal, load_state

RECORDS = 40


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal.db")


def stored(path: str) -> int:
    """How many records SQLite finds there, without a word about the others."""
    db = sqlite3.connect(path)
    try:
        return int(db.execute("SELECT count(*) FROM record").fetchone()[0])
    finally:
        db.close()


@pytest.mark.invariant("J6", "F60")
@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_log_loses_records_and_the_journal_says_which(path: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    written_and_killed(path, [rng.randrange(10, 9000) for _ in range(RECORDS)])
    damage_frame(path + "-wal", rng.randrange(frames(path + "-wal") // 2, frames(path + "-wal")))
    log = Path(path + "-wal").read_bytes()
    journal = SqliteJournal(path)
    assert 0 < journal.seq + 1 < RECORDS, "some are gone"
    with pytest.raises(ChainError, match=f"ends before it, and .* says that record {RECORDS - 1} was") as caught:
        load_state(journal)
    assert caught.value.seq == journal.seq + 1 and "accept-loss" in caught.value.hint
    with pytest.raises(JournalError, match=f"ends before record {RECORDS - 1}"):
        journal.append(rows_after(journal, 1), {})
    with open(tmp_path / "out", "wb") as out, pytest.raises(ChainError, match="is missing"):
        export(journal, out)
    left = journal.seq + 1
    journal.close()
    assert stored(path) == left
    assert Path(path + KEPT_LOG).read_bytes() == log, "what SQLite would remove is kept for who looks for the rest"


@pytest.mark.invariant("J6", "F60")
def test_a_log_that_is_gone_is_missed(path: str) -> None:
    written_and_killed(path, [10] * RECORDS)
    os.unlink(path + "-wal")
    with pytest.raises(ChainError, match="0: is missing"):
        load_state(SqliteJournal(path))


@pytest.mark.invariant("J6")
def test_a_kill_between_a_record_and_its_head_loses_nothing(path: str) -> None:
    journal = SqliteJournal(path)
    journal.append(rows_after(journal, 3), {})
    before = Path(head_path(path)).read_bytes()
    journal.append(rows_after(journal, 1), {})
    journal.close()
    Path(head_path(path)).write_bytes(before)
    journal = SqliteJournal(path)
    assert load_state(journal).seq == 3
    journal.append(rows_after(journal, 1), {})
    assert read_head(head_path(path)) == Head(4, journal.hash, None, 2)
    journal.close()


@pytest.mark.invariant("J6")
def test_a_slot_that_is_torn_anywhere_leaves_the_other(path: str) -> None:
    journal = SqliteJournal(path)
    for _ in range(4):
        journal.append(rows_after(journal, 1), {})
    hashes = [r.hash for r in journal.records()]
    journal.close()
    file = Path(head_path(path))
    whole, newest = file.read_bytes(), 4 % 2 * STRIDE_BYTES
    said = len(whole[newest : newest + SLOT_BYTES].rstrip())
    for at in range(newest, newest + said):
        damage(file, at)
        head = read_head(str(file))
        assert head is not None and (head.seq, head.hash) == (2, hashes[2]), at
        file.write_bytes(whole)
    for at in range(0, said, 7):  # the first part is new, the rest is what was there two writes before
        file.write_bytes(
            whole[:newest] + whole[newest : newest + at] + b"\0" * (SLOT_BYTES - at) + whole[newest + SLOT_BYTES :]
        )
        head = read_head(str(file))
        assert head is not None and head.seq == 2
        journal = SqliteJournal(path)
        assert load_state(journal).seq == 3
        journal.close()


@pytest.mark.invariant("J6", "F60")
@pytest.mark.parametrize("how", ["empty", "short", "zeros", "both slots"])
def test_a_head_that_says_nothing_is_not_believed(path: str, how: str) -> None:
    journal = SqliteJournal(path)
    journal.append(rows_after(journal, 3), {})
    journal.close()
    file = Path(head_path(path))
    if how == "both slots":
        damage(file, 5)
        damage(file, STRIDE_BYTES + 5)
    else:
        file.write_bytes({"empty": b"", "short": file.read_bytes()[:30], "zeros": bytes(8192)}[how])
    journal = SqliteJournal(path)
    with pytest.raises(JournalError, match="says nothing that can be believed") as caught:
        load_state(journal)
    assert "accept-loss" in caught.value.hint
    with pytest.raises(JournalError, match="says nothing that can be believed"):
        journal.append(rows_after(journal, 1), {})
    journal.close()
    assert stored(path) == 3


@pytest.mark.invariant("J6")
def test_a_journal_of_an_older_version_gets_its_head_with_its_next_record(path: str) -> None:
    journal = SqliteJournal(path)
    journal.append(rows_after(journal, 3), {})
    journal.close()
    os.unlink(head_path(path))
    journal = SqliteJournal(path)
    assert load_state(journal).seq == 2 and not os.path.exists(head_path(path))
    journal.append(rows_after(journal, 1), {})
    head = read_head(head_path(path))
    assert head is not None and (head.seq, head.hash) == (3, journal.hash)
    assert os.stat(head_path(path)).st_mode & 0o777 == 0o600
    journal.close()


@pytest.mark.invariant("J6")
def test_an_older_copy_of_the_whole_directory_is_whole_and_of_the_database_alone_is_not(
    path: str, tmp_path: Path
) -> None:
    journal = SqliteJournal(path)
    journal.append(rows_after(journal, 3), {})
    journal.close()
    old = tmp_path / "old"
    old.mkdir()
    for name in ("journal.db", "journal.head"):
        shutil.copy(tmp_path / name, old / name)
    journal = SqliteJournal(path)
    journal.append(rows_after(journal, 3), {})
    journal.close()
    copied = SqliteJournal(str(old / "journal.db"))
    assert load_state(copied).seq == 2
    copied.close()
    shutil.copy(old / "journal.db", path)
    with pytest.raises(ChainError, match="3: is missing: the journal ends before it"):
        load_state(SqliteJournal(path))


@pytest.mark.invariant("J6")
def test_another_journal_under_the_same_numbers_is_noticed(path: str, tmp_path: Path) -> None:
    for name, size in (("journal", 10), ("other", 11)):
        journal = SqliteJournal(str(tmp_path / f"{name}.db"))
        journal.append(rows_after(journal, 5, size), {})
        journal.close()
    os.rename(tmp_path / "other.db", path)
    with pytest.raises(ChainError, match="4: is another one than was acknowledged"):
        load_state(SqliteJournal(path))


@pytest.mark.invariant("J6", "F3", "F55")
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_record_whose_head_cannot_be_written_is_taken_back(path: str, how: str) -> None:
    journal = SqliteJournal(path)
    journal.append(rows_after(journal, 2), {})
    head, kept = head_path(path), head_path(path) + ".kept"
    os.rename(head, kept)
    if how == "replaced":
        shutil.copy(kept, head)
    with pytest.raises(JournalError, match=r"journal's head: .*(removed|No such file)"):
        journal.append(rows_after(journal, 3), {})
    assert (journal.seq, stored(path)) == (1, 2), "who was told no will not find it done"
    assert load_state(journal).seq == 1
    with pytest.raises(JournalError):
        journal.probe()
    os.rename(kept, head)
    journal.probe()
    journal.append(rows_after(journal, 1), {})
    journal.close()
    again = SqliteJournal(path)
    assert load_state(again).seq == 2
    again.close()


@pytest.mark.invariant("J6", "F3")
def test_records_that_cannot_be_taken_back_at_once_are_seen_by_nobody_and_go_with_the_next_writing(path: str) -> None:
    """The head fails, and another process holds the database's lock at that moment."""
    journal = SqliteJournal(path)
    journal._open.execute("PRAGMA busy_timeout=50")
    journal.append(rows_after(journal, 2), {})
    surplus = rows_after(journal, 3, 77)
    os.rename(head_path(path), head_path(path) + ".kept")
    other = sqlite3.connect(path, isolation_level=None)

    class Locking(HeadFile):
        def write(self, seq: int, hash_: str, bad: int | None = None) -> None:
            other.execute("BEGIN IMMEDIATE")
            super().write(seq, hash_, bad)

    journal._head.__class__ = Locking  # type: ignore[union-attr]
    with pytest.raises(JournalError, match="journal's head"):
        journal.append(surplus, {})
    journal._head.__class__ = HeadFile  # type: ignore[union-attr]
    assert stored(path) == 5 and journal.seq == 1
    assert [r.seq for r in journal.records()] == [0, 1] and load_state(journal).seq == 1
    other.execute("ROLLBACK")
    other.close()
    os.rename(head_path(path) + ".kept", head_path(path))
    journal.append(rows_after(journal, 1, 5), {})
    assert [json.loads(b)["data"]["x"] for b, _ in journal.newest(1)] == ["yyyyy"]
    journal.close()
    assert stored(path) == 3


@pytest.mark.invariant("J6")
def test_no_journal_is_written_where_the_head_of_a_lost_one_stands(path: str) -> None:
    journal = SqliteJournal(path)
    journal.append(rows_after(journal, 2), {})
    journal.close()
    os.unlink(path)
    empty = SqliteJournal(path)
    with pytest.raises(ChainError, match="0: is missing"):
        load_state(empty)
    with pytest.raises(JournalError, match="ends before record 1"):
        empty.append(rows_after(empty, 1), {})
    empty.close()


@pytest.mark.invariant("J6", "J1")
def test_a_writer_killed_at_any_moment_is_never_behind_its_head(path: str) -> None:
    """A child says after each append what it has acknowledged; whatever was said is there."""
    seed = int(os.environ.get("PACT_SEED", "1"))
    rng = random.Random(seed)
    for round_ in range(10):
        read_fd, write_fd = os.pipe()
        child = os.fork()
        if child == 0:
            journal = SqliteJournal(path)
            while True:
                journal.append(rows_after(journal, 1, 300), {})
                os.write(write_fd, journal.seq.to_bytes(4, "big"))
        os.close(write_fd)
        said = b""
        for _ in range(rng.randrange(1, 60)):
            said = os.read(read_fd, 4) or said
        os.kill(child, 9)
        os.waitpid(child, 0)
        while more := os.read(read_fd, 4):
            said = more
        os.close(read_fd)
        journal = SqliteJournal(path)
        head = read_head(head_path(path))
        assert head is not None and int.from_bytes(said, "big") <= head.seq <= journal.seq, f"seed {seed}, {round_}"
        assert len(list(verify(journal.records()))) == journal.seq + 1
        journal.require_head()
        journal.close()


@pytest.mark.invariant("J6")
def test_a_reader_beside_a_writer_sees_no_loss_where_there_is_none(path: str) -> None:
    """What it knows of the journal is older than the head that it reads."""
    writer = SqliteJournal(path)
    writer.append(rows_after(writer, 2), {})
    reader = SqliteJournal(path, read_only=True)
    for _ in range(5):
        writer.append(rows_after(writer, 1), {})
        reader.require_head()
    reader.close()
    writer.close()


@pytest.mark.invariant("J6", "F3")
def test_a_run_that_knows_its_head_does_not_end_when_the_file_cannot_be_read_any_more(path: str) -> None:
    """An agent folds its journal again when it could not be written: it must not end over that."""
    journal = SqliteJournal(path)
    journal.append(rows_after(journal, 2), {})
    Path(head_path(path)).write_bytes(b"garbage")
    assert load_state(journal).seq == 1
    journal.append(rows_after(journal, 1), {})
    journal.append(rows_after(journal, 1), {})
    journal.close()
    again = SqliteJournal(path)
    assert load_state(again).seq == 3, "it was written over"
    again.close()
