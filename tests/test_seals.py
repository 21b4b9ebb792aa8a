"""Seals by themselves: what fits, what does not, and what came before."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.cluster.nodesets import NodeSets
from pact.cluster.personseals import PersonSeals
from pact.core.ops import SessionRevoke
from pact.core.root.envelope import PACT
from pact.core.root.log import RootState
from pact.core.root.persons import USED_MAX, Persons
from pact.core.root.questions import encoded
from pact.core.root.root import Root
from pact.core.root.term import Down
from pact.core.tree import seals, wire
from pact.core.tree.calls import Calls
from pact.core.tree.checks import BY_SESSION, SESSION_BITS
from pact.core.tree.nodeseals import GRACE_NS, RENEW_NS, SEEN_MAX, SEEN_NS, NodeSeals
from pact.core.tree.seals import Keys, RootSeals
from pact.core.tree.wire import message
from pact.errors import ConflictError, DeniedError, RemoteProtocolError
from pact.model import NS_PER_S
from pact.net import keys
from pact.net.shared import Shared

CALLER = {"user": "ann", "role": "admin", "via": "cluster"}
pytestmark = pytest.mark.invariant("T14")


class Ring(Keys):
    def __init__(self, nodes: dict[str, bytes], people: dict[str, tuple[str, str]] | None = None) -> None:
        self.nodes, self.people = nodes, people or {}

    def of(self, name: str) -> Iterable[str]:
        return [name] if name in self.nodes else []

    def person(self, public: str) -> tuple[str, str] | None:
        return self.people.get(public)

    def shared(self, public: str) -> bytes:
        return self.nodes.get(public, b"")


class World:
    """A root and some nodes that share keys with it."""

    def __init__(self, count: int = 3, *, required: bool = True) -> None:
        self.ring = Ring({f"n{i}": os.urandom(32) for i in range(count)})
        self.root = RootSeals("root's key", self.ring, required=required)
        self.root.begin("term1", 5)
        self.nodes = {n: NodeSeals({self.root.id: k}, 7 << 20, required=True) for n, k in self.ring.nodes.items()}
        for name in self.nodes:
            assert self.admit(name, 7 << 20)

    def admit(
        self,
        name: str,
        session: int,
        incarnation: str = "i",
        seq: int = 3,
        wall_ns: int = 9,
        *,
        here: bool = False,
        proof: str | None = None,
    ) -> bool:
        seal = self.nodes[name].proof(session, incarnation, seq, wall_ns) if proof is None else proof
        return self.root.admits(name, session, [seal, incarnation, seq, wall_ns], here=here)

    def head(self, n: int = 1, **more: Any) -> dict[str, Any]:
        return {"call": f"5.{n}", "op": "status", "caller": CALLER, "fence": 5, "term": self.root.term, **more}

    def answer(self, name: str, body: bytes, head: dict[str, Any] | None = None) -> str:
        head = head or self.head()
        said = self.root.calls(head, b"{}", [name])
        by = self.nodes[name].caller(head, said, b"{}", 0)
        assert by is not None
        return self.nodes[name].answer(by.key, head["term"], head["call"], body)


def test_two_keys_share_what_no_third_has(tmp_path: Any) -> None:
    pairs = [keys.load(keys.keygen(n, str(tmp_path))[1]) for n in ("a", "b", "c")]
    a, b, c = (Shared(pair) for pair in pairs)
    assert a.key(pairs[1].public) == b.key(pairs[0].public) != c.key(pairs[0].public)
    assert len(a.key(pairs[1].public)) == 32 and a.key(pairs[2].public) == c.key(pairs[0].public)
    assert a.key("0" * 40) == b""  # the point at nought, where everybody would meet


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 2**40), st.integers(0, 2**40))
def test_fields_and_body_do_not_run_together(a: bytes, b: bytes, x: int, y: int) -> None:
    one, other = ([x, a.hex()], b), ([y, b.hex()], a)
    assert (seals.essence(b"k", *one) == seals.essence(b"k", *other)) == (one == other)
    assert seals.essence(b"k", *one) != seals.essence(b"l", *one)


def test_each_field_of_a_call_is_sealed() -> None:
    w = World()
    head = w.head()
    said = w.root.calls(head, b"{}", ["n0", "n1"])
    assert len(said) == 2 * seals.SEAL_CHARS
    n0, n1 = wire.seal_at(said, 0), wire.seal_at(said, 1)
    node = w.nodes["n0"]
    for wrong in (
        {"call": "5.2"},
        {"op": "commit"},
        {"fence": 6},
        {"term": "t"},
        {"caller": {**CALLER, "user": "bob"}},
        {"caller": {**CALLER, "role": "ops"}},
        {"caller": {**CALLER, "via": "local"}},
    ):
        assert node.caller({**head, **wrong}, n0, b"{}", 0) is None, wrong
    assert node.caller(head, n0, b"{ }", 0) is None and node.caller(head, n1, b"{}", 0) is None
    assert node.caller(head, n0, b"{}", 0) is not None and w.nodes["n1"].caller(head, n1, b"{}", 0) is not None
    for text in ("", "A" * 20, "é" * 20, n0[:19], n0 + "A", "\ud800" * 20):
        assert node.caller(head, text, b"{}", 0) is None


def test_a_call_for_one_start_says_nothing_to_the_next() -> None:
    w = World()
    said = w.root.calls(w.head(), b"{}", ["n0"])
    later = NodeSeals({w.root.id: w.ring.nodes["n0"]}, 8 << 20, required=True)
    assert later.caller(w.head(), said, b"{}", 0) is None
    assert w.nodes["n0"].caller(w.head(), said, b"{}", 0) is not None


def test_what_was_asked_long_ago_is_not_asked_now() -> None:
    w = World()
    node = w.nodes["n0"]

    def comes(n: int, t_ns: int) -> bool:
        head = w.head(n)
        return node.caller(head, w.root.calls(head, b"{}", ["n0"]), b"{}", t_ns) is not None

    assert comes(1, 0) and comes(1, SEEN_NS) and comes(2, SEEN_NS)
    assert not comes(1, SEEN_NS + NS_PER_S) and comes(2, SEEN_NS + NS_PER_S)
    for n in range(3, SEEN_MAX + 10):
        assert comes(n, SEEN_NS + NS_PER_S)
    assert not comes(2, SEEN_NS + NS_PER_S) and not comes(5, SEEN_NS + NS_PER_S) and comes(4000, SEEN_NS + NS_PER_S)


def test_a_root_that_was_replaced_commands_nobody_any_more() -> None:
    w = World()
    node, old = w.nodes["n0"], (w.head(), w.root.calls(w.head(), b"{}", ["n0"]))
    assert node.caller(*old, b"{}", 0) is not None
    for term, fence in (("term2", 6), ("term3", 6), ("term4", 9)):  # term3: its log was lost, and its fence with it
        w.root.begin(term, fence)
        head = w.head(1, fence=fence, term=term)
        assert node.caller(head, w.root.calls(head, b"{}", ["n0"]), b"{}", 0) is not None
        assert node.caller(*old, b"{}", 0) is None
    w.root.begin("term5", 8)
    head = w.head(1, fence=8, term="term5")
    assert node.caller(head, w.root.calls(head, b"{}", ["n0"]), b"{}", 0) is None


@pytest.mark.parametrize("liar", [None, "n1"])
def test_equal_answers_are_merged_with_their_seals_and_a_liar_spoils_them_only_together(liar: str | None) -> None:
    w = World(4)
    calls = Calls()
    names = list(w.nodes)
    head = w.head()
    sealed = {**head, "nodes": names, "seals": w.root.calls(head, b"{}", names), "timeout_ms": 1000, "apart": False}

    class Child:
        def __init__(self, name: str) -> None:
            self.rid, self.name, self.below = name.encode(), name, None

    def asked(apart: bool) -> list[tuple[list[str], bytes, str]]:
        call = calls.begin(wire.message("call", {**sealed, "apart": apart}, b"{}"), 0)
        assert call is not None
        call.sealed({**sealed, "apart": apart})
        for name in names:
            call.add(Child(name), name)
        for name in names:
            assert call.discard(Child(name), name)
            seal = w.answer(name, b"[1]", head)
            call.answer([name], b"[1]", 0, seal if name != liar else "x" * 20)
        (up,) = call.flush()
        calls.open.clear()
        message = wire.decode(wire.encode("answer", up.head, up.body))
        rows = zip(
            wire.sections(message, "parts"), wire.beside(message.head["seals"], message.head["parts"]), strict=True
        )
        return [(list(row[0]), bytes(body), seal) for (row, body), seal in rows]

    ((together, body, seal),) = asked(False)
    assert together == names and w.root.answers(names, "5.1", body, seal) == (liar is None)
    assert not w.root.answers(names[1:], "5.1", body, seal) and not w.root.answers(names, "5.2", body, seal)
    alone = asked(True)
    assert [row[0] for row in alone] == [[n] for n in names]
    assert [n for (n,), body, seal in alone if not w.root.answers([n], "5.1", body, seal)] == ([liar] if liar else [])


@pytest.mark.invariant("K2")
def test_the_hash_of_an_acknowledgement_has_a_seal_of_its_own() -> None:
    """A relay of the last version passes on the rest without it; nobody can put another hash in its place."""
    w = World()
    node, row, term = w.nodes["n0"], ["n0", "i", 5, False], (5, "term1")
    (seal,), (said,) = w.root.acks([row]), w.root.hashes([row], ["ab" * 32])
    assert node.acked(*term, row, seal) and node.hashed(*term, row, said) == "ab" * 16
    assert node.hashed(*term, row, "cd" * 16 + said[seals.HASH_CHARS :]) == "" == node.hashed(*term, row, "")
    assert node.hashed(*term, ["n0", "i", 6, False], said) == "" and not node.acked(*term, row, said[-20:])
    assert w.root.hashes([["old", "i", 1, False], row], ["ab" * 32, ""]) == ["ab" * 16, ""]


def test_sealed_and_unsealed_answers_are_not_merged() -> None:
    calls = Calls()
    call = calls.begin(wire.message("call", {**World().head(), "nodes": None, "timeout_ms": 9}, b"{}"), 0)
    assert call is not None
    call.answer(["a"], b"x", 0, seals.number_text(5))
    call.answer(["b"], b"x", 0)
    call.answer(["c"], b"x", 0, seals.number_text(3))
    call.answer(["d"], b"x", 0, "no seal")
    call.answer(["e"], b"x", 0)
    (up,) = call.flush()
    assert up.head["parts"] == [[["b", "e"], 1], [["a", "c"], 1], [["d"], 1]]
    assert up.head["seals"] == ["", seals.number_text(6), "no seal"] and up.body == b"xxx"


def test_the_newest_word_of_where_a_node_is_counts() -> None:
    w = World()
    s = 7 << 20
    assert w.admit("n0", s + 3, here=True)  # it moved
    assert not w.admit("n0", s + 2, here=True) and w.admit("n0", s + 3, here=True)
    assert w.admit("n0", s + 2, here=False)  # it came back, and is nowhere else
    assert w.admit("n0", 9 << 20, seq=4, here=True)  # another start
    assert not w.admit("n0", s + 9, seq=3, here=True)
    assert not w.admit("n0", 11 << 20, seq=4, wall_ns=9, here=True) and w.admit(
        "n0", 11 << 20, seq=4, wall_ns=10, here=True
    )
    assert not w.admit("n0", 12 << 20, "j", 0, 10, here=True) and w.admit("n0", 12 << 20, "j", 0, 11, here=True)
    good = w.nodes["n0"].proof(13 << 20, "j", 1, 12)
    assert not w.admit("n0", 14 << 20, "j", 1, 12, proof=good) and not w.admit("n1", 13 << 20, "j", 1, 12, proof=good)
    assert not w.admit("n0", 13 << 20, "j", 2, 12, proof=good) and not w.admit("n0", 13 << 20, "k", 1, 12, proof=good)
    assert w.admit("n0", 13 << 20, "j", 1, 12, proof=good)
    assert not w.root.admits("stranger", 1, [good, "j", 1, 12], here=False)
    w.root.revoked(["n0"])
    assert not w.root.knows("n0") and w.root.knows("n1")


def test_who_does_not_seal_is_heard_only_where_seals_are_not_required() -> None:
    for required in (True, False):
        w = World(required=required)
        row = ["n0", "i", 0, 1, 2]
        assert w.root.events(row, b"x\n", w.nodes["n0"].events(row, b"x\n"))
        assert not w.root.events(row, b"y\n", w.nodes["n0"].events(row, b"x\n")) and not w.root.events(row, b"x\n", "")
        assert w.root.admits("old", 1, None, here=False) == (not required)
        assert w.root.events(["old", "i", 0, 1, 2], b"x\n", "") == (not required)
        assert w.root.answers(["old"], "5.1", b"x", "") == (not required)
        assert not w.root.answers(["n0"], "5.1", b"x", "")  # it seals: whoever took its seal away is not believed
        assert not w.root.answers(["n0", "old"], "5.1", b"x", w.answer("n0", b"x"))
        assert w.root.calls(w.head(), b"", ["old"]) == "" and w.root.acks([["old", "i", 1, False]]) == [""]
        assert w.root.fleet({"fence": 5, "seq": 1, "holds": []}, ["old", "n0"]).keys() == {"n0"}


def test_one_of_several_roots_is_known_by_its_key() -> None:
    ring = {f"r{i}": os.urandom(32) for i in range(3)}
    node = NodeSeals({seals.key_id(r): k for r, k in ring.items()}, 1 << 20, required=True)
    for name, key in ring.items():
        root = RootSeals(name, Ring({"n0": key}), required=True)
        assert root.admits("n0", 1 << 20, [node.proof(1 << 20, "i", 0, 0), "i", 0, 0], here=False)
        assert root.events(["n0", "i", 0, 1, 2], b"x\n", node.events(["n0", "i", 0, 1, 2], b"x\n"))


# -- people ---------------------------------------------------------------------------------------------------------


def people(required: bool = True) -> tuple[Persons, PersonSeals, Ring]:
    key = os.urandom(32)
    ring = Ring({"ann's": key, "bob's": os.urandom(32)}, {"ann's": ("ann", "ops"), "bob's": ("bob", "viewer")})
    root = RootSeals("root's", ring, required=required)
    return Persons(root, os.urandom(32)), PersonSeals("ann's", {root.id: key}, "nonce"), ring


REQUEST = {
    "client": "agg:1",
    "id": 2,
    "op": "status",
    "nodes": None,
    "timeout_ms": 5,
    "caller": CALLER,
    "direct": False,
}


def challenged(persons: Persons, asked: PersonSeals) -> PersonSeals:
    head = {**REQUEST, **asked.head(1)}
    result = persons.challenge(head)
    told = persons.sealed(
        "result", {"client": "agg:1", "id": 1, "exit": 0, "message": "", "hint": "", "failed": {}}, orjson.dumps(result)
    )
    assert asked.checked(wire.Message("result", dict(told), orjson.dumps(result)))
    new = asked.challenged(result)
    assert new is not None
    return new


def test_a_request_is_taken_once_and_as_its_owner_wrote_it() -> None:
    persons, asked, _ = people()
    mine = challenged(persons, asked)
    head = mine.request(REQUEST, b"{}")
    for wrong in (
        {"op": "commit"},
        {"nodes": "n1"},
        {"timeout_ms": 6},
        {"id": 3},
        {"person": "bob's"},
        {"challenge": "1.x"},
    ):
        with pytest.raises(DeniedError):
            persons.authenticated({**head, **wrong}, b"{}")
    with pytest.raises(DeniedError):
        persons.authenticated(head, b"[]")
    assert persons.authenticated(head, b"{}")["caller"] == {"user": "ann", "role": "ops", "via": "cluster"}
    with pytest.raises(ConflictError):
        persons.authenticated(head, b"{}")
    with pytest.raises(DeniedError, match="no person"):
        persons.challenge({**REQUEST, "person": "nobody's", "challenge": ""})


def test_a_request_that_comes_again_while_it_is_answered_is_told_nothing() -> None:
    """A refusal would be sealed as its answer, and the person would not hear what has come of it."""
    persons, asked, _ = people()
    head = challenged(persons, asked).request(REQUEST, b"{}")
    assert not persons.came_before(head)
    persons.authenticated(head, b"{}")
    assert persons.came_before(head) and not persons.came_before({**head, "id": 3, "challenge": ""})
    for odd in ("A" * 20, "", "\xe9" * 20):  # whoever carries it may say of it what he likes
        assert persons.came_before({**head, "seal": odd})
    assert persons.came_before({**head, "op": "challenge"})
    done = {"client": "agg:1", "id": 2, "exit": 0, "message": "", "hint": "", "failed": {}}
    assert persons.sealed("progress", {"client": "agg:1", "id": 2, "done": 1, "total": 2}, b"")["seal"]
    assert persons.came_before(head)
    persons.sealed("result", done, b"")
    assert persons.came_before(head) and persons.came_before({**head, "id": 3}), "what is said of it may come first"
    with pytest.raises(ConflictError):
        persons.authenticated(head, b"{}")


def test_a_challenge_of_another_term_or_person_is_none() -> None:
    persons, asked, ring = people()
    old = challenged(persons, asked).request(REQUEST, b"{}")
    later = Persons(RootSeals("root's", ring, required=True), os.urandom(32))
    challenged(later, asked)
    with pytest.raises(ConflictError):
        later.authenticated(old, b"{}")
    for text in ("", ".", "1", "-1.x", "zz.x", "f" * 99 + ".x", "1.\ud800", "²." + "x" * 20):
        forged = PersonSeals("ann's", {"r": ring.nodes["ann's"]}, text)
        try:
            head = forged.request(REQUEST, b"{}")
        except TypeError:  # no text that travels
            continue
        with pytest.raises(ConflictError):
            persons.authenticated(head, b"{}")


def test_many_challenges_keep_nobody_out_and_used_ones_stay_used() -> None:
    persons, asked, _ = people()
    first = challenged(persons, asked)
    for _ in range(3 * USED_MAX):
        persons.challenge({**REQUEST, "id": 9, "person": "bob's", "challenge": ""})
    head = first.request(REQUEST, b"{}")
    assert persons.authenticated(head, b"{}")
    for _ in range(USED_MAX + 5):
        persons.authenticated(challenged(persons, asked).request(REQUEST, b"{}"), b"{}")
    with pytest.raises(ConflictError):
        persons.authenticated(head, b"{}")
    assert len(persons._used) <= USED_MAX


def test_unsealed_requests_are_those_of_the_root_s_own_door_or_of_the_last_version() -> None:
    for required, direct in itertools.product((True, False), repeat=2):
        persons, _, _ = people(required)
        head = {**REQUEST, "seal": "", "person": "", "challenge": "", "direct": direct}
        if required and not direct:
            with pytest.raises(DeniedError, match="sealed"):
                persons.authenticated(head, b"{}")
        else:
            assert persons.authenticated(head, b"{}") is head


def test_parts_come_whole_and_in_order() -> None:
    persons, asked, _ = people()
    mine = challenged(persons, asked)
    persons.authenticated(mine.request(REQUEST, b"{}"), b"{}")

    def part(name: str) -> wire.Message:
        return wire.Message(
            "part", dict(persons.sealed("part", {"client": "agg:1", "id": 2, "names": [name]}, b"x")), b"x"
        )

    one, two, three = part("a"), part("b"), part("c")
    mine.checked(one)
    for wrong in (
        one,
        three,
        two._replace(body=b"y"),
        two._replace(head={**two.head, "names": ["z"]}),
        two._replace(head={**two.head, "id": 3}),
        two._replace(kind="event"),
    ):
        with pytest.raises(RemoteProtocolError):
            mine.checked(wrong)
    mine.checked(two._replace(head={**two.head, "client": ""}))  # who carries it says whom it is for
    assert persons.sealed("part", {"client": "agg:2", "id": 2}, b"") == {"client": "agg:2", "id": 2}
    persons.cancelled("agg:1", 0)
    assert not persons._askers


def test_a_client_is_told_that_an_aggregator_on_its_way_is_older() -> None:
    persons, _, _ = people()
    with pytest.raises(DeniedError, match="older than the client"):
        persons.challenge({"client": "agg1:1", "id": 1, "person": "", "challenge": ""})


def test_a_name_that_stands_twice_in_an_answer_fits_nothing() -> None:
    w = World()
    seal = w.answer("n0", b"yes")
    assert w.root.answers(["n0"], "5.1", b"yes", seal)
    assert not w.root.answers(["n0", "n0"], "5.1", b"invented", seals.NONE)
    assert not w.root.answers(["n1", "n0", "n1"], "5.1", b"yes", seal)


# -- what is held back ----------------------------------------------------------------------------------------------


def says_hello(w: World, name: str, count: int, t_ns: int, *, heard: bool = True) -> None:
    """The node says hello for the ``count``th time; ``heard``: the root hears of it."""
    node, session = w.nodes[name], 7 << SESSION_BITS | BY_SESSION | count
    node.t_ns = t_ns
    node.spoke(session)
    if heard:
        assert w.admit(name, session, wall_ns=9 + count)


def test_a_call_that_was_held_back_across_two_hellos_does_not_count() -> None:
    w = World()
    says_hello(w, "n0", 1, 0)
    node, held = w.nodes["n0"], [w.head(n) for n in (1, 2, 3)]
    said = [w.root.calls(h, b"{}", ["n0"]) for h in held]
    fleet = {"fence": 5, "seq": 3, "holds": []}
    stop = w.root.fleet(fleet, ["n0"])["n0"]
    assert node.caller(held[0], said[0], b"{}", RENEW_NS - 1) is not None
    assert node.renew_ns() == RENEW_NS
    says_hello(w, "n0", 2, RENEW_NS)
    assert node.caller(held[1], said[1], b"{}", RENEW_NS + GRACE_NS) is not None, "on its way when that was said"
    assert node.told(fleet, "term1", stop)
    assert node.caller(held[2], said[2], b"{}", RENEW_NS + GRACE_NS + 1) is None
    assert not node.told(fleet, "term1", stop)
    assert node.caller(held[2], w.root.calls(held[2], b"{}", ["n0"]), b"{}", 2 * RENEW_NS) is not None, "said anew"


def test_an_aggregator_that_keeps_hellos_back_does_not_make_old_calls_count() -> None:
    w = World()
    says_hello(w, "n0", 1, 0)
    said = w.root.calls(w.head(), b"{}", ["n0"])
    for count in (2, 3):
        says_hello(w, "n0", count, (count - 1) * RENEW_NS, heard=False)
    assert w.nodes["n0"].caller(w.head(), said, b"{}", 2 * RENEW_NS) is None
    again = w.root.calls(w.head(), b"{}", ["n0"])  # the root knows only the first session
    assert w.nodes["n0"].caller(w.head(), again, b"{}", 2 * RENEW_NS) is None


def test_what_is_still_asked_is_sealed_again_for_each_new_session() -> None:
    """A command may take longer than a session lasts: if its answer is lost with a connection, it is asked for again
    by whoever carries the call, with the seal that is there."""
    w = World()
    root = Root("r", RootState(), 5, NodeSets(), seals=w.root)
    root.start(1, 1, "b", 0)
    calls: list[dict[str, Any]] = []

    def below(count: int) -> None:
        says_hello(w, "n0", count, (count - 1) * RENEW_NS)
        head = {"add": ["n0"], "sessions": {"n0": 7 << SESSION_BITS | BY_SESSION | count}}
        effects = root.received(message("below", head), count * RENEW_NS, 1)
        calls.extend(e.head for e in effects if isinstance(e, Down) and e.kind == "call")

    below(1)
    word = SessionRevoke(user="ann")
    root.questions.ask_members(
        ["n0"], word, PACT, lambda names, body: None, lambda lost: None, timeout_ns=3600 * NS_PER_S
    )
    calls += [e.head for e in root.take_effects() if isinstance(e, Down) and e.kind == "call"]
    for count in (2, 3, 4):
        below(count)
        assert len(calls) == count and len({c["call"] for c in calls}) == 1
        held, at_ns = calls[-2], (count - 1) * RENEW_NS + 1
        assert w.nodes["n0"].caller(held, held["seals"], encoded(word), at_ns) is not None, "asked again at once"


def test_a_root_of_the_last_version_is_heard_until_one_of_this_version_seals() -> None:
    w = World()
    old = w.root.calls(w.head(), b"{}", ["n0"])  # for the start of the agent: as that version seals
    says_hello(w, "n0", 1, 0, heard=False)
    assert w.nodes["n0"].caller(w.head(), old, b"{}", 9 * RENEW_NS) is not None
    says_hello(w, "n0", 2, 9 * RENEW_NS)
    held = w.head(2)
    assert w.nodes["n0"].caller(held, w.root.calls(held, b"{}", ["n0"]), b"{}", 9 * RENEW_NS) is not None
    assert w.nodes["n0"].caller(w.head(), old, b"{}", 9 * RENEW_NS) is None
    w.root.begin("term2", 6)  # of the last version
    w.root._known.clear()
    assert w.admit("n0", 7 << SESSION_BITS)
    later = {**w.head(1), "fence": 6, "call": "6.1"}
    assert w.nodes["n0"].caller(later, w.root.calls(later, b"{}", ["n0"]), b"{}", 9 * RENEW_NS) is not None
