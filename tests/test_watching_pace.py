"""How often a file in constant motion is recorded."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pact._fast import FileTable
from pact.agent.followers import Followers
from pact.agent.watching import Watching
from pact.model import NS_PER_S


@pytest.mark.invariant("F18")
def test_pauses_double_up_to_half_a_minute_and_begin_anew_after_a_rest() -> None:
    watching = Watching.__new__(Watching)  # without its observers: nothing is looked at here
    watching.pending, watching._delayed, watching._paced, watching._key_of = {}, {}, {}, {}
    watching.followers = Followers(FileTable(), watching.touch)
    now_ns, taken = 10**12, list[int]()

    def moves(seconds: int) -> None:
        nonlocal now_ns
        for _ in range(seconds * 10):
            watching.pending["file:/x"] = None
            if watching.take(now_ns):
                watching.recorded(["file:/x"], now_ns)
                taken.append(now_ns)
            now_ns += NS_PER_S // 10

    moves(200)
    pauses = [(b - a) / NS_PER_S for a, b in pairwise(taken)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]
    watching.pending["file:/x"] = None
    assert not watching.take(now_ns)
    assert watching.take(now_ns, everything=True), "a request looks first"
    watching._delayed.clear()
    now_ns, taken = now_ns + 300 * NS_PER_S, []
    moves(2)
    assert [(t - taken[0]) / NS_PER_S for t in taken] == [0, 0.5, 1.5], "calm is forgotten"
