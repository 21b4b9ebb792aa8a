"""Requests wait until what was touched before them was looked at, and hold nobody else up meanwhile."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from pact.agent import lookfirst, pace, views, watching
from pact.agent.config import Config
from pact.agent.loop import Agent
from pact.agent.remote import Remote
from pact.core.node.change import Member
from pact.core.node.events import Caller
from pact.errors import JournalError
from pact.model import NS_PER_S, Actor, Owner

PIECE = watching.OBSERVE_BATCH_MAX // 4  # much is what takes many pieces: with smaller ones, fewer files are enough
COUNT = 20 * PIECE

pytestmark = [pytest.mark.root, pytest.mark.invariant("J9")]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    monkeypatch.setattr(watching, "OBSERVE_BATCH_MAX", PIECE)
    with TemporaryDirectory(dir="/var/tmp", prefix="lookfirst-") as top:
        place = Path(top)
        for n in range(COUNT):
            (place / f"f{n}").write_text("one")
        entries = (f'[file."{place}/f{n}"]\ncontent = "one"\n' for n in range(COUNT))
        (place / "declared.toml").write_text("".join(entries))
        agent = Agent(
            Config(
                name="n1",
                state_dir=str(place / "state"),
                socket=str(place / "s"),
                declared=[str(place / "declared.toml")],
            )
        )
        try:
            while agent.watching.has_due:
                agent.catch_up()
            for n in range(COUNT):
                (place / f"f{n}").write_text("two")
                agent.watching.touch(f"file:{place}/f{n}", None)
            yield agent
        finally:
            agent.close()


def asked(agent: Agent, op: str, role: str = "admin", **args: Any) -> list[Any]:
    """Asks, and returns where the answer will be."""
    out: list[Any] = []
    caller = Caller(Actor("ann", 7, role, "cluster"), Owner("uid:7", "ann", 7))
    client = Remote(lambda raw: out.append(orjson.loads(raw)), caller)
    agent.requests.line(client, orjson.dumps({"v": 1, "op": op, "args": args}))
    return out


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes half a turn: pieces are counted, not timed."""
    ticks = itertools.count(10**9, lookfirst.TURN_NS // 2)
    monkeypatch.setattr(lookfirst, "time", SimpleNamespace(monotonic_ns=lambda: next(ticks)))


def test_who_asks_while_much_is_to_be_looked_at_holds_nobody_up(agent: Agent, slow: None) -> None:
    status = asked(agent, "status")
    assert not status and len(agent.node.state.member_of) <= 2 * PIECE, "a piece in each turn"
    assert asked(agent, "ping") and asked(agent, "check"), "others are answered meanwhile"
    viewer = asked(agent, "diff", "viewer")
    turns = 0
    while not status and turns < COUNT:
        assert agent.requests.first.runs() and not viewer
        before = len(agent.node.state.member_of)
        agent.requests.first.turn()
        assert len(agent.node.state.member_of) - before <= 2 * PIECE
        turns += 1
    assert turns >= COUNT / PIECE / 2
    assert status[0]["result"]["drifted"] == COUNT, "all that was touched before was looked at"
    agent.requests.first.turn()
    assert not agent.requests.first.runs()


@pytest.mark.invariant("S8")
def test_nobody_waits_for_what_people_with_a_lesser_role_asked(agent: Agent, slow: None) -> None:
    """Two viewers who asked on all their connections, and kept files in motion, kept administrators out for a minute."""
    viewers = [asked(agent, "status", "viewer") for _ in range(20)]
    ops, admin = asked(agent, "status", "ops"), asked(agent, "status")
    for answer, later in ((admin, [ops, *viewers]), (ops, viewers)):
        for _ in range(COUNT):
            if not answer:
                agent.requests.first.turn()
        assert answer and not any(later)
    for _ in range(COUNT):
        if agent.requests.first.runs():
            agent.requests.first.turn()
    assert all(viewers)


@pytest.mark.invariant("S8")
def test_the_answer_to_a_request_that_waited_counts_for_who_asked(
    agent: Agent, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[Any] = []
    monkeypatch.setattr(agent.control.budget, "spend", lambda who, seconds: spent.append((who, seconds > 0)))
    answer = asked(agent, "status", "viewer")
    while not answer:
        agent.requests.first.turn()
    assert spent == [(7, True)]


@pytest.mark.invariant("S3")
def test_who_moves_many_files_and_asks_has_no_more_recorded_than_the_account_allows(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of a viewer's questions had all that he keeps in motion recorded anew: hundreds of records a second."""
    monkeypatch.setattr(pace, "AT_ONCE_NS", COUNT // 2 * pace.EACH_NS)
    names = [r.partition(":")[2] for r in agent.node.state.declared_ids()]
    for name in names:
        os.chmod(name, 0o666)  # anybody may move them
    before = agent.node.state.seq
    for turn in range(3):
        for name in names:
            Path(name).write_text(str(turn))
            agent.watching.touch(f"file:{name}", None)
        answer = asked(agent, "status", "viewer")
        while not answer:
            agent.requests.first.turn()
    assert agent.node.state.seq - before < 2 * COUNT
    assert asked(agent, "status", "ops") or agent.requests.first.runs()
    while agent.requests.first.runs():
        agent.requests.first.turn()
    assert agent.node.state.seq - before >= 2 * COUNT, "who has a role sees what is there now"


def test_what_moves_all_the_time_is_looked_at_once_for_each_request(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wrote thousands of files while somebody asked had thousands of records made for one question."""
    looked: Counter[str] = Counter()
    look = agent._look_at

    def and_moves_again(wanted: list[tuple[str, Owner | None]]) -> Any:
        looked.update(r for r, _ in wanted)
        out = look(wanted)
        for resource, _ in wanted:
            agent.watching.touch(resource, None)
        return out

    monkeypatch.setattr(agent, "_look_at", and_moves_again)
    status = asked(agent, "status")
    for _ in range(10 * COUNT):
        if status:
            break
        agent.requests.first.turn()
    assert status and set(looked.values()) == {1} and len(looked) == COUNT


@pytest.mark.parametrize("op", ["status", "commit"])
def test_a_journal_that_is_lost_meanwhile_ends_the_waiting(
    agent: Agent, slow: None, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = asked(agent, op, **({} if op == "status" else {"targets": [], "all": True, "message": "m"}))

    def fails(*_: object, **__: object) -> None:
        raise JournalError("journal: database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(agent.journal, "append", fails)
        broken.setattr(agent.journal, "probe", fails)
        for _ in range(COUNT):
            if not answer:
                agent.requests.first.turn()
    assert answer[0]["exit"] == (0 if op == "status" else 5)
    agent._retry_journal_ns = 0
    agent._retry_journal(agent.clock.now_ns())
    assert not agent.journal_error and not agent.node.state.holds and not agent.node.jobs
    assert agent.clock.now_ns() > NS_PER_S


def test_what_has_drifted_is_not_added_up_anew_for_each_prompt(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each record the prompts say how far the node has drifted: many records would cost the square of their
    number."""
    agent.catch_up()
    state, squares = agent.node.state, 0
    for change in state.changes.values():
        squares += sum(m.square for m in change.members.values())

    def counted(_: Member) -> int:
        raise AssertionError("it is added up anew")

    with monkeypatch.context() as patched:
        patched.setattr(Member, "square", property(counted))
        assert sum(state.sums().values()) == squares > 0
        agent._show_prompts()


@pytest.mark.invariant("J9")
@pytest.mark.parametrize("alive", [False, True])
def test_a_request_that_was_read_counts_also_when_its_client_has_gone(
    agent: Agent, slow: None, alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wants signs of life gives up what it asked when it goes; an epilog's line counts once it was read."""
    caller = Caller(Actor("ann", 7, "admin", "cluster"), Owner("uid:7", "ann", 7))
    client = Remote(lambda raw: None, caller)
    fields = {"v": 1, "op": "emergency_start", "args": {"reason": "r", "for_ns": NS_PER_S}}
    agent.requests.line(client, orjson.dumps({**fields, "alive": True} if alive else fields))
    assert agent.requests.first.runs()
    monkeypatch.setattr(agent.control, "connected", lambda _: False)
    for _ in range(COUNT):
        if agent.requests.first.runs():
            agent.requests.first.turn()
    assert bool(agent.node.state.emergency) == (not alive)


def test_without_a_journal_all_that_was_touched_is_looked_at_first(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.journal_error = "journal: database or disk is full"
    looked: list[str] = []
    look = agent._look_at

    def counted(wanted: list[tuple[str, Owner | None]]) -> Any:
        looked.extend(r for r, _ in wanted)
        return look(wanted)

    monkeypatch.setattr(agent, "_look_at", counted)
    agent.catch_up()
    assert len(looked) == COUNT
    agent.journal_error = ""


def test_what_breaks_in_a_request_s_own_work_ends_that_request_alone(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A status lists what is new a step at a time: one error there would have ended the agent, whoever asked."""

    def breaks(*_: Any) -> Iterator[None]:
        yield
        raise KeyError("nobody expected this")

    monkeypatch.setattr(views, "gather_new", breaks)
    answer = asked(agent, "status", "viewer")
    while not answer:
        agent.requests.first.turn()
    assert not answer[0]["ok"] and "internal error" in answer[0]["message"]
    assert "nobody expected this" in capsys.readouterr().err
    assert asked(agent, "ping")
