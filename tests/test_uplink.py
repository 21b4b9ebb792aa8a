"""The way up: preference, loss, return, loops."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pact.core.tree import wire
from pact.core.tree.parents import Parent, preference
from pact.core.tree.uplink import (
    SILENCE_NS,
    STOOD_NS,
    Connect,
    Deliver,
    Disconnect,
    Lost,
    Note,
    Send,
    Uplink,
)
from pact.core.tree.wire import Message, message
from pact.model import NS_PER_S

CALLER = {"user": "u", "role": "ops", "via": "cluster"}
PARENTS = [Parent(f"tcp://a{i}:1", "k", f"r{i % 2}") for i in range(4)]


def welcome(*path: str, **more: Any) -> Message:
    return message("welcome", {"v": 1, "name": path[-1], "path": list(path), "fence": 1, "credit": 1, **more})


class Bench:
    def __init__(self, parents: list[Parent] | None = None, **kwargs: Any) -> None:
        self.u = Uplink("n1", "node", parents or PARENTS, random.Random(1), session=1 << 40, **kwargs)
        self.t = 0
        self.said: list[Any] = []

    def until(self, seconds: float, stop: type | None = None) -> list[Any]:
        """Effects of the time that passes."""
        end = self.t + int(seconds * NS_PER_S)
        out: list[Any] = []
        while self.t < end:
            wake = self.u.next_wake_ns()
            self.t = end if wake is None else min(end, max(self.t, wake))
            new = self.u.tick(self.t)
            out += new
            if stop is not None and any(isinstance(e, stop) for e in new):
                break
            if not new:
                self.t += 1
        self.said += out
        return out

    def hear(self, parent: str, m: Message) -> list[Any]:
        out = self.u.received(parent, m, self.t)
        self.said += out
        return out

    def join(self) -> str:
        (url,) = [e.parent.url for e in self.until(1, Connect) if isinstance(e, Connect)]
        self.hear(url, welcome("root1", "a"))
        assert self.u.parent == url
        return url


def kinds(effects: list[Any]) -> list[str]:
    return [wire.decode(e.frame).kind for e in effects if isinstance(e, Send)]


@pytest.mark.invariant("T3")
def test_everybody_has_an_order_of_its_own_and_the_same_rack_comes_first() -> None:
    orders = {tuple(p.url for p in preference(f"n{i}", "", PARENTS)) for i in range(200)}
    assert len(orders) == 24
    assert all(p.rack == "r1" for p in preference("n1", "r1", PARENTS)[:2])
    for i in range(50):  # who does not prefer the one that is gone does not move
        full = preference(f"n{i}", "", PARENTS)
        assert [p for p in full if p is not PARENTS[2]] == preference(
            f"n{i}", "", [p for p in PARENTS if p is not PARENTS[2]]
        )


@pytest.mark.invariant("T3")
def test_silence_for_six_seconds_is_a_loss_and_the_next_is_tried_at_once() -> None:
    b = Bench()
    url = b.join()
    start = b.t
    effects = b.until(8, Connect)
    assert any(isinstance(e, Lost) for e in effects) and any(isinstance(e, Disconnect) for e in effects)
    assert b.t - start < 7 * NS_PER_S
    (other,) = [e.parent.url for e in effects if isinstance(e, Connect)]
    assert other == b.u.order[1].url != url
    assert kinds(effects) == ["beat", "hello"]
    third = [e for e in b.until(1.8, Connect) if isinstance(e, Connect)]  # no answer for a second and a half
    assert [e.parent.url for e in third] == [b.u.order[2].url]


@pytest.mark.invariant("T3")
def test_who_is_asked_answers_once_and_asks_only_when_nobody_asked_for_a_while() -> None:
    b = Bench()
    url = b.join()
    for _ in range(5):
        assert kinds(b.until(2)) == [], "the parent asks in time"
        (answer,) = [
            wire.decode(e.frame)
            for e in b.hear(url, message("beat", {"path": ["root1", "a"], "ask": True}))
            if isinstance(e, Send)
        ]
        assert answer.kind == "beat" and answer.head["answer"]
        assert kinds(b.hear(url, message("beat", {"path": ["root1", "a"]}))) == [], "what is no question has no answer"
    (own,) = [wire.decode(e.frame) for e in b.until(3.1) if isinstance(e, Send)]
    assert own.kind == "beat" and not own.head["answer"]


@pytest.mark.invariant("T3")
def test_who_is_at_work_does_not_ask_whether_its_parent_lives() -> None:
    b = Bench()
    url = b.join()
    caller = {"user": "u", "role": "ops", "via": "cluster"}
    call = {"call": "1.1", "op": "x", "caller": caller, "fence": 1, "timeout_ms": 1}
    b.hear(url, message("beat", {"path": ["root1", "a"], "ask": True}))
    for kind, head in [("call", call), ("ack", {"cursors": []})] * 4:
        assert kinds(b.until(2.9)) == []
        b.hear(url, message(kind, head))
    assert kinds(b.until(3.9)) == [] and kinds(b.until(0.2)) == ["beat"]


@pytest.mark.invariant("T3")
def test_under_a_parent_that_never_asks_a_call_that_takes_long_puts_off_no_beat() -> None:
    b = Bench()
    url = b.join()
    caller = {"user": "u", "role": "ops", "via": "cluster"}
    beats = []
    for n in range(10):
        b.hear(url, message("call", {"call": f"1.{n}", "op": "x", "caller": caller, "fence": 1, "timeout_ms": 60_000}))
        beats += kinds(b.until(2))
    assert beats.count("beat") >= 6, "an older parent hears of us all the time"


@pytest.mark.invariant("T3")
def test_the_way_back_is_gentle_make_before_break() -> None:
    b = Bench()
    first = b.join()
    b.until(8, Connect)
    second = b.u.order[1].url
    b.hear(second, welcome("root1", "b"))
    for _ in range(200):
        effects = b.until(1, Connect)
        b.hear(second, message("beat", {"path": ["root1", "b"]}))
        if any(isinstance(e, Connect) for e in effects):
            break
    assert 30 * NS_PER_S < b.t < 130 * NS_PER_S
    assert b.u.parent == second
    effects = b.hear(first, welcome("root1", "a"))
    order = [type(e) for e in effects]
    assert order.index(Send) < order.index(Disconnect) < order.index(Deliver)
    assert kinds(effects) == ["goodbye"] and b.u.parent == first
    assert not any(isinstance(e, Lost) for e in effects)
    assert b.hear(second, message("beat", {})) == []  # of a connection that was given up


def test_nobody_goes_back_while_somebody_types() -> None:
    """A return would end what goes through the parent that is there."""
    typing = [True]
    b = Bench(stays=lambda: bool(typing))
    b.join()
    b.until(8, Connect)
    second = b.u.order[1].url
    b.hear(second, welcome("root1", "b"))
    for _ in range(300):
        assert not any(isinstance(e, Connect) for e in b.until(1, Connect))
        b.hear(second, message("beat", {"path": ["root1", "b"]}))
    typing.clear()
    for _ in range(130):
        if any(isinstance(e, Connect) for e in b.until(1, Connect)):
            return
        b.hear(second, message("beat", {"path": ["root1", "b"]}))
    raise AssertionError("it never goes back")


@pytest.mark.invariant("T4")
def test_a_parent_that_is_below_is_refused_and_said_once() -> None:
    b = Bench(parents=PARENTS[:1])
    for _ in range(3):
        b.until(100, Send)
        b.hear(PARENTS[0].url, welcome("root1", "n1", "a"))
        assert b.u.parent == ""
    assert [e.text for e in b.said if isinstance(e, Note)] == [
        "tcp://a0:1 cannot be a parent: n1 is above it (root1 > n1 > a)"
    ]


@pytest.mark.invariant("T4")
def test_a_loop_that_closes_later_is_seen_in_a_beat() -> None:
    b = Bench()
    url = b.join()
    effects = b.hear(url, message("beat", {"path": ["root1", "n1", "a"]}))
    assert any(isinstance(e, Lost) for e in effects) and b.u.parent == ""


def test_another_version_is_no_parent() -> None:
    b = Bench()
    (url,) = [e.parent.url for e in b.until(1, Connect) if isinstance(e, Connect)]
    b.hear(url, welcome("root1", v=2))
    assert b.u.parent == ""


def test_who_are_you_is_answered_with_hello_on_the_same_connection() -> None:
    b = Bench()
    url = b.join()
    b.until(1)
    effects = b.hear(url, message("sorry", {"again": True}))
    assert kinds(effects) == ["hello"] and not any(isinstance(e, Connect) for e in effects)
    assert b.u.parent == ""
    assert b.hear(url, message("sorry", {"again": True})) == []  # one hello answers many of them
    sessions = [
        wire.decode(e.frame).head["session"]
        for e in b.said
        if isinstance(e, Send) and wire.decode(e.frame).kind == "hello"
    ]
    assert sessions == sorted(set(sessions))
    assert any(isinstance(e, Deliver) for e in b.hear(url, welcome("root1", "a")))


def test_when_nobody_takes_it_the_pauses_grow_and_connections_are_kept() -> None:
    b = Bench(parents=PARENTS[:2])
    hellos, connects = [], 0
    while b.t < 300 * NS_PER_S:
        effects = b.until(60, Send)
        for e in effects:
            connects += isinstance(e, Connect)
            if isinstance(e, Send):
                hellos.append(b.t)
                b.hear(e.parent, message("sorry", {"why": "no way to the root", "retry_ms": 1000}))
    assert connects == 2
    assert 12 < len(hellos) < 60
    assert hellos[-1] - hellos[-3] > 10 * NS_PER_S


def test_a_fleet_table_that_was_missed_is_asked_for() -> None:
    b = Bench()
    url = b.join()
    b.until(3)
    assert kinds(b.hear(url, message("beat", {"path": ["root1", "a"], "fence": 1, "fleet_seq": 4}))) == ["hello"]
    b.hear(url, welcome("root1", "a", fleet={"fence": 1, "seq": 4, "holds": []}))
    b.until(3)
    assert kinds(b.hear(url, message("beat", {"path": ["root1", "a"], "fence": 1, "fleet_seq": 4}))) == []


@pytest.mark.invariant("F90")
def test_who_says_hello_again_hears_that_the_connection_had_broken() -> None:
    """The parent has noticed it and the child has not: what the parent had let go of would go on below the child."""
    b = Bench()
    url = b.join()
    for fresh, lost in ((False, 0), (True, 1)):
        b.until(3)
        b.hear(url, message("beat", {"path": ["root1", "a"], "fence": 1, "fleet_seq": 4 + lost}))
        again = welcome("root1", "a", fleet={"fence": 1, "seq": 4 + lost, "holds": []})
        effects = b.hear(url, again._replace(head={**again.head, "fresh": fresh}))
        assert sum(isinstance(e, Lost) for e in effects) == lost
        assert b.u.connected


@pytest.mark.invariant("T3")
def test_unfinished_groups_are_asked_about_at_the_welcome_and_every_half_minute() -> None:
    b = Bench(unfinished=lambda: [["g1", "prepared", 3]])
    url = b.join()
    asks = kinds(b.said).count("ask")
    for _ in range(31):
        b.until(1)
        b.hear(url, message("beat", {"path": ["root1", "a"]}))
    assert (asks, kinds(b.said).count("ask")) == (1, 2)


@pytest.mark.invariant("T3")
def test_nobody_asks_about_a_group_that_waits_for_its_window_or_has_just_been_voted_on() -> None:
    groups = [["g1", "open", 0]]
    b = Bench(unfinished=lambda: groups)
    url = b.join()
    assert kinds(b.said).count("ask") == 1

    def asks(seconds: int) -> list[Any]:
        b.said.clear()
        for _ in range(seconds):
            b.until(1)
            b.hear(url, message("beat", {"path": ["root1", "a"]}))
        said = [wire.decode(e.frame) for e in b.said if isinstance(e, Send)]
        return [m.head["groups"] for m in said if m.kind == "ask"]

    assert asks(65) == []
    groups[0] = ["g1", "prepared", 3]
    assert asks(26) == [], "it may be decided any moment"
    assert asks(30) == [[["g1", "prepared", 3]]]


@pytest.mark.invariant("G2")
def test_a_new_root_hears_of_every_group_also_where_the_parent_stayed() -> None:
    b = Bench(unfinished=lambda: [["g1", "open", 0]])
    url = b.join()
    for _ in range(40):
        b.until(1)
        b.hear(url, message("beat", {"path": ["root1", "a"], "fence": 1}))
    b.said.clear()
    start = b.t
    while not kinds(b.said).count("ask"):
        b.until(1)
        b.hear(url, message("beat", {"path": ["root2", "a"], "fence": 2}))
    assert b.t - start <= 11 * NS_PER_S, "before the root says that nobody has it"
    b.said.clear()
    for _ in range(310):
        b.until(1)
        b.hear(url, message("beat", {"path": ["root2", "a"], "fence": 2}))
    assert kinds(b.said).count("ask") == 1, "a question may have been lost"


def test_stop_says_goodbye() -> None:
    b = Bench()
    b.join()
    effects = b.u.stop()
    assert kinds(effects) == ["goodbye"] and isinstance(effects[-1], Disconnect)
    assert b.u.next_wake_ns() is None


@pytest.mark.invariant("T16")
@pytest.mark.parametrize("first", ["a message", "the time"])
def test_what_waited_while_this_process_stood_still_is_not_read(first: str) -> None:
    """Its parent has given it up, and told whoever asked."""
    b = Bench()
    url = b.join()
    call = message("call", {"call": "1.1", "op": "x", "caller": CALLER, "fence": 1, "timeout_ms": 5000})
    assert any(isinstance(e, Deliver) for e in b.hear(url, call))
    b.t += STOOD_NS + 1
    out = b.hear(url, call) if first == "a message" else b.u.tick(b.t)
    assert Disconnect(url) in out and any(isinstance(e, Lost) and "stood still" in e.why for e in out)
    assert not any(isinstance(e, Deliver) for e in [*out, *b.hear(url, call)]) and not b.u.connected
    assert [e for e in b.until(2, Connect) if isinstance(e, Connect)], "it looks for a parent at once"


def test_who_does_something_every_few_seconds_stands_not_still() -> None:
    b = Bench()
    url = b.join()
    for _ in range(20):
        b.t += SILENCE_NS - 1
        b.hear(url, message("beat", {"path": ["root1", "a"], "fence": 1, "fleet_seq": 0}))
        assert b.u.connected
