"""Many nodes' lives from seeds: writes, requests, consumers, kills at any effect, full disks, reboots.

Safety is checked all the way, then the world is healed and liveness is demanded: everything settles or is explicitly
left to a person.
"""

from __future__ import annotations

import os
import random

import pytest

from pact.core import change as life
from pact.core.records import verify
from pact.core.settings import Settings
from pact.core.state import State
from pact.model import NS_PER_S, Declared, Holder
from pact.sim.world import World, person

RESOURCES = [f"sysctl:k{i}" for i in range(4)] + [f"file:/f{i}" for i in range(4)] + ["mount:/m"]
FRESH = ["file:/t/report/a", "file:/t/report/b", "file:/t/enforce/a", "file:/t/enforce/b"]
PATTERNS = ["file:/t/report/*", "file:/t/enforce/*"]
PEOPLE = [person("alice"), person("bob"), person("root", "admin", 0)]
STEPS = 150
CHECK_EVERY = 8  # steps after which the parts of the state are compared
SEEDS = range(int(os.environ.get("PACT_SEED", "0")), int(os.environ.get("PACT_SEED", "0")) + int(
    os.environ.get("PACT_SEEDS", "40")))  # fmt: skip


def build(rng: random.Random) -> World:
    world = World(settings=Settings(
        base_ns=rng.choice([60, 900]) * NS_PER_S, floor_ns=rng.choice([0, 5, 60]) * NS_PER_S,
        on_busy_retry=rng.random() < 0.3, max_resources=rng.choice([3, 500]),
    ))  # fmt: skip
    declared = {}
    for resource in RESOURCES:
        value = {"value": "0"}
        world.machine[resource], world.boot_values[resource] = value, {"value": "boot"}
        requires = (rng.choice(RESOURCES),) if rng.random() < 0.2 else ()
        declared[resource] = Declared(value, requires=tuple(r for r in requires if r < resource))
    world.start(declared)
    world.ask("track", PEOPLE[2], patterns={PATTERNS[0]: "report", PATTERNS[1]: "enforce"})
    return world


def random_step(world: World, rng: random.Random) -> None:
    if not world.running:
        world.start()
        return
    what = rng.choices(["write", "advance", "ask", "use", "free", "kill", "disk", "reboot", "see", "stubborn", "new"],
                       [30, 25, 30, 6, 8, 6, 3, 1, 5, 2, 15])[0]  # fmt: skip
    resource = rng.choice(RESOURCES)
    value = rng.choice([None, *({"value": str(i)} for i in range(4))])
    if what == "write":
        world.write(resource, value, rng.choice([None, *(p.owner for p in PEOPLE)]))
    elif what == "new":
        fresh = rng.choice(FRESH)
        world.create(fresh, rng.choice([None, {"value": "1"}, {"value": "2"}]), rng.choice([None, *(
            p.owner for p in PEOPLE)]))  # fmt: skip
    elif what == "see":
        world.machine[resource] = value
    elif what == "advance":
        world.advance(rng.choice([1, 10, 100, 1000]) * NS_PER_S)
    elif what == "use":
        world.holders[resource] = [Holder(resource, rng.randrange(1, 9), "fd")]
    elif what == "free":
        world.holders.clear()
    elif what == "kill":
        world.crash_after = rng.randrange(0, 12)
    elif what == "disk":
        world.disk_full = rng.random() < 0.5
    elif what == "reboot":
        world.disk_full = False
        world.reboot(rng.choice([1, 1000]) * NS_PER_S)
    elif what == "stubborn":
        world.stubborn ^= {resource}
    else:
        ask(world, rng, resource)


def ask(world: World, rng: random.Random, resource: str) -> None:
    caller = rng.choice(PEOPLE)
    changes = list(world.node.state.changes)
    target = rng.choice([[], [resource], changes[:1], changes[-1:], [rng.choice(FRESH)], [resource, rng.choice(FRESH)]])
    op = rng.choice(["commit", "commit", "rollback", "rollback", "extend", "declare", "apply", "adopt", "track",
                     "emergency_start", "emergency_end", "hold_place", "hold_release"])  # fmt: skip
    values = {r: Declared({"value": str(rng.randrange(4))}).to_json() for r in rng.sample(RESOURCES, 2)}
    args: dict[str, object] = {
        "track": {"patterns": {rng.choice(PATTERNS): rng.choice(["report", "enforce", "ignore"])}},
        "commit": {"targets": target, "message": "m", "ttl_ns": rng.choice([None, None, 900 * NS_PER_S]),
                   "shared": rng.random() < 0.5},
        "rollback": {"targets": target, "force": rng.random() < 0.3, "dry_run": rng.random() < 0.2,
                     "shared": rng.random() < 0.5},
        "extend": {"targets": target, "by_ns": rng.choice([1, 600]) * NS_PER_S},
        "declare": {"resources": values, "take": rng.random() < 0.5},
        "apply": {"resources": values, "message": "m"},
        "adopt": {"patterns": [rng.choice([resource, *FRESH])]},
        "emergency_start": {"reason": "r", "for_ns": 1000 * NS_PER_S},
        "emergency_end": {"how": rng.choice(["commit", "rollback"]), "message": "m", "force": True,
                          "shared": rng.random() < 0.5, "all": rng.random() < 0.5},
        "hold_place": {"reason": "r", "for_ns": 500 * NS_PER_S, "change": rng.choice([None, *changes])},
        "hold_release": {"name": None},
    }[op]
    reply = world.ask(op, caller, **args)
    if world.running and not world.disk_full:
        assert reply is not None, f"{op} was never answered"


def heal(world: World) -> None:
    """Everything works again, nobody holds anything, and an admin settles what was left to a person."""
    root = PEOPLE[2]
    world.crash_after, world.disk_full, world.refusals = None, False, []
    world.holders.clear()
    world.stubborn.clear()
    if not world.running:
        world.start()
    world.crash()
    world.start()
    if world.node.state.emergency is not None:
        world.ask("emergency_end", root, how="rollback", force=True, shared=True, all=True)
    for resource in [*RESOURCES, *FRESH]:
        world.see(resource)
    for _ in range(2):  # what was committed for a time is declared no more then: the shell looks again
        for resource in FRESH:
            world.create(resource, world.machine.get(resource), None)
        world.advance(20_000 * NS_PER_S)
        left = [c.id for c in world.node.state.changes.values() if c.state in (life.BLOCKED, life.FAILED)]
        if left:
            world.ask("rollback", root, targets=left, force=True, shared=True)
        world.advance(20_000 * NS_PER_S)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.invariant("J1", "J2", "A2", "A4", "R6", "C1", "U1", "U2")
def test_a_random_life_is_safe_and_ends_settled(seed: int) -> None:
    rng = random.Random(seed)
    world = build(rng)
    for step in range(STEPS):
        random_step(world, rng)
        if step % CHECK_EVERY == 0 and world.running:
            world.node.state.check()
    heal(world)
    world.check()
    state = world.node.state
    assert not state.changes, (seed, {c.id: (c.state, c.reason) for c in state.changes.values()})
    for resource in state.declared_ids():
        declared = state.declared(resource)
        assert declared is not None
        assert world.machine.get(resource) == declared.attrs, (seed, resource)
    for resource in FRESH:
        mode = state.tracked[f"{resource.rpartition('/')[0]}/*"]
        there = world.machine.get(resource) is not None and resource not in state
        assert (resource in state.untracked) == (there and mode == "report"), (seed, resource, mode)
        assert not (there and mode == "enforce"), (seed, resource)
    assert not state.enforced and not world.node.pace, seed
    assert len(list(verify(world.journal))) == len(world.journal)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.invariant("J2")
def test_replay_of_every_prefix_gives_the_state_that_wrote_it(seed: int) -> None:
    rng = random.Random(1000 + seed)
    world = build(rng)
    snapshots: dict[int, dict[str, object]] = {}
    for _ in range(80):
        random_step(world, rng)
        if world.running and not world.disk_full:
            snapshots[world.node.state.seq] = world.node.state.to_json()
    state = State()
    for record in world.journal:
        state.apply(record)
        state.check()
        if record.seq in snapshots:
            assert state.to_json() == snapshots[record.seq], (seed, record.seq)
            again = State.from_json(state.to_json())
            again.check()
            assert again.to_json() == state.to_json()
            state = again  # the rest is folded onto what a snapshot gave
    assert len(snapshots) > 3


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.invariant("A4", "P1", "H1", "E1", "F5")
def test_nothing_is_rolled_back_automatically_early_suspended_or_in_use(seed: int) -> None:
    rng = random.Random(2100 + seed)
    world = build(rng)
    for _ in range(STEPS):
        random_step(world, rng)
    floor_ns, base_ns = world.settings.floor_ns, world.settings.base_ns
    state = State()
    checked = 0
    for record in world.journal:
        if record.type == "rollback_started" and record.data["cause"] == "expired":
            change = state.changes[record.data["change"]]
            assert change.state == life.OPEN
            assert state.emergency is None and not state.held_by(change.id)
            deadline = state.deadline_ns(change)
            assert deadline is not None and record.t_ns >= deadline
            oldest = min(m.opening_ns for m in change.members.values()) + change.extension_ns
            assert record.t_ns >= oldest + min(floor_ns, base_ns)
            checked += 1
        state.apply(record)
    assert checked or seed, "no seed expired anything"
