"""Streams in relays, and the seals of their ends: no socket, no clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_relay import Bench, peer

from pact.core.tree import lanes, streams, wire
from pact.core.tree.directory import Peer
from pact.core.tree.lanes import BULK_CREDIT, CREDIT, HOP_WINDOW, PIECE_MAX, TOOK_STEP
from pact.core.tree.outbox import Up
from pact.core.tree.relay import ToChildren
from pact.core.tree.wire import Message, message
from pact.errors import RemoteProtocolError
from pact.model import NS_PER_S
from pact.net.ends import End

ANN = Peer("ann", "admin", "key-ann")


def frames(body: bytes = b"", *, call: str = "1.1", node: str = "n1", n: int = 0, **more: Any) -> dict[str, Any]:
    head = {"call": call, "node": node, "n": n, "size": len(body), **more}
    return head if not head.get("id") else {k: v for k, v in head.items() if k != "call"}


class Tree(Bench):
    """A relay with a node and a client that asks for a stream."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.hello(peer("n1"))
        self.hello(ANN)
        self.say(ANN, "request", {"id": 7, "op": "exec", "nodes": "n1"})
        self.up()

    def ups(self, who: Peer, head: dict[str, Any], body: bytes = b"") -> list[Up]:
        """What goes up at once."""
        m = wire.decode(wire.encode("frames", head, body))
        effects = self.relay.received(who.name.encode(), who, m, self.t)
        self.last = self.heard(effects)
        return [e for e in effects if isinstance(e, Up)]

    def downs(self, head: dict[str, Any], body: bytes = b"") -> list[Message]:
        effects = self.relay.from_parent(message("frames", head, body), self.t)
        self.rids = [rid for e in effects if isinstance(e, ToChildren) for rid in e.rids]
        self.backs = [e for e in effects if isinstance(e, Up)]
        return self.heard(effects)


# -- the ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("T15")
def test_what_one_end_says_the_other_hears_once_and_in_order() -> None:
    node, person = End(b"s" * 32, node=True), End(b"s" * 32, node=False)
    for i in range(5):
        body = b"x" * i
        head, sealed = node.say(body, i, i)
        assert person.hear(head, memoryview(sealed)) == body and (i < 2 or body not in sealed)
        head, sealed = person.say(body, i, 0, end=i == 4)
        assert not node.cut(head, sealed) and node.hear(head, sealed) == body


@pytest.mark.invariant("T15")
@pytest.mark.parametrize("how", ["body", "short", "give", "size", "end", "n", "again", "mirrored", "other"])
def test_nobody_on_the_way_types_shows_or_ends_in_another_s_name(how: str) -> None:
    node, person = End(b"s" * 32, node=True), End(b"s" * 32, node=False)
    head, body = node.say(b"abc", 3, 5)
    if how == "again":
        person.hear(head, body)
    elif how == "mirrored":  # what the person said comes back as if the node had said it
        head, body = person.say(b"abc", 3, 5)
    elif how == "other":
        head, body = End(b"t" * 32, node=True).say(b"abc", 3, 5)
    elif how == "body":
        body = bytes([body[0] ^ 1]) + body[1:]
    elif how == "short":
        body = body[:5]
    else:
        head = {**head, how: True if how == "end" else head[how] + 1}
    with pytest.raises(RemoteProtocolError):
        person.hear(head, body)


def test_an_end_that_a_relay_makes_is_told_from_one_that_was_said() -> None:
    for secret in (b"s" * 32, b""):
        node, person = End(secret, node=True), End(secret, node=False)
        head, body = node.say(b"bye", end=True)
        assert not person.cut({**head, "why": ""}, body)
        assert person.cut({**streams.end_of({**frames(), "client": "", "id": 0, "bulk": False}, "gone")}, b"")


# -- a relay ----------------------------------------------------------------------------------------------------------


def test_frames_find_their_way_both_ways_at_once() -> None:
    tree = Tree()
    (up,) = tree.ups(peer("n1"), frames(b"out"), b"out")
    assert (up.kind, up.head["call"], up.head["node"], up.body) == ("frames", "1.1", "n1", b"out")
    (down,) = tree.downs(frames(b"in"), b"in")
    assert (down.kind, down.body, tree.rids) == ("frames", b"in", [b"n1"])
    (up,) = tree.ups(ANN, frames(b"key", id=7), b"key")
    assert up.head["client"].startswith("agg0:") and up.head["id"] == 7
    (down,) = tree.downs({**frames(b"seen", id=7), "client": up.head["client"]}, b"seen")
    assert tree.rids == [b"ann"] and down.head["client"] == "" and down.body == b"seen"


@pytest.mark.invariant("T13")
def test_frames_of_a_node_that_is_elsewhere_and_of_no_request_go_nowhere() -> None:
    tree = Tree()
    assert tree.ups(peer("n1"), frames(b"x", node="n2"), b"x") == []
    assert tree.ups(ANN, frames(b"x", id=8), b"x") == []
    assert tree.ups(ANN, frames(b"x"), b"x") == [], "a client has no calls"
    assert tree.ups(peer("n1"), frames(b"x", call="1" * 65), b"x") == [], "nor is a name of 64 KiB kept"
    assert tree.relay.violations == 4 and not tree.relay.streams.open


@pytest.mark.invariant("S8")
def test_who_has_no_stream_has_a_small_share_of_the_relay() -> None:
    tree = Tree()
    passed = sum(len(tree.ups(ANN, frames(b"x", id=7, node=f"m{i}"), b"x")) for i in range(1000))
    assert passed < 200 and tree.relay.violations == 1000 - passed
    tree.t += NS_PER_S
    name = f"agg0:{1 << 20:x}"
    tree.downs({**frames(id=7, end=True), "client": name})
    assert sum(len(tree.ups(ANN, frames(b"x", id=7, node=f"m{i}"), b"x")) for i in range(1000)) <= 200
    tree.t += NS_PER_S
    tree.downs({**frames(b"y", id=7), "client": name}, b"y")
    assert sum(len(tree.ups(ANN, frames(b"x", id=7, n=i), b"x")) for i in range(1000)) == 1000


@pytest.mark.parametrize("bulk", [False, True])
def test_more_than_was_asked_for_ends_the_stream_and_is_not_passed_on(bulk: bool) -> None:
    tree, most = Tree(), BULK_CREDIT if bulk else CREDIT
    for at in range(0, most, PIECE_MAX):
        body = b"x" * min(PIECE_MAX, most - at)
        (up,) = tree.ups(peer("n1"), frames(body, bulk=bulk), body)
        assert up.body == body
    (up,) = tree.ups(peer("n1"), frames(b"y", bulk=bulk), b"y")
    assert up.head["end"] and up.body == b"" and "asked for" in up.head["why"]
    assert tree.last[0].head["end"] and tree.relay.violations == 1 and not tree.relay.streams.open


def test_credit_lets_more_pass_but_never_more_than_the_window() -> None:
    tree, passed = Tree(), 0
    body = b"x" * PIECE_MAX
    tree.ups(peer("n1"), frames(), b"")
    tree.downs({**frames(), "give": 1 << 40})
    while not tree.ups(peer("n1"), frames(body), body)[0].head["end"]:
        passed += len(body)
    assert passed == lanes.WINDOW_MAX


def test_a_message_whose_size_is_a_lie_ends_the_stream() -> None:
    for size, body in ((0, b"x" * (lanes.CONTROL_MAX + 1)), (10, b"x"), (PIECE_MAX + 1, b"x" * (PIECE_MAX + 1))):
        tree = Tree()
        (up,) = tree.ups(peer("n1"), {**frames(), "size": size}, body)
        assert up.head["end"] and "wrong size" in up.head["why"]


def test_who_goes_ends_his_streams_on_the_other_side() -> None:
    tree = Tree()
    tree.ups(peer("n1"), frames(b"x"), b"x")
    tree.relay.gone(b"n1", tree.t)
    (end,) = [u for u in tree.up() if u.kind == "frames"]
    assert end.head["end"] and end.head["call"] == "1.1" and "n1" in end.head["why"]
    (said,) = tree.downs(frames(b"late"), b"late") or tree.backs  # type: ignore[list-item]
    assert said.head["end"]

    tree = Tree()
    tree.ups(ANN, frames(b"x", id=7), b"x")
    tree.relay.gone(b"ann", tree.t)
    assert [u.kind for u in tree.up() if u.kind in ("frames", "cancel")] == ["frames", "cancel"]


def test_the_end_of_a_stream_comes_after_the_news_that_its_node_has_left() -> None:
    tree, agg = Tree(), peer("agg1")
    tree.hello(agg, below=["m1"])
    tree.ups(agg, frames(b"x", node="m1"), b"x")
    tree.say(agg, "below", {"gone": ["m1"]})
    assert tree.ups(agg, frames(b"y", node="m1", n=1), b"y") == []
    assert [u.head["end"] for u in tree.ups(agg, frames(node="m1", n=2, end=True))] == [True]
    assert tree.ups(agg, frames(node="m1", n=3, end=True)) == [] and not tree.relay.streams.open


def test_a_client_may_leave_after_its_answer_and_its_streams_are_cancelled() -> None:
    tree = Tree()
    name = tree.ups(ANN, frames(b"x", id=7), b"x")[0].head["client"]
    tree.relay.from_parent(message("result", {"client": name, "id": 7}), tree.t)
    assert tree.ups(ANN, frames(b"x", id=7), b"x")
    assert tree.say(ANN, "cancel", {"id": 7}) == []
    assert [(u.kind, u.head["id"]) for u in tree.up()] == [("cancel", 7)]
    assert tree.ups(ANN, frames(b"x", id=7), b"x") == []


def test_without_a_way_to_the_root_all_streams_end_below() -> None:
    tree = Tree()
    tree.ups(peer("n1"), frames(b"x"), b"x")
    tree.ups(ANN, frames(b"x", id=7), b"x")
    said = [m for m in tree.heard(tree.relay.parent_lost(tree.t)) if m.kind == "frames"]
    assert len(said) == 2 and all(m.head["end"] and "root" in m.head["why"] for m in said)
    assert not tree.relay.streams.open


class Joined(Tree):
    """The same relay, after the call for that client has come through it."""

    def __init__(self, op: str = "exec", names: tuple[str, ...] = ("n1",), **more: Any) -> None:
        super().__init__(**more)
        self.bulk = op == "exec"
        self.name = f"agg0:{1 << 20:x}"
        self.say(ANN, "request", {"id": 7, "op": op, "nodes": "n1"})
        self.up()
        head = {"call": "1.1", "op": op, "nodes": list(names), "caller": CALLER, "fence": 1, "timeout_ms": 1000}
        self.relay.from_parent(message("call", {**head, "client": self.name, "id": 7}, b"{}"), self.t)

    def to(self, who: Peer, head: dict[str, Any], body: bytes = b"") -> tuple[list[Message], list[bytes]]:
        """What children hear of what one says, and which; nothing of it goes up."""
        m = wire.decode(wire.encode("frames", {"bulk": self.bulk, **head}, body))
        effects = self.relay.received(who.name.encode(), who, m, self.t)
        assert [e for e in effects if isinstance(e, Up)] == []
        return self.heard(effects), [rid for e in effects if isinstance(e, ToChildren) for rid in e.rids]


CALLER = {"user": "ann", "role": "admin", "via": "cluster"}


def test_output_of_commands_waits_for_the_next_relay_and_a_key_does_not() -> None:
    tree = Tree(hops=True)
    agg, body = peer("agg1"), b"x" * BULK_CREDIT
    names = [f"m{i}" for i in range(100)]
    tree.hello(agg, below=names)
    sent = sum(len(tree.ups(agg, frames(body, call=f"1.{i}", node=n, bulk=True), body)) for i, n in enumerate(names))
    assert sent == HOP_WINDOW // BULK_CREDIT
    assert len(tree.ups(agg, frames(b"k", call="2.1", node="m1"), b"k")) == 1, "a terminal passes"
    held = sum(len(b) for _, b in tree.relay.streams.above.waiting)
    assert held == (100 - sent) * BULK_CREDIT, "no more than the credit of its streams"
    more = tree.relay.from_parent(message("took", {"bytes": TOOK_STEP}), tree.t)
    assert len(more) == TOOK_STEP // BULK_CREDIT
    tree.relay.parent_lost(tree.t)
    assert not tree.relay.streams.above.waiting


@pytest.mark.parametrize("who", ["agg1", "n1"])
def test_who_reads_commands_output_says_so(who: str) -> None:
    tree, count = Tree(), TOOK_STEP // BULK_CREDIT
    names = [f"m{i}" for i in range(count)]
    if who == "agg1":
        tree.hello(peer(who), below=names)
    body, said = b"x" * BULK_CREDIT, []
    for i, name in enumerate(names):
        assert said == []
        tree.ups(peer(who), frames(body, call=f"1.{i}", node=name if who == "agg1" else who, bulk=True), body)
        said += tree.last
    assert [(m.kind, m.head["bytes"]) for m in said] == [("took", TOOK_STEP)]


@pytest.mark.invariant("S8")
@pytest.mark.parametrize("how", ["ends of nothing", "many streams", "reasons"])
def test_a_node_that_never_stops_fills_no_relay(how: str) -> None:
    """What streams that have ended have left on the way up is on the account of who said it, too."""
    tree, node, body = Tree(hops=True), peer("n1"), b"x" * BULK_CREDIT
    for i in range(3 * streams.CHILD_WINDOW_MAX["node"] // PIECE_MAX):
        tree.t += NS_PER_S // 1000
        if how == "ends of nothing":
            tree.ups(node, {**frames(call=f"1.{i}", bulk=True, end=True), "size": PIECE_MAX}, b"x" * PIECE_MAX)
        elif how == "reasons":
            tree.ups(node, frames(call=f"1.{i}", bulk=True, end=True, why="x" * PIECE_MAX))
        else:
            for n in range(10):
                tree.ups(node, frames(body, call=f"1.{i}.{n}", bulk=True), body)
                tree.ups(node, frames(b"", call=f"1.{i}.{n}", bulk=True, end=True), b"x" * lanes.CONTROL_MAX)
    above = tree.relay.streams.above
    size = sum(len(b) + len(h["why"]) for h, b in above.waiting)
    assert size <= streams.CHILD_WINDOW_MAX["node"] + 2 * PIECE_MAX
    assert sum(tree.relay.streams._held.values()) == above.held
    while above.waiting:
        tree.relay.from_parent(message("took", {"bytes": HOP_WINDOW}), tree.t)
    assert above.held == 0 and not tree.relay.streams._held and not tree.relay.streams._whose


@pytest.mark.invariant("S8")
def test_a_client_that_takes_nothing_of_one_request_after_another_fills_no_relay() -> None:
    tree, names = Joined(names=()), [f"m{i}" for i in range(2000)]
    tree.hello(peer("agg1"), below=names)
    body = b"x" * BULK_CREDIT
    for i in range(10, 22):
        tree.say(ANN, "request", {"id": i, "op": "exec", "nodes": "n1"})
        head = {"call": f"1.{i}", "op": "exec", "nodes": names, "caller": CALLER, "fence": 1, "timeout_ms": 1000}
        tree.relay.from_parent(message("call", {**head, "client": tree.name, "id": i}, b"{}"), tree.t)
        for name in names:
            m = message("frames", {**frames(body, call=f"1.{i}", node=name), "bulk": True}, body)
            tree.relay.received(b"agg1", peer("agg1"), m, tree.t)
        tree.say(ANN, "cancel", {"id": i})
        tree.t += NS_PER_S
    lane = tree.relay.streams.lanes[b"ann"]
    most = streams.CHILD_WINDOW_MAX["client"]
    assert most // 2 < sum(len(b) for _, b in lane.waiting) <= most + PIECE_MAX


@pytest.mark.parametrize("why", ["no way to the root", "too many", "elsewhere", "nobody asks"])
def test_what_is_dropped_was_read_too(why: str) -> None:
    """Else the lane below stands still for ever once 256 KiB of output were dropped on their way."""
    tree, body, told = Tree(), b"x" * BULK_CREDIT, 0
    agg, node = peer("agg1"), peer("n1")
    tree.hello(agg, below=["m1"])
    if why == "no way to the root":
        tree.relay.parent_lost(tree.t)
    elif why == "too many":
        tree.relay.tree.children[b"n1"].second = tree.t // NS_PER_S
        tree.relay.tree.children[b"n1"].streamed = 1 << 30
    for i in range(2 * HOP_WINDOW // BULK_CREDIT):
        head = {**frames(body, call=f"1.{i}", bulk=True)}
        if why == "elsewhere":
            head["node"] = "m1"
        elif why == "nobody asks":
            head = {**frames(body, id=9, bulk=True), "client": "agg1:5"}
        assert tree.ups(agg if why == "nobody asks" else node, head, body) == []
        told += sum(m.head["bytes"] for m in tree.last if m.kind == "took")
    assert told == 2 * HOP_WINDOW


def test_who_reads_nothing_of_many_streams_is_sent_no_more() -> None:
    tree, body, sent = Tree(), b"x" * PIECE_MAX, 0
    tree.hello(peer("agg1"), below=[f"m{i}" for i in range(2000)])
    for i in range(2000):
        head = {**frames(id=7, node=f"m{i}"), "give": 1 << 30}
        tree.ups(ANN, head)
        down = {**frames(body, id=7, node=f"m{i}"), "client": f"agg0:{1 << 20:x}"}
        said = [m for _ in range(15) for m in tree.downs(down, body) if m.kind == "frames" and not m.head["end"]]
        sent += sum(len(m.body) for m in said)
    assert sent == streams.CHILD_WINDOW_MAX["client"]


def test_who_says_hello_again_on_the_same_connection_keeps_its_streams() -> None:
    """A node does so after it has tried a better parent in vain."""
    tree = Tree()
    tree.ups(peer("n1"), frames(b"x"), b"x")
    assert [m.kind for m in tree.hello(peer("n1"), session=2 << 20)] == ["welcome"]
    assert [u.head["n"] for u in tree.ups(peer("n1"), frames(b"y", n=1), b"y")] == [1]
    assert [(m.head["n"], m.head["end"]) for m in tree.downs(frames(b"z", n=4), b"z")] == [(4, False)]
    agg = peer("agg1")
    tree.hello(agg, below=["m1"])
    tree.say(agg, "request", {"id": 3, "op": "exec", "nodes": "n1", "client": "agg1:5", "caller": CALLER})
    tree.hello(agg, session=2 << 20, below=["m1"])
    (up,) = tree.ups(agg, {**frames(id=3), "client": "agg1:5"})
    assert not up.head["end"], "nor do the people below an aggregator lose theirs"


@pytest.mark.parametrize("who", ["n1", "agg1"])
def test_who_comes_back_on_another_connection_begins_anew(who: str) -> None:
    """What was on its way to it may be lost: the other side is told, and nobody's request is left hanging."""
    tree, one = Tree(), peer(who)
    below = {"below": ["m1"]} if who == "agg1" else {}
    tree.hello(one, **below)
    node = "m1" if who == "agg1" else "n1"
    tree.ups(one, frames(b"x", node=node), b"x")
    request = {"id": 3, "op": "exec", "nodes": "n1", "client": "agg1:5", "caller": CALLER}
    if who == "agg1":
        tree.say(one, "request", request)
    tree.up()
    m = wire.decode(wire.encode("hello", {"v": 1, "role": one.role, "name": who, "session": 2 << 20, **below}))
    tree.relay.received(b"another", one, m, tree.t)
    ups = tree.up()
    assert [u.head["end"] for u in ups if u.kind == "frames"] == [True] and not tree.relay.streams.open
    if who == "agg1":
        assert [u.head["id"] for u in ups if u.kind == "cancel"] == [3]
        tree.say(one, "request", {**request, "id": 4}, rid=b"another")
        assert [u.head["id"] for u in tree.up() if u.kind == "request"] == [4], "its people can ask again"


def test_who_moves_to_another_parent_ends_what_went_through_the_last_one() -> None:
    tree = Tree()
    tree.ups(ANN, frames(b"x", id=7), b"x")
    said = tree.heard(tree.relay.moved())
    assert [m.head["end"] for m in said if m.kind == "frames"] == [True] and not tree.relay.streams.open
    assert [m.head["id"] for m in said if m.kind == "result"] == [7], "the request is answered, too"


def test_output_waits_for_a_client_that_reads_slowly_and_a_terminal_s_does_not() -> None:
    """A line that is short counts more than its bytes: no number of them fills the way to the client."""
    tree, names = Joined(), [f"m{i}" for i in range(200)]
    tree.hello(peer("agg1"), below=names)
    head = {"call": "1.1", "op": "exec", "nodes": names, "caller": CALLER, "fence": 1, "timeout_ms": 1000}
    tree.relay.from_parent(message("call", {**head, "client": tree.name, "id": 7}, b"{}"), tree.t)
    passed, per_stream = 0, BULK_CREDIT // lanes.WEIGHT_MIN
    for n in range(per_stream):
        for name in names:
            passed += sum(m.kind == "frames" for m in tree.to(peer("agg1"), frames(b"x", node=name, n=n), b"x")[0])
    assert passed == HOP_WINDOW // lanes.WEIGHT_MIN
    said, _ = tree.to(peer("agg1"), frames(b"x", node="m0", n=99), b"x")
    assert [m.head["end"] for m in said if m.kind == "frames"] == [True], "more short messages than it may send"
    tree.say(ANN, "request", {"id": 8, "op": "shell_open", "nodes": "n1"})
    again = {**head, "op": "shell_open", "call": "1.2", "nodes": ["n1"], "client": tree.name, "id": 8}
    tree.relay.from_parent(message("call", again, b"{}"), tree.t)
    assert tree.to(peer("n1"), {**frames(b"k", call="1.2"), "bulk": False}, b"k")[1] == [b"ann"]
    assert len(tree.say(ANN, "took", {"bytes": TOOK_STEP})) == TOOK_STEP // lanes.WEIGHT_MIN


SAID = st.lists(
    st.tuples(
        st.sampled_from(["n1", "ann", "down", "up"]), st.integers(0, PIECE_MAX), st.integers(0, 1 << 21), st.booleans()
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(SAID)
def test_whatever_comes_a_relay_keeps_numbers_that_add_up(said: list[tuple[str, int, int, bool]]) -> None:
    tree = Tree()
    name = f"agg0:{1 << 20:x}"
    for who, size, give, end in said:
        body = b"x" * size
        more = {"give": give, "end": end}
        if who == "n1":
            tree.ups(peer("n1"), frames(body, **more), body)
        elif who == "ann":
            tree.ups(ANN, frames(body, id=7, **more), body)
        elif who == "down":
            tree.downs(frames(body, **more), body)
        else:
            tree.downs({**frames(body, id=7, **more), "client": name}, body)
        table = tree.relay.streams
        assert sum(table._count.values()) == len(table.open) and min(table._behind.values(), default=0) >= 0
        assert table.terminals == len(table.open)
        assert all(0 <= f.up <= lanes.WINDOW_MAX and 0 <= f.down <= lanes.WINDOW_MAX for f in table.open.values())
