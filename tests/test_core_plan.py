"""The order of a plan: what others need first, what must leave from the inside out, circles named."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.core.plan import Step, action, below, ordered
from pact.errors import ConflictError
from pact.resources.rules import nature

HERE = {"x": 1}


def put(rid: str, *requires: str) -> Step:
    return Step(rid, dict(HERE), None, requires)


def remove(rid: str, *requires: str) -> Step:
    return Step(rid, None, dict(HERE), requires)


def order(*steps: Step) -> list[str]:
    """The order, which must not depend on the order given."""
    results = {tuple(s.id for s in ordered(p, nature)) for p in permutations(steps)}
    assert len(results) == 1
    return list(results.pop())


@pytest.mark.invariant("R1")
class TestOrders:
    def test_a_service_comes_after_what_it_may_need_and_before_what_requires_it(self) -> None:
        assert order(
            put("service:nfs"),
            put("mount:/data", "service:nfs"),
            put("file:/data/x"),
            put("file:/etc/nfs"),
            put("mount:/etc"),
        ) == ["mount:/etc", "file:/etc/nfs", "service:nfs", "mount:/data", "file:/data/x"]
        crossed = order(put("service:a"), put("service:b"), put("mount:/a", "service:a"), put("mount:/b", "service:b"))
        assert crossed.index("service:a") < crossed.index("mount:/a")
        assert crossed.index("service:b") < crossed.index("mount:/b")

    def test_a_mount_comes_after_the_mount_it_lies_in(self) -> None:
        assert order(put("mount:/a/b/c"), put("mount:/a/b"), put("mount:/a")) == [
            "mount:/a",
            "mount:/a/b",
            "mount:/a/b/c",
        ]

    def test_a_file_comes_after_the_mount_it_lies_on(self) -> None:
        assert order(put("file:/a/b/f"), put("mount:/a")) == ["mount:/a", "file:/a/b/f"]

    def test_everything_comes_after_the_root_mount(self) -> None:
        assert order(put("file:/f"), put("mount:/"))[0] == "mount:/"

    def test_a_directory_comes_before_what_is_in_it(self) -> None:
        assert order(put("file:/d/e/f"), put("file:/d"), put("file:/d/e")) == ["file:/d", "file:/d/e", "file:/d/e/f"]

    def test_the_directory_under_a_mount_point_comes_before_the_mount(self) -> None:
        assert order(put("mount:/d/m"), put("file:/d"))[0] == "file:/d"

    def test_names_that_only_begin_alike_do_not_lie_in_each_other(self) -> None:
        assert not below("/ab", "/a")
        assert not below("/a", "/a")
        assert below("/a/b", "/a")
        assert below("/a", "/")

    def test_modules_come_before_sysctls(self) -> None:
        assert order(put("sysctl:net.x.y"), put("module:zz")) == ["module:zz", "sysctl:net.x.y"]

    def test_a_module_that_leaves_does_not_wait_for_sysctls(self) -> None:
        assert set(order(put("sysctl:net.x.y"), remove("module:zz"))) == {"module:zz", "sysctl:net.x.y"}

    def test_sysctls_that_change_others_come_first(self) -> None:
        assert order(
            put("sysctl:a.b"),
            put("sysctl:net.ipv4.conf.all.rp_filter"),
            put("sysctl:net.ipv4.ip_forward"),
            put("sysctl:net.ipv4.conf.eth0.rp_filter"),
        ) == [
            "sysctl:net.ipv4.ip_forward",
            "sysctl:net.ipv4.conf.all.rp_filter",
            "sysctl:a.b",
            "sysctl:net.ipv4.conf.eth0.rp_filter",
        ]

    def test_what_must_leave_leaves_from_the_inside_out(self) -> None:
        assert order(remove("mount:/a"), remove("mount:/a/b"), remove("file:/a/b/c")) == [
            "file:/a/b/c",
            "mount:/a/b",
            "mount:/a",
        ]
        assert order(remove("file:/d"), remove("file:/d/e"), remove("file:/d/e/f")) == [
            "file:/d/e/f",
            "file:/d/e",
            "file:/d",
        ]

    def test_a_mount_that_hides_a_file_leaves_before_the_file_is_restored(self) -> None:
        assert order(put("file:/a/f"), remove("mount:/a")) == ["mount:/a", "file:/a/f"]
        assert order(put("file:/a"), remove("mount:/a")) == ["mount:/a", "file:/a"]

    def test_requires_are_followed_whatever_the_names_say(self) -> None:
        assert order(put("file:/a", "file:/b"), put("file:/b", "sysctl:z"), put("sysctl:z")) == [
            "sysctl:z",
            "file:/b",
            "file:/a",
        ]
        assert order(remove("file:/a", "file:/b"), remove("file:/b")) == ["file:/a", "file:/b"]

    def test_requires_that_are_not_in_the_plan_do_not_matter(self) -> None:
        assert order(put("file:/a", "mount:/gone")) == ["file:/a"]


@pytest.mark.invariant("R1")
def test_a_circle_is_refused_and_its_members_are_named() -> None:
    steps = [put("file:/a", "file:/b"), put("file:/b", "sysctl:c"), put("sysctl:c", "file:/a"), put("file:/z")]
    with pytest.raises(ConflictError, match="circle: file:/a, file:/b, sysctl:c") as caught:
        ordered(steps, nature)
    assert "file:/z" not in caught.value.message
    with pytest.raises(ConflictError):
        ordered([put("file:/a", "file:/a")], nature)


def test_actions_are_words_for_people() -> None:
    steps = [put("file:/a"), remove("file:/a"), Step("file:/a", HERE, HERE), Step("sysctl:a", {"value": "1"}, None)]
    assert [action(s) for s in steps] == ["create", "remove", "restore", "set"]


PATHS = st.lists(st.sampled_from("abc"), max_size=3).map(lambda parts: "/" + "/".join(parts))
IDS = st.one_of(
    PATHS.map("file:{}".format),
    PATHS.map("mount:{}".format),
    st.sampled_from(["sysctl:net.ipv4.ip_forward", "sysctl:b", "module:m", "module:n"]),
)


def edges(steps: dict[str, Step]) -> set[tuple[str, str]]:
    """(first, then), by the rules read one after the other."""
    out = set()
    for upper in steps.values():
        kind, path = upper.id.split(":")
        for lower in steps.values():
            lower_kind, lower_path = lower.id.split(":")
            paths = kind in ("file", "mount") and lower_kind in ("file", "mount")
            lies_on = paths and (
                below(path, lower_path) or (path == lower_path and kind == "file" and lower_kind == "mount")
            )
            if lower is not upper and (lower.id in upper.requires or lies_on):
                out.add((upper.id, lower.id) if upper.target is None else (lower.id, upper.id))
    return out


def brought(steps: dict[str, Step]) -> set[tuple[str, str]]:
    """(first, then) of what one kind may bring of another: that gives way to what is required."""
    modules = [s.id for s in steps.values() if s.id.startswith("module:") and s.target is not None]
    return {(m, s) for m in modules for s in steps if s.startswith("sysctl:")}


def leads(first: str, last: str, pairs: set[tuple[str, str]]) -> bool:
    """Whether ``last`` comes after ``first`` by these pairs."""
    reached, todo = set[str](), [first]
    while todo:
        here = todo.pop()
        reached.add(here)
        todo += [b for a, b in pairs if a == here and b not in reached]
    return last in reached


def circular(names: set[str], pairs: set[tuple[str, str]]) -> bool:
    left = set(names)
    while free := {n for n in left if not any(a in left and b == n for a, b in pairs)}:
        left -= free
    return bool(left)


@given(st.lists(st.tuples(IDS, st.booleans(), st.lists(IDS, max_size=2)), max_size=10, unique_by=lambda s: s[0]))
@pytest.mark.invariant("R1")
def test_the_order_is_a_permutation_that_respects_every_edge(drawn: list[tuple[str, bool, list[str]]]) -> None:
    steps = {
        rid: Step(rid, dict(HERE) if stays else None, dict(HERE), tuple(r for r in needs if r != rid))
        for rid, stays, needs in drawn
    }
    pairs = edges(steps)
    if circular(set(steps), pairs):
        with pytest.raises(ConflictError, match="circle"):
            ordered(steps.values(), nature)
        return
    result = [s.id for s in ordered(steps.values(), nature)]
    assert sorted(result) == sorted(steps)
    assert [(a, b) for a, b in pairs if result.index(a) > result.index(b)] == []
    soft = brought(steps)
    given_way = [(a, b) for a, b in soft if result.index(a) > result.index(b)]
    assert [(a, b) for a, b in given_way if not leads(b, a, pairs | soft)] == []
