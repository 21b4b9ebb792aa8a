"""The life of a change: one table, and every pair that it does not name is refused by name."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.core.node import change as life
from pact.core.node.change import INPUTS, STATES, TABLE, Change, LifeError, Member
from pact.model import Owner

OWNER = Owner("uid:1", "ops1", 1)


def test_the_table_names_only_known_states_and_inputs() -> None:
    assert {s for s, _ in TABLE} | set(TABLE.values()) == set(STATES)
    assert {i for _, i in TABLE} == set(INPUTS)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.invariant("C1")
def test_every_pair_moves_as_the_table_says_or_is_refused_by_name(state: str, what: str) -> None:
    change = Change("c1", OWNER, state=state)
    expected = TABLE.get((state, what))
    assert change.can(what) == (expected is not None)
    if expected is not None:
        change.take(what)
        assert change.state == expected
        return
    with pytest.raises(LifeError, match=f"change c1 is {state}: '{what}' is not possible"):
        change.take(what)
    assert change.state == state


@pytest.mark.invariant("C1")
def test_a_settled_change_never_moves_again() -> None:
    assert not [pair for pair in TABLE if pair[0] == life.SETTLED]


@pytest.mark.invariant("C1", "R2")
def test_a_change_that_rolls_back_takes_no_new_drift() -> None:
    assert (life.ROLLING, "drift") not in TABLE
    assert {what for state, what in TABLE if state == life.ROLLING} == {"clear", "emptied", "done", "fail", "block"}


@pytest.mark.invariant("C1")
def test_every_state_but_settled_can_reach_settled() -> None:
    reached, edges = {life.SETTLED}, {(s, t) for (s, _), t in TABLE.items()}
    while more := {s for s, t in edges if t in reached} - reached:
        reached |= more
    assert reached == set(STATES)


@pytest.mark.invariant("C1")
def test_nothing_but_the_table_writes_a_state() -> None:
    writers = []
    for path in (Path(life.__file__).parent).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            names = {ast.unparse(t) for t in targets}
            writers += [path.name for n in names if n.endswith(".state") and n not in ("node.state", "self.state")]
            if "self.state" in names and path.name == "change.py":
                writers.append("change.take")
    assert writers == ["change.take"]


def member(resource: str, opened_ns: int, shift_ns: int = 0, deviation_n: int = 1) -> Member:
    return Member(resource, None, deviation_n, 1, opened_ns, "", shift_ns)


@pytest.mark.invariant("W4")
def test_a_change_counts_from_the_first_of_its_members() -> None:
    change = Change("c1", OWNER)
    change.put(member("file:/b", 20))
    change.put(member("file:/a", 10))
    assert (change.opened_ns, change.opening_ns) == (10, 10)
    change.extension_ns = 5
    assert change.opening_ns == 15
    change.drop("file:/a")
    assert change.opening_ns == 25


@pytest.mark.invariant("W4")
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.sampled_from("abcd"), st.integers(0, 9), st.integers(0, 9)),
            st.tuples(st.just("drop"), st.sampled_from("abcd")),
            st.tuples(st.just("reopen"), st.integers(0, 20)),
            st.tuples(st.just("go_on"), st.integers(0, 20)),
        ),
        max_size=12,
    )
)
def test_its_opening_is_remembered_and_is_what_its_members_say(turns: list[tuple[Any, ...]]) -> None:
    change = Change("c1", OWNER, extension_ns=3)
    for what, *values in turns:
        if what == "put":
            change.put(member(*values))
        elif what == "drop" and values[0] in change.members:
            change.drop(values[0])
        elif what == "reopen":
            change.reopen(values[0])
        elif what == "go_on":
            change.go_on(values[0])
        assert change.opening_ns == 3 + min((m.opening_ns for m in change.members.values()), default=0)


@pytest.mark.invariant("H1")
def test_time_that_a_hold_stopped_moves_the_opening_but_not_the_first_drift() -> None:
    change = Change("c1", OWNER)
    change.put(member("file:/a", 10, shift_ns=100))
    assert (change.opened_ns, change.opening_ns) == (10, 110)


def test_a_change_survives_its_json() -> None:
    change = Change("c1", OWNER, False, life.HELD, extension_ns=3, held_since_ns=4, message="m", reason="r")
    change.intents = {"file:/x"}
    change.put(member("file:/a", 10, 1, 7))
    again = Change.from_json(change.to_json())
    assert again == change
    assert again.sum_n == 49


def test_a_row_of_an_older_version_may_end_early() -> None:
    whole = Member("file:/a", None, 7, 1, 10, "", 3, "vi", "sysctl:b", [Owner("uid:1", "ann", 1)])
    row = whole.to_json()
    assert Member.from_json(row) == whole
    for count in (6, 7, 8, 9):
        assert Member.from_json(row[:count]).to_json()[:count] == row[:count]
