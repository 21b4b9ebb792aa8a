"""What is new below tracked patterns, as the core decides it: no files, no clock."""

from __future__ import annotations

import pytest

from pact.core.node import tracked
from pact.core.node.events import Appeared, New
from pact.core.node.places import places
from pact.core.node.state import State
from pact.core.records import PIECE_MAX
from pact.model import NS_PER_S, UNATTRIBUTED, Declared, Holder
from pact.sim.parts import person, with_settings
from pact.sim.world import World

ROOT, ALICE, BOB = person("root", "admin", 0), person("alice"), person("bob")
EVIL = "file:/etc/evil"
FILE = {"type": "file"}


def world(mode: str = "report", **settings: int) -> World:
    out = World(settings=with_settings(**settings)) if settings else World()
    out.machine["file:/etc/known"] = {"value": "known"}
    out.start({"file:/etc/known": Declared({"value": "known"})})
    reply = out.ask("track", ROOT, patterns={"file:/etc/*": mode})
    assert reply is not None and reply.exit_code == 0
    return out


def types(of: World, after: int = -1) -> list[str]:
    return [r.type for r in of.journal if r.seq > after]


@pytest.mark.invariant("U1")
def test_what_is_new_is_untracked_without_window_or_magnitude_whatever_time_passes() -> None:
    w = world()
    w.create(EVIL, {"value": "x"}, ALICE.owner)
    state = w.node.state
    assert state.untracked[EVIL].owner.user == "alice" and tracked.count(w.node) == 1
    assert state.overall() == "committed" and state.magnitude() == 0 and not state.changes
    w.advance(30 * 24 * 3600 * NS_PER_S)
    assert w.machine[EVIL] is not None and EVIL in w.node.state.untracked
    w.check()


@pytest.mark.invariant("U1")
def test_an_owner_who_is_known_late_is_remembered_and_the_first_time_is_kept() -> None:
    w = world()
    w.create(EVIL, {"value": "x"}, None)
    seen = w.node.state.untracked[EVIL].seen
    w.advance(NS_PER_S)
    w.create(EVIL, {"value": "x"}, ALICE.owner)
    w.advance(NS_PER_S)
    assert w.node.state.untracked[EVIL].owner.user == "alice" and w.node.state.untracked[EVIL].seen == seen
    seq = w.node.state.seq
    w.create(EVIL, {"value": "x"}, BOB.owner)
    w.create(EVIL, {"value": "x"}, None)
    assert w.node.state.untracked[EVIL].owner.user == "alice" and w.node.state.seq == seq


@pytest.mark.invariant("U3")
def test_who_goes_on_making_and_removing_is_recorded_ever_less_often() -> None:
    w = world()
    before = w.node.state.seq
    for n in range(1000):
        w.create(EVIL, {"value": str(n)}, ALICE.owner)
        w.advance(NS_PER_S // 4)
        w.create(EVIL, None, ALICE.owner)
        w.advance(NS_PER_S // 4)
    assert w.node.state.seq - before < 60, types(w, before)
    w.advance(120 * NS_PER_S)
    assert EVIL not in w.node.state.untracked and not w.node.pace
    w.check()


@pytest.mark.invariant("U3")
def test_many_at_once_are_few_records_and_beyond_the_limit_they_are_not_kept() -> None:
    w = world()
    found = [New(f"file:/etc/{n}", FILE, ALICE.owner) for n in range(tracked.OWNER_MAX + 500)]
    before = w.node.state.seq
    w.feed(lambda: Appeared(w.t_ns, w.wall_ns, found))
    assert tracked.count(w.node) == tracked.OWNER_MAX
    w.advance(600 * NS_PER_S)
    assert len(w.node.state.untracked) == tracked.OWNER_MAX and w.node.state.seq - before < 40
    w.create("file:/etc/bobs", {"value": "x"}, BOB.owner)
    assert "file:/etc/bobs" in w.node.state.untracked, "another's has room"
    assert max(len(r.data["resources"]) for r in w.journal if r.type == "untracked_seen") <= PIECE_MAX
    w.check()


@pytest.mark.invariant("U3")
def test_long_names_make_no_record_large() -> None:
    w = world()
    found = [New(f"file:/etc/{n:04}{'x' * 4000}", FILE, ALICE.owner) for n in range(200)]
    w.feed(lambda: Appeared(w.t_ns, w.wall_ns, found))
    w.ask("commit", ROOT, all=True, message="m")
    sizes = [sum(map(len, r.data["resources"])) for r in w.journal if r.type == "untracked_seen"]
    assert sum(sizes) > 200 * 4000 and max(sizes) <= tracked.CHUNK_BYTES


@pytest.mark.invariant("U3")
def test_one_who_floods_holds_nobody_else_s_record_up() -> None:
    w = world()
    w.feed(lambda: Appeared(w.t_ns, w.wall_ns, [New(f"file:/etc/{n}", FILE, ALICE.owner) for n in range(5000)]))
    w.create("file:/etc/bobs", {"value": "x"}, BOB.owner)
    assert "file:/etc/bobs" in w.node.state.untracked


@pytest.mark.invariant("U3")
def test_who_makes_ever_new_names_below_an_enforced_pattern_writes_little_too() -> None:
    w = world("enforce")
    before = w.node.state.seq
    for n in range(20_000):
        w.create(f"file:/etc/{n}", {"value": "x"}, ALICE.owner)
        w.advance(NS_PER_S // 8)
        w.create(f"file:/etc/{n}", None, ALICE.owner)
        w.advance(NS_PER_S // 8)
    assert w.node.state.seq - before < 3_500, "more than ten thousand came and went"
    w.advance(600 * NS_PER_S)
    assert not w.node.pace and not w.node.state.enforced and not w.node.state.untracked
    w.check()


@pytest.mark.invariant("U3", "S3")
def test_who_makes_a_thousand_long_names_does_not_keep_what_others_do_from_the_journal() -> None:
    """Ten minutes of one person's silence are nothing; of everybody's, they are time to do something and to hide it."""
    w = world()
    found = [New(f"file:/etc/{n}{'x' * 4_000}", dict(FILE), ALICE.owner) for n in range(1_000)]
    w.feed(lambda: Appeared(w.t_ns, w.wall_ns, found))
    w.advance(NS_PER_S)
    w.create(EVIL, {"value": "x"}, BOB.owner)
    w.advance(60 * NS_PER_S)
    assert EVIL in w.node.state.untracked
    w.check()


@pytest.mark.invariant("U3", "S3")
def test_in_a_record_of_many_each_has_a_share() -> None:
    """Who has most, and whose key comes first, had all of it."""
    w = world()
    first = [person(f"a{n}", uid=100_000 + n).owner for n in range(30)]
    for n in range(150):  # all records of a while are used
        w.create(f"file:/etc/{n}", {"value": "x"}, person(f"u{n}", uid=200_000 + n).owner)
    found = [New(f"file:/etc/{owner.user}-{n}", dict(FILE), owner) for owner in first for n in range(500)]
    w.feed(lambda: Appeared(w.t_ns, w.wall_ns, found))
    w.create(EVIL, {"value": "x"}, person("zoe", uid=999_999).owner)
    assert EVIL not in w.node.state.untracked
    w.advance(10 * NS_PER_S)
    assert EVIL in w.node.state.untracked
    w.advance(3600 * NS_PER_S)
    assert not w.node.pace and len(w.node.state.untracked) == 150 + len(found) + 1
    w.check()


@pytest.mark.invariant("U3")
def test_a_commit_that_has_all_recorded_does_not_keep_what_comes_then_from_the_journal() -> None:
    w = world()
    owners = [person(f"u{n}", uid=100_000 + n).owner for n in range(2_000)]
    found = [New(f"file:/etc/{o.user}{'x' * 2_000}", dict(FILE), o) for o in owners]
    w.feed(lambda: Appeared(w.t_ns, w.wall_ns, found))
    assert len(w.node.state.untracked) < len(found)
    w.ask("commit", person("op"), targets=["file:/etc/known"])
    assert len(w.node.state.untracked) == len(found)
    w.create(EVIL, {"value": "x"}, BOB.owner)
    w.advance(60 * NS_PER_S)
    assert EVIL in w.node.state.untracked
    w.check()


@pytest.mark.invariant("U3", "S3")
@pytest.mark.parametrize("mode", ["report", "enforce"])
def test_who_has_thousands_of_user_ids_writes_no_more_than_one(mode: str) -> None:
    """As whoever has a range of them for containers: each was recorded as a person who does little."""
    w = world(mode)
    before = w.node.state.seq
    for n in range(4_000):
        w.create(f"file:/etc/{n}", {"value": "x"}, person(f"u{n}", uid=100_000 + n).owner)
        w.advance(NS_PER_S // 20)
        w.create(f"file:/etc/{n}", None, person(f"u{n}", uid=100_000 + n).owner)
    assert w.node.state.seq - before < (250 if mode == "report" else 5_200), "in 200 s"
    w.create("file:/etc/roots", {"value": "x"}, ROOT.owner)
    w.advance(NS_PER_S)
    assert "file:/etc/roots" in (w.node.state.untracked if mode == "report" else w.node.state.enforced)
    w.create("file:/etc/alices", {"value": "x"}, ALICE.owner)
    w.advance(60 * NS_PER_S)
    assert "file:/etc/alices" in w.node.state.untracked or "file:/etc/alices" in w.node.state.enforced
    w.create("file:/etc/alices", None, ALICE.owner)
    w.create("file:/etc/roots", None, ROOT.owner)
    w.advance(600 * NS_PER_S)
    assert not w.node.pace and not w.node.state.enforced and not w.node.state.untracked
    w.check()


@pytest.mark.invariant("U2")
def test_an_enforced_thing_has_its_owner_s_window_and_leaves_nothing_declared() -> None:
    w = world("enforce")
    w.create(EVIL, {"value": "x"}, ALICE.owner)
    change = w.node.state.change_of(EVIL)
    assert change is not None and change.owner.user == "alice" and w.node.state.deadline_ns(change) is not None
    assert EVIL not in w.node.state.untracked
    w.advance(3600 * NS_PER_S)
    assert w.machine[EVIL] is None and EVIL not in w.node.state and not w.node.state.enforced
    w.create(EVIL, {"value": "y"}, ALICE.owner)
    w.write(EVIL, None, ALICE.owner)
    assert EVIL not in w.node.state and not w.node.state.changes, "he took it away himself"
    w.check()


@pytest.mark.invariant("U2")
def test_an_enforced_thing_that_went_before_it_was_looked_at_is_forgotten() -> None:
    w = world("enforce")
    w.feed(lambda: Appeared(w.t_ns, w.wall_ns, [New(EVIL, FILE, ALICE.owner)]))
    assert EVIL not in w.node.state and not w.node.state.enforced
    w.check()


@pytest.mark.invariant("U2")
def test_a_kill_between_being_enforced_and_being_looked_at_loses_no_owner() -> None:
    w = world("enforce")
    w.machine[EVIL] = {"value": "x"}
    w.crash_after = 1
    w.feed(lambda: Appeared(w.t_ns, w.wall_ns, [New(EVIL, FILE, ALICE.owner)]))
    assert not w.running and w.journal[-1].type == "declared"
    w.start()
    change = w.node.state.change_of(EVIL)
    assert change is not None and change.owner.user == "alice"
    w.check()


@pytest.mark.invariant("U1")
def test_ops_settle_their_own_and_nobody_s_and_are_refused_others() -> None:
    w = world()
    for resource, owner in ((EVIL, ALICE.owner), ("file:/etc/b", BOB.owner), ("file:/etc/n", None)):
        w.create(resource, {"value": "x"}, owner)
    for op in ("commit", "rollback"):
        reply = w.ask(op, BOB, targets=[EVIL], **({"message": "m"} if op == "commit" else {}))
        assert reply is not None and reply.exit_code == 3 and "alice" in reply.message
    assert w.journal[-1].type == "denied"
    reply = w.ask("commit", ALICE, message="mine")
    assert reply is not None and [c["resources"] for c in reply.result["committed"]] == [[EVIL]]
    reply = w.ask("commit", BOB, all=True, message="all that I may")
    assert reply is not None and reply.exit_code == 0 and not w.node.state.untracked
    w.check()


@pytest.mark.invariant("U1")
def test_a_rollback_that_names_it_is_a_change_of_its_own_and_a_dry_run_changes_nothing() -> None:
    w = world()
    w.create(EVIL, {"value": "x"}, ALICE.owner)
    seq = w.node.state.seq
    reply = w.ask("rollback", ROOT, targets=[EVIL], dry_run=True)
    assert reply is not None and reply.exit_code == 0 and w.node.state.seq == seq
    w.holders[EVIL] = [Holder(EVIL, 7, "fd", user="carol", command="vim")]
    reply = w.ask("rollback", ROOT, targets=[EVIL])
    assert reply is not None and reply.exit_code == 10 and w.node.state.seq == seq and w.machine[EVIL] is not None
    w.holders.clear()
    reply = w.ask("rollback", ROOT, targets=[EVIL])
    assert reply is not None and reply.exit_code == 0 and w.machine[EVIL] is None
    assert types(w, seq) == ["declared", "drift_detected", "rollback_started", "rolled_back"]
    assert not w.node.state.changes and EVIL not in w.node.state
    w.check()


@pytest.mark.invariant("U1")
def test_a_removal_that_fails_is_a_failed_change_and_a_kill_on_the_way_is_taken_up_again() -> None:
    w = world()
    w.create(EVIL, {"value": "x"}, ALICE.owner)
    w.stubborn.add(EVIL)
    reply = w.ask("rollback", ROOT, targets=[EVIL])
    assert reply is not None and reply.exit_code == 1 and w.node.state.overall() == "failed"
    w.stubborn.clear()
    (cid,) = w.node.state.changes
    w.ask("rollback", ROOT, targets=[cid])
    assert w.machine[EVIL] is None and EVIL not in w.node.state
    for after in range(12):
        w.create(EVIL, {"value": "x"}, ALICE.owner)
        w.advance(60 * NS_PER_S)
        w.crash_after = after
        w.ask("rollback", ROOT, targets=[EVIL])
        w.crash_after = None
        if not w.running:
            w.start()
        w.check()
        if EVIL in w.node.state.untracked:
            w.ask("rollback", ROOT, targets=[EVIL])
        assert w.machine[EVIL] is None and EVIL not in w.node.state and not w.node.state.changes, after


def test_one_request_may_name_a_change_and_what_is_untracked() -> None:
    w = world()
    w.create(EVIL, {"value": "x"}, ALICE.owner)
    w.write("file:/etc/known", {"value": "y"}, ALICE.owner)
    reply = w.ask("rollback", ROOT, targets=[EVIL, "file:/etc/known"])
    assert reply is not None and reply.exit_code == 0 and len(reply.result["rolled_back"]) == 2
    assert w.machine == {"file:/etc/known": {"value": "known"}, EVIL: None}


@pytest.mark.invariant("C5")
def test_a_commit_that_names_what_is_gone_is_refused_and_one_of_all_leaves_it_out() -> None:
    w = world()
    for resource in (EVIL, "file:/etc/b"):
        w.create(resource, {"value": "x"}, ALICE.owner)
    w.machine[EVIL] = None
    reply = w.ask("commit", ROOT, targets=[EVIL, "file:/etc/b"], message="m")
    assert reply is not None and reply.exit_code == 4 and "is gone" in reply.message
    reply = w.ask("commit", ROOT, all=True, message="m")
    assert reply is not None and reply.exit_code == 0 and reply.result["notes"] == [f"{EVIL} is gone"]
    assert "file:/etc/b" in w.node.state and EVIL not in w.node.state


def test_a_held_node_and_one_that_only_observes_remove_nothing() -> None:
    w = world()
    w.create(EVIL, {"value": "x"}, ALICE.owner)
    w.ask("hold_place", ROOT, reason="wait", for_ns=900 * NS_PER_S, change=None)
    reply = w.ask("rollback", ROOT, targets=[EVIL])
    assert reply is not None and reply.exit_code == 4 and w.machine[EVIL] is not None
    reply = w.ask("rollback", ROOT, targets=[EVIL], force=True)
    assert reply is not None and reply.exit_code == 0 and w.machine[EVIL] is None
    w = World(settings=with_settings(enforce=False))
    w.start({})
    w.ask("track", ROOT, patterns={"file:/etc/*": "report"})
    w.create(EVIL, {"value": "x"}, None)
    reply = w.ask("rollback", ROOT, targets=[EVIL])
    assert reply is not None and reply.exit_code == 4 and w.machine[EVIL] is not None


def test_the_pattern_whose_name_is_longest_decides() -> None:
    order = ["file:/**", "file:/etc/*", "file:/etc/**", "file:/etc/cron*", "file:/etc/cron.d/*"]
    assert sorted(order, key=tracked.weight) == order


def test_too_many_patterns_are_refused() -> None:
    w = world()
    patterns = {f"file:/a{n}/*": "report" for n in range(tracked.PATTERNS_MAX)}
    reply = w.ask("track", ROOT, patterns=patterns)
    assert reply is not None and reply.exit_code == 2 and len(w.node.state.tracked) == 1


def test_a_snapshot_of_before_has_no_patterns_and_loads() -> None:
    w = world()
    old = w.node.state.to_json()
    del old["tracked"]
    again = State.from_json(old)
    assert again.tracked == {} and again.untracked == {}
    w.create(EVIL, {"value": "x"}, ALICE.owner)
    now = w.node.state.to_json()
    assert State.from_json(now).to_json() == now


def test_what_is_taken_in_for_a_time_is_nobody_s_declaration_after_it() -> None:
    w = world()
    w.create(EVIL, {"value": "x"}, ALICE.owner)
    w.ask("commit", ROOT, targets=[EVIL], message="for now", ttl_ns=900 * NS_PER_S)
    assert EVIL in w.node.state
    w.advance(1000 * NS_PER_S)
    assert EVIL not in w.node.state and w.machine[EVIL] == {"value": "x"} and not w.node.state.changes
    w.check()


def test_an_unattributed_owner_is_nobody() -> None:
    w = world()
    w.create(EVIL, {"value": "x"}, None)
    assert w.node.state.untracked[EVIL].owner == UNATTRIBUTED


def test_a_new_tree_is_one_place_and_what_is_beside_it_another() -> None:
    w = World()
    w.start({})
    w.ask("track", ROOT, patterns={"file:/etc/*": "report", "sysctl:net.*": "report"})
    tree = [
        New("file:/etc/d", {"type": "directory"}, ALICE.owner),
        New("file:/etc/d/e", {"type": "directory"}, ALICE.owner),
    ]
    tree += [New(f"file:/etc/d/e/{n}", FILE, ALICE.owner) for n in range(50)]
    tree += [New("file:/etc/x", FILE, BOB.owner), New("file:/etc/y", FILE, BOB.owner), New("file:/etc/f/z", FILE, None)]
    tree += [New(f"sysctl:net.ipv4.conf.v0.{n}", {}, None) for n in "abc"]
    w.feed(lambda: Appeared(w.t_ns, w.wall_ns, tree))
    told = [(place, user, count) for place, user, count, _ in places(w.node)]
    assert told == [
        ("file:/etc/", "bob", 2),
        ("file:/etc/d/", "alice", 52),
        ("file:/etc/f/z", "unattributed", 1),
        ("sysctl:net.ipv4.conf.v0.*", "unattributed", 3),
    ]


@pytest.mark.invariant("J2")
def test_a_snapshot_says_the_same_whether_its_records_were_read_back_or_not() -> None:
    """A record's names are sorted in the file, and in memory as they came: ``pact journal verify`` compares the two."""
    w = world()
    names = ["file:/etc/z", "file:/etc/b", "file:/etc/m"]
    w.machine.update({n: {"value": "x"} for n in names})
    w.feed(lambda: Appeared(w.t_ns, w.wall_ns, [New(n, {"type": "file"}, ALICE.owner) for n in names], []))
    w.advance(60 * NS_PER_S)
    assert set(names) <= w.node.state.untracked.keys()
    w.check()
