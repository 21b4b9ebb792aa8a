"""Names in closed directories, in data and in texts."""

from __future__ import annotations

import time
from collections.abc import Callable

from pact.core.node.closed import Names
from pact.core.node.state import State

RESOURCES = ("file:/root/plan", "file:/root/plan b/x y", "file:/root/plan.txt")
NAMES = Names(RESOURCES)


def hidden(value: object) -> object:
    return NAMES.replaced(value, lambda r: f"file:<{RESOURCES.index(r)}>")


def test_a_name_is_found_wherever_it_stands() -> None:
    assert hidden("file:/root/plan") == "file:<0>"
    assert hidden({"file:/root/plan.txt": ["a", 1, None, {"x": ("file:/root/plan b/x y",)}]}) == {
        "file:<2>": ["a", 1, None, {"x": ["file:<1>"]}]
    }
    assert hidden("rm -f/root/plan /root/plan b/x y: busy") == "rm -f<0> <1>: busy"
    assert hidden("'/root/plan'. /root/plan.") == "'<0>'. <0>."
    assert NAMES.within({"a": "x /root/plan.txt", "file:/root/plan": 1}) == {"file:/root/plan", "file:/root/plan.txt"}


def test_what_only_begins_like_one_stays() -> None:
    for text in ("file:/root/planet", "file:/root/plan/of", "file:/root/plan-b", "file:/root", "no name at all", ""):
        assert hidden(text) == text and NAMES.within([text]) == set()


def test_another_path_that_ends_like_one_stays() -> None:
    for text in (
        "file:/chroot/root/plan",
        "/chroot/root/plan",
        "service:/chroot/root/plan.txt",
        "/root/plan/root/plan",
    ):
        assert hidden({"a": [text]}) == {"a": [text]} and NAMES.within([text]) == set()
    assert hidden("/root/plan~") == "<0>~" and hidden("file:/root/plan.new.1") == "file:<0>.new.1"
    assert hidden("file:/chroot/root/plan b/x y") != "file:/chroot/root/plan b/x y", "it may be a text with that name"


def test_a_name_is_found_behind_another_path() -> None:
    """Paths that are listed without a space, and values in which a path is a part, look like one path."""
    for text in ("/etc/x,/root/plan", "/etc/x=/root/plan", "file:/etc/x~/root/plan", "/etc//root/plan"):
        assert NAMES.within([text]) == {RESOURCES[0]}, text
    assert hidden({"value": "/etc/x,/root/plan"}) == {"value": "/etc/x,<0>"}


def test_nothing_is_hidden_where_there_are_no_names() -> None:
    assert not Names() and Names().within({"a": "/root/plan"}) == set()
    assert Names().replaced("/root/plan", str) == "/root/plan"


def test_many_texts_and_many_names_cost_little() -> None:
    """A status of ten thousand files while a thousand names are hidden is still made on the loop."""
    names = Names([f"file:/{n % 7}/closed{n}/secret.{n}" for n in range(1_000)])
    answer = {"changes": [{"resources": [f"file:/{n % 7}/etc/site.d/file{n}.conf" for n in range(10_000)]}]}
    began = time.process_time()
    assert names.replaced(answer, str) == answer
    assert time.process_time() - began < 0.5, "each name looked for in each text: some seconds"
    long = "/a. " * 16_000
    began = time.process_time()
    assert names.replaced(long, str) == long
    assert time.process_time() - began < 0.5, "each beginning with each end: many minutes"


def test_a_name_is_whole_or_it_is_left() -> None:
    assert hidden("/root/plan/root/plan /root/plan") == "/root/plan<0> <0>"
    assert Names(["file:/a/a"]).replaced("/a/a/a /a/a", lambda _: "file:x") == "/ax x"
    assert hidden("/root/planet /root/plan") == "/root/planet <0>"
    assert Names(["file:/a b", "nothing", ""]).replaced("/a b c", lambda _: "file:x") == "x c"


def test_to_hide_names_costs_about_as_much_as_to_find_them() -> None:
    """Each was made a regular expression: a status of thousands of them kept the loop for seconds."""
    names = [f"file:/home/ann/.cache/it{n}" for n in range(10_000)]
    hides, answer = Names(names), {"changes": [{"resources": names}]}

    def took(what: Callable[[], object]) -> float:
        began = time.process_time()
        what()
        return time.process_time() - began

    found = min(took(lambda: hides.within(answer)) for _ in range(3))
    assert took(lambda: hides.replaced(answer, lambda r: r)) < 4 * found


def test_a_name_that_is_hidden_no_longer_costs_no_look_at_the_others() -> None:
    """A person who made and removed thousands of files in a closed directory kept the loop busy."""
    names = [f"file:/home/ann/.cache/it{n}" for n in range(20_000)]
    took = []
    for closed in ([], names):
        state = State()
        for name in names:
            state.declare(name, {"attrs": None})
        state._load_tracked({"closed": closed})
        began = time.process_time()
        for name in names:
            state.declare(name, None)
        took.append(time.process_time() - began)
    assert not list(state.closed)
    assert took[1] < 5 * took[0]


def test_a_name_that_is_taken_out_is_hidden_until_the_step_ends() -> None:
    names = Names(RESOURCES)
    names.take_out(RESOURCES[0])
    assert RESOURCES[0] not in names and names.within("/root/plan") == {RESOURCES[0]}
    names.add(RESOURCES[:1])
    names.forget()
    assert RESOURCES[0] in names and names.within("/root/plan") == {RESOURCES[0]}
    for resource in RESOURCES:
        names.take_out(resource)
    names.forget()
    assert not names and names.within("/root/plan") == set()
