"""Plans that no change owns (declarations, boots, devices that return, applications that are taken back): who could not
be told of what they moved is told later, after a kill too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pact.core.node.events import Observed, Sighting
from pact.core.plan import Step
from pact.model import Declared, Holder
from pact.sim.parts import person, with_settings
from pact.sim.world import Crashed, World

DISK, FILE = "sysfs:block/sda/queue/a", "file:/etc/x"
ZERO, ONE, TWO = {"value": "0"}, {"value": "1"}, {"value": "2"}
ADMIN = person("root", "admin", 0)
NOTIFY = ("service:a reload",)


def started() -> World:
    world = World(settings=with_settings(), machine={DISK: dict(ZERO), FILE: dict(ZERO)})
    world.boot_values = {DISK: dict(ONE)}
    world.start({r: Declared(dict(ZERO), notify=NOTIFY) for r in (DISK, FILE)})
    return world


def declares(world: World) -> None:
    world.ask("declare", ADMIN, resources={FILE: Declared(dict(TWO), notify=NOTIFY).to_json()})


def boots(world: World) -> None:
    world.reboot(1)


def returns(world: World) -> None:
    world.write(DISK, None, None)
    world.write(DISK, dict(ONE), None)


def is_taken_back(world: World) -> None:
    """One step of the application fails."""
    world.machine["file:/etc/y"] = dict(ZERO)
    world.stubborn.add("file:/etc/y")
    values = {FILE: TWO, "file:/etc/y": TWO}
    world.ask("apply", ADMIN, resources={r: Declared(dict(v)).to_json() for r, v in values.items()}, message="m")
    world.stubborn.clear()


PLANS: list[tuple[Callable[[World], None], str, str]] = [
    (declares, FILE, "declare"),
    (boots, DISK, "boot"),
    (returns, DISK, "returned"),
    (is_taken_back, FILE, "undo"),
]
of_every_plan = pytest.mark.parametrize(("plan", "resource", "cause"), PLANS, ids=[c for *_, c in PLANS])


def told(world: World) -> list[tuple[str, bool]]:
    """The steps of later plans that tell somebody: the resource, and whether it was moved before."""
    steps: list[tuple[str, bool]] = []
    world.before_act = lambda _, step: steps.append((step.id, step.owed)) if step.notify else None
    return steps


@of_every_plan
@pytest.mark.invariant("R14")
def test_who_could_not_be_told_keeps_a_failed_change_open(
    plan: Callable[[World], None], resource: str, cause: str
) -> None:
    world = started()
    world.deaf.add(resource)
    plan(world)
    (change,) = world.node.state.changes.values()
    assert (change.state, list(change.members)) == ("failed", [resource])
    assert change.members[resource].owed == list(NOTIFY)
    assert "restored, but service:a reload failed" in change.reason
    failed = next(r for r in reversed(world.journal) if r.type == "rollback_failed")
    assert failed.data["cause"] == cause
    world.crash()
    world.start()
    world.check()
    assert [c.state for c in world.node.state.changes.values()] == ["failed"], "it stays, whatever is restarted"
    steps = told(world)
    world.deaf.clear()
    world.ask("rollback", ADMIN, targets=[change.id])
    assert steps == [(resource, True)] and not world.node.state.changes
    world.check()


@pytest.mark.invariant("R14")
def test_what_was_done_by_hand_is_committed() -> None:
    world = started()
    world.deaf.add(FILE)
    declares(world)
    world.ask("commit", ADMIN, all=True, message="reloaded by hand")
    assert not world.node.state.changes
    declared = world.node.state.declared(FILE)
    assert declared is not None and (declared.attrs, declared.notify) == (TWO, NOTIFY)
    world.check()


@of_every_plan
@pytest.mark.invariant("R14", "R6")
def test_who_was_not_told_before_a_kill_is_told_at_the_next_start(
    plan: Callable[[World], None], resource: str, cause: str
) -> None:
    world = started()

    def killed(_: World) -> None:
        if cause == "undo" and world.machine[FILE] == TWO:  # the application itself
            return
        world.before_told = None
        raise Crashed

    world.before_told = killed
    plan(world)
    assert not world.running
    steps = told(world)
    world.start()
    assert [r for r, _ in steps] == [resource] and not world.node.state.changes
    assert world.node.state.declared(resource) and not world.node.state.telling
    world.check()
    world.crash()
    world.start()
    assert len(steps) == 1, "once"


@pytest.mark.invariant("R14")
def test_a_plan_that_was_not_begun_tells_nobody() -> None:
    """The agent was killed before anything was moved: this is ordinary drift."""
    world = started()

    def killed(_: World, __: Any) -> None:
        raise Crashed

    world.before_act = killed
    declares(world)
    steps = told(world)
    world.start()
    assert not steps and [c.state for c in world.node.state.changes.values()] == ["open"]
    world.ask("rollback", ADMIN, all=True)
    assert [r for r, _ in steps] == [FILE]
    assert world.machine[FILE] == TWO and not world.node.state.telling
    world.check()


@pytest.mark.invariant("R14")
@pytest.mark.parametrize("who", ["its owner", "another one", "nobody known"])
def test_a_write_between_does_not_end_what_is_owed(who: str) -> None:
    """Somebody writes the resource, and writes the declared value back: its readers still have what was before."""
    world = started()
    world.deaf.add(FILE)
    declares(world)
    owner = {"its owner": ADMIN.owner, "another one": person("ann").owner, "nobody known": None}[who]
    world.write(FILE, dict(ONE), owner)
    steps = told(world)
    world.write(FILE, dict(TWO), owner)
    (change,) = world.node.state.changes.values()
    assert change.members[FILE].owed == list(NOTIFY) and change.members[FILE].actual == TWO
    world.check()
    world.deaf.clear()
    world.ask("rollback", ADMIN, all=True, shared=True)
    assert steps == [(FILE, True)] and not world.node.state.changes
    world.check()


@pytest.mark.invariant("R14")
def test_who_is_owed_is_told_with_the_rollback_of_a_later_write() -> None:
    world = started()
    world.deaf.add(FILE)
    declares(world)
    world.deaf.clear()
    world.write(FILE, dict(ONE), person("ann").owner)
    steps = told(world)
    world.ask("rollback", ADMIN, all=True, shared=True)
    assert [r for r, _ in steps] == [FILE] and world.machine[FILE] == TWO and not world.node.state.changes


@pytest.mark.invariant("R14")
def test_the_same_declaration_again_does_not_end_what_is_owed() -> None:
    world = started()
    world.deaf.add(FILE)
    declares(world)
    declares(world)
    (change,) = world.node.state.changes.values()
    assert change.members[FILE].owed == list(NOTIFY)
    world.check()


@pytest.mark.invariant("R14")
@pytest.mark.parametrize("deaf", [True, False])
def test_who_takes_the_resource_out_of_its_change_tells_them(deaf: bool) -> None:
    """``pact declare --take`` of what is as declared moves nothing: those who are owed it are told all the same."""
    world = started()
    world.deaf.add(FILE)
    declares(world)
    if not deaf:
        world.deaf.clear()
    steps = told(world)
    reply = world.ask("declare", ADMIN, resources={FILE: Declared(dict(TWO), notify=NOTIFY).to_json()}, take=True)
    assert steps == [(FILE, True)] and reply is not None and (reply.exit_code != 0) == deaf
    owed = [m.owed for c in world.node.state.changes.values() for m in c.members.values()]
    assert owed == ([list(NOTIFY)] if deaf else []) and not world.node.state.telling
    world.check()


@pytest.mark.invariant("R14")
def test_in_observe_mode_nobody_is_told_and_nothing_forgotten() -> None:
    world = started()
    world.deaf.add(FILE)
    declares(world)
    world.crash()
    world.settings = with_settings(enforce=False)
    world.start()
    steps = told(world)
    world.ask("declare", ADMIN, resources={FILE: Declared(dict(TWO), notify=NOTIFY).to_json()}, take=True)
    (change,) = world.node.state.changes.values()
    assert change.members[FILE].owed == list(NOTIFY) and not steps
    world.check()


@pytest.mark.invariant("R14", "R6")
@pytest.mark.parametrize("what", ["a consumer", "a refusal"])
def test_who_was_not_told_before_a_kill_is_owed_it_if_the_rest_is_refused(what: str) -> None:
    """One of two resources is restored, the agent is killed, and what is left of the rollback cannot be done."""
    world = started()
    other = "file:/etc/y"
    world.machine[other] = dict(ZERO)
    world.ask("declare", ADMIN, resources={other: Declared(dict(ZERO), notify=("service:b reload",)).to_json()})
    for resource in (FILE, other):
        world.write(resource, dict(ONE), ADMIN.owner)
    done: list[str] = []

    def killed(_: World, step: Step) -> None:
        if done:
            raise Crashed
        done.append(step.id)

    world.before_act = killed
    world.ask("rollback", ADMIN, all=True)
    assert not world.running
    (first,) = done
    (left,) = {FILE, other} - {first}
    assert (world.machine[first], world.machine[left]) == (ZERO, ONE)
    if what == "a consumer":
        world.holders[left] = [Holder(left, 5, "fd", user="eve", command="x")]
    else:
        world.refusals.append("the disk is full")
    steps = told(world)
    world.start()
    (change,) = world.node.state.changes.values()
    assert change.state == "failed" and set(change.members) == {first, left} and not steps
    assert change.members[first].owed and not change.members[left].owed
    world.check()
    world.holders.clear()
    world.refusals.clear()
    world.ask("rollback", ADMIN, all=True)
    assert set(steps) == {(first, True), (left, False)} and not world.node.state.changes
    world.check()


@pytest.mark.invariant("R14")
def test_plans_that_need_each_other_do_not_keep_the_agent_from_its_start() -> None:
    """Each of two declarations was in order by itself; together they are a circle, and both were killed."""
    world = started()
    other = "file:/etc/y"
    world.machine[other] = dict(ZERO)
    world.ask("declare", ADMIN, resources={other: Declared(dict(ZERO)).to_json()})

    def killed(*_: Any) -> None:
        world.before_act = world.before_told = None
        raise Crashed

    def declare(resource: str, needs: str) -> None:
        wanted = Declared(dict(TWO), requires=(needs,), notify=NOTIFY)
        world.ask("declare", ADMIN, resources={resource: wanted.to_json()})
        assert not world.running
        world.start()

    world.ask("hold_place", ADMIN, reason="nobody is told meanwhile", for_ns=3600 * 10**9)
    world.before_act = killed
    declare(FILE, other)
    world.write(FILE, dict(TWO), None)
    assert not world.node.state.changes and list(world.node.state.telling) == [FILE]
    world.before_told = killed
    steps = told(world)
    world.before_act, tell = None, world.before_act
    world.ask("declare", ADMIN, resources={other: Declared(dict(TWO), requires=(FILE,), notify=NOTIFY).to_json()})
    assert not world.running and list(world.disk.load().telling) == [FILE, other]
    world.before_act = tell
    world.start()
    assert not steps
    world.ask("hold_release", ADMIN, name=None)
    assert sorted(steps) == [(FILE, True), (other, True)] and not world.node.state.changes
    world.check()


@pytest.mark.invariant("B1", "B4")
@pytest.mark.parametrize("how", ["boots", "returns"])
def test_a_circle_of_requirements_ends_no_agent(how: str) -> None:
    """Each was declared by itself, so no plan was refused; a boot, or a device, brings them together."""
    world = started()
    other = DISK + "b"
    world.machine[other] = dict(ZERO)
    world.boot_values[other] = dict(ONE)
    for resource, needs in ((DISK, other), (other, DISK)):
        world.ask("declare", ADMIN, resources={resource: Declared(dict(ZERO), requires=(needs,)).to_json()})
    if how == "boots":
        world.reboot(1)
    else:
        for value in (None, dict(ONE)):
            world.machine.update({DISK: value, other: value})
            seen = [Sighting(r, value) for r in (DISK, other)]
            world.feed(lambda seen=seen: Observed(world.t_ns, world.wall_ns, seen))  # type: ignore[misc]
    assert world.running and world.machine[DISK] == world.machine[other] == ZERO
    assert not world.node.state.changes
    world.check()


@pytest.mark.invariant("R14", "E1")
@pytest.mark.parametrize("why", ["emergency", "hold"])
def test_nobody_is_told_at_a_start_in_an_emergency_or_under_a_hold(why: str) -> None:
    world = started()

    def killed(_: World) -> None:
        world.before_told = None
        raise Crashed

    if why == "emergency":
        world.ask("emergency_start", ADMIN, reason="maintenance")
    else:
        world.ask("hold_place", ADMIN, reason="maintenance", for_ns=3600 * 10**9)
    world.before_told = killed
    declares(world)
    steps = told(world)
    world.start()
    assert not steps and world.node.state.telling
    if why == "emergency":
        world.ask("emergency_end", ADMIN, how="commit", message="done", force=True, shared=True, all=True)
    else:
        world.ask("hold_release", ADMIN, name=None)
    assert [r for r, _ in steps] == [FILE] and not world.node.state.telling, "as soon as that ends"
    world.check()
