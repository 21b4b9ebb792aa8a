"""What stops a node's own rollbacks stops a group's, whenever it was decided; and nobody is passed over for being slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from test_groups import ALL, NEW, OLD, WANTED, X, Y, apply, ask, cluster, group, machines, writes

from pact.model import NS_PER_S, Declared, Holder
from pact.sim.cluster import Cluster
from pact.sim.parts import person, with_settings
from pact.sim.world import Crashed, World

S = NS_PER_S
EDITOR = Holder(Y, 77, "fd", "/y", 1000, "carol", "editor")
STOPS: list[tuple[str, dict[str, Any]]] = [
    ("emergency_start", {"reason": "debugging", "for_ns": 3600 * S}),
    ("hold_place", {"reason": "mine", "for_ns": 3600 * S, "change": None}),
    ("hold_place", {"reason": "mine", "for_ns": 3600 * S, "change": "c1"}),
]


def away_and(c: Cluster, op: str, args: Mapping[str, Any]) -> None:
    """n2 loses its cable, and somebody there stops rollbacks."""
    c.cut("n2")
    c.advance(10 * S)
    reply = c.peers["n2"].world.ask(op, person("root", "admin", 0), **args)
    assert reply is not None and reply.exit_code == 0, reply


def end_it(c: Cluster, op: str) -> None:
    world = c.peers["n2"].world
    admin = person("root", "admin", 0)
    if op == "emergency_start":
        reply = world.ask("emergency_end", admin, how="rollback", force=True)
    else:
        reply = world.ask("hold_release", admin, name=next(iter(world.node.state.holds)))
    assert reply is not None and reply.exit_code == 0, reply


@pytest.mark.invariant("P1", "E1", "H1", "G5")
@pytest.mark.parametrize(("op", "args"), STOPS)
def test_a_decided_rollback_waits_where_rollbacks_are_stopped_and_is_done_when_they_are_not(
    op: str, args: dict[str, Any]
) -> None:
    c = cluster()
    gid = apply(c)
    away_and(c, op, args)
    code, _, failed, _ = ask(c, "group_rollback", group=gid)
    assert code == 5 and "n2" in failed
    c.mend("n2")
    c.advance(100 * S)
    assert machines(c) == ["old", "old", "new", "old"], "nothing is rolled back in the middle of it"
    assert group(c, gid)["members"].get("failed") == "n2"
    assert ("emergency" if "emergency" in op else "held by") in group(c, gid)["blocked"]["n2"]["why"]
    end_it(c, op)
    c.advance(60 * S)
    assert machines(c) == ["old"] * 4 and group(c, gid)["state"] == "rolled back"
    c.check()


@pytest.mark.invariant("G5", "H1")
@pytest.mark.parametrize(("op", "args"), STOPS)
def test_force_goes_with_the_decision(op: str, args: dict[str, Any]) -> None:
    c = cluster()
    gid = apply(c)
    away_and(c, op, args)
    ask(c, "group_rollback", group=gid, force=True)
    c.mend("n2")
    c.advance(20 * S)
    assert machines(c) == ["old"] * 4
    records = [r for r in c.peers["n2"].world.journal if r.type == "group_decided"]
    assert records[-1].data["force"] is True
    c.check()


@pytest.mark.invariant("P1")
def test_a_node_that_was_put_into_observe_mode_rolls_nothing_back_even_with_force() -> None:
    c = cluster()
    gid = apply(c)
    c.cut("n2")
    world = c.peers["n2"].world
    c.crash("n2")
    world.settings = with_settings(enforce=False)
    c.advance(10 * S)
    ask(c, "group_rollback", group=gid, force=True)
    c.restart("n2")
    c.mend("n2")
    c.advance(60 * S)
    assert machines(c) == ["old", "old", "new", "old"]
    assert "observe" in group(c, gid)["blocked"]["n2"]["why"]


@pytest.mark.invariant("G8", "G9")
def test_a_decided_rollback_is_not_begun_by_a_restart_while_the_fleet_is_held() -> None:
    c = cluster()
    gid = apply(c)
    c.cut("n2")
    c.advance(10 * S)
    ask(c, "group_rollback", group=gid)
    world = c.peers["n2"].world
    world.holders[Y] = [EDITOR]
    c.mend("n2")
    c.advance(5 * S)
    assert machines(c)[2] == "new"
    ask(c, "fleet_hold", reason="outage", for_ns=8000 * S)
    world.holders.clear()
    c.cut("n2")
    c.crash("n2")
    c.advance(S)
    c.restart("n2")
    c.advance(60 * S)
    assert machines(c)[2] == "new", "held, and cut off"
    c.mend("n2")
    c.advance(60 * S)
    assert machines(c)[2] == "new", "held"
    ask(c, "fleet_release")
    c.advance(60 * S)
    assert machines(c)[2] == "old"
    c.check()


def deaf(c: Cluster, name: str, op: str, times: int) -> None:
    """The node does not get the next calls of this kind, though it is connected."""
    real, left = c._call, [times]

    def call(root: Any, to: str, head: Mapping[str, Any], body: bytes) -> None:
        if to == name and head["op"] == op and left[0] > 0:
            left[0] -= 1
            return
        real(root, to, head, body)

    c._call = call  # type: ignore[method-assign]


@pytest.mark.invariant("F5", "G5")
@pytest.mark.parametrize("times", [1, 2])
def test_a_member_that_is_connected_and_silent_may_have_a_consumer_and_is_not_passed_over(times: int) -> None:
    c = cluster()
    gid = apply(c)
    c.peers["n2"].world.holders[Y] = [EDITOR]
    deaf(c, "n2", "group_vote", times)
    n = c.request("group_rollback", {"group": gid})
    c.advance(130 * S)
    head, _ = c.results.pop(n)
    assert head["exit"] == (10 if times == 1 else 1), head
    assert "n2" in head["failed"] and machines(c) == ["new"] * 4
    assert "group_decided" not in writes(c)
    c.peers["n2"].world.holders.clear()
    assert ask(c, "group_rollback", group=gid)[0] == 0 and machines(c) == ["old"] * 4
    c.check()


@pytest.mark.invariant("G5")
def test_with_force_a_silent_member_owes_the_decision() -> None:
    c = cluster()
    gid = apply(c)
    deaf(c, "n2", "group_vote", 2)
    n = c.request("group_rollback", {"group": gid, "force": True})
    c.advance(130 * S)
    assert n in c.results and "group_decided" in writes(c) and machines(c) == ["old"] * 4


def test_everybody_who_asked_for_the_same_end_is_answered() -> None:
    c = cluster()
    gid = apply(c)
    deaf(c, "n2", "group_decide", 1)
    first = c.request("group_rollback", {"group": gid})
    c.advance(S)
    assert first not in c.results and c.root is not None and c.root.groups.runs[gid].step == "carrying out"
    second = c.request("group_rollback", {"group": gid})
    c.advance(200 * S)
    assert {first, second} <= c.results.keys()
    assert machines(c) == ["old"] * 4


@pytest.mark.invariant("A4", "F51")
def test_a_group_that_another_log_began_is_blocked_aloud_and_not_forgotten() -> None:
    c = cluster()
    gid = apply(c)
    c.crash_root()
    c.log.clear()
    c.advance(10 * S)
    assert c.root is not None and not c.root.state.groups
    for peer in c.peers.values():
        (change,) = peer.world.node.state.changes.values()
        assert (change.state, change.group) == ("blocked", "") and gid in change.reason
    c.peers["n0"].world.ask("rollback", person("root", "admin", 0), targets=["c1"])
    c.peers["n1"].world.ask("commit", person("root", "admin", 0), targets=["c1"], message="keep")
    assert machines(c)[:2] == ["old", "new"]
    again, result, failed, message = ask(c, "apply", "n0", resources=WANTED, message="again")
    assert (again, failed) == (0, {}), (message, failed)
    assert result["group"] == "g2", "a number that a node remembers is not given again"


@pytest.mark.invariant("F52")
def test_who_comes_back_when_its_group_is_forgotten_hears_that_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pact.core.root.log.FINISHED_MAX", 1)
    c = cluster()
    gid = apply(c, "n0,n1")
    c.cut("n0")
    c.advance(10 * S)
    assert ask(c, "nodes_forget", "n0")[0] == 0
    assert ask(c, "group_rollback", group=gid)[0] in (0, 4)
    for _ in range(3):
        again = apply(c, "n2,n3")
        assert ask(c, "group_rollback", group=again)[0] == 0
    assert c.root is not None and gid not in c.root.state.groups
    c.mend("n0")
    c.advance(20 * S)
    (change,) = c.peers["n0"].world.node.state.changes.values()
    assert change.state == "blocked" and "no g1 any more" in change.reason


@pytest.mark.invariant("G1", "F51")
def test_a_log_put_back_to_before_a_commit_rolls_nobody_back() -> None:
    c = cluster()
    gid = apply(c, "n0,n1,n2")
    older = list(c.log)
    c.cut("n2")
    c.advance(10 * S)
    assert ask(c, "group_commit", group=gid, message="good", allow_missing="n2")[0] == 0
    assert machines(c)[:3] == ["new"] * 3
    c.crash_root()
    c.log[:] = older
    c.advance(10 * S)
    c.mend("n2")
    c.advance(2000 * S)  # its window ends, as that log knows it
    assert machines(c)[:3] == ["new"] * 3, "n0 and n1 have committed it"
    shown = group(c, gid)
    assert shown["state"] == "blocked" and "committed" in shown["blocked"]["n0"]["why"], shown
    assert ask(c, "group_commit", group=gid, message="as before")[0] == 0
    assert group(c, gid)["state"] == "committed"


@pytest.mark.invariant("A4", "F51")
@pytest.mark.parametrize("voted", [False, True])
@pytest.mark.parametrize("op", ["group_commit", "group_rollback"])
def test_a_number_that_another_log_gave_to_other_nodes_settles_nothing_here(op: str, voted: bool) -> None:
    """A log was lost while n0 was away; the new one begins a group for others, whose number n0 remembers as its own."""
    c = cluster()
    gid = apply(c, "n0,n1")
    if voted:
        deaf(c, "n1", "group_vote", 9)
        c.request("group_commit", {"group": gid, "message": "x"})
        c.advance(S)
    c.cut("n0")
    c.advance(10 * S)
    c.crash_root()
    c.log.clear()
    c.cut("n1")
    c.advance(10 * S)
    assert apply(c, "n2,n3") == gid, "nobody who is there remembers it"
    c.mend("n0")
    c.advance(20 * S)
    state = c.peers["n0"].world.node.state
    (change,) = state.changes.values()
    assert change.state == "blocked" and machines(c)[0] == "new", "it is of another group"
    assert state.groups[gid].phase == "prepared" if voted else gid not in state.groups
    assert ask(c, op, group=gid, **({"message": "of n2 and n3"} if op == "group_commit" else {}))[0] == 0
    c.advance(400 * S)  # longer than n0 waits before it asks again
    assert machines(c)[0] == "new" and [ch.state for ch in state.changes.values()] == ["blocked"]
    assert machines(c)[2:] == (["new"] * 2 if op == "group_commit" else ["old"] * 2)
    for name in ("n2", "n3"):
        c.peers[name].world.write("sysctl:x", {"value": "old"}, person("bob").owner)
    c.advance(S)
    assert apply(c, "n2,n3") == "g2"


@pytest.mark.invariant("G3", "F51")
def test_a_yes_to_a_root_whose_log_is_lost_stays_undecided_until_a_person_forces_it() -> None:
    c = cluster()
    gid = apply(c)
    world = c.peers["n2"].world
    for name in ("n0", "n1", "n3"):
        deaf(c, name, "group_vote", 9)
    c.request("group_commit", {"group": gid, "message": "x"})
    c.advance(S)
    assert world.node.state.groups[gid].phase == "prepared"
    c.crash_root()
    c.log.clear()
    c.advance(100 * S)
    assert world.node.state.groups[gid].phase == "prepared", "how it ended elsewhere nobody knows"
    (change,) = world.node.state.changes.values()
    assert change.state == "blocked" and "undecided" in change.reason
    reply = world.ask("rollback", person("root", "admin", 0), targets=[change.id], force=True)
    assert reply is not None and reply.exit_code == 0 and machines(c)[2] == "old"


def test_a_member_that_was_never_reached_is_named_after_a_change_of_root_and_may_be_left_out() -> None:
    c = cluster()
    deaf(c, "n2", "group_apply", 9)
    n = c.request("apply", {"resources": WANTED, "message": "why"}, "n0,n1,n2,n3")
    c.advance(70 * S)
    gid = c.results.pop(n)[1]["group"]
    c.crash_root()
    c.advance(60 * S)
    assert group(c, gid)["members"] == {"member": "n0,n1,n3", "not applied": "n2"}
    assert ask(c, "group_commit", group=gid, message="x")[0] == 4
    code, result, failed, _ = ask(c, "group_commit", group=gid, message="x", allow_missing="n2")
    assert code == 4 and "n2" in failed and result["state"].startswith("committed, except on n2")
    assert machines(c) == ["new", "new", "old", "new"]
    c.check()


def test_who_has_not_heard_of_the_fleet_s_stop_is_not_counted() -> None:
    c = cluster()
    deaf(c, "n2", "fleet_seen", 9)
    n = c.request("fleet_hold", {"reason": "x", "for_ns": 900 * S})
    c.advance(70 * S)
    head, result = c.results.pop(n)
    assert (head["exit"], result["nodes"]) == (5, 3) and "n2" in head["failed"]
    for op, args in (("fleet_hold", {"reason": "y", "for_ns": 900 * S}), ("fleet_release", {})):
        n = c.request(op, args)
        c.advance(70 * S)
    assert c.results[n][1]["released"] == ["f1", "f2"]


def test_whoever_releases_a_hold_of_the_fleet_is_told_what_still_holds_it() -> None:
    c = cluster()
    gid = apply(c)
    for user in ("ann", "bob"):
        assert ask(c, "fleet_hold", user=user, reason=f"{user} works", for_ns=900 * S)[0] == 0
    code, result, _, _ = ask(c, "fleet_release", user="ann")
    (left,) = result["held"]
    assert code == 0 and (left["hold"], left["owner"], left["reason"]) == ("f2", "bob", "bob works")
    _, result, _, _ = ask(c, "groups")
    assert result["holds"] == [left] and [g["state"] for g in result["groups"]] == ["held"]
    n = c.request("fleet_release", {}, None, "ann")
    c.advance(S)
    assert "f2 of bob" in c.results[n][0]["hint"]
    code, result, _, _ = ask(c, "fleet_release", hold="f2")
    assert code == 0 and result["held"] == [] and ask(c, "groups", group=gid)[1]["holds"] == []


def test_nobody_extends_a_group_for_ever() -> None:
    c = cluster()
    gid = apply(c)
    assert ask(c, "group_extend", group=gid, by_ns=10 * 24 * 3600 * S)[0] == 0
    code, _, _, message = ask(c, "group_extend", group=gid, by_ns=3600 * S)
    assert code == 2 and "10d in all" in message


@pytest.mark.invariant("G5", "F52")
def test_a_node_that_is_out_of_service_can_be_forgotten_and_nothing_waits_for_it() -> None:
    c = cluster()
    gid = apply(c)
    c.crash("n3")
    c.advance(10 * S)
    assert ask(c, "nodes_forget", "n2")[0] == 4, "it is connected"
    assert ask(c, "nodes_forget", "n9")[0] == 2, "nobody knows it"
    assert ask(c, "nodes_forget", "n3", role="ops")[0] == 3
    assert ask(c, "group_rollback", group=gid)[0] == 5
    assert ask(c, "fleet_hold", reason="x", for_ns=S)[0] == 5
    c.advance(5 * S)
    assert group(c, gid)["members"]["owed"] == "n3"
    assert ask(c, "nodes_forget", "n3")[0] == 0
    assert group(c, gid)["state"] == "rolled back, except on n3: out of service"
    assert ask(c, "fleet_hold", reason="x", for_ns=S)[0] == 0
    c.advance(5 * S)
    c.crash_root()
    c.advance(20 * S)
    assert group(c, gid)["members"] == {"rolled back": "n0,n1,n2", "out of service": "n3"}
    again = apply(c, "n0,n1")
    assert ask(c, "group_commit", group=again, message="x")[0] == 0
    c.restart("n3")
    c.advance(40 * S)
    assert machines(c)[3] == "old", "it is told on its return what it owed"
    assert ask(c, "fleet_hold", reason="x", for_ns=S)[1]["nodes"] == 4
    c.check()


def test_a_commit_does_not_miss_who_is_out_of_service() -> None:
    c = cluster()
    gid = apply(c)
    c.crash("n3")
    c.advance(10 * S)
    assert ask(c, "group_commit", group=gid, message="x")[0] == 5
    assert ask(c, "nodes_forget", "n3")[0] == 0
    code, result, _, _ = ask(c, "group_commit", group=gid, message="x")
    assert code == 4 and result["state"] == "committed, except on n3: out of service"
    assert machines(c)[:3] == ["new"] * 3


@pytest.mark.invariant("R14", "G6")
def test_a_group_that_is_committed_tells_whom_its_application_had_not_told() -> None:
    """A member was killed when it had applied, and before it told anybody."""
    c = Cluster(1, 4, {X: Declared(OLD), Y: Declared(OLD, notify=("service:y reload",))}, settings=with_settings())
    c.advance(3 * S)
    world = c.peers["n2"].world

    def killed(_: World) -> None:
        world.before_told = None
        raise Crashed

    world.before_told = killed
    n = c.request("apply", {"resources": WANTED, "message": "why"}, ALL, "alice", "admin")
    c.advance(S)
    assert not world.running and world.machine[Y] == NEW and world.stale == {Y}
    c._ended("n2")
    c.restart("n2")
    c.advance(60 * S)
    gid = c.results.pop(n)[1]["group"]
    told: list[tuple[str, ...]] = []
    world.before_act = lambda _, step: told.append(step.notify)
    code, _, failed, message = ask(c, "group_commit", group=gid, message="m")
    c.advance(10 * S)
    assert (code, failed) == (0, {}), (code, failed, message)
    assert machines(c, Y) == ["new"] * 4 and world.node.state.declared(Y).attrs == NEW  # type: ignore[union-attr]
    assert told == [("service:y reload",)] and not world.stale
    assert not world.node.state.telling and not world.node.state.changes
    c.check()
