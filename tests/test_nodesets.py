"""Node sets mean here what they mean to ClusterShell, and none takes long."""

from __future__ import annotations

import time

import pytest
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from hypothesis import given
from hypothesis import strategies as st

from pact.cluster import nodesets
from pact.cluster.nodesets import NodeSets, fold
from pact.errors import UsageError

PARTS = st.lists(
    st.sampled_from(
        [
            "a",
            "b",
            "n-",
            "x",
            ".",
            "_1",
            "[1-3]",
            "[01-03]",
            "2",
            "[1,3,5]",
            "[0-9/3]",
            "[8-11]",
            "[08-11]",
            "[08-100]",
            "[1,02]",
            "[3-1]",
            "[1-3,2-5]",
            "[098-099,100-101,1,02]",
            "[8-012]",
        ]
    ),
    min_size=1,
    max_size=4,
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


@pytest.mark.invariant("F37")
def test_a_long_set_as_the_last_version_wrote_it_is_read() -> None:
    """The members of a group stand so in the root's log: whoever cannot read them cannot lead."""
    names = [f"node{n:03}" for n in range(1, 1300, 2)]
    text = str(NodeSet.fromlist(names, resolver=RESOLVER_NOGROUP))
    assert len(text) > nodesets.LIBRARY_MAX and NodeSets().expand(text) == names


def test_a_name_that_ranges_name_twice_counts_once() -> None:
    assert NodeSets().expand("x^n[1-3,2-5]") == ["x", "n1", "n2", "n3", "n4", "n5"]
    assert NodeSets().expand("n[1-2,2]") == ["n1", "n2"]


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


# -- folding --------------------------------------------------------------------------------------------------------

NAMES = st.lists(
    st.tuples(
        st.sampled_from(["n", "r", "", "login"]),
        st.integers(0, 120),
        st.sampled_from(["", "n", "-x"]),
        st.integers(0, 12),
        st.integers(1, 3),
    ).map(lambda t: f"{t[0]}{t[1]:0{t[4]}}" + (f"{t[2]}{t[3]}" if t[2] else "")),
    min_size=1,
    max_size=200,
)


@given(NAMES)
def test_what_is_folded_means_the_same_to_the_library_and_here(names: list[str]) -> None:
    text = fold(names)
    assert set(NodeSet(text, resolver=RESOLVER_NOGROUP)) == set(names) == set(NodeSets().expand(text)), text


def test_equal_pieces_are_folded_in_each_of_their_numbers() -> None:
    names = [f"r{r}n{n:02}" for r in range(1, 5) for n in range(1, 41)]
    assert fold(names) == "r[1-4]n[01-40]"
    assert fold([*names, "r9n07", "login1", "admin"]) == "admin,login1,r[1-4]n[01-40],r9n07"
    assert fold(f"x{i}" for i in range(8, 121)) == "x[8-120]"
    assert fold(f"x{i:02}" for i in range(8, 99)) == "x[08-98]"


@pytest.mark.invariant("S7", "T13")
def test_folding_takes_no_longer_because_of_how_names_are_made() -> None:
    """The library took two seconds of a root's loop for eight hundred such names, and minutes for four thousand."""
    names = [f"h{i}x{i}y" for i in range(8_000)]
    begin = time.process_time()
    fold([f"h{i}" for i in range(8_000)])
    plain = time.process_time() - begin
    begin = time.process_time()
    assert fold(names[:4000])
    assert time.process_time() - begin < 100 * plain


@pytest.mark.invariant("S7", "T13")
@pytest.mark.parametrize(
    "text",
    [
        "n0" + "".join(f"!n{i}" for i in range(10_000)),
        "n0" + "".join(f"^n{i}" for i in range(10_000)),
        "n[" + ",".join(f"{2 * i}" for i in range(10_000)) + "]",
        ",".join(f"n{i}a[1]" for i in range(10_000)),
        ",".join(f"h{i}x{i}y[0-1]" for i in range(5_000)),
    ],
    ids=lambda text: text[:20],
)
def test_no_set_takes_longer_because_of_how_it_is_written(text: str) -> None:
    """The library took up to ten seconds of a root's loop for some of these: 66 KB that any viewer may send."""
    begin = time.process_time()
    assert len(nodesets._expand.__wrapped__(",".join(f"m[{i}]x[1]" for i in range(10_000)))) == 10_000
    plain = time.process_time() - begin
    begin = time.process_time()
    try:
        NodeSets().expand(text)
    except UsageError as exc:
        assert "is empty" in exc.message
    assert time.process_time() - begin < 20 * plain


def test_a_long_set_that_is_written_in_an_unusual_way_is_refused() -> None:
    assert NodeSets().expand("a[1,02]")
    with pytest.raises(UsageError, match="too long to be written so"):
        NodeSets().expand(",".join(f"a{i}[1,02]" for i in range(1000)))


def test_a_set_with_more_names_than_may_be_is_refused_before_it_is_expanded() -> None:
    assert len(NodeSets().expand("n[0-99]", 100)) == 100
    for text in ("n[0-100]", "a[0-99],b[0-99],c"):
        with pytest.raises(UsageError, match="nodes"):
            NodeSets().expand(text, 100)


TOKENS = ["n", "x", "1", "01", "10", "n1", "n2", "[1-3]", "[1,2]", "[01-03]", "[8-11]", "[1-7/3]", "[2]", "-", ".", "_", " ",
          ",", ",", "!", "&", "^", "[", "]", "[]", "[1-]", "[3-1]", "[01-1]"]  # fmt: skip


@given(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=9).map("".join))
@pytest.mark.invariant("T13")
def test_whatever_is_written_means_what_the_library_says(text: str) -> None:
    """An operator without an operand was read as a node without a name."""
    try:
        wanted = set(nodesets.parse(text, groups=False))
    except UsageError:
        with pytest.raises(UsageError):
            nodesets.NodeSets().expand(text)
    else:
        assert set(nodesets.NodeSets().expand(text)) == wanted
