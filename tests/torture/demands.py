"""What is demanded of an agent when all is healed: it has seen everything, settles or says why not, and rests."""

from __future__ import annotations

import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults import cpu_s
from model import FoundError, unknown_drift

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import chain

if TYPE_CHECKING:
    from node import Node

TOP = "/srv"
SETTLE_S, SEEN_S, RECORD_S = 40.0, 6.0, 12.0
IDLE_CPU = 0.7


def idle(node: Node) -> None:
    """Nobody wants anything, and nothing is open: the agent rests."""
    began, used = time.monotonic(), cpu_s(node.pid)
    for seconds in (0.3, 0.7, 2.0):
        time.sleep(seconds)
        share = (cpu_s(node.pid) - used) / (time.monotonic() - began)
        if share < IDLE_CPU:
            return
    raise FoundError(f"the agent uses {share:.0%} of a core while nobody wants anything")


def contents_are_kept(node: Node) -> None:
    """Everything that the agent has overwritten is in the store."""
    missing = [where for d, where in node.model.owed.items() if not kept(node, d)]
    if missing:
        raise FoundError(f"overwritten and not in the store: {missing[:3]}")


def kept(node: Node, sha256: str) -> bool:
    db = sqlite3.connect(f"file:{node.agent.journal}?mode=ro", uri=True, timeout=10)
    try:
        return db.execute("SELECT 1 FROM blob WHERE digest = ?", (sha256,)).fetchone() is not None
    finally:
        db.close()


def demand(node: Node) -> None:
    """Healed, everything is seen, settles or says why not, and the journal holds."""
    node.trace.append("  healed")
    node.doing = "the end"
    node.judge()
    node.heal()
    node.seen = node.look()
    node.model.enforced.add(f"file:{TOP}/etc/**")
    until(
        node,
        lambda: node.ask(0, "track", patterns={f"file:{TOP}/etc/**": "report"})["exit"] == 0,
        "the journal can be written again",
    )
    until(node, lambda: "unrecorded" not in node.status(), "everything that was seen is recorded")
    if node.status()["emergency"]:
        node.ask(0, "emergency_end", how="rollback", force=True, shared=True, all=True)
    for hold in node.status()["holds"]:
        node.ask(0, "hold_release", name=hold["id"])
    status = settle(node)
    node.judge()
    node.fresh()
    if drift_is_known(node, status):  # some was seen only now: that settles as well
        status = settle(node)
        node.judge()
        node.fresh()
    drift_is_known(node, status)
    contents_are_kept(node)
    idle(node)
    node.glance()
    records_hold(node)
    node.end(signal.SIGTERM)
    (node.agent.state_dir / "signatures").unlink(missing_ok=True)
    before = {*status["unreadable_resources"], *(r for c in status["changes"] for r in c["resources"])}
    node.up()
    node.fresh()
    time.sleep(0.3)
    later = [r for c in node.status()["changes"] for r in c["resources"] if r not in before]
    if later:
        now = node.look()
        raise FoundError(
            f"seen only after a start without signatures: {later[:5]}: {now.get(later[0])}; before "
            f"{node.seen.get(later[0])}, declared {node.model.declared.get(later[0])}"
        )
    node.glance()
    node.end(signal.SIGTERM)


def until(node: Node, condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + RECORD_S
    while not condition():
        if time.monotonic() > end:
            raise FoundError(f"not within {RECORD_S:g} s: {what}: {node.status()['journal']}")
        time.sleep(0.2)


def settle(node: Node) -> dict[str, Any]:
    """Wait until nothing is open; what is stuck is rolled back by hand once a second."""
    end = time.monotonic() + SETTLE_S
    asked = 0.0
    while True:
        status = node.status()
        stuck = [c for c in status["changes"] if c["state"] in ("blocked", "failed")]
        if len(stuck) == len(status["changes"]) and (not stuck or time.monotonic() > end - SETTLE_S / 2):
            break
        if time.monotonic() > end:
            raise FoundError(f"not settled in {SETTLE_S:g} s: {shown(status)}")
        if stuck and time.monotonic() > asked + 1.0:
            asked = time.monotonic()
            node.ask(0, "rollback", targets=[c["id"] for c in stuck], force=True, shared=True)
        time.sleep(0.1)
    silent = [c["id"] for c in status["changes"] if not c["reason"]]
    if silent:
        raise FoundError(f"stuck without a reason: {shown(status)}")
    for change in status["changes"]:
        node.counts[f"left {change['state']}"] += 1
        print(f"  left {change['state']}: {change['resources'][:3]}: {change['reason'][:200]}")
    return status


def drift_is_known(node: Node, status: dict[str, Any]) -> bool:
    """Every drift is in a change, or unreadable, within the time that a rescan takes. Whether it had to be waited for."""
    end, late = time.monotonic() + SEEN_S, False
    while unknown := unknown_drift(node.model.drifted(node.look()), status):
        if time.monotonic() > end:
            now = node.look()
            raise FoundError(
                f"drift that nobody sees: {unknown[:5]}: {now.get(unknown[0])}; declared is "
                f"{node.model.declared[unknown[0]]}"
            )
        late = True
        time.sleep(0.2)
        status = node.status()
        node.fresh()
    return late


def records_hold(node: Node) -> None:
    records = [line["record"] for line in node.asker.stream("log", count=None)][::-1]
    try:
        chain.verify(records)
    except AssertionError as exc:
        raise FoundError(f"the chain is broken at record {exc}") from None
    wrong = [n for n, h in node.known.items() if n >= len(records) or records[n]["hash"] != h]
    if wrong:
        raise FoundError(f"records that were seen are gone or others: {wrong[:5]} of {len(records)}")
    done = node.agent.pact("journal", "verify", "--config", str(node.agent.config_path), check=None)
    if done.code:
        raise FoundError(f"journal verify: {done}")
    node.counts["records"] += len(records)


def shown(status: dict[str, Any]) -> str:
    return "; ".join(
        f"{c['id']} {c['state']} {c['resources'][:3]} {c['remaining_s']} {c['reason'][:200]}" for c in status["changes"]
    )
