"""An export that is not whole is none: cut anywhere, joined, thinned, or with a mark that is not its end."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from journal_kit import blob, rows_after

from pact.core.records import GENESIS, digest
from pact.errors import ChainError, JournalError, PactError
from pact.journal.moving import CutError, export, import_lines, read_export
from pact.journal.sqlite import SqliteJournal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(str(tmp_path / "journal.db"))
    opened.append(rows_after(opened, 6), blob(b"\0binary\xff") | blob(b"two"))
    yield opened
    opened.close()


@pytest.fixture
def exported(journal: SqliteJournal) -> bytes:
    out = io.BytesIO()
    assert export(journal, out) == (6, 2)
    return out.getvalue()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(str(tmp_path / "other.db"))
    yield opened
    opened.close()


def refused(other: SqliteJournal, raw: bytes, why: str) -> None:
    with pytest.raises(PactError, match=why):
        import_lines(other, iter(raw.splitlines(keepends=True)))
    assert other.seq == -1 and not list(other.blobs())


@pytest.mark.invariant("J8", "F61")
def test_an_export_cut_anywhere_is_refused(exported: bytes, other: SqliteJournal) -> None:
    for size in range(1, len(exported) - 1):  # without the last line's end it is whole
        with pytest.raises((CutError, ChainError)):
            list(read_export(iter(exported[:size].splitlines(keepends=True))))
    lines = exported.splitlines(keepends=True)
    for count in range(1, len(lines)):
        refused(
            other, b"".join(lines[:count]), rf"cut off after {min(count, 6)} records and {max(0, count - 6)} contents"
        )
    assert import_lines(other, iter([*lines[:-1], lines[-1].rstrip()])) == (6, 2)


@pytest.mark.invariant("J8", "F61")
def test_a_compressed_export_cut_anywhere_is_refused(exported: bytes) -> None:
    packed = gzip.compress(exported, 1)
    for size in range(1, len(packed), 3):
        with pytest.raises((CutError, ChainError, EOFError, OSError)), gzip.open(io.BytesIO(packed[:size])) as lines:
            list(read_export(iter(lines)))
            raise CutError("it held nothing: that is refused elsewhere")


@pytest.mark.invariant("J8", "F61")
def test_parts_that_are_missing_or_others_are_noticed(exported: bytes, other: SqliteJournal) -> None:
    *records, one, two, end = exported.splitlines(keepends=True)
    refused(
        other, b"".join([*records, one, end]), "says at its end that it holds 6 records and 2 contents, and holds 6"
    )
    refused(other, b"".join([*records, end]), "2 contents, and holds 6 records and 0 contents")
    refused(other, b"".join([*records[:-1], one, two, end]), "and holds 5 records")
    refused(other, b"".join([*records, one, one, end]), "parts are missing, or are others")
    refused(other, b"".join([*records, one, blob_line(b"another"), end]), "parts are missing, or are others")
    for wrong in (b'{"end":null}\n', b'{"end":{}}\n', b'{"end":[1]}\n', end.replace(b'"records":6', b'"records":7')):
        refused(other, b"".join([*records, one, two, wrong]), "the export says at its end that it holds")


def blob_line(data: bytes) -> bytes:
    ((name, content),) = blob(data).items()
    return b'{"blob":"' + name.encode() + b'","data":"' + base64.b64encode(content) + b'"}\n'


@pytest.mark.invariant("J8", "F61")
def test_nothing_comes_after_the_end(exported: bytes, other: SqliteJournal) -> None:
    lines = exported.splitlines(keepends=True)
    refused(other, exported + exported, "line 10 comes after the end of the export")
    refused(other, exported + lines[0], "line 10 comes after the end")
    refused(other, exported + lines[-1], "line 10 comes after the end")
    refused(other, b"".join([*lines[:3], lines[-1], *lines[3:]]), "line 5 comes after the end")
    refused(other, exported + b"\n", "line 10 comes after the end")


@pytest.mark.invariant("J8")
def test_an_export_of_an_older_version_is_taken_where_somebody_says_so(exported: bytes, other: SqliteJournal) -> None:
    lines = exported.splitlines(keepends=True)[:-1]
    with pytest.raises(CutError, match="no mark at its end") as caught:
        import_lines(other, iter(lines))
    assert "--without-mark" in caught.value.hint
    assert import_lines(other, iter(lines), marked=False) == (6, 2)


@pytest.mark.invariant("J8")
def test_a_mark_that_is_there_is_believed_whatever_is_said(exported: bytes, other: SqliteJournal) -> None:
    lines = exported.splitlines(keepends=True)
    with pytest.raises(CutError, match="parts are missing"):
        import_lines(other, iter([*lines[:-2], lines[-1]]), marked=False)


def test_the_export_of_an_empty_journal_says_that_it_is_empty(other: SqliteJournal) -> None:
    out = io.BytesIO()
    assert export(other, out) == (0, 0)
    assert list(read_export(iter([out.getvalue()]))) == [] and GENESIS.encode() in out.getvalue()


def test_an_import_gives_the_journal_its_head(exported: bytes, other: SqliteJournal) -> None:
    import_lines(other, iter(exported.splitlines(keepends=True)))
    other.require_head()
    other._open.execute("DELETE FROM record WHERE seq = 5")
    again = SqliteJournal(other.path, read_only=True)
    with pytest.raises((ChainError, JournalError), match="5: is missing"):
        again.require_head()
    again.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"t_ns": "1"},
        {"t_ns": 1.5},
        {"node": 5},
        {"type": []},
        {"actor": None},
        {"time": {}},
        {"data": []},
        {"type": "committed", "data": {}},
        {"type": "window_opened", "data": {"change": "c1"}},
        {"type": "agent_started", "data": {"x": 1}},
        {"type": "declared", "data": {"resources": 5}},
        {"type": "change_split", "data": {"change": "c9"}},
    ],
)
def test_records_on_which_no_agent_would_start_are_not_taken(changes: dict[str, object], other: SqliteJournal) -> None:
    """Their hashes are right: whoever can edit an export can compute them."""
    record = {
        "v": 1,
        "seq": 0,
        "prev": GENESIS,
        "time": "2026-01-01T00:00:00.000000Z",
        "t_ns": 1,
        "node": "n1",
        "type": "denied",
        "actor": {},
        "data": {},
        **changes,
    }
    record["hash"] = digest(GENESIS, orjson.dumps(record, option=orjson.OPT_SORT_KEYS))
    with pytest.raises(ChainError):
        import_lines(other, iter([orjson.dumps(record)]), marked=False)
    assert other.seq == -1
