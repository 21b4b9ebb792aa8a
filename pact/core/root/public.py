"""The public view of the root's log: events in three frames, heads, and the answers of the replay port. Pure.

A subscriber can prove that it missed nothing: numbers have no gaps, every header names the previous event of its type,
and heads name the newest events.  # V1
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from pact.core import strict
from pact.core.records import rfc3339
from pact.core.root.chunks import Chunk, read_chunk
from pact.core.root.log import ROOT, RootState
from pact.errors import RequestError
from pact.limits import REPLAY_REQUEST_MAX
from pact.model import Json, JsonRead

VERSION: Final = 1
PREFIX: Final = "pact.v1."
HEADS: Final = "heads"
UNREADABLE: Final = "unreadable"  # the type of what cannot be read any more
ANY: Final = "*"
PLAIN: Final = re.compile(r"[A-Za-z0-9_-]*\Z")
TYPE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
NUMBER_MAX: Final = 1 << 62
PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 1 << 20
SCAN_BYTES: Final = 16 << 20
#: Fields of a record that mean nothing outside pact, or that a viewer cannot check.
INTERNAL: Final = frozenset({"v", "t_ns", "prev"})

Frames = Sequence[bytes]


def part(name: str) -> str:
    """A name as one part of a topic: characters that are not plain, such as dots, are percent-encoded byte by
    byte.  # V3"""
    if PLAIN.match(name):
        return name
    return "".join(chr(b) if PLAIN.match(chr(b)) else f"%{b:02X}" for b in name.encode("utf-8", "surrogatepass"))


def topic(type_: str, cluster: str, rack: str, node: str) -> bytes:
    """``pact.v1.<type>.<cluster>.<rack>.<node>.``: no topic is a prefix of another node's topic.  # V3"""
    return f"{PREFIX}{part(type_)}.{part(cluster)}.{part(rack)}.{part(node)}.".encode()


@dataclass(frozen=True, slots=True)
class Public:
    """One event. ``frames`` are topic, header and body."""

    gseq: int
    type: str
    frames: Frames


def events(raw: bytes, cluster: str, chunk: Chunk | None = None) -> Iterator[Public]:
    """The events of a chunk in the order of their global numbers; ``chunk``: what its bytes say, if they were read
    already.  # V1"""
    chunk = chunk or read_chunk(raw)
    gseq, last = chunk.first, dict(chunk.prevs)
    for batch in chunk.batches:
        for at, line in enumerate(batch.lines):
            record = _record(line, batch.first + at, chunk.wall_ns)
            type_ = record["type"]
            header = {
                "v": VERSION,
                "type": type_,
                "cluster": cluster,
                "rack": batch.rack,
                "node": batch.node,
                "incarnation": batch.incarnation,
                "seq": record["seq"],
                "gseq": gseq,
                "prev": last.get(type_, -1),
                "time": record["time"],
            }
            yield Public(
                gseq,
                type_,
                (topic(type_, cluster, batch.rack, batch.node), orjson.dumps(header), _body(record, len(line))),
            )
            last[type_] = gseq
            gseq += 1


def _record(line: bytes, seq: int, wall_ns: int) -> JsonRead:
    """The record in a line of a chunk. A line that was damaged keeps its place and its number.  # F37"""
    try:
        record: Json = strict.own(line)
        if type(record["type"]) is type(record["time"]) is str and record["seq"] == seq:
            return record
    except (ValueError, KeyError, TypeError):
        pass
    return {"type": UNREADABLE, "seq": seq, "time": rfc3339(wall_ns), "actor": {}, "data": {"omitted": len(line)}}


def _body(record: JsonRead, size: int) -> bytes:
    """A record as it is published. A record that cannot be written as JSON again (an older root accepted it) keeps its
    place, number and hash.  # S5"""
    body = {k: v for k, v in record.items() if k not in INTERNAL}
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        plain = {k: v for k, v in body.items() if isinstance(v, str | int)}
        return orjson.dumps({**plain, "actor": {}, "data": {"omitted": size}})


def snapshot(state: RootState) -> Json:
    """For subscribers that came too late for the events: how far each node is, and the present groups and holds."""
    return {
        "v": 1,
        "gseq": state.gseq,
        "types": dict(state.last),
        "nodes": {n: {"incarnation": c.incarnation, "seq": c.seq} for n, c in state.cursors.items()},
        "groups": {
            g.id: {"state": g.state, "nodes": g.nodes, "decision": g.decision or None} for g in state.groups.values()
        },
        "holds": [h.to_json() for h in state.holds.values()],
    }


class Heads:
    """The newest number in the log, in all and for each type."""

    def __init__(self, gseq: int = -1, types: Mapping[str, int] | None = None, incarnation: str = "") -> None:
        self.gseq = gseq
        self.types = dict(types or {})
        self.incarnation = incarnation

    def saw(self, event: Public) -> None:
        self.gseq = event.gseq
        self.types[event.type] = event.gseq

    def skip(self, last: Mapping[str, int]) -> None:
        """Take in a chunk that is not published: the last number of each type in it."""
        self.types.update(last)
        self.gseq = max(last.values())

    def frames(self, cluster: str, wall_ns: int) -> Frames:
        """A message that is no event: ``gseq`` is the newest event's number. Another ``incarnation`` is another log,
        numbered anew.  # V1"""
        header = {
            "v": VERSION,
            "type": HEADS,
            "cluster": cluster,
            "rack": "",
            "node": ROOT,
            "incarnation": self.incarnation,
            "seq": -1,
            "gseq": self.gseq,
            "prev": -1,
            "time": rfc3339(wall_ns),
        }
        body = {"gseq": self.gseq, "types": self.types}
        return topic(HEADS, cluster, "", ROOT), orjson.dumps(header), orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


# -- the replay port ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Get:
    """Events of one type, or of all, from a number on. ``as_json``: control answers are written as JSON."""

    type: str
    start: int
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """A malformed request, and why it is malformed."""

    why: str
    as_json: bool = False


def request(frames: Frames) -> Get | Snapshot:
    """``GET``, type, number as three frames, or as one JSON array; ``SNAPSHOT``. Raises RequestError.  # V4"""
    if not frames or sum(map(len, frames)) > REPLAY_REQUEST_MAX:
        raise RequestError(f"a request has at most {REPLAY_REQUEST_MAX} bytes")
    words: object = [f.decode("utf-8", "replace") for f in frames]
    as_json = len(frames) == 1 and frames[0][:1] == b"["
    if as_json:
        try:
            words = strict.loads(frames[0], REPLAY_REQUEST_MAX)
        except strict.NotStrictError:
            raise RequestError("that is no JSON") from None
    match words:
        case ["SNAPSHOT"]:
            return Snapshot(as_json)
        case ["GET", str(type_), int() | str() as number] if not isinstance(number, bool):
            if type_ != ANY and not TYPE.match(type_):
                raise RequestError('the type is "*" or the name of a type')
            start = int(number) if isinstance(number, int) or re.fullmatch(r"[0-9]{1,19}", number) else -1
            if not 0 <= start < NUMBER_MAX:
                raise RequestError("from_gseq is a number from 0 on")
            return Get(type_, start, as_json)
    raise RequestError('write ["GET", type or "*", from_gseq] or ["SNAPSHOT"]')


def control(as_json: bool, *words: str | int | bytes) -> Frames:
    """``UPTO``, ``TRUNCATED``, ``SNAPSHOT`` or ``ERROR``, in the form of the request. Bytes are JSON already."""
    if not as_json:
        return tuple(w if isinstance(w, bytes) else str(w).encode() for w in words)
    return (b"[" + b",".join(w if isinstance(w, bytes) else orjson.dumps(w) for w in words) + b"]",)


def page(ask: Get, chunks: Iterable[bytes], cluster: str, head: int) -> Iterator[tuple[int, Frames]]:
    """The answer to a request: events, then one control message; each with the number from which to go on.  # V2

    A page is bounded, so ``UPTO`` may be below the head; the requester asks again from the number after it. A page
    always advances by at least one event. If the first requested event is gone, ``TRUNCATED`` comes alone; so it is
    with what is damaged in the middle of the log, at which a page ends.  # F37
    """
    at, sent, size, scanned = ask.start, 0, 0, 0
    for raw in chunks:
        scanned += len(raw)
        try:
            chunk = read_chunk(raw)
        except ValueError:
            continue
        if chunk.first > at > ask.start:
            break
        if chunk.first > at:
            yield ask.start, control(ask.as_json, "TRUNCATED", chunk.first)
            return
        if chunk.first + chunk.count <= at:
            continue
        for event in events(raw, cluster, chunk):
            if event.gseq < at:
                continue
            at = event.gseq + 1
            if ask.type not in (ANY, event.type):
                continue
            yield at, event.frames
            sent, size = sent + 1, size + sum(map(len, event.frames))
            if sent >= PAGE_EVENTS or size >= PAGE_BYTES:
                yield at, control(ask.as_json, "UPTO", event.gseq)
                return
        if scanned >= SCAN_BYTES:
            break
    if at > ask.start:
        yield at, control(ask.as_json, "UPTO", at - 1)
    elif at <= head:  # everything up to the head is gone
        yield at, control(ask.as_json, "TRUNCATED", head + 1)
    else:
        yield at, control(ask.as_json, "UPTO", min(head, at - 1))
