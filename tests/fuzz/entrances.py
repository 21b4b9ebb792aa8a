"""The control socket, subscriptions, HTTP."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Final

import nasty
import orjson

from fuzz.kit import Feed, Target, outcome, piece
from pact.agent import driver, requests, telling
from pact.agent.client import (
    OUTPUT_MAX,
    READ_CHUNK,
    Client,
)
from pact.agent.driver import Driver
from pact.agent.requests import ALL_FIELDS, ROOT_FIELDS, Requests
from pact.agent.veil import Veil
from pact.cluster.http import Http, _Client
from pact.cluster.live import Live
from pact.cluster.subscriptions import (
    Subscriptions,
)
from pact.core.node.events import Asked, Caller
from pact.declared.toml import Ignore
from pact.errors import PactError, RequestError
from pact.limits import REQUEST_MAX, TOPICS_KEY_BYTES_MAX, TOPICS_MAX
from pact.model import Actor, Declared, Owner
from pact.sim.parts import person
from pact.sim.world import World

# -- the control socket: bytes to lines ---------------------------------------------------------------------------------

PEOPLE: Final = tuple(
    Caller(Actor(n, u, r, "socket"), Owner(f"uid:{u}", n, u))
    for n, u, r in (("eve", 3, "viewer"), ("olga", 2, "ops"), ("root", 0, "admin"))
)


class Pipe:
    """A socket of which the peer has sent these chunks."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks

    def fileno(self) -> int:
        return 7

    def recv(self, size: int) -> bytes:
        chunk = self.chunks.pop(0) if self.chunks else b""
        if len(chunk) > size:
            self.chunks.insert(0, chunk[size:])
        return chunk[:size]

    def send(self, data: Any) -> int:
        return len(data)


def socket(data: bytes) -> None:
    """The same lines come out, however the bytes were cut; of an endless one no more is kept than a request may have."""
    feed = Feed(data)
    chunks = []
    many = feed.number()
    while feed:
        chunks.append(feed.piece() * (many if many > 250 else 1))
    whole, cut = b"".join(chunks), [c for c in chunks if c]
    client, lines = Client(Pipe(list(cut)), PEOPLE[0]), list[bytes]()  # type: ignore[arg-type]
    try:
        while not client.half_closed:
            client.read()
            while client.lines:
                lines.append(client.next_request())
    except PactError:
        assert max(map(len, whole.split(b"\n"))) > REQUEST_MAX
        assert len(client._input) <= REQUEST_MAX + READ_CHUNK
    else:
        assert lines == [ln for ln in whole.split(b"\n")[:-1] if ln.strip()]
        assert max(len(ln) for ln in [b"", *whole.split(b"\n")] if ln.strip() or not ln) <= REQUEST_MAX
    for line in lines[:50]:
        outcome(lambda ln=line: requests.parse(ln), RequestError)


def socket_seeds() -> Iterator[bytes]:
    line = b'{"v":1,"op":"ping","args":{}}\n'
    yield b"\1" + piece(line)
    yield b"\1" + piece(line[:9]) + piece(line[9:] + line) + piece(b"\n \n" + line[:-1])
    yield b"\xff" + piece(b"x" * 300)


# -- requests -----------------------------------------------------------------------------------------------------------

MACHINE: Final = {
    "sysctl:kernel.k0": {"value": "0"},
    "sysctl:kernel.k1": {"value": "1"},
    "module:zram": {"loaded": True},
    "file:/etc/a": {
        "type": "file",
        "sha256": hashlib.sha256(b"").hexdigest(),
        "size": 0,
        "mode": "0644",
        "owner": "root",
        "group": "root",
    },
}


def _unexpected() -> None:
    raise AssertionError("a request that was read ended in an error that nobody expected")


def _world(clustered: bool) -> World:
    world = World(machine=dict(MACHINE), clustered=clustered)
    world.start({r: Declared(v) for r, v in MACHINE.items()})
    world.write("sysctl:kernel.k1", {"value": "2"}, person("olga").owner)
    return world


class Agent:
    """As much of an agent as requests ask for, around the real core."""

    def __init__(self, world: World) -> None:
        def nothing(*_: Any, **__: Any) -> None:
            return None

        self.world, self.node, self.ignore = world, world.node, Ignore()
        self.config, self.veil = SimpleNamespace(file_limit=1 << 20), Veil(b"k" * 32)
        self.journal = SimpleNamespace(blob=nothing, path="/nonexistent", newest=lambda *_, **__: iter(()))
        self.control = SimpleNamespace(
            refuse=lambda c, why: c.send({"ok": False, "exit": 2, "message": why}),
            drop=nothing,
            note_denied=nothing,
            flush=nothing,
            connected=lambda c: True,
        )
        self.clock = SimpleNamespace(now_ns=lambda: world.t_ns)
        self.worker = self.asking = SimpleNamespace(waiting=0, call=nothing)
        self._token = 0
        self.telling = SimpleNamespace(blobs=nothing)
        self.batch = SimpleNamespace(epilog=nothing, status=dict)
        self.link, self.unrecorded, self.journal_error = None, {}, ""
        self.looking = lambda *_: iter(())
        self.require_journal = self.make_room = self.require_durable = self.expect = nothing

    next_token, fail, answer, answering = Driver.next_token, Driver.fail, Driver.answer, Driver.answering

    def now(self) -> tuple[int, int]:
        return self.world.t_ns, self.world.wall_ns

    def stage(self, blobs: Mapping[str, bytes]) -> None:
        assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())

    def health(self) -> dict[str, str]:
        return {}

    def journal_json(self) -> dict[str, Any]:
        return {"seq": self.node.state.seq, "replicated": 0}

    def ask(self, client: Any, token: int, event: Asked) -> None:
        self.world.feed(lambda: event)
        reply = self.world.replies.pop(event.token, None)
        if reply is not None:
            client.send(orjson.dumps({"exit": reply.exit_code, "message": reply.message, "result": dict(reply.result)}))

    def record_denied(self, op: str, error: Any, caller: Caller) -> None:
        orjson.dumps(error.message)


requests.traceback = driver.traceback = SimpleNamespace(print_exc=_unexpected)  # type: ignore[attr-defined]
telling.tell = lambda agent, client, op, lines: None  # type: ignore[assignment]


def request(data: bytes) -> None:
    """A few requests to a node with drift, by people of every role, or by the root: each is answered, what is recorded
    can be replayed."""
    feed = Feed(data)
    root = bool(feed.number() & 1)
    agent = Agent(_world(root))
    handling = Requests(agent)  # type: ignore[arg-type]
    handling.long_answers.add = lambda c, t, steps: None  # type: ignore[method-assign]
    for _ in range(4):
        if not feed:
            break
        caller = feed.pick(PEOPLE)
        client = Client(Pipe([]), caller)  # type: ignore[arg-type]
        client.remote = root
        handling.line(client, feed.piece())
        assert client._queued <= OUTPUT_MAX
        for line in client._output:
            orjson.loads(line)
    agent.world.check()


SAMPLES: Final[Mapping[str, Any]] = {
    "targets": ["sysctl:kernel.k1"],
    "all": True,
    "message": "m",
    "ttl_ns": 10**12,
    "force": True,
    "shared": True,
    "seq": 1,
    "without_content": False,
    "dry_run": True,
    "to_seq": None,
    "trials": "keep",
    "change": "c1",
    "by_ns": 10**10,
    "blobs": {},
    "resources": {"sysctl:kernel.k0": {"attrs": {"value": "3"}}},
    "prune": False,
    "take": True,
    "track": {"file:/e/**": "report"},
    "reason": "r",
    "for_ns": 10**12,
    "how": "rollback",
    "name": "h1",
    "count": 3,
    "since": "",
    "type": "",
    "follow": False,
    "resource": "sysctl:kernel.k1",
    "fence": 1,
    "group": "g1",
    "left_ns": 10**11,
    "action": "commit",
    "ballot": 1,
    "automatic": False,
    "decision": "commit",
    "why": "w",
    "holds": [{"hold": "h1", "owner": "o", "reason": "r", "ends": "2030-01-01T00:00:00Z", "left_ns": 10**10}],
}


def request_lines() -> Iterator[tuple[bool, bytes]]:
    for op, fields in ALL_FIELDS.items():
        args = {k: SAMPLES[k] for k in fields if k in SAMPLES}
        if op in ("adopt", "track"):
            args = {"patterns": ["sysctl:kernel.*"] if op == "adopt" else {"file:/e/**": "report"}}
        yield op in ROOT_FIELDS, orjson.dumps({"v": 1, "op": op, "args": args})


def request_seeds() -> Iterator[bytes]:
    lines = list(request_lines())
    for root, line in lines:
        yield from (bytes((root, role)) + piece(line) for role in range(3))
    for op in ("commit", "rollback", "emergency_start", "hold_place", "extend", "redo"):
        (line,) = (ln for _, ln in lines if f'"op":"{op}"'.encode() in ln)
        yield b"\0\2" + piece(line) + b"\2" + piece(line.replace(b'"dry_run":true', b'"dry_run":false'))
    for text in nasty.REFUSED.values():
        if len(text) < 500:
            yield b"\0\0" + piece(
                b'{"op":"commit","args":{"message":%b}}' % text.replace(b"%", b"%%") if b"%" not in text else text
            )
    joined = [ln for root, ln in lines if root]
    yield b"\1\2" + b"\2".join(piece(ln) for ln in joined[1:5])


# -- the public side -----------------------------------------------------------------------------------------------------


def subscriptions(data: bytes) -> None:
    """What is counted is what there is, whoever sends what, and who takes more than a share is cut off."""
    feed = Feed(data)
    inodes = {fd: fd + 10 for fd in range(6)}
    cut: list[int] = []
    subs = Subscriptions(lambda fd, user, why: cut.append(fd), inodes.get)  # type: ignore[arg-type]
    kept: dict[int, set[bytes]] = {fd: set() for fd in inodes}
    while feed:
        what, fd = feed.number() % 16, feed.number() % 6
        if what == 0:
            subs.sweep()
        elif what == 1:
            inodes[fd] = inodes[fd] + 6 if inodes[fd] else 10
            kept[fd] = set()
            subs.sweep()
        elif what == 2:
            subs.clear()
            kept, cut = {f: set() for f in inodes}, []
            inodes = {f: i + 100 for f, i in inodes.items()}
            subs._inode = inodes.get  # type: ignore[assignment]
        else:
            frame = feed.piece() * (200 if what == 3 else 1)
            for i in range(900 if what == 4 else 1):
                one = frame + (b"%d" % i if what == 4 else b"")
                if not any(c.cut for (f, _), c in subs._connections.items() if f == fd):
                    (kept[fd].add if one[:1] == b"\1" else kept[fd].discard if one[:1] == b"\0" else len)(one[1:])  # type: ignore[operator]
                subs.heard(fd, "k" if fd < 3 else "", one)
    subs.sweep()
    assert subs.topics == sum(len(c.topics) for c in subs._connections.values()) >= 0
    assert all(c.bytes == sum(len(t) + 1 for t in c.topics) for c in subs._connections.values())
    assert all(c.cut or len(c.topics) <= TOPICS_MAX for c in subs._connections.values())
    assert all(n >= 0 for n in subs._by_key.values()) and subs._by_key["k"] <= TOPICS_KEY_BYTES_MAX + (1 << 20)
    assert subs.topics == sum(map(len, kept.values()))


def subscription_seeds() -> Iterator[bytes]:
    yield b"".join(bytes((9, i % 6)) + piece(b"\1topic%d" % i) for i in range(20))
    yield (
        bytes((9, 1))
        + piece(b"\1a")
        + bytes((9, 1))
        + piece(b"\0a")
        + bytes((9, 1))
        + piece(b"\0a")
        + b"\0\0\1\1"
        + bytes((2, 1))
    )
    yield bytes((3, 0)) + piece(b"\1" + b"x" * 2000) + bytes((4, 0)) * 3 + piece(b"\1")


WAYS: Final = ("/", "/metrics", "/health", "/events/live", "/node?name=n1", "/page.js", "/page.css")


def http(data: bytes) -> None:
    """A request in pieces; whatever it is, the answer is HTTP, once the request is whole or too long."""
    feed = Feed(data)
    server = Http.__new__(Http)
    server.requests, server._cached, server._cached_s = 0, None, 0.0
    server._snapshot = lambda: {
        "healthy": False,
        "trouble": data[:40].decode("latin-1"),
        "fleet": {"racks": {"n1": "r1"}},
    }
    server.live, server._pages, server._by_address = Live(), {}, Counter()
    server.dropped = server.full = server.messages = server.pages = 0
    server._turned_s, server._news = -1e9, False
    server._names, server._domains = frozenset({"a"}), frozenset({"example.org"})
    client = _Client(None, "", 0.0)  # type: ignore[arg-type]
    while feed and client.answer is None:
        client.asked += feed.piece()
        server._understood(client)
    if client.answer is not None:
        head, _, body = bytes(client.answer).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ")
        assert client.page <= (b"text/event-stream" in head)
        if b"text/event-stream" in head:
            return
        assert b"\r\nContent-Length: " in head
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        assert len(body) in (length, 0), (length, len(body))


def http_seeds() -> Iterator[bytes]:
    for way in (*WAYS, "/x", "/health?a=b"):
        yield piece(f"GET {way} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    for host in (
        "evil.test",
        "n1.example.org:7420",
        "[::1]:7420",
        "127.0.0.1",
        "a\r\nHost: b",
        "a.localhost.",
        "x" * 300,
    ):
        yield piece(f"GET /node?name=n1 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    yield piece(b"HEAD / HTTP/1.0\n\n")
    yield piece(b'GET /page.js HTTP/1.1\r\nIf-None-Match: "a"\r\n\r\n')
    yield piece(b"POST / HTTP/1.1\r\n") + piece(b"\r\n")
    yield piece(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 400) * 5


OPS: Final = [f'"op":"{op}","args":{{'.encode() for op in ALL_FIELDS]
KEYS: Final = [f'"{k}":'.encode() for k in sorted({k for f in ALL_FIELDS.values() for k in f})]
TARGETS: Final = {
    t.name: t
    for t in (
        Target("socket", socket, socket_seeds, [b"\n", b'{"op":"']),
        Target(
            "request",
            request,
            request_seeds,
            [*OPS, *KEYS, b'"sysctl:kernel.k1"', b'"c1"', b'"attrs":', b'"requires":'],
        ),
        Target("subscriptions", subscriptions, subscription_seeds, []),
        Target("http", http, http_seeds, [b"GET ", b" HTTP/1.1\r\n", b"\r\n\r\n", b"/metrics", b"/health"], 9000),
    )
}
