"""A relay's decisions: whose word counts, who is where, and answers as set unions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pact.core.tree import checks, wire
from pact.core.tree.directory import Peer
from pact.core.tree.outbox import Outbox, Read, Up
from pact.core.tree.relay import Relay, ToChildren
from pact.core.tree.uplink import Note
from pact.core.tree.wire import Message, message
from pact.limits import FRAME_MAX
from pact.model import NS_PER_S

T = 100 * NS_PER_S
CALLER = {"user": "u", "role": "ops", "via": "cluster"}


def peer(name: str, role: str = "") -> Peer:
    role = role or ("aggregator" if name.startswith("agg") else "node")
    return Peer(name, role, f"key-{name}")


class Bench:
    """A relay under a root, with what it said."""

    def __init__(self, **kwargs: Any) -> None:
        self.relay = Relay("agg0", **kwargs)
        self.t = T
        self.notes: list[str] = []
        self.relay.from_parent(
            message("welcome", {"v": 1, "name": "r", "path": ["r"], "fence": 1, "credit": 1 << 20}), self.t
        )

    def say(self, who: Peer, kind: str, head: dict[str, Any], body: bytes = b"", rid: bytes = b"") -> list[Message]:
        """What the children hear of it."""
        m = wire.decode(wire.encode(kind, head, body))
        return self.heard(self.relay.received(rid or who.name.encode(), who, m, self.t))

    def heard(self, effects: list[Any]) -> list[Message]:
        self.notes += [e.text for e in effects if isinstance(e, Note)]
        return [wire.decode(e.frame) for e in effects if isinstance(e, ToChildren) for _ in e.rids]

    def hello(self, who: Peer, session: int = 1 << 20, rid: bytes = b"", **more: Any) -> list[Message]:
        role = who.role if who.role in ("node", "aggregator") else "client"
        return self.say(who, "hello", {"v": 1, "role": role, "name": who.name, "session": session, **more}, b"", rid)

    def up(self) -> list[Up]:
        return [e for e in self.relay.flush(self.t) if isinstance(e, Up)]

    def call(self, nodes: list[str] | None, call: str = "1.1", fence: int = 1) -> list[tuple[bytes, Message]]:
        effects = self.relay.from_parent(
            message(
                "call", {"call": call, "op": "x", "nodes": nodes, "caller": CALLER, "fence": fence, "timeout_ms": 5000}
            ),
            self.t,
        )
        self.notes += [e.text for e in effects if isinstance(e, Note)]
        return [(rid, wire.decode(e.frame)) for e in effects if isinstance(e, ToChildren) for rid in e.rids]

    def answer(
        self,
        who: Peer,
        parts: dict[bytes, list[str]],
        *,
        call: str = "1.1",
        final: bool = True,
        lost: tuple[str, ...] = (),
    ) -> list[Message]:
        rows = [[names, len(body)] for body, names in parts.items()]
        return self.say(
            who, "answer", {"call": call, "final": final, "parts": rows, "lost": list(lost)}, b"".join(parts)
        )


N1, N2, N3, AGG1, AGG2 = peer("n1"), peer("n2"), peer("n3"), peer("agg1"), peer("agg2")
OPS = peer("olga", "ops")


@pytest.mark.invariant("T13", "F48")
def test_a_key_speaks_for_its_own_name_only() -> None:
    b = Bench()
    assert b.hello(N1)[0].kind == "welcome"
    b.hello(N2)
    b.up()
    sorry = b.say(N1, "hello", {"v": 1, "role": "node", "name": "n2", "session": 1})
    assert sorry[0].kind == "sorry" and not sorry[0].head["again"]
    for kind, head, body in [
        ("events", {"batches": [["n2", "i", 0, 1, 2]]}, b"{}"),
        ("ask", {"node": "n2", "groups": []}, b""),
        ("below", {"add": ["n9"]}, b""),
        ("request", {"id": 1, "op": "status"}, b""),
        ("cancel", {"id": 1}, b""),
        ("answer", {"call": "9", "final": True, "batches": [["n2", "i", 0, 1, 2]]}, b"{}"),
        ("welcome", {"v": 1, "name": "r", "path": [], "fence": 9, "credit": 1}, b""),
        ("call", {"call": "9", "op": "x", "caller": CALLER, "fence": 9, "timeout_ms": 1}, b""),
    ]:
        assert b.say(N1, kind, head, body) == []
        assert b.up() == []
    assert b.relay.violations == 9
    assert all(note.startswith("refused: n1: ") for note in b.notes)
    assert (
        b.say(peer("agg1", "subscriber"), "hello", {"v": 1, "role": "aggregator", "name": "agg1", "session": 1})[0].kind
        == "sorry"
    )


@pytest.mark.invariant("T13")
def test_an_answer_for_another_node_is_dropped() -> None:
    b = Bench()
    b.hello(N1)
    b.hello(N2)
    b.call(["n1", "n2"])
    b.answer(N1, {b"forged": ["n2"]})
    b.answer(N1, {b"forged": ["n1", "n2"]})
    b.answer(N2, {b"true": ["n2"]})
    b.answer(N1, {b"mine": ["n1"]})
    (up,) = [u for u in b.up() if u.kind == "answer"]
    assert {tuple(n): body for (n, _), body in wire.sections(message("answer", up.head, up.body), "parts")} == {
        ("n2",): b"true",
        ("n1",): b"mine",
    }


def test_events_that_come_with_an_answer_are_events_and_the_answer_an_answer() -> None:
    b = Bench()
    assert b.hello(N1)[0].head["with_answers"]
    b.up()
    b.call(["n1"])
    head = {"call": "1.1", "final": True, "parts": [[["n1"], 3]], "batches": [["n1", "i", 0, 2, 4]]}
    assert b.say(N1, "answer", head, b"yesa\nb\n") == []
    answer, events = b.up()
    assert (answer.kind, answer.head["parts"], answer.body) == ("answer", [[["n1"], 3]], b"yes")
    assert (events.kind, events.head["batches"], events.body) == ("events", [["n1", "i", 0, 2, 4]], b"a\nb\n")
    head = {**head, "parts": [], "batches": [["n1", "i", 2, 1, 2]]}  # of a call that nobody asks about any more
    assert b.say(N1, "answer", head, b"c\n") == []
    (events,) = b.up()
    assert events.body == b"c\n"


@pytest.mark.invariant("T13", "F48")
def test_violations_are_logged_once_with_a_count() -> None:
    b = Bench()
    b.hello(N1)
    for _ in range(1000):
        b.say(N1, "ask", {"node": "n2", "groups": []})
    assert len(b.notes) == 1 and b.relay.violations == 1000
    b.t += 61 * NS_PER_S
    b.hello(N1)
    b.say(N1, "ask", {"node": "n2", "groups": []})
    assert b.notes[-1].endswith("(1001 times)")


@pytest.mark.invariant("T13")
def test_what_a_peer_writes_makes_no_line_another_one() -> None:
    b = Bench()
    b.hello(N1)
    for i in range(5_000):
        b.notes += [e.text for e in b.relay.bad_frame(b"n1", N1, f"a frame of {i} bytes", b.t) if isinstance(e, Note)]
        b.t += NS_PER_S // 1000
        b.say(N1, "hello", {"v": 1, "role": "node", "name": f"n{i + 2}" + "x" * 200, "session": 1})
    assert b.relay.violations == 10_000 and len(b.notes) <= 3 and max(map(len, b.notes)) < 300


@pytest.mark.invariant("T13")
def test_another_key_on_the_same_routing_id_has_no_session() -> None:
    b = Bench()
    b.hello(N1, rid=b"x")
    assert b.say(N2, "beat", {}, rid=b"x")[0].head["again"]  # who are you?
    assert b.say(N1, "beat", {}, rid=b"x")[0].kind == "beat"
    b.t += NS_PER_S
    b.hello(N2, rid=b"x")  # the connection of n1 must be dead, or its routing id could not be taken
    assert b.say(N1, "beat", {}, rid=b"x")[0].head["again"]
    assert set(b.relay.tree.where) == {"n2"}


@pytest.mark.invariant("T13")
def test_what_one_child_floods_is_dropped_and_the_others_are_served() -> None:
    b = Bench()
    b.hello(N1)
    b.hello(N2)
    b.up()
    answered = sum(len(b.say(N1, "beat", {})) for _ in range(5000))
    assert answered == 2000
    assert len(b.say(N2, "beat", {})) == 1
    b.t += NS_PER_S
    assert len(b.say(N1, "beat", {})) == 1


def test_an_old_version_and_a_name_above_are_refused() -> None:
    b = Bench()
    assert "version" in b.say(N1, "hello", {"v": 2, "role": "node", "name": "n1", "session": 1})[0].head["why"]
    assert "above" in b.hello(peer("r", "aggregator"))[0].head["why"]
    assert "above" in b.hello(peer("_root", "node"))[0].head["why"]
    b.hello(AGG1, below=["_root", "n1"])
    assert set(b.relay.tree.where) == {"n1"}  # nobody is called root


@pytest.mark.invariant("T8")
def test_without_a_way_to_the_root_children_are_sent_away() -> None:
    b = Bench()
    b.hello(N1)
    b.relay.parent_lost(b.t)
    assert b.hello(N2)[0].kind == "sorry"
    assert b.say(N1, "beat", {})[0].kind == "beat"  # it may come back
    b.t += 7 * NS_PER_S
    effects = b.relay.tick(b.t)
    assert [m.kind for m in b.heard(effects)] == ["sorry"]
    assert b.say(N1, "beat", {})[0].head["again"]


@pytest.mark.invariant("T7")
def test_a_node_that_moved_is_where_it_is_now_and_its_calls_follow() -> None:
    b = Bench()
    b.hello(AGG1, below=["n1", "n2"], sessions={"n1": 5 << 20 | 1, "n2": 1})
    b.hello(AGG2)
    b.up()
    assert [rid for rid, _ in b.call(["n1", "n2"])] == [b"agg1"]
    b.say(AGG2, "below", {"add": ["n1"], "sessions": {"n1": 5 << 20 | 2}})
    again = [e for e in b.relay.flush(b.t) if isinstance(e, ToChildren)]
    assert [(e.rids, wire.decode(e.frame).head["nodes"]) for e in again] == [((b"agg2",), ["n1"])]
    b.say(AGG1, "below", {"gone": ["n1"]})
    assert b.relay.tree.where["n1"].name == "agg2"
    b.answer(AGG2, {b"a": ["n1"]})
    b.answer(AGG1, {b"a": ["n2"]})
    (up,) = [u for u in b.up() if u.kind == "answer"]
    assert sorted(up.head["parts"][0][0]) == ["n1", "n2"] and up.head["final"] and not up.head["lost"]


@pytest.mark.invariant("T7")
def test_a_late_claim_of_an_older_connection_does_not_count_and_a_standing_one_does_again() -> None:
    b = Bench()
    b.hello(AGG1)
    b.hello(AGG2)
    b.say(AGG2, "below", {"add": ["n1"], "sessions": {"n1": 5 << 20 | 2}})
    b.say(AGG1, "below", {"add": ["n1"], "sessions": {"n1": 5 << 20 | 1}})
    assert b.relay.tree.where["n1"].name == "agg2"
    b.say(AGG2, "below", {"gone": ["n1"]})
    assert b.relay.tree.where["n1"].name == "agg1"
    b.up()
    b.relay.gone(b"agg1", b.t)
    assert b.up()[0].head["gone"] == ["n1"]


@pytest.mark.invariant("T3")
def test_after_a_stall_nobody_is_lost_whose_beats_wait_unread() -> None:
    b = Bench()
    b.hello(N1)
    b.hello(N2)
    b.t += 10 * NS_PER_S
    assert [m.kind for m in b.heard(b.relay.tick(b.t, unread=True))] == ["beat", "beat"]
    b.say(N1, "beat", {})
    b.relay.tick(b.t)
    assert set(b.relay.tree.where) == {"n1"}
    b.t += 10 * NS_PER_S
    for _ in range(60):
        b.t += NS_PER_S // 10
        b.relay.tick(b.t, unread=True)
    assert not b.relay.tree.where, "a flood does not keep the dead"


def test_a_lost_child_and_a_silent_one_are_said_to_be_lost() -> None:
    b = Bench()
    b.hello(N1)
    b.hello(N2)
    b.hello(AGG1, below=["n3", "n4"])
    b.call(None)
    b.relay.gone(b"n1", b.t)
    b.answer(AGG1, {b"a": ["n3"]})  # final: n4 was not there
    b.t += 7 * NS_PER_S
    b.relay.tick(b.t)
    ups = [u for u in b.up() if u.kind == "answer"]
    assert sorted(n for u in ups for n in u.head["lost"]) == ["n1", "n2", "n4"]
    assert ups[-1].head["final"]


@pytest.mark.invariant("T6")
def test_who_is_asked_again_before_its_loss_was_said_is_not_lost() -> None:
    b = Bench()
    for who in (N1, N2):
        b.hello(who)
    b.call(["n1", "n2"])
    b.answer(N2, {b"a": ["n2"]})
    b.relay.gone(b"n1", b.t)  # what it is said to be waits for others
    b.hello(N1)
    b.call(["n1"])  # the root knows that it is back
    b.t += NS_PER_S
    assert not [n for u in b.up() if u.kind == "answer" for n in u.head["lost"]]
    b.answer(N1, {b"a": ["n1"]})
    b.t += NS_PER_S
    (last,) = [u for u in b.up() if u.kind == "answer"]
    assert [names for names, _ in last.head["parts"]] == [["n1"]] and last.head["final"]


def test_a_call_of_a_root_that_was_replaced_goes_nowhere() -> None:
    b = Bench()
    b.hello(N1)
    b.relay.from_parent(message("beat", {"path": ["r"], "fence": 7}), b.t)
    assert b.call(["n1"], fence=6) == []
    assert len(b.call(["n1"], fence=7)) == 1


def test_a_child_that_says_hello_again_gets_its_open_calls_again() -> None:
    b = Bench()
    b.hello(N1)
    b.call(["n1"])
    assert [m.kind for m in b.hello(N1, session=1 << 20 | 1, rid=b"new")] == ["welcome", "call"]
    assert b.hello(N1, session=1 << 20, rid=b"late") == []  # it came late


@pytest.mark.invariant("T9")
def test_hellos_without_end_cost_little_and_no_call_is_forgotten() -> None:
    b = Bench()
    b.hello(N1)
    b.hello(N2)
    b.call(["n1"])
    heard = [m.kind for i in range(10_000) for m in b.hello(N1, session=1 << 20 | (i + 1) % (1 << 19))]
    assert heard.count("welcome") <= 4 and heard.count("call") == 1 and b.relay.violations > 9_000
    assert [m.kind for m in b.hello(N2, session=1 << 20 | 1)] == ["welcome"], "others are heard"
    b.t += NS_PER_S
    assert [m.kind for m in b.hello(N1, session=1 << 20 | 1 << 19)] == ["welcome"]
    sent: list[Message] = []
    for _ in range(3):
        b.t += NS_PER_S
        sent += b.heard(b.relay.tick(b.t))
    assert [m.kind for m in sent if m.kind != "beat"] == ["call"], "its last connection gets the call too"


@pytest.mark.invariant("T9")
def test_answers_and_names_overtake_events() -> None:
    b = Bench()
    b.hello(N1)
    b.hello(N2)
    b.up()
    b.call(["n1"])
    b.say(N1, "events", {"batches": [["n1", "i", 0, 1, 3]]}, b"{}\n")
    b.answer(N1, {b"a": ["n1"]})
    b.hello(N3)
    assert [u.kind for u in b.up()] == ["below", "answer", "events"]


@pytest.mark.invariant("T13")
def test_what_fits_no_frame_is_dropped_counted_and_answered() -> None:
    """However it came about: the last line of defence."""
    b = Bench()
    for who in (N1, OPS):
        b.hello(who)
    b.up()
    b.say(OPS, "request", {"id": 7, "op": "status"})
    (asked,) = b.up()
    client = {"client": asked.head["client"], "id": 7}
    (said,) = b.heard(b.relay.from_parent(message("part", {**client, "names": ["n1"]}, b"x" * FRAME_MAX), b.t))
    assert said.kind == "result" and said.head["exit"] == 1 and "too much" in said.head["message"]
    head = {"call": "1.2", "op": "x", "nodes": ["n1"], "caller": CALLER, "fence": 1, "timeout_ms": 5000}
    assert b.heard(b.relay.from_parent(message("call", head, b"x" * FRAME_MAX), b.t)) == []
    (up,) = b.up()
    assert up.head["lost"] == ["n1"] and up.head["final"]
    assert b.relay.unsaid == 2 and len(b.notes) == 2


@pytest.mark.invariant("T13")
def test_more_names_than_a_head_takes_are_lost_and_the_others_asked() -> None:
    b = Bench()
    long = [f"{i:05d}{'x' * 245}" for i in range(17_500)]
    b.hello(AGG1, below=long[:8_000])
    b.say(AGG1, "below", {"add": long[8_000:16_000]})
    b.say(AGG1, "below", {"add": long[16_000:]})
    b.hello(N1)
    b.up()
    assert [rid for rid, _ in b.call([*long, "n1"])] == [b"n1"]
    b.answer(N1, {b"a": ["n1"]})
    assert sorted(n for u in b.up() for n in u.head["lost"]) == long


def test_fleet_holds_are_told_to_who_comes_with_the_time_that_is_left() -> None:
    b = Bench()
    b.hello(N1)
    hold = {"hold": "h1", "owner": "o", "reason": "r", "ends": "", "left_ns": 10 * NS_PER_S}
    heard = b.heard(b.relay.from_parent(message("fleet", {"fence": 1, "seq": 3, "holds": [hold]}), b.t))
    assert [m.kind for m in heard] == ["fleet"]
    b.t += 4 * NS_PER_S
    welcome = b.hello(N2)[0]
    assert welcome.head["fleet"]["holds"][0]["left_ns"] == 6 * NS_PER_S
    assert b.heard(b.relay.from_parent(message("fleet", {"fence": 1, "seq": 2, "holds": []}), b.t)) == []
    assert b.say(N2, "beat", {})[0].head["fleet_seq"] == 3


# -- clients --------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("T13")
def test_a_request_carries_who_asks_from_the_key_and_answers_find_their_client() -> None:
    b = Bench()
    b.hello(OPS, session=77)
    b.say(
        OPS,
        "request",
        {"id": 1, "op": "status", "client": "agg0:0", "caller": {"user": "root", "role": "admin", "via": "cluster"}},
        b"{}",
    )
    (up,) = b.up()
    assert up.head["caller"] == {"user": "olga", "role": "ops", "via": "cluster"}
    assert up.head["client"] == "agg0:4d"
    effects = b.relay.from_parent(message("result", {"client": "agg0:4d", "id": 1}), b.t)
    assert [m.head["id"] for m in b.heard(effects)] == [1]
    assert b.relay.from_parent(message("result", {"client": "agg0:4e", "id": 1}), b.t) == []
    b.say(OPS, "request", {"id": 2, "op": "watch"}, b"{}")
    b.say(OPS, "goodbye", {})
    assert [(u.kind, u.head["id"]) for u in b.up()] == [("request", 2), ("cancel", 2)]


def test_requests_below_an_aggregator_find_their_way_back() -> None:
    b = Bench()
    b.hello(AGG1)
    b.hello(AGG2)
    b.up()
    b.say(AGG1, "request", {"id": 1, "op": "x", "client": "agg1:5", "caller": CALLER}, b"{}")
    assert b.up()[0].head["client"] == "agg1:5"
    b.say(AGG2, "request", {"id": 2, "op": "x", "client": "agg1:5", "caller": CALLER}, b"{}")  # not its client
    b.say(AGG2, "cancel", {"id": 1, "client": "agg1:5"})
    assert b.up() == []
    (effect,) = b.relay.from_parent(message("part", {"client": "agg1:5", "id": 1, "names": ["n1"]}, b"{}"), b.t)
    assert isinstance(effect, ToChildren) and effect.rids == (b"agg1",)


def test_requests_without_a_way_to_the_root_fail_at_once() -> None:
    b = Bench()
    b.hello(OPS)
    b.say(OPS, "request", {"id": 1, "op": "x"}, b"{}")
    assert b.heard(b.relay.parent_lost(b.t))[0].head["exit"] == 5
    assert b.say(OPS, "request", {"id": 2, "op": "x"}, b"{}")[0].head["exit"] == 5


# -- against naive twins --------------------------------------------------------------------------------------------


@pytest.mark.invariant("T6")
@settings(max_examples=200)
@given(st.data())
def test_answers_are_merged_like_sets(data: st.DataObject) -> None:
    """Whoever answers, in whatever order and however often: each name counts once, with its first answer."""
    b = Bench()
    below = {"agg1": ["a1", "a2", "a3"], "agg2": ["b1", "b2"]}
    for name, names in below.items():
        b.hello(peer(name), below=names)
    b.hello(N1)
    b.up()
    everybody = [*below["agg1"], *below["agg2"], "n1"]
    asked = data.draw(st.lists(st.sampled_from([*everybody, "nobody"]), unique=True, min_size=1))
    first: dict[str, bytes] = {}
    b.call(asked)
    steps = data.draw(
        st.lists(
            st.tuples(st.sampled_from(["agg1", "agg2", "n1"]), st.sampled_from([b"x", b"yy", b"zzz"]), st.data()),
            max_size=12,
        )
    )
    sent: list[Up] = []
    for who, body, inner in steps:
        mine = below.get(who, [who])
        names = inner.draw(st.lists(st.sampled_from(mine), unique=who == "n1", max_size=4))
        if who == "n1" and not names:
            continue
        b.answer(peer(who), {body: names}, final=False)
        for name in names:
            if name in asked:
                first.setdefault(name, body)
        if inner.draw(st.booleans()):
            b.t += NS_PER_S // 10
            sent += [u for u in b.up() if u.kind == "answer"]
    b.t += 10 * NS_PER_S
    sent += [u for u in b.up() if u.kind == "answer"]
    got: dict[str, bytes] = {}
    for up in sent:
        for (names, _), body in wire.sections(message("answer", up.head, up.body), "parts"):
            for name in names:
                assert name not in got
                got[name] = body
    assert got == first
    assert sorted(n for u in sent for n in u.head["lost"]) == sorted(set(asked) - first.keys())
    assert [u.head["final"] for u in sent][-1:] == [True]
    assert sum(u.head["final"] for u in sent) == 1
    assert not b.relay.calls.open


@pytest.mark.invariant("T5")
@given(st.lists(st.integers(1, 40_000), max_size=60), st.data())
def test_an_outbox_never_has_more_on_its_way_than_its_credit(sizes: list[int], data: st.DataObject) -> None:
    lines = [b"x" * n for n in sizes]
    box = Outbox("n", "i", newest=len(lines) - 1)
    credit = 64 << 10
    root: list[bytes] = []
    t = 0
    work: list[Any] = list(box.welcomed(credit, t))
    for _ in range(400):
        t += NS_PER_S // 10
        if work:
            e = work.pop(0)
            if isinstance(e, Read):
                work = box.rows(e.first, lines[e.first : e.first + e.limit], t) + work
                continue
            (batch,) = e.head["batches"]
            assert batch[3] <= checks.BATCH_RECORDS_MAX and (batch[3] == 1 or batch[4] <= checks.BATCH_BYTES_MAX)
            assert box._bytes <= credit or len(box._flight) == 1
            if batch[2] > len(root):
                work += box.acknowledged("i", len(root) - 1, True, t)
                continue
            if data.draw(st.integers(0, 9)) == 0:
                continue  # lost
            root += lines[len(root) : batch[2] + batch[3]]
            work += box.acknowledged("i", len(root) - 1, False, t)
        else:
            t += 11 * NS_PER_S
            work += box.tick(t)
    t += 1000 * NS_PER_S
    assert box.waiting == 0 or work or box.next_wake_ns() is not None
    assert lines[: len(root)] == root
