"""Single rules of a node's life, one short story each."""

from __future__ import annotations

import pytest

from pact.core.node.events import Covered, Denied, ObserverChanged, Reconfigured
from pact.core.ops import Adopt, Apply, Declare, Op
from pact.core.settings import Settings
from pact.model import NS_PER_S, UNATTRIBUTED, Declared, Owner
from pact.sim.parts import person, with_settings
from pact.sim.world import World

S = NS_PER_S
ZERO, ONE, TWO = {"value": "0"}, {"value": "1"}, {"value": "2"}
ANN, BOB, ADMIN, GUEST = person("ann"), person("bob"), person("root", "admin", 0), person("guest", "viewer")
A, B, F = "sysctl:a", "sysctl:b", "file:/f"


def why(op: str) -> dict[str, str]:
    """A commit needs a message, and nothing else has one."""
    return {"message": "m"} if op == "commit" else {}


def started(settings: Settings | None = None) -> World:
    world = World(settings=settings or with_settings(), machine={r: dict(ZERO) for r in (A, B, F)})
    world.start({r: Declared(dict(ZERO)) for r in (A, B, F)})
    return world


def types(world: World, first: int = 0) -> list[str]:
    return [r.type for r in world.journal[first:]]


def deadline(world: World, resource: str) -> int:
    change = world.node.state.change_of(resource)
    assert change is not None
    at = world.node.state.deadline_ns(change)
    assert at is not None
    return at


@pytest.mark.invariant("C4")
def test_drifting_again_within_base_gives_the_old_opening_time_back() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    first = deadline(world, A)
    world.advance(300 * S)
    world.write(A, ZERO, ANN.owner)
    assert not world.node.state.changes
    world.advance(100 * S)
    world.write(A, TWO, ANN.owner)
    assert deadline(world, A) == first
    world.write(A, ZERO, ANN.owner)
    world.write(A, ONE, BOB.owner)
    assert deadline(world, A) == first + 400 * S, "another owner starts anew"


@pytest.mark.invariant("C4", "W3")
def test_nobody_who_drifts_again_has_less_than_the_floor() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    world.advance(780 * S)
    world.write(A, ZERO, ANN.owner)
    world.advance(60 * S)
    world.write(A, ONE, ANN.owner)
    assert deadline(world, A) >= world.t_ns
    world.write(A, ZERO, ANN.owner)
    world.advance(901 * S)
    world.write(A, ONE, ANN.owner)
    assert deadline(world, A) > world.t_ns + 780 * S, "after base it is forgotten"


@pytest.mark.invariant("W3")
@pytest.mark.parametrize(("sensitivity_n", "window_s"), [(0, 900), (10**15, 60)])
def test_no_window_is_shorter_than_the_floor_or_longer_than_base(sensitivity_n: int, window_s: int) -> None:
    world = started(with_settings(sensitivity_n=sensitivity_n))
    world.advance(1000 * S)
    world.write(A, ONE, ANN.owner)
    assert deadline(world, A) == world.t_ns + window_s * S
    world.advance(window_s * S - 1)
    assert world.machine[A] == ONE
    world.advance(1)
    assert world.machine[A] == ZERO


@pytest.mark.invariant("P2", "P1")
def test_switching_enforcement_on_opens_existing_drift_at_that_moment() -> None:
    world = started(with_settings(enforce=False))
    world.write(A, ONE, ANN.owner)
    world.advance(100_000 * S)
    assert world.machine[A] == ONE
    assert "window_opened" not in types(world)
    world.crash()
    world.settings = with_settings()
    world.start()
    assert deadline(world, A) > world.t_ns + 700 * S
    assert types(world)[-1] == "window_opened"
    world.advance(900 * S)
    assert world.machine[A] == ZERO


@pytest.mark.invariant("R7")
def test_what_is_mounted_over_declared_paths_is_drift_and_is_taken_off() -> None:
    world = started()
    attrs = {"source": "tmpfs", "fstype": "tmpfs", "options": []}
    world.machine["mount:/d"] = attrs
    world.feed(lambda: Covered(world.t_ns, world.wall_ns, {"mount:/d": attrs}, ANN.owner))
    change = world.node.state.change_of("mount:/d")
    assert change is not None
    assert change.owner == ANN.owner
    world.feed(lambda: Covered(world.t_ns, world.wall_ns, {"mount:/d": attrs}, ANN.owner))
    assert types(world).count("drift_detected") == 1
    world.advance(900 * S)
    assert world.machine["mount:/d"] is None


@pytest.mark.invariant("R2", "F7")
def test_drift_after_the_freeze_does_not_join_and_is_not_overwritten() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    world.write(B, ONE, ANN.owner)

    def meddle(w: World, step: object) -> None:
        w.before_act = None
        w.machine[B] = TWO

    world.before_act = meddle
    reply = world.ask("rollback", ANN, targets=["c1"])
    assert reply is not None
    assert reply.exit_code == 1
    assert world.machine[A] == ZERO
    assert world.machine[B] == TWO
    failed = [r for r in world.journal if r.type == "rollback_failed"][-1]
    assert failed.data["restored"] == [A]
    assert failed.data["left"] == {B: "changed again"}
    change = world.node.state.change_of(B)
    assert change is not None
    assert (change.state, world.node.state.deadline_ns(change)) == ("failed", None)
    world.write(B, ZERO, ANN.owner)
    world.write(B, TWO, BOB.owner)
    assert deadline(world, B) > world.t_ns


@pytest.mark.invariant("D1", "F9")
def test_what_cannot_be_read_is_neither_drift_nor_rolled_back_blindly() -> None:
    world = started()
    world.unreadable[A] = "sysctl: EIO"
    world.see(A)
    assert not world.node.state.changes
    assert world.node.unreadable == {A: "sysctl: EIO"}
    del world.unreadable[A]
    world.write(A, ONE, ANN.owner)
    world.unreadable[A] = "sysctl: EIO"
    world.see(A)
    world.advance(1000 * S)
    assert world.machine[A] == ONE
    assert world.node.state.overall() in ("blocked", "failed")


@pytest.mark.invariant("O1")
def test_a_blind_observer_is_recorded_once_and_so_is_its_recovery() -> None:
    world = started()
    before = len(world.journal)
    for why in ("queue overflow", "queue overflow", "", ""):
        world.feed(lambda why=why: ObserverChanged(world.t_ns, world.wall_ns, "fanotify", why))  # type: ignore[misc]
    assert types(world, before) == ["observer_blind", "observer_restored"]
    assert world.journal[before].data == {"observer": "fanotify", "why": "queue overflow"}
    assert world.node.state.blind == {}


@pytest.mark.invariant("S1", "S3")
class TestRoles:
    @pytest.mark.parametrize(
        ("op", "args"),
        [
            ("commit", {"targets": ["c1"], "message": "m"}),
            ("rollback", {"targets": ["c1"]}),
            ("extend", {"targets": ["c1"], "by_ns": S}),
            ("emergency_start", {"reason": "r"}),
            ("hold_place", {"reason": "r", "for_ns": S}),
            ("declare", {"resources": {}}),
            ("adopt", {"patterns": [A]}),
            ("apply", {"resources": {A: Declared(dict(ONE)).to_json()}, "message": "m"}),
        ],
    )
    def test_viewers_read_and_what_they_ask_for_is_journaled(self, op: str, args: dict[str, object]) -> None:
        world = started()
        world.write(A, ONE, ANN.owner)
        before = len(world.journal)
        reply = world.ask(op, GUEST, **args)
        assert reply is not None
        assert reply.exit_code == 3
        assert types(world, before) == ["denied"]
        assert world.journal[-1].actor["user"] == "guest"
        assert world.journal[-1].data["request"] == op

    @pytest.mark.parametrize(
        "request_",
        [
            Declare(resources={A: Declared(dict(ONE)).to_json()}),
            Adopt(patterns=[A]),
            Apply(resources={A: Declared(dict(ONE)).to_json()}, message="m"),
        ],
    )
    def test_ops_do_not_declare(self, request_: Op) -> None:
        world = started()
        reply = world.request(request_, ANN)
        assert reply is not None
        assert reply.exit_code == 3
        assert types(world)[-1] == "denied"

    @pytest.mark.parametrize(
        ("owner", "caller", "code"),
        [
            (ANN.owner, ANN, 0),
            (UNATTRIBUTED, ANN, 0),
            (None, ANN, 0),
            (BOB.owner, ANN, 3),
            (BOB.owner, ADMIN, 0),
        ],
    )
    def test_ops_settle_their_own_and_unattributed_changes(self, owner: object, caller: object, code: int) -> None:
        for op in ("commit", "rollback"):
            world = started()
            world.write(A, ONE, owner)  # type: ignore[arg-type]
            reply = world.ask(op, caller, targets=["c1"], **why(op))  # type: ignore[arg-type]
            assert reply is not None
            assert reply.exit_code == code
            assert bool(world.node.state.changes) == bool(code)

    def test_a_request_refused_before_it_reached_the_core_is_journaled_too(self) -> None:
        world = started()
        world.feed(lambda: Denied(world.t_ns, world.wall_ns, "show", "content is not world-readable", GUEST))
        assert world.journal[-1].type == "denied"
        assert world.journal[-1].data == {"request": "show", "why": "content is not world-readable"}


@pytest.mark.invariant("B2", "F26")
def test_stepping_the_wall_clock_moves_no_deadline() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    at = deadline(world, A)
    for step in (10**6 * S, -2 * 10**6 * S):
        world.wall_ns += step
        world.see(A)
        assert deadline(world, A) == at
    world.advance(at - world.t_ns - 1)
    assert world.machine[A] == ONE
    world.advance(1)
    assert world.machine[A] == ZERO


@pytest.mark.invariant("J4")
def test_with_a_full_disk_nothing_moves_and_what_was_seen_is_recorded_afterwards() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    before = len(world.journal)
    world.disk_full = True
    world.ask("rollback", ANN, targets=["c1"])
    world.advance(2000 * S)
    assert world.machine[A] == ONE
    assert len(world.journal) == before
    world.disk_full = False
    world.see(A)
    world.advance(1 * S)
    assert world.machine[A] == ZERO


@pytest.mark.invariant("W4")
def test_a_change_expires_with_the_first_of_its_members() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    world.advance(600 * S)
    world.write(F, ONE, ANN.owner)
    world.advance(180 * S)
    assert world.machine[F] == ZERO
    assert world.machine[A] == ZERO


def test_a_second_start_in_one_boot_is_no_reboot() -> None:
    world = started()
    world.crash()
    world.start()
    last = [r for r in world.journal if r.type == "agent_started"][-1]
    assert last.data["unclean"]
    assert not last.data["reboot"]


@pytest.mark.invariant("P2")
def test_what_is_configured_anew_is_in_force_at_once_and_replays() -> None:
    world = started(with_settings(enforce=False))
    world.write(A, ONE, ANN.owner)
    world.advance(3600 * S)
    assert world.machine[A] == ONE, "only seen"
    before = world.node.state.boot_id
    world.feed(lambda: Reconfigured(world.t_ns, world.wall_ns, with_settings(base_ns=100 * S), "next"))
    last = world.journal[-2] if world.journal[-1].type == "window_opened" else world.journal[-1]
    assert (
        last.type == "agent_started" and last.data["reloaded"] and not last.data["unclean"] and not last.data["reboot"]
    )
    assert world.node.state.boot_id == before
    assert deadline(world, A) <= world.t_ns + 100 * S
    world.check()  # the journal replays to the same state
    world.advance(101 * S)
    assert world.machine[A] == ZERO


@pytest.mark.invariant("E1")
@pytest.mark.parametrize("op", ["emergency_start", "hold_place"])
@pytest.mark.parametrize("for_ns", [0, -1, 31 * 24 * 3600 * S])
def test_no_time_at_all_is_a_mistake_and_not_the_default(op: str, for_ns: int) -> None:
    world = started()
    reply = world.ask(op, ANN, reason="r", for_ns=for_ns)
    assert reply is not None and reply.exit_code == 2 and "30d" in reply.message
    assert world.node.state.emergency is None and not world.node.state.holds


# -- what several made ----------------------------------------------------------------------------------------------


def members(world: World, resource: str) -> list[str]:
    change = world.node.state.change_of(resource)
    assert change is not None
    return [o.user for o in change.members[resource].also]


@pytest.mark.invariant("C9")
def test_who_is_taken_over_stays_named_until_the_resource_conforms() -> None:
    world = started()
    world.write(F, ONE, ANN.owner)
    world.write(F, TWO, BOB.owner)
    assert members(world, F) == ["ann"]
    world.write(F, ONE, ADMIN.owner)
    assert members(world, F) == ["ann", "bob"]
    world.write(F, TWO, BOB.owner)
    assert members(world, F) == ["ann", "root"], "the holder is not among the others"
    world.see(F)
    world.write(F, ZERO, BOB.owner)
    world.write(F, ONE, BOB.owner)
    assert members(world, F) == []
    world.check()


@pytest.mark.invariant("C9")
@pytest.mark.parametrize("op", ["commit", "rollback"])
def test_what_others_changed_too_is_settled_only_with_a_word_for_it(op: str) -> None:
    world = started()
    world.write(F, ONE, ANN.owner)
    world.write(F, TWO, BOB.owner)
    for caller in (BOB, ADMIN):
        reply = world.ask(op, caller, targets=[F], **why(op))
        assert reply is not None
        assert reply.exit_code == 4
        assert "also changed by ann" in reply.message
    reply = world.ask(op, BOB, targets=[F], **why(op), shared=True)
    assert reply is not None
    assert reply.exit_code == 3, "ann's part is not bob's to settle"
    reply = world.ask(op, ADMIN, targets=[F], **why(op), shared=True)
    assert reply is not None
    assert reply.exit_code == 0
    last = next(r for r in reversed(world.journal) if r.type in ("committed", "rolled_back"))
    assert [o["user"] for o in last.data["also"][F]] == ["ann"]
    world.check()


@pytest.mark.invariant("C9", "A4")
def test_a_window_that_ends_needs_no_word_and_names_everybody() -> None:
    world = started()
    world.write(F, ONE, ANN.owner)
    world.write(F, TWO, BOB.owner)
    world.advance(1000 * S)
    assert world.machine[F] == ZERO
    (started_,) = [r for r in world.journal if r.type == "rollback_started"]
    assert [o["user"] for o in started_.data["also"][F]] == ["ann"]


@pytest.mark.invariant("C8")
def test_what_moved_with_a_write_is_settled_with_it() -> None:
    world = started()
    world.write(A, ONE, ANN.owner)
    world.write(B, ONE, ANN.owner, moved_with=A)
    world.write(F, ONE, ANN.owner)
    reply = world.ask("commit", ANN, targets=[A], message="m")
    assert reply is not None
    assert reply.result["committed"][0]["resources"] == [A, B]
    assert set(world.node.state.member_of) == {F}
    world.check()


@pytest.mark.invariant("C9")
def test_another_session_of_the_same_person_is_nobody_else() -> None:
    world = started()
    world.write(F, ONE, Owner("login:77:3", "ann", 77, "3"))
    world.write(F, TWO, Owner("login:77:9", "ann", 77, "9"))
    assert members(world, F) == []
    world.write(F, ONE, Owner("unit:puppet.service", "puppet.service", 77))
    assert members(world, F) == ["ann"], "a service is nobody's session"
