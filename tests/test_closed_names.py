"""Names in closed directories, in data and in texts."""

from __future__ import annotations

import time

from pact.core.node.closed import Names

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
