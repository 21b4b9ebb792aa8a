"""The root's shell: what other threads and people who look are told is true, and costs the loop little."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from types import SimpleNamespace

import orjson
import pytest
from public_root import Chain

from pact.cluster import page
from pact.cluster.committer import Durable, Elected
from pact.cluster.nodesets import Folded, NodeSets
from pact.cluster.rootpart import RootPart
from pact.cluster.states import States
from pact.cluster.turns import Turns
from pact.core.records import GENESIS
from pact.core.root import payloads
from pact.core.root.log import Cursor, Group, RootState, load
from pact.core.root.root import Root
from pact.core.root.runs import Run
from pact.core.root.term import Commit, Effect, Known
from pact.core.tree.wire import Message, message
from pact.model import Owner


def part_of(root: Root) -> RootPart:
    """Without its threads: the test is its loop."""
    part = RootPart.__new__(RootPart)
    part.root, part.states, part._sets = root, States(), root.sets  # type: ignore[assignment]
    part.trouble = part.damage = ""
    part._away = Folded([])
    part.turns = Turns()
    part.offset_ns = part._states_at_ns = part._fresh_at_ns = 0
    part.oldest = part.commit_ns = 0
    part._applying, part._snapshot = threading.Lock(), None
    return part


class Loop(threading.Thread):
    """A root that takes events of fifty nodes as quickly as it can."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Root("r", RootState(), 1, NodeSets())
        for i in range(3_000):
            self.root.state.cursors[f"m{i}"] = Cursor("i", -1, GENESIS)
        self.part = part_of(self.root)
        self.chains = [Chain(f"n{i}") for i in range(50)]
        self.stop = False
        self.perform(self.root.start(1, 1, "b", 0))

    def perform(self, effects: Iterable[Effect]) -> None:
        for e in effects:
            if isinstance(e, Commit):
                self.perform(self.part._applied(self.root, Durable(e.first, e.count), 2, 2))

    def run(self) -> None:
        while not self.stop:
            for chain in self.chains:
                batch = chain.batch("committed")
                body = b"".join(line + b"\n" for line in batch.lines)
                row = [batch.node, batch.incarnation, batch.first, 1, len(body)]
                self.perform(self.root.received(message("events", {"batches": [row]}, body), 2, 2))


@pytest.mark.invariant("F37")
def test_a_root_does_not_lead_with_a_log_in_which_a_chunk_of_its_own_words_is_damaged() -> None:
    root, chain, chunks = Root("r", RootState(), 1, NodeSets()), Chain("n1"), list[bytes]()

    def perform(effects: Iterable[Effect]) -> None:
        for e in effects:
            if isinstance(e, Commit):
                chunks.append(e.chunk)
                perform(root.durable(e.first, e.count, 2, 2))

    perform(root.start(1, 1, "b", 0))
    for _ in range(3):
        batch = chain.batch("committed")
        body = b"".join(line + b"\n" for line in batch.lines)
        row = [batch.node, batch.incarnation, batch.first, 1, len(body)]
        perform(root.received(message("events", {"batches": [row]}, body), 2, 2))
    part, asked = RootPart.__new__(RootPart), 0
    part.root = None

    def load_again() -> None:
        nonlocal asked
        asked += 1

    part.committer = SimpleNamespace(load_again=load_again)  # type: ignore[assignment]
    for n in (0, len(chunks)):
        if n:  # the root's own words again: of another root, which led in between
            root.record(payloads.NodeForgotten(nodes=["x"]), root.actor())
            perform(root.take_effects())
            batch = chain.batch("committed")
            body = b"".join(line + b"\n" for line in batch.lines)
            row = [batch.node, batch.incarnation, batch.first, 1, len(body)]
            perform(root.received(message("events", {"batches": [row]}, body), 2, 2))
        rotten = chunks[n][:-9] + bytes([chunks[n][-9] ^ 1]) + chunks[n][-8:]
        part.trouble = part._last_failed = ""
        assert not list(part._elected(Elected(2, None, (*chunks[:n], rotten, *chunks[n + 1 :])), 3, 3))
        assert "does not verify" in part.trouble and "backup" in part.trouble and part.root is None
    assert asked == 2, "and it looks again, each time"
    assert load(None, chunks).gseq == root.state.gseq, "as it was it can be used"


@pytest.mark.invariant("V2")
def test_a_snapshot_holds_what_its_number_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made in the replay port's thread while the loop goes on."""
    loop, before = Loop(), sys.getswitchinterval()
    monkeypatch.setattr("pact.cluster.rootpart.SNAPSHOT_S", 0.0)
    sys.setswitchinterval(1e-5)
    loop.start()
    try:
        ends, numbers = time.monotonic() + 2.0, []
        while time.monotonic() < ends:
            found = loop.part._public_snapshot()
            assert found is not None
            said = orjson.loads(found[1])
            assert said["gseq"] == found[0]
            assert sum(n["seq"] + 1 for n in said["nodes"].values()) == found[0] + 1, "each event is one record"
            numbers.append(found[0])
    finally:
        loop.stop = True
        loop.join()
        sys.setswitchinterval(before)
    assert numbers[-1] > numbers[0] and len(numbers) > 20


class CountedSets(NodeSets):
    folds = 0

    def fold(self, names: Iterable[str]) -> str:
        self.folds += 1
        return super().fold(names)


@pytest.mark.invariant("T9")
def test_what_nobody_looks_at_is_not_folded_and_the_page_shows_it_all_the_same() -> None:
    """Once a second, for each open group: fifty milliseconds each would be all that the loop does."""
    sets = CountedSets()
    root = Root("r", RootState(), 1, sets)
    part = part_of(root)
    names = [f"x{i // 512:04d}c{i // 64 % 8}s{i // 4 % 16}n{i % 4}" for i in range(4_000)]
    root.nodes.update(dict.fromkeys(names[1:], Known("", 0, 0)))
    root.state.cursors[names[0]] = Cursor("i", 0, GENESIS)
    for i in range(20):
        gid = f"g{i + 1}"
        root.state.groups[gid] = Group(
            gid, Owner("cluster:alice", "alice"), "why", "x[1-9]", ["file:/a"], 10**9, 10**9, "2026-01-01T00:00:00Z"
        )
        root.groups.runs[gid] = Run(gid, names)
    part.states.heard(names[1:], "drifted")
    before_s = time.process_time()
    shown = part.shown()
    assert time.process_time() - before_s < 0.1 and sets.folds == 0
    assert shown["group_states"] == {"open": 20} and shown["states"]["drifted"][1] == 3_999
    text = page.page({"name": "r", **shown})
    assert names[0] in text and "x[0001-0006]c[0-7]s[0-15]n[0-3]" in text and "g20" in text
    assert b'pact_nodes{state="away"} 1.0' in page.metrics(shown)


S = 10**9


class Alive:
    alive = True


def looking(root: Root) -> RootPart:
    part = part_of(root)
    part.committer = Alive()  # type: ignore[assignment]
    part.config = SimpleNamespace(http="tcp://127.0.0.1:1")  # type: ignore[assignment]
    return part


def counts(part: RootPart) -> dict[str, int]:
    return {state: row[1] for state, row in part.shown()["states"].items()}


def test_the_page_knows_how_the_nodes_of_a_quiet_fleet_are() -> None:
    """Nothing has come in for an hour: the question's time counts from now, not from the last message."""
    root = Root("r", RootState(), 1, NodeSets())
    part = looking(root)
    root.start(1, 1, "b", 0)
    root.received(message("below", {"add": ["n1", "n2", "n3"], "gone": []}), 1, 1)
    (call,) = (m for m in part.tick(3600 * S, 1) if m.kind == "call")
    assert call.head["timeout_ms"] == 15_000
    root.questions.answered(answer(call, ["n1", "n2"], "committed"))
    assert list(part.tick(3601 * S, 1)) == []
    assert counts(part) == {"committed": 2, "unknown": 1}
    root.questions.answered(answer(call, ["n3"], "drifted", untracked=True))
    assert counts(part) == {"committed": 2, "drifted": 1}
    assert b'pact_nodes{state="drifted"} 1.0' in page.metrics(part.shown())
    assert b"pact_nodes_untracked 1.0" in page.metrics(part.shown())
    text = page.page({"name": "r", **part.shown()})
    assert "untracked" in text and "on 1 node: n3" in text
    (call,) = (m for m in part.tick(3616 * S, 1) if m.kind == "call")
    root.questions.answered(answer(call, ["n1", "n2", "n3"], "committed", untracked=1))
    assert part.shown()["untracked"][1] == 0, "a word that no agent says"
    assert "untracked" not in page.page({"name": "r", **part.shown()})


def test_every_connected_node_is_in_one_state_while_nodes_come_and_go() -> None:
    root = Root("r", RootState(), 1, NodeSets())
    part = looking(root)
    root.start(1, 1, "b", 0)
    root.received(message("below", {"add": ["n1", "n2", "n3"], "gone": []}), 1, 1)
    (call,) = (m for m in part.tick(S, 1) if m.kind == "call")
    root.questions.answered(answer(call, ["n1", "n2", "n3"], "committed"))
    root.received(message("below", {"add": ["n4"], "gone": ["n2"]}), 2 * S, 1)
    assert counts(part) == {"committed": 2, "unknown": 1}
    (call,) = (m for m in part.tick(4 * S, 1) if m.kind == "call")
    assert call.head["nodes"] == ["n4"], "soon, and nobody else"
    assert [m for m in part.tick(6 * S, 1) if m.kind == "call"] == [], "it is asked once"
    root.questions.answered(answer(call, ["n4"], "drifted"))
    assert counts(part) == {"committed": 2, "drifted": 1}
    (call,) = (m for m in part.tick(17 * S, 1) if m.kind == "call")
    assert sorted(call.head["nodes"]) == ["n1", "n3", "n4"], "all of them, now and then"
    list(part.tick(40 * S, 1))
    assert counts(part) == {"unknown": 3}, "who does not answer in time is not as it was"


def answer(call: Message, names: list[str], state: str, **more: object) -> Message:
    body = orjson.dumps({"exit": 0, "message": "", "result": {"state": state, **more}})
    return message("answer", {"call": call.head["call"], "parts": [[names, len(body)]]}, body)
