"""An agent in this process whose journal fails, and cannot be read either: nothing is decided, nothing is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pact.agent import driver as shell
from pact.agent.config import Config
from pact.agent.loop import Agent
from pact.agent.probing import observe
from pact.core.node.events import Appeared, FleetTold, New, Observed, Scanned, Sighting, Ticked
from pact.errors import JournalError
from pact.model import NS_PER_S, Owner, Unreadable

pytestmark = [pytest.mark.root, pytest.mark.invariant("J4", "J9", "F3")]


@pytest.fixture
def place() -> Iterator[Path]:
    with TemporaryDirectory(dir="/var/tmp", prefix="unheard-") as top:
        yield Path(top)


@pytest.fixture
def agent(place: Path) -> Iterator[Agent]:
    (place / "declared.toml").write_text("".join(f'[file."{place}/{n}"]\ncontent = "one"\n' for n in "abc"))
    for n in "abc":
        (place / n).write_text("one")
    agent = Agent(
        Config(
            name="n1", state_dir=str(place / "state"), socket=str(place / "s"), declared=[str(place / "declared.toml")]
        )
    )
    try:
        yield agent
    finally:
        agent.close()


def drift(agent: Agent, place: Path, name: str) -> Observed:
    (place / name).write_text("two")
    resource = f"file:{place}/{name}"
    return Observed(*agent.now(), [Sighting(resource, observe(resource))])


@pytest.mark.parametrize("readable", [True, False])
def test_after_the_first_loss_no_event_of_the_same_turn_is_decided(
    agent: Agent, place: Path, readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seq = agent.journal.seq
    with monkeypatch.context() as broken:

        def fails(*_: object, **__: object) -> None:
            raise JournalError("journal: database or disk is full")

        broken.setattr(agent.journal, "append", fails)
        broken.setattr(agent.journal, "probe", fails)
        if not readable:
            broken.setattr(shell, "load_state", fails)
        agent.step(drift(agent, place, "a"))
        assert agent.journal_error and set(agent.unrecorded) == {f"file:{place}/a"}
        broken.undo()  # the disk takes and gives everything again, and the agent does not know it yet
        agent.step(drift(agent, place, "b"))
        agent.step(Ticked(*agent.now()))
        agent.step(Scanned(*agent.now(), drift(agent, place, "c").sightings, False))
        assert agent.journal.seq == seq, "what is in memory may be ahead: nothing is recorded on top of it"
        assert set(agent.unrecorded) == {f"file:{place}/{n}" for n in "abc"}
    agent._retry_journal_ns = 0
    agent._retry_journal(agent.clock.now_ns())
    assert not agent.journal_error and not agent.unrecorded
    assert set(agent.node.state.member_of) == {f"file:{place}/{n}" for n in "abc"}
    assert agent.journal.seq == agent.node.state.seq > seq


@pytest.mark.invariant("F9")
@pytest.mark.parametrize("seen_before", [True, False])
def test_what_cannot_be_read_while_nothing_can_be_recorded_is_looked_at_again(
    agent: Agent, place: Path, seen_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without a descriptor left: its signature moved with the look, and no event comes any more."""
    resource = f"file:{place}/a"
    with monkeypatch.context() as broken:

        def fails(*_: object, **__: object) -> None:
            raise JournalError("journal: database or disk is full")

        broken.setattr(agent.journal, "append", fails)
        broken.setattr(agent.journal, "probe", fails)
        agent.step(drift(agent, place, "b"))
        assert agent.journal_error
        if seen_before:
            agent.step(drift(agent, place, "a"))
        (place / "a").write_text("three")
        agent.watching.observe([(resource, None)], lambda *_: None)  # the baseline is as new as the file
        agent.step(Observed(*agent.now(), [Sighting(resource, Unreadable("too many open files"))]))
        assert (resource in agent.unrecorded) == seen_before, "what was seen of it is not forgotten either"
        assert resource in agent.node.unreadable, "and is said"
    agent._retry_journal_ns = 0
    agent._retry_journal(agent.clock.now_ns())
    assert not agent.journal_error and (resource in agent.node.unreadable or seen_before)
    agent.look_at_unreadable()  # when a rescan has ended
    agent.catch_up()
    change = agent.node.state.change_of(resource)
    assert change is not None and change.members[resource].actual == observe(resource)
    assert resource not in agent.node.unreadable


def fail_the_journal(agent: Agent, broken: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise JournalError("journal: database or disk is full")

    broken.setattr(agent.journal, "append", fails)
    broken.setattr(agent.journal, "probe", fails)


def loses_its_journal(agent: Agent, place: Path, broken: pytest.MonkeyPatch) -> None:
    fail_the_journal(agent, broken)
    agent.step(drift(agent, place, "a"))
    assert agent.journal_error


def finds_it_again(agent: Agent) -> None:
    agent._retry_journal_ns = 0
    agent._retry_journal(agent.clock.now_ns())
    assert not agent.journal_error


STOP = {"hold": "f1", "owner": "ann", "reason": "r", "left_ns": 3600 * NS_PER_S}


@pytest.mark.invariant("G8")
def test_a_loss_makes_no_delayed_word_of_an_earlier_root_count(
    agent: Agent, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the new root said needed no record: only the memory has it."""
    agent.tell(FleetTold(*agent.now(), 6, 100, []))
    with monkeypatch.context() as broken:
        loses_its_journal(agent, place, broken)
    finds_it_again(agent)
    agent.tell(FleetTold(*agent.now(), 5, 101, [STOP]))
    assert not agent.node.state.holds


@pytest.mark.invariant("G8")
def test_a_stop_that_was_lost_with_the_journal_counts_when_it_is_said_again(
    agent: Agent, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.tell(FleetTold(*agent.now(), 5, 99, []))
    with monkeypatch.context() as broken:
        fail_the_journal(agent, broken)
        agent.tell(FleetTold(*agent.now(), 6, 100, [STOP]))
        assert agent.journal_error and not agent.node.state.holds
    finds_it_again(agent)
    assert set(agent.node.state.holds) == {"f1"}
    agent.tell(FleetTold(*agent.now(), 6, 100, [STOP]))
    assert set(agent.node.state.holds) == {"f1"}


@pytest.mark.invariant("U1")
@pytest.mark.parametrize("lost_with", ["its own record", "another record"])
def test_whose_a_new_thing_is_is_known_after_a_loss(
    agent: Agent, place: Path, lost_with: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, tracking = Owner("uid:7", "ann", 7), agent.watching.tracking
    tracking.follow({f"file:{place}/**": "report"})
    (place / "new").write_text("x")
    new = New(f"file:{place}/new", {"type": "file"}, ann)
    with monkeypatch.context() as broken:
        if lost_with == "another record":
            agent.node.state.tracked[f"file:{place}/**"] = "report"
            agent.step(Appeared(*agent.now(), [New(f"file:{place}/before", {"type": "file"}, ann)]))
            agent.step(Appeared(*agent.now(), [new]))
            assert new.resource in agent.node.pace.waiting
            loses_its_journal(agent, place, broken)
        else:
            loses_its_journal(agent, place, broken)
            agent._remember(Appeared(*agent.now(), [new]))
    finds_it_again(agent)
    found, _ = tracking.take(agent.node, agent.clock.now_ns(), everything=True)
    assert {f.resource: f.owner for f in found}[new.resource] == ann
