"""Node sets mean here what they mean to ClusterShell, and none takes long."""

from __future__ import annotations

import time

import pytest
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from hypothesis import given
from hypothesis import strategies as st

from pact.cluster.nodesets import NodeSets
from pact.errors import UsageError

PARTS = st.lists(
    st.sampled_from(["a", "b", "n-", "x", "[1-3]", "[01-03]", "2", "[1,3,5]", "[0-9/3]"]), min_size=1, max_size=4
).map("".join)
OPERATORS = st.sampled_from([",", "!", "&", "^", " , ", " ! "])


@given(PARTS, st.lists(st.tuples(OPERATORS, PARTS), max_size=5))
def test_operators_mean_what_the_library_makes_of_them(first: str, rest: list[tuple[str, str]]) -> None:
    text = first + "".join(operator + part for operator, part in rest)
    try:
        found = NodeSets().expand(text)
    except UsageError:
        try:
            assert not NodeSet(text, resolver=RESOLVER_NOGROUP) or "digit before a range" in _why(text)
        except Exception:
            return  # neither reads it
        return
    assert set(found) == set(NodeSet(text, resolver=RESOLVER_NOGROUP)) and len(found) == len(set(found))


def _why(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        NodeSets().expand(text)
    return caught.value.message


@pytest.mark.invariant("T13")
@pytest.mark.parametrize(
    "text",
    [
        "0^1-0n[0-5209],001-0n[0-52090]",
        "n[0-300]x[0-300]!n[0-300]x[1-200]^n[0-9]x[1-300]",
        "n[0-300]x[0-300]&n[1-300]x[0-300]",
        "n[1-300]x[1-300],n[1-300]y[1-300]",
        "n[0-89998]" + "".join(f"!n{i}" for i in range(600)),
        "n[0-89998]-1" + "".join(f"!n{i}-1" for i in range(1000)),
        "n[0-89998]-1" + "".join(f"^n{i}-1" for i in range(4000)),
    ],
    ids=lambda text: text[:40],
)
def test_large_sets_with_several_numbers_are_joined_in_time(text: str) -> None:
    """ClusterShell takes minutes for some of them, in the loop of a root."""
    begin = time.process_time()
    try:
        NodeSets().expand(text)
    except UsageError as exc:
        assert "at most" in exc.message or "more than" in exc.message
    assert time.process_time() - begin < 10
