"""The journal on a real disk: whole or not at all, verified on every way in and out."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from journal_kit import blob, lived, rows_after

from pact.core.node import fold
from pact.core.node.state import State
from pact.core.records import Record, parse, verify
from pact.errors import ChainError, JournalError
from pact.journal.blobs import BlobReader
from pact.journal.moving import export, import_lines
from pact.journal.sqlite import SqliteJournal, load_state


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal.db")


@pytest.fixture
def journal(path: str) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(path)
    yield opened
    opened.close()


def reopened(path: str) -> tuple[list[Record], dict[str, bytes]]:
    """What is durable: every record, verified, and every content."""
    journal = SqliteJournal(path, read_only=True)
    try:
        return list(verify(journal.records())), dict(journal.blobs())
    finally:
        journal.close()


# -- writing and reading --------------------------------------------------------------------------------------------


@pytest.mark.invariant("J1", "J3")
class TestAppend:
    def test_records_and_contents_come_back_as_they_were(self, journal: SqliteJournal, path: str) -> None:
        rows = rows_after(journal, 3)
        journal.append(rows, blob(b"one") | blob(b"two"))
        assert reopened(path) == ([r for r, _ in rows], blob(b"one") | blob(b"two"))
        assert journal.get(1) == rows[1][0]
        assert journal.get(9) is None
        assert list(journal.records(2)) == [rows[2][0]]
        assert journal.blob(hashlib.sha256(b"one").hexdigest()) == b"one"
        assert journal.blob("0" * 64) is None
        journal.append([], {})

    def test_a_content_stands_once(self, journal: SqliteJournal, path: str) -> None:
        journal.append([], blob(b"same"))
        journal.append(rows_after(journal, 1), blob(b"same"))
        assert reopened(path)[1] == blob(b"same")

    def test_the_newest_come_first_and_can_be_chosen(self, journal: SqliteJournal) -> None:
        journal.append(rows_after(journal, 700), {})
        assert [number(b) for b, _ in journal.newest(3)] == [699, 698, 697]
        assert len(list(journal.newest(None))) == 700
        assert list(journal.newest(5, type_="committed")) == []
        assert len(list(journal.newest(None, type_="denied"))) == 700
        assert {number(b) % 60 for b, _ in journal.newest(None, since="2026-01-01T00:00:59")} == {59}
        assert list(journal.newest(0)) == []

    def test_a_gap_or_a_wrong_link_is_a_bug_and_writes_nothing(self, journal: SqliteJournal, path: str) -> None:
        first, second, third = rows_after(journal, 3)
        for wrong in ([second], [first, third], [first, first]):
            with pytest.raises(AssertionError):
                journal.append(wrong, {})
            journal.probe()
        assert journal.seq == -1
        assert reopened(path)[0] == []

    def test_records_and_contents_are_durable_together_or_not_at_all(self, journal: SqliteJournal, path: str) -> None:
        broken: Mapping[str, Any] = blob(b"good") | {"bad": object()}
        with pytest.raises((JournalError, TypeError)):
            journal.append(rows_after(journal, 2), broken)
        assert (journal.seq, reopened(path)) == (-1, ([], {}))
        journal.append(rows_after(journal, 2), {})
        assert journal.seq == 1


def number(body: bytes) -> int:
    return parse(body, "").seq


def test_the_store_has_a_limit_and_what_would_exceed_it_is_refused_whole(path: str) -> None:
    journal = SqliteJournal(path, store_limit=100)
    journal.append([], blob(b"a" * 60))
    with pytest.raises(JournalError, match="limit of 100 bytes") as caught:
        journal.append(rows_after(journal, 1), blob(b"b" * 60))
    assert "store_limit" in caught.value.hint
    assert journal.seq == -1
    journal.append(rows_after(journal, 1), blob(b"a" * 60))  # kept already
    journal.append(rows_after(journal, 1), blob(b"b" * 40))
    journal.close()
    again = SqliteJournal(path, store_limit=100)
    with pytest.raises(JournalError, match="limit"):
        again.append([], blob(b"c"))
    again.close()
    assert len(reopened(path)[0]) == 2


# -- opening --------------------------------------------------------------------------------------------------------


class TestOpening:
    def test_a_journal_is_its_owners_alone(self, journal: SqliteJournal, path: str) -> None:
        assert os.stat(path).st_mode & 0o777 == 0o600

    def test_a_reader_writes_nothing_and_makes_no_file(self, journal: SqliteJournal, path: str, tmp_path: Path) -> None:
        reader = SqliteJournal(path, read_only=True)
        with pytest.raises(JournalError, match="readonly"):
            reader.append(rows_after(reader, 1), {})
        reader.close()
        with pytest.raises(JournalError):
            SqliteJournal(str(tmp_path / "absent.db"), read_only=True)
        assert not (tmp_path / "absent.db").exists()

    def test_names_with_any_characters_are_opened(self, tmp_path: Path) -> None:
        odd = str(tmp_path / "a?b#c%41 é.db")
        SqliteJournal(odd).close()
        assert os.path.exists(odd)

    def test_what_is_no_journal_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        text = tmp_path / "text"
        text.write_text("hello " * 1000)
        with pytest.raises(JournalError, match="not a database"):
            SqliteJournal(str(text))
        assert text.read_text() == "hello " * 1000
        other = tmp_path / "other.db"
        with sqlite3.connect(other) as db:
            db.execute("CREATE TABLE mine (x)")
        db.close()
        with pytest.raises(JournalError, match="is not a pact journal"):
            SqliteJournal(str(other))
        (tmp_path / "link.db").symlink_to("text")
        with pytest.raises(JournalError, match="symbolic"):
            SqliteJournal(str(tmp_path / "link.db"))
        with pytest.raises(JournalError):
            SqliteJournal(str(tmp_path))

    def test_a_journal_of_another_version_is_refused_by_number(self, path: str) -> None:
        SqliteJournal(path).close()
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version=99")
        db.close()
        with pytest.raises(JournalError, match="schema 99; this version of pact reads 1"):
            SqliteJournal(path)


# -- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("J2")
class TestState:
    @pytest.fixture
    def filled(self, path: str) -> Iterator[SqliteJournal]:
        journal = SqliteJournal(path)
        journal.append(lived(), {})
        yield journal
        journal.close()

    def folded(self, journal: SqliteJournal) -> dict[str, Any]:
        state = State()
        for record in journal.records():
            fold.apply(state, record)
        return state.to_json()

    def test_a_snapshot_at_any_record_gives_the_state_of_the_whole_fold(self, filled: SqliteJournal) -> None:
        whole, state = self.folded(filled), State()
        for record in list(filled.records()):
            fold.apply(state, record)
            filled.save_snapshot(record.seq, state.to_json())
            assert load_state(filled).to_json() == whole
        assert load_state(filled, use_snapshot=False).to_json() == whole

    @pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'{"seq":3}', b'"x"', b"5"])
    def test_a_snapshot_that_cannot_be_read_is_a_cache_that_is_lost(self, filled: SqliteJournal, raw: bytes) -> None:
        whole = self.folded(filled)
        state = State()
        for record in filled.records():
            fold.apply(state, record)
        filled.save_snapshot(state.seq, state.to_json())
        filled._db.execute("UPDATE snapshot SET state = ?, digest = ?", (raw, hashlib.sha256(raw).hexdigest()))
        assert load_state(filled).to_json() == whole
        filled._db.execute("DELETE FROM snapshot")
        assert load_state(filled).to_json() == whole

    def test_a_snapshot_of_another_chain_is_not_used(self, filled: SqliteJournal) -> None:
        raw = b'{"not":"this"}'
        filled._db.execute(
            "INSERT INTO snapshot VALUES (1, 3, ?, ?, ?)", ("0" * 64, hashlib.sha256(raw).hexdigest(), raw)
        )
        assert load_state(filled).to_json() == self.folded(filled)

    def test_a_snapshot_in_which_one_digit_rotted_is_not_believed_although_it_parses(
        self, filled: SqliteJournal, path: str
    ) -> None:
        whole, state = self.folded(filled), State()
        for record in filled.records():
            fold.apply(state, record)
        filled.save_snapshot(state.seq, state.to_json())
        (raw,) = filled._db.execute("SELECT state FROM snapshot").fetchone()
        for at in [m.start() for m in re.finditer(rb"[0-9](?=[,}])", raw)]:
            rotten = raw[:at] + (b"7" if raw[at : at + 1] != b"7" else b"8") + raw[at + 1 :]
            filled._db.execute("UPDATE snapshot SET state = ?", (rotten,))
            assert load_state(filled).to_json() == whole
        filled._db.execute("UPDATE snapshot SET state = ?, digest = '7'", (raw,))
        assert load_state(filled).to_json() == whole
        filled._db.execute("UPDATE snapshot SET state = CAST(state AS TEXT)")
        assert load_state(filled).to_json() == whole

    @pytest.mark.parametrize("snapshot", [False, True])
    def test_a_record_that_was_changed_is_named_before_anything_acts_on_it(
        self, filled: SqliteJournal, snapshot: bool
    ) -> None:
        if snapshot:
            state = State()
            for record in list(filled.records())[:5]:
                fold.apply(state, record)
            filled.save_snapshot(state.seq, state.to_json())
        filled._db.execute("UPDATE record SET body = replace(body, '\"t_ns\":', '\"t_ns\":1') WHERE seq = 7")
        filled._db.execute("UPDATE record SET body = CAST(body AS BLOB)")
        with pytest.raises(ChainError) as caught:
            load_state(filled)
        assert caught.value.seq == 7


TAMPERING = {
    "content": "UPDATE record SET body = CAST(replace(body, 'yyyy', 'yyyz') AS BLOB) WHERE seq = 4",
    "white space": "UPDATE record SET body = CAST(replace(body, '\"v\":1', '\"v\": 1') AS BLOB) WHERE seq = 4",
    "another field": 'UPDATE record SET body = CAST(replace(body, \'"v":1\', \'"v":1,"w":1\') AS BLOB) WHERE seq = 4',
    "a float": "UPDATE record SET body = CAST(replace(body, '\"t_ns\":4', '\"t_ns\":4.0') AS BLOB) WHERE seq = 4",
    "hash": f"UPDATE record SET hash = '{'0' * 64}' WHERE seq = 4",
    "no hash": "UPDATE record SET hash = 'text' WHERE seq = 4",
    "type": "UPDATE record SET type = 'committed' WHERE seq = 4",
    "time": "UPDATE record SET time = '1999' WHERE seq = 4",
    "deleted": "DELETE FROM record WHERE seq = 4",
    "no json": "UPDATE record SET body = x'ff00' WHERE seq = 4",
    "null": "UPDATE record SET body = x'6e756c6c' WHERE seq = 4",
}


@pytest.mark.parametrize("how", TAMPERING)
@pytest.mark.invariant("J3")
def test_tampering_is_named_with_the_number_of_the_record(how: str, journal: SqliteJournal, path: str) -> None:
    journal.append(rows_after(journal, 10), {})
    assert journal._db.execute(TAMPERING[how]).rowcount == 1
    with pytest.raises(ChainError, match="journal record 4: ") as caught:
        reopened(path)
    assert caught.value.seq == 4
    with pytest.raises(ChainError, match="journal record 4: "):
        load_state(journal)


@pytest.mark.invariant("K2")
def test_the_hash_of_a_record_that_is_not_there_is_no_other_s(journal: SqliteJournal) -> None:
    rows = rows_after(journal, 3)
    journal.append(rows, {})
    assert [journal.hash_of(record.seq) for record, _ in rows] == [record.hash for record, _ in rows]
    assert [journal.hash_of(seq) for seq in (-1, rows[-1][0].seq + 1)] == ["", ""]


@pytest.mark.invariant("J3")
def test_records_taken_off_the_end_of_a_journal_that_runs_are_missed(journal: SqliteJournal) -> None:
    journal.append(rows_after(journal, 5), {})
    journal._db.execute("DELETE FROM record WHERE seq = 4")
    with pytest.raises(ChainError, match="4: is missing"):
        load_state(journal)


# -- moving ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(journal: SqliteJournal) -> list[bytes]:
    journal.append(rows_after(journal, 6), blob(b"\0binary\xff") | blob(b"two"))
    out = io.BytesIO()
    assert export(journal, out) == (6, 2)
    return out.getvalue().splitlines(keepends=True)


class TestMoving:
    def test_an_import_of_an_export_is_the_same_journal(self, exported: list[bytes], path: str, tmp_path: Path) -> None:
        other = SqliteJournal(str(tmp_path / "other.db"))
        assert import_lines(other, iter(exported)) == (6, 2)
        other.append(rows_after(other, 1), {})
        other.close()
        records, blobs = reopened(str(tmp_path / "other.db"))
        assert (records[:6], blobs) == reopened(path)

    def test_an_import_into_a_journal_that_is_not_empty_is_refused(
        self, exported: list[bytes], journal: SqliteJournal
    ) -> None:
        with pytest.raises(JournalError, match="is not empty"):
            import_lines(journal, iter(exported))
        assert journal.seq == 5

    @pytest.mark.parametrize(
        ("line", "old", "new", "why"),
        [
            (2, b"yyyy", b"yyyz", "journal record 2: its content does not match"),
            (2, b'"seq":2', b'"seq":3', "journal record 2: found number 3"),
            (2, b'"seq":2', b'"seq":2,"extra":1', "journal record 2"),
            (2, b'"t_ns":2', b'"t_ns":2.0', "journal record 2"),
            (2, b"{", b"[", "line 3 is no record"),
            (6, b'"data":"', b'"data":"!', "line 7 is no record"),
            (6, b'"data":"', b'"data":"AAAA', "does not match its digest"),
            (6, b'{"blob":"', b'{"blob":5,"x":"', "does not match its digest"),
        ],
    )
    def test_an_export_that_was_changed_is_refused_whole(
        self, exported: list[bytes], tmp_path: Path, line: int, old: bytes, new: bytes, why: str
    ) -> None:
        exported[line] = exported[line].replace(old, new, 1)
        other = SqliteJournal(str(tmp_path / "other.db"))
        with pytest.raises((ChainError, JournalError), match=why):
            import_lines(other, iter(exported))
        assert other.seq == -1
        other.close()
        assert reopened(str(tmp_path / "other.db")) == ([], {})


# -- trouble --------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("J1", "F55")
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_journal_that_is_taken_away_under_its_writer_takes_nothing_more(
    journal: SqliteJournal, path: str, how: str
) -> None:
    """SQLite would write on into a file without a name, and all of it would be lost."""
    journal.append(rows_after(journal, 2), {})
    kept = path + ".kept"
    os.rename(path, kept)
    if how == "replaced":
        Path(path).write_bytes(Path(kept).read_bytes())
    for attempt in (lambda: journal.append(rows_after(journal, 1), {}), journal.probe):
        with pytest.raises(JournalError, match="removed or replaced"):
            attempt()
    assert journal.seq == 1
    os.rename(kept, path)  # the very file
    journal.probe()
    journal.append(rows_after(journal, 1), {})
    assert [r.seq for r in reopened(path)[0]] == [0, 1, 2]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.invariant("J4")
def test_on_a_full_disk_nothing_is_half_written_and_the_journal_goes_on_when_there_is_room(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        path = str(tmp_path / "journal.db")
        journal = SqliteJournal(path)
        written = 0
        with pytest.raises(JournalError, match="full"):
            while True:
                journal.append(rows_after(journal, 5, 2000), blob(os.urandom(5000)))
                written += 5
        assert 0 < written < 1000
        assert journal.seq == written - 1
        with pytest.raises(JournalError, match="full"):
            journal.append(rows_after(journal, 1), blob(os.urandom(200_000)))
        records, blobs = reopened(path)
        assert (len(records), len(blobs)) == (written, written // 5)
        subprocess.run(["mount", "-o", "remount,size=8m", tmp_path], check=True)
        journal.probe()
        journal.append(rows_after(journal, 5, 2000), {})
        journal.close()
        assert len(reopened(path)[0]) == written + 5
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_readers_see_whole_transactions_while_somebody_writes(journal: SqliteJournal, path: str) -> None:
    contents = [os.urandom(100) for _ in range(100)]
    names = [hashlib.sha256(c).hexdigest() for c in contents]
    journal.append([], {})
    seen, failures, done = 0, list[BaseException](), threading.Event()

    def read() -> None:
        nonlocal seen
        blobs = BlobReader(path)
        try:
            while not done.is_set() or blobs(names[-1]) is None:
                for name, data in zip(names, contents, strict=True):
                    found = blobs(name)
                    assert found in (None, data)
                    seen += found is not None
                records = reopened(path)[0]
                assert len(records) % 3 == 0
        except BaseException as exc:
            failures.append(exc)
        finally:
            blobs.close()

    reader = threading.Thread(target=read)
    reader.start()
    for name, data in zip(names, contents, strict=True):
        journal.append(rows_after(journal, 3), {name: data})
    done.set()
    reader.join(30)
    assert failures == []
    assert seen > 0


@pytest.mark.invariant("R5")
def test_content_that_rotted_in_the_store_is_not_given_to_a_rollback(journal: SqliteJournal, path: str) -> None:
    journal.append([], blob(b"good"))
    journal._db.execute("UPDATE blob SET data = x'00'")
    reader = BlobReader(path)
    with pytest.raises(JournalError, match="is damaged in the store"):
        reader(hashlib.sha256(b"good").hexdigest())
    reader.close()


def write_forever(path: str) -> None:
    """For a child: append until it is killed."""
    journal = SqliteJournal(path)
    while True:
        data = os.urandom(3000)
        journal.append(rows_after(journal, 3, 500), blob(data))


@pytest.mark.invariant("J1", "J3", "R6")
def test_a_writer_that_is_killed_leaves_a_journal_that_verifies(path: str) -> None:
    seed = int(os.environ.get("PACT_SEED", "1"))
    rng, context, before = random.Random(seed), multiprocessing.get_context("fork"), 0
    SqliteJournal(path).close()
    for round_ in range(15):
        child = context.Process(target=write_forever, args=(path,))
        child.start()
        time.sleep(0.01 + rng.random() * 0.05)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL, "the child itself failed"
        records, blobs = reopened(path)
        assert len(records) % 3 == 0, f"seed {seed}, round {round_}"
        assert len(blobs) == len(records) // 3
        assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())
        assert len(records) >= before
        before = len(records)
    assert before > 0
