"""Groups end to end on the pure cores: begin, vote, decide, carry out; and every way in which that can go wrong."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pact.core.root.envelope import Asker
from pact.core.root.runs import TABLE, Run, StepError
from pact.core.root.term import AWAY_NS, Limits
from pact.model import NS_PER_S, Declared, Holder
from pact.sim.cluster import Cluster
from pact.sim.parts import person, with_settings

X, Y = "sysctl:x", "file:/y"
OLD, NEW = {"value": "old"}, {"value": "new"}
DECLARED = {X: Declared(OLD), Y: Declared(OLD)}
WANTED = {X: Declared(NEW).to_json(), Y: Declared(NEW).to_json()}
ALL = "n0,n1,n2,n3"


def cluster(**limits: Any) -> Cluster:
    made = Cluster(1, 4, DECLARED, settings=with_settings(base_ns=900 * NS_PER_S), limits=Limits(**limits))
    made.advance(3 * NS_PER_S)
    return made


def ask(c: Cluster, op: str, nodes: str | None = None, user: str = "alice", role: str = "admin", **args: Any) -> Any:
    """``(exit, result, failed, message)``."""
    n = c.request(op, args, nodes, user, role)
    c.advance(NS_PER_S // 2)
    if n not in c.results:  # it waits a moment for nodes that have just gone
        c.advance(AWAY_NS)
    assert n in c.results, "no answer"
    head, result = c.results.pop(n)
    return head["exit"], result, head["failed"], head["message"]


def apply(c: Cluster, nodes: str = ALL, **more: Any) -> str:
    code, result, failed, message = ask(c, "apply", nodes, resources=WANTED, message="why", **more)
    assert (code, failed) == (0, {}), (code, failed, message)
    return str(result["group"])


def machines(c: Cluster, resource: str = X) -> list[str]:
    return [str((p.world.machine[resource] or {}).get("value")) for p in c.peers.values()]


def declared(c: Cluster) -> list[Any]:
    return [p.world.node.state.declared(X).attrs["value"] for p in c.peers.values()]  # type: ignore[union-attr, index]


def group(c: Cluster, gid: str) -> dict[str, Any]:
    _, result, _, _ = ask(c, "groups", group=gid)
    (shown,) = result["groups"]
    return dict(shown)


def writes(c: Cluster, types: tuple[str, ...] = ("group_begun", "group_decided", "group_finished")) -> list[str]:
    from pact.core.records import parse
    from pact.core.root.chunks import read_chunk
    from pact.core.root.log import ROOT

    records = [parse(line) for raw in c.log for b in read_chunk(raw).batches if b.node == ROOT for line in b.lines]
    return [r.type for r in records if r.type in types]


def test_who_waits_for_a_group_hears_how_far_it_is_and_not_too_often() -> None:
    c = cluster()
    n = c.request("apply", {"resources": WANTED, "message": "why"}, ALL)
    c.advance(NS_PER_S // 2)
    gid = c.results.pop(n)[1]["group"]
    assert c.progress[n][0] == (0, 4) and c.progress[n].count((4, 4)) == 2, "each was asked, and each has done it"
    n = c.request("group_commit", {"group": gid, "message": "m"})
    c.advance(NS_PER_S // 2)
    heard = c.progress[n]
    assert heard[0] == (0, 4) and heard.count((4, 4)) == 2 and len(heard) <= 9, heard
    assert not c.root.questions.told_ns, "nothing stays of requests that were answered"


@pytest.mark.invariant("G1", "G2")
def test_a_group_is_applied_everywhere_and_committed_everywhere() -> None:
    c = cluster()
    gid = apply(c)
    assert machines(c) == ["new"] * 4 and declared(c) == ["old"] * 4
    assert [p.world.node.state.overall() for p in c.peers.values()] == ["drifted"] * 4
    code, result, failed, _ = ask(c, "group_commit", group=gid, message="good")
    assert (code, failed, result["state"]) == (0, {}, "committed")
    assert result["members"] == {"committed": ALL} == group(c, gid)["members"]
    assert declared(c) == ["new"] * 4 and machines(c) == ["new"] * 4
    assert all(not p.world.node.state.groups and not p.world.node.state.changes for p in c.peers.values())
    assert writes(c) == ["group_begun", "group_decided", "group_finished"]
    c.check()


@pytest.mark.invariant("G2")
def test_a_group_that_nobody_commits_expires_everywhere_at_the_roots_time_alone() -> None:
    c = cluster()
    gid = apply(c)
    shown = group(c, gid)
    assert shown["window_s"] == pytest.approx(900 / (1 + 2 * (2 * 0.05**2 + 0.1**2) ** 0.5), abs=0.01)
    c.advance(int(shown["remaining_s"] * 1e9) - 2 * NS_PER_S)
    assert machines(c) == ["new"] * 4
    c.advance(3 * NS_PER_S)
    assert machines(c) == ["old"] * 4
    assert group(c, gid)["state"] == "rolled back"
    assert writes(c) == ["group_begun", "group_decided", "group_finished"]
    c.check()


@pytest.mark.invariant("F5", "G3")
def test_a_consumer_on_one_member_blocks_all_and_is_named_and_when_it_is_gone_all_go_back() -> None:
    c = cluster()
    gid = apply(c)
    c.peers["n2"].world.holders[Y] = [Holder(Y, 77, "fd", "/y", 1000, "carol", "editor")]
    code, result, failed, message = ask(c, "group_rollback", group=gid)
    assert code == 10 and "n2" in failed and "editor of carol" in message
    assert result["state"] == "blocked" and result["members"]["blocked"] == "n2"
    assert machines(c) == ["new"] * 4, "nothing was touched anywhere"
    assert [p.world.node.state.overall() for p in c.peers.values()] == ["blocked"] * 4
    assert c.peers["n2"].world.node.state.changes["c1"].holders[0].pid == 77
    c.advance(2000 * NS_PER_S)
    assert machines(c) == ["new"] * 4, "a blocked group waits for a person"
    c.peers["n2"].world.holders.clear()
    code, result, failed, _ = ask(c, "group_rollback", group=gid)
    assert (code, failed, result["state"]) == (0, {}, "rolled back")
    assert machines(c) == ["old"] * 4
    c.check()


@pytest.mark.invariant("G3", "F45")
def test_an_aborted_commit_leaves_the_window_running() -> None:
    c = cluster()
    gid = apply(c)
    c.peers["n1"].world.write(X, {"value": "mine"}, person("bob").owner)
    code, _, failed, message = ask(c, "group_commit", group=gid, message="good")
    assert code == 4 and "diverged" in message and "bob" in message and list(failed) == ["n1"]
    assert declared(c) == ["old"] * 4
    shown = group(c, gid)
    assert shown["state"] == "open" and shown["remaining_s"] > 0
    assert [p.world.node.state.changes["c1"].state for p in c.peers.values()] == ["open"] * 4
    c.check()


@pytest.mark.invariant("G6", "F45")
def test_a_rollback_takes_a_diverged_resource_too_and_says_who_lost_what() -> None:
    c = cluster()
    gid = apply(c)
    world = c.peers["n1"].world
    world.write(X, {"value": "mine"}, person("bob").owner)
    code, _, _, _ = ask(c, "group_rollback", group=gid)
    assert code == 0 and machines(c) == ["old"] * 4
    (record,) = [r for r in world.journal if r.type == "group_decided"]
    assert [(e["resource"], e["owner"]["user"]) for e in record.data["lost"]] == [(X, "bob")]
    c.check()


@pytest.mark.invariant("G5", "F42")
def test_a_member_that_is_away_owes_the_decision_and_does_not_act_alone() -> None:
    c = cluster()
    gid = apply(c)
    c.cut("n3")
    c.advance(10 * NS_PER_S)
    code, result, failed, _ = ask(c, "group_rollback", group=gid)
    assert code == 5 and list(failed) == ["n3"] and result["members"] == {"done": "n0,n1,n2", "owed": "n3"}
    c.advance(5000 * NS_PER_S)
    assert machines(c) == ["old", "old", "old", "new"]
    c.mend("n3")
    c.advance(10 * NS_PER_S)
    assert machines(c) == ["old"] * 4 and group(c, gid)["state"] == "rolled back"
    c.check()


@pytest.mark.invariant("G5")
def test_a_member_that_is_away_stops_a_commit_unless_it_is_allowed_to_be() -> None:
    c = cluster()
    gid = apply(c)
    c.cut("n3")
    c.advance(10 * NS_PER_S)
    code, _, _, message = ask(c, "group_commit", group=gid, message="m")
    assert code == 5 and "n3" in message and declared(c) == ["old"] * 4
    code, result, _, _ = ask(c, "group_commit", group=gid, message="m", allow_missing="n3")
    assert code == 0 and result["members"]["owed"] == "n3" and declared(c) == ["new", "new", "new", "old"]
    c.mend("n3")
    c.advance(10 * NS_PER_S)
    assert declared(c) == ["new"] * 4
    c.check()


def test_require_all_makes_absence_block_a_rollback() -> None:
    c = cluster()
    gid = apply(c, require_all=True)
    c.cut("n3")
    c.advance(10 * NS_PER_S)
    code, result, failed, _ = ask(c, "group_rollback", group=gid)
    assert code == 5 and result["state"] == "blocked" and list(failed) == ["n3"]
    assert machines(c) == ["new"] * 4
    c.check()


def test_an_absent_node_stops_the_beginning_before_anything_is_changed() -> None:
    c = cluster()
    c.cut("n3")
    c.advance(10 * NS_PER_S)
    code, _, _, message = ask(c, "apply", ALL, resources=WANTED)
    assert code == 5 and "n3" in message and machines(c) == ["old"] * 4
    code, result, failed, _ = ask(c, "apply", ALL, resources=WANTED, allow_missing=1)
    assert code == 0 and result["count"] == 3 and machines(c) == ["new", "new", "new", "old"]
    assert list(failed) == ["n3"]
    c.check()


def test_one_refusal_ends_it_before_anything_is_changed_anywhere() -> None:
    c = cluster()
    c.peers["n2"].world.unreadable[X] = "EIO"
    code, _, failed, message = ask(c, "apply", ALL, resources=WANTED)
    assert code == 1 and list(failed) == ["n2"] and "nothing was changed" in message
    assert machines(c) == ["old"] * 4 and writes(c) == []
    c.check()


@pytest.mark.invariant("G3", "F43")
def test_after_a_yes_the_node_is_blocked_undecided_asks_and_is_told_abort_by_the_next_root() -> None:
    c = cluster()
    gid = apply(c)
    root = c.root
    assert root is not None
    n = c.request("group_commit", {"group": gid, "message": "m"})
    while not any(p.world.node.state.groups[gid].phase == "prepared" for p in c.peers.values()):
        c.advance(NS_PER_S // 1000)
    c.root = None  # before it could decide
    c.advance(NS_PER_S)
    states = [p.world.node.state.changes["c1"] for p in c.peers.values()]
    assert all(s.state == "blocked" and "undecided" in s.reason for s in states)
    assert n not in c.results
    reply = c.peers["n0"].world.ask("rollback", person("root", "admin", 0), targets=["c1"])
    assert reply is not None and reply.exit_code == 4 and "undecided" in reply.message
    c.elect()
    c.advance(60 * NS_PER_S)
    assert [p.world.node.state.changes["c1"].state for p in c.peers.values()] == ["open"] * 4
    assert ask(c, "group_commit", group=gid, message="again")[0] == 0
    c.check()


@pytest.mark.invariant("G5", "F44")
@pytest.mark.parametrize("op", ["group_commit", "group_rollback"])
def test_a_decision_that_was_written_is_carried_out_by_whoever_leads_next(op: str) -> None:
    c = cluster()
    gid = apply(c)
    c.cut("n3")
    c.advance(10 * NS_PER_S)
    n = c.request(op, {"group": gid, "message": "m", "allow_missing": "n3"})
    first, call = c.root, c._call
    c._call = lambda root, name, head, body: (  # type: ignore[method-assign]
        None if root is first and head["op"] == "group_decide" else call(root, name, head, body)
    )
    while "group_decided" not in writes(c):
        c.advance(NS_PER_S // 1000)
    c.root = None  # before anybody was told
    c.advance(NS_PER_S)
    assert n not in c.results and declared(c) == ["old"] * 4 and machines(c) == ["new"] * 4
    c.elect()
    c.advance(30 * NS_PER_S)
    value, here = ("new", declared) if op == "group_commit" else ("old", machines)
    assert here(c)[:3] == [value] * 3
    assert group(c, gid)["state"] == "carrying out"
    c.mend("n3")
    c.advance(30 * NS_PER_S)
    assert here(c) == [value] * 4
    assert group(c, gid)["state"] == ("committed" if op == "group_commit" else "rolled back")
    assert writes(c).count("group_decided") == 1
    c.check()


@pytest.mark.invariant("G1", "G5")
def test_a_new_root_carries_nothing_out_before_its_first_record_is_durable() -> None:
    """Not even where somebody asks for it again, or its nodes are back before."""
    c = cluster()
    gid = apply(c)
    c.cut("n3")
    c.advance(10 * NS_PER_S)
    c.request("group_rollback", {"group": gid})
    while "group_decided" not in writes(c):
        c.advance(NS_PER_S // 1000)
    c.root = None
    c.advance(NS_PER_S)
    c.elect()
    assert c.root is not None
    groups = c.root.groups
    run = groups.runs[gid]
    assert run.step == "open"
    groups.carrier.again(run)
    groups.carrier.waves(run)
    groups.came(["n0"])
    assert run.step == "open" and not run.flying
    c.advance(30 * NS_PER_S)
    assert run.step == "carrying out" and run.done == {"n0", "n1", "n2"}
    c.check()


@pytest.mark.invariant("G3", "F43")
def test_force_settles_a_member_alone_and_is_recorded() -> None:
    c = cluster()
    gid = apply(c)
    c.request("group_commit", {"group": gid, "message": "m"})
    while not all(p.world.node.state.groups[gid].phase == "prepared" for p in c.peers.values()):
        c.advance(NS_PER_S // 1000)
    c.root = None
    world = c.peers["n0"].world
    reply = world.ask("rollback", person("root", "admin", 0), targets=["c1"], force=True)
    assert reply is not None and reply.exit_code == 0 and world.machine[X] == OLD
    (record,) = [r for r in world.journal if r.type == "group_finished"]
    assert record.data["forced"] and "root" in record.data["outcome"]
    c.check()


@pytest.mark.invariant("G4")
def test_a_root_that_was_replaced_is_not_obeyed() -> None:
    c = cluster()
    gid = apply(c)
    old = c.root
    assert old is not None
    c.elect()
    c.advance(5 * NS_PER_S)
    assert ask(c, "group_extend", group=gid, by_ns=NS_PER_S)[0] == 0  # the nodes have heard of the new one
    args = {"group": gid, "fence": old.fence, "ballot": 1, "decision": "rollback", "action": "rollback"}
    old.questions.ask(
        ["n0"],
        "group_decide",
        orjson.dumps(args),
        Asker("x", "admin", "c"),
        NS_PER_S,
        lambda names, body: None,
        lambda lost: None,
    )
    c._perform(old, old.flush())
    c.advance(NS_PER_S // 2)
    assert machines(c) == ["new"] * 4
    assert any(b"stale fence" in answer for answer in c.peers["n0"].calls.kept)


@pytest.mark.invariant("G8")
def test_the_fleets_stop_reaches_every_node_and_stops_groups_and_changes() -> None:
    c = cluster()
    gid = apply(c, "n0,n1")
    c.peers["n3"].world.write(X, {"value": "drift"}, person("bob").owner)
    c.cut("n2")
    c.advance(10 * NS_PER_S)
    code, result, failed, _ = ask(c, "fleet_hold", reason="outage", for_ns=8000 * NS_PER_S, role="ops")
    assert code == 5 and result["hold"] == "f1" and list(failed) == ["n2"]
    c.peers["n2"].world.write(X, {"value": "drift"}, person("bob").owner)
    c.advance(500 * NS_PER_S)
    c.mend("n2")
    c.advance(3000 * NS_PER_S)
    assert machines(c) == ["new", "new", "drift", "drift"], "nothing rolls back anywhere"
    code, _, _, message = ask(c, "group_rollback", group=gid)
    assert code == 4 and "outage" in message
    assert ask(c, "fleet_release", hold="f1", user="carol", role="ops")[0] == 3
    assert ask(c, "fleet_release", hold="f1")[0] == 0
    c.advance(1000 * NS_PER_S)
    assert machines(c) == ["old"] * 4
    c.check()


@pytest.mark.invariant("G9", "F46")
def test_a_node_that_is_cut_off_waits_before_it_rolls_back_alone_and_then_does() -> None:
    c = cluster()
    c.cut("n1")
    c.peers["n1"].world.write(X, {"value": "drift"}, person("bob").owner)
    c.peers["n1"].world.settings = with_settings()
    c.advance(540 * NS_PER_S)
    assert machines(c)[1] == "drift"
    c.advance(400 * NS_PER_S)
    assert machines(c)[1] == "old"


@pytest.mark.invariant("G10", "F47")
def test_too_many_failures_pause_the_carrying_out_and_the_decision_stands() -> None:
    c = cluster(wave=1, waves_at_once=1, breaker_least=1, breaker_share=0.0)
    gid = apply(c)
    for name in ("n0", "n1"):
        c.peers[name].world.stubborn.add(X)
    code, result, failed, message = ask(c, "group_rollback", group=gid)
    assert code == 1 and result["state"] == "paused" and "paused" in message
    assert {"n0", "n1"} == set(",".join(failed).split(",")) & {"n0", "n1"}
    assert machines(c) == ["new", "new", "new", "new"]
    c.advance(3600 * NS_PER_S)
    assert group(c, gid)["state"] == "paused" and group(c, gid)["decision"] == "rollback"
    for peer in c.peers.values():
        peer.world.stubborn.clear()
    assert ask(c, "group_commit", group=gid, message="no")[0] == 4
    assert ask(c, "group_rollback", group=gid)[0] == 0
    assert machines(c) == ["old"] * 4
    c.check()


def test_extending_a_group_moves_its_end_everywhere_and_reopens_a_blocked_one() -> None:
    c = cluster()
    gid = apply(c)
    before = group(c, gid)["remaining_s"]
    code, result, _, _ = ask(c, "group_extend", group=gid, by_ns=600 * NS_PER_S)
    assert code == 0 and result["remaining_s"] == pytest.approx(before + 600, abs=3)
    c.peers["n2"].world.holders[Y] = [Holder(Y, 77, "fd")]
    assert ask(c, "group_rollback", group=gid)[0] == 10
    code, result, _, _ = ask(c, "group_extend", group=gid, by_ns=60 * NS_PER_S)
    assert code == 0 and result["state"] == "open"
    assert [p.world.node.state.changes["c1"].state for p in c.peers.values()] == ["open"] * 4
    c.peers["n2"].world.holders.clear()
    c.advance(1500 * NS_PER_S)
    assert machines(c) == ["old"] * 4


def test_a_group_of_somebody_else_is_settled_by_admins_only() -> None:
    c = cluster()
    gid = apply(c)
    assert ask(c, "group_commit", group=gid, message="m", user="bob", role="ops")[0] == 3
    assert ask(c, "group_commit", group=gid, message="m", user="eve", role="viewer")[0] == 3
    assert ask(c, "apply", "n0", resources=WANTED, role="ops")[0] == 3
    assert ask(c, "group_commit", group=gid, message="m", user="alice", role="ops")[0] == 0
    assert ask(c, "group_commit", group=gid, message="m")[0] == 4
    assert ask(c, "group_commit", group="g99", message="m")[0] == 2


@pytest.mark.invariant("K1", "K2")
def test_every_record_of_every_node_is_in_the_log_once_and_in_order() -> None:
    c = cluster()
    apply(c)
    c.advance(30 * NS_PER_S)
    assert c.root is not None
    for name, peer in c.peers.items():
        assert c.root.state.cursors[name].seq == peer.world.journal[-1].seq
        assert c.root.state.cursors[name].hash == peer.world.journal[-1].hash
    c.check()


@pytest.mark.invariant("G4", "G7")
def test_a_vote_or_an_answer_that_comes_again_changes_nothing() -> None:
    c = cluster()
    gid = apply(c)
    world = c.peers["n0"].world
    args = {"group": gid, "fence": 1, "action": "rollback", "ballot": 7_000_000, "automatic": False, "force": False}
    root = person("root", "admin", 0)
    first = world.ask("group_vote", root, **args)
    length = len(world.journal)
    again = world.ask("group_vote", root, **args)
    assert first is not None and again is not None and first.result == again.result == {"vote": "yes"}
    assert len(world.journal) == length, "the same vote is recorded once"
    older = world.ask("group_vote", root, **{**args, "ballot": 6_999_999})
    assert older is not None and older.exit_code == 4 and "stale ballot" in older.message
    body = b'{"exit":0,"result":{"vote":"yes"}}'
    for _ in range(3):  # nobody asked for these
        c.up(c.root, "answer", {"call": "1.99", "final": True, "parts": [[["n0", "n9"], len(body)]], "lost": []}, body)
    assert group(c, gid)["state"] == "open"
    c.check()


def test_a_clock_that_is_a_year_off_moves_nothing() -> None:
    year_ns = 365 * 86400 * NS_PER_S
    c = cluster()
    c.peers["n1"].world.wall_ns += year_ns
    c.peers["n2"].world.wall_ns -= year_ns
    gid = apply(c)
    left = group(c, gid)["remaining_s"]
    c.advance(int(left * 1e9) - 2 * NS_PER_S)
    assert machines(c) == ["new"] * 4
    c.advance(4 * NS_PER_S)
    assert machines(c) == ["old"] * 4 and group(c, gid)["state"] == "rolled back"
    c.check()


@pytest.mark.invariant("G2", "K1")
def test_a_root_on_another_machine_goes_on_with_the_time_that_was_left() -> None:
    from pact.cluster.rootpart import continue_from
    from pact.core.root.log import RootState

    state = RootState()
    assert continue_from(state, "a", 5, 0, True) == 0
    state.gseq, state.boot_id, state.offset_ns, state.t_ns, state.wall_ns = 9, "a", 100, 1_000, 50_000
    assert continue_from(state, "a", 2_000, 60_000, True) == 100, "the same boot: its clock goes on"
    assert 77 + continue_from(state, "b", 77, 60_000, True) == 1_000 + 10_000, "elsewhere: by the wall clock"
    assert 77 + continue_from(state, "b", 77, 60_000, False) == 1_000, "unless nobody keeps that right"
    assert 77 + continue_from(state, "b", 77, 40_000, True) == 1_000, "never back"


@pytest.mark.invariant("S1")
def test_members_record_who_decided_and_not_whose_group_it_is() -> None:
    c = cluster()
    first = apply(c)
    assert ask(c, "group_rollback", group=first, user="dora")[0] == 0
    second = apply(c)
    c.advance(int(group(c, second)["remaining_s"] * 1e9) + 5 * NS_PER_S)
    world = c.peers["n0"].world
    actors = [(r.type, r.actor["user"]) for r in world.journal if r.type in ("group_begun", "group_decided")]
    assert actors == [
        ("group_begun", "alice"),
        ("group_decided", "dora"),
        ("group_begun", "alice"),
        ("group_decided", "pact"),
    ]


def test_a_step_that_the_table_of_a_run_does_not_know_is_refused_by_name() -> None:
    run = Run("g1", ["n1"])
    run.take("vote")
    with pytest.raises(StepError, match="group g1 is voting: 'extend' is not possible"):
        run.take("extend")
    assert run.step == "voting"
    steps = {step for step, _ in TABLE} | set(TABLE.values())
    assert steps == {"applying", "open", "voting", "blocked", "deciding", "extending", "carrying out", "paused"} | {
        "finishing"
    }
    reached = {"applying", "open"}
    while more := {to for (step, _), to in TABLE.items() if step in reached} - reached:
        reached |= more
    assert reached == steps, "nothing stands in the table that cannot come"
