"""After a boot, what is observed off the loop is waited for, and no longer than that."""

from __future__ import annotations

import os
import queue
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent.config import Config
from pact.agent.loop import Agent
from pact.agent.worker import Result
from pact.core.node.events import Observed, Sighting
from pact.host import notify
from pact.host.clock import boottime_ns
from pact.journal import sqlite


@pytest.mark.invariant("B1")
def test_answers_that_come_together_are_taken_together() -> None:
    """Two thousand packages are read at once: a start that took one answer at each sign would wait for its limit."""
    names = {f"package:p{n}" for n in range(200)}
    running, results = set(names), queue.Queue[Result]()

    def done(name: str) -> Any:
        def make(t_ns: int, wall_ns: int) -> Observed:
            running.discard(name)
            return Observed(t_ns, wall_ns, [Sighting(name, None)])

        return make

    for name in names:
        results.put(Result(0, make=done(name)))
    wake_fd = os.eventfd(len(names), os.EFD_NONBLOCK)
    idle = SimpleNamespace(results=queue.Queue[Result]())
    agent: Any = SimpleNamespace(
        clock=SimpleNamespace(now_ns=boottime_ns),
        now=lambda: (0, 0),
        _starting=lambda: None,
        _slow_pending={},
        _slow_running=running,
        _wake_fd=wake_fd,
        _slow=idle,
        _of_kinds={"package": SimpleNamespace(results=results)},
    )
    began = time.monotonic()
    try:
        seen = Agent._slow_sightings(agent)
    finally:
        os.close(wake_fd)
    assert {s.resource for s in seen} == names and time.monotonic() - began < 10


@pytest.mark.root
@pytest.mark.invariant("B3")
def test_every_long_part_of_a_start_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal of millions of records without a snapshot that this version reads, and a hundred thousand files on a
    slow disk: a start that was killed for its silence would begin again for ever."""
    with TemporaryDirectory(dir="/var/tmp", prefix="slow-") as top:
        place = Path(top)
        (place / "declared.toml").write_text("".join(f'[file."{place}/{n}"]\ncontent = "x"\n' for n in range(300)))
        config = Config(
            name="n1", state_dir=str(place / "state"), socket=str(place / "s"), declared=[str(place / "declared.toml")]
        )
        Agent(config).close()
        monkeypatch.setattr(sqlite, "ALIVE_EVERY", 1)
        monkeypatch.setattr(sqlite.SqliteJournal, "load_snapshot", lambda _: None)
        monkeypatch.setattr(notify, "START_SIGN_S", 0.0)
        taken = list[str]()

        def send(self: notify.Notifier, *lines: str) -> None:
            taken.append(" ".join(lines))

        monkeypatch.setattr(notify.Notifier, "send", send)
        agent = Agent(config)
        records = agent.journal.seq
        agent.close()
        signs = [t.partition("STATUS=")[2] for t in taken if f"EXTEND_TIMEOUT_USEC={notify.START_SIGN_USEC}" in t]
        assert signs.count("reading the journal") >= records / 2
        assert signs.count("looking at what is declared") >= 300 / 64
