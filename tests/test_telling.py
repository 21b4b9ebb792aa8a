"""In what order pieces of long answers are written: one at a time, administrators' first, nobody's who has left."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent.telling import Tellers
from pact.agent.worker import Result
from pact.core.node.events import Ticked

pytestmark = pytest.mark.invariant("S7")


class Shell:
    """The loop and the thread, a step at a time."""

    def __init__(self) -> None:
        self.jobs: deque[Any] = deque()
        self.order: list[str] = []
        self.gone: set[str] = set()
        self.telling = SimpleNamespace(call=self.jobs.append)
        self.full: dict[str, Any] = {}
        self.control = SimpleNamespace(connected=lambda client: client.name not in self.gone, clients=self.full)
        self.tellers = Tellers(self)  # type: ignore[arg-type]

    def ask(self, name: str, pieces: int = 1, *, admin: bool = False) -> None:
        client: Any = SimpleNamespace(
            name=name, admin=admin, wants_write=lambda: True, caller=SimpleNamespace(owner=SimpleNamespace(key=name[0]))
        )
        if name.endswith("!"):  # his answer before is not taken yet
            self.full[name] = client
            return

        def work() -> Result:
            self.order.append(name)

            def done(t_ns: int, wall_ns: int) -> Ticked:
                if pieces > 1:
                    self.ask(name, pieces - 1, admin=admin)
                return Ticked(t_ns, wall_ns)

            return Result(0, done)

        self.tellers.add(client, work)

    def turn(self) -> None:
        assert len(self.jobs) <= 1, "one at a time"
        result = self.jobs.popleft()()
        result.make(1, 1)

    def run(self) -> list[str]:
        while self.jobs:
            self.turn()
        return self.order


def test_an_administrator_waits_for_one_piece_whoever_else_asks() -> None:
    shell = Shell()
    for n in range(60):
        shell.ask(f"v{n}", 5)
    shell.turn()
    shell.ask("root", 3, admin=True)
    assert shell.run()[:5] == ["v0", "v1", "root", "root", "root"]
    assert len(shell.order) == 303


def test_the_others_have_their_turns() -> None:
    shell = Shell()
    shell.ask("a", 3)
    shell.ask("b", 2)
    shell.ask("c")
    assert shell.run() == ["a", "b", "c", "a", "b", "a"]


def test_nothing_is_written_for_who_has_left() -> None:
    shell = Shell()
    shell.ask("a", 3)
    shell.ask("b", 3)
    shell.ask("c")
    shell.gone = {"b"}
    assert shell.run() == ["a", "c", "a", "a"]


def test_who_does_not_take_his_answer_gets_no_other_before() -> None:
    shell = Shell()
    shell.ask("a!")
    shell.ask("a1", 2)
    shell.ask("b1", 2)
    assert shell.run() == ["b1", "b1"]
    shell.full.clear()
    shell.tellers.turn()
    assert shell.run() == ["b1", "b1", "a1", "a1"]
