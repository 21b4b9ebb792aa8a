"""One line on the owner's terminals: before a change ends, at its end, when somebody takes it over."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Agent, wait_until
from newcomers import made_by

ANN, BOB, CAT = 1234, 1235, 1240


class Terminal:
    """A pseudo-terminal that belongs to a user, as a login's does."""

    def __init__(self, uid: int, messages: bool = True) -> None:
        self.master, self.slave = os.openpty()
        os.fchown(self.slave, uid, 5)
        os.fchmod(self.slave, 0o620 if messages else 0o600)
        self.text = ""

    def read(self) -> str:
        while select.select([self.master], [], [], 0.05)[0]:
            self.text += os.read(self.master, 65536).decode()
        return self.text

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture(scope="module", name="config")
def _config() -> dict[str, Any]:
    return {"window": {"base": "1h", "floor": "0.2s"}, "notify": {"terminals": True}}


@pytest.fixture
def ann() -> Iterator[Terminal]:
    terminal = Terminal(ANN)
    yield terminal
    terminal.close()


def says(terminal: Terminal, text: str) -> None:
    wait_until(lambda: text in terminal.read(), f"{text!r} is on the terminal, not {terminal.text!r}", 14)


@pytest.mark.invariant("N1")
def test_a_takeover_is_told_to_whom_it_is_taken_from(agent: Agent, ann: Terminal) -> None:
    path = agent.file("hosts", mode=0o666)
    agent.drift_by(ANN, path, "ann's")
    agent.drift_by(BOB, path, "bob's")
    says(ann, f"{BOB} changed file:{path} on n001, as you had")
    agent.pact("rollback", "--all", "--shared")


@pytest.mark.invariant("N1")
def test_who_settles_somebody_s_change_is_named_to_him(agent: Agent, ann: Terminal) -> None:
    path = agent.file("a.conf", mode=0o666)
    change = agent.drift_by(ANN, path, "ann's")
    agent.pact("commit", change["id"], "-m", "good work")
    says(ann, f"root committed {change['id']} on n001 (file:{path}): good work")


@pytest.mark.invariant("N1")
def test_who_said_no_to_messages_is_left_alone_and_a_stopped_terminal_holds_nobody_up(agent: Agent) -> None:
    quiet, full = Terminal(ANN, messages=False), Terminal(ANN)
    os.set_blocking(full.slave, False)
    try:
        while True:  # nobody reads it
            os.write(full.slave, b"x" * 4096)
    except BlockingIOError:
        pass
    path = agent.file("b.conf", mode=0o666)
    agent.drift_by(ANN, path, "ann's")
    agent.pact("rollback", "--all")
    before = time.monotonic()
    agent.pact("status")
    assert time.monotonic() - before < 5
    time.sleep(1)
    assert quiet.read() == ""
    quiet.close()
    full.close()


@pytest.mark.invariant("N1")
def test_what_one_does_oneself_is_no_news(agent: Agent) -> None:
    mine = Terminal(0)
    path = agent.file("mine.conf")
    agent.drift(path)
    agent.pact("rollback")
    time.sleep(0.5)
    assert path not in mine.read()
    mine.close()


@pytest.mark.invariant("N1", "A4")
def test_the_end_of_a_window_is_announced_and_told(make_agent: Any) -> None:
    agent = make_agent(window={"base": "6s", "floor": "0.2s"}, notify={"terminals": True})
    agent.start()
    cat = Terminal(CAT)
    path = agent.file("end.conf", mode=0o666)
    change = agent.drift_by(CAT, path, "cat's")
    record = wait_until(lambda: agent.newest("window_closing"), "it is announced", 8)
    assert record["data"]["change"] == change["id"] and record["data"]["resources"] == [f"file:{path}"]
    assert record["data"]["deadline"] > record["time"]
    says(cat, f"{change['id']} on n001 (file:{path}) is rolled back soon, at ")
    agent.settled(f"file:{path}")
    says(cat, f"pact redo {change['id']}")
    assert cat.text.count("\npact: ") == 2, cat.text
    cat.close()
    agent.stop()


@pytest.mark.invariant("N1")
def test_it_can_be_switched_off(make_agent: Any) -> None:
    agent = make_agent(notify={"terminals": False})
    agent.start()
    ann = Terminal(ANN)
    path = agent.file("off.conf", mode=0o666)
    agent.drift_by(ANN, path, "ann's")
    agent.pact("rollback", "--all")
    time.sleep(0.5)
    assert ann.read() == ""
    ann.close()
    agent.stop()


@pytest.mark.invariant("N1")
def test_at_login_a_line_says_what_is_open(agent: Agent) -> None:
    path = agent.file("login.conf", mode=0o666)
    assert agent.pact("status", "--login", uid=ANN).out == ""
    agent.drift_by(ANN, path, "ann's")
    said = agent.pact("status", "--login", uid=ANN).out
    assert said.startswith("pact: 1 change of yours is open on n001, until ") and said.count("\n") == 1
    assert agent.pact("status", "--login", uid=BOB).out == ""
    agent.pact("emergency", "start", "--reason", "night")
    assert "emergency" in agent.pact("status", "--login", uid=BOB).out


@pytest.mark.invariant("N1")
@pytest.mark.alone  # whose doing it was is found in time only where the machine is not busy
def test_who_made_what_was_untracked_is_told_in_words(agent: Agent, ann: Terminal) -> None:
    agent.file("etc/known")
    agent.world.path("/srv/etc").chmod(0o777)
    agent.adopt("file:/srv/etc/**")
    agent.world.end(made_by(agent, ANN, ": > /srv/etc/evil; sleep 1"))
    wait_until(lambda: agent.status()["untracked"] == 1, "it is seen")
    agent.pact("commit", "file:/srv/etc/evil", "-m", "it is good")
    says(ann, "root committed what you made on n001 (file:/srv/etc/evil): it is good")
