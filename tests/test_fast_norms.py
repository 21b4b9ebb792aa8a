"""Magnitudes and windows: equal bits from both backends, and the same refusals."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pact._fast import reference

norms = pytest.importorskip("pact._fast.norms")

GOOD = st.floats(0, 1e6, allow_nan=False)
ANY = st.one_of(GOOD, GOOD, st.floats(), st.sampled_from((-0.0, -1e-300, math.inf, math.nan, 1e200, 5e-324)))


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return type(error)


@given(st.lists(st.tuples(GOOD, GOOD), max_size=100))
def test_both_backends_give_the_same_bits(pairs: list[tuple[float, float]]) -> None:
    d, w = array("d", (d for d, _ in pairs)), array("d", (w for _, w in pairs))
    mine = norms.magnitude(d, w)
    assert mine == reference.magnitude(d, w)
    assert math.isclose(mine, math.sqrt(math.fsum(x * y * x for x, y in pairs)), rel_tol=1e-12, abs_tol=1e-150)


@given(st.lists(st.tuples(ANY, ANY), max_size=40))
def test_both_backends_refuse_the_same_values(pairs: list[tuple[float, float]]) -> None:
    d, w = array("d", (d for d, _ in pairs)), array("d", (w for _, w in pairs))
    assert outcome(lambda: norms.magnitude(d, w)) == outcome(lambda: reference.magnitude(d, w))


@given(st.lists(st.lists(st.tuples(ANY, GOOD), max_size=30), max_size=12), st.booleans())
def test_segments_are_the_magnitudes_of_their_slices(segments: list[list[tuple[float, float]]], with_out: bool) -> None:
    pairs = [pair for segment in segments for pair in segment]
    d, w = array("d", (d for d, _ in pairs)), array("d", (w for _, w in pairs))
    offsets = array("q", [0])
    for segment in segments:
        offsets.append(offsets[-1] + len(segment))
    results = []
    for backend in (norms, reference):
        out = array("d", bytes(8 * len(segments))) if with_out else None
        results.append(outcome(lambda b=backend, o=out: b.magnitudes(d, w, offsets, o)))
    assert results[0] == results[1]
    if isinstance(results[0], array):
        bounds = pairwise(offsets)
        assert list(results[0]) == [norms.magnitude(d[begin:end], w[begin:end]) for begin, end in bounds]


@given(st.lists(st.integers(-2, 6), max_size=6))
def test_offsets_that_leave_something_out_or_step_down_are_refused(offsets: list[int]) -> None:
    d = w = array("d", [1.0] * 4)
    p = array("q", offsets)
    mine = outcome(lambda: norms.magnitudes(d, w, p))
    assert mine == outcome(lambda: reference.magnitudes(d, w, p))
    assert isinstance(mine, array) == (sorted(offsets) == offsets and offsets[:1] == [0] and offsets[-1:] == [4])


@example(0.0, 9_208_081_978_490_881, 0.0)  # as a double it is one less
@example(0.0, (1 << 63) - 1, 0.0)
@given(ANY, st.integers(-5, (1 << 63) + 5), ANY)
def test_one_window_is_the_same_from_both_and_never_above_base(m: float, base: int, sensitivity: float) -> None:
    mine = outcome(lambda: norms.window_ns(m, base, sensitivity))
    assert mine == outcome(lambda: reference.window_ns(m, base, sensitivity))
    if isinstance(mine, int):
        assert 0 <= mine <= base
        if base < 1 << 53:
            assert mine == int(base / (1 + m * sensitivity))


@given(st.lists(ANY, max_size=20), st.integers(1, 10**18), GOOD)
def test_many_windows_are_single_windows(values: list[float], base: int, sensitivity: float) -> None:
    mine = outcome(lambda: norms.window_ns(array("d", values), base, sensitivity))
    assert mine == outcome(lambda: reference.window_ns(array("d", values), base, sensitivity))
    if isinstance(mine, array):
        assert mine.typecode == "q"
        assert list(mine) == [norms.window_ns(value, base, sensitivity) for value in values]


@pytest.mark.parametrize("backend", [norms, reference], ids=["compiled", "reference"])
class TestArguments:
    def test_out_is_filled_and_returned(self, backend: Any) -> None:
        numpy = pytest.importorskip("numpy")
        out = numpy.zeros(2)
        assert backend.magnitudes(numpy.ones(4), numpy.ones(4), numpy.array([0, 4, 4]), out) is out
        assert list(out) == [2.0, 0.0]
        windows = array("q", [0, 0])
        assert backend.window_ns(out, 90, 1.0, out=windows) is windows
        assert list(windows) == [30, 90]

    def test_an_int_is_a_magnitude_too(self, backend: Any) -> None:
        assert backend.window_ns(2, 90, 1) == 30

    def test_bad_buffers_are_refused(self, backend: Any) -> None:
        good = array("d", [1.0, 2.0])
        for bad in (array("f", [1.0, 2.0]), array("q", [1, 2]), b"1234567812345678", array("d", [1.0])):
            with pytest.raises(ValueError, match=r"float64|weights"):
                backend.magnitude(good, bad)
        with pytest.raises(TypeError):
            backend.magnitude(good, [1.0, 2.0])
        with pytest.raises(ValueError, match="writable"):
            backend.magnitudes(good, good, array("q", [0, 2]), memoryview(bytearray(8)).cast("d").toreadonly())
        with pytest.raises(ValueError, match="segments"):
            backend.magnitudes(good, good, array("q", [0, 2]), array("d", [0.0, 0.0]))
        for arguments in (("60", 1, 1.0), (1.0, 1.5, 1.0), (1.0, "1", 1.0), (1.0, 1, "1"), (1.0, 1, None)):
            with pytest.raises(TypeError):
                backend.window_ns(*arguments)

    def test_an_overflowing_sum_is_refused(self, backend: Any) -> None:
        with pytest.raises(ValueError, match="sum"):
            backend.magnitude(array("d", [1e200]), array("d", [1.0]))
