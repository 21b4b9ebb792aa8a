"""A resource that was gone with its device, and is there again: its declared value is brought back, unless somebody says
otherwise, or has said otherwise.
"""

from __future__ import annotations

from typing import Any

import pytest

from pact.core.settings import Settings
from pact.model import NS_PER_S, UNATTRIBUTED, Declared, Owner
from pact.sim.parts import person, with_settings
from pact.sim.world import World

S = NS_PER_S
ZERO, ONE, TWO = {"value": "0"}, {"value": "1"}, {"value": "2"}
ANN, ADMIN = person("ann"), person("root", "admin", 0)
DISK, OTHER, SYSCTL = "sysfs:block/sda/queue/a", "sysfs:block/sda/queue/b", "sysctl:a"
ALL = (DISK, OTHER, SYSCTL)


def started(settings: Settings | None = None) -> World:
    world = World(settings=settings or with_settings(), machine={r: dict(ZERO) for r in ALL})
    world.start({r: Declared(dict(ZERO)) for r in ALL})
    return world


def gone_and_back(world: World, *resources: str, value: Any = ONE, owner: Owner | None = None) -> None:
    for resource in resources:
        world.write(resource, None, None)
    for resource in resources:
        world.write(resource, value, owner)


def causes(world: World) -> list[str]:
    return [r.data["cause"] for r in world.journal if r.type == "converge_started"]


@pytest.mark.invariant("B4")
def test_it_is_brought_back_at_once_and_nobody_owns_that() -> None:
    world = started()
    gone_and_back(world, DISK, OTHER)
    assert world.machine[DISK] == world.machine[OTHER] == ZERO
    assert set(causes(world)) == {"returned"} and not world.node.state.changes
    world.check()


@pytest.mark.invariant("B4", "R14")
def test_who_reads_it_is_told_of_it() -> None:
    world = World(settings=with_settings(), machine={DISK: dict(ZERO)})
    world.start({DISK: Declared(dict(ZERO), notify=("service:a reload",))})
    told: list[tuple[str, ...]] = []
    world.before_act = lambda _, step: told.append(step.notify)
    gone_and_back(world, DISK)
    assert told == [("service:a reload",)]


@pytest.mark.invariant("B4")
def test_what_comes_back_as_declared_needs_nothing() -> None:
    world = started()
    gone_and_back(world, DISK, value=ZERO)
    assert not causes(world) and not world.node.state.changes


@pytest.mark.invariant("B4")
@pytest.mark.parametrize("how", ["observe", "emergency", "hold", "a known writer", "another kind"])
def test_what_somebody_decided_otherwise_stays(how: str) -> None:
    world = started(with_settings(enforce=False) if how == "observe" else None)
    if how == "emergency":
        world.ask("emergency_start", ADMIN, reason="maintenance")
    elif how == "hold":
        world.ask("hold_place", ADMIN, reason="maintenance", for_ns=3600 * S)
    resource = SYSCTL if how == "another kind" else DISK
    gone_and_back(world, resource, owner=ANN.owner if how == "a known writer" else None)
    assert world.machine[resource] == ONE and not causes(world)
    (change,) = world.node.state.changes.values()
    assert change.owner == (ANN.owner if how == "a known writer" else UNATTRIBUTED)
    world.check()


@pytest.mark.invariant("B4")
def test_also_when_a_rollback_was_refused_meanwhile() -> None:
    world = started()
    world.write(DISK, None, None)
    world.refusals = ["the device is not there"]
    world.advance(3600 * S)
    (change,) = world.node.state.changes.values()
    if change.state != "blocked":
        pytest.skip("this world does not refuse")
    world.refusals = []
    world.write(DISK, ONE, None)
    assert world.machine[DISK] == ZERO and not world.node.state.changes
    world.check()


@pytest.mark.invariant("B4")
def test_a_node_that_is_killed_meanwhile_has_ordinary_drift_with_a_window() -> None:
    world = started()
    world.write(DISK, None, None)

    class Killed(Exception):
        pass

    def killed(*_: object) -> None:
        raise Killed

    world.before_act = killed  # type: ignore[assignment]
    with pytest.raises(Killed):
        world.write(DISK, ONE, None)
    world.before_act = None
    world.start()
    (change,) = world.node.state.changes.values()
    assert (list(change.members), change.state) == ([DISK], "open")
    world.advance(3600 * S)
    assert world.machine[DISK] == ZERO
    world.check()
