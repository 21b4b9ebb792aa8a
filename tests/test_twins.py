"""Two machines that were given one key are named; restarts, moves and old news are not taken for that."""

from __future__ import annotations

import pytest

from pact.cluster.nodesets import NodeSets
from pact.core.root.log import RootState
from pact.core.root.root import Root
from pact.core.root.term import Note
from pact.core.root.twins import FORGET_NS, TURNS, Twins
from pact.core.tree.checks import SESSION_BITS
from pact.core.tree.wire import message
from pact.model import NS_PER_S

A, B, C = (n << SESSION_BITS for n in (11, 22, 33))


def turns(*sessions: int, step_ns: int = NS_PER_S) -> list[bool]:
    twins = Twins()
    return [twins.came("n1", s, at * step_ns) for at, s in enumerate(sessions)]


@pytest.mark.invariant("T13", "F56")
def test_two_starts_that_take_turns_are_two_machines() -> None:
    assert turns(A, B, A | 1, B | 1, A | 2, B | 2) == [False] * 4 + [True] * 2
    assert turns(A, B, C, A, B, C, A, B) == [False] * 5 + [True] * 3, "or three"
    many = [n << SESSION_BITS for n in range(12)] * 2
    assert turns(*many) == [False] * 14 + [True] * 10, "or a whole rack that was cloned"
    assert turns(A, B, A, B, A, B, step_ns=FORGET_NS + 1) == [False] * 6, "hours apart it is something else"


def test_one_that_starts_again_or_moves_is_one_machine() -> None:
    assert not any(turns(A, A | 1, A | 2, B, B | 1, C, C | 7, C | 9))
    assert not any(turns(A, B, A, B, B | 1, B | 2, B | 3)), "old news of a parent that was cut off"
    twins = Twins()
    for at in range(20):
        assert not twins.came("n1", A | at, at) and not twins.came("n2", B | at, at), "each node by itself"


@pytest.mark.invariant("T13", "F56")
def test_the_root_names_the_node_now_and_then() -> None:
    root = Root("r", RootState(), 1, NodeSets())
    root.start(1, 1, "b", 0)
    notes = list[str]()
    for at in range(TURNS + 9):
        session = (A, B)[at % 2] | at
        effects = root.received(message("below", {"add": ["n1"], "sessions": {"n1": session}}), at * NS_PER_S, 1)
        notes += [e.text for e in effects if isinstance(e, Note)]
    assert notes == [f"refused: a second machine with the key of n1 ({n})" for n in (1, 2, 4, 8)]
    assert root.counters.refused == {"a second machine with the key": 8}
