"""A decision over many resources is several records: none is longer than the cluster takes, and none stands alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pytest

from pact.agent import replayed
from pact.agent.config import Config
from pact.agent.loop import Agent
from pact.agent.remote import Remote
from pact.core import records, strict
from pact.core.node import declare, fold, ledger, tracked
from pact.core.node.change import Rolling
from pact.core.node.events import Caller
from pact.core.node.state import State
from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Actor, Owner
from pact.resources.kinds import file

COUNT = 150
PIECE = 40

pytestmark = [pytest.mark.root, pytest.mark.invariant("J6")]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    for module in (records, ledger, declare, tracked):
        monkeypatch.setattr(module, "PIECE_MAX", PIECE)
    with TemporaryDirectory(dir="/var/tmp", prefix="plans-") as top:
        place = Path(top)
        files = [place / f"f{n}" for n in range(COUNT)]
        (place / "declared.toml").write_text("".join(f'[file."{f}"]\ncontent = "one"\n' for f in files))
        for file in files:
            file.write_text("one")
        agent = Agent(
            Config(
                name="n1",
                state_dir=str(place / "state"),
                socket=str(place / "s"),
                declared=[str(place / "declared.toml")],
            )
        )
        for file in files:
            file.write_text("two")
            agent.watching.touch(f"file:{file}", None)
        agent.catch_up()
        yield agent
        agent.close()


def carried_out(agent: Agent, op: str, *, fails: bool = False, **args: Any) -> dict[str, Any]:
    out: list[Any] = []
    caller = Caller(Actor("ann", 7, "admin", "cluster"), Owner("uid:7", "ann", 7))
    client = Remote(lambda raw: out.append(orjson.loads(raw)), caller)
    agent.requests.line(client, orjson.dumps({"v": 1, "op": op, "args": args}))
    while not out:
        agent._turn(-1)
    answer: dict[str, Any] = out[0]
    assert answer["ok"] is not fails, answer
    return answer


def test_a_long_rollback_begins_with_several_records_of_one_transaction(agent: Agent) -> None:
    (change,) = agent.node.state.changes
    carried_out(agent, "rollback", all=True)
    begun = [r for r in agent.journal.records() if r.type == "rollback_started"]
    assert [r.data["part"] for r in begun] == [[n, 4] for n in (1, 2, 3, 4)]
    assert all(
        len(r.data["plan"]) <= PIECE and r.data["saves"].keys() == {s["id"] for s in r.data["plan"]} for r in begun
    )
    state, rolling = State(), list[Rolling | None]()
    for record in agent.journal.records():
        fold.apply(state, record)
        if record.type == "rollback_started":
            rolling.append(state.changes[change].rolling)
    whole = rolling[-1]
    assert whole is not None and len(whole.steps) == len(set(whole.steps)) == COUNT
    assert whole.saved is not None and len(whole.saved) == COUNT, "a start after a kill knows all that was kept"
    assert whole.seq == begun[0].seq
    assert not state.changes


def test_what_a_long_rollback_took_back_is_applied_again_whole(agent: Agent) -> None:
    (change,) = agent.node.state.changes
    resources = set(agent.node.state.member_of)
    carried_out(agent, "rollback", all=True)
    again = replayed.rolled_back_state(agent.journal.path, change)
    assert again.keys() == resources
    carried_out(agent, "redo", change=change)
    assert {Path(r.partition(":")[2]).read_text() for r in resources} == {"two"}


def in_reason(value: Any) -> bool:
    """Whether no list or table of a record is longer than a piece."""
    if isinstance(value, dict | list) and len(value) > PIECE:
        return False
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(map(in_reason, inside))


def too_long(agent: Agent) -> list[str]:
    return [r.type for r in agent.journal.records() if not in_reason(strict.own(orjson.dumps(r.data)))]


def parts(agent: Agent, type_: str) -> list[list[int] | None]:
    return [r.data.get("part") for r in agent.journal.records() if r.type == type_]


FOUR = [[n, 4] for n in (1, 2, 3, 4)]


def test_a_long_rollback_ends_with_several_records_and_is_settled_by_the_last(agent: Agent) -> None:
    (change,) = agent.node.state.changes
    carried_out(agent, "rollback", all=True)
    assert parts(agent, "rolled_back") == FOUR
    ended = [r for r in agent.journal.records() if r.type == "rolled_back"]
    assert len({r for record in ended for r in record.data["results"]}) == COUNT
    state, left = State(), list[int]()
    for record in agent.journal.records():
        fold.apply(state, record)
        if record.type == "rolled_back":
            found = state.changes.get(change)
            left.append(-1 if found is None else len(found.members))
    assert left == [COUNT - PIECE, COUNT - 2 * PIECE, COUNT - 3 * PIECE, -1]
    assert too_long(agent) == []


def test_a_part_of_a_change_that_is_rolled_back_is_split_off_in_several_records(agent: Agent) -> None:
    (change,) = agent.node.state.changes
    first = sorted(agent.node.state.member_of)[0]
    rest = [r for r in agent.node.state.member_of if r != first]
    carried_out(agent, "rollback", targets=rest)
    assert parts(agent, "change_split") == FOUR and parts(agent, "rolled_back") == FOUR
    assert list(agent.node.state.changes) == [change] and list(agent.node.state.member_of) == [first]
    assert too_long(agent) == []


def test_what_is_applied_again_is_several_records(agent: Agent) -> None:
    (change,) = agent.node.state.changes
    carried_out(agent, "rollback", all=True)
    answer = carried_out(agent, "redo", change=change)
    assert parts(agent, "applied") == FOUR
    again = agent.node.state.changes[answer["result"]["change"]]
    assert len(again.members) == COUNT and not again.intents
    (opened,) = [r for r in agent.journal.records() if r.type == "window_opened" and r.data["change"] == again.id]
    assert opened.data["count"] == COUNT and len(opened.data["resources"]) == PIECE
    assert too_long(agent) == []


def test_a_rollback_that_fails_for_many_says_so_in_several_records(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    (change,) = agent.node.state.changes
    barred = sorted(agent.node.state.member_of)[: COUNT // 2]
    real = file.File.restore_among

    def restore(self: Any, name: str, step: Step, *args: Any) -> None:
        if step.id in barred:
            raise RestoreError("a bad day")
        real(self, name, step, *args)

    monkeypatch.setattr(file.File, "restore_among", restore)
    asked = carried_out(agent, "rollback", fails=True, all=True)
    assert parts(agent, "rollback_failed") == FOUR and asked["exit"] == 1
    assert sorted(agent.node.state.member_of) == barred and list(agent.node.state.changes) == [change]
    assert agent.node.state.changes[change].state == "failed"
    records_ = [r.data for r in agent.journal.records() if r.type == "rollback_failed"]
    assert sorted(r for d in records_ for r in d["left"]) == barred
    assert sum(len(d["restored"]) for d in records_) == COUNT - len(barred)
    assert too_long(agent) == []


def test_a_short_one_is_one_record(agent: Agent) -> None:
    carried_out(agent, "rollback", targets=[min(agent.node.state.member_of)])
    (begun,) = [r for r in agent.journal.records() if r.type == "rollback_started"]
    assert "part" not in begun.data


def test_what_is_new_and_removed_at_once_is_several_records_too(agent: Agent) -> None:
    place = Path(agent.config.socket).parent / "new"
    place.mkdir()
    carried_out(agent, "track", patterns={f"file:{place}/*": "report"})
    for n in range(COUNT):
        (place / f"n{n}").write_text("new")
    while len(agent.node.state.untracked) < COUNT:
        agent._turn(-1)
    carried_out(agent, "rollback", targets=sorted(agent.node.state.untracked))
    begun = [r.data for r in agent.journal.records() if r.type == "rollback_started"]
    assert len(begun) == 4 and all(len(d["plan"]) <= PIECE for d in begun)
    assert not list(place.iterdir())
