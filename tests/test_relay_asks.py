"""A relay asks its children whether they live; and what the last of them said goes up before it is said to be gone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from test_relay import AGG1, N1, N2, Bench, peer

from pact.core.tree import wire
from pact.core.tree.directory import Child, Peer
from pact.core.tree.relay import LATE_MAX_NS, Ended, ToChildren
from pact.core.tree.wire import Message, message
from pact.model import NS_PER_S


@pytest.mark.invariant("T3")
def test_children_are_asked_together_every_two_seconds_and_an_answer_is_not_answered() -> None:
    b = Bench()
    nodes = [peer(f"n{i}") for i in range(40)]
    for node in nodes:
        b.hello(node)
        b.t += NS_PER_S // 20
    asked: dict[bytes, list[int]] = {}
    b.up()
    turns, ends = 0, b.t + 20 * NS_PER_S
    while b.t < ends:
        b.t = max(b.t + 1, b.relay.next_wake_ns())
        for effect in b.relay.tick(b.t):
            assert isinstance(effect, ToChildren)
            head = wire.decode(effect.frame).head
            assert head["ask"] and head["path"] == ["r", "agg0"]
            turns += 1
            for rid in effect.rids:
                asked.setdefault(rid, []).append(b.t)
                assert b.say(next(n for n in nodes if n.name.encode() == rid), "beat", {"answer": True}) == []
    assert turns <= 11 * 9, "a few times a second, not once for each child"
    for times in asked.values():
        gaps = [later - at for at, later in pairwise(times)]
        assert len(times) >= 9 and max(gaps) <= 2 * NS_PER_S and min(gaps) >= 1.7 * NS_PER_S
    assert len(asked) == len(b.relay.tree.where) == 40
    assert [m.kind for m in b.say(N1, "beat", {})] == ["beat"], "who asks is answered"
    b.relay.gone(b"n0", b.t)
    b.t += 3 * NS_PER_S
    assert not any(b"n0" in e.rids for e in b.relay.tick(b.t) if isinstance(e, ToChildren))


@pytest.mark.invariant("T9")
def test_hellos_without_end_do_not_multiply_the_questions() -> None:
    b = Bench()
    for _ in range(50):  # the same session each time, as no uplink does
        b.hello(N1)
        b.t += NS_PER_S // 4
    asked = [e.rids for e in b.relay.tick(b.t) if isinstance(e, ToChildren)]
    assert asked in ([], [(b"n1",)]) and sum(map(len, b.relay.beats._due.values())) <= 12
    b.t += 3 * NS_PER_S
    b.say(N1, "beat", {})
    b.relay.tick(b.t)
    assert sum(map(len, b.relay.beats._due.values())) == 1


@pytest.mark.invariant("T3")
def test_who_is_at_work_is_asked_seldom_and_who_does_not_answer_as_often_as_ever() -> None:
    b = Bench()
    above = peer("agg1")
    for who in (N1, N2, above):
        b.hello(who)
    b.say(above, "below", {"add": ["n3"], "sessions": {"n3": 1 << 20}})
    b.up()
    began, asked = b.t, {b"n1": [b.t], b"n2": [b.t], b"agg1": [b.t]}
    for turn in range(120):
        b.t += NS_PER_S // 4
        if turn % 4 == 0:  # a call a second: n1 and what is below agg1 answer at once, n2 never
            b.call(None, f"1.{turn}")
            for who, name in ((N1, "n1"), (above, "n3")):
                b.answer(who, {b"{}": [name]}, call=f"1.{turn}")
        for effect in b.relay.tick(b.t):
            assert isinstance(effect, ToChildren)
            for rid in effect.rids:
                asked[rid].append(b.t)
                if rid == b"agg1":
                    b.say(above, "beat", {"answer": True})
        b.relay.tree.children[b"n2"].heard_ns = max(began, b.t - 3 * NS_PER_S)  # not gone for good, but late
    gaps = {rid: [later - at for at, later in pairwise(times)] for rid, times in asked.items()}
    assert len(gaps[b"n1"]) == 5 and max(gaps[b"n1"]) <= 6 * NS_PER_S, "who leads and what is held is said all the same"
    assert max(gaps[b"n2"]) <= 2 * NS_PER_S and max(gaps[b"agg1"]) <= 2 * NS_PER_S
    assert len(gaps[b"n2"]) >= 14 and len(gaps[b"agg1"]) >= 14


@pytest.mark.invariant("T5")
def test_the_last_events_of_who_leaves_go_up_before_it_is_said_that_it_left() -> None:
    b = Bench(gather_ns=NS_PER_S // 20)
    b.hello(N1)
    b.hello(N2)
    b.up()
    for node, at in ((N2, 0), (N1, 1)):
        b.t += at * NS_PER_S // 1000
        b.say(node, "events", {"batches": [[node.name, "i", 0, 1, 2]]}, b"{}")
        ups = b.up()
    assert ups == [], "gathered"
    b.say(N1, "goodbye", {})
    b.hello(peer("n3"))  # in the same turn somebody comes, and speaks
    b.say(peer("n3"), "events", {"batches": [["n3", "i", 0, 1, 2]]}, b"{}")
    ups = b.up()
    events, below = ups[:2]
    assert events.kind == "events" and events.head["batches"][0][0] == "n1" and below.head["gone"] == ["n1"]


@pytest.mark.invariant("T5", "T7")
def test_who_came_is_said_before_its_events_also_when_another_leaves_in_the_same_turn() -> None:
    b = Bench(gather_ns=NS_PER_S // 20)
    b.hello(N1)
    b.up()
    b.hello(N2)
    b.say(N2, "events", {"batches": [["n2", "i", 0, 1, 2]]}, b"{}")
    b.say(N1, "goodbye", {})
    came, events, left = b.up()
    assert came.head["add"] == ["n2"] and events.head["batches"][0][0] == "n2" and left.head["gone"] == ["n1"]


@pytest.mark.invariant("T5")
@pytest.mark.parametrize("gather_ns", [0, NS_PER_S // 20])
def test_the_last_events_pass_every_level_before_their_node_is_forgotten(gather_ns: int) -> None:
    """Both messages of the aggregator below are read in one turn."""
    b = Bench(gather_ns=gather_ns)
    agg = peer("agg1", "aggregator")
    b.hello(agg, below=["n1", "n2"])
    b.up()
    b.say(agg, "events", {"batches": [["n2", "i", 0, 1, 2]]}, b"{}")
    b.up()
    b.say(agg, "events", {"batches": [["n1", "i", 0, 1, 2]]}, b"{}")
    b.say(agg, "below", {"gone": ["n1"]})
    events, left = b.up()
    assert events.head["batches"][0][0] == "n1" and left.head["gone"] == ["n1"]
    b.say(agg, "events", {"batches": [["n2", "i", 1, 1, 2]]}, b"{}")
    b.hello(agg, session=2 << 20, below=[])
    events, left = b.up()
    assert events.head["batches"][0][0] == "n2" and left.head["gone"] == ["n2"]


def test_what_a_relay_remembers_of_a_child_is_small() -> None:
    assert not hasattr(Child(b"", N1, "node", 1, "", 0), "__dict__")
    assert Ended(b"x").rid == b"x"


@pytest.mark.invariant("F90")
def test_an_aggregator_that_comes_back_hears_for_which_calls_nobody_waits() -> None:
    """Its nodes carry them out still: here they were lost for the call when it was away."""
    b = Bench()

    def drop(call: str, client: str = "") -> list[str]:
        effects = b.relay.from_parent(message("drop", {"call": call, "client": client, "id": 1}), b.t)
        return [m.head["call"] for m in b.heard(effects) if m.kind == "drop"]

    def back(session: int) -> list[str]:
        said = b.hello(AGG1, session, rid=f"a{session}".encode())
        assert said[0].kind == "welcome"
        return [m.head["call"] for m in said if m.kind == "drop"]

    assert drop("1.1") == [] and back(1) == ["1.1"]
    assert drop("1.2") == ["1.2"], "one that is here hears it at once, though no call of that name is known"
    assert drop("1.3", "agg1:1") == [], "all its nodes have answered"
    assert back(2) == ["1.1", "1.2"]
    b.t += 31 * NS_PER_S
    assert back(3) == []
    for n in range(1000):
        drop(f"2.{n}")
    assert back(4) == [f"2.{n}" for n in range(744, 1000)]


@pytest.mark.invariant("S8")
def test_who_asks_and_cancels_all_the_time_pushes_out_nobody_else_s() -> None:
    """An administrator's command ran on below an aggregator that was away: it was never told."""
    b = Bench()

    def drop(call: str, who: str) -> None:
        b.relay.from_parent(message("drop", {"call": call, "who": who}), b.t)

    def back(session: int) -> list[tuple[str, str]]:
        said = b.hello(AGG1, session, rid=f"a{session}".encode())
        return [(m.head["call"], m.head["who"]) for m in said if m.kind == "drop"]

    drop("1.1", "root")
    for n in range(1000):
        drop(f"2.{n}", "ann")
    drop("1.2", "root")
    said = back(1)
    assert said[0] == ("1.1", "root") and said[-1] == ("1.2", "root"), "the relay below bounds them in the same way"
    assert len(said) == 256 and said[1] == ("2.746", "ann")


@pytest.mark.invariant("F90")
def test_a_welcome_says_whether_the_child_was_known_on_this_connection() -> None:
    b = Bench()
    assert b.hello(N1)[0].head["fresh"]
    assert not b.hello(N1, session=2 << 20)[0].head["fresh"], "it says hello again"
    assert b.hello(N1, session=3 << 20, rid=b"another")[0].head["fresh"], "over another connection"
    b.heard(b.relay.gone(b"another", b.t))
    assert b.hello(N1, session=4 << 20, rid=b"another")[0].head["fresh"], "over one that was given up"


@pytest.mark.invariant("T16")
def test_what_was_asked_while_this_process_stood_still_is_not_handed_on() -> None:
    """Until everything is read that waited: its clients were told that nobody answers."""
    b, ann = Bench(), Peer("ann", "admin", "key-ann")
    b.relay.tick(b.t)
    b.hello(ann)

    def asks(n: int) -> list[Message]:
        return b.say(ann, "request", {"id": n, "op": "commit", "nodes": "n1"}, b"{}")

    assert not asks(1) and [up.kind for up in b.up()] == ["request"]
    b.t += 20 * NS_PER_S
    for n in (2, 3):
        (said,) = asks(n)
        assert said.kind == "result" and said.head["exit"] == 5 and "stood still for 20 s" in said.head["message"]
        b.relay.tick(b.t, unread=True)
    assert not b.up()
    b.relay.tick(b.t)
    b.t += NS_PER_S
    assert not asks(4) and [up.kind for up in b.up()] == ["request"]


@pytest.mark.invariant("T16")
def test_a_busy_process_that_stood_still_serves_people_again() -> None:
    """It may never have read all that waits: it refused everybody until then."""
    b, ann = Bench(), Peer("ann", "admin", "key-ann")
    b.relay.tick(b.t)
    b.hello(ann)
    b.t += 20 * NS_PER_S
    for _ in range(LATE_MAX_NS // NS_PER_S + 1):
        b.relay.tick(b.t, unread=True)
        b.t += NS_PER_S
        b.say(ann, "beat", {})
    assert not b.say(ann, "request", {"id": 9, "op": "status", "nodes": "n1"}, b"{}")
    assert [up.kind for up in b.up()] == ["request"]
