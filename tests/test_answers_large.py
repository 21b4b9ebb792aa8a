"""What the root says of thousands of nodes always fits a message, whatever the nodes say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pytest
from public_root import Chain

from pact.cluster.nodesets import NodeSets
from pact.core.root.log import RootState
from pact.core.root.root import Root
from pact.core.root.term import Commit, Down, Effect, Note
from pact.core.tree import wire
from pact.core.tree.directory import Peer
from pact.core.tree.relay import Relay, ToChildren
from pact.core.tree.wire import Message, message
from pact.model import NS_PER_S, Holder

CALLER = {"user": "a", "role": "admin", "via": "cluster"}
MANY = 4_000
DEEP = b"[" * 300 + b"]" * 300  # the library reads it, and writes nothing that deep


def ok(**result: Any) -> dict[str, Any]:
    return {"ok": True, "exit": 0, "message": "", "hint": "", "result": result}


def holder(name: str, i: int) -> dict[str, Any]:
    return Holder(
        "mount:/scratch",
        10_000 + i,
        "fd",
        "/scratch/alice/run/out.dat",
        1000,
        "alice",
        f"/sw/bin/vasp_std -in INCAR.{name} -out OUT",
        "/slurm/uid_1000/job_1/step_0",
    ).to_json()


class Fleet:
    """A root whose nodes are played here, and the relay that encodes what it says to a client."""

    def __init__(self, count: int) -> None:
        self.names = [f"node{i:04d}" for i in range(count)]
        self.root = Root("r", RootState(), 7, NodeSets())
        self.out: list[Down] = []
        self.relay = Relay("r")
        self.relay.from_parent(message("welcome", {"v": 1, "name": "r", "path": [], "fence": 7, "credit": 1}), 0)
        hello = {"v": 1, "role": "client", "name": "a", "session": 1}
        self.relay.received(b"x", Peer("a", "admin", "K"), wire.decode(wire.encode("hello", hello)), 0)
        self.perform(self.root.start(1, 1, "b", 0))
        self.perform(self.root.received(message("below", {"add": self.names}), 2, 2))

    def perform(self, effects: Iterable[Effect]) -> None:
        for e in effects:
            if isinstance(e, Commit):
                self.perform(self.root.durable(e.first, e.count, self.root.t_ns, 1))
            elif isinstance(e, Down):
                self.out.append(e)

    def ask(self, op: str, nodes: str | None = None, role: str = "admin", **args: Any) -> None:
        head = {"id": 1, "op": op, "nodes": nodes, "client": "r:1", "caller": {**CALLER, "role": role}}
        self.perform(self.root.received(message("request", head, orjson.dumps(args)), 4, 4))

    def answer(self, op: str, make: Callable[[str], dict[str, Any]]) -> None:
        for e in [e for e in self.out if e.kind == "call" and e.head["op"] == op]:
            self.out.remove(e)
            bodies = [orjson.dumps(make(n)) for n in e.head["nodes"]]
            parts = [[[n], len(b)] for n, b in zip(e.head["nodes"], bodies, strict=True)]
            head = {"call": e.head["call"], "final": True, "parts": parts, "lost": []}
            self.perform(self.root.received(message("answer", head, b"".join(bodies)), 3, 3))

    def heard(self) -> Message:
        """The last result, as it reaches the client."""
        e = [e for e in self.out if e.kind == "result"][-1]
        (effect,) = self.relay.from_parent(message(e.kind, e.head, e.body), 5)
        assert isinstance(effect, ToChildren) and self.relay.unsaid == 0
        return wire.decode(effect.frame)

    def begin(self, **resources: Any) -> None:
        self.ask("apply", f"node[0000-{len(self.names) - 1:04d}]", resources=resources or {"mount:/scratch": {}})
        self.answer("group_check", lambda n: ok(changes=1, magnitude_n=1, window_ns=900 * NS_PER_S))
        self.answer("group_apply", lambda n: ok())

    def blocked(self, why: Callable[[str], str], holders: Callable[[str], list[Any]]) -> Message:
        self.ask("group_rollback", group="g1")
        self.answer("group_vote", lambda n: ok(vote="no", why=why(n), holders=holders(n)))
        self.answer("group_decide", lambda n: ok(done=True))
        return self.heard()


@pytest.mark.invariant("T13")
def test_thousands_of_members_with_consumers_are_shown_in_one_message() -> None:
    fleet = Fleet(MANY)
    fleet.begin()
    said = fleet.blocked(lambda n: f"used by vasp[1] on {n}", lambda n: [holder(n, i) for i in range(20)])
    assert said.head["exit"] == 10
    fleet.ask("groups")
    (group,) = orjson.loads(fleet.heard().body)["groups"]
    assert len(group["blocked"]) == MANY, "everybody who is in the way is named"
    full = [b for b in group["blocked"].values() if b["holders"]]
    assert len(full) >= 50 and len(full[0]["holders"]) == 20
    assert all(len(b["holders"]) == 20 or b["more"] == 20 for b in group["blocked"].values())


@pytest.mark.invariant("T13")
@pytest.mark.parametrize(
    "said",
    [
        b'[{"a":[' + b",".join([b"1E15"] * 500_000) + b"]}]",
        b'[{"pid":' + DEEP + b',"command":{"x":' + DEEP + b"}}]",
        b'[{"command":"' + b"x" * 3_000_000 + b'"}]',
        b'["x",null,1]',
        b'{"a":1}',
        b"[" + b",".join([b'{"pid":1,"user":"alice"}'] * 10_000) + b"]",
    ],
)
def test_a_node_may_name_its_consumers_as_it_likes(said: bytes) -> None:
    fleet = Fleet(3)
    fleet.begin()
    fleet.ask("group_rollback", group="g1")
    (call,) = [e for e in fleet.out if e.kind == "call" and e.head["op"] == "group_vote"]
    body = b'{"ok":true,"exit":0,"result":{"vote":"no","why":"in use","holders":' + said + b"}}"
    head = {"call": call.head["call"], "final": True, "parts": [[fleet.names, len(body)]], "lost": []}
    fleet.perform(fleet.root.received(message("answer", head, body), 3, 3))
    fleet.answer("group_decide", lambda n: ok(done=True))
    result = fleet.heard()
    assert result.head["exit"] in (1, 10) and len(result.body) < 100_000
    blocked = orjson.loads(result.body)["blocked"]
    assert all(isinstance(v, str | int | None) for b in blocked.values() for h in b["holders"] for v in h.values())


def test_reasons_that_differ_on_every_node_fit_too() -> None:
    fleet = Fleet(MANY)
    fleet.begin()
    said = fleet.blocked(lambda n: f"{n}: " + "\x01" * 3_900, lambda n: [])
    named = [k for k, why in said.head["failed"].items() if "other reasons" in why]
    assert said.head["exit"] == 1 and len(said.head["failed"]) > 10 and named


def test_a_long_list_of_groups_is_cut_and_says_so() -> None:
    fleet = Fleet(1)
    for i in range(40):
        fleet.begin(**{f"file:/{i}/{n:06d}/{'x' * 480}": {} for n in range(1_000)})
    fleet.ask("groups", all=True)
    said = fleet.heard()
    found = orjson.loads(said.body)
    assert found["truncated"] and "left out" in said.head["message"] and said.head["exit"] == 0
    names = [g["group"] for g in found["groups"]]
    assert len(names) > 10 and names[-1] == "g40", "the newest are shown"


@pytest.mark.invariant("T13")
def test_a_node_cannot_flood_the_log_and_no_count_is_lost() -> None:
    root = Root("r", RootState(), 7, NodeSets())
    notes: list[str] = []
    for i in range(2_000):
        line = orjson.dumps(
            {
                "seq": i + 5,
                "prev": "0" * 64,
                "hash": "0" * 64,
                "node": f"x{i}" * 100,
                "type": "a",
                "time": "t",
                "actor": {},
                "data": {},
            }
        )
        batch = message("events", {"batches": [["n1", "", 0, 1, len(line)]]}, line)
        notes += [e.text for e in root.received(batch, i, i) if isinstance(e, Note)]
    assert len(notes) <= 12 and max(map(len, notes)) < 400 and "n1" in notes[0]
    assert root.counters.refused == {"events": 2_000}, "one reason in the metrics"


@pytest.mark.invariant("T5")
def test_records_that_are_in_the_log_already_are_acknowledged_at_once() -> None:
    fleet = Fleet(1)
    chain = Chain("node0000")
    batch = chain.batch("committed", "committed")
    body = b"".join(line + b"\n" for line in batch.lines)
    sent = message("events", {"batches": [[batch.node, batch.incarnation, 0, 2, len(body)]]}, body)
    for _ in range(2):
        fleet.out.clear()
        fleet.perform(fleet.root.received(sent, 5, 5))
        assert [e.head["cursors"] for e in fleet.out if e.kind == "ack"] == [
            [["node0000", batch.incarnation, 1, False]]
        ]
