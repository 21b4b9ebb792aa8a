"""After a boot, what is observed off the loop is waited for, and no longer than that."""

from __future__ import annotations

import os
import queue
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent.loop import Agent
from pact.agent.worker import Result
from pact.core.node.events import Observed, Sighting
from pact.host.clock import boottime_ns


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
        results.put(Result(0, done(name)))
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
