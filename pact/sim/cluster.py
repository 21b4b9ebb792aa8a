"""A root and many nodes on a network that loses, repeats, delays and cuts; everything from one seed.

The cores are the real ones: ``Node`` in a ``World`` each, ``Root`` on a log that is a list. The network between them is
harsher than a tree: any message may be lost, or come twice or late, and any process may die between two effects. A
replaced root goes on for a while and does not know it. The code that handles repeated calls on nodes is real, too
(``core/tree/member.py``).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from pact.core.node import bonds
from pact.core.node.events import Asked, Caller, ContactChanged, FleetTold, Reply
from pact.core.ops import made
from pact.core.phases import OPEN
from pact.core.root import chunks, log
from pact.core.root.chunks import INCARNATION_CHARS
from pact.core.root.root import Root
from pact.core.root.term import Commit, Down, Effect, Limits
from pact.core.settings import Settings
from pact.core.tree.member import Calls, Fate, Key, caller_of
from pact.core.tree.wire import Message
from pact.errors import UsageError
from pact.model import NS_PER_S, Declared
from pact.sim.parts import Bell, with_settings
from pact.sim.shell import ShellWorld
from pact.sim.world import EPOCH_NS

MS: Final = NS_PER_S // 1000
WAKE_NS: Final = 20 * MS  # a node may wake early, but not all the time
GONE_NS: Final = 6 * NS_PER_S
ASK_NS: Final = 30 * NS_PER_S
BATCH_MAX: Final = 20
FAR_NS: Final = 1 << 62


class CommaSets:
    """Node sets without folding."""

    def expand(self, text: str, most: int = 0) -> list[str]:
        if not all(text.split(",")):
            raise UsageError(f"{text!r} is no node set")
        return text.split(",")

    def fold(self, names: Iterable[str]) -> str:
        return ",".join(sorted(names))


@dataclass(slots=True)
class Net:
    """How bad the network is: shares of messages lost and repeated, and the longest delay."""

    loss: float = 0.0
    twice: float = 0.0
    delay_ms: int = 5


@dataclass(slots=True)
class Peer:
    """A node in the harness."""

    world: ShellWorld
    cut: bool = False
    linked: bool = False
    acked: int = -1
    sent: int = -1
    calls: Calls = field(default_factory=Calls)
    waiting: dict[Key, tuple[int, Root]] = field(default_factory=dict)  # calls whose answers take time
    session: int = 0
    epoch: int = 0
    asks: bool = False  # it asks from time to time how its groups end
    not_before_ns: int = 0  # it is not woken before this time


def answered(reply: Reply) -> bytes:
    return orjson.dumps(
        {
            "ok": reply.exit_code == 0,
            "exit": reply.exit_code,
            "message": reply.message,
            "hint": reply.hint,
            "result": dict(reply.result),
        }
    )


class Cluster:
    """See the module. ``t_ns`` is the common clock."""

    def __init__(
        self,
        seed: int,
        nodes: int,
        declared: Mapping[str, Declared],
        *,
        net: Net | None = None,
        settings: Settings | None = None,
        limits: Limits | None = None,
        slow: float = 0.0,
    ) -> None:
        """``slow``: the share of the nodes' jobs that take long, or hang."""
        self.rng = random.Random(seed)
        self.net = net or Net()
        self.limits = limits or Limits()
        self.t_ns = NS_PER_S
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.n = 0
        self.log: list[bytes] = []
        self._folded = log.RootState()  # the log, folded from its beginning as far as it was checked
        self._batches: list[Sequence[chunks.Batch]] = []  # of that part of it
        self.fence = 0
        self.root: Root | None = None
        self.deposed: list[Root] = []
        self.progress: dict[int, list[tuple[int, int]]] = {}
        self.results: dict[int, tuple[Mapping[str, Any], Any]] = {}
        self.requests = 0
        self.peers: dict[str, Peer] = {}
        self.bell = Bell()  # rung when something changed that affects wake times of nodes or messages to send
        self._wakes: dict[int, int | None] = {}  # wake times of roots, until they are stepped
        for i in range(nodes):
            world = ShellWorld(
                settings=settings or with_settings(),
                t_ns=self.t_ns,
                name=f"n{i}",
                clustered=True,
                rng=self.rng,
                slow=slow,
            )
            for resource, value in declared.items():
                world.machine[resource] = world.boot_values[resource] = value.attrs
            self.peers[f"n{i}"] = Peer(world)
            world.bell = self.bell
            world.start(dict(declared))
        self.elect()
        for name in self.peers:
            self.link(name)

    # -- time and messages --------------------------------------------------------------------------------------

    def later(self, delay_ns: int, what: Callable[[], None]) -> None:
        self.n += 1
        heapq.heappush(self.queue, (self.t_ns + delay_ns, self.n, what))

    def send(self, what: Callable[[], None]) -> None:
        """Deliver a message, perhaps never, perhaps twice, after a random delay."""
        for _ in range(1 + (self.rng.random() < self.net.twice)):
            if self.rng.random() >= self.net.loss:
                self.later(self.rng.randrange(1, self.net.delay_ms + 1) * MS, what)

    def advance(self, ns: int) -> None:
        """Let time pass; due events happen in order. A node or root is woken at the time that it asked for, not before:
        its behaviour at any moment is the same."""
        end, queue = self.t_ns + ns, self.queue
        self._wakes.clear()
        self.bell.rung = True  # a test may have changed the nodes meanwhile
        nodes_ns = 0
        while True:
            if self.bell.rung:
                nodes_ns = self._nodes_wake_ns()
            at = min(nodes_ns, queue[0][0]) if queue else nodes_ns
            for root in self._roots():
                wake = self._root_wake_ns(root)
                if wake is not None and wake < at:
                    at = max(wake, self.t_ns + MS)
            if at > end:
                break
            self._to(at)
            if nodes_ns <= self.t_ns:
                self._tick_due()
            while queue and queue[0][0] <= self.t_ns:
                heapq.heappop(queue)[2]()
            for root in self._roots():
                wake = self._root_wake_ns(root)
                if wake is not None and wake <= self.t_ns:
                    self._perform(root, root.tick(self.t_ns, self.wall_ns))
            if self.bell.rung:
                self._replicate()
        self._to(end)
        self._replicate()

    def _nodes_wake_ns(self) -> int:
        """When the first of the nodes wants to be woken. Valid until the bell rings."""
        self.bell.rung = False
        first = FAR_NS
        for peer in self.peers.values():
            wake = peer.world.wake_ns() if peer.world.running else None
            if wake is not None and wake < first:
                first = min(first, max(wake, peer.not_before_ns))
        return first

    def _tick_due(self) -> None:
        self.bell.rung = True
        for peer in self.peers.values():
            wake = peer.world.wake_ns() if peer.world.running else None
            if wake is not None and wake <= self.t_ns and peer.not_before_ns <= self.t_ns:
                peer.world.tick()
                peer.not_before_ns = self.t_ns + WAKE_NS

    def _root_wake_ns(self, root: Root) -> int | None:
        if id(root) not in self._wakes:
            self._wakes[id(root)] = root.next_wake_ns()
        return self._wakes[id(root)]

    @property
    def wall_ns(self) -> int:
        return EPOCH_NS + self.t_ns

    def _roots(self) -> list[Root]:
        return [*([self.root] if self.root is not None else []), *self.deposed]

    def _to(self, t_ns: int) -> None:
        step = t_ns - self.t_ns
        if step <= 0:
            return
        self.t_ns = t_ns
        for peer in self.peers.values():
            peer.world.wall_ns += step
            peer.world.t_ns = t_ns

    # -- the root -----------------------------------------------------------------------------------------------

    def elect(self) -> None:
        """A new root leads; the old one, if any, does not know."""
        if self.root is not None:
            self.deposed.append(self.root)
        self.fence += 1
        state = log.load(None, self.log)
        self.root = root = Root(f"r{self.fence}", state, self.fence, CommaSets(), self.limits)
        self._perform(root, root.start(self.t_ns, self.wall_ns, "boot", 0))
        for name, peer in self.peers.items():
            if peer.linked:
                peer.linked = False
                self.later(self.rng.randrange(1, 2000) * MS, lambda n=name: self.link(n))  # type: ignore[misc]

    def crash_root(self) -> None:
        self.root = None
        self.deposed.clear()
        self.later(self.rng.randrange(1, 3000) * MS, self._elect_if_none)

    def _elect_if_none(self) -> None:
        if self.root is None:
            self.elect()

    def _perform(self, root: Root, effects: list[Effect]) -> None:
        self._wakes.pop(id(root), None)
        for effect in effects:
            if isinstance(effect, Commit):
                self._commit(root, effect)
            elif isinstance(effect, Down):
                self._down(root, effect)

    def _commit(self, root: Root, effect: Commit) -> None:
        if root.fence != self.fence:  # another root leads: the store refuses  # K3
            if root in self.deposed:
                self.deposed.remove(root)
            return

        def durable() -> None:
            if root.fence != self.fence:
                return
            self.log.append(effect.chunk)
            if root is self.root and self.rng.random() < 0.02 and self.net.loss:
                self.crash_root()  # right after it was written
                return
            if root in self._roots():
                self._perform(root, root.durable(effect.first, effect.count, self.t_ns, self.wall_ns))

        self.later(self.rng.randrange(1, 4) * MS, durable)

    def _down(self, root: Root, effect: Down) -> None:
        head = effect.head
        if effect.kind == "call":
            for name in head["nodes"] if head["nodes"] is not None else list(root.nodes):
                self.send(lambda n=name: self._call(root, n, head, effect.body))  # type: ignore[misc]
        elif effect.kind == "ack":
            for node, incarnation, seq, rewind in head["cursors"]:
                self.send(lambda n=node, i=incarnation, s=seq, r=rewind: self._ack(n, i, s, r))  # type: ignore[misc]
        elif effect.kind == "fleet":
            for name in list(root.nodes):
                self.send(lambda n=name: self._fleet(n, head))  # type: ignore[misc]
        elif effect.kind == "progress":
            self.progress.setdefault(head["id"], []).append((head["done"], head["total"]))
        elif effect.kind == "result":
            self.results[head["id"]] = (head, orjson.loads(effect.body))

    def up(self, root: Root | None, kind: str, head: Mapping[str, Any], body: bytes = b"") -> None:
        if root is not None and root in self._roots():
            self._perform(root, root.received(Message(kind, dict(head), body), self.t_ns, self.wall_ns))

    def request(
        self, op: str, args: Mapping[str, Any], nodes: str | None = None, user: str = "alice", role: str = "admin"
    ) -> int:
        """Ask the root; the answer is in ``results`` under the returned number."""
        self.requests += 1
        self.up(
            self.root,
            "request",
            {
                "id": self.requests,
                "op": op,
                "nodes": nodes,
                "timeout_ms": 0,
                "client": "c",
                "caller": {"user": user, "role": role, "via": "cluster"},
            },
            orjson.dumps(args),
        )
        return self.requests

    # -- the nodes ----------------------------------------------------------------------------------------------

    def link(self, name: str) -> None:
        """A node connects to the root: it gets the holds first, then reports its unfinished groups."""
        peer, root = self.peers[name], self.root
        if root is None or peer.cut or not peer.world.running or peer.linked:
            return
        peer.linked = True
        peer.session += 1
        self._fleet(name, root.fleet())
        world = peer.world
        if not world.running:
            return
        world.tell(ContactChanged(self.t_ns, self.wall_ns, True))
        self.up(root, "below", {"add": [name], "gone": [], "racks": {}, "sessions": {name: peer.session}})
        peer.sent = peer.acked
        self._ask(name, peer.session)

    def unlink(self, name: str) -> None:
        peer = self.peers[name]
        if not peer.linked:
            return
        peer.linked = False
        session = peer.session
        if peer.world.running:
            peer.world.tell(ContactChanged(self.t_ns, self.wall_ns, False))
        self.later(GONE_NS, lambda: self._gone(name, session))

    def _gone(self, name: str, session: int) -> None:
        if self.peers[name].session == session:
            self.up(self.root, "below", {"add": [], "gone": [name]})

    def cut(self, name: str) -> None:
        self.peers[name].cut = True
        self.unlink(name)

    def mend(self, name: str) -> None:
        self.peers[name].cut = False
        self.later(self.rng.randrange(1, 3000) * MS, lambda: self.link(name))

    def crash(self, name: str) -> None:
        peer = self.peers[name]
        peer.world.crash()
        self._ended(name)

    def _ended(self, name: str) -> None:
        peer = self.peers[name]
        if peer.linked:
            peer.linked = False
            session = peer.session
            self.later(GONE_NS, lambda: self._gone(name, session))
        peer.waiting.clear()

    def restart(self, name: str) -> None:
        peer = self.peers[name]
        if not peer.world.running:
            peer.world.start()
            peer.calls = Calls(str(r.data["call"]) for r in peer.world.journal if "call" in r.data)
            peer.epoch += 1
            self.later(self.rng.randrange(1, 3000) * MS, lambda: self.link(name))

    def _ask(self, name: str, session: int, before: list[list[Any]] | None = None) -> None:
        """Ask as an uplink does; nothing is scheduled for a node without groups."""
        peer = self.peers[name]
        if peer.session != session or not peer.linked or not peer.world.running:
            return
        peer.asks = bool(peer.world.node.state.groups)
        if not peer.asks:
            return
        now = bonds.unfinished(peer.world.node)
        mine = now if before is None else [g for g in now if g in before and g[1] != OPEN]
        if mine:
            self.send(lambda: self.up(self.root, "ask", {"node": name, "groups": mine}))
        self._ask_later(name, session, now)

    def _ask_later(self, name: str, session: int, before: list[list[Any]]) -> None:
        self.later(ASK_NS, lambda: self._ask(name, session, before))

    def _call(self, root: Root, name: str, head: Mapping[str, Any], body: bytes) -> None:
        peer = self.peers[name]
        if peer.cut or not peer.linked or not peer.world.running:
            return
        key = (head["fence"], head["call"])
        fate = peer.calls.take(key, head["op"])
        if isinstance(fate, bytes):
            self._answer(name, root, key, fate)
        elif fate is Fate.BEGINS:
            answer = self._carry_out(peer.world, head["op"], orjson.loads(body), head["caller"], key)
            if answer is not None:
                self._answer(name, root, key, peer.calls.done(key, answer))
            elif self.peers[name].world.running:
                peer.waiting[key] = peer.world.token, root
            else:
                self._ended(name)  # the node died during the call

    def _answer(self, name: str, root: Root, key: Key, answer: bytes) -> None:
        peer = self.peers[name]
        reply = {"call": key[1], "final": True, "parts": [[[name], len(answer)]], "lost": []}
        self.send(lambda: self.up(root, "answer", reply, answer) if not peer.cut else None)

    def _answer_late(self, name: str, peer: Peer) -> None:
        """Send answers of calls that took long."""
        for key, (token, root) in list(peer.waiting.items()):
            reply = peer.world.replies.pop(token, None)
            if reply is not None:
                del peer.waiting[key]
                self._answer(name, root, key, peer.calls.done(key, answered(reply)))

    def _carry_out(
        self, world: ShellWorld, op: str, args: Mapping[str, Any], said: Mapping[str, Any], key: Key
    ) -> bytes | None:
        who = Caller(*caller_of(said, key, None))
        world.token += 1
        token = world.token
        world.feed(lambda: Asked(self.t_ns, self.wall_ns, token, made(op, args), who))
        reply = world.replies.pop(token, None)
        return answered(reply) if reply is not None and world.running else None

    def _fleet(self, name: str, head: Mapping[str, Any]) -> None:
        world = self.peers[name].world
        if world.running and not self.peers[name].cut:
            world.tell(FleetTold(self.t_ns, self.wall_ns, head["fence"], head["seq"], head["holds"]))

    # -- events up ----------------------------------------------------------------------------------------------

    def _ack(self, name: str, incarnation: str, seq: int, rewind: bool) -> None:
        peer = self.peers[name]
        if peer.world.journal and peer.world.journal[0].hash[:INCARNATION_CHARS] == incarnation:
            peer.acked, self.bell.rung = max(peer.acked, seq), True
            if rewind:
                peer.acked = peer.sent = seq

    def _replicate(self) -> None:
        for name, peer in self.peers.items():
            journal = peer.world.journal
            if not peer.world.running:
                self._ended(name)  # then it has no link
            if peer.waiting:
                self._answer_late(name, peer)
            elif peer.linked and not peer.asks and peer.world.node.state.groups:
                peer.asks = True
                self._ask_later(name, peer.session, [])
            while peer.linked and not peer.cut and peer.sent + 1 < len(journal):
                self._send_events(name, peer)

    def _send_events(self, name: str, peer: Peer) -> None:
        journal = peer.world.journal
        rows = journal[peer.sent + 1 : peer.sent + 1 + BATCH_MAX]
        body = b"\n".join(orjson.dumps(r.to_json()) for r in rows)
        head = {"batches": [[name, journal[0].hash[:INCARNATION_CHARS], rows[0].seq, len(rows), len(body)]]}
        peer.sent = rows[-1].seq
        self.send(lambda: self.up(self.root, "events", head, body))
        self.later(5 * NS_PER_S, lambda: self._send_again(peer))

    def _send_again(self, peer: Peer) -> None:
        peer.sent, self.bell.rung = peer.acked, True

    # -- what must hold -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Safety: one decision for each group, no member against it, no stale fence obeyed, every event once, every
        call once."""
        state = self._folded
        for raw in self.log[len(self._batches) :]:
            self._batches.append(state.apply(raw).batches)
        if self.root is not None and self.root.state.gseq == state.gseq:
            assert self.root.state.to_bytes() == state.to_bytes(), "what the root holds is what its log says"
        seen: dict[str, set[int]] = {}
        for batches in self._batches:
            for batch in batches:
                known = seen.setdefault(batch.node, set())
                numbers = range(batch.first, batch.first + len(batch.lines))
                assert known.isdisjoint(numbers), (batch.node, batch.first)
                known.update(numbers)
        for name, numbers_ in seen.items():
            assert numbers_ == set(range(len(numbers_))), name
        for name, peer in self.peers.items():
            self._check_node(name, peer.world, state)

    def _check_node(self, name: str, world: ShellWorld, state: log.RootState) -> None:
        fence, of_group = 0, {}
        stopped, forced, called = set[str](), set[str](), set[str]()
        for record in world.journal:
            data = record.data
            if record.type in ("emergency_started", "emergency_ended"):
                (stopped.add if record.type == "emergency_started" else stopped.discard)("emergency")
            elif record.type in ("hold_placed", "hold_released") and data["change"] is None:
                (stopped.add if record.type == "hold_placed" else stopped.discard)(data["hold"])
            elif record.type == "group_decided" and data.get("force"):
                forced.add(data["group"])
                group = state.groups.get(data["group"])
                assert group is None or group.terms.force, (name, record.seq, "nobody is on record who forces it")
            if record.type == "hold_placed" and "call" in data:
                assert data["call"] not in called, (name, record.seq, "a call was carried out twice")  # T12
                called.add(data["call"])
            if record.type.startswith("group_") and "fence" in data:
                assert data["fence"] >= fence, (name, record.seq, "obeyed a root that had been replaced")
                fence = data["fence"]
            gid = data.get("group")
            if record.type == "applied" and gid:
                of_group[data["change"]] = gid
            if record.type == "committed" and gid:
                assert state.groups[gid].decision == "commit", (name, gid)
            if record.type == "rollback_started" and data["cause"] in ("expired", "retry"):
                assert data["change"] not in of_group, (name, record.seq, "only the root ends a group")
            if record.type == "rollback_started" and data["cause"] == "group" and data["change"] in of_group:
                gid = of_group[data["change"]]
                assert state.groups[gid].decision == "rollback", (name, data["change"])
                assert not stopped or gid in forced, (name, record.seq, "rolled back while that was stopped")
