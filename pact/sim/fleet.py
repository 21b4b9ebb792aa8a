"""Many virtual nodes in one process, for measuring: the real core, wire code, uplink and outbox, and real sockets.

Every node has its own DEALER, its own CURVE key and its own session, as an agent has. The machine is replaced by a
dictionary (an action writes an entry) and the disk by a list, because those belong to the node's own machine and
nothing of them travels. A process of this kind holds a few thousand nodes: each takes two descriptors.

``python -m pact.sim.fleet SPEC`` runs one: SPEC is JSON (see ``Spec``); every change of its counts is a line of JSON on
stdout, and every line on stdin requests one now; a dot in it ends the writes, the end of stdin ends the process.
"""

from __future__ import annotations

import gc
import heapq
import os
import random
import resource
import secrets
import select
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import orjson
import zmq

from pact._fast import syscalls
from pact.core.node import bonds
from pact.core.node.events import Asked, Caller, CommandsTold, ContactChanged, FleetTold, Ticked
from pact.core.node.payloads import ExecBegun, Executed
from pact.core.ops import made
from pact.core.root.chunks import INCARNATION_CHARS
from pact.core.tree.member import (
    Answered,
    Called,
    Calls,
    CarryOut,
    Contact,
    Effect,
    FleetSaid,
    Framed,
    Key,
    Member,
    Welcomed,
    caller_of,
)
from pact.core.tree.nodeseals import NodeSeals
from pact.core.tree.outbox import Outbox, Read, Up, wait_ns, with_answer
from pact.core.tree.parents import Parent
from pact.core.tree.seals import key_id
from pact.core.tree.uplink import OF_LINKS, Connect, Disconnect, Lost, Note, Send
from pact.core.tree.wire import Head, Message
from pact.host.clock import boottime_ns
from pact.model import NS_PER_S, Declared, Owner
from pact.net import keys
from pact.net.links import Links
from pact.net.shared import Shared
from pact.sim.lines import Machine
from pact.sim.outputs import Output

SOCKETS_MAX: Final = 16_384
CACHED_MAX: Final = 4
READY_MAX: Final = 128  # nodes in one turn: they share one reading of the clock
BEGIN_MAX: Final = 8
WORK_NS: Final = NS_PER_S // 50
TOGETHER_NS: Final = NS_PER_S // 20  # work that is due within this time is done together: thousands of clocks, one wake
GC_OBJECTS: Final = 100_000  # between two garbage collections: each node's share of the cost is as on its own machine
REPORT_NS: Final = NS_PER_S // 10
VERSION: Final = "virtual"
WRITER: Final = Owner("uid:1000", "somebody", 1000)


@dataclass(frozen=True, slots=True)
class Spec:
    """The contents of one process. ``nodes``: name, rack, public and secret key, indexes into ``parents`` (url, key,
    rack); ``at_once``: how many nodes at most connect to their first parent at a time (a handshake costs both sides
    most of a millisecond; all at once would starve the connected ones); ``write_every_s``: how often somebody writes to
    each node's machine, 0 for never.
    """

    nodes: Sequence[tuple[str, str, str, str, Sequence[int]]]
    parents: Sequence[tuple[str, str, str]]
    declared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    at_once: int = 48
    write_every_s: float = 0.0
    io_threads: int = 1
    roots: Sequence[str] = ()  # public keys; if there are any, everything is sealed, and nothing is sent without a seal


@dataclass(slots=True)
class Counts:
    """The counts that a process reports: nodes that were told to connect, and that have a parent now; records that are
    durable at the root, and all records; calls carried out, and their processor time; how often a parent was lost;
    lines of stdin that were read before this report.
    """

    begun: int = 0
    connected: int = 0
    acked: int = 0
    records: int = 0
    calls: int = 0
    work_us: int = 0
    lost: int = 0
    told: int = 0


class NodeLinks(Protocol):
    """The connections of a node to its parents."""

    def perform(self, effect: Connect | Disconnect | Send) -> None: ...
    def drain(self) -> list[tuple[str, Message]]: ...
    def readable(self) -> bool: ...


class VirtualNode:
    """One node: what ``pact.agent.link`` does for an agent, on a machine that is a dictionary."""

    def __init__(self, fleet: Fleet, name: str, rack: str, key: keys.Key, parents: Sequence[Parent]) -> None:
        self.fleet = fleet
        self.name = name
        self.world = Machine(name=name, clustered=True)
        self.world.lines, self.world.fresh = [], []
        self.world.t_ns, self.world.wall_ns = fleet.now_ns, time.time_ns()
        self.world.machine = {r: d.attrs for r, d in fleet.declared.items()}
        self.world.start(dict(fleet.declared))
        incarnation = orjson.loads(self.world.lines[0])["hash"][:INCARNATION_CHARS]
        self.outbox = Outbox(name, incarnation, newest=len(self.world.lines) - 1)
        self.links = fleet.links_of(self, key)
        session = secrets.randbits(64)
        seals: NodeSeals | None = None
        if fleet.spec.roots:
            shared = Shared(key)
            seals = NodeSeals({key_id(r): shared.key(r) for r in fleet.spec.roots}, session, required=True)
        self.member = Member(
            self.outbox,
            parents,
            fleet.rng,
            session=session,
            version=VERSION,
            rack=rack,
            wall_ns=lambda: fleet.wall_ns,
            unfinished=lambda: bonds.unfinished(self.world.node),
            calls=Calls(kept_max=CACHED_MAX),
            seals=seals,
        )
        self.wake_ns = 0
        self._outputs: dict[str, Output] = {}  # by call
        every_ns = int(fleet.spec.write_every_s * NS_PER_S)
        self._write_every_ns = every_ns
        self._write_ns = fleet.now_ns + int(fleet.rng.random() * every_ns) if every_ns else 1 << 62

    # -- the loop's two ways in ---------------------------------------------------------------------------------

    def readable(self) -> None:
        """Read everything that has come. Check once more after the last answer: sending may have cleared the edge."""
        links, member, now_ns = self.links, self.member, self.fleet.now_ns
        acked = self.outbox.acked
        while True:
            for parent, message in links.drain():
                self._apply(member.received(parent, message, now_ns))
            if not links.readable():
                break
        self.fleet.counts.acked += self.outbox.acked - acked

    def tick(self) -> None:
        """Time has passed."""
        now_ns = self.fleet.now_ns
        self._apply(self.member.tick(now_ns))
        wake_ns = self.world.node.next_wake_ns()
        if wake_ns is not None and wake_ns <= now_ns:
            self._now()
            self.world.feed(lambda: Ticked(self.world.t_ns, self.world.wall_ns))
            self._recorded()
        if self._write_ns <= now_ns:
            self._write()
        if self.links.readable():
            self.readable()

    def _write(self) -> None:
        """Change the first declared resource, or change it back: two records, or one."""
        self._write_ns = self.fleet.now_ns + self._write_every_ns if self.fleet.writing else 1 << 62
        if self.fleet.writing:
            resource, declared = next(iter(self.fleet.declared.items()))
            drifted = self.world.machine[resource] != declared.attrs
            self._now()
            self.world.write(resource, declared.attrs if drifted else {"value": "drifted"}, WRITER)
            self._recorded()

    def next_wake_ns(self) -> int:
        due = [ns for ns in (self.member.next_wake_ns(), self.world.node.next_wake_ns()) if ns is not None]
        return min(self._write_ns, *due)

    # -- as an agent's link -------------------------------------------------------------------------------------

    def _apply(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, OF_LINKS):
                self.links.perform(effect)
            elif isinstance(effect, Read):
                self._send(self._read([effect]))
            elif isinstance(effect, Called):
                self.fleet.work.append((self, effect.message))
            elif isinstance(effect, CarryOut):
                body = self._carry_out(effect.head["op"], effect.body, effect.head["caller"], effect.key)
                self._answer(effect.key, self.member.calls.done(effect.key, body))
                if (begun := self._outputs.get(effect.key[1])) is not None:
                    begun.begin()
            elif isinstance(effect, Answered):
                self._answer(effect.key, effect.body)
            elif isinstance(effect, Framed):
                self._framed(effect.message)
            elif isinstance(effect, FleetSaid):
                self._fleet_said(effect)
            elif isinstance(effect, Contact):
                self._contact(effect.up)
            elif isinstance(effect, Welcomed):
                self.fleet.up(self, True)
            elif isinstance(effect, Lost):
                self._outputs.clear()
                self.fleet.counts.lost += 1
                self.fleet.up(self, False)
            elif isinstance(effect, Note):
                print(f"{self.name}: {effect.text}", file=sys.stderr)

    def _framed(self, message: Message) -> None:
        calls = list(self._outputs) if message.kind == "took" else [message.head["call"]]
        for call in calls:
            output = self._outputs.get(call)
            if output is not None and not output.heard(message):
                del self._outputs[call]

    def _say(self, kind: str, head: Head, body: bytes) -> None:
        self._apply(self.member.uplink.send(kind, head, body))

    def _fleet_said(self, said: FleetSaid) -> None:
        self._tell(lambda: FleetTold(self.world.t_ns, self.world.wall_ns, said.fence, said.seq, said.holds))

    def _contact(self, up: bool) -> None:
        self._tell(lambda: ContactChanged(self.world.t_ns, self.world.wall_ns, up))

    def _send(self, ups: Iterable[Up]) -> None:
        for up in ups:
            self._apply(self.member.send(up))

    def _read(self, work: Sequence[Read | Up]) -> deque[Up]:
        out: deque[Up] = deque()
        todo = deque(work)
        while todo:
            item = todo.popleft()
            if isinstance(item, Up):
                out.append(item)
            else:
                lines = self.world.lines[item.first : item.first + item.limit]
                todo.extendleft(reversed(self.outbox.rows(item.first, lines, self.fleet.now_ns)))
        return out

    def _recorded(self) -> None:
        self._send(self._todo())

    def _todo(self) -> deque[Up]:
        """The messages for records made since."""
        newest = len(self.world.lines) - 1
        if newest <= self.outbox.newest:
            return deque()
        self.fleet.counts.records += newest - self.outbox.newest
        waits_ns = wait_ns(self.world.fresh)
        self.world.fresh.clear()
        return self._read(self.outbox.recorded(newest, self.fleet.now_ns, wait_ns=waits_ns))

    def _now(self) -> None:
        self.world.t_ns, self.world.wall_ns = self.fleet.now_ns, self.fleet.wall_ns

    def _tell(self, make: Any) -> None:
        self._now()
        self.world.feed(make)
        self._recorded()

    def call(self, message: Message) -> None:
        """Carry out a call whose turn has come."""
        self.fleet.counts.calls += 1
        self._apply(self.member.call(message, self.fleet.now_ns))
        if self.links.readable():
            self.readable()

    def _answer(self, key: Key, body: bytes) -> None:
        todo = self._todo()
        with_it = todo.popleft() if todo and self.member.uplink.with_answers and with_answer(todo[0]) else None
        self._apply(self.member.answer(key, body, with_it))
        self._send(todo)  # an answer must not wait behind many events

    def _executed(self, words: Sequence[str], said: Mapping[str, Any], key: Key) -> None:
        """The records of a command: they go up with its answer."""
        (actor, owner), world = caller_of(said, key, None), self.world
        command = Executed(shlex.join(words), owner, owner.user, 0, actor.user, begun=world.node.state.seq + 1)
        begun = ExecBegun(command.command, owner, owner.user, actor.user)
        self._now()
        for each in (begun, command):
            world.feed(partial(CommandsTold, world.t_ns, world.wall_ns, [(each, actor)]))

    def _carry_out(self, op: str, body: bytes, said: Mapping[str, Any], key: Key) -> bytes:
        if op == "ping":
            return orjson.dumps({"ok": True, "exit": 0, "message": "", "hint": "", "result": {"version": VERSION}})
        if op == "exec":  # as a node answers for ``true``: a virtual node has no processes
            result = {"exit": 0, "truncated": False, "stdout": "", "stderr": ""}
            args = orjson.loads(body)
            if args["words"] == ["yes"] and args["stream"]:  # and as one for output that never ends
                send = partial(self._say, "frames")
                self._outputs[key[1]] = Output(self.name, key[1], args["stream"], send)
                result = {"stream": self._outputs[key[1]].public}
            else:
                self._executed(args["words"], said, key)
            return orjson.dumps({"ok": True, "exit": 0, "message": "", "hint": "", "result": result})
        if op == "state":
            state = self.world.node.state.overall()
            return orjson.dumps({"ok": True, "exit": 0, "message": "", "hint": "", "result": {"state": state}})
        if op == "check":
            state = self.world.node.state.overall()
            return orjson.dumps(
                {
                    "ok": True,
                    "exit": 0,
                    "message": "",
                    "hint": "",
                    "result": {"line": f"{self.name}: {state}", "node": self.name, "state": state},
                }
            )
        args = orjson.loads(body or b"{}")
        self._now()
        world = self.world
        world.token += 1
        token = world.token
        caller = Caller(*caller_of(said, key, None))
        world.feed(lambda: Asked(world.t_ns, world.wall_ns, token, made(op, args), caller))
        reply = world.replies.pop(token)
        return orjson.dumps(
            {
                "ok": reply.exit_code == 0,
                "exit": reply.exit_code,
                "message": reply.message,
                "hint": reply.hint,
                "result": reply.result,
            }
        )


class Fleet:
    """The loop of one process: descriptors, times, counts."""

    def __init__(self, spec: Spec) -> None:
        syscalls.one_arena()
        self.spec = spec
        self.rng = random.Random()
        self.context: zmq.Context[Any] = zmq.Context(spec.io_threads)
        self.context.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
        self.declared = {r: Declared.from_json(v) for r, v in spec.declared.items()}
        self.counts = Counts()
        self.writing = True
        self.now_ns, self.wall_ns = boottime_ns(), time.time_ns()
        self.work: deque[tuple[VirtualNode, Message]] = deque()
        self._epoll = select.epoll()
        self._by_fd: dict[int, VirtualNode] = {}
        self._wakes: list[tuple[int, int, VirtualNode]] = []
        self._n = 0
        self._with_parent: set[str] = set()
        self._welcomed: set[str] = set()
        self._waiting = list(reversed(spec.nodes))
        self._report_ns = 0
        self._reported = Counts()
        gc.disable()

    def watch(self, socket: zmq.Socket[bytes], node: VirtualNode) -> None:
        fd = socket.fileno()
        self._by_fd[fd] = node
        self._epoll.register(fd, select.EPOLLIN)

    def links_of(self, node: VirtualNode, key: keys.Key) -> NodeLinks:
        return Links(self.context, key, lambda socket: self.watch(socket, node), self.unwatch)

    def unwatch(self, socket: zmq.Socket[bytes]) -> None:
        fd = socket.fileno()
        del self._by_fd[fd]
        self._epoll.unregister(fd)

    def up(self, node: VirtualNode, connected: bool) -> None:
        (self._with_parent.add if connected else self._with_parent.discard)(node.name)
        if connected and node.name not in self._welcomed:
            self._welcomed.add(node.name)
            if len(self._welcomed) == len(self.spec.nodes):
                gc.collect()
                gc.freeze()  # no real node would ever wait for a walk through thousands of nodes
                gc.set_threshold(GC_OBJECTS)
                gc.enable()
        self.counts.connected = len(self._with_parent)

    def run(self, stdin: int) -> None:
        """Run until ``stdin`` ends."""
        self._epoll.register(stdin, select.EPOLLIN)
        while True:
            ready = self._epoll.poll(self._timeout_s(), READY_MAX)
            self.now_ns, self.wall_ns = boottime_ns(), time.time_ns()
            for fd, _ in ready:
                if fd == stdin:
                    if not self._asked(stdin):
                        return
                    continue
                node = self._by_fd.get(fd)
                if node is not None:
                    node.readable()
                    if node.wake_ns > self.now_ns + NS_PER_S * 3:
                        self._schedule(node)
            self.now_ns, self.wall_ns = boottime_ns(), time.time_ns()
            self._after_reading()

    def _asked(self, stdin: int) -> bool:
        """Read requests. Returns False at the end of stdin."""
        said = os.read(stdin, 4096)
        self.counts.told += said.count(b"\n")
        self.writing = self.writing and b"." not in said
        self._report_ns = 0
        return bool(said)

    def _after_reading(self) -> None:
        """The rest of a turn: begin connections, handle timers and calls, and report counts."""
        self._begin()
        self._tick()
        if self.work:
            self._work()
        if self.now_ns >= self._report_ns:
            self._report()

    def _work(self) -> None:
        """Carry out some of the calls. Beats must not wait for all of them: on its own machine no node would."""
        began_ns = time.thread_time_ns()
        ends_ns = boottime_ns() + WORK_NS
        while self.work:
            node, message = self.work.popleft()
            node.call(message)
            if boottime_ns() >= ends_ns:
                break
        self.counts.work_us += (time.thread_time_ns() - began_ns) // 1000

    def _timeout_s(self) -> float:
        if self.work:
            return 0.0
        due = self._report_ns
        if self._waiting:
            due = min(due, self.now_ns + NS_PER_S // 100)
        if self._wakes:
            due = min(due, self._wakes[0][0])
        return max(0, due - boottime_ns()) / NS_PER_S

    def _begin(self) -> None:
        """The next nodes begin to connect."""
        due = self.spec.at_once - (self.counts.begun - len(self._welcomed))
        for _ in range(min(due, BEGIN_MAX, len(self._waiting))):
            name, rack, public, secret, which = self._waiting.pop()
            parents = [Parent(*self.spec.parents[i]) for i in which]
            node = VirtualNode(self, name, rack, keys.Key(public, secret), parents)
            self.counts.begun += 1
            self.counts.records += len(node.world.lines)
            node.tick()
            self._schedule(node)

    def _schedule(self, node: VirtualNode) -> None:
        node.wake_ns = node.next_wake_ns()
        self._n += 1
        heapq.heappush(self._wakes, (node.wake_ns, self._n, node))

    def _tick(self) -> None:
        wakes = self._wakes
        if not wakes or wakes[0][0] > self.now_ns:
            return
        until_ns = self.now_ns + TOGETHER_NS
        while wakes and wakes[0][0] <= until_ns:
            wake_ns, _, node = heapq.heappop(wakes)
            self.now_ns = max(self.now_ns, wake_ns)
            if wake_ns == node.wake_ns:
                if node.next_wake_ns() <= until_ns:
                    node.tick()
                self._schedule(node)

    def _report(self) -> None:
        self._report_ns = self.now_ns + REPORT_NS
        if self.counts != self._reported:
            self._reported = Counts(**asdict(self.counts))
            sys.stdout.write(orjson.dumps(self.counts).decode() + "\n")
            sys.stdout.flush()


def raise_descriptors() -> int:
    """Raise the limit of descriptors as far as allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def main() -> None:
    raise_descriptors()
    with open(sys.argv[1], "rb") as f:
        spec = Spec(**orjson.loads(f.read()))
    Fleet(spec).run(sys.stdin.fileno())
    os._exit(0)  # closing thousands of sockets one by one is unnecessary


if __name__ == "__main__":
    main()
