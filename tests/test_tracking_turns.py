"""How long tracking keeps the agent's loop when somebody waits for an answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

from pact.agent import tracking
from pact.agent.tracking import TURN_NS, Tracking
from pact.declared.toml import Ignore
from pact.model import Declared
from pact.observe import open_observers
from pact.observe.mountinfo import MountEntry
from pact.sim.world import World

STEP_NS = 1_000_000

pytestmark = pytest.mark.root


def test_who_asks_all_the_time_does_not_keep_the_loop_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a millisecond: turns are counted, not timed."""
    world = World()
    world.start({"file:/etc/known": Declared({"value": "known"})})
    ticks = itertools.count(10**9, STEP_NS)
    with closing(open_observers()) as observers, TemporaryDirectory(dir="/var/tmp", prefix="many-") as top:
        for i in range(1000):
            Path(f"{top}/d{i}").mkdir()
        walked = Tracking(observers, Ignore())
        monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic_ns=lambda: next(ticks), time_ns=lambda: 0))
        walked.follow({f"file:{top}/**": "report"})

        def turn() -> int:
            before = next(ticks)
            walked.take(world.node, 0, everything=True)
            return next(ticks) - before

        turns = [turn() for _ in range(20)]
        assert walked.has_more, "there was not enough to walk"
        assert max(turns) < 2 * TURN_NS + 10 * STEP_NS


def test_more_names_than_may_wait_are_one_walk_over_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns a tracked directory makes names in it: the mount table was read twice for each one too many, on the
    loop, which stood for seconds."""
    world = World()
    world.start({"file:/etc/known": Declared({"value": "known"})})
    with closing(open_observers()) as observers, TemporaryDirectory(dir="/var/tmp", prefix="many-") as top:
        walked = Tracking(observers, Ignore())
        walked.follow({f"file:{top}/**": "report"})
        while walked.has_due:
            walked.take(world.node, 10**12)
        reads = itertools.count()
        table = tracking.foreign_mounts

        def read(mounts: Iterable[MountEntry], begins: Iterable[bytes]) -> set[bytes]:
            next(reads)
            return table(mounts, begins)

        monkeypatch.setattr(tracking, "foreign_mounts", read)
        monkeypatch.setattr(tracking, "TOUCHED_MAX", 100)
        Path(f"{top}/late").touch()
        for i in range(1000):
            walked.touched(f"{top}/gone{i}".encode(), None)
        walked.touched(f"{top}/late".encode(), None)
        assert next(reads) == 0, "events do not read it"
        found, now_ns = set[str](), 2 * 10**12
        for _ in range(100):
            found |= {new.resource for new in walked.take(world.node, now_ns)[0]}
            now_ns = walked.next_ns(now_ns) or now_ns
        assert f"file:{top}/late" in found, "what had no place was found"
        assert next(reads) <= 3, "one walk for all of them"


@pytest.mark.invariant("F18")
def test_an_answer_has_what_came_with_more_names_than_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks right after it does not wait for the next walk's time."""
    world = World()
    world.start({"file:/etc/known": Declared({"value": "known"})})
    with closing(open_observers()) as observers, TemporaryDirectory(dir="/var/tmp", prefix="many-") as top:
        walked = Tracking(observers, Ignore())
        walked.follow({f"file:{top}/**": "report"})
        monkeypatch.setattr(tracking, "TOUCHED_MAX", 100)
        now_ns = 10**12
        for last in ("first", "second"):
            while walked.has_due:
                walked.take(world.node, now_ns)
            for i in range(1000):
                walked.touched(f"{top}/gone{i}".encode(), None)
            Path(f"{top}/{last}").touch()
            walked.touched(f"{top}/{last}".encode(), None)
            found = {new.resource for new in walked.take(world.node, now_ns, everything=True)[0]}
            while walked.has_more:
                found |= {new.resource for new in walked.take(world.node, now_ns, everything=True)[0]}
            assert f"file:{top}/{last}" in found
            monkeypatch.setattr(walked, "_asked_ns", 0)  # it was long ago
