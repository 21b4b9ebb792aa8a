"""Chunks: the bytes of which the root's log consists. ``specs/cluster.md`` describes the same format.  # K1"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from pact.core import strict
from pact.core.root import shapes

VERSION: Final = 1
INCARNATION_CHARS: Final = 16
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of one node: ``lines`` are JSON objects without newlines, ``first`` is the first record's
    number."""

    node: str
    rack: str
    incarnation: str
    first: int
    lines: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Chunk:
    """``types`` and ``links`` (number and hash of each record) are in the order of the lines."""

    first: int
    count: int
    fence: int
    wall_ns: int
    prev: str
    prevs: Mapping[str, int]
    batches: Sequence[Batch]


def build_chunk(
    first: int, fence: int, wall_ns: int, prev: str, prevs: Mapping[str, int], batches: Sequence[Batch]
) -> bytes:
    """The bytes of a chunk. ``prevs``: for each type in it, the last global number of that type before it (-1:
    none)."""
    rows, parts, count = [], [], 0
    for b in batches:
        body = b"\n".join(b.lines)
        rows.append([b.node, b.rack, b.incarnation, b.first, len(b.lines), len(body)])
        parts.append(body)
        count += len(b.lines)
    head = orjson.dumps(
        {
            "v": VERSION,
            "first": first,
            "count": count,
            "fence": fence,
            "wall_ns": wall_ns,
            "prev": prev,
            "prevs": dict(prevs),
            "batches": rows,
        }
    )
    return b"".join([_LENGTH.pack(len(head)), head, *parts])


def read_chunk(raw: bytes) -> Chunk:
    """Raises ValueError for bytes that are not a chunk. A store returns no bytes for a chunk that is damaged there."""
    if not raw:
        raise ValueError("the chunk is damaged")
    try:
        (length,) = _LENGTH.unpack_from(raw)
        head = strict.loads_object(raw[4 : 4 + length], strict.LINE_MAX)
    except (struct.error, strict.NotStrictError) as exc:
        raise ValueError(f"not a chunk: {exc!r}") from None
    if not shapes.CHUNK(head) or head["v"] != VERSION:
        raise ValueError("not a chunk: its head is none")
    at, batches = 4 + length, []
    for node, rack, incarnation, first, count, size in head["batches"]:
        lines = raw[at : at + size].split(b"\n")
        if len(lines) != count:
            raise ValueError(f"a batch of {node} with {len(lines)} lines in place of {count}")
        batches.append(Batch(node, rack, incarnation, first, lines))
        at += size
    if at != len(raw) or not batches or sum(len(b.lines) for b in batches) != head["count"]:
        raise ValueError("its lengths do not add up")
    return Chunk(head["first"], head["count"], head["fence"], head["wall_ns"], head["prev"], head["prevs"], batches)


def chunk_hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
