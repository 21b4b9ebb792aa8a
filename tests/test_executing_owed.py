"""Records of commands: durable before one begins, and of each its end, whatever comes between."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent import admission
from pact.agent.commandrecords import ENDS_S, CommandRecords
from pact.agent.commandwish import wish_of
from pact.agent.executing import Executing
from pact.agent.remote import Remote
from pact.agent.streams import Streams
from pact.core.node import fold, payloads
from pact.core.node.commands import DOWN, UNKNOWN
from pact.core.node.events import AppendRecord, Caller, Started
from pact.core.node.payloads import ExecBegun, Executed
from pact.core.node.state import State
from pact.core.node.step import Node
from pact.core.ops import Exec, ShellOpen
from pact.core.settings import Settings
from pact.errors import ConflictError, UnreachableError
from pact.model import AGENT_ACTOR, Actor, Owner
from pact.session.hosting import Hosted
from pact.session.places import NEVER_BEGAN, started_at, state_path
from pact.sim.parts import SimRules

FULL = "journal: the disk is full"
ANN = Owner("uid:0", "root", 0)
DONE = Executed(command="true", owner=ANN, account="root", exit=0, key="root")
BEGUN = ExecBegun(command="true", owner=ANN, account="root", key="root")


class Agent:
    """The real core over a journal that is a list. ``full``: nothing can be written."""

    def __init__(self) -> None:
        self.journal_error = ""
        self.full = False
        self.config = SimpleNamespace(name="n1", shell_root=["root"], shell_tasks=100)
        self.writes: list[list[Any]] = []  # of each write its records
        self.clock_ns = 0
        self.reload()
        self.step(Started(*self.now(), "boot", 0, Settings(), "1", False, {}))

    def reload(self) -> None:
        state = State()
        for row in self.writes:
            for record in row:
                fold.apply(state, record)
        self.node = Node("n1", SimRules(), state)

    def now(self) -> tuple[int, int]:
        self.clock_ns += 1
        return self.clock_ns, self.clock_ns

    def step(self, event: Any) -> None:
        rows = [e.record for e in self.node.step(event) if isinstance(e, AppendRecord)]
        if self.full:
            self.journal_error = FULL
            self.reload()
        elif rows:
            self.writes.append(rows)

    def require_journal(self) -> None:
        if self.journal_error:
            raise UnreachableError(self.journal_error)

    def freed(self) -> None:
        self.full, self.journal_error = False, ""

    @property
    def ends(self) -> list[Any]:
        return [payloads.of(r) for row in self.writes for r in row if r.type == "executed"]


def executing(tmp_path: Path) -> Any:
    (tmp_path / Path(state_path("", "x1")).name).write_text("{}")
    streams: Any = SimpleNamespace(agent=Agent(), kept=SimpleNamespace(directory=f"{tmp_path}/sessions"))
    one = Executing(streams)
    one.directory = str(tmp_path)
    return one


def actor(call: int) -> Actor:
    return replace(AGENT_ACTOR, call=f"1/1.{call}")


@pytest.mark.invariant("J9", "X9")
def test_it_is_owed_and_its_files_stay_until_it_is_recorded(tmp_path: Path) -> None:
    one = executing(tmp_path)
    one._agent.full, one._agent.journal_error = True, FULL
    one.record("x1", DONE, AGENT_ACTOR)
    one.turn()
    assert not one._agent.ends and one.busy and one.next_s() > 0 and list(tmp_path.iterdir())
    one._agent.freed()
    one.turn()
    one.turn()
    assert one._agent.ends == [DONE] and not one.busy and not list(tmp_path.iterdir())


@pytest.mark.invariant("J9", "X9")
def test_also_where_this_very_record_is_the_first_that_is_refused(tmp_path: Path) -> None:
    one = executing(tmp_path)
    one._agent.full = True
    one.record("x1", DONE, AGENT_ACTOR)
    one.turn()
    assert one._records._owed and list(tmp_path.iterdir())


@pytest.mark.invariant("X9")
def test_what_cannot_be_recorded_does_not_begin(tmp_path: Path) -> None:
    agent = Agent()
    records = CommandRecords(agent, lambda name: None)
    agent.full = True
    with pytest.raises(UnreachableError, match="disk is full"):
        records.begin([(BEGUN, actor(1))])
    with pytest.raises(UnreachableError, match="disk is full"):
        records.begin([(BEGUN, actor(2))])
    assert not agent.node.state.commands and len(agent.writes) == 1


@pytest.mark.invariant("X9")
def test_what_begins_and_ends_together_shares_one_write(tmp_path: Path) -> None:
    agent, told = Agent(), list[int]()
    records = CommandRecords(agent, lambda name: None)
    numbers = records.begin([(BEGUN, actor(n)) for n in range(32)])
    assert len(agent.writes) == 2 and len(set(numbers)) == 32
    for n, seq in enumerate(numbers):
        records.end(f"x{n}", replace(DONE, begun=seq), actor(n), lambda n=n: told.append(n))  # type: ignore[misc]
    assert len(agent.writes) == 2 and not told, "nobody hears of an end that is not on record"
    records.turn(alone=False)
    assert len(agent.writes) == 3 and told == list(range(32)) and not agent.node.state.commands
    assert [said.begun for said in agent.ends] == numbers
    assert {r.data["call"] for row in agent.writes[1:] for r in row} == {actor(n).call for n in range(32)}


@pytest.mark.invariant("X9")
def test_an_end_waits_for_others_a_moment_and_no_longer() -> None:
    agent, now_s = Agent(), [0.0]
    records = CommandRecords(agent, lambda name: None, lambda: now_s[0])
    records.end("x1", DONE, AGENT_ACTOR)
    records.turn(alone=False)
    assert not agent.ends
    now_s[0] = ENDS_S
    records.turn(alone=False)
    assert agent.ends == [DONE]


@pytest.mark.invariant("X9", "F91")
def test_of_what_left_nothing_behind_the_end_is_on_record_once(tmp_path: Path) -> None:
    one = executing(tmp_path)
    agent = one._agent
    runs, owed, gone = one._records.begin([(BEGUN, actor(n)) for n in range(3)])
    one._records.settle([runs, owed, gone])
    assert not agent.ends
    agent.journal_error = FULL
    one._records.end("x9", replace(DONE, begun=owed), actor(1))
    one._records.turn(alone=True)
    one._records.settle([runs])
    assert not agent.ends, "nothing can be recorded now"
    agent.freed()
    for _ in range(2):
        one._records.settle([runs])
    (said,) = agent.ends
    assert (said.begun, said.exit, said.why) == (gone, None, UNKNOWN) and agent.writes[-1][0].data["call"] == "1/1.2"
    one._records.turn(alone=True)
    assert list(agent.node.state.commands) == [runs]


@pytest.mark.invariant("X9", "F91")
def test_a_boot_ends_what_was_begun_before_it_and_the_start_of_an_agent_does_not() -> None:
    agent = Agent()
    (seq,) = CommandRecords(agent, lambda name: None).begin([(BEGUN, actor(7))])
    agent.reload()
    assert State.from_json(agent.node.state.to_json()).to_json() == agent.node.state.to_json()
    agent.step(Started(*agent.now(), "boot", 0, Settings(), "1", False, {}))
    assert list(agent.node.state.commands) == [seq] and not agent.ends
    agent.step(Started(*agent.now(), "another boot", 0, Settings(), "1", True, {}))
    (said,) = agent.ends
    assert (said.begun, said.exit, said.why, said.command) == (seq, None, DOWN, "true")
    assert agent.writes[-1][-1].data["call"] == "1/1.7" and "commands" not in agent.node.state.to_json()


@pytest.mark.invariant("S8")
def test_nobody_takes_all_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = executing(tmp_path)
    monkeypatch.setattr(admission, "account", lambda config, caller, account: ("root", "root"))

    def kept(wish: Any) -> Any:
        raise UnreachableError("nobody keeps sessions")

    def ask(user: str, n: int) -> None:
        caller = Caller(Actor(user, None, "admin", "cluster", f"1/{n}"), ANN)
        with pytest.raises(UnreachableError, match="nobody keeps sessions"):  # it has come as far as that
            one.begin(Remote(print, caller, (1, f"1.{n}")), Exec(words=["true"]))
        table = (one.running, one.unread)[n % 2]
        table[f"1.{n}"] = SimpleNamespace(caller=caller)

    streams: Any = Streams(SimpleNamespace(agent=one._agent), None)  # type: ignore[arg-type]
    streams.kept = SimpleNamespace(
        launching={},
        _make_places=lambda: None,
        keeper=SimpleNamespace(ask=kept),
    )
    one._streams = streams
    for n in range(16):
        ask("ann", n)
    with pytest.raises(ConflictError, match="16 commands of ann are under way"):
        ask("ann", 16)
    for n in range(16, 31):
        ask("bob", n)
    one._records.end("x1", DONE, Actor("bob", None, "admin", "cluster"))
    with pytest.raises(ConflictError, match="16 commands of bob"):
        ask("bob", 31)
    with pytest.raises(ConflictError, match="32 commands are under way on this node"):
        ask("eve", 31)


@pytest.mark.parametrize("where", ["runs", "is not read", "has a stream", "opens a session"])
def test_a_call_that_comes_twice_is_refused_by_name(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of another root's term whose name is the same: the first keeps its stream."""
    monkeypatch.setattr(admission, "account", lambda config, caller, account: ("root", "root"))
    one, caller = executing(tmp_path), Caller(replace(AGENT_ACTOR, user="root"), ANN)
    streams = Streams(SimpleNamespace(agent=SimpleNamespace(config=SimpleNamespace(name="n1"))), None)  # type: ignore[arg-type]
    streams.kept = SimpleNamespace(launching={})  # type: ignore[assignment]
    one._streams, first, again = streams, Remote(print, caller, (1, "1.1")), Remote(print, caller, (2, "1.1"))
    if where == "runs":
        one.running["1.1"] = object()
    elif where == "is not read":
        one.unread["1.1"] = object()
    elif where == "has a stream":
        streams.by_call["1.1"] = object()  # type: ignore[assignment]
    else:
        streams.kept.launching[3] = SimpleNamespace(client=first)  # type: ignore[union-attr, assignment]
    with pytest.raises(ConflictError, match=r"call 1\.1 is under way"):
        one.begin(again, Exec(words=["true"]))
    if where in ("has a stream", "opens a session"):
        for ask in (streams.open, streams.attach):
            with pytest.raises(ConflictError, match=r"call 1\.1 is under way"):
                ask(again, ShellOpen())  # type: ignore[operator]


@pytest.mark.parametrize("deaf", [False, True])
def test_what_the_last_agent_has_left_is_recorded_once_when_it_has_ended(tmp_path: Path, deaf: bool) -> None:
    """Its process writes its file once more when it ends. ``deaf``: it does not end when it is asked to."""
    one = executing(tmp_path)
    (begun,) = one._records.begin([(BEGUN, actor(3))])
    one._left.unseen, file = True, tmp_path / "x1.json"
    with subprocess.Popen(["sleep", "300"]) as host:
        state = {
            "pid": host.pid,
            "start": started_at(host.pid),
            "uid": 0,
            "began": 1,
            "account": "root",
            "person": "root",
            "tty": "",
            "login": None,
            "audit": None,
            "command": ["make"],
            "about": {"actor": AGENT_ACTOR.to_json(), "user": "root", "call": actor(3).call},
        }
        file.write_text(json.dumps(state))
        one.turn()
        assert not one._agent.ends and file.exists() and one.busy and one.next_s() <= 0.1
        if deaf:
            one._left.ending["x1"] = one._left.look_s = 0.0
            one.turn()
            host.wait(10)
        else:
            host.kill()
            host.wait()
            file.write_text(json.dumps({**state, "end": {"exit": 3, "why": ""}}))
        one._left.look_s = 0.0
        one.turn()
    one._left.unseen = True
    one._left.look_s = 0.0
    one.turn()
    (said,) = one._agent.ends
    assert said.exit == (None if deaf else 3) and said.why and not file.exists() and not one.busy
    assert said.begun == begun and not one._agent.node.state.commands


@pytest.mark.invariant("X9")
@pytest.mark.parametrize("marked", [True, False])
def test_an_end_that_was_on_record_when_the_last_agent_was_killed_is_recorded_once(
    tmp_path: Path, marked: bool
) -> None:
    """Its files were still there. An agent of an older version recorded no beginning, and did not say so."""
    one = executing(tmp_path)
    if marked:
        (begun,) = one._records.begin([(BEGUN, actor(3))])
        one._records.end("none", replace(DONE, begun=begun), actor(3))
        one._records.turn(alone=True)
    wish = wish_of("x1", "", "root", "root", Caller(actor(3), ANN), Exec(words=["true"]), one._agent.config)
    about = wish["about"] if marked else {k: v for k, v in wish["about"].items() if k != "begins"}
    state = {"pid": 1, "start": 1, "uid": 0, "began": 1, "account": "root", "person": "root", "tty": "", "login": None}
    state |= {"audit": None, "command": ["true"], "about": about, "end": {"exit": 0}}
    (tmp_path / "x1.json").write_text(json.dumps(state))
    one._left.unseen = True
    one.turn()
    one.turn()
    assert [said.exit for said in one._agent.ends] == [0] and not (tmp_path / "x1.json").exists() and not one.busy


@pytest.mark.invariant("X9")
@pytest.mark.parametrize("recorded", [False, True])
def test_what_the_last_agent_prepared_and_never_began_has_no_end_of_its_own(tmp_path: Path, recorded: bool) -> None:
    """``recorded``: it was killed between the record and the word to begin."""
    one = executing(tmp_path)
    numbers = one._records.begin([(BEGUN, actor(3))]) if recorded else []
    state = {"pid": 1, "start": 1, "uid": 0, "began": 1, "account": "root", "person": "root", "tty": "", "login": None}
    state |= {"audit": None, "command": ["true"], "about": {"actor": AGENT_ACTOR.to_json(), "call": actor(3).call}}
    (tmp_path / "x1.json").write_text(json.dumps({**state, "end": {"exit": None, "why": NEVER_BEGAN}}))
    one._left.unseen = True
    one.turn()
    assert [(said.begun, said.why) for said in one._agent.ends] == [(n, NEVER_BEGAN) for n in numbers]
    assert not (tmp_path / "x1.json").exists() and not one.busy


@pytest.mark.parametrize(("whole", "told", "again"), [(True, True, 0), (True, False, 1), (False, True, 1)])
def test_a_command_whose_end_was_told_writes_its_file_no_more(
    tmp_path: Path, whole: bool, told: bool, again: int
) -> None:
    """The agent has just removed it: the next agent would record a second end."""
    saved: list[Any] = []
    nothing: Any = SimpleNamespace(close=lambda: None)
    host: Any = SimpleNamespace(
        listener=nothing,
        why="",
        newcomers={},
        client=SimpleNamespace(sock=nothing) if told else None,
        made=SimpleNamespace(socket_path=f"{tmp_path}/x1.sock", cgroups=[]),
        cast=None,
        end={"exit": 0},
        state={},
        pam=None,
        whole=whole,
        _counts=dict,
        _save=lambda: saved.append(1),
    )
    Hosted.close(host)
    assert len(saved) == again
