"""The root's shell: what other threads and people who look are told is true, and costs the loop little."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable

import orjson
import pytest
from public_root import Chain

from pact.cluster import page
from pact.cluster.committer import Durable, Elected
from pact.cluster.nodesets import Folded, NodeSets
from pact.cluster.rootpart import RootPart
from pact.core.records import GENESIS
from pact.core.root import Commit, Effect, Known, Root
from pact.core.rootlog import Cursor, Group, RootState, load
from pact.core.runs import Run
from pact.core.wire import message
from pact.errors import PactError


def part_of(root: Root) -> RootPart:
    """Without its threads: the test is its loop."""
    part = RootPart.__new__(RootPart)
    part.root, part.states, part.trouble, part._sets = root, {}, "", root.sets  # type: ignore[assignment]
    part._away = Folded([])
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
def test_a_root_does_not_lead_with_a_log_in_which_a_chunk_is_damaged() -> None:
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
    part = RootPart.__new__(RootPart)
    part.root = None
    for n in range(len(chunks) - 1):
        rotten = chunks[n][:-9] + bytes([chunks[n][-9] ^ 1]) + chunks[n][-8:]
        with pytest.raises(PactError, match="does not verify") as caught:
            list(part._elected(Elected(2, None, (*chunks[:n], rotten, *chunks[n + 1 :])), 3, 3))
        assert "backup" in caught.value.hint and part.root is None
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
        root.state.groups[gid] = Group(gid, {"user": "alice"}, "why", "x[1-9]", ["file:/a"], 10**9, 10**9,
                                       "2026-01-01T00:00:00Z")  # fmt: skip
        root.groups.runs[gid] = Run(gid, names)
    part.states = {"drifted": Folded(names[1:])}
    before_s = time.process_time()
    shown = part.shown()
    assert time.process_time() - before_s < 0.1 and sets.folds == 0
    assert shown["group_states"] == {"open": 20} and shown["states"]["drifted"][1] == 3_999
    text = page.page({"name": "r", **shown})
    assert names[0] in text and "x0000c0s1n[0-3]" in text and "g20" in text
    assert b'pact_nodes{state="away"} 1.0' in page.metrics(shown)
