"""The compiled wheel against its twin, and what only the compiled one can get wrong."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pact._fast import reference

wheel = pytest.importorskip("pact._fast.wheel")

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
MS = 1_000_000

# Deadlines that meet every level: around now, the edges of slots, and the ends of time.
NEAR = st.integers(-5_000, 5_000).map(lambda n: n * 997_331)
FAR = st.builds(
    lambda sign, bits, more: sign * ((1 << bits) + more),
    st.sampled_from((-1, 1)),
    st.integers(0, 62),
    st.integers(-3, 3),
)
TIMES = st.one_of(NEAR, NEAR, FAR, st.sampled_from((INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX - 1, INT64_MAX)))
KEYS = st.one_of(st.integers(0, 12), st.integers(0, 200))
BAD_KEYS = st.sampled_from((-1, -(1 << 70), 1 << 26, (1 << 31) - 1, 1 << 31, 1 << 70, "x", None, 1.5))


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives: its result, or the type of its exception."""
    try:
        return call()
    except Exception as error:
        return type(error)


class WheelMachine(RuleBasedStateMachine):
    @initialize(now=TIMES, tick=st.sampled_from((1, 1_000, 1_000_000, 1_000_000_000)))
    def begin(self, now: int, tick: int) -> None:
        self.now = now
        self.fast = wheel.TimerWheel(now, tick)
        self.slow = reference.TimerWheel(now, tick)

    def both(self, name: str, *args: Any) -> Any:
        fast = outcome(lambda: getattr(self.fast, name)(*args))
        slow = outcome(lambda: getattr(self.slow, name)(*args))
        assert fast == slow, (name, args)
        return fast

    def around(self, offset: int) -> int:
        return max(INT64_MIN, min(INT64_MAX, self.now + offset))

    @rule(key=KEYS, deadline=TIMES)
    def schedule(self, key: int, deadline: int) -> None:
        self.both("schedule", key, deadline)

    @rule(key=KEYS, offset=NEAR)
    def schedule_around_now(self, key: int, offset: int) -> None:
        self.both("schedule", key, self.around(offset))

    @rule(pairs=st.lists(st.tuples(KEYS, NEAR), max_size=60))
    def schedule_many(self, pairs: list[tuple[int, int]]) -> None:
        keys = array("q", (key for key, _ in pairs))
        self.both("schedule_many", keys, array("q", (self.around(offset) for _, offset in pairs)))

    @rule(first=st.integers(0, 100), count=st.integers(1, 100), offset=NEAR, each=st.integers(0, 3 * MS))
    def schedule_a_run(self, first: int, count: int, offset: int, each: int) -> None:
        keys = array("q", range(first, first + count))
        self.both("schedule_many", keys, array("q", (self.around(offset + each * i) for i in range(count))))

    @rule(key=KEYS)
    def cancel(self, key: int) -> None:
        self.both("cancel", key)

    @rule(keys=st.lists(KEYS, max_size=60))
    def cancel_many(self, keys: list[int]) -> None:
        self.both("cancel_many", array("q", keys))

    @rule(offset=NEAR, limit=st.one_of(st.none(), st.none(), st.integers(0, 5)))
    def advance(self, offset: int, limit: int | None) -> None:
        """Forwards or backwards."""
        self.now = self.around(offset)
        self.both("advance", self.now, limit)

    @rule(now=TIMES)
    def jump(self, now: int) -> None:
        self.now = now
        self.both("advance", now)

    @rule()
    def advance_to_the_next(self) -> None:
        bound = self.fast.next_deadline()
        if bound is not None:
            self.now = max(self.now, bound)
            self.both("advance", self.now)

    @rule(key=BAD_KEYS)
    def refuse_a_key(self, key: Any) -> None:
        for name, args in (("schedule", (key, 0)), ("cancel", (key,)), ("deadline", (key,)), ("__contains__", (key,))):
            self.both(name, *args)
        if isinstance(key, int) and INT64_MIN <= key <= INT64_MAX:
            self.both("schedule_many", array("q", [0, key]), array("q", [1, 1]))
            self.both("cancel_many", array("q", [0, key]))

    @rule(value=st.sampled_from((1 << 63, -(1 << 63) - 1, 1 << 90, "x", None, 1.0, 1.5)))
    def refuse_a_time(self, value: Any) -> None:
        self.both("schedule", 1, value)
        self.both("advance", value)
        assert outcome(lambda: wheel.TimerWheel(value)) == outcome(lambda: reference.TimerWheel(value))

    @rule(value=st.sampled_from((b"12345678", [1], array("i", [1]), array("d", [1.0]), memoryview(bytes(16)))))
    def refuse_a_buffer(self, value: Any) -> None:
        self.both("schedule_many", value, array("q", [1]))
        self.both("schedule_many", array("q", [1]), value)
        self.both("cancel_many", value)

    @rule(limit=st.sampled_from((-1, "x", 1.0, 1 << 80)))
    def odd_limits(self, limit: Any) -> None:
        self.both("advance", self.now, limit)

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "fast"):
            return
        self.both("__len__")
        exact, bound = self.slow.next_deadline(), self.fast.next_deadline()
        assert (bound is None) == (exact is None)
        assert bound is None or bound <= exact
        for key in range(0, 201, 7):
            self.both("deadline", key)
            self.both("__contains__", key)


WheelMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWheelAgreesWithItsTwin = WheelMachine.TestCase


@pytest.mark.parametrize("seed", range(6))
def test_long_random_lives_give_the_same_keys_in_the_same_order(seed: int) -> None:
    draw = Random(seed)
    now = draw.randrange(-(10**15), 10**15)
    pair = wheel.TimerWheel(now), reference.TimerWheel(now)
    spans = (10 * MS, 10**9, 100 * 10**9, 5_000 * 10**9, 10**15)
    for _ in range(400):
        count = draw.choice((1, 20, 300))
        span = draw.choice(spans)
        keys = array("q", (draw.randrange(500) for _ in range(count)))
        deadlines = array("q", (now + draw.randrange(-span // 20, span) for _ in range(count)))
        dropped = array("q", (draw.randrange(500) for _ in range(draw.randrange(count))))
        for each in pair:
            each.schedule_many(keys, deadlines)
        assert pair[0].cancel_many(dropped) == pair[1].cancel_many(dropped)
        now += draw.choice((0, MS // 3, 10 * MS, 10**9, 70 * 10**9, -(10**9), -(2 * 10**12), draw.choice(spans)))
        assert pair[0].advance(now) == pair[1].advance(now), f"seed {seed}"
    assert pair[0].advance(INT64_MAX) == pair[1].advance(INT64_MAX)


def test_a_crowded_second_expires_in_exact_order() -> None:
    """More than fit the direct path of a coarse slot: they are spread over ticks ahead of time."""
    draw = Random(3)
    count = 60_000
    deadlines = array("q", (20 * 10**9 + draw.randrange(10**9) for _ in range(count)))
    timers = wheel.TimerWheel(0)
    timers.schedule_many(array("q", range(count)), deadlines)
    out: list[int] = []
    for now in range(0, 22 * 10**9, 7 * MS):
        due = timers.advance(now)
        assert all(now - 7 * MS < deadlines[key] <= now for key in due)
        out += due
    assert out == sorted(range(count), key=lambda key: (deadlines[key], key))


def test_many_timers_at_one_instant_come_out_in_key_order_batch_by_batch() -> None:
    count = 200_000
    keys = list(range(count))
    Random(1).shuffle(keys)
    timers = wheel.TimerWheel(0)
    timers.schedule_many(array("q", keys), array("q", [5 * 10**9 + 1]) * count)
    assert timers.advance(5 * 10**9) == []
    out: list[int] = []
    while batch := timers.advance(6 * 10**9, 30_000):
        assert len(batch) <= 30_000
        out += batch
    assert out == list(range(count))


def test_a_clock_that_goes_back_returns_nothing_early() -> None:
    timers = wheel.TimerWheel(0)
    assert timers.advance(10**15) == []
    timers.schedule(1, 500)
    timers.schedule(2, 10**14)
    assert timers.advance(499) == []
    assert timers.next_deadline() == 500
    assert timers.advance(500) == [1]
    assert timers.advance(10**14 - 1) == []
    assert timers.advance(10**14) == [2]


def test_a_clock_that_went_back_for_good_does_not_leave_everything_in_a_heap() -> None:
    timers = wheel.TimerWheel(0)
    timers.advance(10**18)
    timers.advance(0)
    count = 100_000
    timers.schedule_many(array("q", range(count)), array("q", (i * 1_000 for i in range(count))))
    assert timers.advance(count * 1_000) == list(range(count))


def test_a_thousand_years_of_ticks_are_crossed_at_once() -> None:
    timers = wheel.TimerWheel(INT64_MIN, 1)
    timers.schedule(0, INT64_MAX)
    timers.schedule(1, 0)
    start = time.monotonic()
    assert timers.advance(INT64_MAX - 1) == [1]
    assert timers.advance(INT64_MAX) == [0]
    assert time.monotonic() - start < 1.0


def test_ticks_do_not_overflow_after_26_days() -> None:
    day = 86_400 * 10**9
    timers = wheel.TimerWheel(0)
    timers.schedule_many(array("q", range(200)), array("q", (i * day for i in range(200))))
    for i in range(200):
        assert timers.advance(i * day) == [i]


def test_following_next_deadline_reaches_every_timer_without_idle_turns() -> None:
    draw = Random(5)
    timers = wheel.TimerWheel(0)
    deadlines = [draw.randrange(10**15) for _ in range(2_000)]
    timers.schedule_many(array("q", range(2_000)), array("q", deadlines))
    turns = 0
    while (bound := timers.next_deadline()) is not None:
        timers.advance(bound)
        turns += 1
    assert turns <= 2_000 + 1_100


def test_churn_does_not_grow_memory_without_bound() -> None:
    """A timer moved far and near again leaves a stale entry each time; they are cleared away."""
    import tracemalloc  # noqa: F401  (the wheel allocates outside of it: look at the process)

    def resident_kib() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4

    timers = wheel.TimerWheel(0)
    far = array("q", (10**12 + i for i in range(10_000)))
    near = array("q", (10**9 + i for i in range(10_000)))
    keys = array("q", range(10_000))
    for _ in range(20):
        timers.schedule_many(keys, far)
        timers.schedule_many(keys, near)
        timers.cancel_many(keys)
    before = resident_kib()
    for _ in range(300):
        timers.schedule_many(keys, far)
        timers.schedule_many(keys, near)
        timers.cancel_many(keys)
    assert resident_kib() - before < 4_096
    timers.schedule_many(keys, near)
    assert timers.advance(10**9 + 9_999) == list(range(10_000))


def test_buffers_of_every_kind_are_taken() -> None:
    numpy = pytest.importorskip("numpy")
    timers = wheel.TimerWheel(0)
    timers.schedule_many(numpy.arange(5), memoryview(array("q", range(5))).toreadonly())
    assert timers.cancel_many(numpy.array([4, 4, 17])) == 1
    with pytest.raises(ValueError, match="contiguous"):
        timers.schedule_many(numpy.arange(10)[::2], numpy.arange(5))
    with pytest.raises(ValueError, match="one dimension"):
        timers.cancel_many(numpy.zeros((2, 2), dtype=numpy.int64))
    with pytest.raises(ValueError, match="int64"):
        timers.cancel_many(numpy.zeros(2, dtype=numpy.uint64))
    assert timers.advance(10) == [0, 1, 2, 3]


def test_nothing_is_changed_by_a_batch_with_a_bad_key() -> None:
    timers = wheel.TimerWheel(0)
    with pytest.raises(ValueError, match="key"):
        timers.schedule_many(array("q", [1, 2, -1]), array("q", [1, 1, 1]))
    with pytest.raises(ValueError, match="deadlines"):
        timers.schedule_many(array("q", [1, 2]), array("q", [1]))
    assert len(timers) == 0


def test_a_second_thread_is_refused_or_served_but_never_breaks_the_wheel() -> None:
    timers = wheel.TimerWheel(0)
    count = 200_000
    keys, deadlines = array("q", range(count)), array("q", range(count))
    refused = []
    stop = threading.Event()

    def meddle() -> None:
        while not stop.is_set():
            try:
                timers.schedule(count, INT64_MAX)
            except RuntimeError:
                refused.append(1)

    thread = threading.Thread(target=meddle)
    thread.start()
    done = 0
    try:
        for _ in range(10):
            try:
                timers.schedule_many(keys, deadlines)
                done = 1
            except RuntimeError:
                pass
    finally:
        stop.set()
        thread.join()
    timers.cancel(count)
    assert timers.advance(count) == (list(range(count)) if done else [])
