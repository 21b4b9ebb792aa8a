"""The root's log in SQLite: the suite of all stores, kills, full disks, damaged files, and which store a URL means."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from public_root import Chain, build
from rootlog_suite import Conformance, Opener, chunk, fill, kept, lead, running, until

from pact.cluster.committer import Committer, Deposed, Durable, Elected, Failed, Works
from pact.cluster.rootpart import RootPart
from pact.core.records import TYPES
from pact.core.root.log import TYPES_MAX, RootState, Writer
from pact.errors import ConfigError, Fenced, JournalError
from pact.journal.rootlog import LogStore
from pact.journal.rootlog_sqlite import SqliteLog
from pact.journal.stores import endpoints, open_store

WRITER = """
import sys
import time
from pact.journal.stores import open_store
store = open_store("sqlite://" + sys.argv[1])
fence = store.campaign("writer")
_, chunks = store.load()
first = 1 + sum(int(c.split(b"+")[1].split(b";")[0]) for c in chunks)
while True:
    data = f"{first}+3;".encode() + bytes(4000)
    store.append(fence, first, 3, data)
    print(first, flush=True)
    first += 3
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "root.db")


class TestSqlite(Conformance):
    @pytest.fixture
    def opener(self, path: str) -> Callable[[], LogStore]:
        return lambda: open_store(f"sqlite://{path}", "c1")

    def depose(self, store: LogStore, stores: Opener) -> tuple[LogStore, int]:
        assert isinstance(store, SqliteLog)
        os.unlink(store.path + ".lock")  # the lock is gone, whoever did that: the fence still holds
        other = stores()
        return other, lead(other, "b")


def test_the_stores_are_what_the_protocol_says(path: str) -> None:
    store = open_store(f"sqlite://{path}")
    assert isinstance(store, LogStore)
    store.close()
    store.close()
    for act in (lambda: store.campaign("a"), lambda: store.append(1, 1, 1, b"x"), store.oldest, store.load):
        with pytest.raises(JournalError, match="closed"):
            act()


@pytest.mark.invariant("Q3")
def test_what_a_killed_writer_was_told_is_durable_and_what_follows_continues(path: str) -> None:
    told = 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(25):
            told = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read()
        process.stdout.close()
        process.wait()
        told = max([told, *(int(n) for n in rest.splitlines(keepends=True) if n.endswith("\n"))])
        store = open_store(f"sqlite://{path}")
        numbers = [int(c.split(b"+")[0]) for c in kept(store)[1]]
        assert numbers == list(range(1, numbers[-1] + 1, 3))
        assert told <= numbers[-1] <= told + 3
        assert lead(store)  # the lock went with its process
        store.close()


@pytest.mark.invariant("Q4")
def test_fences_grow_with_every_election_of_any_process(path: str) -> None:
    fences = []
    for _ in range(5):
        store = open_store(f"sqlite://{path}")
        fences.append(lead(store))
        store.close()
    assert fences == sorted(set(fences)) and len(fences) == 5


def test_types_that_one_node_makes_up_keep_nobody_elses_records_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = {f"{x}_{chr(97 + n // 26)}{chr(97 + n % 26)}" for x in "xyz" for n in range(TYPES_MAX)}
    monkeypatch.setattr("pact.core.records.TYPES", TYPES | made_up)  # a node that writes what it likes
    state, evil, good = RootState(), Chain("evil"), Chain("n1")
    for i in range(TYPES_MAX // 64):
        build(state, [evil.batch(*(f"x_{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(64 * i, 64 * i + 64)))])
    assert len(state.last) == TYPES_MAX
    build(state, [good.batch(*sorted(TYPES))])
    assert state.cursors["n1"].seq == len(TYPES) - 1
    before = evil.seq
    with pytest.raises(ValueError, match="nobody has heard of"):
        Writer(state, 1, "root").take(evil.batch("y_aa"))
    with pytest.raises(ValueError, match="nobody has heard of"):  # however many at once
        Writer(RootState(), 1, "root").take(Chain("n2").batch(*sorted(made_up)[: TYPES_MAX + 1]))
    assert state.cursors["evil"].seq == before


@pytest.mark.invariant("Q3", "F55")
def test_a_log_whose_file_is_taken_away_is_durable_no_more_and_says_so(path: str) -> None:
    store = open_store(f"sqlite://{path}")
    fence = lead(store)
    store.append(fence, 1, 1, chunk(1, 1))
    os.rename(path, path + ".kept")
    with pytest.raises(JournalError, match="removed or replaced"):
        store.append(fence, 2, 1, chunk(2, 1))
    os.rename(path + ".kept", path)
    store.append(fence, 2, 1, chunk(2, 1))
    assert kept(store)[1] == [chunk(1, 1), chunk(2, 1)]
    store.close()


@pytest.mark.root
@pytest.mark.invariant("Q5", "F31")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_refuses_loses_nothing_and_the_same_chunk_is_written_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "pact-test", str(disk)], check=True)
    try:
        with running(lambda: open_store(f"sqlite://{disk}/root.db"), "a") as (committer, next_post):
            fence = next_post(Elected).fence
            committer.append(fence, 1, 1, chunk(1, 1))
            next_post(Durable)
            with pytest.raises(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while filler.write(bytes(1 << 16)):
                    pass
            large = chunk(2, 1, 2 << 20)
            committer.append(fence, 2, 1, large)
            committer.append(fence, 3, 1, chunk(3, 1))
            failed = next_post(Failed)
            assert failed.what == "append"
            assert "full" in failed.why or "I/O" in failed.why
            part = RootPart.__new__(RootPart)
            part.root, part.trouble, part._last_failed = None, "", ""
            list(part._posted(failed, 0, 0))
            assert not part.shown()["healthy"]
            (disk / "filler").unlink()
            assert [next_post(Durable).first, next_post(Durable).first] == [2, 3]
            assert list(committer.read(1)) == [chunk(1, 1), large, chunk(3, 1)]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.invariant("F37")
def test_a_damaged_snapshot_is_not_used(path: str) -> None:
    store = open_store(f"sqlite://{path}")
    fence = lead(store)
    fill(store, fence, 2, 2)
    store.save_snapshot(fence, 2, b"two")
    with sqlite3.connect(path) as db:
        db.execute("UPDATE snapshot SET data = ?", (b"tow",))
    db.close()
    assert kept(store) == (None, [chunk(1, 2), chunk(3, 2)])  # everything is still there
    store.trim(fence, 3)
    with pytest.raises(JournalError, match="damaged"):
        store.load()
    store.close()


@pytest.mark.parametrize("spoil", ["garbage", "other", "version", "cluster", "directory", "link"])
def test_what_is_no_log_of_this_cluster_is_refused_and_left(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "root.db"
    if spoil == "garbage":
        path.write_bytes(b"no database at all" * 100)
    elif spoil == "directory":
        path.mkdir()
    elif spoil == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif spoil in ("version", "cluster"):
        open_store(f"sqlite://{path}", "other" if spoil == "cluster" else "c1").close()
    if spoil in ("other", "version"):
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE x (y)" if spoil == "other" else "PRAGMA user_version=9")
        db.commit()
        db.close()
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(JournalError):
        open_store(f"sqlite://{path}", "c1")
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_store_that_does_not_open_is_tried_again(tmp_path: Path) -> None:
    away = tmp_path / "not yet"
    with running(lambda: open_store(f"sqlite://{away}/root.db"), "a") as (_, next_post):
        assert next_post(Failed).what == "open"
        away.mkdir()
        next_post(Elected)


@pytest.mark.invariant("Q5")
def test_a_standby_whose_campaigns_failed_for_a_while_says_that_they_work_again(path: str) -> None:
    leader = open_store(f"sqlite://{path}")
    assert leader.campaign("leader")
    part = RootPart.__new__(RootPart)
    part.root, part.trouble, part._last_failed = None, "", ""
    with running(lambda: open_store(f"sqlite://{path}"), "b") as (_, next_post):
        os.rename(path + ".lock", path + ".away")
        os.mkdir(path + ".lock")
        list(part._posted(next_post(Failed), 0, 0))
        assert not part.shown()["healthy"]
        os.rmdir(path + ".lock")
        os.rename(path + ".away", path + ".lock")
        list(part._posted(next_post(Works), 0, 0))
        assert part.shown()["healthy"] and part.shown()["trouble"] == ""
    leader.close()


def test_a_bug_in_the_thread_is_said_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug() -> LogStore:
        raise ZeroDivisionError

    monkeypatch.setattr("threading.excepthook", lambda args: None)
    committer = Committer(bug, "a")
    committer.start()
    until(lambda: not committer.alive)
    (post,) = committer.poll()
    assert isinstance(post, Deposed)
    assert "ZeroDivisionError" in post.why
    committer.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("root.db", "neither"),
        ("postgres://x", "neither"),
        ("sqlite://", "absolute"),
        ("sqlite://relative.db", "absolute"),
        ("sqlite:///x.db?user=y", "nothing to SQLite"),
        ("etcd://", "host:port"),
        ("etcd://a,,b", "host:port"),
        ("etcd://a:99999", "host:port"),
        ("etcd://a b", "host:port"),
        ("etcd://a?password=x", "none of"),
        ("etcd://a?cert=x", "together"),
        ("etcd://a?user=x", "together"),
        ("etcd://a?cert=x&key=y", "ca"),
        ("etcd://a?lease=1", "lease"),
        ("etcd://a?lease=x", "lease"),
    ],
)
def test_a_url_that_means_no_store_is_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        open_store(url)


@pytest.mark.parametrize("cluster", ["", "a/b", ".hidden", "x" * 64, "a\n"])
def test_a_cluster_has_a_plain_name(path: str, cluster: str) -> None:
    with pytest.raises(ConfigError):
        open_store(f"sqlite://{path}", cluster)


def test_endpoints_have_a_default_port() -> None:
    assert endpoints("h1,h2:4001,[::1]:99,[fe80::1]") == ["h1:2379", "h2:4001", "[::1]:99", "[fe80::1]:2379"]


def test_a_fenced_write_is_a_conflict() -> None:
    assert Fenced("x").exit_code == 4


@pytest.mark.invariant("Q4")
def test_a_log_that_was_lost_or_restored_begins_above_every_fence_that_nodes_have_obeyed(path: str) -> None:
    """A node refuses a lower fence than it has obeyed: a file made anew must not begin at one."""
    first = open_store(f"sqlite://{path}")
    obeyed = first.campaign("r")
    first.close()
    os.unlink(path)
    again = open_store(f"sqlite://{path}")
    time.sleep(1.0)
    fence = again.campaign("r")
    again.close()
    assert obeyed is not None and fence is not None and fence > obeyed


def test_a_state_too_large_to_keep_is_said_and_ends_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pact.journal.rootlog.SNAPSHOT_MAX", 3)
    store = open_store(f"sqlite://{tmp_path}/root.db", "default")
    try:
        fence = store.campaign("r1")
        assert fence
        store.append(fence, 0, 1, b"chunk")
        store.save_snapshot(fence, 0, b"abc")
        with pytest.raises(JournalError, match="4 bytes"):
            store.save_snapshot(fence, 0, b"abcd")
        store.append(fence, 1, 1, b"more")
        assert store.load()[0] == b"abc"
    finally:
        store.close()


@pytest.mark.invariant("G4", "F57")
def test_a_fence_that_nodes_have_obeyed_can_be_set_where_the_log_was_lost(tmp_path: Path) -> None:
    """As docs/cluster.md says: a clock that was years ahead gave it, and no root would reach it again."""
    for fence in (None, 4_102_444_800):
        if fence is not None:
            database = sqlite3.connect(tmp_path / "root.db")
            database.execute(f"UPDATE meta SET fence = {fence}")
            database.commit()
            database.close()
        store = open_store(f"sqlite://{tmp_path}/root.db", "default")
        got = store.campaign("r1")
        store.close()
        assert got is not None and got > (fence or 0)


@pytest.mark.invariant("F60", "Q3")
def test_a_log_that_has_lost_its_end_says_so_once_and_goes_on(path: str, tmp_path: Path) -> None:
    """The root works on with what is left, as with a backup; but not without a word."""
    child = os.fork()
    if child == 0:
        try:
            store = open_store(f"sqlite://{path}")
            fill(store, lead(store), *[1] * 60)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    log = Path(path + "-wal")
    with open(log, "r+b") as f:
        f.seek(log.stat().st_size // 2)
        f.write(b"garbage" * 1000)
    with running(lambda: open_store(f"sqlite://{path}"), "a") as (committer, next_post):
        elected = next_post(Elected)
        assert 0 < len(elected.chunks) < 60
        following = len(elected.chunks) + 1
        assert f"ends at event {following - 1}, and events up to 60 were committed" in elected.lost
        committer.append(elected.fence, following, 1, chunk(following, 1))
        assert next_post(Durable).first == following
    with running(lambda: open_store(f"sqlite://{path}"), "b") as (_, next_post):
        assert next_post(Elected).lost == ""


@pytest.mark.invariant("F60", "F31")
def test_a_chunk_whose_head_cannot_be_written_is_not_acknowledged_and_comes_again(path: str) -> None:
    store = open_store(f"sqlite://{path}")
    fence = lead(store)
    fill(store, fence, 1)
    head = path.removesuffix(".db") + ".head"
    os.rename(head, head + ".kept")
    for _ in range(2):
        with pytest.raises(JournalError, match=r"root\.head"):
            store.append(fence, 2, 1, chunk(2, 1))
    os.rename(head + ".kept", head)
    store.append(fence, 2, 1, chunk(2, 1))
    assert kept(store)[1] == [chunk(1, 1), chunk(2, 1)]
    store.close()
    Path(head).write_bytes(b"damaged")
    again = open_store(f"sqlite://{path}")
    assert lead(again) and isinstance(again, SqliteLog) and again.lost == "", "nothing is known, and it goes on"
    again.close()
