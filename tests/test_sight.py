"""What the root knows of each node from records alone: the same as the node itself, and nothing that harms it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
import test_core_untold as untold
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cluster_simulation import STEPS_OF, build, pick, random_step
from test_simulation import Life

from pact.core.node import fold
from pact.core.node.state import State
from pact.core.records import TYPES, Record
from pact.core.root import sight
from pact.core.root.chunks import Batch, Chunk
from pact.core.root.nodeview import details
from pact.core.root.sight import Sight
from pact.core.root.words import holder, owner_of
from pact.model import Declared


def chunk(first: int, node: str, *records: Any) -> Chunk:
    lines = [r if isinstance(r, bytes) else orjson.dumps(r) for r in records]
    return Chunk(first, len(lines), 1, 1, "", {}, [Batch(node, "r1", "i", 0, lines)])


def line(type_: str, data: Any, t_ns: int = 5, time: str = "2026-11-23T15:49:09.733321Z") -> dict[str, Any]:
    actor = {"user": "ann", "uid": 1, "role": "ops", "via": "socket"}
    return {"type": type_, "data": data, "time": time, "t_ns": t_ns, "actor": actor}


def owner(user: str = "ann", command: str = "/usr/bin/vi secret") -> dict[str, Any]:
    return {"key": f"u:{user}", "user": user, "uid": 1001, "session": "", "command": command}


def drift(resource: str = "file:/a", change: str = "c1", **more: Any) -> dict[str, Any]:
    return line(
        "drift_detected",
        {
            "resource": resource,
            "change": change,
            "owner": owner(),
            "opened_ns": 5,
            "actual": None,
            "deviation_n": 10**9,
            "weight_n": 10**9,
            **more,
        },
    )


def of_node(state: State) -> dict[str, Any]:
    return {
        c.id: (c.state, sorted(c.members), state.deadline_ns(c), c.owner.user, c.reason) for c in state.changes.values()
    }


def of_sight(seen: Sight) -> dict[str, Any]:
    node = seen.nodes["sim"]
    out = {}
    for c in node.changes.values():
        ends_ns = node.ends_ns(c)
        out[c.id] = (c.state, sorted(c.members), None if ends_ns is None else ends_ns - node.offset_ns, c.owner, c.why)
    return out


def compared(journal: Iterable[Record], seed: int) -> None:
    state, seen = State(), Sight()
    for record in journal:
        fold.apply(state, record)
        seen.take(chunk(record.seq, "sim", orjson.dumps(record.to_json())))
        assert of_sight(seen) == of_node(state), (seed, record.seq, record.type, record.data)
        node = seen.nodes["sim"]
        assert node.state == state.overall().replace("unconfigured", "committed")
        assert (node.emergency is None) == (state.emergency is None)
        assert sorted(node.holds) == sorted(state.holds)
        assert sorted(node.blind) == sorted(state.blind)
    assert seen.left_out == 0


@pytest.mark.invariant("V6")
@pytest.mark.parametrize("seed", range(60))
def test_the_root_knows_from_records_what_the_node_knows_itself(seed: int) -> None:
    """Lives with kills, reboots, holds, emergencies, trials and rollbacks; compared after every record, to the
    nanosecond of each deadline."""
    life = Life(seed)
    life.run()
    compared(life.world.journal, seed)


@pytest.mark.invariant("V6")
@pytest.mark.parametrize("seed", range(20))
def test_the_root_knows_members_of_groups_from_records(seed: int) -> None:
    rng = random.Random(seed)
    cluster = build(rng, seed)
    for _ in range(60):
        random_step(cluster, rng, pick(rng, STEPS_OF))
    for peer in cluster.peers.values():
        compared(peer.world.journal, seed)


@pytest.mark.invariant("V6", "R14")
@pytest.mark.parametrize("accepts", ["declare", "adopt"])
def test_the_root_knows_of_a_change_that_stays_for_who_is_owed(accepts: str) -> None:
    """What was drift becomes declared while somebody must still be told: the node keeps the failed change."""
    world = untold.started()
    world.deaf.add(untold.FILE)
    untold.declares(world)
    world.write(untold.FILE, dict(untold.ONE), untold.ADMIN.owner)
    if accepts == "declare":
        now = Declared(dict(untold.ONE), notify=untold.NOTIFY)
        world.ask("declare", untold.ADMIN, resources={untold.FILE: now.to_json()})
    else:
        world.ask("adopt", untold.ADMIN, patterns=[untold.FILE])
    (change,) = world.node.state.changes.values()
    assert change.state == "failed" and change.members[untold.FILE].owed
    declared = world.node.state.declared(untold.FILE)
    assert declared is not None and declared.attrs == untold.ONE
    compared(world.journal, 0)


def test_a_journal_that_is_known_from_its_middle_on_is_followed_as_far_as_it_makes_sense() -> None:
    for seed in range(10):
        life = Life(seed)
        life.run()
        journal = life.world.journal
        for start in range(0, len(journal), 7):
            seen, state = Sight(), State()
            for record in journal:
                fold.apply(state, record)
                if record.seq >= start:
                    seen.take(chunk(record.seq, "sim", orjson.dumps(record.to_json())))
            assert seen.left_out == 0 and of_sight(seen).keys() <= of_node(state).keys(), (seed, start)


# -- what is sent to harm ---------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "change",
    "into",
    "resource",
    "resources",
    "owner",
    "opened_ns",
    "weight_n",
    "deviation_n",
    "reason",
    "holders",
    "by",
    "ends",
    "hold",
    "settings",
    "by_ns",
    "restored",
    "forgotten",
    "taken",
    "members",
    "message",
    "observer",
    "user",
]


@pytest.mark.invariant("V6")
@given(st.lists(st.tuples(st.sampled_from(sorted(TYPES)), st.dictionaries(st.sampled_from(FIELDS), JSON)), max_size=8))
@settings(max_examples=400)
def test_no_record_harms_what_the_root_knows(rows: list[tuple[str, dict[str, Any]]]) -> None:
    seen = Sight()
    seen.take(chunk(0, "good", drift()))
    for n, (type_, data) in enumerate(rows, 1):
        try:
            text = orjson.dumps(line(type_, data))
        except TypeError:
            continue
        seen.take(chunk(n, "bad", text))
        seen.take(chunk(n, "bad", b'{"type":7}', b"[]", b"{}", orjson.dumps(drift(resource="\x00<b>"))))
    assert list(seen.nodes["good"].changes) == ["c1"] and seen.nodes["good"].state == "drifted"
    for node in seen.nodes.values():
        orjson.dumps(details(node))
    orjson.dumps([list(r) for r in seen.newest])


@pytest.mark.invariant("V6")
def test_what_the_root_knows_of_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "MEMBERS_MAX", 400)
    monkeypatch.setattr(sight, "CHANGES_MAX", 70)
    monkeypatch.setattr(sight, "NODES_MAX", 9)
    seen, at = Sight(), 0
    for n in range(12):
        for i in range(300):
            seen.take(chunk(at, f"n{n}", drift(f"file:/{i}", f"c{i % 40}")))
            at += 1
    assert len(seen.nodes) == 9
    kept = sum(len(c.members) for node in seen.nodes.values() for c in node.changes.values())
    assert kept <= 400 and sum(len(node.changes) for node in seen.nodes.values()) <= 70
    assert any(c.more for node in seen.nodes.values() for c in node.changes.values()), "the rest is counted"
    assert seen.left_out
    for n in range(12):
        for i in range(40):
            seen.take(chunk(at, f"n{n}", line("rolled_back", {"change": f"c{i}"})))
            at += 1
    assert (seen._members, seen._changes) == (0, 0) and len(seen.newest) == sight.NEWEST_MAX
    seen.take(chunk(at, "_root", line("node_forgotten", {"nodes": ["n1", "n2", 7]})))
    assert "n1" not in seen.nodes and len(seen.nodes) == 7


@pytest.mark.invariant("V6")
def test_a_change_that_many_jobs_hold_is_held_until_the_last_has_ended() -> None:
    seen, jobs = Sight(), 512
    seen.take(chunk(0, "n1", drift()))
    owner = {"user": "ann", "key": "login:1"}
    for n in range(jobs):
        data = {"hold": f"h{n}", "change": "c1", "owner": owner, "reason": f"job {n}", "ends": "2027"}
        seen.take(chunk(n + 1, "n1", line("hold_placed", data)))
    for n in range(jobs):
        assert seen.nodes["n1"].changes["c1"].state == "held", n
        seen.take(chunk(jobs + n + 1, "n1", line("hold_released", {"hold": f"h{n}"})))
    assert seen.nodes["n1"].changes["c1"].state == "open" and not seen.left_out and not seen._holds


@pytest.mark.invariant("V6")
def test_holds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "HOLDS_MAX", 30)
    monkeypatch.setattr(sight, "HOLDS_EACH_MAX", 20)
    seen = Sight()
    for n in range(100):
        data = {"hold": f"h{n}", "owner": {"user": "ann", "key": "login:1"}, "reason": "r", "ends": "2027"}
        seen.take(chunk(2 * n, "n1", line("hold_placed", data)))
        seen.take(chunk(2 * n + 1, "n2", line("hold_placed", {**data, "hold": f"h{n % 25}"})))
    assert sorted(len(node.holds) for node in seen.nodes.values()) == [15, 15] and seen.left_out == 200 - 30 - 45
    seen.take(chunk(200, "_root", line("node_forgotten", {"nodes": ["n1", "n2"]})))
    assert not seen._holds


@pytest.mark.invariant("S2")
def test_of_a_command_line_only_the_program_s_name_is_kept() -> None:
    seen = Sight()
    held = [
        {"resource": "file:/a", "pid": 12, "how": "fd", "user": "bob", "command": "/usr/bin/tail -f /root/password"}
    ]
    seen.take(chunk(0, "n1", drift(), line("rollback_blocked", {"change": "c1", "reason": "in use", "holders": held})))
    text = orjson.dumps(details(seen.nodes["n1"])).decode() + str(seen.newest)
    assert "tail (pid 12, bob)" in text and '"vi"' in text and "password" not in text and "secret" not in text
    seen.take(chunk(2, "n1", line("untracked_seen", {"resources": {"file:/etc/new.conf": {"type": "file", "by": 0}}})))
    assert seen.newest[-1].text == "1 thing" and "new.conf" not in str(seen.newest)
    assert holder({"command": "", "how": "mount", "pid": 0}) == "mount" and owner_of(None) == ("", "")


@pytest.mark.invariant("V6")
@pytest.mark.parametrize("part", [[1], [1, 2, 3], "1", "12", 1, {"1": 2}, [None, 1]])
def test_a_part_that_is_none_harms_nobody(part: Any) -> None:
    seen = Sight()
    results = {"file:/a": "restored"}
    seen.take(chunk(0, "sim", drift(), line("rolled_back", {"change": "c1", "results": results, "part": part})))
    seen.take(chunk(2, "sim", drift("file:/b", "c2")))
    assert seen.left_out == 1 and seen.gseq == 2 and "c2" in seen.nodes["sim"].changes
