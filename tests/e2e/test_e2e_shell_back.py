"""Who comes back to a session of ``pact shell`` on the node, after what may be had there has changed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Agent, World, wait_until
from terminals import ADMINS, Terminal, at_terminal, people

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def running(make_agent: Callable[..., Agent], world: World, base: Path) -> Agent:
    place = base / "etc"
    place.mkdir()
    people(world, place)
    agent = make_agent(shell={"root": ["ann"], "detached": "30s"})
    (agent.base / "run").mkdir()
    agent.socket = str(agent.base / "run" / "s")
    agent.configure({"control": {"socket": agent.socket}})
    agent.start()
    return agent


@pytest.fixture
def at(agent: Agent) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*words: str, **who: Any) -> Terminal:
        made.append(at_terminal(agent, *words, **who))
        return made[-1]

    yield start
    for terminal in made:
        terminal.close()
    for session in sessions(agent):
        agent.ask("session_end", session=session["id"])


def sessions(agent: Agent) -> list[Any]:
    return list(agent.ask("sessions")["result"]["sessions"])


@pytest.mark.invariant("X6")
def test_who_may_have_none_any_more_does_not_come_back(agent: Agent, at: Callable[..., Terminal]) -> None:
    """Neither with another role, nor where other roles may have one, nor to root's after that was taken away."""
    ann = at("shell")
    ann.until("ann> ")
    ann.type("~.")
    ann = at("shell", "--account", "root")
    ann.until("root> ")
    ann.type("\r~.")
    own, roots = (next(s["id"] for s in sessions(agent) if s["account"] == name) for name in ("ann", "root"))
    wait_until(lambda: not any(s["attached"] for s in sessions(agent)), "both are left")

    def refused(name: str, why: str, groups: tuple[int, ...] = (ADMINS,)) -> None:
        terminal = at("shell", "--attach", name, groups=groups)
        assert terminal.end() == 3 and why in terminal.text, terminal.text

    refused(own, "needs the role admin", ())
    for wish, name, why in (({"roles": ["ops"]}, own, "needs the role ops"), ({"root": []}, roots, "session of root")):
        before = {key: agent.config["shell"].get(key, ["admin"]) for key in wish}
        reread(agent, wish)
        try:
            refused(name, why)
        finally:
            reread(agent, before)
    back = at("shell", "--attach", own)
    back.until("ann> ")
    back.type("exit\r")
    assert back.end() == 0


def reread(agent: Agent, shell: dict[str, Any]) -> None:
    said = agent.log_path.read_text().count("was read again")
    agent.configure({"shell": shell})
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: agent.log_path.read_text().count("was read again") > said, "it was read again")
