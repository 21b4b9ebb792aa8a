"""An aggregator that somebody has taken over: it has a key, all words pass through it, and it can only delay and drop.

The root and the agents are real processes; the aggregator between them runs in the test, which turns its words.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from cluster_kit import free_ports
from test_cluster_hostile import Hostile

from pact.cluster import keys
from pact.cluster.aggregator import Aggregator
from pact.cluster.client import Parts, Result, RootClient
from pact.cluster.config import AggregatorConfig
from pact.core import wire
from pact.core.outbox import Up
from pact.core.uplink import Deliver
from pact.core.wire import Message
from pact.errors import PactError

NAMES = {"root1": "aggregator", "agg1": "aggregator", "n1": "node", "n2": "node", "view": "viewer", "adm": "admin"}
SEALED = "sealed = true\n"
ADMIN = {"user": "root", "role": "admin", "via": "cluster"}


def same(x: Any) -> Any:
    return x


class Rogue(Aggregator):
    """Honest until the test says what becomes of what goes up (``up``) and down (``down``): another message, or None."""

    up: Callable[[Up], Up | None] = staticmethod(same)
    down: Callable[[Message], Message | None] = staticmethod(same)
    seen: list[Message]

    def _send_up(self, up: Up, now_ns: int) -> None:
        said = self.up(up)
        if said is not None:
            super()._send_up(said, now_ns)

    def _from_uplink(self, effects: Iterable[Any], now_ns: int) -> None:
        for effect in effects:
            if isinstance(effect, Deliver):
                self.seen.append(effect.message)
                said = self.down(effect.message)
                if said is None:
                    continue
                effect = Deliver(said)
            super()._from_uplink([effect], now_ns)

    def tell(self, name: str, kind: str, head: Mapping[str, Any], body: bytes = b"") -> None:
        """A word of its own to one that is below it."""
        self._send((self.relay.tree.named[name].rid,), wire.encode(kind, head, body), set())

    def say(self, kind: str, head: Mapping[str, Any], body: bytes = b"") -> None:
        """A word of its own to the root."""
        super()._send_up(Up(kind, head, body), time.clock_gettime_ns(time.CLOCK_BOOTTIME))


class Between(Hostile):
    """A root, the rogue below it, and agents below that."""

    rogue: Rogue

    def start_rogue(self) -> None:
        self.below = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        path = self.base / "agg1.toml"
        path.write_text(
            f'[aggregator]\nname = "agg1"\ntree = "{self.below}"\nhttp = ""\nparents = {self.parents(("root1", self.url))}\n'
            f'[keys]\nsecret = "{self.secret("agg1")}"\nauthorized = "{self.authorized}"\n')
        from pact.cluster import config

        settings: AggregatorConfig = config.load(str(path))
        self.rogue = Rogue(settings)
        self.rogue.seen = []
        self.aggregator = self.rogue
        self.until(lambda: self.rogue.relay.rooted, "the rogue is under the root")

    def agent(self, name: str, *, at: str = "agg1", roots: bool = True, sealed: bool = True, base: str = "1h") -> str:
        parent = ("agg1", self.below) if at == "agg1" else ("root1", self.url)
        lines = f'roots = ["{self.public["root1"]}"]\n' if roots else ""
        sock = self.start_agent(name, parent, cluster=lines + (SEALED if sealed else ""), base=base)
        self.until(lambda: Path(sock).exists(), f"{name} starts")
        self.until(lambda: self.ask(sock, "status")["result"]["cluster"]["connected"], f"{name} has a parent")
        return sock

    def asked(self, who: str, op: str, args: Mapping[str, Any] | None = None, nodes: str | None = None, *,
              at: str = "agg1", roots: bool = True, sealed: bool = True, timeout_s: float = 8.0) -> list[Any]:  # fmt: skip
        """What a person's program is told, or the PactError that it shows; the rogue turns meanwhile."""
        out: list[Any] = []
        url = self.below if at == "agg1" else self.url

        def ask() -> None:
            try:
                with RootClient([(url, self.public[at])], keys.load(self.secret(who)), who, timeout_s=timeout_s + 4,
                                roots=[self.public["root1"]] if roots else [], sealed=sealed) as client:  # fmt: skip
                    out.extend(client.ask(op, dict(args or {}), nodes, timeout_s))
            except PactError as exc:
                out.append(exc)

        thread = threading.Thread(target=ask)
        thread.start()
        while thread.is_alive():
            self.turn()
        thread.join()
        return out

    def result(self, *args: Any, **more: Any) -> Result:  # type: ignore[override]
        last = self.asked(*args, **more)[-1]
        assert isinstance(last, Result), last
        return last

    def answers(self, *args: Any, **more: Any) -> dict[str, Any]:
        """Each node's answer."""
        found = self.asked(*args, **more)
        return {n: orjson.loads(p.body) for p in found if isinstance(p, Parts) for n in p.names}

    def known(self) -> dict[str, Any]:
        """The nodes as the root has them, asked at the root itself."""
        rows: dict[str, Any] = self.result("adm", "nodes", at="root1").result["nodes"]
        return rows

    def newest(self, sock: str) -> int:
        cluster = self.ask(sock, "status")["result"]["cluster"]
        return int(cluster["replicated"] + cluster["waiting"])

    def log_of(self, name: str, sock: str) -> None:
        newest = self.newest(sock)
        self.until(lambda: self.known().get(name, {}).get("seq", -1) >= newest, "the root has its records")

    def holds(self, sock: str) -> list[str]:
        return [h["reason"] for h in self.ask(sock, "status")["result"]["holds"]]

    def records(self, sock: str, type_: str) -> list[dict[str, Any]]:
        import socket

        with socket.socket(socket.AF_UNIX) as s:
            s.connect(sock)
            s.sendall(orjson.dumps({"v": 1, "op": "log", "args": {"types": [type_]}}) + b"\n")
            rows = [orjson.loads(line) for line in s.makefile("rb")]
        return [r for r in rows if r.get("type") == type_]


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Between]:
    kit = Between(tmp_path, NAMES)
    kit.start(SEALED)
    kit.start_rogue()
    try:
        yield kit
    finally:
        kit.close()


def replicated(kit: Between, sock: str) -> int:
    found: int = kit.ask(sock, "status")["result"]["cluster"]["replicated"]
    return found


@pytest.mark.invariant("T14")
def test_all_goes_its_way_where_everybody_is_honest(kit: Between) -> None:
    n1, n2 = kit.agent("n1"), kit.agent("n2")
    kit.until(lambda: kit.rogue.relay.tree.where.keys() >= {"n1", "n2"}, "both are below")
    answers = kit.answers("adm", "status", nodes="n1,n2")
    assert {n: a["exit"] for n, a in answers.items()} == {"n1": 0, "n2": 0}
    placed = kit.result("adm", "hold_place", {"reason": "file server down", "for_ns": 3_600_000_000_000, "all": True})
    placed = placed if placed.exit == 0 else kit.result("adm", "fleet_hold", {"reason": "file server down", "for_ns": 10**12})
    assert placed.exit == 0, placed
    kit.until(lambda: replicated(kit, n1) >= 0 and replicated(kit, n2) >= 0, "records are acknowledged")
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
    for more in ({}, {"seals": ["x" * 20], "term": ack.head["term"], "fence": 1}, {k: ack.head[k] for k in ("seals", "term", "fence")}):
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
    kit.rogue.down = lambda m: m if m.kind != "call" else kit.rogue.say("answer", {
        "call": m.head["call"], "final": True, "parts": [[["n2"], len(answer)]]}, answer)  # type: ignore[func-returns-value]
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
    for head in ({"fence": 10**6, "seq": 10**6, "holds": []}, {"fence": 1, "seq": 10**6, "holds": [], "seals": {"n1": "x" * 20}, "term": "t"}):
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
    for more in ({}, {"direct": True}, {"client": "root1:1", "direct": True}, {"person": kit.public["adm"], "challenge": "1.x", "seal": "x" * 20}):
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
        lambda m: m._replace(head={**m.head, "exit": 0, "failed": {}, "seal": ""}, body=whole) if m.kind == "result" else m,
    ]
    for lie in lies:
        assert isinstance(told(lie), PactError), lie
    # What it says itself is its own word.
    last = told(lambda m: m._replace(head={**m.head, "exit": 4, "message": "no", "seal": ""}) if m.kind == "result" else m)
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
    kit.rogue.down = lambda m: m if m.kind != "call" else m._replace(head={**m.head, "seals": "", "term": "", "apart": False})
    found = kit.asked("adm", "status", nodes="n1")
    assert found[-1].exit == 5 and not any(isinstance(p, Parts) for p in found)
    assert "without a seal" in (kit.base / "n1.log").read_text() and kit.holds(sock) == []


@pytest.mark.invariant("T14")
def test_where_seals_are_not_asked_for_yet_everybody_works_together(tmp_path: Path) -> None:
    kit = Between(tmp_path, NAMES)
    kit.start()
    kit.start_rogue()
    try:
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
    finally:
        kit.close()
