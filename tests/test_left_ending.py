"""Somebody ends what a command has left behind: who asked is on record before anything is signalled, and what came of
it afterwards, whatever comes between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from session_kit import Sessions
from test_executing_owed import ANN, FULL
from test_executing_owed import Agent as Core

from pact.agent import leftbehind
from pact.agent.leftbehind import AGAIN_S, GIVE_UP_S, GRACE_S, LOOK_S, LeftBehind
from pact.agent.sessionfiles import read_state
from pact.core.node.events import Caller
from pact.errors import UnreachableError, UsageError
from pact.model import Actor
from pact.session import spawn

NAME = "x1f.37"
ADMIN = Caller(Actor("eve", None, "admin", "cluster", "1/1.1"), ANN)


class Agent(Core):
    """It answers, too."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Any] = []
        self.control = SimpleNamespace(flush=lambda client: None)

    def next_token(self) -> int:
        return 7

    def answer(self, client: Any, result: Any, message: str = "") -> None:
        self.said.append(message)

    def fail(self, client: Any, error: Exception) -> None:
        self.said.append(error)


class Kit:
    """A command that has left one process behind, found in a cgroup that is a dictionary."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.now_s = place / "exec", 100.0
        self.place.mkdir()
        self.pids: set[int] = set()
        self.sent: list[int] = []
        monkeypatch.setattr(leftbehind, "_in_cgroups", lambda state: set(self.pids))
        monkeypatch.setattr(leftbehind, "_signal", lambda pids, *numbers: self.sent.extend(numbers))
        self.agent = Agent()
        self.left = LeftBehind(self.agent, f"{place}/sessions", lambda: self.now_s)  # type: ignore[arg-type]
        self.client: Any = SimpleNamespace(caller=ADMIN, tokens=set())

    def keep(self, name: str = NAME, **more: Any) -> None:
        state = {"pid": 1, "start": 1, "uid": 0, "began": 1, "account": "root", "person": "ann", "tty": ""}
        state |= {"login": None, "audit": None, "command": ["make"], "by_cgroup": True, "begun": None, **more}
        (self.place / f"{name}.left").write_text(json.dumps(state))

    def end(self) -> None:
        self.left.end(self.client, NAME)

    def after(self, seconds: float) -> None:
        self.now_s += seconds
        self.left.turn()

    @property
    def records(self) -> list[str]:
        return [end.why for end in self.agent.ends]


@pytest.fixture
def process() -> Iterator[int]:
    with subprocess.Popen(["sleep", "300"]) as one:
        yield one.pid
        one.kill()


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: int) -> Kit:
    made = Kit(tmp_path, monkeypatch)
    made.pids = {process}
    made.keep()
    return made


def end_it(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


@pytest.mark.invariant("X9")
def test_who_asked_is_on_record_before_a_signal_goes_out(kit: Kit) -> None:
    kit.end()
    assert kit.records == ["eve ends what it had left behind"] and kit.sent == [signal.SIGTERM, signal.SIGCONT]
    assert kit.agent.writes[-1][0].actor["user"] == "eve" and not kit.agent.said


@pytest.mark.invariant("X9")
def test_what_cannot_be_recorded_signals_nothing(kit: Kit) -> None:
    kit.agent.full = True
    with pytest.raises(UnreachableError, match="disk is full"):
        kit.end()
    kit.agent.freed()
    kit.after(1.0)
    assert not kit.sent and not kit.records and not kit.client.tokens and kit.left.next_s() is None


def test_its_end_is_on_record_when_it_is_told(kit: Kit, process: int) -> None:
    kit.end()
    end_it(process)
    kit.pids.clear()
    kit.after(GRACE_S)
    assert kit.records[1:] == ["eve ended what it had left behind"]
    assert kit.agent.said == [f"1 process of command {NAME} ended"] and not list(kit.place.iterdir())


def test_the_record_says_what_stays(kit: Kit) -> None:
    kit.end()
    kit.after(GRACE_S)
    assert kit.sent[-1] == signal.SIGKILL and not kit.agent.said
    kit.after(GIVE_UP_S)
    assert kit.records[1:] == ["eve could not end all that it had left behind: 1 process stays"]
    (said,) = kit.agent.said
    assert "1 process of command" in said.message and "does not end" in said.message


@pytest.mark.invariant("J9", "X9")
@pytest.mark.parametrize("known", [True, False])
def test_it_is_owed_while_the_journal_is_lost(kit: Kit, process: int, known: bool) -> None:
    """``known``: it was lost before; else this very record is the first that is refused."""
    kit.end()
    kit.agent.full = True
    kit.agent.journal_error = FULL if known else ""
    end_it(process)
    kit.pids.clear()
    kit.after(GRACE_S)
    (said,) = kit.agent.said
    assert FULL in said.message and len(kit.records) == 1 and (kit.left.next_s() or 0) > 0
    kit.agent.freed()
    kit.after(1.0)
    assert kit.records[1:] == ["eve ended what it had left behind"] and kit.left.next_s() is None


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"audit": 5, "keepers_audit": 5}, False),
        ({"audit": 5}, False),
        ({"audit": 6, "keepers_audit": 5, "login": 1000}, True),  # a person's command as root
        ({"audit": 6, "keepers_audit": 5}, True),
        ({"audit": 6, "keepers_audit": None}, True),
    ],
)
def test_only_an_audit_session_that_was_made_for_the_command_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], found: bool
) -> None:
    """In a container no login can be made: the session is that in which somebody has started the agent."""
    kit = Kit(tmp_path, monkeypatch)
    kit.keep(by_cgroup=False, **{"login": 0, **more})
    monkeypatch.setattr(leftbehind, "_in_audit_sessions", lambda wanted: {one: {os.getpid()} for one in wanted})
    assert [one["id"] for one in kit.left.listed(ADMIN)] == ([NAME] if found else [])
    if not found:
        with pytest.raises(UsageError):
            kit.end()
    assert not kit.sent


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("twin", [True, False])
def test_a_command_s_file_says_in_which_audit_session_its_keeper_is(twin: bool) -> None:
    sessions = Sessions(twin=twin)
    try:
        state = sessions.open("a", "true", whole=True)
        assert state["keepers_audit"] == spawn.login()[1]
    finally:
        sessions.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands whose files are read."""
    found: list[str] = []

    def read(path: str) -> Any:
        found.append(Path(path).stem)
        return read_state(path)

    monkeypatch.setattr(leftbehind, "read_state", read)
    return found


def test_what_is_there_is_looked_for_once_a_second_and_something_new_at_once(kit: Kit, looks: list[str]) -> None:
    for _ in range(10):
        assert [one["processes"] for one in kit.left.listed(ADMIN)] == [1]
    assert looks == [NAME]
    kit.keep("x1f.38")
    assert {one["id"] for one in kit.left.listed(ADMIN)} == {NAME, "x1f.38"} and len(looks) == 3
    kit.pids.add(os.getpid())
    kit.after(AGAIN_S)
    assert [one["processes"] for one in kit.left.listed(ADMIN)] == [2, 2]


def test_what_has_ended_is_listed_no_more(kit: Kit, process: int) -> None:
    assert kit.left.listed(ADMIN)
    kit.end()
    end_it(process)
    kit.pids.clear()
    kit.after(LOOK_S)
    assert kit.agent.said and not kit.left.listed(ADMIN)


def test_while_something_is_ended_nothing_else_is_looked_at(kit: Kit, process: int, looks: list[str]) -> None:
    for n in range(5):
        kit.keep(f"x2.{n}")
    kit.end()
    assert looks == [NAME]
    for _ in range(int(GRACE_S / LOOK_S) - 1):
        kit.after(LOOK_S)
    assert looks == [NAME], "one that is known lives"
    kit.after(AGAIN_S)
    assert looks == [NAME] * 2 and kit.sent[-1] == signal.SIGKILL, "all of them are killed"
    end_it(process)
    kit.pids.clear()
    kit.after(LOOK_S)
    assert set(looks) == {NAME} and kit.agent.said


def test_only_what_was_seen_just_now_is_killed(kit: Kit, process: int) -> None:
    """The number of a process that was seen a while ago may be another's by now."""
    kit.end()
    kit.after(GRACE_S)
    for _ in range(int(AGAIN_S / LOOK_S) - 2):
        kit.after(LOOK_S)
    assert kit.sent.count(signal.SIGKILL) == 1
    kit.after(AGAIN_S)
    assert kit.sent.count(signal.SIGKILL) == 2, "what stays is killed when it was looked again"
