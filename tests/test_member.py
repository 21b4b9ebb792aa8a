"""What a node does in the tree: each call once, its answer kept, the root's word about holds before anything else."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest

from pact.core import ops
from pact.core.tree import member, wire
from pact.core.tree.checks import SESSION_BITS
from pact.core.tree.member import (
    ANSWER_MAX,
    ONCE,
    RUNNING_MAX,
    Answered,
    Called,
    Calls,
    CarryOut,
    Contact,
    Fate,
    FleetSaid,
    Member,
    Welcomed,
    caller_of,
)
from pact.core.tree.nodeseals import RENEW_NS, NodeSeals
from pact.core.tree.outbox import Outbox, Read
from pact.core.tree.parents import Parent
from pact.core.tree.uplink import Connect, Lost, Note, Send
from pact.core.tree.wire import Message, message
from pact.model import NS_PER_S

PARENTS = [Parent("tcp://a0:1", "k"), Parent("tcp://a1:1", "k")]
CALLER = {"user": "ann", "role": "ops", "via": "cluster"}
FLEET = {"fence": 1, "seq": 3, "holds": []}
KEY = (1, "1.1")


def said(answer: bytes | Fate) -> str:
    assert isinstance(answer, bytes)
    text: str = orjson.loads(answer)["message"]
    return text


class Bench:
    """A node, and whoever is its parent."""

    def __init__(self, calls: Calls | None = None, seals: NodeSeals | None = None) -> None:
        self.calls = calls or Calls()
        self.outbox = Outbox("n1", "inc", newest=4)
        self.node = Member(
            self.outbox,
            PARENTS,
            random.Random(1),
            session=1 << 40,
            version="",
            rack="",
            wall_ns=lambda: self.t_ns,
            unfinished=tuple,
            calls=self.calls,
            seals=seals,
        )
        self.t_ns = 0

    def until(self, kind: type) -> list[Any]:
        """Time passes until it wants this."""
        while True:
            self.t_ns = max(self.t_ns + 1, self.node.next_wake_ns() or 0)
            effects = self.node.tick(self.t_ns)
            if any(isinstance(e, kind) for e in effects):
                return effects

    def join(self, *, fleet: Any = FLEET, fence: int = 1) -> list[Any]:
        """It finds a parent, which takes it."""
        (found,) = [e.parent.url for e in self.until(Connect) if isinstance(e, Connect)]
        head = {"v": 1, "name": "a", "path": ["root", "a"], "fence": fence, "credit": 1 << 20, "fleet": fleet}
        return self.node.received(found, message("welcome", head), self.t_ns)

    def hear(self, kind: str, head: dict[str, Any]) -> list[Any]:
        return self.node.received(self.node.uplink.parent, message(kind, head), self.t_ns)

    def call(self, op: str = "extend", number: str = "1.1", *, fence: int = 1, spent: bool = False) -> list[Any]:
        """A call comes, and its turn at once."""
        head = {"call": number, "op": op, "nodes": None, "caller": CALLER, "fence": fence, "timeout_ms": 1000}
        (called,) = self.hear("call", head)
        assert isinstance(called, Called)
        return self.node.call(called.message, self.t_ns, spent=spent)


def frames(effects: Any) -> list[Message]:
    return [wire.decode(e.frame) for e in effects if isinstance(e, Send)]


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("T12")
def test_a_call_that_comes_twice_is_carried_out_once() -> None:
    b = Bench()
    b.join()
    (one,) = b.call()
    assert isinstance(one, CarryOut) and one.key == KEY and one.head["op"] == "extend"
    assert b.call() == [], "its answer comes"
    body = b.calls.done(KEY, b'{"ok":true}')
    (answer,) = frames(b.node.answer(KEY, body))
    assert answer.kind == "answer" and answer.head["call"] == "1.1" and answer.body == b'{"ok":true}'
    assert b.call() == [Answered(KEY, body)]
    assert isinstance(b.call(number="1.2")[0], CarryOut), "another call is another one"
    assert isinstance(b.call(number="1.1", fence=2)[0], CarryOut), "another root's, too"


@pytest.mark.invariant("T12")
@pytest.mark.parametrize("answered_before", [True, False])
def test_who_asks_again_after_a_reconnection_gets_the_same_answer(answered_before: bool) -> None:
    """The first answer was lost on the way; or it came while there was nobody to give it to."""
    b = Bench()
    b.join()
    first = b.node.uplink.parent
    assert isinstance(b.call()[0], CarryOut)
    if answered_before:
        b.node.answer(KEY, b.calls.done(KEY, b"done"))
    effects = b.until(Lost)
    assert Contact(False) in effects and not b.node.uplink.connected
    if not answered_before:
        assert b.node.answer(KEY, b.calls.done(KEY, b"done")) == [], "there is nobody"
    b.join()
    assert b.node.uplink.parent not in ("", first)
    assert b.call() == [Answered(KEY, b"done")]
    (answer,) = frames(b.node.answer(KEY, b"done"))
    assert answer.body == b"done"


def test_kept_answers_are_bounded_in_number_and_bytes() -> None:
    calls = Calls(kept_max=3, kept_bytes_max=100)
    for n in range(5):
        assert calls.take((1, str(n)), "status") is Fate.BEGINS
        calls.done((1, str(n)), b"%d" % n)
    assert list(calls.kept) == [b"2", b"3", b"4"]
    calls.take((1, "large"), "log")
    calls.done((1, "large"), b"x" * 98)
    assert list(calls.kept) == [b"3", b"4", b"x" * 98]
    calls.take((1, "larger"), "log")
    calls.done((1, "larger"), b"y" * 200)
    assert list(calls.kept) == [b"y" * 200], "the newest in any case"


@pytest.mark.invariant("S8")
@pytest.mark.parametrize("crowd", [1, 40])
@pytest.mark.parametrize("refused", [True, False])
def test_nobody_pushes_an_administrator_s_answer_out(refused: bool, crowd: int) -> None:
    """It is asked for again when it was lost on the way, and what it did is not done twice."""
    calls = Calls()
    for n in range(4):
        assert calls.take((1, f"commit {n}"), "commit") is Fate.BEGINS
        calls.done((1, f"commit {n}"), b"done" + b" " * (450 << 10))
    for n in range(1000):
        who = f"viewer{n % crowd}"
        fate = calls.take((1, str(n)), "status", who=who, replaced=refused)
        if fate is Fate.BEGINS:
            calls.done((1, str(n)), b"x" * 9000)
    assert all(isinstance(calls.take((1, f"commit {n}"), "commit"), bytes) for n in range(4))
    assert calls.take((1, "999"), "status", who=who) is not Fate.BEGINS, "and the newest of theirs are kept, too"
    calls.take((1, "large"), "log", who="viewer1")
    calls.done((1, "large"), b"x" * (4 << 20))
    assert all(isinstance(calls.take((1, f"commit {n}"), "commit"), bytes) for n in range(4)), "nor a long answer"
    assert calls.take((1, "999"), "status", who=who) is not Fate.BEGINS, "of nobody"


@pytest.mark.invariant("T12")
def test_what_is_done_once_is_refused_when_its_answer_had_to_make_room_and_what_only_reads_is_done_again() -> None:
    calls = Calls(kept_max=1)
    for key, op in (((1, "a"), "extend"), ((1, "b"), "status"), ((1, "c"), "status")):
        assert calls.take(key, op) is Fate.BEGINS
        calls.done(key, b"{}")
    assert calls.take((1, "b"), "status") is Fate.BEGINS
    assert "not done twice" in said(calls.take((1, "a"), "extend"))


@pytest.mark.invariant("T14")
@pytest.mark.parametrize(
    "op", [*(n for n, op in ops.AT_NODE.items() if issubclass(op, ops.FromRoot)), "session_revoke"]
)
def test_what_the_root_has_said_to_a_member_is_not_done_again_when_its_answer_had_to_make_room(op: str) -> None:
    """An aggregator that told an old word of the root's again could open a change anew that needs a person."""
    calls = Calls(kept_max=1)
    assert calls.take((1, "1.1"), op) is Fate.BEGINS
    calls.done((1, "1.1"), b"answer")
    assert calls.take((1, "1.1"), op) == b"answer"
    calls.take((1, "1.2"), "ping")
    calls.done((1, "1.2"), b"pong")
    assert "not done twice" in said(calls.take((1, "1.1"), op))
    assert calls.take((1, "1.3"), op) is Fate.BEGINS, "a new word of the root's counts"
    assert Calls().take((1, "1.1"), op) is Fate.BEGINS, "a new start is asked again, and does what is missing"


@pytest.mark.invariant("T12")
def test_what_the_journal_knows_to_have_begun_is_not_begun_again() -> None:
    calls = Calls(["1/1.1", "1/1.2"])
    assert "not done twice" in said(calls.take((1, "1.1"), "extend"))
    assert calls.take((1, "1.2"), "group_vote") is Fate.BEGINS, "members know what they have done"
    assert calls.take((2, "1.1"), "extend") is Fate.BEGINS, "another root's"
    assert {"commit", "rollback", "hold_place"} <= ONCE < ops.AT_NODE.keys()


def test_an_answer_that_is_too_large_says_so_and_is_kept_as_that() -> None:
    calls = Calls()
    calls.take(KEY, "log")
    answer = calls.done(KEY, b"x" * (ANSWER_MAX + 1))
    assert "bytes" in said(answer) and calls.take(KEY, "log") == answer


def test_many_calls_at_once_are_refused_and_those_under_way_go_on() -> None:
    calls = Calls()
    for n in range(RUNNING_MAX):
        assert calls.take((1, str(n)), "status") is Fate.BEGINS
    assert "under way" in said(calls.take((1, "more"), "status"))
    assert calls.take((1, "0"), "status") is Fate.WAITS
    calls.done((1, "0"), b"{}")
    assert calls.take((1, "next"), "status") is Fate.BEGINS


@pytest.mark.invariant("S8")
@pytest.mark.parametrize("spent", [False, True])
def test_whoever_asks_much_keeps_no_administrator_and_no_root_out(spent: bool) -> None:
    """A viewer may have 125 questions to one node under way. 64 of them, begun or put off, and every command of an
    administrator, each vote of a group and the stop of the fleet were refused there: 64 commands were under way."""
    b = Bench()
    b.join()

    def asks(n: int, user: str, role: str, spent: bool = False) -> str:
        head = {"call": f"{user}.{n}", "op": "status", "caller": {"user": user, "role": role, "via": "cluster"}}
        more = {"nodes": ["n1"], "fence": 1, "timeout_ms": 1000}
        (*_, last) = b.node.call(message("call", {**head, **more}, b"{}"), b.t_ns, spent=spent) or [None]
        return said(last.body) if isinstance(last, Answered) else ""

    refused = [asks(n, "ann", "viewer", spent) for n in range(125)]
    assert refused == [""] * 32 + ["32 of your commands are under way here"] * 93
    assert [asks(n, "bob", "viewer", spent) for n in range(125)][:33] == [""] * 32 + ["64 commands are under way here"]
    assert asks(1, "eve", "ops") == "64 commands are under way here"
    assert [asks(n, "adm", "admin") for n in range(3)] == [""] * 3
    assert [asks(n, "pact", "agent") for n in range(3)] == [""] * 3


def test_who_has_used_up_his_share_waits_and_then_has_his_turn() -> None:
    b = Bench()
    b.join()
    assert b.call(spent=True) == [] and len(b.calls.put_off) == 1
    assert not b.calls.running
    effects = b.node.call(b.calls.put_off.popleft(), b.t_ns)
    assert isinstance(effects[0], CarryOut)


def test_what_nobody_waits_for_any_more_has_no_turn() -> None:
    b = Bench()
    b.join()
    b.call(spent=True)
    b.call(number="1.2", spent=True)
    b.hear("drop", {"call": "1.1"})
    assert [m.head["call"] for m in b.calls.put_off] == ["1.2"]


def test_a_root_that_was_replaced_is_told_so() -> None:
    b = Bench()
    b.join(fence=7)
    (answered,) = b.call(fence=6)
    assert isinstance(answered, Answered) and "replaced" in said(answered.body)
    assert isinstance(b.call(number="7.1", fence=7)[0], CarryOut)


@pytest.mark.parametrize(
    ("role", "uid", "owner", "as_role"),
    [
        ("ops", None, "cluster:ann", "ops"),
        ("ops", 1001, "uid:1001", "ops"),
        ("ops", 0, "cluster:ann", "ops"),
        ("admin", 0, "uid:0", "admin"),
        ("king", 1001, "uid:1001", "viewer"),
        ("agent", None, "agent", "agent"),
    ],
)
def test_whom_a_call_is_from(role: str, uid: int | None, owner: str, as_role: str) -> None:
    actor, of = caller_of({"user": "ann", "role": role}, KEY, uid)
    assert (of.key, actor.role, actor.call) == (owner, as_role, "1/1.1")


# -- contact ----------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("G9")
def test_there_is_contact_only_after_the_root_s_word_about_holds() -> None:
    b = Bench()
    effects = b.join()
    kinds = [type(e) for e in effects]
    assert kinds == [Welcomed, Read, FleetSaid, Contact]
    assert b.hear("fleet", {**FLEET, "seq": 4}) == [FleetSaid(1, 4, [])], "it is in contact already"
    assert Contact(False) in b.until(Lost)
    assert Contact(True) in b.join()


def sealed(required: bool = True) -> Bench:
    return Bench(seals=NodeSeals({"5ea1ed00": b"k" * 32}, 1 << 40, required=required))


@pytest.mark.invariant("T14")
def test_what_comes_without_a_seal_does_not_count_where_seals_are_required() -> None:
    b = sealed()
    effects = b.join()
    assert [type(e) for e in effects] == [Welcomed, Read], "no word about holds, and no contact"
    assert not [e for e in b.hear("fleet", FLEET) if isinstance(e, FleetSaid | Contact)]
    row = ["n1", "inc", 2, False]
    assert not [e for e in b.hear("ack", {"cursors": [row], "fence": 1}) if isinstance(e, Read)]
    assert b.outbox.acked == -1
    *_, refused = frames(b.call())
    assert refused.body == member.NOT_SEALED and not b.calls.running and not list(b.calls.kept)


@pytest.mark.invariant("T14")
def test_that_something_does_not_count_is_noted_ever_less_often() -> None:
    b = sealed()
    b.join()
    before = b.node.unsealed
    notes = [e for _ in range(64) for e in b.hear("fleet", FLEET) if isinstance(e, Note)]
    assert b.node.unsealed == before + 64 and len(notes) < 8


def test_without_seals_required_a_cluster_of_the_last_version_counts() -> None:
    b = sealed(required=False)
    assert Contact(True) in b.join()
    b.hear("ack", {"cursors": [["n1", "inc", 2, False], ["n2", "inc", 4, False]], "fence": 1})
    assert b.outbox.acked == 2, "its own row, and no other's"
    assert isinstance(b.call()[0], CarryOut)


@pytest.mark.invariant("K2")
def test_a_seal_behind_a_hash_is_no_part_of_it() -> None:
    """It was sealed for an earlier start of the node, which sealed then: what it said of the record is the same."""
    b = Bench()
    b.outbox._hash_of = lambda seq: "ab" * 32
    b.join()
    head = {"cursors": [["n1", "inc", 2, False]], "fence": 1, "term": "t", "seals": ["s" * 20]}
    b.hear("ack", {**head, "hashes": ["ab" * 16 + "s" * 20]})
    assert (b.outbox.acked, b.outbox.forked) == (2, 0)
    b.hear("ack", {**head, "cursors": [["n1", "inc", 3, False]], "hashes": ["cd" * 16]})
    assert (b.outbox.acked, b.outbox.forked) == (2, 3)


@pytest.mark.invariant("T14")
def test_a_node_says_hello_to_its_parent_under_a_new_session_now_and_then() -> None:
    """So what its root has sealed for it is not held back for long: see the tests of seals."""
    bench = Bench(seals=NodeSeals({"root's key": b"k" * 32}, 1 << 40, required=False))
    bench.join()
    sessions, ends_ns = set[int](), bench.t_ns + 3 * RENEW_NS + NS_PER_S
    while bench.t_ns < ends_ns:
        due_ns = bench.node.next_wake_ns()
        assert due_ns is not None
        bench.t_ns = max(bench.t_ns + 1, min(due_ns, bench.t_ns + NS_PER_S))
        for effect in bench.node.tick(bench.t_ns):
            if not isinstance(effect, Send):
                assert not isinstance(effect, Lost | Connect), effect
                continue
            told = wire.decode(effect.frame)
            if told.kind == "hello":
                sessions.add(told.head["session"])
                head = {"v": 1, "name": "a", "path": ["root", "a"], "fence": 1, "credit": 1 << 20, "fleet": FLEET}
                effects = bench.node.received(effect.parent, message("welcome", head), bench.t_ns)
                assert not any(isinstance(e, Lost) for e in effects)
        bench.hear("beat", {"path": ["root", "a"], "fence": 1, "fleet_seq": 3})
    assert len(sessions) == 3 and len({s >> SESSION_BITS for s in sessions}) == 1
