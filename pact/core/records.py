"""Journal records: what is hashed, in which bytes, and how a chain is verified. ``specs/formats.md`` describes the same
for readers outside pact.

The canonical bytes of a record are its JSON object without ``hash``, keys sorted, no white space, UTF-8, integers only.
``hash`` is SHA-256 over the 32 raw bytes of the previous hash followed by those bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from datetime import date
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson

from pact._fast import has_float
from pact.core import strict
from pact.errors import ChainError
from pact.model import NS_PER_S, Json, JsonRead
from pact.values import dataclass

if TYPE_CHECKING:
    from pact.core.payload import Payload

T = TypeVar("T")

VERSION: Final = 1
GENESIS: Final = "0" * 64

#: Every record type that this version writes or understands. The contract does not have ``converged``,
#: ``converge_started``, ``change_split``, ``tracked``, ``loss_accepted``, ``exec_begun`` and (in the root's log)
#: ``node_forgotten`` and ``group_forced``.
TYPES: Final = frozenset(
    {
        "agent_started",
        "agent_stopped",
        "declared",
        "adopted",
        "applied",
        "drift_detected",
        "drift_cleared",
        "window_opened",
        "window_extended",
        "committed",
        "commit_expired",
        "rollback_started",
        "rolled_back",
        "rollback_blocked",
        "rollback_failed",
        "emergency_started",
        "emergency_stale",
        "emergency_ended",
        "hold_placed",
        "hold_released",
        "observer_blind",
        "observer_restored",
        "denied",
        "session_opened",
        "session_closed",
        "exec_begun",
        "executed",
        "converged",
        "change_split",
        "converge_started",
        "node_forgotten",
        "window_closing",
        "tracked",
        "untracked_seen",
        "untracked_gone",
        "group_begun",
        "group_prepared",
        "group_decided",
        "group_finished",
        "group_forced",
        "loss_accepted",
    }
)

#: The most resources in one record, so that no record exceeds the limit of a journal or of memory.
PIECE_MAX: Final = 500

#: The JSON type of each field of a record.
_TYPED: Final = {
    "seq": int,
    "prev": str,
    "hash": str,
    "time": str,
    "t_ns": int,
    "node": str,
    "type": str,
    "actor": dict,
    "data": dict,
}
_KINDS: Final = tuple(_TYPED.values())
_FIELDS_OF: Final = attrgetter(*_TYPED)
#: A field of ``data``: because of it the record's hash does not betray what was left out of the record for viewers.
SALT: Final = "salt"
#: The bytes of a record that holds something which viewers may not see contain one of these marks, or such a command.
_MARKS: Final = (
    b'"sha256":',
    b'"secret":',
    b'"size":',
    b'"options":',
    b'"source":',
    b'"parameters":',
    b'"xattrs":{"',
    b'"closed":["',
    b'"holders":[{',
    b'"type":"symlink"',
)
_COMMAND: Final = re.compile(rb'"command":"(?:[^"\\]|\\.)*?[ /]')

_FIRST_DAY: Final = date(1970, 1, 1).toordinal()
FIELDS: Final = frozenset({"v", "seq", "prev", "hash", "time", "t_ns", "node", "type", "actor", "data"})


@dataclass(frozen=True, slots=True)
class Record:
    """One journal record. ``time`` is the wall clock for people; ``t_ns`` is node time, which decisions use."""

    seq: int
    prev: str
    hash: str
    time: str
    t_ns: int
    node: str
    type: str
    actor: JsonRead
    data: JsonRead
    payload: Payload | None = field(default=None, compare=False, repr=False)  # its contents, if they are known already

    def to_json(self) -> Json:
        return {**unhashed(self), "hash": self.hash}


def unhashed(record: Record) -> Json:
    """The hashed part of a record as a JSON object."""
    return {
        "v": VERSION,
        "seq": record.seq,
        "prev": record.prev,
        "time": record.time,
        "t_ns": record.t_ns,
        "node": record.node,
        "type": record.type,
        "actor": record.actor,
        "data": record.data,
    }


def canonical(value: Any) -> bytes:
    """Canonical JSON bytes: sorted keys, no white space, UTF-8. Raises TypeError on a float (none may be hashed)."""
    assert not has_float(value), "a float in a hashed record"
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest(prev: str, body: bytes) -> str:
    """Hex SHA-256 over the previous hash (32 raw bytes) and the canonical bytes."""
    return hashlib.sha256(bytes.fromhex(prev) + body).hexdigest()


def not_for_all(body: bytes) -> bool:
    """Whether a record with these canonical bytes may hold something that viewers may not see; if False, it surely does
    not."""
    return any(mark in body for mark in _MARKS) or _COMMAND.search(body) is not None


def seal(
    seq: int,
    prev: str,
    time: str,
    t_ns: int,
    node: str,
    type_: str,
    actor: JsonRead,
    data: JsonRead,
    *,
    key: bytes = b"",
    payload: Payload | None = None,
) -> tuple[Record, bytes]:
    """A record with its hash, and its canonical bytes. ``payload``: the object from which ``data`` was made.

    With the ``key`` of a node, a record that holds something which viewers may not see gets a salt. Viewers see the
    record's hash; without a secret salt they could use it to check a guess of what was left out.  # S2
    """
    assert type_ in TYPES, type_
    # The other fields can hold none.
    assert not has_float(data) and not has_float(actor), "a float in a hashed record"
    whole = {
        "v": VERSION,
        "seq": seq,
        "prev": prev,
        "time": time,
        "t_ns": t_ns,
        "node": node,
        "type": type_,
        "actor": actor,
        "data": data,
    }
    body = orjson.dumps(whole, option=orjson.OPT_SORT_KEYS)
    if key and not_for_all(body):
        salt = hashlib.blake2b(f"{seq} {prev}".encode(), digest_size=16, key=key, person=b"pact salt")
        data = whole["data"] = {**data, SALT: salt.hexdigest()}
        body = orjson.dumps(whole, option=orjson.OPT_SORT_KEYS)
    return Record(seq, prev, digest(prev, body), time, t_ns, node, type_, actor, data, payload), body


def parse(raw: bytes | str, hash_: str | None = None) -> Record:
    """A record from its JSON. ``hash_`` is given if it is stored beside the body. Raises ValueError."""
    obj = strict.own(raw)
    if not isinstance(obj, dict) or obj.get("v") != VERSION:
        raise ValueError(f"not a version {VERSION} record")
    unknown = sorted(obj.keys() - FIELDS)
    if unknown:  # it would not be among the verified bytes
        raise ValueError(f"record with an unknown field {unknown[0]!r}")
    try:
        record = Record(
            obj["seq"],
            obj["prev"],
            hash_ if hash_ is not None else obj["hash"],
            obj["time"],
            obj["t_ns"],
            obj["node"],
            obj["type"],
            obj["actor"],
            obj["data"],
        )
    except KeyError as exc:
        raise ValueError(f"record without {exc.args[0]}") from None
    if tuple(map(type, _FIELDS_OF(record))) != _KINDS:
        wrong = next(n for n, kind in _TYPED.items() if type(getattr(record, n)) is not kind)
        raise ValueError(f"record whose {wrong} has the wrong type")
    return record


def verify(records: Iterable[Record], *, seq: int = 0, prev: str = GENESIS) -> Iterator[Record]:
    """Yield the records, checking number, link and hash of each. Raises ChainError at the first that is wrong."""
    for record in records:
        if record.seq != seq:
            raise ChainError(seq, f"found number {record.seq} in its place")
        if record.prev != prev:
            raise ChainError(seq, "does not link to the record before it")
        body = unhashed(record)
        if has_float(body) or digest(prev, orjson.dumps(body, option=orjson.OPT_SORT_KEYS)) != record.hash:
            raise ChainError(seq, "its content does not match its hash")
        yield record
        seq, prev = seq + 1, record.hash


def in_pieces(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The items in pieces, in order; each piece fits one record."""
    for at in range(0, len(items), PIECE_MAX):
        yield items[at : at + PIECE_MAX]


def in_parts(items: Sequence[T]) -> Iterator[tuple[Sequence[T], Sequence[int]]]:
    """The items of one decision in pieces, each with its number and how many there are, for records that say so;
    without them if one record is enough."""
    pieces = list(in_pieces(items)) or [()]
    for at, piece in enumerate(pieces):
        yield piece, [at + 1, len(pieces)] if len(pieces) > 1 else ()


def is_later(part: Sequence[int]) -> bool:
    """Whether a record with this ``part`` goes on with a decision that an earlier record has begun."""
    return bool(part) and part[0] > 1


def is_last(part: Sequence[int]) -> bool:
    """Whether no record of the same decision follows a record with this ``part``."""
    return not part or part[0] == part[1]


def rfc3339(wall_ns: int) -> str:
    """RFC 3339 in UTC with microseconds."""
    whole, rest = divmod(wall_ns, NS_PER_S)
    days, second = divmod(whole, 86_400)
    hour, second = divmod(second, 3600)
    return f"{_day(days)}T{hour:02d}:{second // 60:02d}:{second % 60:02d}.{rest // 1000:06d}Z"


@lru_cache(maxsize=64)
def _day(days: int) -> str:
    """The date so many days after 1970 began. Most records have the date of the one before."""
    return date.fromordinal(_FIRST_DAY + days).isoformat()
