"""Streams that turn round at a relay, and what relays forget of them: no socket, no clock."""

from __future__ import annotations

import pytest
from test_relay import peer
from test_streams import ANN, CALLER, Joined, Tree, frames

from pact.core.tree.lanes import BULK_CREDIT, CREDIT, PIECE_MAX, TOOK_STEP
from pact.core.tree.relay import ToChildren
from pact.core.tree.wire import message


@pytest.mark.parametrize("op", ["exec", "shell_open", "shell_attach"])
def test_a_stream_turns_round_at_the_relay_that_has_both_ends(op: str) -> None:
    tree = Joined(op)
    (said,), rids = tree.to(peer("n1"), frames(b"out"), b"out")
    assert (said.head["id"], said.head["call"], said.head["client"], said.body) == (7, "", "", b"out")
    assert rids == [b"ann"]
    (said,), rids = tree.to(ANN, frames(b"in", id=7), b"in")
    assert (said.head["call"], said.head["client"], said.body, rids) == ("1.1", "", b"in", [b"n1"])


@pytest.mark.invariant("T13")
@pytest.mark.parametrize("what", ["op", "client", "id", "call", "node", "bulk"])
def test_nothing_turns_round_that_was_not_asked_for(what: str) -> None:
    tree = Joined(op="status" if what == "op" else "exec")
    tree.hello(peer("n2"))
    head = {**frames(b"x", node="n2" if what == "node" else "n1"), "bulk": what not in ("bulk", "op")}
    if what in ("client", "id"):
        head = {**head, "call": "1.2"}
        again = {"call": "1.2", "op": "exec", "nodes": ["n1"], "caller": CALLER, "fence": 1, "timeout_ms": 1000}
        who = {"client": "agg0:77", "id": 7} if what == "client" else {"client": tree.name, "id": 9}
        tree.relay.from_parent(message("call", {**again, **who}, b"{}"), tree.t)
    elif what == "call":
        head["call"] = "1.3"
    (up,) = tree.ups(peer(str(head["node"])), head, b"x")
    assert up.kind == "frames" and up.head["call"] == head["call"], "the root says what becomes of it"


def test_what_turns_round_is_bounded_and_counted_like_the_rest() -> None:
    tree = Joined("shell_open")
    body = b"x" * PIECE_MAX
    for _ in range(CREDIT // PIECE_MAX):
        assert tree.to(peer("n1"), frames(body), body)[1] == [b"ann"]
    said, rids = tree.to(peer("n1"), frames(b"y"), b"y")
    assert sorted(rids) == [b"ann", b"n1"] and all(m.head["end"] for m in said) and not tree.relay.streams.open
    said, rids = tree.to(peer("n1"), frames(b"y"), b"y")
    assert said == [] and not tree.relay.streams.open, "it has ended"


@pytest.mark.parametrize("who", ["ann", "n1"])
def test_who_goes_ends_what_turns_round(who: str) -> None:
    tree = Joined()
    tree.to(peer("n1"), frames(b"x"), b"x")
    effects = tree.relay.gone(who.encode(), tree.t)
    (end,) = [m for m in tree.heard(effects) if m.kind == "frames"]
    assert end.head["end"] and who in end.head["why"]
    assert [rid for e in effects if isinstance(e, ToChildren) for rid in e.rids] == [b"ann" if who == "n1" else b"n1"]
    assert not tree.relay.streams.open


def test_a_client_that_leaves_its_request_ends_what_turns_round() -> None:
    tree = Joined(names=("n1", "n2"))
    tree.hello(peer("n2"))
    for node in ("n1", "n2"):
        tree.to(peer(node), frames(b"x", node=node), b"x")
    said = tree.say(ANN, "cancel", {"id": 7})
    assert sorted((m.kind, m.head["node"], m.head["end"]) for m in said) == [
        ("frames", "n1", True),
        ("frames", "n2", True),
    ]
    assert not tree.relay.streams.open and not tree.relay.clients._turns
    assert [u.kind for u in tree.up() if u.kind != "below"] == ["cancel"]


@pytest.mark.invariant("S8")
def test_a_request_of_which_no_stream_goes_on_is_forgotten_and_its_number_is_free() -> None:
    tree = Joined()
    tree.relay.from_parent(message("drop", {"call": "1.2", "client": tree.name, "id": 7}), tree.t)
    assert tree.relay.clients._turns, "another call"
    tree.relay.from_parent(message("drop", {"call": "1.1", "client": tree.name, "id": 7}), tree.t)
    assert not tree.relay.clients._turns
    for id_ in range(8, 40):
        tree.relay.from_parent(message("result", {"client": tree.name, "id": id_ - 1}, b"{}"), tree.t)
        assert tree.say(ANN, "request", {"id": id_, "op": "exec", "nodes": "n1"}) == [], "it goes up"
        tree.relay.from_parent(message("drop", {"call": f"1.{id_}", "client": tree.name, "id": id_}), tree.t)


def test_the_aggregator_that_leads_to_the_client_hears_it_too() -> None:
    tree = Tree()
    tree.hello(peer("agg1"), below=["m1"])
    tree.say(peer("agg1"), "request", {"id": 3, "op": "exec", "nodes": "n1", "client": "agg1:5", "caller": CALLER})
    head = {"call": "1.1", "client": "agg1:5", "id": 3}
    effects = tree.relay.from_parent(message("drop", head), tree.t)
    assert [rid for e in effects if isinstance(e, ToChildren) for rid in e.rids] == [b"agg1"]
    (said,) = tree.heard(effects)
    assert (said.kind, {**said.head}) == ("drop", {**head, "who": ""})
    assert tree.relay.from_parent(message("drop", head), tree.t) == []


@pytest.mark.invariant("T13")
def test_a_relay_cancels_no_stream_of_a_client_that_is_not_below_it() -> None:
    tree = Joined()
    tree.hello(peer("agg1"), below=["m1"])
    tree.to(peer("n1"), frames(b"x"), b"x")
    assert tree.say(peer("agg1"), "cancel", {"id": 7, "client": tree.name}) == []
    assert tree.relay.streams.open


def test_output_that_turns_round_waits_for_the_relay_below() -> None:
    tree, names = Joined(), [f"m{i}" for i in range(40)]
    tree.hello(peer("agg1"), below=names)
    head = {"call": "1.1", "op": "exec", "nodes": names, "caller": CALLER, "fence": 1, "timeout_ms": 1000}
    tree.relay.from_parent(message("call", {**head, "client": tree.name, "id": 7}, b"{}"), tree.t)
    body, told = b"x" * BULK_CREDIT, 0
    for name in names:
        said, _ = tree.to(peer("agg1"), frames(body, node=name), body)
        told += sum(m.head["bytes"] for m in said if m.kind == "took")
        assert [m.head["node"] for m in said if m.kind == "frames"] == [name]
    assert told == len(names) * BULK_CREDIT // TOOK_STEP * TOOK_STEP, "what this relay has read it says"
