"""An aggregator that tells what it carries late, in another order, and twice: nothing is done twice, lost or mixed up."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sealed_kit import Between, Rogue, between

from pact.cluster.aggregator import Aggregator
from pact.cluster.client import Result
from pact.core.tree.outbox import Up
from pact.core.tree.uplink import Deliver
from pact.core.tree.wire import Message

pytestmark = pytest.mark.invariant("T12", "T14")
HOUR_NS = 3600 * 10**9
LATE_S = 0.5
ROUNDS = 3


class Jumble:
    """What goes through the rogue waits for up to ``LATE_S``, and every fourth comes again."""

    def __init__(self, rogue: Rogue, seed: int) -> None:
        self.rogue, self.rng = rogue, random.Random(seed)
        self.held: list[tuple[float, Callable[[], object]]] = []
        rogue.up, rogue.down = self.up, self.down
        self.turn, rogue.turn = rogue.turn, self.turned  # type: ignore[method-assign]

    def later(self, send: Callable[[], object]) -> None:
        for _ in range(1 + (self.rng.random() < 0.25)):
            self.held.append((time.monotonic() + self.rng.random() * LATE_S, send))

    def up(self, said: Up) -> Up | None:
        if said.kind in ("hello", "beat", "goodbye"):
            return said
        self.later(lambda: Aggregator._send_up(self.rogue, said, time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
        return None

    def down(self, said: Message) -> Message | None:
        if said.kind in ("welcome", "beat", "sorry"):
            return said
        self.later(
            lambda: Aggregator._from_uplink(self.rogue, [Deliver(said)], time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        )
        return None

    def turned(self, *args: Any, **more: Any) -> Any:
        now_s = time.monotonic()
        due, self.held = [h for h in self.held if h[0] <= now_s], [h for h in self.held if h[0] > now_s]
        self.rng.shuffle(due)
        for _, send in due:
            send()
        return self.turn(*args, **more)

    def end(self) -> None:
        del self.rogue.up, self.rogue.down, self.rogue.turn


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Between]:
    with between(tmp_path) as kit:
        yield kit


@pytest.mark.parametrize("seed", [1])
def test_nothing_is_done_twice_lost_or_mixed_up(kit: Between, seed: int) -> None:
    socks = {name: kit.agent(name) for name in ("n1", "n2")}
    jumble = Jumble(kit.rogue, seed)
    asked = dict[str, Any]()
    for n in range(ROUNDS):
        for name, sock in socks.items():
            assert kit.ask(sock, "hold_place", reason=f"{name} {n}", for_ns=HOUR_NS)["exit"] == 0
        for name in socks:
            reason = f"afar {name} {n}"
            asked[reason] = kit.asked("adm", "hold_place", {"reason": reason, "for_ns": HOUR_NS}, name, timeout_s=4.0)[
                -1
            ]
        for name, body in kit.answers("view", "status", {}, "n[1-2]", timeout_s=6.0).items():
            assert body["exit"] != 0 or body["result"]["node"] == name
    jumble.end()
    for name, sock in socks.items():
        kit.until(lambda sock=sock: kit.ask(sock, "status")["result"]["cluster"]["waiting"] == 0, "all is there", 60)
        kit.log_of(name, sock)
        placed = Counter(r["data"]["reason"] for r in kit.records(sock, "hold_placed"))
        assert max(placed.values()) == 1, "done once"
        for n in range(ROUNDS):
            assert placed[f"{name} {n}"] == 1
            said = asked[f"afar {name} {n}"]
            if isinstance(said, Result) and said.exit == 0:
                assert placed[f"afar {name} {n}"] == 1, "what was said to be done is done"
        assert not any(reason.startswith("afar") and name not in reason for reason in placed)
    assert kit.result("adm", "nodes").exit == 0
    assert not [a for a in asked.values() if isinstance(a, Result) and a.exit == 4], "a word that came twice is one"
