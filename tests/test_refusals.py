"""Refusals of people without a role: the first ones stand in the journal one by one, the rest as numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact.core.node.events import Asked
from pact.core.node.refusals import EACH_NS, Bucket
from pact.core.ops import EmergencyStart, HoldRelease
from pact.limits import REFUSALS_AT_ONCE
from pact.model import NS_PER_S, Declared
from pact.sim.parts import person
from pact.sim.world import World

A = "sysctl:a"
pytestmark = pytest.mark.invariant("S3")


def started() -> World:
    world = World(machine={A: {"value": "0"}})
    world.start({A: Declared({"value": "0"})})
    return world


def refused(world: World, count: int, role: str = "viewer", first_uid: int = 2000) -> None:
    for n in range(count):
        caller = person(f"p{n}", role, first_uid + n)
        world.feed(
            lambda n=n, caller=caller: Asked(
                world.t_ns, world.wall_ns, 10_000 + n, EmergencyStart(reason="r", for_ns=NS_PER_S), caller
            )
        )


def denied(world: World) -> list[dict[str, object]]:
    return [dict(r.data) for r in world.journal if r.type == "denied"]


def test_of_many_refusals_all_are_counted_and_few_are_records() -> None:
    world = started()
    refused(world, 5000)
    assert REFUSALS_AT_ONCE <= len(denied(world)) <= REFUSALS_AT_ONCE + 2
    assert all(world.replies[10_000 + n].exit_code == 3 for n in range(5000)), "each is told"
    world.advance(10 * EACH_NS)
    counted = sum(int(str(d.get("beyond", 0))) for d in denied(world))
    assert counted + sum("beyond" not in d or d["request"] != "several" for d in denied(world)) == 5000
    assert world.node.next_wake_ns() is None or world.node.refusals.beyond == 0


def test_while_it_goes_on_there_is_a_record_a_second_that_says_how_many_were_none() -> None:
    world = started()
    refused(world, 2 * REFUSALS_AT_ONCE)
    before = len(denied(world))
    for _ in range(20):
        world.advance(EACH_NS // 2)
        refused(world, 50)
    assert before + 8 <= len(denied(world)) <= before + 14
    world.advance(5 * EACH_NS)
    told = sum(int(str(d.get("beyond", 0))) + (d["request"] != "several") for d in denied(world))
    assert told == 2 * REFUSALS_AT_ONCE + 20 * 50


def test_an_administrator_s_are_always_recorded_and_a_role_s_count_with_the_others() -> None:
    world = started()
    refused(world, 3 * REFUSALS_AT_ONCE)
    before = len(denied(world))
    world.feed(lambda: Asked(world.t_ns, world.wall_ns, 1, HoldRelease(name="nothing"), person("root", "admin", 0)))
    refused(world, 3 * REFUSALS_AT_ONCE, "ops", 9000)
    assert len(denied(world)) <= before + 2


@given(st.lists(st.integers(0, 3 * NS_PER_S), max_size=60))
def test_a_bucket_never_gives_more_than_it_holds_and_what_came_in(steps: list[int]) -> None:
    bucket, t_ns, given_out = Bucket(5, NS_PER_S), 0, list[int]()
    for step in steps:
        t_ns += step
        if bucket.admit(t_ns):
            given_out.append(t_ns)
        else:
            assert bucket.next_ns > t_ns
        for first in range(len(given_out)):
            spent = len(given_out) - first
            assert spent <= 6 + (t_ns - given_out[first]) // NS_PER_S
