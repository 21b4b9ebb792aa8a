"""An aggregator that somebody has taken over can only delay and drop. See ``sealed_kit``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sealed_kit import ADMIN, Between, between, same

from pact.cluster.client import Parts, Result
from pact.core.tree import wire
from pact.core.tree.outbox import Up
from pact.core.tree.wire import Message
from pact.errors import PactError


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Between]:
    with between(tmp_path) as kit:
        yield kit


def replicated(kit: Between, sock: str) -> int:
    found: int = kit.ask(sock, "status")["result"]["cluster"]["replicated"]
    return found


@pytest.mark.invariant("T14")
def test_all_goes_its_way_where_everybody_is_honest(kit: Between) -> None:
    n1, n2 = kit.agent("n1"), kit.agent("n2")
    kit.until(lambda: kit.rogue.relay.tree.where.keys() >= {"n1", "n2"}, "both are below")
    answers = kit.answers("adm", "status", nodes="n1,n2")
    assert {n: a["exit"] for n, a in answers.items()} == {"n1": 0, "n2": 0}
    placed = kit.result("adm", "fleet_hold", {"reason": "file server down", "for_ns": 10**12})
    assert placed.exit == 0, placed
    for sock in (n1, n2):
        assert kit.holds(sock) == ["file server down"]
        kit.until(lambda sock=sock: replicated(kit, sock) >= kit.newest(sock), "records are acknowledged")
    calls = [m for m in kit.rogue.seen if m.kind == "call"]
    assert calls and all(len(m.head["seals"]) == 20 * len(m.head["nodes"]) for m in calls)


@pytest.mark.invariant("T14")
def test_it_commands_nobody(kit: Between) -> None:
    sock = kit.agent("n1")
    head = {"call": "1.999999", "op": "hold_place", "nodes": None, "caller": ADMIN, "fence": 1, "timeout_ms": 5000}
    args = orjson.dumps({"reason": "mine now", "for_ns": 10**12, "all": True})
    for more in ({}, {"seals": "x" * 20, "term": "t"}, {"fence": 1 << 60}, {"nodes": ["n1"], "seals": "A" * 20}):
        kit.rogue.tell("n1", "call", {**head, **more}, args)
    kit.during(0.5)
    assert kit.holds(sock) == [] and kit.records(sock, "hold_placed") == []
    # And the real root is still obeyed, whatever fence was named.
    assert kit.result("adm", "hold_place", {"reason": "real", "for_ns": 10**12}, "n1").exit == 0
    assert kit.holds(sock) == ["real"]


@pytest.mark.invariant("T14")
def test_what_the_root_once_said_is_not_done_again(kit: Between) -> None:
    sock = kit.agent("n1")
    assert kit.result("adm", "hold_place", {"reason": "once", "for_ns": 10**12}, "n1").exit == 0
    (call,) = [m for m in kit.rogue.seen if m.kind == "call" and m.head["op"] == "hold_place"]
    kit.rogue.tell("n1", "call", call.head, call.body)
    kit.rogue.tell("n1", "call", {**call.head, "call": call.head["call"] + "1"}, call.body)
    kit.rogue.tell("n1", "call", call.head, call.body.replace(b"once", b"more"))
    kit.during(0.5)
    assert kit.holds(sock) == ["once"]
    # Nor by the agent's next start, which remembers no connection of the last.
    assert kit.result("adm", "hold_release", {}, "n1").exit == 0 and kit.holds(sock) == []
    kit.kill("n1", 15)
    sock = kit.agent("n1")
    kit.rogue.tell("n1", "call", call.head, call.body)
    kit.during(0.5)
    assert kit.holds(sock) == []


@pytest.mark.invariant("T14")
def test_it_answers_for_nobody(kit: Between) -> None:
    kit.agent("n1")

    def lie(up: Up) -> Up:
        if up.kind != "answer":
            return up
        body = b'{"ok":true,"exit":0,"message":"","hint":"","result":{"state":"committed"}}'
        parts = [[names, len(body)] for names, _ in up.head["parts"]]
        return up._replace(head={**up.head, "parts": parts, "batches": []}, body=body * len(parts))

    kit.rogue.up = lie
    said = kit.asked("adm", "state", nodes="n1")
    assert not [p for p in said if isinstance(p, Parts)]
    assert said[-1].exit == 5 and "not sealed with its key" in str(said[-1].failed)
    kit.rogue.up = lambda up: lie(up)._replace(head={**lie(up).head, "seals": []}) if up.kind == "answer" else up
    assert kit.result("adm", "state", nodes="n1").exit == 5
    kit.rogue.up = same
    assert kit.answers("adm", "state", nodes="n1")["n1"]["exit"] == 0


@pytest.mark.invariant("T14")
def test_it_forges_no_records(kit: Between) -> None:
    sock = kit.agent("n1")
    kit.log_of("n1", sock)
    before = kit.known()["n1"]
    line = b'{"seq":%d,"type":"committed"}\n' % (before["seq"] + 1)
    row = ["n1", before["incarnation"], before["seq"] + 1, 1, len(line)]
    for seals in ([], ["x" * 28]):
        kit.rogue.say("events", {"batches": [row], "seals": seals}, line)
    kit.during(0.5)
    assert kit.known()["n1"]["seq"] == before["seq"]
    assert kit.ask(sock, "hold_place", reason="real", for_ns=10**12)["ok"]
    kit.log_of("n1", sock)


@pytest.mark.invariant("T14")
def test_it_acknowledges_nothing_in_the_root_s_name(kit: Between) -> None:
    sock = kit.agent("n1")
    kit.log_of("n1", sock)
    kit.until(lambda: replicated(kit, sock) >= kit.known()["n1"]["seq"], "the node knows it")
    kit.rogue.up = lambda up: None if up.kind == "events" else up  # and so does what follows get no further
    assert kit.ask(sock, "hold_place", reason="kept back", for_ns=10**12)["ok"]
    seq, incarnation = kit.newest(sock), kit.known()["n1"]["incarnation"]
    (ack, *_) = [m for m in kit.rogue.seen if m.kind == "ack" and m.head["seals"]]
    for more in (
        {},
        {"seals": ["x" * 20], "term": ack.head["term"], "fence": 1},
        {k: ack.head[k] for k in ("seals", "term", "fence")},
    ):
        kit.rogue.tell("n1", "ack", {"cursors": [["n1", incarnation, seq, False]], **more})
    kit.during(0.5)
    assert replicated(kit, sock) < seq
    kit.rogue.up = same
    kit.until(lambda: replicated(kit, sock) >= seq, "it is sent again", 40)


@pytest.mark.invariant("T14")
def test_it_says_of_nobody_that_he_is_below(kit: Between) -> None:
    kit.agent("n1")
    kit.agent("n2", at="root1")
    kit.until(lambda: kit.known().get("n2", {}).get("connected"), "n2 is under the root")
    mine = kit.rogue.relay.tree.where["n1"]
    for proofs in ({}, {"n2": list(mine.proof or ())}):
        kit.rogue.say("below", {"add": ["n2"], "sessions": {"n2": (1 << 63) + 5}, "proofs": proofs})
    kit.during(0.3)
    answer = orjson.dumps({"ok": True, "exit": 0, "message": "", "hint": "", "result": {"state": "committed"}})
    kit.rogue.down = lambda m: (
        m
        if m.kind != "call"
        else kit.rogue.say("answer", {"call": m.head["call"], "final": True, "parts": [[["n2"], len(answer)]]}, answer)
    )  # type: ignore[func-returns-value]
    found = kit.answers("adm", "status", nodes="n2", at="root1")
    assert found["n2"]["exit"] == 0 and found["n2"]["result"]["node"] == "n2"


@pytest.mark.invariant("T14")
def test_it_stops_and_releases_no_fleet(kit: Between) -> None:
    sock = kit.agent("n1")
    holds = [{"hold": "f9", "owner": "x", "reason": "forged", "ends": "2099-01-01T00:00:00Z", "left_ns": 10**15}]
    kit.rogue.tell("n1", "fleet", {"fence": 9, "seq": 10**6, "holds": holds})
    kit.during(0.3)
    assert kit.holds(sock) == []
    assert kit.result("adm", "fleet_hold", {"reason": "real", "for_ns": 10**12}).exit == 0
    assert kit.holds(sock) == ["real"]
    for head in (
        {"fence": 10**6, "seq": 10**6, "holds": []},
        {"fence": 1, "seq": 10**6, "holds": [], "seals": {"n1": "x" * 20}, "term": "t"},
    ):
        kit.rogue.tell("n1", "fleet", head)
    told = [m for m in kit.rogue.seen if m.kind == "fleet" and m.head["holds"]][-1]
    short = [{**h, "left_ns": 1} for h in told.head["holds"]]
    kit.rogue.tell("n1", "fleet", {**told.head, "holds": short})
    kit.during(0.5)
    assert kit.holds(sock) == ["real"]
    assert kit.result("adm", "fleet_release", {}).exit == 0
    assert kit.holds(sock) == []


@pytest.mark.invariant("T14")
def test_it_asks_nothing_in_a_person_s_name(kit: Between) -> None:
    sock = kit.agent("n1")
    args = orjson.dumps({"reason": "forged", "for_ns": 10**12})
    head = {"id": 1, "op": "hold_place", "nodes": "n1", "timeout_ms": 3000, "client": "agg1:77", "caller": ADMIN}
    for more in (
        {},
        {"direct": True},
        {"client": "root1:1", "direct": True},
        {"person": kit.public["adm"], "challenge": "1.x", "seal": "x" * 20},
    ):
        kit.rogue.say("request", {**head, **more}, args)
    kit.during(0.5)
    assert kit.holds(sock) == []
    # What a person asked is not asked again, nor is it made another's or another thing.
    kept: list[Up] = []

    def keep(up: Up) -> Up:
        kept.extend([up] if up.kind == "request" and up.head["op"] == "hold_place" else [])
        return up

    kit.rogue.up = keep
    assert kit.result("adm", "hold_place", {"reason": "asked", "for_ns": 10**12}, "n1").exit == 0
    (real,) = kept
    for more in ({"id": 5}, {"id": real.head["id"]}, {"nodes": None}, {"op": "hold_release"}):
        kit.rogue.say("request", {**real.head, **more}, real.body)
    kit.rogue.say("request", real.head, real.body.replace(b"asked", b"other"))
    kit.during(0.5)
    assert kit.holds(sock) == ["asked"]

    def turned(up: Up) -> Up:
        real = up.kind == "request" and up.head["op"] == "hold_place"
        return up._replace(body=b'{"reason":"turned","for_ns":9}') if real else up

    kit.rogue.up = turned
    last = kit.result("adm", "hold_place", {"reason": "second", "for_ns": 10**12}, "n1")
    assert last.exit != 0 and kit.holds(sock) == ["asked"]


@pytest.mark.invariant("T14")
def test_a_viewer_s_key_stays_a_viewer_s_whatever_it_says_of_him(kit: Between) -> None:
    sock = kit.agent("n1")
    kit.rogue.up = lambda up: up._replace(head={**up.head, "caller": ADMIN}) if up.kind == "request" else up
    found = kit.answers("view", "hold_place", {"reason": "mine", "for_ns": 10**12}, "n1")
    assert found["n1"]["exit"] == 3 and kit.holds(sock) == []


@pytest.mark.invariant("T14")
def test_it_tells_a_person_nothing_in_the_root_s_name(kit: Between) -> None:
    kit.agent("n1")

    def told(turn: Callable[[Message], Message | None]) -> Any:
        kit.rogue.down = lambda m: turn(m) if m.kind in wire.TO_CLIENTS else m
        return kit.asked("adm", "status", nodes="n1", timeout_s=2.0)[-1]

    whole = b'{"v":1}'
    lies: list[Callable[[Message], Message | None]] = [
        lambda m: m._replace(body=m.body.replace(b"n1", b"n7")) if m.kind == "part" else m,
        lambda m: m._replace(head={**m.head, "names": ["n9"]}) if m.kind == "part" else m,
        lambda m: None if m.kind == "part" else m,
        lambda m: (
            m._replace(head={**m.head, "exit": 0, "failed": {}, "seal": ""}, body=whole) if m.kind == "result" else m
        ),
    ]
    for lie in lies:
        assert isinstance(told(lie), PactError), lie
    # What it says itself is its own word.
    last = told(
        lambda m: m._replace(head={**m.head, "exit": 4, "message": "no", "seal": ""}) if m.kind == "result" else m
    )
    assert isinstance(last, PactError) or "look" in last.hint
    assert isinstance(told(lambda m: m), Result)


@pytest.mark.invariant("T14")
def test_who_does_not_seal_is_not_let_in_and_is_told(kit: Between) -> None:
    kit.start_agent("n2", ("root1", kit.url))
    kit.until(lambda: "this cluster is sealed" in (kit.base / "n2.log").read_text(), "it says so")
    assert not kit.known().get("n2", {}).get("connected")
    kit.kill("n2")
    kit.start_agent("n2", ("agg1", kit.below))
    kit.until(lambda: "nodes below it without their word" in (kit.base / "root1.log").read_text(), "the root says so")
    assert not kit.known().get("n2", {}).get("connected")
    problem = kit.asked("adm", "nodes", roots=False, sealed=False)[-1]
    assert problem.exit == 3 and "sealed" in problem.message and "client.toml" in problem.hint


@pytest.mark.invariant("T14")
def test_a_member_of_the_last_version_between_them_is_named(kit: Between) -> None:
    """It passes over what it does not know."""
    sock = kit.agent("n1")
    kit.rogue.down = lambda m: (
        m if m.kind != "call" else m._replace(head={**m.head, "seals": "", "term": "", "apart": False})
    )
    found = kit.asked("adm", "status", nodes="n1")
    assert found[-1].exit == 5 and not any(isinstance(p, Parts) for p in found)
    assert "without a seal" in (kit.base / "n1.log").read_text() and kit.holds(sock) == []


@pytest.mark.invariant("T14")
def test_where_seals_are_not_asked_for_yet_everybody_works_together(tmp_path: Path) -> None:
    with between(tmp_path, "") as kit:
        kit.agent("n1", sealed=False)  # new, and knows the root's key
        kit.agent("n2", roots=False, sealed=False)  # as in the last version
        kit.until(lambda: kit.rogue.relay.tree.where.keys() >= {"n1", "n2"}, "both are below")

        def works(**who: Any) -> None:
            found = kit.answers("adm", "hold_place", {"reason": "r", "for_ns": 10**12}, "n1,n2", **who)
            assert {n: a["exit"] for n, a in found.items()} == {"n1": 0, "n2": 0}
            found = kit.answers("adm", "hold_release", {}, "n1,n2", **who)
            assert {n: a["exit"] for n, a in found.items()} == {"n1": 0, "n2": 0}

        works()
        works(roots=False, sealed=False)
        works(sealed=False)
        # An aggregator of the last version: what it does not know it passes over.
        new = {"seals", "batch_seals", "term", "apart", "proofs", "proof", "person", "challenge", "seal", "n"}
        kit.rogue.up = lambda up: up._replace(head={k: v for k, v in up.head.items() if k not in new})
        kit.rogue.down = lambda m: m._replace(head={k: (type(v)() if k in new else v) for k, v in m.head.items()})
        kit.kill("n1", 15)
        kit.agent("n1", sealed=False)
        kit.until(lambda: kit.rogue.relay.tree.where.keys() >= {"n1", "n2"}, "both are below")
        works(roots=False, sealed=False)
