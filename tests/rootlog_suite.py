"""What every store of the root's log must do, whatever keeps it. Each store's test module runs all of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from pact.cluster.committer import Committer, Deposed, Durable, Elected, Posted, Saved
from pact.errors import Fenced, JournalError
from pact.journal.rootlog import LogStore

Opener = Callable[[], LogStore]
T = TypeVar("T")


def until(ask: Callable[[], T], seconds: float = 20.0, every: float = 0.02) -> T:
    """The first answer that is true; the last one if none is."""
    end = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer or time.monotonic() > end:
            return answer
        time.sleep(every)


def chunk(first: int, count: int, size: int = 0) -> bytes:
    return f"{first}+{count};".encode() + bytes(i * 7 & 0xFF for i in range(size))


def lead(store: LogStore, name: str = "a") -> int:
    fence = until(lambda: store.campaign(name))
    assert fence is not None
    return fence


def fill(store: LogStore, fence: int, *counts: int, first: int = 1) -> int:
    """Append chunks with so many events; the next number."""
    for count in counts:
        store.append(fence, first, count, chunk(first, count))
        first += count
    return first


def kept(store: LogStore) -> tuple[bytes | None, list[bytes]]:
    snapshot, chunks = store.load()
    return snapshot, list(chunks)


class Conformance:
    """A subclass gives ``opener``: each call of it is another process's view of the same log."""

    @pytest.fixture
    def stores(self, opener: Opener) -> Iterator[Opener]:
        opened: list[LogStore] = []

        def open_() -> LogStore:
            opened.append(opener())
            return opened[-1]

        yield open_
        for store in opened:
            store.close()

    def depose(self, store: LogStore, stores: Opener) -> tuple[LogStore, int]:
        """Another leads, and ``store`` has not heard of it."""
        raise NotImplementedError

    # -- the log ----------------------------------------------------------------------------------------------------

    @pytest.mark.invariant("Q2")
    def test_what_was_appended_is_loaded_in_order(self, stores: Opener) -> None:
        store = stores()
        assert kept(store) == (None, [])
        assert store.oldest() == 0
        assert fill(store, lead(store), 3, 1, 5) == 10
        assert kept(store) == (None, [chunk(1, 3), chunk(4, 1), chunk(5, 5)])
        store.close()
        again = stores()
        assert kept(again) == (None, [chunk(1, 3), chunk(4, 1), chunk(5, 5)])
        assert again.oldest() == 1

    @pytest.mark.invariant("Q2")
    def test_the_same_chunk_twice_is_once(self, stores: Opener) -> None:
        store = stores()
        fence = lead(store)
        for _ in range(3):
            store.append(fence, 1, 2, chunk(1, 2))
        store.append(fence, 3, 1, chunk(3, 1))
        store.append(fence, 1, 2, chunk(1, 2))
        assert kept(store)[1] == [chunk(1, 2), chunk(3, 1)]

    @pytest.mark.invariant("Q2")
    @pytest.mark.parametrize("first", [2, 4, 0, 1])
    def test_no_hole_and_no_second_chunk_at_a_place(self, stores: Opener, first: int) -> None:
        store = stores()
        fence = lead(store)
        fill(store, fence, 2)
        with pytest.raises(Fenced):
            store.append(fence, first, 2, b"another")
        assert kept(store)[1] == [chunk(1, 2)]
        assert not store.leading()  # what it believes is not what the log says
        again = lead(store)
        assert again > fence
        store.append(again, 3, 1, chunk(3, 1))

    @pytest.mark.invariant("Q3")
    def test_a_large_chunk_is_read_whole(self, stores: Opener) -> None:
        store = stores()
        fence = lead(store)
        large = chunk(2, 1, 5 << 20)
        fill(store, fence, 1)
        store.append(fence, 2, 1, large)
        store.append(fence, 2, 1, large)
        fill(store, fence, 1, first=3)
        assert kept(stores()) == (None, [chunk(1, 1), large, chunk(3, 1)])
        assert list(store.read(2)) == [large, chunk(3, 1)]

    def test_reading_begins_with_the_chunk_that_holds_the_event(self, stores: Opener) -> None:
        store = stores()
        fill(store, lead(store), 3, 4, 2)
        starts = [next(store.read(gseq), None) for gseq in range(11)]
        assert starts == [chunk(1, 3)] * 4 + [chunk(4, 4)] * 4 + [chunk(8, 2)] * 2 + [None]

    def test_many_chunks_are_read_in_pages(self, stores: Opener) -> None:
        store = stores()
        fence = lead(store)
        fill(store, fence, *[1] * 700)
        assert list(store.read(1)) == [chunk(n, 1) for n in range(1, 701)]

    # -- who may write ----------------------------------------------------------------------------------------------

    @pytest.mark.invariant("Q4")
    def test_one_of_two_candidates_leads_and_the_other_follows_it(self, stores: Opener) -> None:
        a, b = stores(), stores()
        fence = lead(a, "a")
        assert b.campaign("b") is None
        assert (a.leading(), b.leading()) == (True, False)
        assert a.campaign("a") == fence  # it leads already
        a.close()
        second = lead(b, "b")
        assert second > fence
        fill(b, second, 1)

    @pytest.mark.invariant("Q1")
    def test_a_deposed_leader_changes_nothing_even_if_it_has_not_heard(self, stores: Opener) -> None:
        a = stores()
        fence = lead(a)
        fill(a, fence, 2, 2)
        a.save_snapshot(fence, 2, b"two")
        b, second = self.depose(a, stores)
        assert second > fence
        for act in (
            lambda: a.append(fence, 5, 1, chunk(5, 1)),
            lambda: a.save_snapshot(fence, 4, b"four"),
            lambda: a.trim(fence, 3),
        ):
            with pytest.raises(Fenced):
                act()
            assert not a.leading()
        assert b.oldest() == 1
        assert kept(b) == (b"two", [chunk(3, 2)])
        b.append(second, 5, 1, b"another")
        assert kept(b) == (b"two", [chunk(3, 2), b"another"])

    @pytest.mark.invariant("Q1")
    def test_a_deposed_leader_is_told_even_that_its_old_chunk_is_no_longer_its_own(self, stores: Opener) -> None:
        a = stores()
        fence = lead(a)
        fill(a, fence, 2)
        self.depose(a, stores)
        with pytest.raises(Fenced):
            a.append(fence, 1, 2, chunk(1, 2))

    @pytest.mark.invariant("Q1")
    def test_who_never_led_writes_nothing(self, stores: Opener) -> None:
        store = stores()
        for fence in (0, 1, 99):
            with pytest.raises(Fenced):
                store.append(fence, 1, 1, chunk(1, 1))
        assert kept(store) == (None, [])

    # -- snapshots and trimming -------------------------------------------------------------------------------------

    @pytest.mark.invariant("Q6")
    @pytest.mark.parametrize("size", [10, 4 << 20])
    def test_a_snapshot_replaces_the_older_one_and_what_it_covers(self, stores: Opener, size: int) -> None:
        store = stores()
        fence = lead(store)
        fill(store, fence, 2, 2, 2)
        store.save_snapshot(fence, 2, chunk(2, 0, size))
        store.save_snapshot(fence, 4, chunk(4, 0, size))
        store.save_snapshot(fence, 4, chunk(4, 0, size))
        store.save_snapshot(fence, 2, b"an older one")
        assert kept(store) == (chunk(4, 0, size), [chunk(5, 2)])
        assert kept(stores()) == (chunk(4, 0, size), [chunk(5, 2)])
        assert store.oldest() == 1

    @pytest.mark.invariant("Q6")
    def test_trimming_keeps_what_no_snapshot_covers(self, stores: Opener) -> None:
        store = stores()
        fence = lead(store)
        fill(store, fence, 2, 2, 2)
        store.trim(fence, 7)
        assert store.oldest() == 1
        store.save_snapshot(fence, 4, b"four")
        store.trim(fence, 2)
        assert store.oldest() == 1  # event 2 is in the first chunk
        store.trim(fence, 4)
        assert store.oldest() == 3
        store.trim(fence, 99)
        assert store.oldest() == 5
        assert kept(store) == (b"four", [chunk(5, 2)])
        assert list(store.read(1)) == [chunk(5, 2)]

    @pytest.mark.invariant("Q2")
    def test_the_numbers_go_on_after_everything_was_trimmed(self, stores: Opener) -> None:
        store = stores()
        fence = lead(store)
        fill(store, fence, 2, 2)
        store.save_snapshot(fence, 4, b"four")
        store.trim(fence, 5)
        assert (store.oldest(), kept(store)) == (5, (b"four", []))
        with pytest.raises(Fenced):
            store.append(fence, 1, 2, chunk(1, 2))
        fence = lead(store)
        fill(store, fence, 1, first=5)
        assert kept(stores()) == (b"four", [chunk(5, 1)])

    def test_reading_beside_a_trimming_leader_ends_early_and_has_no_hole(self, stores: Opener) -> None:
        store = stores()
        fence = lead(store)
        fill(store, fence, *[1] * 600)
        store.save_snapshot(fence, 600, b"all")
        chunks = store.read(1)
        got = [next(chunks), next(chunks)]
        store.trim(fence, 580)
        got += chunks
        assert got == [chunk(n, 1) for n in range(1, len(got) + 1)]

    def test_another_thread_reads_while_the_leader_writes(self, stores: Opener) -> None:
        store = stores()
        fence = lead(store)
        fill(store, fence, *[1] * 50)
        seen: list[list[bytes]] = []
        thread = threading.Thread(target=lambda: seen.extend(list(store.read(1)) for _ in range(5)))
        thread.start()
        fill(store, fence, *[1] * 50, first=51)
        thread.join()
        assert len(seen) == 5
        assert all(got == [chunk(n, 1) for n in range(1, len(got) + 1)] and len(got) >= 50 for got in seen)

    # -- the thread that owns it ------------------------------------------------------------------------------------

    @pytest.mark.invariant("Q5")
    def test_the_committer_is_elected_writes_in_order_and_says_what_is_durable(self, opener: Opener) -> None:
        with running(opener, "a") as (committer, next_post):
            elected = next_post(Elected)
            assert (elected.snapshot, elected.chunks) == (None, ())
            for n in range(1, 21):
                assert committer.append(elected.fence, n, 1, chunk(n, 1))
            assert [next_post(Durable).first for _ in range(20)] == list(range(1, 21))
            committer.save_snapshot(elected.fence, 15, b"state", trim_before=11)
            assert next_post(Saved) == Saved(15, 11)
            assert list(committer.read(11)) == [chunk(n, 1) for n in range(11, 21)]
            committer.trim(elected.fence, 13)
            assert next_post(Saved).oldest == 13
        with running(opener, "b") as (_, next_post):
            again = next_post(Elected)
            assert again.fence > elected.fence
            assert (again.snapshot, again.chunks) == (b"state", tuple(chunk(n, 1) for n in range(16, 21)))

    @pytest.mark.invariant("Q6")
    def test_the_committer_trims_a_long_log_in_pieces(self, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("rootlog_sqlite", "rootlog_etcd"):
            monkeypatch.setattr(f"pact.journal.{module}.TRIM_MAX", 200)
        store = opener()
        fill(store, lead(store), *[1] * 700)
        store.close()
        with running(opener, "a") as (committer, next_post):
            fence = next_post(Elected).fence
            committer.save_snapshot(fence, 690, b"state", trim_before=650)
            oldest = [next_post(Saved).oldest for _ in range(4)]
            assert oldest[-1] == 650
            assert oldest[0] == 201
            assert list(committer.read(1)) == [chunk(n, 1) for n in range(650, 701)]

    @pytest.mark.invariant("Q4")
    def test_a_standby_takes_over_and_the_old_ones_fence_is_void(self, opener: Opener) -> None:
        with running(opener, "a") as (a, next_a):
            first = next_a(Elected)
            with running(opener, "b") as (b, next_b):
                assert a.append(first.fence, 1, 1, chunk(1, 1))
                next_a(Durable)
                a.close()
                second = next_b(Elected)
                assert second.fence > first.fence
                assert second.chunks == (chunk(1, 1),)
                assert b.append(first.fence, 2, 1, b"a late one of the old leader")
                assert b.append(second.fence, 2, 1, chunk(2, 1))
                assert next_b(Durable).first == 2
                assert list(b.read(2)) == [chunk(2, 1)]

    @pytest.mark.invariant("Q2", "F35")
    def test_a_committer_whose_chunk_does_not_follow_steps_down_and_loads_again(self, opener: Opener) -> None:
        with running(opener, "a") as (committer, next_post):
            elected = next_post(Elected)
            committer.append(elected.fence, 1, 1, chunk(1, 1))
            next_post(Durable)
            committer.append(elected.fence, 7, 1, chunk(7, 1))
            assert "goes on at 2" in next_post(Deposed).why
            again = next_post(Elected)
            assert again.fence > elected.fence
            assert again.chunks == (chunk(1, 1),)

    def test_a_committer_takes_a_bounded_number_of_chunks(self, opener: Opener) -> None:
        committer = Committer(opener, "never started")
        taken = 0
        while committer.append(1, taken, 1, b"x"):
            taken += 1
        assert 8 <= taken <= 256
        committer.close()


@contextmanager
def running(opener: Opener, name: str) -> Iterator[tuple[Committer, Callable[..., Posted]]]:
    """A committer, and what gives its next post of one kind (others before it are passed over)."""
    committer = Committer(opener, name, standby_s=0.1)
    committer.start()
    posts: list[Posted] = []

    def next_post(kind: type[Posted], seconds: float = 20.0) -> Posted:
        def found() -> bool:
            posts.extend(committer.poll())
            while posts and not isinstance(posts[0], kind):
                posts.pop(0)
            return bool(posts)

        assert until(found, seconds), f"no {kind.__name__}"
        return posts.pop(0)

    try:
        yield committer, next_post
    finally:
        if committer.alive:
            committer.close()


def refuses_within(seconds: float, act: Callable[[], object]) -> JournalError:
    began = time.monotonic()
    with pytest.raises(JournalError) as caught:
        act()
    assert time.monotonic() - began < seconds
    return caught.value
