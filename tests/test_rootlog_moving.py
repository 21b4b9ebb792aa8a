"""A backup of the root's log that is not whole is none; one that is comes back as the same log, in another store too."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from etcd_cluster import MISSING, REASON, EtcdCluster
from public_root import ACTOR, TIME, Chain, build

from pact.core.records import GENESIS, seal
from pact.core.root import chunks as chunks_
from pact.core.root import log
from pact.core.root.chunks import Batch, build_chunk
from pact.core.root.log import ROOT, RootState
from pact.errors import JournalError, PactError
from pact.journal.moving import CutError
from pact.journal.rootlog import LogStore
from pact.journal.rootlog_moving import Backup, fill_store, read_backup, read_store
from pact.journal.stores import open_store

CHUNKS = 8


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "root.db")


def filled(store: LogStore, *, snapshot_after: int = 5, trimmed: bool = True) -> RootState:
    """A log with a snapshot in its middle, and perhaps nothing before that."""
    fence = store.campaign("root")
    assert fence is not None
    state, chains = RootState(), [Chain(f"n{i}") for i in range(3)]
    for at in range(CHUNKS):
        first, count, raw = build(state, [c.batch("drift_detected", "committed") for c in chains], fence)
        store.append(fence, first, count, raw)
        if at + 1 == snapshot_after:
            store.save_snapshot(fence, state.gseq, state.to_bytes())
            if trimmed:
                store.trim(fence, state.gseq)
    return state


@pytest.fixture
def store(path: str) -> Iterator[LogStore]:
    opened = open_store(f"sqlite://{path}", "c1")
    yield opened
    opened.close()


def written(backup: Backup) -> bytes:
    out = io.BytesIO()
    backup.write(out)
    return out.getvalue()


@pytest.mark.invariant("J8")
@pytest.mark.parametrize("snapshot_after", [0, 5, CHUNKS])
def test_a_backup_comes_back_as_the_same_log_and_goes_on(store: LogStore, tmp_path: Path, snapshot_after: int) -> None:
    state = filled(store, snapshot_after=snapshot_after)
    backup = read_backup(io.BytesIO(written(read_store(store, "c1"))))
    other = open_store(f"sqlite://{tmp_path}/other.db", "c1")
    fill_store(other, backup, "root")
    snapshot, chunks = other.load()
    again = log.load(snapshot, chunks)
    assert again.to_bytes() == state.to_bytes() and (snapshot is not None) == bool(snapshot_after)
    fence = other.campaign("root")
    assert fence is not None
    first, count, raw = build(again, [Chain("n9").batch("committed")], fence)
    other.append(fence, first, count, raw)
    assert first == state.gseq + 1 and list(other.read(first)) == [raw]
    assert other.oldest() == (0 if not snapshot_after else chunks_.read_chunk(backup.chunks[0]).first)
    with pytest.raises(JournalError, match="not empty"):
        fill_store(other, backup, "root")
    other.close()


@pytest.mark.invariant("J8", "F61")
def test_a_backup_cut_anywhere_is_refused(store: LogStore) -> None:
    filled(store)
    raw = written(read_store(store, "c1"))
    for size in [*range(0, len(raw) - 1, 37), *range(len(raw) - 200, len(raw) - 1)]:
        with pytest.raises(PactError):
            read_backup(raw[:size].splitlines(keepends=True))
    lines = raw.splitlines(keepends=True)
    for count in range(len(lines)):
        with pytest.raises(CutError, match="cut off after"):
            read_backup(lines[:count])


@pytest.mark.invariant("J8", "F61")
def test_parts_that_are_missing_doubled_or_joined_are_refused(store: LogStore) -> None:
    filled(store)
    lines = written(read_store(store, "c1")).splitlines(keepends=True)
    for at in range(1, len(lines) - 1):
        with pytest.raises(PactError):
            read_backup([*lines[:at], *lines[at + 1 :]])
        if lines[at].startswith(b'{"snapshot"'):
            continue
        try:
            doubled = read_backup([*lines[: at + 1], *lines[at:]])
        except PactError:
            continue
        pytest.fail(f"line {at + 1} twice is taken: {doubled.end()}")
    for joined in ([*lines, *lines], [*lines, lines[-1]], [*lines[:3], lines[-1], *lines[3:]]):
        with pytest.raises(CutError, match=r"after the end|not what its end says"):
            read_backup(joined)
    with pytest.raises(PactError, match="line 1 is no part of a backup"):
        read_backup([b'{"root":{"v":2,"cluster":"c1"}}\n'])
    with pytest.raises(PactError, match="line 1 is no part of a backup"):
        read_backup([b"garbage\n"])


@pytest.mark.invariant("J8", "F37")
def test_a_damaged_log_makes_no_backup(store: LogStore, path: str) -> None:
    import sqlite3

    filled(store)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(
        "DELETE FROM chunk WHERE first = (SELECT max(first) FROM chunk WHERE first < (SELECT max(first) FROM chunk))"
    )
    db.close()
    try:
        backup = read_store(store, "c1")
    except PactError as exc:
        assert "damaged" in exc.message
    else:
        pytest.fail(f"{backup.end()}")


@pytest.mark.skipif(bool(MISSING), reason=REASON)
@pytest.mark.invariant("J8")
def test_a_log_moves_from_sqlite_to_etcd_and_back(store: LogStore, tmp_path: Path) -> None:
    state = filled(store)
    with EtcdCluster(tmp_path / "etcd") as etcd:
        there = open_store(etcd.url(), "c1")
        fill_store(there, read_store(store, "c1"), "root")
        with pytest.raises(JournalError, match="not empty"):
            fill_store(there, read_store(store, "c1"), "root")
        back = open_store(f"sqlite://{tmp_path}/back.db", "c1")
        fill_store(back, read_store(there, "c1"), "root")
        there.close()
    assert log.load(*back.load()).to_bytes() == state.to_bytes()
    back.close()


# -- the command ----------------------------------------------------------------------------------------------------


def pact(*args: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pact.cli.main", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def configured(tmp_path: Path, name: str, cluster: str = "c1") -> str:
    config = tmp_path / f"{name}.toml"
    config.write_text(
        f'[aggregator]\nname = "{name}"\ncluster = "{cluster}"\n[journal]\nurl = "sqlite://{tmp_path}/{name}.db"\n'
        f'[keys]\nsecret = "{tmp_path}/none"\n'
    )
    return str(config)


@pytest.mark.invariant("J8", "F61")
def test_the_command_backs_up_a_log_that_is_led_on_and_brings_it_back_whole(store: LogStore, tmp_path: Path) -> None:
    state = filled(store)
    here, there, out = configured(tmp_path, "root"), configured(tmp_path, "other"), str(tmp_path / "backup")
    code, said, _ = pact("--json", "journal", "export", "--root", here, out)
    assert code == 0 and json.loads(said)["gseq"] == state.gseq
    assert os.stat(out).st_mode & 0o777 == 0o600
    assert pact("journal", "verify", "--root", here)[0] == pact("journal", "verify", "--root", here, out)[0] == 0
    assert pact("journal", "verify", out)[0] == 2, "it is no export of an agent's journal"
    raw = Path(out).read_bytes()
    Path(out).write_bytes(raw[:-40])
    for action in ("verify", "import"):
        assert pact("journal", action, "--root", there, out)[0] == 1
    assert not (tmp_path / "other.db").exists()
    Path(out).write_bytes(raw)
    assert pact("journal", "import", "--root", configured(tmp_path, "third", "c2"), out)[0] == 2
    code, said, err = pact("journal", "import", "--root", there, out)
    assert code == 0 and "brought back" in said, err
    assert sorted(p.name for p in tmp_path.glob("other*")) == ["other.db", "other.toml"]
    code, _, err = pact("journal", "import", "--root", there, out)
    assert code == 2 and "exists already" in err
    again = open_store(f"sqlite://{tmp_path}/other.db", "c1")
    assert log.load(*again.load()).to_bytes() == state.to_bytes()
    again.close()
    code, _, err = pact("journal", "export", "--root", configured(tmp_path, "fourth"))
    assert code == 5 and "has a root run here?" in err and not (tmp_path / "fourth.db").exists()


def own(type_: str, data: object) -> bytes:
    """A chunk with one record of the root's own."""
    record, body = seal(0, GENESIS, TIME, 5, ROOT, type_, ACTOR, data)  # type: ignore[arg-type]
    line = body[:-1] + b',"hash":"' + record.hash.encode() + b'"}'
    return build_chunk(0, 1, 0, GENESIS, {type_: -1}, [Batch(ROOT, "", record.hash[:16], 0, [line])])


def chunk(lines: list[bytes], **changes: object) -> bytes:
    raw = build_chunk(0, 1, 0, GENESIS, {}, [Batch("n1", "", "i", 0, lines)])
    size = int.from_bytes(raw[:4], "little")
    head = orjson.dumps({**orjson.loads(raw[4 : 4 + size]), **changes})
    return len(head).to_bytes(4, "little") + head + raw[4 + size :]


LINE = b'{"seq":0,"type":"committed","hash":"h","time":"t"}'


@pytest.mark.parametrize(
    "bad",
    [
        chunk([b"{}"]),
        chunk([b"[]"]),
        chunk([b"7"]),
        chunk([LINE.replace(b"0", b"1")]),
        chunk([LINE.replace(b'"committed"', b"[]")]),
        chunk([LINE.replace(b'"h"', b"5")]),
        chunk([LINE], batches=[]),
        chunk([LINE], batches=[["n1", "", "i", 0, 1, -5]]),
        chunk([LINE], batches=[["n1", "", "i", 0.5, 1, len(LINE)]]),
        chunk([LINE], prevs=[]),
        chunk([LINE], wall_ns="x"),
        own("group_decided", {"group": "g1", "decision": "commit", "ballot": 1, "why": "", "args": {}}),
        own("hold_released", {"hold": "f1"}),
        own("group_begun", {"group": "g", "owner": {}}),
        own("hold_placed", {"hold": "fx"}),
        own("node_forgotten", {"nodes": 5}),
        own("agent_started", {"boot_id": [], "offset_ns": "x"}),
        b"",
        b"\xff\xff\xff\xff",
        b"\2\0\0\0[]",
    ],
)
def test_a_chunk_that_no_root_wrote_is_refused_and_ends_nothing(bad: bytes) -> None:
    lines = [b'{"root":{"v":1,"cluster":"c"}}', orjson.dumps({"chunk": base64.b64encode(bad).decode()}), b'{"end":{}}']
    with pytest.raises(PactError, match="damaged"):
        read_backup(lines)


def test_a_chunk_that_comes_again_or_is_not_the_snapshots_is_refused() -> None:
    """It would stand in the log unread, and be published."""
    state, chain = RootState(), Chain("n1")
    one, two = (build(state, [chain.batch("committed")])[2] for _ in range(2))
    Backup("c1", None, [one, two])
    Backup("c1", state.to_bytes(), [two])
    for snapshot, chunks in (
        (None, [one, one]),
        (None, [one, two, one]),
        (state.to_bytes(), [one]),
        (state.to_bytes(), [two.replace(b"committed", b"xommitted")]),
    ):
        with pytest.raises(PactError, match="damaged"):
            Backup("c1", snapshot, chunks)


@pytest.mark.parametrize(
    "bad",
    [
        [],
        5,
        {"version": 1},
        {"version": 1, "cursors": {}, "groups": [[]]},
        {"version": 1, "cursors": {"n": [1]}, "groups": []},
        {"version": 1, "cursors": {}, "groups": [], "gseq": "x"},
        {"version": 1, "cursors": {}, "groups": [], "apply": 5},
        {"version": 1, "cursors": {}, "groups": [], "holds": {"f1": {}}},
        {"version": 2},
    ],
)
def test_a_snapshot_that_no_root_wrote_is_refused_and_ends_nothing(bad: object) -> None:
    snapshot = base64.b64encode(orjson.dumps(bad)).decode()
    lines = [b'{"root":{"v":1,"cluster":"c"}}', orjson.dumps({"snapshot": snapshot}), b'{"end":{}}']
    with pytest.raises(PactError, match="damaged"):
        read_backup(lines)
