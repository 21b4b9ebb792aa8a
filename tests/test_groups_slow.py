"""A member that takes its time: what it finds when the world has gone on counts no more, and hurts nobody.

Found by the simulation of a cluster once questions could hang (seeds 5673, 9689 and 8954 of that day).
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from pact.core.node.events import Asked, Caller, ContactChanged, FleetTold, Reply
from pact.core.ops import made
from pact.model import NS_PER_S, Actor, Declared, Owner
from pact.sim.parts import person
from pact.sim.shell import ShellWorld

S = NS_PER_S
A, B = "sysctl:a", "sysctl:b"
ROOT = Caller(Actor("ann", None, "admin", "cluster"), Owner("cluster:ann", "ann"))
AT_ONCE, HANGS = [1.0], [0.05, 0.05, 0.05]  # what a job's dice say


class Dice(random.Random):
    """Says what it was told to, one after the other, then ``AT_ONCE``."""

    left: list[float]

    def random(self) -> float:
        return self.left.pop(0) if self.left else 1.0


class Member:
    """One member of a cluster, and what its root says to it."""

    def __init__(self) -> None:
        self.dice = Dice()
        self.dice.left = []
        self.world = world = ShellWorld(machine={A: {"value": "0"}, B: {"value": "0"}}, clustered=True, rng=self.dice)
        world.start({r: Declared({"value": "0"}) for r in (A, B)})
        world.tell(ContactChanged(world.t_ns, world.wall_ns, True))
        world.tell(FleetTold(world.t_ns, world.wall_ns, 1, 0, []))
        world.slow = 0.5

    def ask(self, op: str, *jobs: list[float], fence: int = 1, **args: Any) -> int:
        """The number under which the answer comes. ``jobs``: what the dice say about each that comes of it."""
        self.dice.left = [n for job in jobs for n in job]
        world = self.world
        world.token += 1
        token = world.token
        event = Asked(world.t_ns, world.wall_ns, token, made(op, {"group": "g1", "fence": fence, **args}), ROOT)
        world.feed(lambda: event)
        return token

    def apply(self, *jobs: list[float]) -> Reply | None:
        wanted = {A: {"attrs": {"value": "1"}}, B: {"attrs": {"value": "0"}}}
        token = self.ask("group_apply", *jobs, resources=wanted, blobs={}, message="", left_ns=900 * S)
        return self.reply(token)

    def decide(self, decision: str) -> Reply | None:
        token = self.ask(
            "group_decide", ballot=1, decision=decision, action=decision, why="", message="m", ttl_ns=None, force=False
        )
        return self.reply(token)

    def reply(self, token: int) -> Reply | None:
        return self.world.replies.pop(token, None)

    def types(self) -> list[str]:
        return [r.type for r in self.world.journal]


@pytest.mark.invariant("G4")
@pytest.mark.parametrize("action", ["commit", "rollback"])
def test_a_vote_whose_look_took_long_is_refused_when_a_newer_root_was_obeyed_meanwhile(action: str) -> None:
    member = Member()
    assert member.apply() is not None
    vote = member.ask("group_vote", HANGS, action=action, ballot=1, automatic=False, force=False)
    assert member.reply(vote) is None
    member.ask("group_extend", fence=2, left_ns=800 * S)
    member.world.unhang()
    answer = member.reply(vote)
    assert answer is not None and answer.exit_code == 4 and "stale fence" in answer.message
    assert "group_prepared" not in member.types() and member.world.node.state.groups["g1"].phase == "open"


@pytest.mark.invariant("G3")
@pytest.mark.parametrize("action", ["commit", "rollback"])
def test_a_vote_that_led_to_nothing_while_a_member_was_looking_binds_it_no_more_and_is_in_no_other_votes_way(
    action: str,
) -> None:
    member = Member()
    assert member.apply() is not None
    vote = {"action": action, "automatic": False, "force": False}
    first = member.ask("group_vote", HANGS, ballot=1, **vote)
    member.ask("group_decide", ballot=1, decision="abort", action=action, why="n7: no answer in time")
    late = member.reply(first)
    assert late is not None and late.exit_code == 4
    again = member.reply(member.ask("group_vote", ballot=2, **vote))
    assert again is not None and again.result == {"vote": "yes"}
    member.ask("group_decide", ballot=2, decision="abort", action=action, why="n7: no answer in time")
    before = len(member.world.journal)
    member.world.unhang()
    assert "group_prepared" not in member.types()[before:]


@pytest.mark.invariant("G8", "J9")
def test_of_two_words_about_the_fleet_that_are_owed_the_newer_counts_in_whatever_order_they_come() -> None:
    member = Member()
    world = member.world
    world.write(A, {"value": "1"}, person("bob").owner)
    world.disk_full = True
    world.ask("commit", person("bob"), targets=[], message="m")
    stop = {"hold": "f1", "owner": "ann", "reason": "r", "left_ns": 5000 * S}
    world.tell(FleetTold(world.t_ns, world.wall_ns, 1, 3, [stop]))
    world.tell(FleetTold(world.t_ns, world.wall_ns, 1, 2, []))  # it was on its way for longer
    world.advance(2000 * S)
    world.disk_full = False
    world.advance(S)
    assert "rollback_started" not in member.types() and world.machine[A] == {"value": "1"}
    assert list(world.node.state.holds) == ["f1"]


@pytest.mark.invariant("G5", "R2")
def test_a_commit_waits_for_a_rollback_that_has_frozen_one_of_its_resources() -> None:
    """It raised, with its record folded in and not written, each time that the root asked."""
    member = Member()
    assert member.apply() is not None
    world = member.world
    world.write(B, {"value": "7"}, person("bob").owner)
    member.dice.left = [*AT_ONCE, *HANGS]
    assert world.ask("rollback", person("root", "admin", 0), targets=[B], force=True) is None
    answer = member.decide("commit")
    assert answer is not None and answer.exit_code == 4 and "is being rolled back" in answer.message
    assert "committed" not in member.types()
    world.unhang()
    answer = member.decide("commit")
    assert answer is not None and answer.result["outcome"] == "committed"
    declared = world.node.state.declared(A)
    assert declared is not None and declared.attrs == world.machine[A] == {"value": "1"}
    assert world.machine[B] == {"value": "0"}
    world.check()


@pytest.mark.invariant("G5")
def test_a_rollback_is_done_where_the_apply_hangs_and_what_it_does_after_all_is_drift() -> None:
    """The change stood there without a member, with what it was about to change, and the group ended never."""
    member = Member()
    assert member.apply(AT_ONCE, HANGS) is None
    answer = member.decide("rollback")
    assert answer is not None and answer.result == {"done": True, "outcome": "rolled back"}
    world = member.world
    assert not world.node.state.changes and not world.node.state.groups
    world.unhang()
    assert world.machine[A] == {"value": "1"} and A in world.node.state.member_of
    world.advance(1000 * S)
    assert world.machine[A] == {"value": "0"} and not world.node.state.changes
    world.check()
