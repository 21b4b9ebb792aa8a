"""How often a file in constant motion is recorded."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pact._fast import FileTable
from pact.agent.followers import Followers
from pact.agent.pace import is_others
from pact.agent.watching import Watching
from pact.limits import MOVING_BYTES, MOVING_PER_S, MOVING_S
from pact.model import NS_PER_S, Attrs


@pytest.mark.invariant("F18")
def test_pauses_double_up_to_half_a_minute_and_begin_anew_after_a_rest() -> None:
    watching = Watching.__new__(Watching)  # without its observers: nothing is looked at here
    watching.pending, watching._delayed, watching._paced, watching._key_of = {}, {}, {}, {}
    watching._moving, watching._moving_ns, watching._weight = {}, 0, 0
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


@pytest.mark.invariant("S3")
def test_many_files_in_motion_are_recorded_no_more_often_than_few() -> None:
    """Who owns two thousand declared files and writes them in turn had eleven hundred records made each second at
    first, and then for ever six times as many as the root takes from a node."""
    watching = Watching.__new__(Watching)
    watching.pending, watching._delayed, watching._paced, watching._key_of = {}, {}, {}, {}
    watching._moving, watching._moving_ns, watching._weight, watching._acting = {}, 0, 0, {}
    watching.followers = Followers(FileTable(), watching.touch)
    names, now_ns, records = [f"file:/home/u/{i}" for i in range(2000)], 10**12, 0

    def moves(seconds: int) -> int:
        nonlocal now_ns
        made = 0
        for _ in range(2 * seconds):
            for name in names:
                watching.touch(name, None)
            while watching.pending:
                taken = [r for r, _ in watching.take(now_ns)]
                watching.recorded(taken, now_ns)
                made += len(taken)
            now_ns += NS_PER_S // 2
        return made

    records = moves(60)
    assert records < 3 * len(names), "each has its first two, or three"
    assert moves(300) < 300 * (MOVING_PER_S + 1)
    assert len(watching._delayed) == len(names), "the last state of each is seen in time"
    now_ns += int(MOVING_S * NS_PER_S)
    assert {r for _ in range(10) for r, _ in watching.take(now_ns)} == set(names)


@pytest.mark.invariant("S3", "F18")
def test_what_root_alone_moves_is_not_held_up_by_what_others_move() -> None:
    """A thousand files of root's are written three times by a configuration manager, beside a user's thousand."""
    watching = Watching.__new__(Watching)
    watching.pending, watching._delayed, watching._paced, watching._key_of = {}, {}, {}, {}
    watching._moving, watching._moving_ns, watching._weight, watching._acting = {}, 0, 0, {}
    watching.followers = Followers(FileTable(), watching.touch)
    roots, users = ([f"file:/{who}/{i}" for i in range(1000)] for who in ("etc", "home/u"))
    now_ns = 10**12
    for _ in range(3):
        watching.recorded(users, now_ns)
        watching.recorded(roots, now_ns, theirs=False)
        now_ns += NS_PER_S
    assert {watching._paced[r][1] for r in roots} == {2 * NS_PER_S}
    assert min(watching._paced[r][1] for r in users) > 100 * NS_PER_S


@pytest.mark.parametrize(
    ("actual", "theirs"),
    [
        ({"type": "file", "owner": "root", "group": "root", "mode": "0644"}, False),
        ({"type": "file", "owner": "root", "group": "lab", "mode": "0664"}, True),
        ({"type": "directory", "owner": "root", "group": "root", "mode": "1777"}, True),
        ({"type": "file", "owner": "ann", "group": "root", "mode": "0600"}, True),
        ({"type": "file", "owner": "0", "group": "0", "mode": "0600"}, False),
        ({"type": "symlink", "owner": "ann", "target": "/x"}, True),
        ({"value": "1"}, False),
        (None, True),
    ],
)
def test_whose_hands_a_resource_is_in(actual: Attrs | None, theirs: bool) -> None:
    assert is_others(actual) == theirs


@pytest.mark.invariant("S3")
def test_what_is_long_counts_as_several() -> None:
    """A file may have 64 KiB of attributes: a hundred of these in motion were tens of gigabytes a day."""
    watching = Watching.__new__(Watching)
    watching.pending, watching._delayed, watching._paced, watching._key_of = {}, {}, {}, {}
    watching._moving, watching._moving_ns, watching._weight, watching._acting = {}, 0, 0, {}
    watching.followers = Followers(FileTable(), watching.touch)
    names, now_ns = [f"file:/home/u/{i}" for i in range(100)], 10**12
    for _ in range(3):
        watching.recorded(names, now_ns, 21 * MOVING_BYTES)
        now_ns += NS_PER_S
    pauses = [pause for _, pause in watching._paced.values()]
    assert max(pauses) == 22 * len(names) * NS_PER_S // MOVING_PER_S
    watching.recorded(names, now_ns + 10**15)
    assert (watching._moving, watching._weight) == ({}, 0), "calm is forgotten"


@pytest.mark.invariant("F18")
def test_what_rests_is_no_reason_to_record_others_later() -> None:
    """Many files that moved together have all rested for longer than their pause: a person who saves a file twice is
    not one of many."""
    watching = Watching.__new__(Watching)
    watching.pending, watching._delayed, watching._paced, watching._key_of = {}, {}, {}, {}
    watching._moving, watching._moving_ns, watching._weight, watching._acting = {}, 0, 0, {}
    watching.followers = Followers(FileTable(), watching.touch)
    names, now_ns = [f"file:/m{n}" for n in range(3000)], NS_PER_S
    for _ in range(3):
        watching.recorded(names, now_ns)
        now_ns += NS_PER_S
    assert max(pause for _, pause in watching._paced.values()) > 300 * NS_PER_S
    now_ns += int(MOVING_S * NS_PER_S) + 10 * NS_PER_S
    for _ in range(3):
        watching.recorded(["file:/etc/hosts"], now_ns)
        now_ns += NS_PER_S
    assert watching._paced["file:/etc/hosts"][1] <= 4 * NS_PER_S
