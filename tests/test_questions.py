"""Commands of the root's whose nodes go away while they are under way: who comes back soon is asked again."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pact.core.root.questions import ABSENT, LATE, LOST, TRIES_MAX
from pact.core.root.term import AWAY_NS
from pact.core.tree.checks import SESSION_BITS
from pact.model import NS_PER_S, Declared, Owner
from pact.sim.cluster import GONE_NS, Cluster, Net

NAMES = "n0,n1,n2"
STAY_NS = NS_PER_S // 10


def cluster() -> Cluster:
    made = Cluster(1, 3, {"sysctl:x": Declared({"value": "old"})})
    made.advance(3 * NS_PER_S)
    return made


def hold(c: Cluster, timeout_ms: int = 0) -> int:
    """A command that must not be done twice."""
    c.requests += 1
    args = {"reason": "maintenance", "for_ns": 3600 * NS_PER_S}
    c.up(
        c.root,
        "request",
        {
            "id": c.requests,
            "op": "hold_place",
            "nodes": NAMES,
            "timeout_ms": timeout_ms,
            "client": "c",
            "caller": {"user": "alice", "role": "admin", "via": "cluster"},
        },
        orjson.dumps(args),
    )
    return c.requests


def holds(c: Cluster, name: str) -> int:
    return sum(r.type == "hold_placed" for r in c.peers[name].world.journal)


def ended(c: Cluster, n: int) -> tuple[int, dict[str, str]]:
    head, _ = c.results.pop(n)
    return head["exit"], head["failed"]


def below(c: Cluster, name: str, *, gone: bool) -> None:
    c.up(c.root, "below", {"add": [] if gone else [name], "gone": [name] if gone else [], "racks": {}, "sessions": {}})


@pytest.mark.invariant("T6")
def test_a_node_that_moves_while_it_is_asked_is_asked_again_where_it_is_now() -> None:
    c = cluster()
    c.cut("n1")  # its aggregator has died; the root hears of that later
    n = hold(c)
    c.advance(GONE_NS + NS_PER_S)
    assert n not in c.results and holds(c, "n0") == 1 and holds(c, "n1") == 0
    c.mend("n1")
    c.advance(4 * NS_PER_S)
    assert ended(c, n) == (0, {})
    assert [holds(c, name) for name in NAMES.split(",")] == [1, 1, 1]
    assert not c.root.questions.open  # type: ignore[union-attr]


@pytest.mark.invariant("T6")
def test_who_stays_away_is_lost_and_nobody_waits_longer_for_it() -> None:
    c = cluster()
    c.cut("n1")
    n = hold(c)
    c.advance(GONE_NS + AWAY_NS - STAY_NS)
    assert n not in c.results
    c.advance(2 * STAY_NS)
    assert ended(c, n) == (5, {"n1": LOST})
    c.mend("n1")
    c.advance(5 * NS_PER_S)
    assert holds(c, "n1") == 0, "what was said to be lost is not done later"


@pytest.mark.invariant("T6")
def test_a_command_that_begins_while_a_node_moves_waits_for_it() -> None:
    c = cluster()
    c.cut("n1")
    c.advance(GONE_NS + NS_PER_S)
    assert c.root is not None and "n1" not in c.root.nodes
    n = hold(c)
    c.advance(2 * NS_PER_S)
    assert n not in c.results and holds(c, "n0") == 1, "nobody waits for it but who asked"
    c.mend("n1")
    c.advance(4 * NS_PER_S)
    assert ended(c, n) == (0, {}) and holds(c, "n1") == 1


@pytest.mark.invariant("T6")
def test_who_has_been_away_for_long_is_said_to_be_at_once_and_who_stays_away_soon() -> None:
    c = cluster()
    c.advance(AWAY_NS)  # the root's first moments are over
    c.cut("n1")
    c.advance(GONE_NS + AWAY_NS // 2)
    n = hold(c)
    c.advance(AWAY_NS // 2 + 2 * NS_PER_S)
    assert ended(c, n) == (5, {"n1": ABSENT}), "it was never asked: nothing may have been done"
    m = hold(c)
    c.advance(NS_PER_S)
    assert ended(c, m) == (5, {"n1": ABSENT})
    c.mend("n1")
    c.advance(5 * NS_PER_S)
    assert holds(c, "n1") == 0 and holds(c, "n0") == 2


@pytest.mark.invariant("T6")
def test_a_new_root_waits_a_moment_for_nodes_that_it_knows_and_for_no_others() -> None:
    c = cluster()
    c.advance(5 * NS_PER_S)
    c.cut("n1")
    c.crash_root()
    while c.root is None:
        c.advance(NS_PER_S // 10)
    n = c.request("hold_place", {"reason": "r", "for_ns": NS_PER_S * 60}, "n0,n1,n9")
    c.advance(2 * NS_PER_S)
    assert n not in c.results
    c.mend("n1")
    c.advance(4 * NS_PER_S)
    assert ended(c, n) == (5, {"n9": ABSENT}) and holds(c, "n0") == holds(c, "n1") == 1


def test_who_has_answered_may_go() -> None:
    c = cluster()
    n = hold(c)
    c.advance(NS_PER_S)
    assert ended(c, n) == (0, {})
    m = hold(c)
    c.up(
        c.root,
        "answer",
        {
            "call": next(iter(c.root.questions.open)),
            "final": True,
            "lost": [],  # type: ignore[union-attr]
            "parts": [[["n1"], 2]],
        },
        b"{}",
    )
    below(c, "n1", gone=True)
    c.advance(NS_PER_S)
    assert ended(c, m)[0] == 0, "it has gone after its answer"


def test_an_answer_that_comes_from_elsewhere_while_a_node_seems_away_is_its_answer() -> None:
    c = cluster()
    c.cut("n1")
    n = hold(c)
    below(c, "n1", gone=True)
    c.advance(NS_PER_S)
    assert n not in c.results
    (question,) = c.root.questions.open.values()  # type: ignore[union-attr]
    c.up(c.root, "answer", {"call": question.id, "final": True, "lost": ["n1"], "parts": [[["n1"], 2]]}, b"{}")
    assert ended(c, n) == (0, {})


@pytest.mark.invariant("T7")
def test_who_is_here_and_said_to_be_lost_is_asked_again_and_not_for_ever() -> None:
    """It may have come back before its loss was told; or there is no way to bring it the question."""
    c = cluster()
    c.cut("n1")
    n = hold(c)
    (question,) = c.root.questions.open.values()  # type: ignore[union-attr]
    c.advance(NS_PER_S)
    asked = []
    c._call = lambda root, name, head, body: asked.append(name)  # type: ignore[method-assign]
    for times in range(TRIES_MAX + 1):
        assert asked == ["n1"] * times and n not in c.results
        c.up(c.root, "answer", {"call": question.id, "final": True, "lost": ["n1"], "parts": []})
        c.advance(NS_PER_S)
    assert asked == ["n1"] * TRIES_MAX and ended(c, n) == (5, {"n1": LOST})


def test_the_time_of_a_command_ends_for_those_who_are_away_too() -> None:
    c = cluster()
    c.cut("n1")
    c.cut("n2")
    n = hold(c, timeout_ms=8_000)
    below(c, "n1", gone=True)
    c.peers["n2"].session += 1  # nothing is heard of its end
    c.advance(8 * NS_PER_S + STAY_NS)
    assert ended(c, n) == (5, {"n1": LOST, "n2": LATE})


def test_what_is_left_of_the_time_is_what_a_node_gets_that_is_asked_again() -> None:
    c = cluster()
    c.cut("n1")
    hold(c, timeout_ms=30_000)
    below(c, "n1", gone=True)
    c.advance(5 * NS_PER_S)
    heard: list[Any] = []
    c._call = lambda root, name, head, body: heard.append((name, head["timeout_ms"]))  # type: ignore[method-assign]
    below(c, "n1", gone=False)
    c.advance(NS_PER_S)
    assert heard == [("n1", 25_000)]


def test_nobody_is_asked_again_for_somebody_who_listens_no_more() -> None:
    c = cluster()
    c.cut("n1")
    hold(c)
    below(c, "n1", gone=True)
    assert c.root is not None
    said: list[Any] = []
    down = c.root.down
    c.root.down = lambda kind, head, body=b"": (said.append((kind, head)), down(kind, head, body))  # type: ignore
    ((call, question),) = c.root.questions.open.items()
    c.up(c.root, "cancel", {"client": "c", "id": 0})
    assert said == [("drop", {"call": call, "who": question.caller.user})], "each relay bounds them for each person"
    c.mend("n1")
    c.advance(5 * NS_PER_S)
    assert holds(c, "n1") == 0 and not c.root.questions.open


@pytest.mark.invariant("T6", "G3")
@pytest.mark.parametrize("seed", range(40))
def test_nodes_that_come_and_go_do_each_command_once_or_are_named(seed: int) -> None:
    c = Cluster(seed, 5, {"sysctl:x": Declared({"value": "old"})}, net=Net(twice=0.2, delay_ms=1500))
    c.advance(3 * NS_PER_S)
    everybody = ",".join(c.peers)
    rng, asked = c.rng, []
    for _ in range(25):
        name = rng.choice(list(c.peers))
        if c.peers[name].cut:
            c.mend(name)
        elif rng.random() < 0.5:
            c.cut(name)
        if rng.random() < 0.4:
            c.requests += 1
            c.up(
                c.root,
                "request",
                {
                    "id": c.requests,
                    "op": "hold_place",
                    "nodes": everybody,
                    "timeout_ms": 0,
                    "client": "c",
                    "caller": {"user": "alice", "role": "admin", "via": "cluster"},
                },
                orjson.dumps({"reason": f"r{c.requests}", "for_ns": 3600 * NS_PER_S}),
            )
            asked.append(c.requests)
        c.advance(rng.randrange(1, 3 * NS_PER_S))
    for name in c.peers:
        if c.peers[name].cut:
            c.mend(name)
    c.advance(90 * NS_PER_S)
    for n in asked:
        head, _ = c.results[n]
        failed = {name for names in head["failed"] for name in names.split(",")}
        for name, peer in c.peers.items():
            done = [r for r in peer.world.journal if r.type == "hold_placed" and r.data["reason"] == f"r{n}"]
            assert done or name in failed, (n, name, "said to be done, and was not")
            assert len(done) <= 1, (n, name)
    c.check()


@pytest.mark.invariant("T13")
def test_one_person_s_questions_keep_nobody_elses_out_and_never_the_fleet_s_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pact.core.root.questions.QUESTIONS_MAX", 12)
    monkeypatch.setattr("pact.core.root.questions.QUESTIONS_EACH_MAX", 5)
    c = cluster()
    c.cut("n1")
    c.advance(GONE_NS + NS_PER_S)  # it may be back: whoever asks it waits
    for user in ("guest", "eve"):
        for n in [c.request("status", {}, "n1", user, "viewer") for _ in range(9)][5:]:
            assert c.results.pop(n)[0]["exit"] == 1
        assert c.request("status", {}, "n0", user, "viewer") in c.results
    c.request("status", {}, "n1", "ann", "viewer")
    for user in ("mal", "max"):
        for _ in range(5):
            c.request("status", {}, "n1", user, "viewer")
    assert c.results.pop(c.request("status", {}, "n0", "new", "viewer"))[0]["exit"] == 1, (
        "all places of viewers are taken"
    )
    for role in ("ops", "admin"):
        n = c.request("status", {}, "n0", role, role)
        c.advance(NS_PER_S)
        assert c.results[n][0]["exit"] == 0, "and nobody else's"
    n = c.request("fleet_hold", {"reason": "outage", "for_ns": 100 * NS_PER_S}, None, "boss")
    c.advance(4 * NS_PER_S)
    assert c.root is not None and c.root.state.holds, c.results.get(n)


def test_who_needs_many_nodes_that_come_one_by_one_is_taken_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands move to another aggregator: to look at the whole request for each of them would stall the root."""
    c = cluster()
    assert c.root is not None
    names = [f"m{i}" for i in range(300)]
    c.up(c.root, "below", {"add": names, "gone": [], "racks": {}, "sessions": {}})
    c.up(c.root, "below", {"add": [], "gone": names, "racks": {}, "sessions": {}})
    c.request(
        "apply", {"resources": {"sysctl:x": Declared({"value": "new"}).to_json()}, "message": "m"}, ",".join(names)
    )
    taken = list[str]()
    request = c.root.questions.request
    monkeypatch.setattr(
        c.root.questions, "request", lambda head, args, raw: (taken.append(head.op), request(head, args, raw))
    )
    for name in names:
        assert not taken
        below(c, name, gone=False)
    assert taken == ["apply"] and not c.root.questions._later


@pytest.mark.invariant("G5", "T14")
def test_who_only_says_hello_again_is_asked_nothing_about_its_groups() -> None:
    """Every node does so every ten minutes. A member whose answer had been lost was made to apply its group anew, over
    what somebody has changed there since."""
    c = cluster()
    wanted = {"sysctl:x": Declared({"value": "new"}).to_json()}
    c.request("apply", {"resources": wanted, "message": "m"}, NAMES)
    c.advance(3 * NS_PER_S)
    assert c.root is not None
    run, world, session = c.root.groups.runs["g1"], c.peers["n1"].world, c.root.nodes["n1"].session
    run.states["n1"] = "missing: no answer came"
    world.write("sysctl:x", {"value": "another"}, Owner("uid:7", "ann", 7))
    c.advance(3 * NS_PER_S)
    asked, down = list[Any](), c.root.down
    c.root.down = lambda kind, head, body=b"": (asked.append(head.get("op")), down(kind, head, body))[1]  # type: ignore[method-assign]
    c.up(c.root, "below", {"add": ["n1"], "gone": [], "racks": {}, "sessions": {"n1": session + 1}})
    c.advance(3 * NS_PER_S)
    assert asked == [] and world.machine["sysctl:x"] == {"value": "another"}
    c.up(c.root, "below", {"add": ["n1"], "gone": [], "racks": {}, "sessions": {"n1": session + (1 << SESSION_BITS)}})
    c.advance(3 * NS_PER_S)
    assert "group_apply" in asked, "it has started again"
