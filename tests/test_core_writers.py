"""Rules for writers in the core: what they accept, and what they must not."""

from __future__ import annotations

import pytest

from pact.core.node.events import RunsEnded
from pact.model import NS_PER_S, Declared, Owner
from pact.sim.parts import with_settings
from pact.sim.world import World

S = NS_PER_S
ZERO, ONE, TWO = {"value": "0"}, {"value": "1"}, {"value": "2"}
A, B = "sysctl:a", "sysctl:b"
PUPPET = Owner("uid:0", "root", 0, None, "puppet apply", "puppet#1.1", "commit")
ANN = Owner("login:7:1", "ann", 7, "1", "vi")


def started() -> World:
    world = World(settings=with_settings(), machine={A: dict(ZERO), B: dict(ZERO)})
    world.start({A: Declared(dict(ZERO)), B: Declared(dict(ZERO))})
    return world


def ended(world: World) -> None:
    world.feed(lambda: RunsEnded(world.t_ns, world.wall_ns, [PUPPET.run]))
    world.advance(10 * S)


def value(world: World, resource: str) -> object:
    declared = world.node.state.declared(resource)
    return None if declared is None else declared.attrs


@pytest.mark.invariant("O5")
def test_what_a_run_has_changed_is_accepted_when_it_has_ended() -> None:
    world = started()
    world.write(A, ONE, PUPPET)
    world.advance(2 * S)
    world.write(B, ONE, PUPPET)
    assert value(world, A) == ZERO
    ended(world)
    assert (value(world, A), value(world, B)) == (ONE, ONE) and not world.node.state.changes
    world.check()


@pytest.mark.invariant("O5", "C9")
def test_what_nobody_is_known_to_have_changed_is_not_accepted_with_it() -> None:
    world = started()
    world.write(A, ONE, None)
    world.write(A, TWO, PUPPET)
    world.write(B, ONE, PUPPET)
    ended(world)
    assert (value(world, A), value(world, B)) == (ZERO, ONE)
    (change,) = world.node.state.changes.values()
    assert list(change.members) == [A] and world.node.state.deadline_ns(change) is not None
    world.check()


@pytest.mark.invariant("O5", "C9")
def test_nor_what_nobody_is_known_to_have_written_after_it() -> None:
    world = started()
    world.write(A, ONE, PUPPET)
    world.write(B, ONE, PUPPET)
    world.advance(2 * S)
    world.write(A, TWO, None)
    ended(world)
    assert (value(world, A), value(world, B)) == (ZERO, ONE)
    (change,) = world.node.state.changes.values()
    assert list(change.members) == [A] and world.node.state.deadline_ns(change) is not None
    world.check()


@pytest.mark.invariant("O5")
def test_a_run_that_is_named_late_for_its_second_value_is_accepted() -> None:
    world = started()
    world.write(A, ONE, PUPPET)
    world.write(A, TWO, None)
    world.see(A, PUPPET)
    ended(world)
    assert value(world, A) == TWO
    world.check()


@pytest.mark.invariant("O5")
def test_a_run_that_is_named_late_for_what_was_seen_is_accepted() -> None:
    """A rescan saw the drift before the event that names the writer: it is the same value."""
    world = started()
    world.write(A, ONE, None)
    world.see(A, PUPPET)
    ended(world)
    assert value(world, A) == ONE
    world.check()


@pytest.mark.invariant("O5", "C9")
def test_a_long_run_is_accepted_again_and_again_although_a_part_is_somebody_else_s() -> None:
    world = started()
    world.write(A, ONE, ANN)
    world.write(A, TWO, PUPPET)
    for n in range(9):
        world.write(B, {"value": str(n + 3)}, PUPPET)
        world.advance(8 * S)
        assert value(world, B) == {"value": str(n + 3)}, n
    assert value(world, A) == ZERO
    world.check()
