"""What is told of groups: to who looks at one, to who subscribes, and in whose name it stands in the journals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from test_groups import NEW, WANTED, X, Y, apply, ask, cluster, declared, group, machines

from pact.core.records import Record, parse
from pact.core.root.chunks import read_chunk
from pact.core.root.log import ROOT, load
from pact.model import NS_PER_S, Holder
from pact.sim.cluster import Cluster
from pact.sim.parts import person

S = NS_PER_S


def of_root(c: Cluster, type_: str) -> list[Record]:
    records = [parse(line) for raw in c.log for b in read_chunk(raw).batches if b.node == ROOT for line in b.lines]
    return [r for r in records if r.type == type_]


def of_node(c: Cluster, name: str, type_: str) -> list[Record]:
    return [r for r in c.peers[name].world.journal if r.type == type_]


@pytest.mark.invariant("G6")
def test_who_looks_at_a_group_sees_its_members_as_they_are_now() -> None:
    c = cluster()
    gid = apply(c)
    assert group(c, gid)["members"] == {"applied": "n0,n1,n2,n3"}
    c.peers["n1"].world.write(X, {"value": "mine"}, person("bob").owner)
    c.peers["n2"].world.ask("commit", person("root", "admin", 0), targets=["c1"], message="mine alone")
    c.advance(S)
    shown = group(c, gid)["members"]
    assert shown == {
        "applied": "n0,n3",
        f"diverged: {X} was changed again by bob": "n1",
        "left: committed on this node by root": "n2",
    }
    c.peers["n1"].world.write(X, NEW, person("bob").owner)
    c.advance(S)
    assert group(c, gid)["members"]["member"] == "n1", "it is as the group wants it again"
    c.cut("n3")
    c.advance(S // 2)  # nobody knows yet that it is away: who looks does not wait for it for long
    n = c.request("groups", {"group": gid})
    c.advance(6 * S)
    assert c.results.pop(n)[1]["groups"][0]["members"]["applied"].startswith("n0")


@pytest.mark.invariant("G6")
def test_a_member_put_back_to_what_is_declared_is_diverged() -> None:
    c = cluster()
    gid = apply(c)
    c.peers["n0"].world.write(X, {"value": "old"}, person("bob").owner)
    c.advance(S)
    assert group(c, gid)["members"][f"diverged: {X} was changed again by unattributed"] == "n0"


def test_why_a_group_was_blocked_is_gone_when_it_is_extended() -> None:
    c = cluster()
    gid = apply(c)
    c.peers["n2"].world.holders[Y] = [Holder(Y, 77, "fd", "/y", 1000, "carol", "editor")]
    assert ask(c, "group_rollback", group=gid)[0] == 10
    assert list(group(c, gid)["blocked"]) == ["n2"]
    assert ask(c, "group_extend", group=gid, by_ns=3600 * S)[0] == 0
    shown = group(c, gid)
    assert (shown["state"], shown["blocked"], shown["members"]) == ("open", {}, {"applied": "n0,n1,n2,n3"})
    record = of_node(c, "n2", "window_extended")[-1]
    assert record.data["ends"] and record.data["group"] == gid


def test_who_looks_sees_why_a_group_that_requires_all_is_blocked() -> None:
    c = cluster()
    gid = apply(c, require_all=True)
    c.cut("n1")
    c.advance(20 * S)
    code, _, failed, message = ask(c, "group_rollback", group=gid)
    assert code == 5 and list(failed) == ["n1"] and "n1: not connected" in message
    shown = group(c, gid)
    assert shown["state"] == "blocked" and shown["blocked"] == {"n1": {"why": "not connected", "holders": []}}
    assert shown["members"]["away"] == "n1"


@pytest.mark.invariant("F5")
def test_who_subscribes_to_blocked_rollbacks_hears_of_a_groups() -> None:
    c = cluster()
    gid = apply(c)
    c.peers["n2"].world.holders[Y] = [Holder(Y, 77, "fd", "/y", 1000, "carol", "editor")]
    assert ask(c, "group_rollback", group=gid)[0] == 10
    (record,) = of_node(c, "n2", "rollback_blocked")
    assert (record.data["group"], record.data["cause"], record.data["holders"][0]["pid"]) == (gid, "group", 77)
    assert not of_node(c, "n1", "rollback_blocked"), "nothing there is in its way"
    assert ask(c, "group_rollback", group=gid)[0] == 10
    assert len(of_node(c, "n2", "rollback_blocked")) == 1, "once for the same reason"
    (change,) = c.peers["n2"].world.node.state.changes.values()
    assert (change.state, change.holders[0].pid) == ("blocked", 77)
    c.check()


@pytest.mark.invariant("G8")
def test_a_decided_rollback_that_somebody_forces_is_that_ones_doing() -> None:
    """The fleet is held while a rollback is decided and one member is away. Only force ends it there, and who forced it
    stands in the root's log and in the member's, also when another root carries it out.
    """
    c = cluster()
    gid = apply(c)
    c.cut("n3")
    c.advance(10 * S)
    assert ask(c, "group_rollback", group=gid)[0] in (0, 5)
    assert machines(c) == ["old"] * 3 + ["new"]
    assert ask(c, "fleet_hold", reason="outage", for_ns=8000 * S, role="ops")[0] == 5, "n3 is away"
    code, _, _, message = ask(c, "group_rollback", user="dora", group=gid)
    assert code == 4 and "held" in message and not of_root(c, "group_forced")
    ask(c, "group_rollback", user="dora", group=gid, force=True)
    (record,) = of_root(c, "group_forced")
    assert (record.actor["user"], record.data["group"]) == ("dora", gid)
    c.crash_root()
    c.advance(10 * S)
    assert c.root is not None and c.root.state.groups[gid].terms.force
    c.mend("n3")
    c.advance(40 * S)
    assert machines(c) == ["old"] * 4
    (decided,) = of_node(c, "n3", "group_decided")
    assert decided.actor["user"] == "dora" and decided.data["force"] is True
    assert len(of_root(c, "group_decided")) == 1 and of_root(c, "group_decided")[0].actor["user"] == "alice"
    c.check()


@pytest.mark.invariant("G8")
def test_nothing_is_forced_before_it_is_on_record_who_does() -> None:
    """The log hangs (etcd has no quorum), and the root dies before it could write that somebody forces the rollback."""
    c = cluster()
    gid = apply(c)
    c.cut("n3")
    c.advance(10 * S)
    ask(c, "group_rollback", group=gid)
    ask(c, "fleet_hold", reason="outage", for_ns=8000 * S, role="ops")
    commit = c._commit
    c._commit = lambda root, effect: None  # type: ignore[method-assign]
    n = c.request("group_rollback", {"group": gid, "force": True}, user="dora")
    c.advance(S)
    c.mend("n3")
    c.advance(8 * S)
    assert machines(c)[3] == "new" and n not in c.results
    c._commit = commit  # type: ignore[method-assign]
    c.crash_root()
    c.advance(60 * S)
    assert machines(c)[3] == "new" and not of_root(c, "group_forced"), "the fleet is held, and nobody forced anything"
    ask(c, "group_rollback", user="dora", group=gid, force=True)
    c.advance(40 * S)
    assert machines(c)[3] == "old" and of_node(c, "n3", "group_decided")[-1].actor["user"] == "dora"
    c.check()


def until_finishing(c: Cluster, gid: str) -> None:
    """Every member has done it, and that is being written down, slowly."""
    commit = c._commit
    c._commit = lambda root, effect: c.later(2 * S, lambda: commit(root, effect))  # type: ignore[method-assign]
    c.request("group_rollback", {"group": gid})
    while not (c.root and c.root.groups.runs[gid].step == "finishing" and c.root.state.groups[gid].state == "decided"):
        c.advance(S // 20)


@pytest.mark.invariant("G1", "G5")
def test_a_group_is_finished_once_whoever_comes_back_meanwhile() -> None:
    c = cluster()
    gid = apply(c)
    until_finishing(c, gid)
    for session in (98, 99):
        c.up(c.root, "below", {"add": ["n1"], "gone": [], "racks": {}, "sessions": {"n1": session}})
        c.advance(S // 4)
    c.advance(40 * S)
    assert len(of_root(c, "group_finished")) == 1
    c.check()


@pytest.mark.invariant("G1", "F52")
def test_of_many_finished_groups_the_first_to_end_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old group ends while another begins, in one chunk: no root falls over it, now or when it reads its log."""
    monkeypatch.setattr("pact.core.root.log.FINISHED_MAX", 2)
    c = cluster()
    old = apply(c, "n0,n1")
    for _ in range(2):
        assert ask(c, "group_rollback", group=apply(c, "n2,n3"))[0] == 0
    until_finishing(c, old)
    c.request("apply", {"resources": WANTED, "message": "next"}, "n2,n3")
    c.advance(S // 2)
    c.up(c.root, "below", {"add": ["n1"], "gone": [], "racks": {}, "sessions": {"n1": 99}})
    c.advance(20 * S)
    assert c.root is not None and c.root.state.groups[old].outcome == "rolled back"
    assert list(load(None, c.log).groups) == list(c.root.state.groups) == ["g3", "g1", "g4"]
    shown = ask(c, "groups", all=True)[1]["groups"]
    assert [g["group"] for g in shown] == ["g1", "g3", "g4"], "people see them as they were begun"


@pytest.mark.parametrize("text", ["x" * 8_000_000, "", "owed", "done", "under way\n n0: fine"])
def test_what_a_member_makes_up_is_neither_kept_nor_shown(text: str) -> None:
    c = cluster()
    gid = apply(c)
    call, answer = c._call, c._answer
    made_up = orjson.dumps({"ok": True, "exit": 0, "message": "", "hint": "", "result": {"state": text}})

    def odd(root: Any, name: str, head: Any, body: bytes) -> None:
        if name == "n1" and head["op"] == "group_state":
            answer(name, root, (head["fence"], head["call"]), made_up)
        else:
            call(root, name, head, body)

    c._call = odd  # type: ignore[method-assign]
    assert group(c, gid)["members"] == {"applied": "n0,n2,n3", "unknown": "n1"}


def test_nothing_is_forced_that_is_decided_to_be_committed() -> None:
    c = cluster()
    gid = apply(c)
    c.cut("n3")
    c.advance(10 * S)
    ask(c, "group_commit", group=gid, message="m", allow_missing="n3")
    code, _, _, message = ask(c, "group_rollback", group=gid, force=True)
    assert code == 4 and "too late" in message and not of_root(c, "group_forced")
    c.mend("n3")
    c.advance(20 * S)
    assert "force" not in of_node(c, "n3", "group_decided")[0].data
    c.check()


@pytest.mark.invariant("G1")
def test_an_apply_that_nobody_waits_for_any_more_begins_nothing() -> None:
    """Whoever asked is gone, or his key was taken away, while a slow node still looks whether it could."""
    c = cluster()
    call, slow = c._call, list[Any]()

    def later(root: Any, name: str, head: Any, body: bytes) -> None:
        if name == "n2" and head["op"] == "group_check":
            slow.append((root, name, head, body))
        else:
            call(root, name, head, body)

    c._call = later  # type: ignore[method-assign]
    c.request("apply", {"resources": WANTED, "message": "why"}, "n0,n1,n2,n3")
    c.advance(S)
    c.up(c.root, "cancel", {"client": "c", "id": 0})
    call(*slow.pop())
    c.advance(100 * S)
    assert not of_root(c, "group_begun") and machines(c) == ["old"] * 4
    assert c.root is not None and not c.root.questions.open


@pytest.mark.invariant("T6")
def test_a_group_waits_a_moment_for_nodes_that_move_before_it_refuses() -> None:
    """An aggregator has died, or a root was just elected: whoever settles a group then need not come again."""
    c = cluster()
    c.cut("n2")
    c.advance(8 * S)
    n = c.request("apply", {"resources": WANTED, "message": "why"}, "n0,n1,n2,n3")
    c.advance(2 * S)
    assert n not in c.results and machines(c) == ["old"] * 4
    c.mend("n2")
    c.advance(5 * S)
    head, result = c.results.pop(n)
    assert head["exit"] == 0 and machines(c) == ["new"] * 4
    c.cut("n3")
    c.crash_root()
    while c.root is None:
        c.advance(S // 10)
    n = c.request("group_commit", {"group": result["group"], "message": "good"})
    c.advance(3 * S)
    assert n not in c.results
    c.mend("n3")
    c.advance(5 * S)
    assert c.results.pop(n)[0]["exit"] == 0 and declared(c) == ["new"] * 4
    c.check()


@pytest.mark.invariant("T6")
def test_a_group_does_not_wait_for_who_stays_away_nor_for_who_listens_no_more() -> None:
    c = cluster()
    c.advance(10 * S)
    c.cut("n2")
    c.advance(8 * S)
    n = c.request("apply", {"resources": WANTED, "message": "why"}, "n0,n1,n2,n3")
    m = c.request("apply", {"resources": WANTED, "message": "why", "allow_missing": "n2"}, "n0,n2")
    c.advance(S)
    assert c.results.pop(m)[0]["exit"] == 0, "it may do without"
    c.advance(9 * S)
    assert c.results.pop(n)[0]["exit"] == 5 and machines(c)[1] == "old"
    assert ask(c, "apply", "n1,n2", resources=WANTED, message="why")[0] == 5, "at once: it has been away for long"
    c.mend("n2")
    c.advance(5 * S)
    c.cut("n2")
    c.advance(8 * S)
    c.request("apply", {"resources": WANTED, "message": "why"}, "n1,n2")
    c.up(c.root, "cancel", {"client": "c", "id": 0})
    c.mend("n2")
    c.advance(20 * S)
    assert machines(c)[1:3] == ["old", "old"]


@pytest.mark.invariant("G1", "F51")
def test_a_member_that_has_a_decision_votes_for_it_where_the_root_has_lost_it() -> None:
    c = cluster()
    gid = apply(c)
    older = list(c.log)
    c.peers["n1"].world.stubborn.add(X)
    ask(c, "group_rollback", group=gid)
    c.advance(S)
    assert c.peers["n1"].world.node.state.groups[gid].phase == "decided"
    c.crash_root()
    c.log[:] = older
    c.advance(20 * S)
    c.peers["n1"].world.stubborn.clear()
    code, _, failed, message = ask(c, "group_rollback", group=gid)
    c.advance(60 * S)
    assert code == 0, (failed, message)
    assert machines(c) == ["old"] * 4 and group(c, gid)["state"].startswith("rolled back")


@pytest.mark.invariant("S3")
def test_one_person_s_refusals_hide_nobody_elses() -> None:
    c = cluster()
    for _ in range(70):
        ask(c, "apply", "n0", user="eve", role="viewer", resources=WANTED, message="x")
        c.t_ns -= S // 2  # within one minute
    ask(c, "apply", "n0", user="mallory", role="viewer", resources=WANTED, message="x")
    c.advance(S)
    users = [r.actor["user"] for r in of_root(c, "denied")]
    assert users.count("eve") == 60 and users.count("mallory") == 1


@pytest.mark.invariant("P1")
def test_who_applies_hears_at_once_which_nodes_would_roll_nothing_back() -> None:
    c = cluster()
    world = c.peers["n2"].world
    world.settings = replace(world.settings, enforce=False)
    c.crash("n2")
    c.restart("n2")
    c.advance(10 * S)
    for more in ({"dry_run": True}, {}):
        code, _, failed, message = ask(c, "apply", "n0,n1,n2,n3", resources=WANTED, message="why", **more)
        assert (code, failed, message) == (0, {}, "in observe mode, so that nothing is rolled back there: n2")


@pytest.mark.invariant("G4", "F57")
def test_a_root_that_nodes_do_not_obey_says_so() -> None:
    c = cluster()
    c.peers["n2"].world.node.state.fence = 10**9
    code, _, failed, _ = ask(c, "apply", "n0,n1,n2,n3", resources=WANTED, message="why")
    assert code == 4 and list(failed) == ["n2"] and "1000000000" in failed["n2"]
    assert c.root is not None and c.root.counters.refused["a fence lower than the last one"] == 1


@pytest.mark.invariant("S1")
def test_who_is_refused_hears_where_his_role_comes_from() -> None:
    c = cluster()
    n = c.request("apply", {"resources": WANTED, "message": "why"}, "n0", "eve", "viewer")
    m = c.request("hold_place", {"reason": "r", "for_ns": S * 60}, "n0", "eve", "viewer")
    c.advance(S)
    assert "authorized_keys.toml" in c.results.pop(n)[0]["hint"]
    assert m in c.results
    for via, file in (("cluster", "authorized_keys.toml"), ("socket", "agent.toml")):
        guest = person("eve", "viewer")
        guest = replace(guest, actor=replace(guest.actor, via=via))
        reply = c.peers["n1"].world.ask("hold_place", guest, reason="r", for_ns=60 * S)
        assert reply is not None and reply.exit_code == 3 and file in reply.hint
