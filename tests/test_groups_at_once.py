"""Groups when everything comes at once: a stop in the middle of a vote, members that forgot, people who do not wait."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from test_groups import WANTED, X, Y, apply, ask, cluster, group, machines, writes

from pact.core.root.envelope import Asker
from pact.core.root.runs import as_written
from pact.core.tree.wire import message
from pact.errors import UsageError
from pact.model import NS_PER_S, Holder
from pact.sim.cluster import Cluster
from pact.sim.parts import person


@pytest.mark.invariant("G8")
def test_a_stop_that_comes_during_a_vote_or_a_rollback_stops_it_and_it_goes_on_afterwards() -> None:
    c = cluster(wave=1, waves_at_once=1)
    gid = apply(c)
    c.advance(int(group(c, gid)["remaining_s"] * 1e9) - NS_PER_S)
    while group_phases(c, gid) == {"open"}:
        c.advance(NS_PER_S // 1000)
    n = c.request("fleet_hold", {"reason": "file server down", "for_ns": 3600 * NS_PER_S}, None, "bob", "ops")
    c.advance(20 * NS_PER_S)
    assert c.results.pop(n)[0]["exit"] == 0
    assert machines(c).count("new") >= 3, "at most the node that had begun"
    c.advance(600 * NS_PER_S)
    assert machines(c).count("new") >= 3
    assert ask(c, "fleet_release", hold="f1")[0] == 0
    c.advance(60 * NS_PER_S)
    assert machines(c) == ["old"] * 4 and group(c, gid)["state"] == "rolled back"
    c.check()


def test_an_operators_stop_interrupts_the_waves_and_force_goes_on() -> None:
    c = cluster(wave=1, waves_at_once=1)
    gid = apply(c)
    n = c.request("group_rollback", {"group": gid})
    while machines(c) == ["new"] * 4:
        c.advance(NS_PER_S // 1000)
    c.request("fleet_hold", {"reason": "stop", "for_ns": 3600 * NS_PER_S}, None, "bob", "ops")
    c.advance(20 * NS_PER_S)
    assert 1 <= machines(c).count("new") <= 3, machines(c)
    assert "held" in c.results.pop(n)[0]["message"]
    assert group(c, gid)["state"] == "held"
    code, _, _, message = ask(c, "group_rollback", group=gid)
    assert code == 4 and "held" in message
    assert ask(c, "group_rollback", group=gid, force=True)[0] == 0
    assert machines(c) == ["old"] * 4
    c.check()


def group_phases(c: Cluster, gid: str) -> set[str]:
    return {g.phase for p in c.peers.values() if (g := p.world.node.state.groups.get(gid)) is not None}


@pytest.mark.invariant("G8")
def test_a_node_that_obeys_a_newer_root_does_not_say_that_it_knows_an_older_ones_stop() -> None:
    """A root whose log began anew, or that was replaced: its word is not obeyed, and nobody says that it is."""
    c = cluster()
    old = c.root
    assert old is not None
    c.elect()
    c.advance(5 * NS_PER_S)
    apply(c)  # the nodes have heard of the new one
    args = {
        "fence": old.fence,
        "seq": 0,
        "holds": [{"hold": "f9", "owner": "bob", "reason": "r", "ends": "", "left_ns": NS_PER_S}],
    }
    answers: list[bytes] = []
    old.questions.ask(
        ["n0"],
        "fleet_seen",
        orjson.dumps(args),
        Asker("x", "admin", "c"),
        NS_PER_S,
        lambda names, body: answers.append(body),
        lambda lost: None,
    )
    c._perform(old, old.flush())
    c.advance(NS_PER_S // 2)
    assert "f9" not in c.peers["n0"].world.node.state.holds
    assert not any(
        orjson.loads(a)["result"].get("seen")
        for a in c.peers["n0"].calls.kept
        if isinstance(orjson.loads(a).get("result"), dict)
    )


def test_a_commit_that_fails_leaves_a_blocked_group_blocked() -> None:
    c = cluster()
    gid = apply(c)
    c.peers["n2"].world.holders[Y] = [Holder(Y, 77, "fd", "/y", 1000, "carol", "editor")]
    c.advance(1000 * NS_PER_S)
    assert group(c, gid)["state"] == "blocked"
    c.peers["n1"].world.write(X, {"value": "mine"}, person("bob").owner)
    c.peers["n2"].world.holders.clear()
    assert ask(c, "group_commit", group=gid, message="good")[0] == 4
    c.advance(100 * NS_PER_S)
    assert group(c, gid)["state"] == "blocked" and machines(c) == ["new", "mine", "new", "new"], "a person decides"
    c.check()


@pytest.mark.invariant("G3")
@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("declare", {"resources": {}, "prune": True}),
        ("adopt", {"patterns": [X]}),
    ],
)
def test_after_a_yes_nothing_takes_the_change_away_from_the_group(op: str, args: dict[str, Any]) -> None:
    c = cluster()
    gid = apply(c)
    c.request("group_rollback", {"group": gid})
    while not all(p.world.node.state.groups[gid].phase == "prepared" for p in c.peers.values()):
        c.advance(NS_PER_S // 1000)
    c.root = None
    world = c.peers["n0"].world
    reply = world.ask(op, person("root", "admin", 0), **args)
    assert X in world.node.state.member_of, "the group's rollback has still to restore it"
    assert reply is not None and (reply.exit_code == 4 or reply.result["in_changes"])
    c.elect()
    c.advance(120 * NS_PER_S)
    assert ask(c, "group_rollback", group=gid)[0] == 0 and machines(c) == ["old"] * 4
    c.check()


def test_a_viewer_sees_the_consumers_name_and_not_its_command_line() -> None:
    c = cluster()
    gid = apply(c)
    c.peers["n2"].world.holders[Y] = [Holder(Y, 77, "fd", "/y", 1000, "carol", "editor --password=hunter2")]
    ask(c, "group_rollback", group=gid)
    _, result, _, _ = ask(c, "groups", user="eve", role="viewer", group=gid)
    assert "hunter2" not in str(result) and "editor" in str(result)
    assert "hunter2" in str(ask(c, "groups", group=gid)[1])


def test_what_a_new_root_cannot_know_it_does_not_say() -> None:
    """The root died while the group was being applied: whether it is applied somewhere, only the node can say."""
    c = cluster()
    c.cut("n3")
    c.request("apply", {"resources": WANTED, "message": "m"}, "n0,n1,n2")
    while not any(r == "group_begun" for r in writes(c)):
        c.advance(NS_PER_S // 1000)
    c.root = None
    c.elect()
    c.advance(NS_PER_S)
    shown = group(c, "g1")
    if machines(c)[:3] != ["new"] * 3:
        assert "applied" not in shown["members"], shown


@pytest.mark.invariant("T13")
def test_a_node_that_asks_without_end_gets_one_answer_at_a_time() -> None:
    c = cluster()
    root = c.root
    assert root is not None
    for _ in range(50):
        groups = [[f"g{100 + i}", "prepared", 1] for i in range(5_000)] + [["g²", "prepared", 1], ["g٣", "prepared", 1]]
        root.received(message("ask", {"node": "n0", "groups": groups}), c.t_ns, 0)
        root.received(message("ask", {"node": "n0", "groups": groups[-2:]}), c.t_ns, 0)
    assert len(root.questions.open) <= 16


@pytest.mark.invariant("G5")
def test_a_member_that_has_forgotten_the_group_or_left_it_is_not_said_to_have_done_it() -> None:
    c = cluster()
    gid = apply(c)
    state = c.peers["n3"].world.node.state  # its journal was lost, its machine was not
    state.groups.clear()
    for change in state.changes.values():
        change.group = ""
    reply = c.peers["n0"].world.ask("commit", person("root", "admin", 0), targets=["c1"], message="mine")
    assert reply is not None and reply.exit_code == 0
    code, result, failed, message = ask(c, "group_rollback", group=gid)
    assert machines(c) == ["new", "old", "old", "new"]
    assert code == 4 and set(failed) == {"n0", "n3"} and "committed on this node by root" in failed["n0"]
    assert "except on" in message and result["state"].startswith("rolled back, except on")


def test_a_member_whose_part_was_rolled_back_on_the_node_needs_no_word() -> None:
    c = cluster()
    gid = apply(c)
    reply = c.peers["n0"].world.ask("rollback", person("root", "admin", 0), targets=["c1"])
    assert reply is not None and reply.exit_code == 0
    assert ask(c, "group_rollback", group=gid)[0] == 0 and machines(c) == ["old"] * 4


def test_a_group_whose_members_the_next_root_could_not_read_is_not_begun() -> None:
    c = cluster()
    root = c.root
    assert root is not None

    class Short(type(root.sets)):  # type: ignore[misc]
        def expand(self, text: str, most: int = 0) -> list[str]:
            return list(super().expand(text)) if text.count(",") < 3 else _refuse()

    names = ALL_OF
    root.sets = Short()
    code, _, _, message = ask(c, "apply", names, resources=WANTED, message="m")
    assert code == 2, message  # what a person wrote
    assert as_written(root, ["n0", "n1", "n2", "n3"]) == ""
    assert as_written(root, ["n0", "n1"]) == "n0,n1"
    assert writes(c) == []


ALL_OF = "n0,n1,n2,n3"


def _refuse() -> list[str]:
    raise UsageError("too long")


@pytest.mark.parametrize("after_ms", range(0, 60, 6))
def test_a_node_that_is_forgotten_beside_a_decision_ends_nobody_s_waiting(after_ms: int) -> None:
    """The two may become durable together, before anybody was told the decision."""
    ms, c = NS_PER_S // 1000, cluster()
    gid = apply(c, "n0,n1,n2")
    c.crash("n3")
    c.advance(10 * NS_PER_S)

    def commit(root: Any, effect: Any) -> None:
        def durable() -> None:
            c.log.append(effect.chunk)
            c._perform(root, root.durable(effect.first, effect.count, c.t_ns, c.wall_ns))

        c.later(30 * ms, durable)  # as long as etcd takes

    c._commit = commit  # type: ignore[method-assign]
    n = c.request("group_commit", {"group": gid, "message": "m"})
    c.advance(after_ms * ms)
    c.request("group_rollback", {"group": gid}, user="carl", role="ops")  # a refusal: its record is on its way
    c.request("nodes_forget", {}, "n3")
    c.advance(5 * NS_PER_S)
    head, result = c.results[n]
    assert (head["exit"], head["message"], result["state"]) == (0, "", "committed")
