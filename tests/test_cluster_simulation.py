"""Groups from seeds: messages lost, repeated, late; nodes and roots killed at any effect; links cut; two roots at once;
members whose disk is full, fails or tears, and members that take their time over a question, or hang.

Safety is checked all the way. Then the world is healed and liveness is demanded: every group ends, on every member, and
every node has what is declared.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import TypeVar

import pytest

from pact.core.root.log import FINISHED
from pact.core.root.term import Limits
from pact.core.tree import member
from pact.model import NS_PER_S, Declared, Holder
from pact.sim.cluster import Cluster, Net, Peer
from pact.sim.parts import person, with_settings
from pact.sim.seeds import blocks, each, seeds

RESOURCES = ["sysctl:a", "sysctl:b", "file:/c"]
STEPS = 60
ROOT = person("root", "admin", 0)
WEIGHTS = {
    "time": 35,
    "ask": 25,
    "write": 8,
    "use": 5,
    "free": 6,
    "kill": 5,
    "restart": 8,
    "cut": 4,
    "mend": 7,
    "elect": 2,
    "crash root": 2,
    "stubborn": 2,
    "emergency": 2,
    "hold": 2,
    "disk": 3,
    "save": 2,
    "hang": 2,
}
STEPS_OF = [what for what, weight in WEIGHTS.items() for _ in range(weight)]
#: Each is left out of a third of the lives: what it would clear up, or hide, is seen in those.
SOMETIMES = ["use", "kill", "cut", "elect", "crash root", "stubborn", "emergency", "hold", "disk", "save", "hang"]
OPS = [
    op
    for op, weight in {
        "apply": 8,
        "group_commit": 6,
        "group_rollback": 6,
        "group_extend": 2,
        "fleet_hold": 1,
        "fleet_release": 2,
    }.items()
    for _ in range(weight)
]
T = TypeVar("T")


def pick(rng: random.Random, among: Sequence[T]) -> T:
    """``rng.choice`` in a fifth of the time; as even as a float is."""
    return among[int(rng.random() * len(among))]


def build(rng: random.Random, seed: int) -> Cluster:
    declared = {r: Declared({"value": "0"}) for r in RESOURCES}
    net = Net(loss=rng.choice([0.0, 0.05, 0.3]), twice=rng.choice([0.0, 0.2]), delay_ms=rng.choice([5, 500]))
    limits = Limits(
        wave=rng.choice([1, 2, 100]),
        waves_at_once=rng.choice([1, 2]),
        answer_ns=rng.choice([2, 10]) * NS_PER_S,
        breaker_least=rng.choice([0, 1, 3]),
        breaker_share=0.2,
        on_busy_retry=rng.random() < 0.3,
    )
    settings = with_settings(base_ns=rng.choice([60, 300]) * NS_PER_S, floor_ns=5 * NS_PER_S, alone_ns=100 * NS_PER_S)
    made = Cluster(
        seed,
        rng.randrange(2, 7),
        declared,
        net=net,
        settings=settings,
        limits=limits,
        slow=rng.choice([0.0, 0.0, 0.1, 0.5]),
    )
    made.advance(4 * NS_PER_S)
    return made


def random_step(c: Cluster, rng: random.Random, what: str) -> None:
    name = pick(rng, list(c.peers))
    peer = c.peers[name]
    resource = pick(rng, RESOURCES)
    if what == "time":
        c.advance(pick(rng, [1, 100, 1000, 10_000, 60_000]) * NS_PER_S // 1000)
    elif what == "ask":
        request(c, rng)
    elif what == "write" and peer.world.running:
        value = {"value": str(rng.randrange(4))}
        peer.world.write(resource, value, pick(rng, [None, person("bob").owner]))
    elif what == "use":
        peer.world.holders[resource] = [Holder(resource, rng.randrange(1, 9), "fd")]
    elif what == "free":
        peer.world.holders.clear()
    elif what == "kill":
        peer.world.crash_after = rng.randrange(12)
    elif what == "restart":
        c.restart(name)
    elif what == "cut":
        c.cut(name)
    elif what == "mend":
        c.mend(name)
    elif what == "elect":
        c.elect()
    elif what == "crash root":
        c.crash_root()
    elif what == "stubborn":
        peer.world.stubborn ^= {resource}
    elif what == "disk":
        disk = peer.world.disk
        peer.world.disk_full, disk.tears, disk.unknown = rng.random() < 0.6, rng.random() < 0.4, rng.random() < 0.1
        disk.unreadable = peer.world.disk_full and rng.random() < 0.3
    elif what == "save":
        peer.world.save()
    elif what == "hang":
        peer.world.unhang() if rng.random() < 0.5 else setattr(peer.world, "slow", 0.7)
    elif what in ("emergency", "hold") and peer.world.running:
        stop(peer, what)


def stop(peer: Peer, what: str) -> None:
    """Somebody on the node suspends its rollbacks, or allows them again."""
    world, state = peer.world, peer.world.node.state
    if what == "hold":
        mine = [h for h in state.holds if h.startswith("h")]
        if mine:
            world.ask("hold_release", ROOT, name=mine[0])
        else:
            world.ask("hold_place", ROOT, reason="r", for_ns=150 * NS_PER_S, change=None)
    elif state.emergency is None:
        world.ask("emergency_start", ROOT, reason="r", for_ns=100 * NS_PER_S)
    else:
        world.ask("emergency_end", ROOT, how="rollback", force=True)


def request(c: Cluster, rng: random.Random) -> None:
    names = rng.sample(list(c.peers), rng.randrange(1, len(c.peers) + 1))
    known = list(c.root.state.groups) if c.root is not None else []
    gid = rng.choice([*known[-3:], "g1"])
    values = {
        r: Declared({"value": str(rng.randrange(4))}).to_json() for r in rng.sample(RESOURCES, rng.choice([1, 2]))
    }
    missing = rng.choice([None, None, 1, 99])
    op = pick(rng, OPS)
    args: dict[str, object] = {
        "apply": {"resources": values, "allow_missing": missing, "require_all": rng.random() < 0.2},
        "group_commit": {"group": gid, "message": "m", "allow_missing": missing},
        "group_rollback": {"group": gid, "force": rng.random() < 0.2},
        "group_extend": {"group": gid, "by_ns": 30 * NS_PER_S},
        "fleet_hold": {"reason": "r", "for_ns": 200 * NS_PER_S},
        "fleet_release": {},
    }[op]  # type: ignore[assignment]
    c.request(op, args, ",".join(names) if op == "apply" else None)


def heal(c: Cluster) -> None:
    c.net = Net()
    for name, peer in c.peers.items():
        world = peer.world
        world.crash_after = None
        world.disk_full = world.disk.unreadable = world.disk.tears = world.disk.unknown = False
        world.holders.clear()
        world.stubborn.clear()
        world.unhang()
        c.restart(name)
        c.mend(name)
        if peer.world.node.state.emergency is not None:  # one does not end by itself
            stop(peer, "emergency")
    c.deposed.clear()
    if c.root is None:
        c.elect()
    c.advance(600 * NS_PER_S)


def live(seed: int) -> list[str]:
    """One life; the hashes with which the nodes' journals end."""
    rng = random.Random(seed)
    c = build(rng, seed)
    without = {what for what in SOMETIMES if rng.random() < 1 / 3}
    steps = [what for what in STEPS_OF if what not in without]
    for _ in range(STEPS):
        random_step(c, rng, pick(rng, steps))
    c.check()
    heal(c)
    for _ in range(3):
        assert c.root is not None
        left = [g.id for g in c.root.state.groups.values() if g.state != FINISHED]
        for gid in left:
            decided = c.root.state.groups[gid].decision
            op = "group_commit" if decided == "commit" else "group_rollback"
            c.request(op, {"group": gid, "force": True, "message": "m"})
            c.advance(20 * NS_PER_S)
        c.advance(600 * NS_PER_S)
    c.check()
    assert c.root is not None
    state = c.root.state
    assert all(g.state == FINISHED for g in state.groups.values()), (
        seed,
        {g.id: (g.state, g.decision, c.root.groups.runs.get(g.id)) for g in state.groups.values()},
    )
    for name, peer in c.peers.items():
        node = peer.world.node.state
        assert not node.groups, (seed, name, node.groups)
        assert state.cursors[name].seq == peer.world.journal[-1].seq, (seed, name)
        ended = {gid: outcome for gid, outcome in node.groups_done.items() if not outcome.startswith("left")}
        for gid, outcome in ended.items():
            assert outcome == state.groups[gid].outcome.partition(", except on ")[0], (seed, name, gid)
    for outcome_name in ("committed", "rolled back"):
        of_both = {n for n, p in c.peers.items() for o in p.world.node.state.groups_done.values() if o == outcome_name}
        assert of_both <= set(c.peers)
    return [peer.world.journal[-1].hash for peer in c.peers.values()]


KNOWN = [5673, 7215, 8954, 9689, 2_004_555, 2_078_700_011]  # each found something once: a late vote, a hung apply


@pytest.mark.parametrize("some", [KNOWN, *blocks(seeds(120), 15)], ids=str)
@pytest.mark.invariant("G1", "G3", "G4", "G5", "G7", "G8", "K1", "K3", "E1", "H1", "J9")
def test_groups_survive_everything_and_end_everywhere(some: Sequence[int]) -> None:
    each(live, some)


def ask_once(seed: int) -> None:
    """Holds, which are placed once for each call, on a bad network, of nodes that die and start again."""
    rng = random.Random(seed)
    c = build(rng, seed)
    c.net = Net(loss=0.2, twice=0.5, delay_ms=rng.choice([5, 2000]))
    for _ in range(20):
        c.request("hold_place", {"reason": "r", "for_ns": 900 * NS_PER_S}, ",".join(c.peers))
        random_step(c, rng, pick(rng, ["kill", "restart", "restart", "hang", "save"]))
        c.advance(pick(rng, [1, 1000, 10_000]) * NS_PER_S // 1000)
        c.check()


@pytest.mark.parametrize("some", blocks(seeds(20), 10), ids=str)
@pytest.mark.invariant("T12")
def test_a_call_is_carried_out_once_however_often_it_comes(some: Sequence[int]) -> None:
    each(ask_once, some)


def forgets_all(self: member.Calls, key: member.Key, op: str) -> member.Fate:
    return member.Fate.BEGINS


def forgets_at_a_start(self: member.Calls, begun: object = ()) -> None:
    CALLS(self)


CALLS = member.Calls.__init__


@pytest.mark.invariant("T12")
@pytest.mark.parametrize(("name", "fault"), [("take", forgets_all), ("__init__", forgets_at_a_start)])
def test_nodes_that_forget_what_they_have_done_are_noticed(
    name: str, fault: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member.Calls, name, fault)
    with pytest.raises(AssertionError, match="carried out twice"):
        for seed in itertools.count():
            ask_once(seed)
