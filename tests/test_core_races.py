"""What comes between a question to the shell and its answer: nothing may be lost in the gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pact.core.node.events import Asked, Caller, Event, JobFailed, Observed, Probe, Sighting, Ticked
from pact.core.ops import GoBack, made
from pact.core.plan import Step
from pact.core.settings import Settings
from pact.errors import (
    EXIT_FAILED,
    BlockedError,
    ConflictError,
    DeniedError,
    PactError,
    UnreachableError,
    UsageError,
)
from pact.model import NS_PER_S, UNATTRIBUTED, Attrs, Declared, Owner
from pact.sim import working
from pact.sim.parts import person, with_settings
from pact.sim.world import World

S = NS_PER_S
DAY = 24 * 3600 * S
ZERO, ONE, TWO = {"value": "0"}, {"value": "1"}, {"value": "2"}
ANN, BOB, ADMIN = person("ann"), person("bob"), person("root", "admin", 0)
A, B, F = "sysctl:a", "sysctl:b", "file:/f"


def started(settings: Settings | None = None) -> World:
    world = World(settings=settings or with_settings(), machine={r: dict(ZERO) for r in (A, B, F)})
    world.start({r: Declared(dict(ZERO)) for r in (A, B, F)})
    return world


def asked(world: World, op: str, caller: Caller, **args: Any) -> int:
    """A request whose answers from the shell come after the next event."""
    world.token += 1
    token = world.token
    world.queue.append(lambda: Asked(world.t_ns, world.wall_ns, token, made(op, args), caller))
    return token


def drifts(world: World, resource: str, value: Attrs, owner: Owner) -> Callable[[], Event]:
    def event() -> Event:
        world.machine[resource] = value
        return Observed(world.t_ns, world.wall_ns, [Sighting(resource, value, owner)])

    return event


@pytest.mark.invariant("C5", "C9", "S1")
def test_what_another_takes_over_while_it_is_looked_at_is_not_committed() -> None:
    """The last look finds what was recorded last: it is another's, whom nobody has asked about."""
    world = started()
    world.write(A, ONE, ANN.owner)
    world.machine[A] = TWO  # written, and the event of it comes after the look
    token = asked(world, "commit", ANN, targets=[], message="mine", ttl_ns=None)
    world.feed(drifts(world, A, TWO, BOB.owner))
    assert world.replies[token].exit_code == 4
    assert world.node.state.declared(A) == Declared(dict(ZERO))
    world.check()


@pytest.mark.invariant("C5")
def test_what_nobody_wrote_while_it_was_looked_at_is_not_committed_unseen() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    world.machine[A] = TWO  # written, and the event of it comes after the look
    token = asked(world, "commit", ANN, targets=[], message="mine", ttl_ns=None)
    world.feed(drifts(world, A, TWO, UNATTRIBUTED))
    assert world.replies[token].exit_code == 4
    assert world.node.state.declared(A) == Declared(dict(ZERO))
    world.check()


@pytest.mark.invariant("T1")
def test_a_trial_of_a_trial_goes_back_to_what_was_declared_for_good() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    world.ask("commit", ANN, targets=[], message="one", ttl_ns=900 * S)
    world.write(A, TWO, ANN.owner)
    world.ask("commit", ANN, targets=[], message="two", ttl_ns=1800 * S)
    assert world.node.state.declared(A) == Declared(dict(TWO))
    world.advance(DAY)
    assert world.node.state.declared(A) == Declared(dict(ZERO)) and world.machine[A] == ZERO
    world.check()


@pytest.mark.invariant("R2", "A4")
def test_what_joins_a_change_while_its_rollback_is_prepared_is_neither_rolled_back_nor_forgotten() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    asked(world, "rollback", ANN, targets=[])
    world.feed(drifts(world, F, ONE, ANN.owner))
    assert world.machine == {A: ZERO, B: ZERO, F: ONE}
    (change,) = world.node.state.changes.values()
    assert (list(change.members), change.state) == ([F], "open")
    world.write(B, ONE, ANN.owner)
    assert set(change.members) == {F, B}, "what its owner drifts next joins it"
    world.check()
    world.advance(900 * S)
    assert world.machine == {A: ZERO, B: ZERO, F: ZERO}


@pytest.mark.invariant("R2")
def test_a_rollback_whose_resources_all_cleared_meanwhile_takes_nothing_else() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    token = asked(world, "rollback", ANN, targets=[])
    world.queue.append(drifts(world, F, ONE, ANN.owner))
    world.feed(drifts(world, A, ZERO, ANN.owner))
    assert world.machine[F] == ONE and world.replies[token].exit_code == 0
    assert "rollback_started" not in [r.type for r in world.journal]


@pytest.mark.invariant("A4")
def test_a_dry_run_across_the_end_of_a_window_does_not_cancel_the_rollback() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    ends = world.node.state.deadline_ns(world.node.state.changes["c1"])
    assert ends is not None
    world._to(ends - 1)
    asked(world, "rollback", ANN, targets=[], dry_run=True)

    def late() -> Event:
        world._to(ends + S)
        return Ticked(world.t_ns, world.wall_ns)

    world.feed(late)
    world.advance(S)
    assert world.machine[A] == ZERO


@pytest.mark.invariant("W3", "C4")
def test_who_drifts_again_late_has_a_floor_of_notice_under_a_tight_window() -> None:
    world = started(with_settings(severity_n={**with_settings().severity_n, "sysctl": 3 * 10**9}))
    world.write(A, ONE, ANN.owner)
    world.write(A, ZERO, ANN.owner)
    world.write(B, ONE, BOB.owner)
    world.advance(90 * S)  # bob's window of 95 s is in force
    world.write(A, ONE, ANN.owner)
    change = world.node.state.change_of(A)
    assert change is not None
    ends = world.node.state.deadline_ns(change)
    assert ends is not None and ends >= world.t_ns + with_settings().floor_ns


@pytest.mark.parametrize("name", ["c²", "c" + "9" * 5000, "c0", "c-1", "c1\n"])
def test_a_name_that_is_nearly_a_change_s_is_refused(name: str) -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    for op, args in (("commit", {"message": "x"}), ("rollback", {}), ("extend", {"by_ns": S})):
        reply = world.ask(op, ANN, targets=[name], **args)
        assert reply is not None and reply.exit_code == 2, (op, reply)


def test_nobody_extends_for_ever() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    first = world.ask("extend", ANN, targets=[], by_ns=10 * DAY)
    again = world.ask("extend", ANN, targets=[], by_ns=S)
    assert first is not None and again is not None
    assert (first.exit_code, again.exit_code) == (0, 2) and "10d in all" in again.message


@pytest.mark.invariant("H1")
@pytest.mark.parametrize("what", ["c1", None])
def test_an_earlier_state_is_not_restored_over_a_held_change_without_force(what: str | None) -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    world.ask("hold_place", ADMIN, reason="wait", for_ns=S, change=what)
    back = GoBack(resources={A: Declared(dict(ZERO)).to_json()}, take=True, to_seq=1)
    refused = world.request(back, ADMIN)
    assert refused is not None and refused.exit_code == 4 and world.machine[A] == ONE
    forced = world.request(replace(back, force=True), ADMIN)
    assert forced is not None and forced.exit_code == 0 and world.machine[A] == ZERO


@pytest.mark.invariant("C7")
@pytest.mark.parametrize("op", ["apply", "declare"])
def test_what_is_being_applied_is_nobody_else_s_to_apply_or_declare(op: str) -> None:
    world = started()
    wanted = {A: Declared(dict(ONE)).to_json()}
    first = asked(world, "apply", ADMIN, resources=wanted, message="one")
    second = asked(world, op, ADMIN, resources={A: Declared(dict(TWO)).to_json()})
    third: list[int] = []

    def between() -> Event:
        world.queue.appendleft(lambda: Ticked(world.t_ns, world.wall_ns))
        third.append(asked(world, op, ADMIN, resources={A: Declared(dict(TWO)).to_json()}))
        return Ticked(world.t_ns, world.wall_ns)

    world.before_act = lambda w, step: None
    world.feed(between)
    assert world.replies[first].exit_code == 0 and world.machine[A] == ONE
    assert [world.replies[t].exit_code for t in (second, *third)] == [4, 4]
    (change,) = world.node.state.changes.values()
    assert world.replies[first].result["change"] == change.id and list(change.members) == [A]


@pytest.mark.invariant("F27")
def test_what_a_cut_off_apply_did_is_its_callers_drift_and_the_rest_is_not_done_later() -> None:
    world = started()
    wanted = {r: Declared(dict(ONE)).to_json() for r in (A, B)}

    def killed(w: World, step: object) -> None:
        if w.machine[A] == ONE or w.machine[B] == ONE:
            w.before_act, w.crash_after = None, 0

    world.before_act = killed
    assert world.ask("apply", ADMIN, resources=wanted, message="two") is None
    world.start()
    (done,) = [r for r in (A, B) if world.machine[r] == ONE]
    (change,) = world.node.state.changes.values()
    assert (list(change.members), change.owner, change.state) == ([done], ADMIN.owner, "open")
    world.advance(60 * S)
    assert sorted(map(str, (world.machine[A], world.machine[B]))) == sorted(map(str, (ONE, ZERO)))
    again = world.ask("apply", ADMIN, resources=wanted, message="again")
    assert again is not None and again.exit_code == 0 and world.machine[A] == world.machine[B] == ONE
    world.advance(1000 * S)
    assert world.machine[A] == world.machine[B] == ZERO
    world.check()


def test_what_a_boot_job_overwrites_is_on_record_before() -> None:
    world = started()
    world.boot_values = {A: TWO, B: ZERO}
    world.reboot(60 * S)
    assert world.machine[A] == ZERO
    started_, done = [r for r in world.journal if r.type in ("converge_started", "converged")]
    assert (started_.type, started_.data["plan"][0]["actual"]) == ("converge_started", TWO)
    assert done.data["results"] == {A: "restored"}


@pytest.mark.invariant("T1")
def test_the_end_of_a_commit_gives_the_window_to_its_committer() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    world.ask("commit", ADMIN, targets=["c1"], message="for ann", ttl_ns=900 * S)
    world.advance(901 * S)
    (change,) = world.node.state.changes.values()
    assert change.owner == ADMIN.owner


@pytest.mark.invariant("R3")
def test_rollbacks_that_waited_for_a_consumer_count_as_automatic() -> None:
    world = started(with_settings(on_busy_retry=True))
    from pact.model import Holder

    for _ in range(2):
        world.holders[A] = [Holder(A, 7, "fd")]
        world.write(A, ONE, ANN.owner)
        world.advance(900 * S)
        world.holders.clear()
        world.advance(60 * S)
        assert world.machine[A] == ZERO
    world.write(A, ONE, ANN.owner)
    world.advance(900 * S)
    assert world.machine[A] == ONE and "contended" in next(iter(world.node.state.changes.values())).reason


@pytest.mark.invariant("S3", "F5")
def test_holders_that_are_others_each_time_do_not_fill_the_journal() -> None:
    """Each try named two hundred processes, and a person who begins them anew has as many changes blocked as he likes."""
    world = started(with_settings(on_busy_retry=True))
    from pact.model import Holder

    for resource, owner in ((A, ANN.owner), (B, BOB.owner)):
        world.holders[resource] = [Holder(resource, 7, "fd")]
        world.write(resource, ONE, owner)
    world.advance(900 * S)
    before = len([r for r in world.journal if r.type == "rollback_blocked"])
    assert before == 2
    for pid in range(100, 300):
        world.holders.update({r: [Holder(r, pid, "fd")] for r in (A, B)})
        world.advance(30 * S)
    told = len([r for r in world.journal if r.type == "rollback_blocked"]) - before
    assert 100 <= told <= 20 + 101, "400 tries in 6,000 seconds"
    world.holders.clear()
    world.advance(60 * S)
    assert world.machine[A] == world.machine[B] == ZERO, "it is tried as often as before"


def test_each_resource_of_a_change_names_the_command_that_drifted_it() -> None:

    world = started()
    editor, tool = replace(ANN.owner, command="vi /f"), replace(ANN.owner, command="sysctl -w a=1")
    world.write(F, ONE, editor)
    world.write(A, ONE, tool)
    world.write(F, TWO, None)  # a rescan names nobody
    (change,) = world.node.state.changes.values()
    assert {r: m.command for r, m in change.members.items()} == {F: "vi /f", A: "sysctl -w a=1"}
    world.write(A, TWO, editor)
    assert change.members[A].command == "vi /f" and change.owner.command == "vi /f"
    world.check()


@pytest.mark.invariant("N1", "B1")
def test_within_the_floor_after_a_reboot_the_end_is_announced_and_nobody_is_woken_for_nothing() -> None:
    """It asked to be woken for the announcement, and did not make it: the agent turned two thousand times a second."""
    world = started()
    world.write(F, ONE, ANN.owner)
    world.reboot(1000 * S)  # the window ended while the machine was down: it gets the floor
    ends = world.node.state.not_before_ns
    assert [r.data["change"] for r in world.journal if r.type == "window_closing"] == ["c1"]
    assert world.node.next_wake_ns() == ends
    world.advance(ends - world.t_ns)
    assert world.machine[F] == ZERO


@pytest.mark.parametrize("error", [PactError, UsageError, DeniedError, ConflictError, UnreachableError, BlockedError])
@pytest.mark.parametrize("dry_run", [True, False])
def test_whatever_a_look_ends_with_is_the_answer_and_the_node_lives(
    error: type[PactError], dry_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not answer, descriptors that are used up, a bug in a kind: they end one request."""
    world = started()
    world.write(A, ONE, ANN.owner)
    with monkeypatch.context() as broken:
        broken.setitem(
            working.WORKS, Probe, lambda w, effect: lambda: JobFailed(w.t_ns, w.wall_ns, effect.job, error("why"))
        )
        token = asked(world, "rollback", ADMIN, targets=[A], dry_run=dry_run)
        world.advance(1)
    reply = world.replies[token]
    assert "why" in reply.message
    assert reply.exit_code == (error.exit_code if dry_run or error is ConflictError else EXIT_FAILED)
    token = asked(world, "rollback", ADMIN, targets=[A])
    world.advance(1)
    assert world.replies[token].exit_code == 0 and world.machine[A] == ZERO


@pytest.mark.invariant("C7")
def test_what_cannot_be_read_after_it_was_applied_is_not_said_to_be_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been done. The answer names it, and it is not called nothing."""
    world = started()
    restore = working.restored

    def fails_after(w: World, step: Step) -> str:
        why = restore(w, step)
        if step.id == B and not w.unreadable:
            w.unreadable[B] = "EIO"
            return "restored, but cannot be read: EIO"
        return why

    monkeypatch.setattr(working, "restored", fails_after)
    token = asked(world, "apply", ADMIN, resources={r: Declared(dict(ONE)).to_json() for r in (A, B)}, message="m")
    world.advance(1)
    reply = world.replies[token]
    assert world.machine == {A: ZERO, B: ONE, F: ZERO}, "what can be read is undone"
    assert reply.exit_code == 1 and "nothing was applied" not in reply.message
    assert (
        f"could not be undone: {B}" in reply.message and f"undone: {A}" in reply.message and B in reply.result["left"]
    )
    world.unreadable.clear()
    world.feed(lambda: Observed(world.t_ns, world.wall_ns, [Sighting(B, ONE)]))
    assert world.node.state.change_of(B) is not None, "it is drift, and is brought back in its time"
    world.check()
