"""Signatures that one run leaves to the next: what of them is believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pact.agent.signatures import moved_since, pack, spoken_of, unpack
from pact.core.records import Record, seal
from pact.journal.sqlite import SqliteJournal


def test_they_come_back_with_the_record_that_they_are_true_for() -> None:
    assert unpack(pack(7, "ab" * 32, b"dump\nwith lines")) == (7, "ab" * 32, b"dump\nwith lines")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b'pact signatures 1\n[1,"a"]\n',
        b"pact signatures 2\n",
        b"pact signatures 2\n[1]\nx",
        b"pact signatures 2\n{}\nx",
        b'pact signatures 2\n[1,"a"]',
        b"old dump",
    ],
)
def test_what_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"signatures|line 1"):
        unpack(raw)


def filled(path: Path) -> SqliteJournal:
    journal = SqliteJournal(str(path / "j.db"))
    rows, prev = list[tuple[Record, bytes]](), "0" * 64
    data = [
        {"resource": "sysctl:a"},
        {"resources": {"file:/x": {"attrs": None}}},
        {"plan": [{"id": "mount:/m", "why": "no: kind"}], "left": {"module:m": "x"}},
    ]
    for seq, each in enumerate(data):
        row = seal(seq, prev, "t", seq, "n", "drift_detected", {}, each)
        rows.append(row)
        prev = row[0].hash
    journal.append(rows, {})
    return journal


@pytest.mark.invariant("J5")
def test_what_the_journal_has_moved_since_is_known(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    hashes = [r.hash for r in journal.records()]
    assert moved_since(journal, 0, hashes[0]) == {"file:/x", "mount:/m", "module:m"}
    assert moved_since(journal, 2, hashes[2]) == set()
    assert moved_since(journal, -1, "") == {"sysctl:a", "file:/x", "mount:/m", "module:m"}
    assert moved_since(journal, 1, hashes[2]) is None, "another journal's record"
    assert moved_since(journal, 3, hashes[2]) is None, "a journal that was put back"
    journal.close()


def test_only_names_of_known_kinds_count() -> None:
    record = seal(0, "0" * 64, "t", 0, "n", "denied", {}, {"why": "a: b", "x": ["sysctl:a", "http://x", "file:"]})[0]
    assert set(spoken_of(record)) == {"sysctl:a"}
