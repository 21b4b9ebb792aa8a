"""How old a person's word is: a node knows it without a clock that both ends share.  # T16"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_seals import REQUEST, World, challenged, people

from pact.cluster.personseals import PersonSeals
from pact.core.root.envelope import PACT
from pact.core.tree import seals, wire
from pact.core.tree.checks import BY_SESSION, BY_TIME, HOLDS_BY_TIME, SESSION_BITS
from pact.core.tree.member import Answered, CarryOut, Contact, FleetSaid, Member
from pact.core.tree.member import Calls as NodeCalls
from pact.core.tree.nodeseals import AHEAD_STEPS, NEW_ROOT_NS, SEARCHES_PER_S, SPREAD_NS, STEPS_MAX, NodeSeals
from pact.core.tree.outbox import Outbox
from pact.core.tree.parents import Parent
from pact.core.tree.uplink import Lost, Note
from pact.core.tree.wire import message
from pact.errors import ConflictError, UnreachableError
from pact.model import NS_PER_S

pytestmark = pytest.mark.invariant("T16")
ROOTS_CLOCK_NS = 10**17  # nobody compares it with a node's


class Dated(World):
    """``at``: it is so many seconds after the beginning, at both ends. ``bits``: what else the node knows."""

    bits = HOLDS_BY_TIME

    def __init__(self) -> None:
        super().__init__()
        self.at(0)
        self.hello(1)

    def at(self, s: float) -> int:
        self.t_ns = int(s * NS_PER_S)
        self.root.t_ns = self.t_ns + ROOTS_CLOCK_NS
        for node in self.nodes.values():
            node.t_ns = self.t_ns
        return self.t_ns

    def session(self, count: int) -> int:
        return 7 << SESSION_BITS | BY_SESSION | BY_TIME | self.bits | count

    def hello(self, count: int, *, heard: bool = True) -> None:
        session = self.session(count)
        self.nodes["n0"].spoke(session)
        if heard:
            assert self.admit("n0", session, wall_ns=9 + count)

    def said(self, n: int, **more: Any) -> tuple[dict[str, Any], str]:
        head = {**self.head(n), **more}
        return head, self.root.calls(head, b"{}", ["n0"])

    def late_s(self, said: tuple[dict[str, Any], str]) -> int | None:
        """``None``: it does not count at all."""
        word = self.nodes["n0"].caller(*said, b"{}", self.t_ns)
        return None if word is None else word.late_s


@given(spoken=st.floats(0, 590), held=st.floats(0, 290))
def test_a_node_knows_how_long_a_person_s_word_was_held_back(spoken: float, held: float) -> None:
    w = Dated()
    w.at(spoken)
    said = w.said(1)
    w.at(spoken + held)
    late_s = w.late_s(said)
    assert late_s is not None
    if held <= 30:
        assert late_s == 0
    elif held >= 40:
        assert held - 10 <= late_s <= held + 10


def test_what_a_root_says_of_its_own_accord_may_come_late() -> None:
    """It is repeated until it is done, and is no less true then."""
    w = Dated()
    said = w.said(1, caller=PACT.to_json())
    w.at(500)
    assert w.late_s(said) == 0


@pytest.mark.parametrize(("on_its_way_s", "late_s", "renew_s"), [(25, 0, 700), (200, 200, 300)])
def test_a_slow_hello_makes_no_word_late_and_a_very_slow_one_is_said_anew(
    on_its_way_s: int, late_s: int, renew_s: int
) -> None:
    w = Dated()
    w.at(100)
    w.hello(2, heard=False)
    w.at(100 + on_its_way_s)
    assert w.admit("n0", w.session(2), wall_ns=11)
    assert w.late_s(w.said(1)) == late_s
    assert w.nodes["n0"].renew_ns() == renew_s * NS_PER_S
    w.at(renew_s)
    w.hello(3)
    assert w.late_s(w.said(2)) == 0 and w.nodes["n0"].renew_ns() == (renew_s + 600) * NS_PER_S


@pytest.mark.parametrize("stood_s", [5, 100])
def test_a_node_whose_clock_stood_still_takes_what_is_said_after(stood_s: float) -> None:
    w = Dated()
    w.at(20)
    w.root.t_ns += stood_s * NS_PER_S
    assert w.late_s(w.said(1)) == 0


def test_a_new_root_is_heard_at_once_and_asked_to_date_its_words() -> None:
    """It knows no hello's time but its own."""
    w = Dated()
    assert w.late_s(w.said(1)) == 0
    w.at(400)
    w.root.begin("term2", 6)
    w.root._known.clear()
    assert w.admit("n0", w.session(1), wall_ns=10)
    later = {"fence": 6, "term": "term2"}
    first = w.said(2, call="6.1", **later)
    w.at(410)
    assert w.late_s(first) == 0
    due_ns = w.nodes["n0"].renew_ns()
    assert due_ns is not None and w.t_ns <= due_ns < w.t_ns + SPREAD_NS, "soon"
    w.hello(2)
    held = w.said(3, call="6.2", **later)
    assert w.late_s(held) == 0
    w.at(530)
    assert (w.late_s(held) or 0) >= 100


def member(w: Dated) -> Member:
    return Member(
        Outbox("n0", "i", newest=0),
        [Parent("p", "k")],
        random.Random(1),
        session=7 << SESSION_BITS,
        version="",
        rack="",
        wall_ns=lambda: 0,
        unfinished=tuple,
        calls=NodeCalls(),
        seals=w.nodes["n0"],
    )


def test_a_call_that_is_told_twice_is_as_late_as_the_first_time() -> None:
    """What waits at the node, because its caller has used up his share of time, has come in time."""
    w = Dated()
    made = member(w)
    in_time, late = (
        message("call", {**h, "nodes": ["n0"], "seals": s, "timeout_ms": 1}, b"{}") for h, s in map(w.said, (1, 2))
    )
    assert made.call(in_time, w.t_ns, spent=True) == []
    w.at(200)
    (said,) = made.call(late, w.t_ns)
    assert isinstance(said, Answered) and b"held back for 200 s" in said.body and b"nothing was done" in said.body
    (said,) = made.call(in_time, w.t_ns)
    assert isinstance(said, CarryOut)


HOLD = {"hold": "f1", "owner": "ann", "reason": "stop", "ends": "", "left_ns": 10**12, "whole_ns": 10**12}


def fleet(w: Dated, seq: int, *holds: dict[str, Any]) -> Any:
    """What the root says now of the fleet's holds."""
    head = {"fence": 5, "seq": seq, "holds": list(holds), "term": "term1"}
    return message("fleet", {**head, "seals": w.root.fleet(head, ["n0"])})


def joined(w: Dated) -> Member:
    """A member that has a parent, and has heard of no hold."""
    made = member(w)
    made.tick(w.at(1))
    made.received("p", message("welcome", {"v": wire.VERSION, "path": ["p"], "fence": 5, "credit": 1 << 20}), w.t_ns)
    assert Contact(True) in made.received("p", fleet(w, 1), w.t_ns)
    return made


def said_in(effects: Any) -> list[Any]:
    return [e for e in effects if isinstance(e, FleetSaid | Contact | Note)]


def at(w: Dated, made: Member, s: int) -> None:
    """So many seconds later; the parent is there all the while."""
    for now in range(w.t_ns // NS_PER_S, s + 1):
        assert not any(isinstance(e, Lost) for e in made.tick(w.at(now)))
        made.received("p", message("beat", {"path": ["p"], "fence": 5}), w.t_ns)


@pytest.mark.parametrize("which", ["stop", "release"])
def test_what_the_fleet_is_told_counts_only_for_a_while(which: str) -> None:
    """Held back, a stop would stop a node again that has been released, and a release would free it in the next
    stop."""
    w = Dated()
    made = joined(w)
    held = fleet(w, 2, HOLD) if which == "stop" else fleet(w, 2)
    at(w, made, 60)
    note, contact = said_in(made.received("p", held, w.t_ns))
    assert isinstance(note, Note) and "held back for 50 s" in note.text
    assert contact == Contact(False), "it may be stopped, and does not know it"
    assert said_in(made.received("p", held, w.t_ns + 1)) == [Note(note.text.replace("(1)", "(2)"))]
    assert w.nodes["n0"].renew_ns() == 61 * NS_PER_S, "it asks, a minute after its last hello"
    fresh, contact = said_in(made.received("p", fleet(w, 3), w.t_ns))
    assert isinstance(fresh, FleetSaid) and contact == Contact(True)


@given(spoken=st.floats(0, 590), held=st.floats(0, 30))
def test_what_the_fleet_is_told_in_time_counts(spoken: float, held: float) -> None:
    w = Dated()
    w.at(spoken)
    said = fleet(w, 2, HOLD).head
    w.at(spoken + held)
    word = w.nodes["n0"].told(said, "term1", said["seals"]["n0"])
    assert word is not None and word.late_s == 0


def test_a_root_and_a_node_of_the_last_version_say_and_take_undated_tables() -> None:
    """A root of the last version does not know the bit; a node of it would not know the date."""
    new, old = Dated(), Dated()
    old.bits = 0
    old.hello(2)
    said = fleet(old, 2, HOLD).head
    assert said["seals"]["n0"] == undated(old, said, 2)
    said = fleet(new, 2, HOLD).head
    assert said["seals"]["n0"] != undated(new, said, 1)
    new.at(300)
    word = new.nodes["n0"].told(said, "term1", undated(new, said, 1))
    assert word is not None and word.late_s == 0


def undated(w: Dated, said: dict[str, Any], count: int) -> str:
    """The seal of the last version, for the node's newest session."""
    what = seals.of_fleet("term1", said) + seals.bound_to(w.session(count))
    return seals.text(seals.seal(w.root._known["n0"].key, what))


def test_words_that_fit_nothing_cost_little() -> None:
    w = Dated()
    old = [w.said(n) for n in (1, 2)]
    w.at(500)
    node = w.nodes["n0"]
    compared: list[int] = []
    steps = node._steps

    def counted(spoken_ns: int) -> Iterator[int]:
        for step in steps(spoken_ns):
            compared.append(step)
            yield step

    node._steps = counted  # type: ignore[method-assign]
    for n in range(1000):
        assert node.caller(w.head(n + 10), "A" * seals.SEAL_CHARS, b"{}", w.t_ns) is None
    assert len(compared) < 1000 * 5 + SEARCHES_PER_S * (STEPS_MAX + AHEAD_STEPS)
    assert w.late_s(w.said(9)) == 0, "what comes in time is known all the same"
    assert w.late_s(old[0]) is None
    w.at(501)
    assert (w.late_s(old[1]) or 0) >= 490


@pytest.mark.parametrize(("held_s", "taken"), [(0, True), (59, True), (61, False), (90_000, False)])
def test_a_person_s_request_that_was_held_back_on_the_way_to_the_root_is_not_done(held_s: int, taken: bool) -> None:
    persons, asked, _ = people()
    persons._seals.t_ns = ROOTS_CLOCK_NS
    head = challenged(persons, asked).request(REQUEST, b"{}")
    persons._seals.t_ns += held_s * NS_PER_S
    if taken:
        assert persons.authenticated(head, b"{}")["caller"]["user"] == "ann"
        return
    with pytest.raises(UnreachableError, match=f"held back for {held_s} s on the way to the root; nothing was done"):
        persons.authenticated(head, b"{}")
    assert persons.authenticated(challenged(persons, asked).request(REQUEST, b"{}"), b"{}"), "asked anew"


def test_nobody_makes_a_challenge_younger() -> None:
    persons, asked, ring = people()
    persons._seals.t_ns = ROOTS_CLOCK_NS
    old = challenged(persons, asked).request(REQUEST, b"{}")["challenge"]
    persons._seals.t_ns += 3600 * NS_PER_S
    number, mac, _ = old.split(".")
    for made in (f"{persons._seals.t_ns // NS_PER_S:x}", "", "f" * 15, "-1", "f" * 99):
        forged = PersonSeals("ann's", {"r": ring.nodes["ann's"]}, f"{number}.{mac}.{made}").request(REQUEST, b"{}")
        with pytest.raises(ConflictError):
            persons.authenticated(forged, b"{}")


def test_what_waits_at_a_node_that_stands_still_is_not_done_when_it_goes_on() -> None:
    """Whoever asked was told so; that it is not wanted any more could not be said to the node."""
    w = Dated()
    made = member(w)
    made.tick(w.at(1))
    made.tick(w.at(2))
    made.received("p", message("welcome", {"v": wire.VERSION, "path": ["p"], "fence": 5, "credit": 1 << 20}), w.t_ns)
    assert made.uplink.connected
    head, seal = w.said(1)
    call = message("call", {**head, "nodes": ["n0"], "seals": seal, "timeout_ms": 1}, b"{}")
    assert made.call(call, w.t_ns, spent=True) == [] and list(made.calls.put_off) == [call]
    w.at(60)
    assert any(isinstance(effect, Lost) for effect in made.tick(w.t_ns))
    assert not made.calls.put_off


def test_ten_thousand_nodes_do_not_say_hello_to_a_new_root_at_once() -> None:
    """It has just begun, and each hello costs it a proof, the fleet's holds, and what is still asked."""
    due, rng = list[int](), random.Random(1)
    for _ in range(500):
        node = NodeSeals({"root1": b"k" * 32}, rng.getrandbits(64), required=True)
        node.spoke(1)
        for fence in (1, 2):
            head = {"fence": fence, "seq": 1, "holds": []}
            term = f"term{fence}"
            said = seals.text(seals.seal(b"k" * 32, seals.of_fleet(term, head) + seals.bound_to(1 | BY_SESSION)))
            node.spoke(1 | BY_SESSION)
            node.t_ns = NS_PER_S * fence
            assert node.told(head, term, said)
        renew_ns = node.renew_ns()
        assert renew_ns is not None
        due.append((renew_ns - node.t_ns) // NS_PER_S)
    assert min(due) >= 0 and max(due) * NS_PER_S < SPREAD_NS < NEW_ROOT_NS
    assert max(map(due.count, due)) < 60, "in any second"
