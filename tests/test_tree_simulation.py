"""The pure parts of the tree on a network that loses, repeats, reorders and cuts, from one seed.

Nodes are real members, aggregators have a real relay and uplink, and every message is really encoded. When the network
heals, everything that was recorded is at the root exactly once, and calls are answered, each carried out once.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from pact.core.tree import member, wire
from pact.core.tree.directory import Peer
from pact.core.tree.nodeseals import NodeSeals
from pact.core.tree.outbox import LATER_NS, Outbox, Read, Up, with_answer
from pact.core.tree.parents import Parent
from pact.core.tree.relay import Ended, Relay, ToChildren, ToEach
from pact.core.tree.seals import Keys, RootSeals
from pact.core.tree.uplink import Connect, Deliver, Disconnect, Lost, Note, Send, Uplink
from pact.core.tree.wire import Message, message
from pact.model import NS_PER_S
from pact.sim.seeds import seeds

MS = NS_PER_S // 1000
ROOTS_CLOCK_NS = 40 * 86_400 * NS_PER_S  # nobody compares it with a node's


class Ring(Keys):
    """A key of each node, shared with the root."""

    def __init__(self, rng: random.Random, names: list[str]) -> None:
        self._keys = {n: rng.randbytes(32) for n in names}

    def of(self, name: str) -> list[str]:
        return [name]

    def shared(self, public: str) -> bytes:
        return self._keys.get(public.removeprefix("key-"), b"")


class Net:
    def __init__(self, seed: int, loss: float, twice: float, delay_ms: int) -> None:
        self.rng = random.Random(seed)
        self.loss, self.twice, self.delay_ms = loss, twice, delay_ms
        self.t_ns = 10 * NS_PER_S
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.n = 0
        self.conns = 0
        self.cut: set[frozenset[str]] = set()

    def later(self, ns: int, what: Callable[[], None]) -> None:
        self.n += 1
        heapq.heappush(self.queue, (self.t_ns + ns, self.n, what))

    def send(self, a: str, b: str, what: Callable[[], None]) -> None:
        if frozenset((a, b)) in self.cut:
            return
        for _ in range(1 + (self.rng.random() < self.twice)):
            if self.rng.random() >= self.loss:
                self.later(self.rng.randrange(1, self.delay_ms + 1) * MS, what)


class Root:
    """Keeps every record once, in order; loses nothing that it acknowledged."""

    def __init__(self, seals: RootSeals | None = None) -> None:
        self.seals = seals
        self.records: dict[str, list[bytes]] = {}
        self.below: set[str] = set()
        self.answers: dict[str, dict[str, bytes]] = {}
        self.lost: dict[str, set[str]] = {}
        self.final: set[str] = set()

    def received(self, m: Message) -> list[Message]:
        head = m.head
        if m.kind == "below":
            self.below |= set(head["add"])
            self.below -= set(head["gone"])
        elif m.kind == "answer":
            said = wire.beside(head["seals"], head["parts"])
            for ((names, _), body), seal in zip(wire.sections(m, "parts"), said, strict=True):
                if self.seals is not None and not self.seals.answers(names, head["call"], body, seal):
                    assert not seal, "a seal that does not fit"
                    continue  # it was joined with others', of which some had come before: a root asks again, each alone
                for name in names:
                    assert name not in self.answers.setdefault(head["call"], {}), "answered twice"
                    self.answers[head["call"]][name] = body
            self.lost.setdefault(head["call"], set()).update(head["lost"])
            if head["final"]:
                self.final.add(head["call"])
        elif m.kind == "events":
            cursors = []
            said = wire.beside(head["seals"], head["batches"])
            for (row, data), seal in zip(wire.sections(m, "batches"), said, strict=True):
                assert self.seals is None or self.seals.events(row, data, seal), "a seal that does not fit"
                node, inc, first, count, _ = row
                have = self.records.setdefault(node, [])
                lines = data.split(b"\n")[:-1]
                assert len(lines) == count
                if first > len(have):
                    cursors.append([node, inc, len(have) - 1, True])
                    continue
                have += lines[len(have) - first :]
                cursors.append([node, inc, len(have) - 1, False])
            if self.seals is None:
                return [message("ack", {"cursors": cursors})]
            return [message("ack", {"cursors": cursors, "seals": self.seals.acks(cursors), "fence": 1, "term": "t"})]
        return []


class Member:
    """A node or an aggregator: ``up``/``down`` in ``World`` by name."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.up = True
        self.conns: dict[str, bytes] = {}
        self.epoch = 0


class World:
    def __init__(
        self,
        seed: int,
        *,
        leaves: int = 3,
        nodes: int = 8,
        loss: float = 0.05,
        twice: float = 0.05,
        delay_ms: int = 40,
        mid: bool = True,
        sealed: bool = False,
    ) -> None:
        self.net = Net(seed, loss, twice, delay_ms)
        self.ring = Ring(random.Random(seed), [f"n{i}" for i in range(nodes)])
        self.root = Root(RootSeals("root's", self.ring, required=True) if sealed else None)
        if self.root.seals is not None:
            self.root.seals.begin("t", 1)
        self.relays: dict[str, Relay] = {}
        self.uplinks: dict[str, Uplink] = {}
        self.nodes: dict[str, member.Member] = {}
        self.journal: dict[str, list[bytes]] = {}
        self.members: dict[str, Member] = {}
        self.rids: dict[bytes, tuple[str, str]] = {}  # rid -> child, relay
        self.executed: dict[tuple[str, str], int] = {}
        self.notes: list[str] = []
        self.lost = 0
        self.along = 0  # events that shared the frame of an answer
        self.parents: dict[str, list[str]] = {"root1": []}
        mids = ["mid0", "mid1"] if mid else []
        for m in mids:
            self.parents[m] = ["root1"]
        for i in range(leaves):
            self.parents[f"agg{i}"] = mids or ["root1"]
        for i in range(nodes):
            self.parents[f"n{i}"] = [f"agg{j}" for j in range(leaves)]
        for name in self.parents:
            self.members[name] = Member(self, name)
            if name.startswith("n"):
                self.journal[name] = []
            self.boot(name)

    def is_node(self, name: str) -> bool:
        return name in self.journal

    def boot(self, name: str) -> None:
        self.members[name].up = True
        self.members[name].epoch += 1
        rng, parents = self.net.rng, [Parent(p, "k") for p in self.parents[name]]
        if self.is_node(name):
            session = rng.getrandbits(64)
            key = {self.root.seals.id: self.ring.shared(name)} if self.root.seals is not None else None
            begun = [call for line in self.journal[name] if (call := orjson.loads(line).get("call"))]
            self.nodes[name] = member.Member(
                Outbox(name, "inc", newest=len(self.journal[name]) - 1),
                parents,
                rng,
                session=session,
                version="",
                rack="",
                wall_ns=lambda: self.net.t_ns,
                unfinished=tuple,
                calls=member.Calls(begun),
                seals=NodeSeals(key, session, required=True) if key is not None else None,
            )
            self.uplinks[name] = self.nodes[name].uplink
            return
        relay = self.relays[name] = Relay(name, rack="r")
        if parents:
            session = rng.getrandbits(64)
            self.uplinks[name] = Uplink(
                name, "aggregator", parents, rng, session=session, more=relay.claims, beat=relay.beat
            )
            return
        relay.tree.gate = self.root.seals
        welcome = message("welcome", {"v": 1, "name": name, "path": [name], "fence": 1, "credit": 1 << 20})
        self.from_parent(name, welcome)

    def crash(self, name: str) -> None:
        self.members[name].up = False
        self.members[name].epoch += 1
        for rid, (child, relay) in list(self.rids.items()):
            if name in (child, relay):
                del self.rids[rid]
        for one in self.members.values():
            one.conns.pop(name, None) if one.name != name else one.conns.clear()

    # -- effects ------------------------------------------------------------------------------------------------

    def uplink_effects(self, name: str, effects: list[Any]) -> None:
        conns, net = self.members[name].conns, self.net
        for e in effects:
            if isinstance(e, Connect):
                net.conns += 1
                rid = b"%d" % net.conns
                conns[e.parent.url] = rid
                self.rids[rid] = (name, e.parent.url)
            elif isinstance(e, Disconnect):
                rid = conns.pop(e.parent, b"")
                net.later(300 * MS, lambda rid=rid: self.rids.pop(rid, None))
            elif isinstance(e, Send):
                rid = conns.get(e.parent, b"")
                if not rid:  # the parent was restarted: the library connects again
                    net.conns += 1
                    rid = conns[e.parent] = b"%d" % net.conns
                    self.rids[rid] = (name, e.parent)
                net.send(name, e.parent, lambda rid=rid, e=e: self.at_relay(rid, e.parent, e.frame))
            elif isinstance(e, Deliver):
                self.from_parent(name, e.message)
            elif isinstance(e, Lost):
                self.lost += 1
                if not self.is_node(name):
                    self.relay_effects(name, self.relays[name].parent_lost(net.t_ns))
            elif isinstance(e, Note):
                self.notes.append(f"{name}: {e.text}")
            elif isinstance(e, Read):
                self.pump(name, [e])
            elif isinstance(e, member.Called):
                self.uplink_effects(name, self.nodes[name].call(e.message, net.t_ns))
            elif isinstance(e, member.CarryOut):
                self.carry_out(name, e.key)
            elif isinstance(e, member.Answered):
                self.answer(name, e.key, e.body)
            else:
                assert isinstance(e, member.Welcomed | member.Contact | member.FleetSaid)

    def carry_out(self, name: str, key: member.Key) -> None:
        self.executed[name, key[1]] = self.executed.get((name, key[1]), 0) + 1
        self.journal[name].append(orjson.dumps({"n": name, "call": member.name_of(key)}))
        self.answer(name, key, self.nodes[name].calls.done(key, b"yes" if int(name[1:]) % 2 else b"no"))

    def answer(self, name: str, key: member.Key, body: bytes) -> None:
        node = self.nodes[name]
        ups = self.read(name, node.outbox.recorded(len(self.journal[name]) - 1, self.net.t_ns))
        along = ups.pop(0) if ups and node.uplink.with_answers and with_answer(ups[0]) else None
        self.along += along is not None
        self.uplink_effects(name, node.answer(key, body, along))
        self.send(name, ups)

    def at_relay(self, rid: bytes, relay: str, frame: bytes) -> None:
        if not self.members[relay].up or rid not in self.rids:
            return
        child = self.rids[rid][0]
        peer = Peer(child, "node" if self.is_node(child) else "aggregator", f"key-{child}")
        effects = self.relays[relay].received(rid, peer, wire.decode(frame), self.net.t_ns)
        self.relay_effects(relay, effects)
        self.flush(relay)

    def flush(self, relay: str) -> None:
        self.relay_effects(relay, list(self.relays[relay].flush(self.net.t_ns)))

    def relay_effects(self, relay: str, effects: list[Any]) -> None:
        for e in effects:
            if isinstance(e, ToChildren | ToEach):
                frames = e.frames if isinstance(e, ToEach) else [e.frame] * len(e.rids)
                for rid, frame in zip(e.rids, frames, strict=True):
                    child = self.rids.get(rid, ("", ""))[0]
                    if not child:
                        self.relay_effects(relay, self.relays[relay].gone(rid, self.net.t_ns))
                        continue
                    self.net.send(relay, child, lambda r=rid, c=child, f=frame: self.at_child(r, c, relay, f))
            elif isinstance(e, Up):
                if self.parents[relay]:
                    self.uplink_effects(relay, self.uplinks[relay].send(e.kind, e.head, e.body))
                else:
                    for m in self.root.received(message(e.kind, e.head, e.body)):
                        self.from_parent(relay, m)
            elif isinstance(e, Note):
                self.notes.append(f"{relay}: {e.text}")
            else:
                assert isinstance(e, Ended)

    def at_child(self, rid: bytes, child: str, relay: str, frame: bytes) -> None:
        if self.members[child].up and self.members[child].conns.get(relay) == rid:
            m = wire.decode(frame)
            if m.kind == "welcome" and relay == "agg0":  # an older one, which knows nothing of events with answers
                m.head["with_answers"] = False
            of = self.nodes.get(child) or self.uplinks[child]
            self.uplink_effects(child, of.received(relay, m, self.net.t_ns))

    def from_parent(self, name: str, m: Message) -> None:
        """What an aggregator hears."""
        self.relay_effects(name, self.relays[name].from_parent(m, self.net.t_ns))
        self.flush(name)

    def read(self, name: str, work: list[Any]) -> list[Up]:
        out, work = [], list(work)
        while work:
            e = work.pop(0)
            if isinstance(e, Read):
                rows = [line + b"\n" for line in self.journal[name][e.first : e.first + e.limit]]
                work = self.nodes[name].outbox.rows(e.first, rows, self.net.t_ns) + work
            else:
                out.append(e)
        return out

    def pump(self, name: str, work: list[Any]) -> None:
        self.send(name, self.read(name, work))

    def send(self, name: str, ups: list[Up]) -> None:
        for up in ups:
            self.uplink_effects(name, self.nodes[name].send(up))

    # -- time ---------------------------------------------------------------------------------------------------

    def record(self, name: str) -> None:
        n = len(self.journal[name])
        self.journal[name].append(orjson.dumps({"n": name, "seq": n}))
        if self.members[name].up:
            waits = self.net.rng.random() < 0.3
            self.pump(name, self.nodes[name].outbox.recorded(n, self.net.t_ns, wait_ns=LATER_NS * waits))

    def call(self, call: str, nodes: list[str] | None) -> None:
        head = {
            "call": call,
            "op": "extend",  # to be done once
            "nodes": nodes,
            "caller": {"user": "u", "role": "ops", "via": "cluster"},
            "fence": 1,
            "timeout_ms": 5000,
        }
        if self.root.seals is not None:
            names = sorted(self.root.below) if nodes is None else nodes
            head.update(nodes=names, term="t")
            head["seals"] = self.root.seals.calls(head, b"", names)
        self.from_parent("root1", message("call", head))

    def run(self, seconds: float) -> None:
        end = self.net.t_ns + int(seconds * NS_PER_S)
        net = self.net
        while net.t_ns < end:
            due = [net.queue[0][0]] if net.queue else []
            for name, one in self.members.items():
                if not one.up:
                    continue
                for part in (self.nodes.get(name) or self.uplinks.get(name), self.relays.get(name)):
                    wake = part.next_wake_ns() if part is not None else None
                    if wake is not None:
                        due.append(wake)
            net.t_ns = min(end, max(net.t_ns + MS, min(due)))
            if self.root.seals is not None:
                self.root.seals.t_ns = net.t_ns + ROOTS_CLOCK_NS
            while net.queue and net.queue[0][0] <= net.t_ns:
                heapq.heappop(net.queue)[2]()
            for name, one in self.members.items():
                if not one.up:
                    continue
                part = self.nodes.get(name) or self.uplinks.get(name)
                if part is not None:
                    self.uplink_effects(name, part.tick(net.t_ns))
                if name in self.relays:
                    self.relay_effects(name, self.relays[name].tick(net.t_ns))
                    self.flush(name)

    def heal(self) -> None:
        self.net.loss = self.net.twice = 0.0
        self.net.delay_ms = 2
        self.net.cut.clear()
        for name, one in self.members.items():
            if not one.up:
                self.boot(name)

    def check_complete(self) -> None:
        for name, lines in self.journal.items():
            assert self.root.records.get(name, []) == lines, f"{name} at the root"
            assert self.nodes[name].outbox.waiting == 0
        assert self.root.below == set(self.journal)
        assert all(n == 1 for n in self.executed.values())
        assert not [n for n in self.notes if "an acknowledgement" in n], "each has a seal that fits"


@pytest.mark.invariant("T5", "T7", "T8")
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("seed", [1235, *seeds(12)])  # the first: a rewind that came late stopped the sending
def test_nothing_is_lost_or_doubled_whatever_the_network_does(seed: int, sealed: bool) -> None:
    world = World(seed, sealed=sealed)
    rng = world.net.rng
    names = [n for n in world.members if n != "root1"]
    down: list[str] = []
    world.run(5)
    for step in range(40):
        for name in world.journal:
            for _ in range(rng.randrange(4)):
                world.record(name)
        roll = rng.random()
        if roll < 0.15 and len(down) < 3:
            victim = rng.choice([n for n in names if n not in down])
            world.crash(victim)
            down.append(victim)
        elif roll < 0.3 and down:
            world.boot(down.pop())
        elif roll < 0.4:
            world.net.cut.add(frozenset(rng.sample([n for n in names if not world.is_node(n)] + ["root1"], 2)))
        elif roll < 0.5:
            world.net.cut.clear()
        elif roll < 0.6:
            world.call(f"1.{step}", rng.sample(list(world.journal), 3))
        world.run(rng.uniform(0.1, 3))
    world.heal()
    world.run(150)
    executed = dict(world.executed)
    world.check_complete()
    world.call("2.1", list(world.journal))
    world.call("2.2", None)
    world.run(3)
    for call in ("2.1", "2.2"):
        assert set(world.root.answers[call]) == set(world.journal) and call in world.root.final
        assert not world.root.lost[call]
    assert executed.items() <= world.executed.items()
    assert not [n for n in world.notes if "cannot be a parent" in n]
    refused = [n for n in world.notes if "many messages" in n]
    assert not refused
    assert world.along
    world.check_complete()


@pytest.mark.invariant("T6", "T12")
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("seed", seeds(6))
def test_a_call_that_is_asked_again_is_done_once_and_answered_alike(seed: int, sealed: bool) -> None:
    """By a root that does not know what its nodes have done; some of them have started again meanwhile."""
    world = World(seed, leaves=2, nodes=6, twice=0.3, sealed=sealed)
    rng = world.net.rng
    world.run(5)
    began: dict[tuple[str, str], int] = {}
    for n in range(6):
        world.call(f"1.{n}", rng.sample(list(world.journal), 3))
        world.run(rng.uniform(0.1, 3))
        began |= {done: world.members[done[0]].epoch for done in world.executed if done not in began}
        if rng.random() < 0.5:
            name = rng.choice(list(world.journal))
            world.crash(name)
            world.boot(name)
    world.heal()
    world.run(60)
    assert began
    first, world.root.answers = world.root.answers, {}
    for call in first:
        world.call(call, list(world.journal))
        world.run(3)
        for name, body in world.root.answers[call].items():
            before = first[call].get(name, body)
            lost = world.members[name].epoch != began.get((name, call))
            assert body == before or (lost and b"not done twice" in body), (seed, name, call, body)
    world.run(60)
    assert set(first) <= world.root.final
    world.check_complete()


@pytest.mark.invariant("T3", "F41")
@pytest.mark.parametrize("seed", range(6))
def test_children_of_a_dead_aggregator_work_under_another_within_ten_seconds(seed: int) -> None:
    world = World(seed, leaves=3, nodes=20, loss=0, twice=0, delay_ms=3, mid=False)
    world.run(5)
    victim = "agg1"
    moved = [n for n in world.journal if world.uplinks[n].parent == victim]
    assert moved
    world.crash(victim)
    for name in moved:
        world.record(name)
    world.run(10)
    for name in moved:
        assert world.uplinks[name].parent not in ("", victim)
        assert len(world.root.records[name]) == 1
    world.boot(victim)
    before = world.lost
    world.run(150)
    assert all(u.parent == u.order[0].url for u in world.uplinks.values())  # everybody is back where it belongs
    assert world.lost == before  # nobody was without a parent on the way back
    world.check_complete()
