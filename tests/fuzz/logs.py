"""Journals that are imported, backups of the root's log, records on their way into it, and what is asked of it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import nasty
import orjson
from public_root import Chain, build

from fuzz.entrances import PEOPLE, Agent, Pipe, _world, request_lines
from fuzz.kit import Feed, Target, outcome, piece
from pact.agent.client import Client
from pact.agent.requests import Requests
from pact.core.node import fold
from pact.core.node.state import State
from pact.core.records import GENESIS, digest
from pact.core.root import chunks as chunks_
from pact.core.root import log, payloads, public
from pact.core.root.chunks import Batch
from pact.core.root.log import RootState, Writer
from pact.errors import ChainError, PactError, RequestError
from pact.journal.moving import import_lines
from pact.journal.rootlog_moving import read_backup
from pact.model import Owner

# -- journals ------------------------------------------------------------------------------------------------------------


class Journal:
    """Empty, and takes what the real one takes: a row each, whose columns SQLite can hold."""

    path, seq, hash = "/nonexistent", -1, GENESIS

    def append(self, rows: Any, blobs: Mapping[str, bytes]) -> None:
        seq, prev, state = self.seq, self.hash, State()
        for record, body in rows:
            fold.apply(state, record)
            assert record.seq == seq + 1 and record.prev == prev
            for value in (record.type, record.time, record.hash, record.node):
                assert isinstance(value, str), value
                value.encode()
            assert type(record.t_ns) is int and orjson.loads(body)
            seq, prev = record.seq, record.hash
        if rows:
            orjson.dumps(state.to_json())
        for name, data in blobs.items():
            assert hashlib.sha256(data).hexdigest() == name


def _sealed(lines: list[bytes]) -> list[bytes]:
    """Lines that are objects, with number, link and hash as they must be, and the mark at the end."""
    out, seq, prev, blobs = list[bytes](), 0, GENESIS, list[str]()
    for line in lines:
        try:
            value = orjson.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict) or "end" in value:
            out.append(line)
            continue
        if "blob" in value:
            raw = str(value.get("data")).encode("utf-8", "replace")
            blobs.append(hashlib.sha256(raw).hexdigest())
            out.append(orjson.dumps({"blob": blobs[-1], "data": base64.b64encode(raw).decode()}))
            continue
        value = {
            "v": 1,
            "time": "2026-01-01T00:00:00.000000Z",
            "t_ns": 1,
            "node": "n1",
            "type": "committed",
            "actor": {},
            "data": {},
            **value,
            "seq": seq,
            "prev": prev,
        }
        value.pop("hash", None)
        body = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        seq, prev = seq + 1, digest(prev, body)
        out.append(orjson.dumps({**value, "hash": prev}))
    names = hashlib.sha256(b"".join(b.encode() + b"\n" for b in blobs)).hexdigest()
    return [*out, orjson.dumps({"end": {"records": seq, "hash": prev, "blobs": len(blobs), "digests": names}})]


def import_(data: bytes) -> None:
    feed = Feed(data)
    sealed, marked = feed.number() & 1, bool(feed.number() & 1)
    lines = feed.rest().split(b"\n")
    outcome(lambda: import_lines(Journal(), iter(_sealed(lines) if sealed else lines), marked=marked), PactError)  # type: ignore[arg-type]


def _lived() -> list[bytes]:
    """The journal of a node to which everything was asked."""
    agent = Agent(_world(True))
    handling = Requests(agent)  # type: ignore[arg-type]
    for root, line in request_lines():
        client = Client(Pipe([]), PEOPLE[2])  # type: ignore[arg-type]
        client.remote = root
        for form in (line, line.replace(b'"dry_run":true', b'"dry_run":false')):
            handling.line(client, form)
        agent.world.advance(10**9)
    agent.world.advance(10**12)
    return [orjson.dumps(r.to_json()) for r in agent.world.journal]


def import_seeds() -> Iterator[bytes]:
    lived = _lived()
    for at in range(len(lived)):
        yield b"\1\1" + b"\n".join([lived[0], *lived[max(1, at - 2) : at + 1]])
    yield b"\1\1" + b"\n".join(lived)
    chain = Chain("n1")
    lines = [*chain.batch("agent_started", "declared", "committed").lines]
    for head in (b"\0\0", b"\0\1", b"\1\1"):
        yield head + b"\n".join(lines)
        yield head + b"\n".join([*lines, b'{"blob":"x","data":"eA=="}', b'{"end":{"records":3}}'])
        yield head + b'{"end":null}'
        yield head + b'{"data":{"a":1.5},"type":"x"}\n{"t_ns":"x"}\n{"node":5,"time":[]}'
        yield from (head + b'{"data":' + t + b"}" for t in nasty.REFUSED.values() if len(t) < 300)
    yield b"\0\1" + b"\n".join(_sealed(lines))


def backup(data: bytes) -> None:
    """A backup of the root's log, as lines or made from parts, with chunks that link as they must."""
    feed = Feed(data)
    if not feed.number() & 1:
        outcome(lambda: read_backup(feed.rest().split(b"\n")), PactError)
        return
    snapshot = feed.piece() if feed.number() & 1 else None
    chunks, prev = list[bytes](), GENESIS
    while feed and len(chunks) < 4:
        head, body = feed.piece(), feed.piece()
        try:
            value = orjson.loads(head)
        except ValueError:
            value = None
        if isinstance(value, dict) and "prev" in value:
            head = orjson.dumps({**value, "prev": prev})
        chunks.append(len(head).to_bytes(4, "little") + head + body)
        prev = chunks_.chunk_hash(chunks[-1])
    lines = [b'{"root":{"v":1,"cluster":"c"}}']
    if snapshot is not None:
        lines.append(orjson.dumps({"snapshot": base64.b64encode(snapshot).decode()}))
    lines += [orjson.dumps({"chunk": base64.b64encode(c).decode()}) for c in chunks]
    last = chunks_.chunk_hash(chunks[-1]) if chunks else GENESIS
    state = outcome(lambda: log.load(snapshot, chunks), ValueError, ChainError)
    gseq = state.gseq if isinstance(state, RootState) else -1
    lines.append(
        orjson.dumps(
            {
                "end": {
                    "chunks": len(chunks),
                    "gseq": gseq if isinstance(gseq, int) else -1,
                    "hash": last,
                    "snapshot": None if snapshot is None else hashlib.sha256(snapshot).hexdigest(),
                }
            }
        )
    )
    found = outcome(lambda: read_backup(lines), PactError)
    if not isinstance(found, type):
        for chunk in chunks[: 0 if snapshot else None]:
            list(public.events(chunk, "c"))
        RootState.from_bytes(found.state.to_bytes())


def _log() -> tuple[RootState, list[bytes]]:
    state, chunks = RootState(), list[bytes]()
    one, two = Chain("n1"), Chain("n2")
    for types in (("agent_started", "declared"), ("committed",), ("drift_detected", "drift_cleared", "committed")):
        chunks.append(build(state, [one.batch(*types), two.batch("committed")])[2])
    return state, chunks


STATE, CHUNKS = _log()


def _own_chunk() -> bytes:
    """What a root records of itself."""
    writer, caller = Writer(RootState(), 1, "root"), {"user": "u", "uid": None, "role": "admin", "via": "cluster"}
    for at, said in enumerate(
        (
            payloads.AgentStarted("b", 0),
            payloads.GroupBegun("g1", Owner("cluster:u", "u"), "m", "n1", ["a:b"], 5, require_all=False),
            payloads.HoldPlaced("h1", payloads.Person("u"), "r", 9, ""),
            payloads.WindowExtended("g1", 1, reopened=False),
            payloads.GroupDecided("g1", "commit", 1, "", payloads.Terms("m", 9, force=True)),
            payloads.GroupFinished("g1", "done"),
            payloads.HoldReleased("h1"),
            payloads.NodeForgotten(["n2"]),
        )
    ):
        writer.record(said, caller, at, at)
    return writer.chunk(8)[2]


def _split(chunk: bytes) -> bytes:
    size = int.from_bytes(chunk[:4], "little")
    return piece(chunk[4 : 4 + size]) + piece(chunk[4 + size :])


def backup_seeds() -> Iterator[bytes]:
    lines = [
        b'{"root":{"v":1,"cluster":"c"}}',
        *(orjson.dumps({"chunk": base64.b64encode(c).decode()}) for c in CHUNKS[:1]),
    ]
    yield b"\0" + b"\n".join(lines)
    yield b"\1\0" + b"".join(map(_split, CHUNKS[:2]))
    yield b"\1\0" + _split(_own_chunk())
    yield b"\1\1" + piece(STATE.to_bytes())
    yield b"\1\1" + piece(RootState().to_bytes()) + _split(CHUNKS[0])
    yield b"\1\1" + piece(b"[]")


# -- records on their way to the root ------------------------------------------------------------------------------------


def record(data: bytes) -> None:
    """Batches of two nodes. What the root takes it can write, read again, and publish."""
    feed = Feed(data)
    state = RootState()
    chains = {"n1": Chain("n1"), "n2": Chain("n2")}
    for _ in range(3):
        writer = Writer(state, 1, "root")
        while feed and not writer.size > 4000 and feed.number() % 8:
            name = feed.pick(("n1", "n2"))
            chain, raw = chains[name], feed.number() & 1
            lines = feed.piece().split(b"\n") if raw else _chained(chain, feed.piece().split(b"\n"))
            first = chain.seq + 1 - (0 if raw else len(lines))
            batch = Batch(
                name, "r", feed.piece().decode("latin-1") if raw & feed.number() else chain.incarnation, first, lines
            )
            outcome(lambda b=batch, w=writer: w.take(b), ValueError)
        if not writer:
            continue
        first, count, raw_chunk = writer.chunk(1)
        before = state.to_bytes()
        chunk = state.apply_written(writer)
        again = RootState.from_bytes(before)
        again.apply(raw_chunk)
        assert again.to_bytes() == state.to_bytes()
        assert chunk.count == count == len(list(public.events(raw_chunk, "c")))
        for event in public.events(raw_chunk, "c"):
            assert event.frames[0].isascii() and all(map(orjson.loads, event.frames[1:]))


def _chained(chain: Chain, lines: list[bytes]) -> list[bytes]:
    out = []
    for line in lines:
        try:
            value = orjson.loads(line)
        except ValueError:
            value = {}
        given = {
            "type": "committed",
            "actor": {},
            "data": {},
            "time": "t",
            "t_ns": 1,
            "v": 1,
            **(value if isinstance(value, dict) else {}),
        }
        given |= {"seq": chain.seq + 1, "prev": chain.hash, "node": chain.node}
        given["hash"] = hashlib.sha256(orjson.dumps(given)).hexdigest()
        chain.seq, chain.hash = chain.seq + 1, given["hash"]
        chain.incarnation = chain.incarnation or given["hash"][:16]
        out.append(orjson.dumps(given))
    return out


def record_seeds() -> Iterator[bytes]:
    chain = Chain("n1")
    real = b"\n".join(chain.batch("agent_started", "committed").lines)
    yield b"\1\0\1" + piece(real) + piece(chain.incarnation.encode()) + b"\1"
    yield b"\1\0\0" + piece(b"{}\n{}") + b"\0\1\1\0" + piece(b'{"type":"x_y","data":{"a":[1,2.5]}}')
    yield from (b"\1\1\0" + piece(b'{"data":{"x":%b}}' % t) for t in nasty.FINE.values() if len(t) < 600)
    yield from (b"\1\1\1" + piece(b'{"seq":0,"data":' + t + b"}") for t in nasty.REFUSED.values() if len(t) < 600)


# -- the public side -----------------------------------------------------------------------------------------------------


def replay(data: bytes) -> None:
    """One request as frames. What answers it are three frames an event, numbers without a gap, and one control message."""
    feed = Feed(data)
    frames = []
    while feed:
        frames.append(feed.piece())
    try:
        ask = public.request(tuple(frames))
    except RequestError as exc:
        public.control(True, "ERROR", exc.message)
        return
    if isinstance(ask, public.Get):
        page = list(public.page(ask, iter(CHUNKS), "c", STATE.gseq))
        assert page and all(at >= ask.start for at, _ in page)
        numbers = [orjson.loads(f[1])["gseq"] for _, f in page if len(f) == 3 and f[0].startswith(b"pact.v1.")]
        assert numbers == sorted(set(numbers)) and all(n >= ask.start for n in numbers)
        if ask.as_json:
            assert orjson.loads(page[-1][1][0])[0] in ("UPTO", "TRUNCATED")


def replay_seeds() -> Iterator[bytes]:
    for frames in (
        (b"GET", b"*", b"0"),
        (b"GET", b"committed", b"3"),
        (b"SNAPSHOT",),
        (b'["GET","*",2]',),
        (b'["SNAPSHOT"]',),
        (b'["GET","*","4611686018427387904"]',),
        (b"GET", b"*", b"\xd9\xa1"),
        (b'["GET","*",true]',),
    ):
        yield b"".join(map(piece, frames))
    yield from (piece(b'["GET",%b,0]' % t) for t in nasty.FINE.values() if len(t) < 400)


TYPES: Final = [f'"type":"{t}"'.encode() for t in ("group_begun", "group_decided", "hold_placed", "window_extended")]
TARGETS: Final = {
    t.name: t
    for t in (
        Target("import", import_, import_seeds, [b'{"blob":', b'{"end":', b'"data":', b'"t_ns":', b'"v":1'], 16384),
        Target("backup", backup, backup_seeds, [b'"batches":', b'"prevs":', b'"first":', *TYPES], 8192),
        Target("record", record, record_seeds, [b'"type":', b'"data":', b'"actor":', b'"time":', b'"v":']),
        Target("replay", replay, replay_seeds, [b"GET", b"SNAPSHOT", b'["GET","', b"*"], 1200),
    )
}
