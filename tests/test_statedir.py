"""What is kept beside the journal, and which contents may be forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from pact.agent.config import Config
from pact.agent.statedir import MountPoints, own_paths, wanted_contents
from pact.core.node import fold
from pact.core.node.state import State
from pact.core.records import GENESIS, Record, seal
from pact.core.settings import Settings
from pact.declared.toml import Ignore
from pact.journal.sqlite import SqliteJournal

DECLARED, REPLACED, ORPHAN = "a" * 64, "b" * 64, "c" * 64
THEN_NS, LATER_NS = 1000, 2000
#: A wall clock that is far off, as it may be right after a boot, makes nothing old.
WALL = "1970-01-01T00:00:00.000000Z"
ACTOR = {"user": "root", "uid": 0, "role": "admin", "via": "socket"}


@pytest.mark.invariant("R4", "B2")
def test_only_contents_that_nothing_needs_are_forgotten(tmp_path: Path) -> None:
    journal, state = SqliteJournal(str(tmp_path / "journal.db")), State()
    started = {"boot_id": "b", "offset_ns": 0, "settings": Settings().to_json(), "not_before_ns": 0}
    declared = {
        "resources": {"file:/a": {"attrs": {"type": "file", "sha256": DECLARED, "size": 1}}},
        "saves": {"file:/a": {"attrs": None, "sha256": REPLACED}},
    }
    rows: list[tuple[Record, bytes]] = []
    for type_, data in (("agent_started", started), ("declared", declared)):
        prev = rows[-1][0].hash if rows else GENESIS
        rows.append(seal(len(rows), prev, WALL, THEN_NS, "n", type_, ACTOR, data))
        fold.apply(state, rows[-1][0])
    journal.append(rows, {DECLARED: b"1", REPLACED: b"2", ORPHAN: b"3"})
    assert wanted_contents(state, journal, THEN_NS) == {DECLARED, REPLACED}
    assert wanted_contents(state, journal, LATER_NS) == {DECLARED}, "replaced too long ago"
    assert journal.prune(wanted_contents(state, journal, THEN_NS)) == 1
    assert (journal.blob(ORPHAN), journal.blob(REPLACED)) == (None, b"2")
    journal.close()


def test_mount_points_are_remembered_for_one_boot_only(tmp_path: Path) -> None:
    known = MountPoints(str(tmp_path / "mounts"))
    assert known.load("boot") is None
    known.save(boot_id="boot", points=["/", "/a%0Ab"])
    assert (known.load("boot"), known.load("another")) == (["/", "/a%0Ab"], None)
    (tmp_path / "mounts").write_bytes(b"{")
    assert known.load("boot") is None


def test_pact_s_own_files_and_what_is_mounted_over_them_are_no_resources() -> None:
    ignore = Ignore(
        own_paths(Config(state_dir="/data/pact", socket="/srv/s", path="/opt/agent.toml", secret="/keys/n.secret"))
    )
    for own in (
        "file:/data/pact",
        "file:/data/pact/journal.db",
        "mount:/data/pact",
        "mount:/data/pact/x",
        "file:/keys/n.secret",
        "mount:/keys/n.secret",
        "file:/opt/agent.toml",
        "file:/srv/s",
        "mount:/etc/pact",
    ):
        assert ignore.match(own) is not None, own
    for other in ("file:/data", "mount:/data", "file:/data/pactx", "file:/keys/other", "mount:/etc"):
        assert ignore.match(other) is None, other
