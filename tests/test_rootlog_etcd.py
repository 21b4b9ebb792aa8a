"""The root's log on a real etcd of three members: the suite of all stores, members that die, stop and return, TLS and users."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from etcd_cluster import MISSING, REASON, EtcdCluster
from rootlog_suite import Conformance, Opener, chunk, fill, kept, lead, refuses_within, running, until

from pact.cluster.committer import Deposed, Durable, Elected, Failed
from pact.errors import ConfigError, Fenced, JournalError
from pact.journal import etcd_client
from pact.journal.rootlog import LogStore
from pact.journal.rootlog_etcd import VALUE_MAX, EtcdLog
from pact.journal.stores import open_store

pytestmark = pytest.mark.skipif(bool(MISSING), reason=REASON)
FAST = "3"  # seconds of lease


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One etcd for the tests that leave it whole; each has a cluster name of its own."""
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdCluster]:
    """One whose members may be killed."""
    with EtcdCluster(tmp_path / "etcd") as etcd:
        yield etcd


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"c{abs(hash(request.node.nodeid))}"


@pytest.fixture
def opener(shared: EtcdCluster, name: str) -> Opener:
    return lambda: open_store(shared.url(lease=FAST), name)


class TestEtcd(Conformance):
    @pytest.fixture
    def opener(self, shared: EtcdCluster, name: str) -> Opener:
        return lambda: open_store(shared.url(lease=FAST), name)

    def depose(self, store: LogStore, stores: Opener) -> tuple[LogStore, int]:
        assert isinstance(store, EtcdLog)
        other = stores()
        assert isinstance(other, EtcdLog)
        other._revoke(store._lease)
        return other, lead(other, "b")


# -- what is in etcd ------------------------------------------------------------------------------------------------


def keys(etcd: EtcdCluster, name: str) -> list[str]:
    return [
        k.removeprefix(f"/pact/{name}/") for k in etcd.ctl("get", "--prefix", f"/pact/{name}/", "--keys-only").split()
    ]


@pytest.mark.invariant("Q3")
def test_parts_of_a_large_chunk_are_there_before_anybody_is_told_of_it(
    shared: EtcdCluster, name: str, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, reader = open_store(shared.url(lease="60"), name), opener()  # it reads all between any two writes
    assert isinstance(store, EtcdLog)
    fence = lead(store)
    fill(store, fence, 1)
    large = chunk(2, 1, 3 * VALUE_MAX)
    write, seen = store._write, []

    def spy(*args: Any) -> Any:
        answer = write(*args)
        seen.append((list(reader.read(1)), len([k for k in keys(shared, name) if k.startswith("part/")])))
        if len(seen) == 3:
            raise JournalError("cut off before the last part")
        return answer

    monkeypatch.setattr(store, "_write", spy)
    with pytest.raises(JournalError, match="cut off"):
        store.append(fence, 2, 1, large)
    assert seen == [([chunk(1, 1)], 1), ([chunk(1, 1)], 2), ([chunk(1, 1)], 3)]
    monkeypatch.undo()
    store.append(fence, 2, 1, chunk(2, 1, 2 * VALUE_MAX))  # what the next root may write there instead
    assert list(reader.read(1)) == [chunk(1, 1), chunk(2, 1, 2 * VALUE_MAX)]
    store.save_snapshot(fence, 2, b"two")
    store.trim(fence, 3)
    assert keys(shared, name) == ["head", "leader", f"snap/{2:020d}-{fence:020d}/000000", "snapshot", "term"]
    store.close()
    reader.close()


@pytest.mark.invariant("Q6")
def test_a_snapshot_that_was_cut_off_is_never_seen_and_is_cleared_away(
    shared: EtcdCluster, name: str, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener()
    assert isinstance(store, EtcdLog)
    fence = lead(store)
    fill(store, fence, 1, 1, 1)
    store.save_snapshot(fence, 1, b"one")
    put, writes = store._put, []

    def cut(key: bytes, value: bytes) -> Any:
        writes.append(key)
        if len(writes) == 3:
            raise JournalError("cut off")
        return put(key, value)

    monkeypatch.setattr(store, "_put", cut)
    with pytest.raises(JournalError, match="cut off"):
        store.save_snapshot(fence, 2, bytes(3 * VALUE_MAX))
    monkeypatch.undo()
    assert kept(store) == (b"one", [chunk(2, 1), chunk(3, 1)])
    store.save_snapshot(fence, 3, b"three")
    assert len([k for k in keys(shared, name) if k.startswith("snap/")]) == 1
    assert kept(store) == (b"three", [])
    store.close()


@pytest.mark.invariant("F37")
def test_what_is_damaged_in_etcd_is_not_the_end_of_the_log(shared: EtcdCluster, name: str, opener: Opener) -> None:
    store = opener()
    fence = lead(store)
    store.append(fence, 1, 1, chunk(1, 1, 2 * VALUE_MAX))
    fill(store, fence, 1, first=2)
    store.save_snapshot(fence, 1, b"one")
    shared.ctl("put", f"/pact/{name}/part/{1:020d}/000001", "rot")
    assert list(store.read(1)) == [b"", chunk(2, 1)], "no bytes stand for it, and what comes after it is read"
    shared.ctl("put", f"/pact/{name}/log/{1:020d}", "rot")
    assert list(store.read(1)) == [b"", chunk(2, 1)]
    assert kept(store) == (b"one", [chunk(2, 1)])
    shared.ctl("put", f"/pact/{name}/snap/{1:020d}-{fence:020d}/000000", "rot")
    with pytest.raises(JournalError, match="damaged"):
        store.load()
    store.close()


def test_clusters_on_one_etcd_know_nothing_of_each_other(shared: EtcdCluster, name: str) -> None:
    a, b = open_store(shared.url(), name), open_store(shared.url(), name + ".x")
    fill(a, lead(a), 1)
    fill(b, lead(b), 2, 2)
    assert (kept(a)[1], kept(b)[1]) == ([chunk(1, 1)], [chunk(1, 2), chunk(3, 2)])
    a.close()
    b.close()


def test_the_chunk_that_holds_an_event_is_found_wherever_the_others_are(opener: Opener) -> None:
    store = opener()
    fence, first, counts = lead(store), 0, [1, 300, 2, 1, 1, 77, 1024, 5]
    starts = []
    for count in counts:
        store.append(fence, first, count, chunk(first, count))
        starts.append(first)
        first += count
    for gseq in sorted({g for s in starts for g in (s - 1, s, s + 1, s + 40)} & set(range(first))):
        at = max(s for s in starts if s <= gseq)
        assert next(store.read(gseq)) == chunk(at, counts[starts.index(at)])
    assert list(store.read(first)) == list(store.read(first + 5000)) == []
    store.close()


# -- answers that get lost ------------------------------------------------------------------------------------------


@pytest.mark.invariant("Q2", "F36")
@pytest.mark.parametrize("size", [10, 2 * VALUE_MAX])
def test_an_append_whose_answer_was_lost_is_not_done_twice(
    opener: Opener, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    store = opener()
    assert isinstance(store, EtcdLog)
    fence = lead(store)
    txn = store._txn

    def lost(*args: Any) -> Any:
        txn(*args)
        raise JournalError("Deadline Exceeded")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(store, "_txn", lost)
            with pytest.raises(JournalError):
                store.append(fence, 1, 1, chunk(1, 1, size))
    store.append(fence, 1, 1, chunk(1, 1, size))
    assert kept(store)[1] == [chunk(1, 1, size)]
    store.append(fence, 2, 1, chunk(2, 1))
    store.close()


@pytest.mark.invariant("Q4", "F36")
def test_an_election_whose_answer_was_lost_is_held_again(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener()
    assert isinstance(store, EtcdLog)
    txn = store._txn
    with monkeypatch.context() as patch:
        patch.setattr(store, "_txn", lambda *args: (txn(*args), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            store.campaign("a")
    assert not store.leading()
    fence = store.campaign("a")
    assert fence is not None  # its own earlier candidacy does not stand in the way
    fill(store, fence, 1)
    store.close()


@pytest.mark.invariant("Q4", "G4")
def test_a_log_that_moves_from_sqlite_or_is_restored_gives_no_fence_that_nodes_take_for_an_old_one(
    opener: Opener, shared: EtcdCluster, name: str, tmp_path: Path
) -> None:
    before = open_store(f"sqlite://{tmp_path}/root.db", "default", {})
    fence = lead(before)
    before.close()
    store = opener()
    moved = lead(store)
    assert moved >= fence and moved > 1_700_000_000
    store.close()
    shared.ctl("put", f"/pact/{name}/term", str(moved + 500))
    again = opener()
    assert lead(again) == moved + 501
    again.close()
    shared.ctl("del", f"/pact/{name}/term")  # as an old backup
    restored = opener()
    assert lead(restored) >= moved
    restored.close()


@pytest.mark.invariant("Q4")
def test_a_lease_that_was_in_doubt_is_never_taken_up_again(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener()
    assert isinstance(store, EtcdLog)
    fence = lead(store)
    fill(store, fence, 1)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    with monkeypatch.context() as patch:
        patch.setattr("pact.journal.rootlog_etcd._now_s", lambda: now + 60)
        assert not store.leading()
    assert not store.leading()
    assert lead(store) > fence
    store.close()


@pytest.mark.invariant("Q1")
def test_a_leader_that_slept_through_its_lease_is_refused(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = opener(), opener()
    assert isinstance(a, EtcdLog)
    fence = lead(a)
    fill(a, fence, 1)
    monkeypatch.setattr(a._etcd, "keep_alive", lambda *_, **__: (_ for _ in ()).throw(JournalError("asleep")))
    monkeypatch.setattr(a, "leading", lambda: True)  # it believes so
    second = lead(b, "b")
    with pytest.raises(Fenced, match="b"):
        a.append(fence, 2, 1, chunk(2, 1))
    fill(b, second, 1, first=2)
    a.close()
    b.close()


@pytest.mark.invariant("F33")
def test_a_lease_outlives_the_seconds_that_etcd_needs_for_a_new_leader(
    shared: EtcdCluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the worst moment, when a third of it is gone: it is asked for again as soon as somebody may answer."""
    store = open_store(shared.url(lease="9"), name)
    assert isinstance(store, EtcdLog)
    fence = lead(store)
    keep_alive, failed = store._etcd.keep_alive, []

    def nobody(lease: int, *, total_s: float) -> int:
        if failed:
            return keep_alive(lease, total_s=total_s)
        time.sleep(total_s)
        failed.append(total_s)
        raise JournalError("etcd does not answer")

    monkeypatch.setattr(store._etcd, "keep_alive", nobody)
    began = time.monotonic()
    while time.monotonic() - began < 10:
        assert store.leading(), time.monotonic() - began
        time.sleep(0.05)
    assert failed == [3.0]
    fill(store, fence, 1)
    store.close()


SLEEPER = """
import sys
from pact.errors import Fenced
from pact.journal.stores import open_store
store = open_store(sys.argv[1], sys.argv[2])
fence, first = store.campaign("sleeper"), 1
print("leads", flush=True)
try:
    while True:
        store.append(fence, first, 1, f"sleeper {first}".encode())
        first += 1
except Fenced as exc:
    print("fenced", first, store.leading(), flush=True)
store.close()
"""


@pytest.mark.invariant("Q1", "F35")
def test_a_stopped_process_that_goes_on_writes_nothing_more(shared: EtcdCluster, name: str, opener: Opener) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, shared.url(lease="2"), name], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "leads\n"
            time.sleep(0.5)
            os.kill(process.pid, signal.SIGSTOP)
            store = opener()
            fence = lead(store)
            log = kept(store)[1]
            following = len(log) + 1
            os.kill(process.pid, signal.SIGCONT)
            for _ in range(20):
                fill(store, fence, 1, first=following)
                following += 1
            word, first, leading = process.stdout.readline().split()
            assert (word, leading) == ("fenced", "False")
            assert int(first) in (len(log), len(log) + 1)
            assert kept(store)[1] == log + [chunk(n, 1) for n in range(len(log) + 1, following)]
            assert process.wait(10) == 0
            store.close()
        finally:
            process.kill()


# -- members that die -----------------------------------------------------------------------------------------------


@pytest.mark.invariant("Q3", "Q5", "F32")
def test_nothing_is_lost_while_members_die_and_return(etcd: EtcdCluster) -> None:
    with running(lambda: open_store(etcd.url(lease="30")), "a") as (committer, next_post):
        fence = next_post(Elected).fence
        first = [1]

        def commit(count: int, seconds: float) -> None:
            """So many chunks become durable in so many seconds, whatever failed on the way; the leader stays."""
            began = time.monotonic()
            for _ in range(count):
                committer.append(fence, first[0], 2, chunk(first[0], 2))
                assert next_post(Durable).first == first[0]
                first[0] += 2
            assert time.monotonic() - began < seconds

        commit(50, 30)
        follower = etcd.followers()[0]
        etcd.kill(follower)
        commit(20, 30)
        etcd.start(follower)
        for _ in range(2):
            leader = etcd.leader()
            etcd.kill(leader)
            commit(20, 40)
            etcd.start(leader)
        leader = etcd.leader()
        etcd.stop(leader)
        commit(20, 40)
        etcd.go_on(leader)
        commit(20, 30)
        assert list(committer.read(1)) == [chunk(n, 2) for n in range(1, first[0], 2)]


@pytest.mark.invariant("Q5", "F33")
def test_without_a_quorum_nothing_is_decided_and_it_resumes_by_itself(etcd: EtcdCluster) -> None:
    other = open_store(etcd.url(lease=FAST))
    with running(lambda: open_store(etcd.url(lease=FAST)), "a") as (committer, next_post):
        fence = next_post(Elected).fence
        committer.append(fence, 1, 1, chunk(1, 1))
        next_post(Durable)
        gone = etcd.followers()
        etcd.kill(*gone)
        began = time.monotonic()
        committer.append(fence, 2, 1, chunk(2, 1))
        assert next_post(Failed, 8).what == "append"
        for act in (lambda: other.campaign("b"), other.load, other.oldest, lambda: list(other.read(1))):
            refuses_within(6, act)
        assert next_post(Deposed, 10)  # its lease is no longer certain, so it stops saying that it leads
        assert time.monotonic() - began < 30
        etcd.start(gone[0])
        again = next_post(Elected)
        assert again.fence > fence
        assert again.chunks in ((chunk(1, 1),), (chunk(1, 1), chunk(2, 1)))
        following = 1 + len(again.chunks)
        committer.append(again.fence, following, 1, chunk(following, 1))
        assert next_post(Durable).first == following
    other.close()


@pytest.mark.invariant("Q3")
def test_everything_is_there_after_all_members_were_killed(etcd: EtcdCluster) -> None:
    store = open_store(etcd.url(lease=FAST))
    fence = lead(store)
    fill(store, fence, *[1] * 30)
    store.save_snapshot(fence, 10, b"ten")
    etcd.kill(0, 1, 2)
    refuses_within(5, lambda: store.append(fence, 31, 1, chunk(31, 1)))
    etcd.start()
    assert until(lambda: not store.leading() or store.campaign("a") == fence)
    again = lead(store)
    assert kept(store) == (b"ten", [chunk(n, 1) for n in range(11, 31)])
    fill(store, again, 1, first=31)
    store.close()


@pytest.mark.invariant("Q1")
def test_two_candidates_through_a_storm_of_lost_leases_write_one_log(shared: EtcdCluster, name: str) -> None:
    """Each believes that it leads for longer than it does; what was acknowledged is what is in the log."""
    told: dict[int, bytes] = {}
    lock, failures = threading.Lock(), []
    stop = threading.Event()

    def candidate(who: str) -> None:
        store = open_store(shared.url(lease="2"), name)
        try:
            while not stop.is_set():
                fence = store.campaign(who)
                if fence is None:
                    stop.wait(0.05)
                    continue
                first = 1 + len(kept(store)[1])
                try:
                    while not stop.is_set():
                        data = f"{first} {who} {fence}".encode()
                        store.append(fence, first, 1, data)
                        with lock:
                            if told.setdefault(first, data) != data:
                                failures.append((first, told[first], data))
                        first += 1
                except Fenced:
                    pass
        except Exception as exc:
            failures.append(repr(exc))
        finally:
            store.close()

    threads = [threading.Thread(target=candidate, args=(w,)) for w in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for _ in range(25):
        time.sleep(0.1)
        shared.ctl("del", f"/pact/{name}/leader")
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    store = open_store(shared.url(), name)
    log = kept(store)[1]
    store.close()
    assert len(log) > 50
    assert log == [told.get(n, log[n - 1]) for n in range(1, len(log) + 1)]
    assert len({entry.split()[2] for entry in log}) > 5
    fences = [int(entry.split()[2]) for entry in log]
    assert fences == sorted(fences)


# -- odds and ends --------------------------------------------------------------------------------------------------


def test_nobody_there_is_said_at_once() -> None:
    store = open_store("etcd://127.0.0.1:1,127.0.0.1:2")
    assert "does not answer" in str(refuses_within(5, store.oldest))
    store.close()
    store.close()
    refuses_within(1, store.oldest)


def test_a_missing_library_is_said_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyetcd", None)
    with pytest.raises(ConfigError) as caught:
        etcd_client.library()
    assert "pact[etcd]" in caught.value.hint


def test_the_leaders_name_is_there_for_people(shared: EtcdCluster, name: str, opener: Opener) -> None:
    store = opener()
    lead(store, "root-a")
    assert orjson.loads(shared.ctl("get", f"/pact/{name}/leader", "--print-value-only"))["name"] == "root-a"
    store.close()
    assert shared.ctl("get", f"/pact/{name}/leader") == ""
