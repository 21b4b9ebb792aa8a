"""Children that only send: real batches on real sockets, as fast as acknowledgements let them."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import zmq

from pact.core.records import GENESIS, rfc3339, seal
from pact.core.root.chunks import INCARNATION_CHARS
from pact.core.tree import checks, wire
from pact.net.keys import Key

NOW = int(zmq.NOBLOCK)
LINES = 256
COPY_MAX = 32 << 10
#: A record of the shorter kind, as most are.
TYPE, DATA = "drift_cleared", {"resource": "sysctl:vm.swappiness", "change": "c1"}


def chain(node: str, count: int) -> tuple[str, list[bytes]]:
    """The incarnation and the lines of a journal of ``count`` records."""
    lines, prev, incarnation = [], GENESIS, ""
    actor = {"user": "pact", "uid": None, "role": "agent", "via": "timer"}
    time_ = rfc3339(time.time_ns())
    for seq in range(count):
        record, body = seal(seq, prev, time_, seq, node, TYPE, actor, DATA)
        prev = record.hash
        incarnation = incarnation or prev[:INCARNATION_CHARS]
        lines.append(body[:-1] + b',"hash":"' + prev.encode() + b'"}\n')
    return incarnation, lines


class Sender:
    """One child. ``batches`` (count, bytes) are sent in order; ``endless``: again and again, under new numbers."""

    def __init__(
        self,
        context: zmq.Context[Any],
        url: str,
        server: str,
        name: str,
        key: Key,
        incarnation: str,
        batches: list[tuple[int, bytes]],
        *,
        endless: bool = False,
    ) -> None:
        self.name = name
        self.acked = -1
        self.waiting_s: deque[tuple[int, float]] = deque()
        self._incarnation, self._batches, self._endless = incarnation, batches, endless
        self._at = self._next = self._flight = self._credit = 0
        self._sizes: deque[tuple[int, int]] = deque()
        sock = self.socket = context.socket(zmq.DEALER)
        sock.curve_publickey, sock.curve_secretkey = key.public.encode(), key.secret.encode()
        sock.curve_serverkey = server.encode()
        sock.linger, sock.sndhwm, sock.rcvhwm = 0, 10_000, 10_000
        sock.connect(url)
        sock.send(wire.encode("hello", {"v": wire.VERSION, "role": "node", "name": name, "session": 1 << 20}))
        self._beat_s = time.monotonic()

    @property
    def welcome(self) -> bool:
        return self._credit > 0

    def turn(self) -> None:
        """Take what has come, send what the credit allows."""
        while True:
            try:
                message = wire.decode(self.socket.recv(NOW))
            except zmq.Again:
                break
            if message.kind == "welcome":
                self._credit = message.head["credit"]
            elif message.kind == "ack":
                self.acked = max(self.acked, *(row[2] for row in message.head["cursors"]))
                while self._sizes and self._sizes[0][0] <= self.acked:
                    self._flight -= self._sizes.popleft()[1]
            elif message.kind == "sorry":
                raise RuntimeError(f"{self.name}: {message.head['why']}")
        now_s = time.monotonic()
        if now_s - self._beat_s > 2:
            self._beat_s = now_s
            self.socket.send(wire.encode("beat", {}), NOW)

    def send(self) -> bool:
        """One batch, if there is credit and one left."""
        if self._at >= len(self._batches) or self._flight >= self._credit:
            return False
        count, data = self._batches[self._at]
        row = [self.name, self._incarnation, self._next, count, len(data)]
        self.socket.send(wire.encode("events", {"batches": [row]}, data), NOW, copy=len(data) < COPY_MAX)
        self._next += count
        self._flight += len(data)
        self._sizes.append((self._next - 1, len(data)))
        self._at = (self._at + 1) % len(self._batches) if self._endless else self._at + 1
        return True

    @property
    def left(self) -> int:
        """Records that were sent and are not acknowledged."""
        return self._next - 1 - self.acked

    def close(self) -> None:
        self.socket.close(0)


def batched(lines: list[bytes], most: int = LINES) -> list[tuple[int, bytes]]:
    """Lines in batches as the protocol bounds them."""
    out: list[tuple[int, bytes]] = []
    part: list[bytes] = []
    size = 0
    for line in lines:
        if part and (len(part) == most or size + len(line) > checks.BATCH_BYTES_MAX):
            out.append((len(part), b"".join(part)))
            part, size = [], 0
        part.append(line)
        size += len(line)
    return [*out, (len(part), b"".join(part))] if part else out
