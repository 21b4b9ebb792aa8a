"""Jobs of a batch system in the core: what is set for them is held, and their ends wake what waits."""

from __future__ import annotations

import pytest

from pact.core.node.events import JobsEnded
from pact.core.settings import Settings
from pact.model import NS_PER_S, Declared, Holder, Owner
from pact.sim.parts import person, with_settings
from pact.sim.world import World

S = NS_PER_S
ZERO, ONE, TWO = {"value": "0"}, {"value": "1"}, {"value": "2"}
ROOT, ANN, OPS = person("root", "admin", 0), person("ann"), person("olga", "ops")
A, B, F = "sysctl:a", "sysctl:b", "file:/f"


def prolog(job: str, uid: int = 0) -> Owner:
    return Owner(f"uid:{uid}", "root", uid, None, "prolog", f"prolog#{job}", f"job:{job}")


def started(settings: Settings | None = None) -> World:
    world = World(settings=settings or with_settings(), machine={r: dict(ZERO) for r in (A, B, F)})
    world.boot_values = {r: dict(ZERO) for r in (A, B)}
    world.start({A: Declared(dict(ONE)), B: Declared(dict(ZERO)), F: Declared(dict(ZERO))})
    world.write(A, ONE, None)
    return world


def ended(world: World, *jobs: str) -> None:
    world.feed(lambda: JobsEnded(world.t_ns, world.wall_ns, jobs))


def holds(world: World) -> list[str]:
    return sorted(h.reason for h in world.node.state.holds.values())


@pytest.mark.invariant("O7")
def test_a_full_window_begins_with_the_end_of_the_job() -> None:
    world = started()
    world.write(B, ONE, prolog("71"))
    world.advance(10 * 3600 * S)
    assert holds(world) == ["job 71 runs"] and world.machine[B] == ONE
    ended(world, "70", "71")
    change = world.node.state.change_of(B)
    assert change is not None and holds(world) == []
    left_ns = world.node.state.deadline_ns(change)
    assert left_ns is not None and left_ns - world.t_ns > 600 * S
    world.advance(3600 * S)
    assert world.machine[B] == ZERO
    world.check()


@pytest.mark.invariant("O7")
def test_jobs_that_share_a_node_and_a_value_hold_it_until_the_last_has_ended() -> None:
    world = started()
    for job in ("71", "72", "73"):
        world.write(B, ONE, prolog(job))
    assert holds(world) == ["job 71 runs", "job 72 runs", "job 73 runs"]
    seq = world.node.state.seq
    world.write(B, ONE, prolog("72"))
    assert world.node.state.seq == seq, "it is known"
    ended(world, "72")
    ended(world, "71")
    world.advance(3600 * S)
    assert holds(world) == ["job 73 runs"] and world.machine[B] == ONE
    ended(world, "73")
    world.advance(3600 * S)
    assert world.machine[B] == ZERO
    world.check()


@pytest.mark.invariant("O7")
def test_a_part_of_a_change_that_another_job_wants_too_is_held_for_both() -> None:
    world = started()
    world.write(B, ONE, prolog("71"))
    world.write(F, ONE, prolog("71"))
    world.write(B, ONE, prolog("72"))
    ended(world, "71")
    both, alone = world.node.state.change_of(B), world.node.state.change_of(F)
    assert both is not None and alone is not None
    assert (both.state, alone.state, holds(world)) == ("held", "open", ["job 72 runs"])
    world.check()


@pytest.mark.invariant("O7")
def test_another_value_is_the_other_job_s() -> None:
    world = started()
    world.write(B, ONE, prolog("71"))
    world.write(B, TWO, prolog("72"))
    assert holds(world) == ["job 72 runs"]
    ended(world, "72")
    world.advance(3600 * S)
    assert world.machine[B] == ZERO


@pytest.mark.invariant("O7", "B1")
def test_no_job_outlives_a_reboot_and_none_keeps_it_from_setting_things_right() -> None:
    world = started()
    world.write(F, ONE, prolog("71"))
    world.reboot()
    assert holds(world) == []
    assert world.machine[A] == ONE, "the boot had reset it"
    world.check()


@pytest.mark.invariant("O7", "F5")
def test_an_epilog_wakes_what_waits_for_consumers() -> None:
    world = started(with_settings(on_busy_retry=True, retry_ns=3600 * S))
    world.holders[B] = [Holder(B, 41, "fd", job="71")]
    world.write(B, ONE, ANN.owner)
    world.advance(1000 * S)
    change = world.node.state.change_of(B)
    assert change is not None and change.state == "blocked"
    world.holders.clear()
    answer = world.ask("epilog", ROOT, job="71")
    assert answer is not None and answer.result == {"job": "71", "holds": [], "woken": [change.id]}
    world.advance(0)
    assert world.machine[B] == ZERO
    world.check()


@pytest.mark.invariant("S1", "O7")
def test_who_is_not_root_ends_no_job() -> None:
    world = started()
    world.write(B, ONE, prolog("71"))
    for who in (ANN, OPS):
        answer = world.ask("epilog", who, job="71")
        assert answer is not None and answer.exit_code == 3
    assert holds(world) == ["job 71 runs"]
    for name in ("", "a b", "-1", "x" * 200, "7\n1", "../x"):
        answer = world.ask("epilog", ROOT, job=name)
        assert answer is not None and answer.exit_code == 2, name


@pytest.mark.invariant("O7")
def test_a_person_s_hold_outlives_the_job() -> None:
    world = started()
    world.write(B, ONE, prolog("71"))
    change = world.node.state.change_of(B)
    assert change is not None
    world.ask("hold_place", ROOT, change=change.id, reason="let me look", for_ns=7200 * S)
    ended(world, "71")
    world.advance(3600 * S)
    assert holds(world) == ["let me look"] and world.machine[B] == ONE


@pytest.mark.invariant("O7", "J9")
def test_the_end_of_a_job_is_not_forgotten_while_nothing_can_be_recorded() -> None:
    world = started()
    world.write(B, ONE, prolog("71"))
    world.disk_full = True
    world.tell(JobsEnded(world.t_ns, world.wall_ns, ("71",)))
    assert holds(world) == ["job 71 runs"]
    world.disk_full = False
    world.advance(60 * S)
    assert holds(world) == []
    world.check()


EMPTY = {"value": ""}


@pytest.mark.invariant("O7")
@pytest.mark.parametrize("first", [EMPTY, ZERO], ids=["emptied", "as declared"])
@pytest.mark.parametrize("more", [False, True], ids=["alone", "among others"])
def test_a_prolog_that_is_seen_on_its_way_to_the_same_value_takes_no_hold_away(
    first: dict[str, str], more: bool
) -> None:
    """Who writes a file empties it first; who sets a value may reset it first."""
    world = started()
    for job in ("71", "72"):
        world.write(B, ONE, prolog(job))
    if more:
        world.write(F, TWO, prolog("73"))
    world.write(B, first, prolog("73"))
    world.write(B, ONE, prolog("73"))
    change = world.node.state.change_of(B)
    assert change is not None
    of_b = sorted(h.reason for h in world.node.state.holds.values() if h.change == change.id)
    assert of_b == ["job 71 runs", "job 72 runs", "job 73 runs"] and list(change.members) == [B]
    ended(world, "73", "71")
    world.advance(3600 * S)
    assert world.machine[B] == ONE and holds(world) == ["job 72 runs"]
    ended(world, "72")
    world.advance(3600 * S)
    assert world.machine[B] == ZERO
    world.check()


@pytest.mark.invariant("O7")
def test_what_a_job_meant_that_has_ended_or_lost_its_value_to_a_person_holds_nothing() -> None:
    world = started()
    world.write(B, ONE, prolog("71"))
    world.write(B, EMPTY, prolog("72"))
    ended(world, "71")
    world.write(B, ONE, prolog("72"))
    assert holds(world) == ["job 72 runs"], "job 71 has ended meanwhile"
    world.write(B, TWO, ROOT.owner)
    world.write(B, ONE, ROOT.owner)
    assert holds(world) == [], "a person decides, and has a window"
    world.write(B, ZERO, prolog("73"))
    world.write(B, ONE, prolog("73"))
    assert holds(world) == ["job 73 runs"]
    assert world.node.meant == {}
    world.check()


@pytest.mark.invariant("O7")
def test_a_job_s_own_epilog_that_takes_it_back_leaves_nothing_of_it_to_the_next_job() -> None:
    world = started()
    for job in ("71", "72", "73"):
        world.write(B, ONE, prolog(job))
        assert holds(world) == [f"job {job} runs"]
        world.write(B, ZERO, prolog(job))
    assert holds(world) == [] and world.node.meant == {}
    world.check()


@pytest.mark.invariant("O7")
def test_a_moment_of_another_value_that_nobody_is_named_for_takes_no_hold_away() -> None:
    world = started()
    world.write(B, ONE, prolog("71"))
    world.write(B, EMPTY, None)
    world.write(B, ONE, prolog("72"))
    assert holds(world) == ["job 71 runs", "job 72 runs"]
    world.write(B, EMPTY, None)
    world.write(B, TWO, prolog("71"))
    world.write(B, ONE, prolog("72"))
    assert holds(world) == ["job 72 runs"], "job 71 wants another value itself"
    world.write(B, ZERO, None)
    world.write(B, ONE, prolog("73"))
    assert holds(world) == ["job 73 runs"], "it may have been the epilog of job 72"
    world.check()
