"""What lies below what a plan replaces: joined, carried whole, looked at after, and brought back over a kill."""

from __future__ import annotations

from typing import Any

import pytest

from pact.core.node import below
from pact.core.plan import Step
from pact.model import NS_PER_S, Attrs, Declared, Owner
from pact.resources.rules import nature
from pact.sim.parts import person
from pact.sim.world import World

ANN, BOB = person("ann"), person("bob")
DIR: Attrs = {"type": "directory"}
LINK: Attrs = {"type": "symlink", "target": "/data"}
X: Attrs = {"type": "file", "sha256": "aa", "size": 1}
D, A, B, OUT = "file:/e", "file:/e/a", "file:/e/b", "file:/ee/a"


def started() -> World:
    world = World()
    values = {D: DIR, A: X, B: X, OUT: X}
    world.machine = dict(values)
    world.start({r: Declared(v) for r, v in values.items()})
    return world


def moved(world: World, owner: Owner | None = ANN.owner) -> None:
    """The directory gives way to a link; when that is replaced, what was seen through it is gone."""
    world.write(D, dict(LINK), owner)

    def gone(w: World, step: Step) -> None:
        if step.id == D and w.machine[D] == LINK:
            w.machine[D] = dict(DIR)
            w.machine[A] = w.machine[B] = None

    world.before_act = gone


def records(world: World, type_: str) -> list[dict[str, Any]]:
    return [dict(r.data) for r in world.journal if r.type == type_]


def turns(step: Step) -> bool:
    return nature(step.id).turns(step)


def shifts(step: Step) -> bool:
    return nature(step.id).shifts(step)


def test_what_turns_and_what_shifts() -> None:
    assert turns(Step(D, DIR, LINK)) and turns(Step("mount:/e", None, {"source": "x"}))
    for step in (
        Step(D, DIR, None),
        Step(D, LINK, DIR),
        Step(D, None, LINK),
        Step(A, X, X),
        Step("mount:/e", {}, None),
        Step(D, LINK, {**LINK, "target": "/x"}),
        Step("sysctl:a", {"value": "1"}, {"value": "2"}),
    ):
        assert not turns(step)
    for step in (Step(D, DIR, LINK), Step(D, LINK, DIR), Step(D, LINK, None), Step("mount:/e", {}, None)):
        assert shifts(step)
    for step in (
        Step(D, {**DIR, "mode": "0755"}, DIR),
        Step(D, DIR, None),
        Step(D, None, DIR),
        Step(A, X, {**X, "sha256": "bb"}),
        Step(A, None, X),
    ):
        assert not shifts(step)


def test_what_lies_below_is_found_by_its_path() -> None:
    ids = [D, A, B, OUT, "mount:/e/m", "sysctl:a", "file:/", "mount:/"]
    assert list(below.under(nature, [Step(D, DIR, LINK)], ids)) == [A, B, "mount:/e/m"]
    assert list(below.under(nature, [Step("mount:/", None, {})], ids)) == [D, A, B, OUT, "mount:/e/m"]
    assert list(below.under(nature, [], ids)) == []


@pytest.mark.invariant("R10")
def test_a_rollback_takes_along_what_is_seen_through_a_link_and_nothing_else() -> None:
    world = started()
    moved(world)
    world.advance(1000 * NS_PER_S)
    (plan,) = (r["plan"] for r in records(world, "rollback_started"))
    assert [s["id"] for s in plan] == [D, A, B]
    assert world.machine == {D: DIR, A: X, B: X, OUT: X}
    assert records(world, "drift_detected") == [r for r in records(world, "drift_detected") if r["resource"] == D]
    world.check()


@pytest.mark.invariant("R10", "R6")
@pytest.mark.parametrize("at", range(25))
def test_a_kill_at_any_effect_leaves_nothing_behind(at: int) -> None:
    world = started()
    moved(world)
    world.crash_after = at
    world.advance(1000 * NS_PER_S)
    world.crash_after = None
    if not world.running:
        world.start()
    world.advance(1000 * NS_PER_S)
    assert world.machine == {D: DIR, A: X, B: X, OUT: X}
    assert not world.node.state.changes and not world.node.converging
    world.check()


@pytest.mark.invariant("R10")
def test_what_is_not_brought_back_is_its_owner_s_drift_before_the_end_is_recorded() -> None:
    world = started()
    moved(world)
    world.stubborn = {B}
    world.advance(1000 * NS_PER_S)
    types = [r.type for r in world.journal]
    assert "rollback_failed" in types and "rolled_back" not in types
    change = world.node.state.change_of(B)
    assert change is not None and change.owner.user == "ann"


@pytest.mark.invariant("R10")
def test_another_s_drift_below_stays_with_them() -> None:
    world = started()
    moved(world)
    world.write(B, {**X, "sha256": "bb"}, BOB.owner)
    answer = world.ask("rollback", ANN)
    assert answer is not None and answer.exit_code == 0
    change = world.node.state.change_of(B)
    assert change is not None and change.owner.user == "bob" and change.members[B].actual is None
    assert any(B in note for note in answer.result["rolled_back"][0]["notes"])


@pytest.mark.invariant("R10")
def test_what_leaves_another_change_while_the_rollback_is_prepared_comes_back_with_the_link() -> None:
    """Seen between the move of the directory and the link, by nobody; it is there again when the rollback looks."""
    world = started()
    world.write(A, None, None)
    moved(world)
    world.machine[A] = dict(X)
    own, other = (world.node.state.change_of(r) for r in (D, A))
    assert own is not None and other is not None and own.id != other.id
    answer = world.ask("rollback", ANN, all=True, force=True)
    assert answer is not None and answer.exit_code == 0, answer
    assert world.machine == {D: DIR, A: X, B: X, OUT: X}
    assert not world.node.state.changes
    (started_,) = records(world, "rollback_started")
    assert [s["id"] for s in started_["plan"]] == [D, A, B]
    world.check()
