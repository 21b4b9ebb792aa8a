"""The root's log on a real etcd in which somebody else has written: what is believed, what is passed over, what is an error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from etcd_cluster import MISSING, REASON, EtcdCluster
from hypothesis import given
from hypothesis import strategies as st
from rootlog_suite import chunk, fill, kept, lead, running

from pact.cluster.committer import Deposed, Durable, Elected, Failed, Saved
from pact.errors import Fenced, JournalError
from pact.journal.rootlog_etcd import CLOCK_LEAST_S, TERM_AHEAD_MAX_S, TERM_SKEW_MAX_S, EtcdLog, next_fence
from pact.journal.stores import open_store

NOW = 1_800_000_000
CEILING = NOW + TERM_AHEAD_MAX_S
HUGE = 1 << 62
BALLOTS = 1_000_000  # what nodes multiply a fence with; the product has to stay within 64 bits


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    if MISSING:
        pytest.skip(REASON)
    with EtcdCluster(tmp_path_factory.mktemp("etcd"), 1) as etcd:
        yield etcd


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"c{abs(hash(request.node.nodeid))}"


@pytest.fixture
def store(shared: EtcdCluster, name: str) -> Iterator[EtcdLog]:
    store = open_store(shared.url(lease="3"), name)
    assert isinstance(store, EtcdLog)
    yield store
    store.close()


# -- the term -------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("Q4")
@pytest.mark.parametrize(
    "term", [str((1 << 63) - 1), str((1 << 64) - 1), "9" * 5000, "-5", "abc", "", "1e9", " 7", "too far ahead"]
)
def test_a_term_that_no_root_has_begun_keeps_no_root_from_leading(
    shared: EtcdCluster, store: EtcdLog, name: str, term: str
) -> None:
    if term == "too far ahead":
        term = str(int(time.time()) + TERM_AHEAD_MAX_S + 2 * TERM_SKEW_MAX_S)
    first = lead(store)
    fill(store, first, 1)
    shared.ctl("put", f"/pact/{name}/term", "--", term)
    shared.ctl("del", f"/pact/{name}/leader")
    with running(lambda: open_store(shared.url(lease="3"), name), "b") as (_, next_post):
        elected = next_post(Elected)
        assert "not believed" in elected.doubted and elected.chunks == (chunk(1, 1),)
        assert first < elected.fence <= time.time() + TERM_SKEW_MAX_S + 1 and elected.fence * BALLOTS < 1 << 63
    with pytest.raises(Fenced):
        store.append(first, 2, 1, chunk(2, 1))
    again = lead(store)
    assert again > elected.fence and store.doubted == ""
    fill(store, again, 1, first=2)


@pytest.mark.invariant("Q4")
def test_a_term_that_was_taken_out_of_a_log_gives_no_fence_that_was_there(
    shared: EtcdCluster, store: EtcdLog, name: str
) -> None:
    first = lead(store)
    fill(store, first, 1)
    shared.ctl("del", f"/pact/{name}/term")
    shared.ctl("del", f"/pact/{name}/leader")
    other = open_store(shared.url(lease="3"), name)
    assert lead(other, "b") > first
    other.close()


def later(store: EtcdLog) -> int:
    """Its fence, when the clock has caught up."""
    ends_s = time.monotonic() + 10
    while time.monotonic() < ends_s:
        try:
            return lead(store)
        except JournalError:
            time.sleep(0.1)
    raise AssertionError("it does not lead")


@pytest.mark.invariant("Q4")
def test_a_term_within_reason_is_followed_for_ever_and_at_the_edge_the_clock_catches_up(
    shared: EtcdCluster, store: EtcdLog, name: str
) -> None:
    edge = int(time.time()) + TERM_AHEAD_MAX_S + 2
    shared.ctl("put", f"/pact/{name}/term", str(edge))
    with pytest.raises(JournalError, match="too far ahead of the clock"):
        store.campaign("a")
    fence = later(store)
    assert fence == edge + 1
    shared.ctl("del", f"/pact/{name}/leader")
    with pytest.raises(Fenced):
        store.append(fence, 1, 1, chunk(1, 1))
    assert later(store) == edge + 2


@given(st.one_of(st.none(), st.integers(0, 1 << 70)), st.integers(0, NOW * 2), st.integers(0, CEILING))
def test_a_fence_is_never_beyond_the_ceiling_and_follows_what_is_believed(
    term: int | None, wall_s: int, seen: int
) -> None:
    ceiling = max(wall_s, CLOCK_LEAST_S) + TERM_AHEAD_MAX_S
    try:
        fence, why = next_fence(None if term is None else b"%d" % term, wall_s, seen)
    except JournalError:
        assert ceiling <= max(term or 0, seen) or seen >= ceiling
        return
    assert max(wall_s, 1) <= fence <= max(ceiling, wall_s)
    assert bool(why) == (term is not None and term > ceiling + TERM_SKEW_MAX_S)
    assert (why or fence > (term or 0)) and (fence > seen or seen > ceiling + TERM_SKEW_MAX_S)


@given(st.integers(0, CEILING + TERM_SKEW_MAX_S), st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_elections_follow_one_another_from_whatever_term_was_set(term: int, steps: list[int]) -> None:
    """Each root takes the term of the last, or waits until the clock has caught up: none has a fence that nodes refuse."""
    wall_s, last = NOW, term
    for step in steps:
        wall_s += step
        try:
            fence, why = next_fence(b"%d" % last, wall_s)
        except JournalError:
            wall_s = last - TERM_AHEAD_MAX_S + 1
            fence, why = next_fence(b"%d" % last, wall_s)
        assert fence > last and not why
        last = fence


# -- the leader, and the rest ---------------------------------------------------------------------------------------


@pytest.mark.invariant("Q1")
def test_a_leader_without_a_lease_does_not_lead_for_ever(shared: EtcdCluster, store: EtcdLog, name: str) -> None:
    shared.ctl("put", f"/pact/{name}/leader", '{"name":"nobody","fence":1}')
    fence = lead(store)
    assert "no lease" in store.doubted
    fill(store, fence, 1)
    other = open_store(shared.url(lease="3"), name)
    assert other.campaign("b") is None and store.leading()  # whoever has one is left alone
    other.close()


@pytest.mark.invariant("F37")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head", "many"),
        ("head", "-1"),
        ("log/x", "{}"),
        (f"log/{5:019d}x", "{}"),
        (f"log/{5:020d}", "rot"),
        (f"log/{5:020d}", '{"v":1,"count":0,"bytes":0,"parts":0}\n'),
        (f"log/{5:020d}", '{"v":1,"count":"1","parts":0}\n'),
        (f"log/{5:020d}", '{"v":1,"count":1,"parts":1000000000}\n'),
        (f"log/{5:020d}", '{"v":1,"count":1,"parts":1}\n'),
        ("snapshot", "rot"),
        ("snapshot", "[]"),
        ("snapshot", '{"gseq":1,"where":7,"parts":0}'),
        ("snapshot", '{"gseq":1,"where":"snap/","parts":-1,"sha256":""}'),
        ("snapshot", '{"gseq":1,"where":"snap/","parts":0}'),
        ("snapshot", '{"gseq":1,"where":"snap/","parts":0,"sha256":7}'),
        ("snapshot", '{"gseq":-1,"where":"snap/","parts":1,"sha256":""}'),
    ],
)
def test_what_makes_no_sense_is_an_error_and_ends_no_root(shared: EtcdCluster, name: str, key: str, value: str) -> None:
    url = shared.url(lease="3")
    with running(lambda: open_store(url, name), "a") as (committer, next_post):
        fence = next_post(Elected).fence
        for first in range(1, 5):
            committer.append(fence, first, 1, chunk(first, 1))
        shared.ctl("put", f"/pact/{name}/{key}", "--", value)
        shared.ctl("del", f"/pact/{name}/leader")
        committer.append(fence, 5, 1, chunk(5, 1))
        assert next_post(Deposed)
        if key == "head" or key.endswith("x"):
            store = open_store(url, name)
            with pytest.raises(JournalError, match="makes no sense"):
                [act() for act in (store.oldest, store._head, lambda: kept(store))]  # type: ignore[attr-defined]
            store.close()
        else:
            assert "makes no sense" in next_post(Failed).why
        assert committer.alive


@pytest.mark.invariant("F37")
@pytest.mark.parametrize("value", ["\udcff\udcfe", "", "9" * 5000, "99", "1"])
def test_a_head_that_no_root_left_so_ends_no_root_and_none_leads_with_it(
    shared: EtcdCluster, name: str, value: str
) -> None:
    """One that was no text ended the thread that writes, and with it the root. With one that was a number roots were
    elected and deposed at their first write, again and again."""
    url = shared.url(lease="3")
    with running(lambda: open_store(url, name), "a") as (committer, next_post):
        fence = next_post(Elected).fence
        for first in range(1, 5):
            committer.append(fence, first, 1, chunk(first, 1))
            next_post(Durable)
        shared.ctl("put", f"/pact/{name}/head", "--", value)
        committer.append(fence, 5, 1, chunk(5, 1))
        assert len(next_post(Deposed).why) < 200
        assert "makes no sense" in next_post(Failed).why, "it does not lead"
        assert committer.alive
        shared.ctl("put", f"/pact/{name}/head", "--", "5")
        assert next_post(Elected).chunks[-1] == chunk(4, 1), "it is mended, and a root leads"


@pytest.mark.invariant("Q6")
@pytest.mark.parametrize(("gseq", "where"), [(HUGE, 2), (HUGE, HUGE), ("rot", 2)])
def test_a_snapshot_that_claims_too_much_neither_stops_snapshots_nor_has_chunks_deleted(
    shared: EtcdCluster, name: str, gseq: int | str, where: int
) -> None:
    """With a number beyond the log no snapshot was saved any more, and trimming took what none covered."""
    url = shared.url(lease="3")
    with running(lambda: open_store(url, name), "a") as (committer, next_post):
        fence = next_post(Elected).fence
        for first in range(1, 5):
            committer.append(fence, first, 1, chunk(first, 1))
            next_post(Durable)
        at = f"snap/{where:020d}-{fence:020d}/"
        manifest = f'{{"v":1,"gseq":{gseq},"where":"{at}","parts":1,"bytes":3,"sha256":"x"}}'
        shared.ctl("put", f"/pact/{name}/snapshot", "--", manifest)
        committer.trim(fence, 4)
        assert "makes no sense" in next_post(Failed).why
        committer.save_snapshot(fence, 2, b"two", 4)
        assert next_post(Saved).oldest == 3
        store = open_store(url, name)
        assert kept(store) == (b"two", [chunk(3, 1), chunk(4, 1)])
        store.close()


@pytest.mark.invariant("F37")
def test_no_root_leads_with_a_log_that_lacks_chunks(shared: EtcdCluster, name: str) -> None:
    """It led with what was before them, and was deposed at its first write."""
    url = shared.url(lease="3")
    with running(lambda: open_store(url, name), "a") as (committer, next_post):
        fence = next_post(Elected).fence
        for first in range(1, 5):
            committer.append(fence, first, 1, chunk(first, 1))
            next_post(Durable)
        shared.ctl("del", f"/pact/{name}/log/{3:020d}")
        shared.ctl("del", f"/pact/{name}/leader")
        committer.append(fence, 5, 1, chunk(5, 1))
        assert next_post(Deposed)
        assert "the chunks end at 3" in next_post(Failed).why and committer.alive


def test_nothing_that_a_store_does_ends_the_thread_that_writes() -> None:
    class Store:
        tries = 0

        def campaign(self, name: str) -> int:
            self.tries += 1
            if self.tries == 1:
                raise KeyError("nobody expected this")
            return self.tries

        def leading(self) -> bool:
            return True

        def load(self) -> tuple[bytes | None, list[bytes]]:
            if self.tries == 2:
                self.tries += 1
                raise UnicodeDecodeError("utf-8", b"\xff" * 1000, 0, 1, "no text")
            return None, []

        def append(self, fence: int, first: int, count: int, chunk: bytes) -> None:
            raise ValueError("nobody expected this either")

        def close(self) -> None: ...

    store: Any = Store()
    with running(lambda: store, "a") as (committer, next_post):
        assert "internal error: KeyError" in next_post(Failed).why
        assert next_post(Failed).why == "internal error: UnicodeDecodeError"
        committer.append(next_post(Elected).fence, 1, 1, b"x")
        assert "internal error: ValueError" in next_post(Deposed).why
        assert next_post(Elected) and committer.alive
