"""One node whose records the root cannot take costs the others nothing: its own wait, and say so."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pact.core.records import GENESIS, seal
from pact.core.root.log import RootState
from pact.core.root.root import Root
from pact.core.root.term import Commit, Down
from pact.core.tree import wire
from pact.core.tree.directory import Peer
from pact.core.tree.outbox import Outbox, Read, Up
from pact.core.tree.relay import Relay, ToChildren
from pact.model import NS_PER_S
from pact.sim.cluster import CommaSets

CREDIT = 1 << 20


class Journal:
    """A node's records; ``fork`` begins another history after a record, as a restored disk does."""

    def __init__(self, node: str) -> None:
        self.node, self.lines, self.hash, self.incarnation = node, [], GENESIS, ""

    def write(self, count: int, pad: str = "") -> None:
        for _ in range(count):
            record, body = seal(
                len(self.lines), self.hash, "2026-01-01T00:00:00Z", 0, self.node, "denied", {}, {"pad": pad}
            )
            self.hash = record.hash
            self.incarnation = self.incarnation or record.hash[:16]
            self.lines.append(body[:-1] + b',"hash":"' + record.hash.encode() + b'"}\n')


class Line:
    """A root, one aggregator below it, nodes below that; messages arrive at once."""

    def __init__(self, *nodes: str) -> None:
        self.t_ns = NS_PER_S
        self.root = Root("root", RootState(), 1, CommaSets())
        self.relay = Relay("agg")
        self.journals = {n: Journal(n) for n in nodes}
        self.boxes: dict[str, Outbox] = {}
        self.sent = 0
        self.perform(self.root.start(self.t_ns, 0, "boot", 0))
        self.relay.from_parent(
            wire.message("welcome", {"v": 1, "name": "root", "path": ["root"], "fence": 1, "credit": CREDIT}), self.t_ns
        )

    def join(self, name: str, acked: int = -1) -> None:
        journal = self.journals[name]
        box = self.boxes[name] = Outbox(name, journal.incarnation, newest=len(journal.lines) - 1, acked=acked)
        hello = {"v": 1, "role": "node", "name": name, "session": 1 << 20}
        self.relay.received(name.encode(), Peer(name, "node", name), wire.message("hello", hello), self.t_ns)
        self.upward(name, box.welcomed(CREDIT, self.t_ns))

    def upward(self, name: str, work: list[Any]) -> None:
        box = self.boxes[name]
        while work:
            one = work.pop(0)
            if isinstance(one, Read):
                lines = self.journals[name].lines[one.first : one.first + one.limit]
                work = [*box.rows(one.first, lines, self.t_ns), *work]
            elif isinstance(one, Up):
                self.sent += len(one.body)
                message = wire.message(one.kind, one.head, one.body)
                self.relay.received(name.encode(), Peer(name, "node", name), message, self.t_ns)

    def perform(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Commit):
                self.perform(self.root.durable(effect.first, effect.count, self.t_ns, 0))
            elif isinstance(effect, Down):
                out = self.relay.from_parent(wire.message(effect.kind, effect.head, effect.body), self.t_ns)
                self.down(out)

    def down(self, out: list[Any]) -> None:
        for one in out:
            if isinstance(one, ToChildren) and (message := wire.decode(one.frame)).kind == "ack":
                for node, incarnation, seq, rewind in message.head["cursors"]:
                    self.upward(node, list(self.boxes[node].acknowledged(incarnation, seq, rewind, self.t_ns)))

    def run(self, seconds: float) -> None:
        ends = self.t_ns + int(seconds * NS_PER_S)
        while self.t_ns < ends:
            self.t_ns += NS_PER_S // 20
            for name, box in self.boxes.items():
                self.upward(name, list(box.tick(self.t_ns)))
                self.relay.received(name.encode(), Peer(name, "node", name), wire.message("beat", {}), self.t_ns)
            for effect in self.relay.tick(self.t_ns):
                assert isinstance(effect, ToChildren | tuple)
            for up in list(self.relay.flush(self.t_ns)):
                if isinstance(up, Up):
                    self.perform(self.root.received(wire.message(up.kind, up.head, up.body), self.t_ns, 0))
            self.perform(self.root.tick(self.t_ns, 0))

    def cursor(self, node: str) -> int:
        cursor = self.root.state.cursors.get(node)
        return -1 if cursor is None else cursor.seq


@pytest.mark.invariant("T5", "T9")
def test_nodes_whose_disks_were_restored_do_not_stop_their_neighbours() -> None:
    restored_ones = [f"r{i}" for i in range(20)]
    line = Line("n2", *restored_ones)
    for name in restored_ones:
        line.journals[name].write(10)
        line.join(name)
    line.run(2)
    assert {line.cursor(name) for name in restored_ones} == {9}
    for name in restored_ones:  # the same beginning, another history: a machine from yesterday's image
        old, restored = line.journals[name], Journal(name)
        restored.lines, restored.incarnation = old.lines[:5], old.incarnation
        restored.hash = old.lines[4].rpartition(b'"hash":"')[2][:64].decode()
        restored.write(100, "x" * 400)
        line.journals[name] = restored
        line.join(name, acked=4)
    line.run(2)
    line.journals["n2"].write(100)
    line.join("n2")
    line.run(10)
    assert line.cursor("n2") == 99, "its neighbour's records are at the root"
    assert {line.cursor(name) for name in restored_ones} == {9} and line.root.counters.refused
    before = line.sent
    line.run(600)
    assert line.sent - before < 40 << 20, "and they do not send the same for ever at full speed"


@pytest.mark.invariant("T5")
def test_a_node_that_sends_beyond_its_credit_does_not_fill_the_buffer_of_all() -> None:
    line = Line("n1", "n2")
    line.journals["n1"].write(1)
    line.journals["n2"].write(3)
    line.join("n1")
    line.run(1)
    at = 1
    for _ in range(2_000):
        body = b"x" * 65_000 + b"\n"
        message = wire.message("events", {"batches": [["n1", line.journals["n1"].incarnation, at, 1, len(body)]]}, body)
        line.relay.received(b"n1", Peer("n1", "node", "n1"), message, line.t_ns)
        at += 1
    assert line.relay.backlog.bytes < 4 << 20
    line.join("n2")
    line.run(5)
    assert line.cursor("n2") == 2


@pytest.mark.invariant("T5")
def test_the_roots_buffer_is_empty_when_nothing_waits() -> None:
    """A byte too many counted with each record, and after some hours nothing more would be taken."""
    line = Line("n1")
    line.journals["n1"].write(500)
    line.join("n1")
    line.run(5)
    assert line.cursor("n1") == 499
    assert line.root._waiting_bytes == 0


@pytest.mark.invariant("K2")
@pytest.mark.parametrize(
    "wrong",
    [
        {"hash": "a" * 60_000},
        {"hash": "A" * 64},
        {"type": "heads"},
        {"time": "x" * 10_000},
        {"data": []},
        {"actor": "me"},
        {"seq": 1},
        {"seq": 0.0},
        {"prev": ""},
        {"node": "n2"},
    ],
)
def test_a_record_that_is_none_is_not_taken(wrong: dict[str, Any]) -> None:
    line = Line("n1")
    record = {
        "v": 1,
        "seq": 0,
        "prev": GENESIS,
        "hash": "ab" * 32,
        "time": "2026-01-01T00:00:00Z",
        "node": "n1",
        "type": "denied",
        "actor": {},
        "data": {},
        **wrong,
    }
    journal = line.journals["n1"]
    journal.lines, journal.incarnation = [orjson.dumps(record) + b"\n"], str(record["hash"])[:16]
    line.join("n1")
    line.run(2)
    assert line.cursor("n1") == -1


def test_a_node_cannot_invent_types_without_end() -> None:
    line = Line("n1")
    journal = line.journals["n1"]
    for i in range(600):
        word = "t" + "".join(chr(97 + i // 26**k % 26) for k in range(3))
        hash_ = f"{i + 1:064x}"
        record = {"v": 1, "seq": i, "prev": journal.hash, "hash": hash_, "time": "t", "node": "n1", "type": word}
        journal.lines.append(orjson.dumps({**record, "actor": {}, "data": {}}) + b"\n")
        journal.hash = hash_
    journal.incarnation = f"{1:064x}"[:16]
    line.join("n1")
    line.run(20)
    assert 100 < len(line.root.state.last) <= 260


@pytest.mark.invariant("K2")
def test_two_machines_with_one_key_take_turns_and_nothing_is_recorded_twice() -> None:
    """A cloned image: each hello of one drives the other out, again and again."""
    line = Line("n1")
    one, other = Journal("n1"), Journal("n1")
    one.write(300, "a")
    other.write(300, "b")
    for turn in range(8):
        line.journals["n1"] = one if turn % 2 == 0 else other
        if turn == 4:
            line.root.state = RootState.from_bytes(line.root.state.to_bytes())
        line.join("n1")
        line.run(3)
    assert line.root.state.gseq == 600, "the root's own first record, and each of the others once"
    one.write(10)
    line.journals["n1"] = one
    line.join("n1")
    line.run(3)
    assert line.root.state.gseq == 610 and line.boxes["n1"].acked == 309
