"""``pact shell`` on the node, where something has changed meanwhile: who may come back, and what is decided about."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Agent, World, wait_until
from terminals import ADMINS, Terminal, at_terminal, people

from pact.observe import open_observers

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


def test_what_it_has_become_meanwhile_is_shown_before_it_is_committed(
    agent: Agent, at: Callable[..., Terminal]
) -> None:
    path = agent.file("asked.conf", mode=0o666)
    ann = at("shell")
    ann.until("ann> ")
    later = f"(trap '' HUP; while [ ! -e {path}.now ]; do sleep 0.1; done; seq 9 > {path}) &"
    ann.type(f"echo mine > {path}; {later}\r")
    wait_until(lambda: agent.change_of(f"file:{path}"), "it is seen")
    ann.type("exit\r")
    ann.until(r"\[leave\] ")
    shown = agent.ask("diff")["result"]["resources"]
    agent.world.path(f"{path}.now").touch()
    wait_until(lambda: agent.ask("diff")["result"]["resources"][0]["diff"] != shown[0]["diff"], "it is another one")
    ann.type("c\r")
    ann.until("why\\? ")
    ann.type("mine\r")
    ann.until("nothing was done: it has changed meanwhile, and is now")
    ann.until(r"\[leave\] ")
    assert not agent.records("committed")
    ann.type("c\r")
    ann.until("why\\? ")
    ann.type("all of it\r")
    assert ann.end() == 0, ann.text
    assert len(agent.records("committed")) == 1


#: As in most containers: whoever started them has logged in, and nobody in them can make another login.
CONTAINED = 'echo 0 > /proc/self/loginuid; exec setpriv --bounding-set=-audit_control -- "$@"'


@pytest.mark.alone
@pytest.mark.parametrize("contained", [True, False])
def test_where_no_login_can_be_made_a_session_has_no_programs_of_others(
    make_agent: Callable[..., Agent], running: Agent, contained: bool
) -> None:
    """Its audit session is that of the agent then, with all that runs there."""
    with contextlib.closing(open_observers()) as observers:
        if "connector" in " ".join(observers.notes):
            pytest.skip("no exec events here")
    agent = make_agent(shell={"root": ["root"]})
    (agent.base / "run").mkdir()
    agent.socket = str(agent.base / "run" / "s")
    agent.configure({"control": {"socket": agent.socket}})
    beside, go = agent.base / "beside", agent.base / "go"
    script = f"while [ ! -e {go} ]; do sleep 0.1; done; for n in 1 2 3 4 5 6; do /bin/true; done; touch {beside}"
    agent.before = ["nsenter", f"--net=/proc/{os.getpid()}/ns/net", "--"]  # the kernel tells of programs there alone
    agent.before += ["sh", "-c", CONTAINED if contained else 'exec "$@"', "sh"]
    agent.before += ["sh", "-c", f'({script}) & exec "$@"', "sh"]
    agent.start()
    try:
        terminal = at_terminal(agent, "shell", "--account", "root", uid=0, groups=(0,))
        terminal.until("root> ")
        go.touch()
        wait_until(beside.exists, "the others have run")
        terminal.type("/bin/echo its own; exit\r")
        assert terminal.end() == 0, terminal.text
        closed = wait_until(lambda: agent.newest("session_closed"), "it is recorded")["data"]
        assert "true" not in str(closed.get("commands")), closed
        assert ("echo" in str(closed.get("commands"))) is not contained, closed
    finally:
        agent.close()
