"""Windows against the definition itself: the whole history is kept and read literally."""

from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact._fast import magnitude as fast_magnitude
from pact._fast import magnitudes as fast_magnitudes
from pact._fast import window_ns
from pact.core.node import windows as core
from pact.core.node.windows import Windows, magnitude, square, window
from pact.core.settings import BILLION, DEFAULT_WEIGHTS, billionths
from pact.resources import severities

MINUTE = 60 * BILLION


class Literal:
    """Every ``W`` that was ever in force, and since when."""

    def __init__(self, floor: int, w: int) -> None:
        self.floor = floor
        self.history = [(-(10**9), w)]

    def note(self, now: int, w: int) -> None:
        self.history.append((now, w))

    def effective(self, t: int) -> int:
        """The largest in force at any moment of (t - floor, t]."""
        ends = [since for since, _ in self.history[1:]] + [10**12]
        largest = -1
        for (since, w), end in zip(self.history, ends, strict=True):
            if since < end and since <= t and end > t - self.floor:
                largest = max(largest, w)
        return largest

    def end(self, opening: int, now: int) -> int:
        """The first moment from now on at which the window is over, if nothing else happens."""
        t = now
        while t < opening + self.effective(t):
            t += 1
        return t


STEPS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), max_size=25)


@given(st.integers(0, 15), st.integers(1, 30), STEPS, st.lists(st.integers(0, 12), min_size=1, max_size=5))
@pytest.mark.invariant("W1", "W2")
def test_a_window_ends_when_the_definition_says(
    floor: int, first: int, steps: list[tuple[int, int]], ages: list[int]
) -> None:
    fast, literal, now = Windows(floor, first), Literal(floor, first), 0
    for wait, w in steps:
        now += wait
        fast.note(now, w)
        literal.note(now, w)
        assert fast.effective(now) == literal.effective(now)
        for age in ages:
            assert max(now, fast.end(now - age)) == literal.end(now - age, now)
    for later in range(floor + 2):
        assert fast.effective(now + later) == literal.effective(now + later)


@given(st.integers(0, 15), st.integers(1, 30), STEPS, STEPS)
@pytest.mark.invariant("W3")
def test_what_is_done_now_has_the_floor_whatever_came_before_and_comes_after(
    floor: int, first: int, steps: list[tuple[int, int]], later: list[tuple[int, int]]
) -> None:
    """Also if the windows were tightened a moment ago."""
    windows, now = Windows(floor, max(first, floor)), 0
    for wait, w in steps:
        now += wait
        windows.note(now, max(w, floor))
    opening, end = now - max(0, windows.before(now) - floor), now + floor
    while True:
        assert max(now, opening + windows.effective(now)) >= end  # without a floor it may end at once
        if not later or now + later[0][0] >= end:
            break
        wait, w = later.pop(0)
        now += wait
        windows.note(now, max(w, floor))


@given(st.integers(0, 15), st.integers(1, 30), STEPS)
def test_a_snapshot_of_windows_decides_the_same(floor: int, first: int, steps: list[tuple[int, int]]) -> None:
    one, now = Windows(floor, first), 0
    for wait, w in steps:
        now += wait
        one.note(now, w)
    two = Windows(floor, 1)
    two.load(one.to_json())
    assert [two.end(now - age) for age in range(40)] == [one.end(now - age) for age in range(40)]
    assert [two.effective(now + t) for t in range(40)] == [one.effective(now + t) for t in range(40)]


@given(st.integers(0, 15), st.integers(1, 30), STEPS, st.integers(-20, 60), st.integers(0, 15))
@pytest.mark.invariant("W1")
def test_an_end_that_is_asked_for_again_and_again_follows_what_has_moved(
    floor: int, first: int, steps: list[tuple[int, int]], opening: int, then: int
) -> None:
    one, now = Windows(floor, first), 0
    for wait, w in steps:
        now += wait
        one.note(now, w)
        for floor_ns in (floor, floor, then):  # the settings may be read again
            one.floor_ns = floor_ns
            fresh = Windows(floor_ns, 1)
            fresh.load(one.to_json())
            assert one.end(opening) == fresh.end(opening)


@given(st.integers(0, 15), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), max_size=15), st.integers(0, 30))
@pytest.mark.invariant("W2")
def test_more_drift_never_postpones_an_end(floor: int, shrinking: list[tuple[int, int]], opening: int) -> None:
    now, w = 0, 31
    windows = Windows(floor, w)
    end = windows.end(opening)
    for wait, smaller in sorted(shrinking, key=lambda s: -s[1]):
        now += wait
        w = min(w, smaller)
        windows.note(now, w)
        earlier, end = end, windows.end(opening)
        assert min(earlier, now + floor) <= max(end, now) <= max(earlier, now)


@pytest.mark.invariant("W2")
def test_tightening_gives_the_floor_as_notice_and_relaxing_is_immediate() -> None:
    windows = Windows(MINUTE, 15 * MINUTE)
    windows.note(10 * MINUTE, 5 * MINUTE)
    assert windows.end(0) == 11 * MINUTE
    assert windows.effective(11 * MINUTE - 1) == 15 * MINUTE
    assert windows.effective(11 * MINUTE) == 5 * MINUTE
    assert windows.end(9 * MINUTE) == 14 * MINUTE
    windows.note(10 * MINUTE + 1, 15 * MINUTE)
    assert windows.end(0) == 15 * MINUTE
    assert windows.end(9 * MINUTE) == 24 * MINUTE


def test_history_is_bounded_and_forgetting_gives_more_notice_never_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "HISTORY_MAX", 4)
    windows, literal = Windows(100, 1000), Literal(100, 1000)
    for step in range(50):
        windows.note(step, 999 - step)
        literal.note(step, 999 - step)
        assert len(windows.to_json()["past"]) <= 4
        assert windows.effective(step + 60) >= literal.effective(step + 60)
    assert windows.effective(149) == literal.effective(149)


@pytest.mark.invariant("W2")
def test_what_the_records_of_one_moment_pass_through_gives_no_notice() -> None:
    """One resource clears and another drifts in the same observation: nobody's window may grow for that."""
    windows = Windows(MINUTE, 5 * MINUTE)
    windows.note(100 * MINUTE, 15 * MINUTE)
    windows.note(100 * MINUTE, 4 * MINUTE)
    assert windows.end(95 * MINUTE + 1) == 100 * MINUTE + 1
    assert windows.end(96 * MINUTE) == 101 * MINUTE


# -- formula --------------------------------------------------------------------------------------------------------

DEVIATIONS = st.lists(st.tuples(st.integers(1, 1000 * BILLION), st.integers(0, BILLION)), max_size=40)


@given(DEVIATIONS, st.integers(1, 30 * 86400 * BILLION), st.integers(0, 100 * BILLION))
@pytest.mark.invariant("A3")
def test_the_window_is_base_over_one_plus_magnitude_times_sensitivity(
    members: list[tuple[int, int]], base_ns: int, sensitivity_n: int
) -> None:
    sum_n = sum(square(w, d) for w, d in members)
    norm = math.sqrt(math.fsum(w / BILLION * (d / BILLION) ** 2 for w, d in members))
    expected = base_ns / (1 + norm * sensitivity_n / BILLION)
    got = window(sum_n, base_ns, sensitivity_n)
    assert got == window_ns(magnitude(sum_n), base_ns, sensitivity_n / BILLION)
    assert math.isclose(got, expected, rel_tol=1e-9, abs_tol=1.01)
    assert 0 <= got <= base_ns


@pytest.mark.invariant("A3")
def test_the_example_of_the_decision() -> None:
    """One sysctl with the defaults: magnitude 0.05 * sqrt(2), and 15 minutes shrink by a tenth."""
    weight, severity = billionths(DEFAULT_WEIGHTS["kernel"]), billionths(severities()["sysctl"])
    sum_n = square(weight, severity)
    assert round(magnitude(sum_n), 4) == 0.0707
    assert window(sum_n, 900 * BILLION, 2 * BILLION) == pytest.approx(900e9 / (1 + 0.0707107 * 2), rel=1e-6)


@given(DEVIATIONS, st.randoms(use_true_random=False))
@pytest.mark.invariant("A2")
def test_neither_order_nor_history_changes_a_magnitude(members: list[tuple[int, int]], rng: object) -> None:
    total = sum(square(w, d) for w, d in members)
    shuffled = list(members)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    running = 0
    for w, d in [*shuffled, *members]:
        running += square(w, d)
    for w, d in shuffled:
        running -= square(w, d)
    assert running == total
    assert magnitude(running) == magnitude(total)


@given(DEVIATIONS)
@pytest.mark.invariant("A2")
def test_the_exact_sum_agrees_with_the_kernels(members: list[tuple[int, int]]) -> None:
    weights = array("d", [w / BILLION for w, _ in members])
    deviations = array("d", [d / BILLION for _, d in members])
    exact = magnitude(sum(square(w, d) for w, d in members))
    assert math.isclose(fast_magnitude(deviations, weights), exact, rel_tol=1e-12, abs_tol=1e-300)
    segments = fast_magnitudes(deviations, weights, array("q", [0, len(members), len(members)]))
    assert math.isclose(segments[0], exact, rel_tol=1e-12, abs_tol=1e-300)
    assert segments[1] == 0.0
