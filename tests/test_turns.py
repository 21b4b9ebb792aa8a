"""The root's loop belongs to nobody who is no administrator, however long what he asks takes."""

from __future__ import annotations

import signal
from collections.abc import Iterable

import pytest
import zmq
from hostile_kit import Hostile

from pact.cluster import turns
from pact.cluster.nodesets import NodeSets
from pact.cluster.turns import WAITING_EACH_MAX, Turns
from pact.core.root.log import RootState
from pact.core.root.root import Root
from pact.core.root.term import Down
from pact.core.tree import wire
from pact.core.tree.wire import Message, message
from pact.host import budget

pytestmark = pytest.mark.invariant("S8")


class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (budget, turns):
        monkeypatch.setattr(module, "time", clock)
    return clock


def asks(who: str, id_: int, role: str = "viewer") -> Message:
    caller = {"user": who, "role": role, "via": "cluster"}
    return message("request", {"id": id_, "op": "nodes", "client": who, "caller": caller})


def handled(of: Turns, said: Message, clock: Clock, seconds: float) -> None:
    with of.spending(said):
        clock.now_s += seconds


def test_who_has_used_up_his_share_waits_and_nobody_waits_for_him(clock: Clock) -> None:
    of = Turns()
    assert of.take(asks("ann", 1)) and of.wait_s() is None
    handled(of, asks("ann", 1), clock, 0.9)
    for id_ in (2, 3, 4):
        assert not of.take(asks("ann", id_))
    assert of.take(asks("bob", 1)) and of.take(asks("ann", 5, "admin"))
    assert of.take(message("cancel", {"id": 3, "client": "ann"})), "the root hears of it, too"
    assert list(of.due()) == []
    wait_s = of.wait_s()
    assert wait_s is not None and 0 < wait_s < 10
    clock.now_s += wait_s + 0.01
    for found in of.due():
        assert found.head["id"] == 2
        handled(of, found, clock, 0.9)
    assert not of.take(asks("ann", 6)), "not before those that came before it"
    clock.now_s += 60
    assert [m.head["id"] for m in of.due()] == [4, 6] and of.wait_s() is None
    assert of.take(asks("ann", 7))


def test_so_many_of_one_person_wait(clock: Clock) -> None:
    of = Turns()
    handled(of, asks("ann", 1), clock, 1.0)
    for id_ in range(3 * WAITING_EACH_MAX):
        assert not of.take(asks("ann", id_))
    clock.now_s += 60
    assert len(list(of.due())) == WAITING_EACH_MAX


def test_what_is_cancelled_while_those_before_it_are_handled_is_not_handled(clock: Clock) -> None:
    """It was looked for among those that wait, where it no longer was: that would have ended the root."""
    of = Turns()
    handled(of, asks("ann", 1), clock, 1.0)
    for id_ in (2, 3, 4):
        assert not of.take(asks("ann", id_))
    clock.now_s += 60
    seen = []
    for found in of.due():
        seen.append(found.head["id"])
        assert of.take(message("cancel", {"id": 3, "client": "ann"}))
    assert seen == [2, 4] and of.wait_s() is None


def test_all_together_leave_half_of_the_loop_to_others(clock: Clock) -> None:
    """Each of sixty people had a fifth of it: an administrator had no answer within twenty seconds."""
    of, began_s, spent_s, id_ = Turns(), clock.now_s, 0.0, 0
    people = [f"p{n}" for n in range(60)]
    while clock.now_s < began_s + 60:
        for who in people:
            id_ += 1
            if of.take(asks(who, id_)):
                handled(of, asks(who, id_), clock, 0.02)
                spent_s += 0.02
        for found in of.due():
            handled(of, found, clock, 0.02)
            spent_s += 0.02
        assert of.take(asks("adm", 1, "admin"))
        clock.now_s += (of.wait_s() or 0.0) + 0.001
    assert 0.4 * 60 < spent_s < 0.5 * 60 + turns.FRESH_S
    assert of.take(asks("new", 1)) or next(iter(of.due())).head["client"] == "new", "who has used nothing comes first"


def test_a_cancel_looks_at_its_own_person_s_requests_alone(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs nobody's share: among thousands that wait it took the loop a millisecond."""
    of = Turns()
    for n in range(60):
        handled(of, asks(f"p{n}", 1), clock, 1.0)
    for n in range(60):
        for id_ in range(WAITING_EACH_MAX):
            assert not of.take(asks(f"p{n}", id_))
    looked: list[Message] = []
    monkeypatch.setattr(turns, "_asked", lambda m: (looked.append(m), (m.head["client"], m.head["id"]))[1])
    assert of.take(message("cancel", {"id": 5, "client": "p7"})) and len(looked) < 2 * WAITING_EACH_MAX
    clock.now_s += 1000
    left = [m.head["id"] for m in of.due() if m.head["client"] == "p7"]
    assert left == [n for n in range(WAITING_EACH_MAX) if n != 5]


def test_who_asks_now_and_then_has_his_turn_among_those_who_ask_all_the_time(clock: Clock) -> None:
    """What somebody owes is soon given back: of those who owed nothing the same few were always next."""
    of, served, id_ = Turns(), list[str](), 0
    people = [f"p{n}" for n in range(60)]

    def handle(message: Message) -> None:
        served.append(message.head["client"])
        handled(of, message, clock, 0.02)

    for _ in range(400):
        for who in people:
            id_ += 1
            if of.take(asks(who, id_)):
                handle(asks(who, id_))
        if id_ == 60 * 200:
            served.clear()
            if of.take(asks("bob", 1)):
                handle(asks("bob", 1))
        for found in of.due():
            handle(found)
        clock.now_s += of.wait_s() or 0.02
    assert "bob" in served[:61]
    counts = [served.count(who) for who in people]
    assert min(counts) > 0 and max(counts) <= min(counts) + 2


@pytest.mark.parametrize(("role", "waits"), [("viewer", True), ("admin", False)])
def test_what_comes_of_a_request_later_is_its_persons_too(clock: Clock, role: str, waits: bool) -> None:
    """The names of ten thousand nodes that have not answered are folded when the time is over: that took the root's loop
    a fifth of a second, and cost nobody's share. Whoever gave his requests a millisecond each kept the loop at it."""

    class Slow(NodeSets):
        def fold(self, names: Iterable[str]) -> str:
            clock.now_s += 0.9
            return super().fold(names)

    of, root = Turns(), Root("r", RootState(), 1, Slow())
    root.spending = of.charged
    root.received(message("below", {"add": ["n1"], "sessions": {"n1": 1 << 20}}), 1, 1)
    asked = asks("ann", 1, role)
    head = {**asked.head, "op": "status", "nodes": "n1", "timeout_ms": 1}
    assert of.take(asked)
    with of.spending(asked):
        root.received(message("request", head, b"{}"), 2, 2)
    assert of.take(asks("ann", 2, role))
    effects = root.tick(10**12, 10**12)
    assert [e.kind for e in effects if isinstance(e, Down)] == ["drop", "result"]
    assert of.take(asks("ann", 3, role)) is not waits and of.take(asks("bob", 1))


def test_an_administrator_does_not_wait_for_a_viewer_s_node_sets(kit: Hostile) -> None:
    """Each set, of a few characters, took the root's loop for up to a second: those of all connections of one key came
    before the administrator's."""
    viewers, admin = [kit.person("view") for _ in range(15)], kit.person("adm")
    for id_ in range(1, 9):
        for at, sock in enumerate(viewers):
            kit.request(sock, "nodes", f"m{at}x{id_}x[0-9999]", 120_000, id_)
    poller = zmq.Poller()
    for sock in viewers:
        poller.register(sock, zmq.POLLIN)
    assert poller.poll(20_000), "the viewer's requests have come"
    kit.request(admin, "nodes", id_=99)
    assert admin.poll(60_000)
    kit.processes["root1"].send_signal(
        signal.SIGSTOP
    )  # what it answers while this process waits for its turn, is later
    try:
        assert kit.result(admin, 60).head["exit"] == 0
        answered = 0
        for sock in viewers:
            while sock.poll(0):
                answered += wire.decode(sock.recv()).kind == "result"
    finally:
        kit.processes["root1"].send_signal(signal.SIGCONT)
    assert answered < 8 * len(viewers) // 2, "he came before most of them"
