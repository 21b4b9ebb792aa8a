"""Leaf aggregators with their nodes in one process, without sockets between them: for measuring the cost of the tree
itself, where ten thousand sockets on two cores would dominate.

Each aggregator is the real one with its uplink, its keys and its real sockets upwards; each node is that of ``fleet``.
The real frames go between them, encoded, decoded and checked on both sides; only libzmq, CURVE and the kernel are left
out on that one hop. ``bench_cluster`` also measures the same tree with a socket for each node.

``python -m pact.sim.leaves SPEC`` runs one process: the JSON of ``fleet`` with ``leaves`` (see ``LeafSpec``).
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from pact.cluster import config
from pact.cluster.aggregator import Aggregator
from pact.core.tree import wire
from pact.core.tree.uplink import Connect, Disconnect, Send
from pact.core.tree.wire import Message
from pact.host.clock import boottime_ns
from pact.model import NS_PER_S
from pact.net.keys import Key
from pact.sim.fleet import Fleet, NodeLinks, Spec, VirtualNode, raise_descriptors

NO_CONNECTION: Final = -1


@dataclass(frozen=True, slots=True)
class LeafSpec(Spec):
    """``leaves``: (url for nodes, configuration file) of each aggregator here."""

    leaves: list[tuple[str, str]] = field(default_factory=list)


class MemoryPort:
    """The replacement of an aggregator's ROUTER."""

    def __init__(self) -> None:
        self.came: deque[tuple[bytes, str, int, bytes | memoryview | None]] = deque()
        self.nodes: dict[bytes, MemoryLinks] = {}

    def receive_from(self, most: int) -> tuple[list[tuple[bytes, str, int, bytes | memoryview | None]], bool]:
        came = self.came
        out = [came.popleft() for _ in range(min(most, len(came)))]
        return out, not came

    def send_to(self, rids: Any, frame: bytes) -> list[bytes]:
        lost = []
        for rid in rids:
            node = self.nodes.get(rid)
            if node is None:
                lost.append(rid)
            else:
                node.take(frame)
        return lost

    def send_each(self, rids: Any, frames: list[bytes]) -> list[bytes]:
        return [rid for rid, frame in zip(rids, frames, strict=True) if self.send_to((rid,), frame)]

    def readable(self) -> bool:
        return bool(self.came)


class MemoryLinks:
    """A node's links, with the interface of ``Links``."""

    def __init__(self, leaves: Leaves, node: VirtualNode, key: Key) -> None:
        self.rid, self._key = node.name.encode(), key.public
        self._leaves, self._node = leaves, node
        self._inbox: deque[tuple[str, bytes]] = deque()
        self._parent = ""

    def perform(self, effect: Connect | Disconnect | Send) -> None:
        leaves = self._leaves
        if isinstance(effect, Send):
            leaves.ports[effect.parent].came.append((self.rid, self._key, NO_CONNECTION, effect.frame))
            leaves.busy[effect.parent] = None
        elif isinstance(effect, Connect):
            self._parent = effect.parent.url
            leaves.ports[self._parent].nodes[self.rid] = self
        else:
            leaves.ports[effect.parent].nodes.pop(self.rid, None)

    def take(self, frame: bytes) -> None:
        if not self._inbox:
            self._leaves.told.append(self._node)
        self._inbox.append((self._parent, frame))

    def drain(self) -> list[tuple[str, Message]]:
        out = [(parent, wire.decode(frame)) for parent, frame in self._inbox]
        self._inbox.clear()
        return out

    def readable(self) -> bool:
        return False  # messages that come during the reading get a turn of their own


class Leaves(Fleet):
    """The loop of one process."""

    def __init__(self, spec: LeafSpec) -> None:
        super().__init__(spec)
        self.ports: dict[str, MemoryPort] = {}
        self.busy: dict[str, None] = {}  # aggregators with messages to read
        self.told: deque[VirtualNode] = deque()  # nodes with messages to read
        self._aggregators: dict[str, Aggregator] = {}
        self._by_poller: dict[int, str] = {}
        self._due_ns: dict[str, int] = {}
        for url, path in spec.leaves:
            aggregator = self._aggregators[url] = Aggregator(config.load(path))
            port = self.ports[url] = MemoryPort()
            aggregator._port = port  # type: ignore[assignment]
            aggregator._unwatch(aggregator.router)  # nobody connects to it
            self._by_poller[aggregator.poller.fileno()] = url
            self._due_ns[url] = 0
            self._epoll.register(aggregator.poller.fileno(), select.EPOLLIN)

    def links_of(self, node: VirtualNode, key: Key) -> NodeLinks:
        return MemoryLinks(self, node, key)

    def run(self, stdin: int) -> None:
        """Run until ``stdin`` ends."""
        self._epoll.register(stdin, select.EPOLLIN)
        while True:
            for fd, _ in self._epoll.poll(self._timeout_s()):
                if fd != stdin:
                    self.busy[self._by_poller[fd]] = None
                elif not self._asked(stdin):
                    return
            self.now_ns, self.wall_ns = boottime_ns(), time.time_ns()
            self._turns()
            for _ in range(len(self.told)):
                node = self.told.popleft()
                node.readable()
                if node.wake_ns > self.now_ns + NS_PER_S * 3:
                    self._schedule(node)
            self._after_reading()

    def _turns(self) -> None:
        """Turns of the aggregators that have something to do."""
        for url in [u for u, due_ns in self._due_ns.items() if due_ns <= self.now_ns or u in self.busy]:
            aggregator, port = self._aggregators[url], self.ports[url]
            self.busy.pop(url, None)
            aggregator._router_more = port.readable()
            aggregator.turn(0)
            self._due_ns[url] = boottime_ns() + int(aggregator._timeout_s() * NS_PER_S)

    def _timeout_s(self) -> float:
        if self.told or self.busy:
            return 0.0
        until_due_s = (min(self._due_ns.values()) - boottime_ns()) / NS_PER_S
        return max(0.0, min(super()._timeout_s(), until_due_s))


def main() -> None:
    raise_descriptors()
    with open(sys.argv[1], "rb") as f:
        given: Mapping[str, Any] = orjson.loads(f.read())
    Leaves(LeafSpec(**given)).run(sys.stdin.fileno())
    os._exit(0)


if __name__ == "__main__":
    main()
