"""Acknowledgements on their last hop: none too late, none forgotten, none that is overtaken said last."""

from __future__ import annotations

from typing import Any

import pytest
from test_relay import AGG1, N1, N2, Bench

from pact.core.tree.acks import HELD_BYTES, HELD_NS
from pact.core.tree.wire import Message, message


def acks(messages: list[Message]) -> list[list[Any]]:
    return [cursor for m in messages if m.kind == "ack" for cursor in m.head["cursors"]]


@pytest.mark.invariant("T5")
def test_acknowledgements_wait_for_calls_unless_a_node_waits_for_them() -> None:
    b = Bench()
    for who in (N1, N2):
        b.hello(who)
    b.hello(AGG1, below=["n3"], sessions={"n3": 1}, racks={})
    b.up()

    def ack(*cursors: list[Any]) -> list[list[Any]]:
        return acks(b.heard(b.relay.from_parent(message("ack", {"cursors": list(cursors)}), b.t)))

    def tick(ns: int) -> list[list[Any]]:
        b.t += ns
        return acks(b.heard(b.relay.tick(b.t)))

    assert ack(["n1", "i", -1, False], ["n2", "i", 3, False]) == [["n1", "i", -1, False], ["n2", "i", 3, False]]
    b.call(["n1", "n2", "n3"])  # from now on there is something that matters more
    for seq in range(3):
        b.say(N1, "events", {"batches": [["n1", "i", seq, 1, 2]]}, b"x\n")
        assert ack(["n1", "i", seq, False]) == []
    assert b.relay.backlog.bytes == 0  # what the root has is not kept, whether the node knows it or not
    assert ack(["n3", "i", 7, False]) == [["n3", "i", 7, False]]  # an aggregator has its own nodes to tell
    assert tick(HELD_NS // 2) == []
    assert ack(["n2", "i", 4, False]) == []
    assert b.relay.next_wake_ns() <= b.t + HELD_NS // 2
    assert tick(HELD_NS // 2) == [["n1", "i", 2, False], ["n2", "i", 4, False]]
    assert tick(HELD_NS) == []
    b.say(N1, "events", {"batches": [["n1", "i", 3, 1, 2]]}, b"x\n")
    assert ack(["n1", "i", 3, False]) == []
    size = HELD_BYTES // 2
    for seq in (4, 5):  # of much in a row a node hears soon: its credit must not run out
        b.say(N1, "events", {"batches": [["n1", "i", seq, 1, size]]}, b"x" * size)
        assert ack(["n1", "i", seq, False]) == ([["n1", "i", 5, False]] if seq == 5 else [])
    assert ack(["n1", "i", 8, False], ["n1", "i", 7, False]) == []
    b.say(N1, "events", {"batches": [["n1", "i", 6, 1, HELD_BYTES]]}, b"x" * HELD_BYTES)
    assert ack(["n1", "i", 6, False]) == [["n1", "i", 8, False]]  # one that was overtaken
    assert ack(["n1", "i", 9, False]) == [] and ack(["n1", "i", 3, True]) == [["n1", "i", 3, True]]  # what it misses
    assert tick(HELD_NS) == []  # and nothing that was true before is said after it
    assert ack(["n1", "i", 12, False]) == []
    for who in (N1, N2, AGG1):
        b.answer(who, {b"done": ["n3" if who is AGG1 else who.name]})
    b.up()
    assert ack(["n1", "i", 11, False]) == [["n1", "i", 12, False]]  # no call is under way any more
    assert tick(HELD_NS) == []
    b.call(["n2"], "1.2")
    assert ack(["n1", "new", 3, False], ["n1", "old", 9, False]) == []  # installed anew: the old one's end is no news
    assert tick(HELD_NS) == [["n1", "new", 3, False], ["n1", "old", 9, False]]
    assert ack(["n2", "i", 9, False]) == []
    b.relay.received(b"n2", N2, message("goodbye", {}), b.t)
    assert tick(HELD_NS) == []  # who is gone is not told
