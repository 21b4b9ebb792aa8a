"""How often a file in constant motion is recorded."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from pact._fast import FileTable
from pact.agent.config import Config
from pact.agent.followers import Followers
from pact.agent.pace import Pace, is_others
from pact.agent.watching import OBSERVE_BATCH_MAX, Watching
from pact.limits import (
    MOVING_AT_ONCE,
    MOVING_BYTES,
    MOVING_EACH,
    MOVING_EACH_S,
    MOVING_OWNERS_MAX,
    MOVING_PER_S,
    MOVING_S,
)
from pact.model import NS_PER_S, Attrs, Owner


@pytest.mark.invariant("F18")
def test_pauses_double_up_to_half_a_minute_and_begin_anew_after_a_rest() -> None:
    watching = Watching.__new__(Watching)  # without its observers: nothing is looked at here
    watching.pending, watching.delayed, watching._key_of, watching._acting = {}, {}, {}, {}
    watching.asked = watching._hurried = 0
    watching.followers, watching.pace = Followers(FileTable(), watching.touch), Pace()
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
    watching.delayed.clear()
    now_ns, taken = now_ns + 300 * NS_PER_S, []
    moves(2)
    assert [(t - taken[0]) / NS_PER_S for t in taken] == [0, 0.5, 1.5], "calm is forgotten"


def whose(resource: str) -> str:
    """Below /home, whose directory it is in."""
    return resource.split("/")[2] if resource.startswith("file:/home/") else ""


class Played:
    """The part of an agent that watches, with a clock of its own: what is looked at has drifted again, and is recorded."""

    def __init__(self) -> None:
        self.watching = watching = Watching.__new__(Watching)
        watching.pending, watching.delayed, watching._key_of, watching._acting = {}, {}, {}, {}
        watching.asked = watching._hurried = 0
        watching.followers, watching.pace = Followers(FileTable(), watching.touch), Pace(whose)
        self.now_ns = 10**12
        self.records: list[str] = []

    def passes(self, seconds: float, size: int = 0) -> list[str]:
        """Returns what is recorded meanwhile."""
        before, ends_ns = len(self.records), self.now_ns + int(seconds * NS_PER_S)
        while True:
            while taken := [r for r, _ in self.watching.take(self.now_ns)]:
                for name in taken:
                    self.watching.recorded([name], self.now_ns, size, theirs=bool(whose(name)))
                self.records += taken
            if self.now_ns >= ends_ns:
                return self.records[before:]
            self.now_ns += NS_PER_S // 4

    def moves(self, names: Iterable[str], uid: int | None = None) -> None:
        owner = None if uid is None else Owner(f"uid:{uid}", str(uid), uid)
        for name in names:
            self.watching.touch(name, owner)


def home(user: str, count: int) -> list[str]:
    return [f"file:/home/{user}/{i}" for i in range(count)]


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("every", [0.5, 3, 40])
def test_many_files_in_motion_are_recorded_no_more_often_than_few(every: float) -> None:
    """Who owns two thousand declared files had two records made of each, however fast, and then four hundred a second
    if he wrote each so rarely that it counted as calm."""
    node, names = Played(), home("u", 2000)
    for _ in range(int(300 / every)):
        node.moves(names, 7)
        node.passes(every)
    assert (
        len(node.records)
        <= MOVING_AT_ONCE + MOVING_EACH + 300 * (MOVING_PER_S + 1 / MOVING_EACH_S) + 2 * OBSERVE_BATCH_MAX
    )
    node.moves(names, 7)
    assert set(node.passes(MOVING_S + 1)) == set(names), "the last state of each is seen in time"


@pytest.mark.invariant("S3", "F18")
def test_what_root_alone_moves_is_not_held_up_by_what_others_move() -> None:
    """A thousand files of root's are written three times by a configuration manager, beside a user's thousand."""
    node, roots = Played(), [f"file:/etc/{i}" for i in range(1000)]
    for _ in range(3):
        node.moves(home("u", 1000), 7)
        node.moves(roots, 0)
        assert {r for r in node.passes(3) if not whose(r)} == set(roots)


@pytest.mark.invariant("S3", "F18")
@pytest.mark.parametrize("uid", [8, None])
def test_who_moves_little_does_not_wait_for_those_who_move_much(uid: int | None) -> None:
    node = Played()
    for _ in range(20):
        node.moves(home("u", 2000), 7)
        node.passes(1)
    for name in home("ann", MOVING_EACH // 2):
        node.moves([name], uid)
        assert name in node.passes(0), "at once"
    node.moves(home("ann", 500), uid)
    assert sum(whose(r) == "ann" for r in node.passes(2)) <= MOVING_EACH


@pytest.mark.invariant("S3")
def test_many_people_together_have_few_records_of_their_own() -> None:
    pace, now_ns = Pace(whose), 10**12
    pace.recorded("file:/home/u/0", now_ns, 2 * MOVING_AT_ONCE * MOVING_BYTES)
    people = [Owner(f"uid:{n}", "", n) for n in range(1, 3 * MOVING_OWNERS_MAX)]
    at_once = [p for p in people if pace.due_ns(f"file:/home/{p.uid}/x", p, now_ns) <= now_ns]
    assert len(at_once) == MOVING_OWNERS_MAX


@pytest.mark.invariant("S3")
def test_a_few_files_are_recorded_at_once() -> None:
    node = Played()
    node.moves(home("u", 300), 7)
    assert len(node.passes(0)) == 300


@pytest.mark.invariant("S3")
def test_what_conforms_again_is_counted_too() -> None:
    pace, now_ns = Pace(whose), 10**12
    for name in home("u", MOVING_AT_ONCE // 2 + MOVING_EACH):
        pace.recorded(name, now_ns)
        pace.cleared(name, now_ns)
    for n in range(MOVING_EACH + 1):
        assert pace.due_ns(f"file:/home/u/x{n}", None, now_ns) <= now_ns
    assert pace.due_ns("file:/home/u/y", None, now_ns) > now_ns
    assert pace.due_ns("file:/etc/y", None, now_ns) <= now_ns


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
    ],
)
def test_whose_hands_a_resource_is_in(actual: Attrs | None, theirs: bool) -> None:
    assert is_others(actual) == theirs


@pytest.mark.parametrize(
    ("uid", "before", "theirs"), [(0, "ann", False), (7, "ann", True), (None, "ann", True), (7, "", False)]
)
def test_what_is_gone_was_in_the_hands_that_it_was_in_before(uid: int | None, before: str, theirs: bool) -> None:
    """Who uses sudo has removed root's with a name of his own."""
    assert is_others(None, Owner("key", "x", uid), before) == theirs


@pytest.mark.invariant("S3")
def test_root_waits_for_no_turn_of_others(tmp_path: Path) -> None:
    pace = Pace(lambda _: "ann")
    for n in range(3000):
        pace.recorded(f"file:/srv/{n}", 1, theirs=True)
    now_ns = 60 * NS_PER_S
    ann, root = Owner("login:7:1", "ann", 7), Owner("login:0:1", "root", 0)
    late = [pace.due_ns(f"file:/srv/{n}", ann, now_ns) for n in range(100)]
    assert sum(due > now_ns for due in late) > 80, "one who moves thousands waits"
    assert all(pace.due_ns(f"file:/srv/{n}", root, now_ns) <= now_ns for n in range(3000))
    a = f"file:{tmp_path}/a"
    watching = Watching(Config(state_dir=str(tmp_path)), 0)
    try:
        watching.add([a])
        watching.pace = pace
        pace.recorded(a, now_ns - 30 * NS_PER_S, theirs=True)
        for n in range(2000):
            pace.due_ns(f"file:/srv/{n}", ann, now_ns)
        watching.touch(a, ann)
        assert watching.take(now_ns) == []
        watching.touch(a, root)
        assert watching.take(now_ns) == [(a, root)]
    finally:
        watching.close()


@pytest.mark.invariant("S3")
def test_what_is_long_counts_as_several() -> None:
    """A file may have 64 KiB of attributes: a hundred of these in motion were tens of gigabytes a day."""
    node, names = Played(), home("u", 100)
    for _ in range(3600 // 2):
        node.moves(names, 7)
        node.passes(2, 21 * MOVING_BYTES)
    assert len(node.records) < 2 * (3600 * MOVING_PER_S + MOVING_AT_ONCE) / 22
    before = len(node.records)
    node.passes(2 * MOVING_S)
    node.moves(names[:3], 7)
    assert set(node.passes(0)) == set(names[:3]) and before, "calm is forgotten"


@pytest.mark.invariant("F18")
def test_what_rests_is_no_reason_to_record_others_later() -> None:
    """Many files that moved together have rested since: a person who saves a file twice is not one of many."""
    node, names = Played(), home("u", 3000)
    for _ in range(3):
        node.watching.recorded(names, node.now_ns)  # a request has looked first
        node.now_ns += NS_PER_S
    node.passes(MOVING_S + 10)
    for _ in range(3):
        node.moves(["file:/home/ann/notes"], 8)
        assert node.passes(3) == ["file:/home/ann/notes"]
