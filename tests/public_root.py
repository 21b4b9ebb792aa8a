"""A small root for tests of what is published: a log, a publisher and a replay port, that can be restarted and trimmed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import zmq

from pact.cluster.auth import Authorized
from pact.cluster.publish import Endpoint, Publisher
from pact.cluster.replay import Replay
from pact.cluster.zap import Zap
from pact.core.records import seal
from pact.core.root.chunks import Batch, read_chunk
from pact.core.root.log import RootState, Writer, load
from pact.core.root.term import Publish
from pact.core.tree.directory import Peer
from pact.errors import JournalError
from pact.journal.stores import open_store
from pact.net.floods import PutOff

TIME = "2026-11-23T15:49:09.733321Z"
ACTOR = {"user": "ann", "uid": 1000, "role": "ops", "via": "socket"}


class Chain:
    """The records of one node, as lines."""

    def __init__(self, node: str, rack: str = "r1", birth: int = 0) -> None:
        self.node, self.rack = node, rack
        self.seq, self.hash, self.incarnation, self._birth = -1, "0" * 64, "", birth

    def batch(self, *types: str, data: Any = None) -> Batch:
        lines, first = [], self.seq + 1
        for type_ in types:
            given = {"n": self.seq + 1, "birth": self._birth} if data is None else data
            record, body = seal(self.seq + 1, self.hash, TIME, 5, self.node, type_, ACTOR, given)
            self.seq, self.hash = record.seq, record.hash
            self.incarnation = self.incarnation or record.hash[:16]
            lines.append(body[:-1] + b',"hash":"' + record.hash.encode() + b'"}')
        return Batch(self.node, self.rack, self.incarnation, first, lines)


def build(state: RootState, batches: Iterable[Batch], fence: int = 1) -> tuple[int, int, bytes]:
    """The next chunk on ``state``, which is moved on; as by whoever reads it from the log later."""
    read = RootState.from_bytes(state.to_bytes())
    writer = Writer(state, fence, "root")
    for batch in batches:
        assert writer.take(batch) == ""
    first, count, raw = writer.chunk(1_700_000_000_000_000_000)
    state.apply_written(writer)
    read.apply(raw)
    assert read.to_bytes() == state.to_bytes()
    return first, count, raw


def last_of(raw: bytes) -> dict[str, int]:
    """The last number of each type in a chunk, from its lines."""
    chunk = read_chunk(raw)
    lines = [line for batch in chunk.batches for line in batch.lines]
    return {orjson.loads(line)["type"]: chunk.first + at for at, line in enumerate(lines)}


class Keys:
    """A server's pair, and one each for a few people and machines."""

    def __init__(self) -> None:
        self.server = tuple(k.decode() for k in zmq.curve_keypair())
        self.pairs: dict[str, tuple[str, str]] = {}
        self.authorized = Authorized()
        for name, role in (("sub", "subscriber"), ("view", "viewer"), ("n1", "node"), ("agg", "aggregator")):
            public, secret = (k.decode() for k in zmq.curve_keypair())
            self.pairs[name] = public, secret
            self.authorized = Authorized([*self.authorized.peers.values(), Peer(name, role, public)])

    def secure(self, sock: zmq.Socket[Any], name: str) -> zmq.Socket[Any]:
        public, secret = self.pairs.get(name) or tuple(k.decode() for k in zmq.curve_keypair())
        sock.curve_serverkey = self.server[0].encode()
        sock.curve_publickey, sock.curve_secretkey = public.encode(), secret.encode()
        return sock


class Root:
    """Started over and over on one file and the same ports."""

    def __init__(self, directory: Path, keys: Keys, **limits: Any) -> None:
        self.keys, self.limits = keys, limits
        self.path = directory / "root.db"
        self.events = self.replay = "tcp://127.0.0.1:*"
        self.start()

    def _put_off(self, key: str) -> None:
        self.put_off.add(key, time.monotonic())

    def start(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.put_off = PutOff()
        self.zap = Zap(
            self.context,
            self.keys.authorized.may_connect,
            lambda text: None,
            waits=self.put_off.__contains__,
        )
        self._ending = threading.Event()
        self._zap_thread = threading.Thread(target=self._authenticate)
        self._zap_thread.start()
        self.store = open_store(f"sqlite://{self.path}")
        fence = self.store.campaign("root")
        assert fence is not None
        self.fence = fence
        self.state = load(*self.store.load())
        self.broken = False
        secret = self.keys.server[1]
        self.publisher = Publisher(
            self.context,
            Endpoint(self.events, secret, "events"),
            "c1",
            heads_s=self.limits.get("heads_s", 0.2),
            send_max=self.limits.get("send_max", 4000),
            put_off=self._put_off,
        )
        self.server = Replay(
            self.context,
            Endpoint(self.replay, secret, "replay"),
            "c1",
            read=self.read,
            head=lambda: self.state.gseq,
            snapshot=lambda: (self.state.gseq, b'{"nodes":{}}'),
            allowed=lambda key: self.keys.authorized.may_connect(key, "replay"),
            put_off=self._put_off,
            send_max=self.limits.get("replay_send_max", 2000),
            unread_max_s=self.limits.get("unread_max_s", 30.0),
        )
        for part in (self.publisher, self.server):
            part.start()
            assert part.bound.wait(10), part.error
        self.events, self.replay = self.publisher.address, self.server.address
        self.publisher.lead(self.state.gseq, self.state.last, "log1")

    def read(self, gseq: int) -> Any:
        if self.broken:
            raise JournalError("no quorum")
        return self.store.read(gseq)

    def _authenticate(self) -> None:
        while not self._ending.is_set():
            if self.zap.socket.poll(20):
                self.zap.drain()

    def commit(self, *batches: Batch, publish: bool = True) -> int:
        """A chunk; the number of its last event. ``publish=False``: as if the root had died right after the commit."""
        first, count, raw = build(self.state, batches, self.fence)
        self.store.append(self.fence, first, count, raw)
        if publish:
            self.publisher.publish(Publish(raw, last_of(raw), "log1"))
        return first + count - 1

    def trim(self, before: int) -> None:
        self.store.save_snapshot(self.fence, self.state.gseq, self.state.to_bytes())
        self.store.trim(self.fence, before)

    def stop(self) -> None:
        self.publisher.close()
        self.server.close()
        self._ending.set()
        self._zap_thread.join()
        self.zap.close()
        self.store.close()
        self.context.term()
