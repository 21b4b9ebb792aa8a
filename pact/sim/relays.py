"""Several aggregators in one process, for measuring a tree of many on a machine with few cores.

Each is the real one: its own context, ROUTER, authentication, keys, uplink and relay; only the waiting is shared. With
a process for each, two cores would mostly measure the scheduler: eighty processes that wake each other for a handful of
messages. On eighty machines that does not happen.

``python -m pact.sim.relays [--root | --sink] CONFIG...`` runs them; a line on stdout says when all are bound, the end
of stdin ends the process. A root counts the messages between it and its children, by kind, and prints the counts for
each line on stdin. A sink acknowledges all events, in place of a root, to measure the relay below it.
"""

from __future__ import annotations

import gc
import heapq
import os
import select
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import orjson

from pact.cluster import config, rootpart
from pact.cluster.aggregator import Aggregator, RootPart
from pact.core.tree import wire
from pact.core.tree.directory import Peer
from pact.core.tree.relay import Effect
from pact.core.tree.wire import KINDS, Message
from pact.host.clock import boottime_ns
from pact.model import NS_PER_S
from pact.sim.fleet import raise_descriptors

SINK_CREDIT: Final = 64 << 20
KIND_OF: Final = {kind.code: name for name, kind in KINDS.items()}


class Sink:
    """The smallest possible parent of a relay: everything is durable at once."""

    def __init__(self, aggregator: Aggregator) -> None:
        self._name = aggregator.config.name
        self._started = False

    def received(self, message: Message, t_ns: int, wall_ns: int) -> Iterable[Message]:
        if message.kind == "events":
            rows = [[n, inc, first + count - 1, False] for n, inc, first, count, _ in message.head["batches"]]
            yield wire.message("ack", {"cursors": rows})

    def tick(self, t_ns: int, wall_ns: int) -> Iterable[Message]:
        if not self._started:
            self._started = True
            yield wire.message(
                "welcome", {"v": wire.VERSION, "name": self._name, "path": [], "fence": 1, "credit": SINK_CREDIT}
            )

    def next_wake_ns(self) -> int | None:
        return None

    def pollables(self) -> Sequence[Any]:
        return ()

    def ready(self, pollable: Any, t_ns: int, wall_ns: int) -> Iterable[Message]:
        return ()

    def removed(self, keys: Sequence[str]) -> None:
        pass

    def revoked(self, users: Sequence[str], t_ns: int, wall_ns: int) -> Iterable[Message]:
        return ()

    def shown(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


class Counted(Aggregator):
    """An aggregator that counts the frames between it and its children."""

    def __init__(self, path: str, make_root: Callable[[Aggregator], RootPart] | None = None) -> None:
        super().__init__(config.load(path), make_root)
        self.frames: Counter[str] = Counter()
        received = self.relay.received

        def count(rid: bytes, peer: Peer, message: Message, t_ns: int) -> list[Effect]:
            self.frames["up " + message.kind] += 1
            return received(rid, peer, message, t_ns)

        self.relay.received = count  # type: ignore[method-assign]

    def _send(self, rids: tuple[bytes, ...], frame: bytes, lost: set[bytes]) -> None:
        self.frames["down " + KIND_OF[frame[2]]] += len(rids)
        super()._send(rids, frame, lost)

    def _send_each(self, rids: tuple[bytes, ...], frames: list[bytes], lost: set[bytes]) -> None:
        for frame in frames:
            self.frames["down " + KIND_OF[frame[2]]] += 1
        super()._send_each(rids, frames, lost)


class Relays:
    """The loop. An aggregator's own poller is a descriptor like any other."""

    def __init__(self, paths: Sequence[str], make_root: Callable[[Aggregator], RootPart] | None = None) -> None:
        self._epoll = select.epoll()
        self._by_fd: dict[int, Aggregator] = {}
        self._wakes: dict[int, int] = {}  # for each: when it has something to do
        self._order: list[tuple[int, int]] = []  # the same as a heap, including outdated entries
        self._counted: Counted | None = None
        for path in paths:
            if make_root is None:
                aggregator = Aggregator(config.load(path))
            else:
                aggregator = self._counted = Counted(path, make_root)
            fd = aggregator.poller.fileno()
            self._by_fd[fd] = aggregator
            self._wakes[fd] = 0
            self._order.append((0, fd))
            self._epoll.register(fd, select.EPOLLIN)

    def run(self, stdin: int) -> None:
        """Run until ``stdin`` ends."""
        self._epoll.register(stdin, select.EPOLLIN)
        while True:
            timeout_s = max(0, self._order[0][0] - boottime_ns()) / NS_PER_S
            ready = {fd for fd, _ in self._epoll.poll(timeout_s)}
            if stdin in ready and not self._asked(stdin):
                return
            ready.discard(stdin)
            now_ns = boottime_ns()
            while self._order and self._order[0][0] <= now_ns:
                wake_ns, fd = heapq.heappop(self._order)
                if self._wakes[fd] == wake_ns:
                    ready.add(fd)
            for fd in ready:
                aggregator = self._by_fd[fd]
                aggregator.turn(0)
                wake_ns = self._wakes[fd] = boottime_ns() + int(aggregator._timeout_s() * NS_PER_S)
                heapq.heappush(self._order, (wake_ns, fd))

    def _asked(self, stdin: int) -> bool:
        if not os.read(stdin, 4096):
            return False
        if self._counted is not None:
            print(orjson.dumps(self._counted.frames).decode(), flush=True)
        return True


def main() -> None:
    raise_descriptors()
    kind, *rest = sys.argv[1:]
    makers: dict[str, Callable[[Aggregator], RootPart]] = {"--root": rootpart.make_root, "--sink": Sink}
    relays = Relays(rest if kind in makers else sys.argv[1:], makers.get(kind))
    gc.freeze()
    print("ready", flush=True)
    relays.run(sys.stdin.fileno())
    os._exit(0)


if __name__ == "__main__":
    main()
