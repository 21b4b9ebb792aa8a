"""The root's shell: what other threads and people who look are told is true, and costs the loop little."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable

import orjson
import pytest
from public_root import Chain

from pact.cluster.committer import Durable
from pact.cluster.nodesets import NodeSets
from pact.cluster.rootpart import RootPart
from pact.core.records import GENESIS
from pact.core.root import Commit, Effect, Root
from pact.core.rootlog import Cursor, RootState
from pact.core.wire import message


def part_of(root: Root) -> RootPart:
    """Without its threads: the test is its loop."""
    part = RootPart.__new__(RootPart)
    part.root, part.states, part.trouble, part._sets = root, {}, "", root.sets  # type: ignore[assignment]
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
