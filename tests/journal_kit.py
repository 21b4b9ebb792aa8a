"""Rows, contents and damage for the tests of the journal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from pact.core.records import Record, canonical, seal
from pact.journal.sqlite import SqliteJournal
from pact.model import Declared
from pact.sim.parts import person
from pact.sim.world import World

Row = tuple[Record, bytes]
FRAME_BYTES = 4096 + 24
LOG_HEADER = 32


def rows_after(journal: SqliteJournal, count: int, size: int = 10) -> list[Row]:
    out: list[Row] = []
    seq, prev = journal.seq, journal.hash
    for _ in range(count):
        seq += 1
        row = seal(seq, prev, f"2026-01-01T00:00:{seq % 60:02}.000000Z", seq, "n1", "denied", {}, {"x": "y" * size})
        out.append(row)
        prev = row[0].hash
    return out


def blob(data: bytes) -> dict[str, bytes]:
    return {hashlib.sha256(data).hexdigest(): data}


def lived() -> list[Row]:
    """Records of a node's life."""
    world = World(machine={f"sysctl:k{i}": {"value": "0"} for i in range(5)})
    world.start({r: Declared({"value": "0"}) for r in world.machine})
    ann = person("ann")
    for step in range(12):
        world.write(f"sysctl:k{step % 5}", {"value": str(step)}, ann.owner)
        if step % 4 == 3:
            world.ask("commit", ann, targets=[], message="m")
        world.advance(100_000_000_000)
    return [(r, canonical({k: v for k, v in r.to_json().items() if k != "hash"})) for r in world.journal]


def written_and_killed(path: str, sizes: Iterable[int]) -> None:
    """A child appends a row of each size, in a transaction of its own, and ends as if killed: SQLite's log stays."""
    child = os.fork()
    if child == 0:
        try:
            journal = SqliteJournal(path)
            for size in sizes:
                journal.append(rows_after(journal, 1, size), {})
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def damage(path: str | Path, at: int) -> None:
    """Turn one byte over."""
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)
        f.seek(at)
        f.write(bytes([byte[0] ^ 0xFF]))


def frames(log: str | Path) -> int:
    return (os.stat(log).st_size - LOG_HEADER) // FRAME_BYTES


def damage_frame(log: str | Path, number: int) -> None:
    damage(log, LOG_HEADER + number * FRAME_BYTES + 24 + 100)
