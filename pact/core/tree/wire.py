"""The messages of the tree as bytes: one frame for each message, with a table of the fields of each kind.

A frame is ``P1``, the kind (1 byte), the head's length (u32, little endian), the head (a JSON object) and the body
(bytes). Values that do not fit the tables are refused here, once, so that no later code has to check again; fields that
a table does not name are ignored (a newer peer may send more). Bodies are opaque, except that the sizes of their parts
must add up.  # T2
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import orjson

from pact.core import strict
from pact.core.tree.checks import (
    SEAL_CHARS,
    SEALS_MAX,
    Check,
    a_table,
    are_batches,
    are_cursors,
    are_fleet_holds,
    are_names,
    are_names_or_all,
    are_parts,
    is_caller,
    is_flag,
    is_fleet,
    is_incarnation,
    is_name,
    is_number,
    is_proof,
    is_rack,
    is_seal,
    is_seal_row,
    is_seq,
    is_text,
    is_text_or_none,
    rows,
    rows_of_text,
)
from pact.errors import LocalProtocolError, RemoteProtocolError
from pact.limits import FRAME_MAX, HEAD_MAX

VERSION: Final = 1
MAGIC: Final = b"P1"
_HEADER: Final = struct.Struct("<2sBI")

#: The head of a frame, in the form that the table of its kind describes; and one that is being built.
Head = Mapping[str, Any]
NewHead = dict[str, Any]


class Message(NamedTuple):
    """One message. ``head`` holds every field of its kind's table: fields that the peer left out have their
    defaults."""

    kind: str
    head: Head
    body: bytes = b""


_groups: Final = rows(is_text, is_text, is_number)
_seals: Final = rows_of_text(SEALS_MAX)


# -- the tables -----------------------------------------------------------------------------------------------------

#: Marks a field that must be present.
NEEDED: Final = object()


class Kind(NamedTuple):
    """Fields: name -> (check, default or NEEDED). ``sized``: the fields whose rows' last columns divide the body."""

    code: int
    fields: Mapping[str, tuple[Check, Any]]
    body: bool = False
    sized: tuple[str, ...] = ()


#: ``n`` numbers the messages for one request, ``seal`` is the root's seal for the person who asked.
_TO_CLIENT: Final[dict[str, tuple[Check, Any]]] = {
    "client": (is_text, ""),
    "id": (is_number, NEEDED),
    "n": (is_number, 0),
    "seal": (is_seal, ""),
}
KINDS: Final[Mapping[str, Kind]] = {
    # from child to parent
    "hello": Kind(
        1,
        {
            "v": (is_number, NEEDED),
            "role": (is_text, NEEDED),
            "name": (is_name, NEEDED),
            "session": (is_number, NEEDED),
            "version": (is_text, ""),
            "wall_ns": (is_number, 0),
            "rack": (is_rack, ""),
            "incarnation": (is_incarnation, ""),
            "seq": (is_seq, -1),
            "groups": (_groups, ()),
            "below": (are_names, ()),
            "racks": (a_table(is_name, is_rack), {}),
            "sessions": (a_table(is_name, is_number), {}),
            "proof": (is_seal, ""),
            "proofs": (a_table(is_name, is_proof), {}),
        },
    ),
    "beat": Kind(
        2,
        {
            "path": (are_names, ()),
            "fence": (is_number, 0),
            "fleet_seq": (is_number, 0),
            "below": (is_number, 0),
            "ask": (is_flag, False),
            "answer": (is_flag, False),
        },
    ),  # both directions; below: a checksum of names
    "events": Kind(3, {"batches": (are_batches, NEEDED), "seals": (_seals, ())}, True, ("batches",)),
    "below": Kind(
        4,
        {
            "add": (are_names, ()),
            "gone": (are_names, ()),
            "racks": (a_table(is_name, is_rack), {}),
            "sessions": (a_table(is_name, is_number), {}),
            "proofs": (a_table(is_name, is_proof), {}),
        },
    ),
    "ask": Kind(5, {"node": (is_name, NEEDED), "groups": (_groups, NEEDED)}),
    "answer": Kind(
        6,
        {
            "call": (is_text, NEEDED),
            "final": (is_flag, NEEDED),
            "parts": (are_parts, ()),
            "lost": (are_names, ()),
            "batches": (are_batches, ()),
            "seals": (_seals, ()),
            "batch_seals": (_seals, ()),
        },
        True,
        ("parts", "batches"),
    ),  # batches: events that the call caused; seals: of the parts
    "request": Kind(
        7,
        {
            "id": (is_number, NEEDED),
            "op": (is_text, NEEDED),
            "nodes": (is_text_or_none, None),
            "timeout_ms": (is_number, 0),
            "client": (is_text, ""),
            "caller": (is_caller, {"user": "", "role": "", "via": ""}),
            "person": (is_text, ""),
            "challenge": (is_text, ""),
            "seal": (is_seal, ""),
            "direct": (is_flag, False),
        },
        True,
    ),  # direct: set by the relay in the root's own process
    "cancel": Kind(8, {"id": (is_number, NEEDED), "client": (is_text, "")}),
    "goodbye": Kind(9, {}),
    # both directions, see ``streams``: ``call`` on the node's side of the root, ``client`` and ``id`` on the person's
    "frames": Kind(
        10,
        {
            "call": (is_text, ""),
            "client": (is_text, ""),
            "id": (is_number, 0),
            "node": (is_name, NEEDED),
            "n": (is_number, NEEDED),
            "give": (is_number, 0),
            "size": (is_number, 0),
            "bulk": (is_flag, False),
            "end": (is_flag, False),
            "why": (is_text, ""),
        },
        True,
    ),
    "took": Kind(11, {"bytes": (is_number, NEEDED)}),
    # from parent to child
    "welcome": Kind(
        33,
        {
            "v": (is_number, NEEDED),
            "name": (is_name, NEEDED),
            "path": (are_names, NEEDED),
            "fence": (is_number, NEEDED),
            "credit": (is_number, NEEDED),
            "fleet": (is_fleet, None),
            "with_answers": (is_flag, False),  # it takes events together with an answer
            "fresh": (is_flag, False),  # it had no session of the child on this connection
        },
    ),
    "sorry": Kind(
        34,
        {
            "why": (is_text, ""),
            "again": (is_flag, False),
            "retry_ms": (is_number, 0),
            "rootless": (is_flag, False),  # it has no way to a root, perhaps only now
            "denied": (is_flag, False),
        },
    ),  # this key may not be used for this
    "ack": Kind(
        35,
        {
            "cursors": (are_cursors, NEEDED),
            "seals": (_seals, ()),
            "hashes": (_seals, ()),
            "fence": (is_number, 0),
            "term": (is_text, ""),
        },
    ),  # hashes: of each cursor's record in the root's log, and that hash's seal
    "call": Kind(
        36,
        {
            "call": (is_text, NEEDED),
            "op": (is_text, NEEDED),
            "nodes": (are_names_or_all, None),
            "caller": (is_caller, NEEDED),
            "fence": (is_number, NEEDED),
            "timeout_ms": (is_number, NEEDED),
            "seals": (is_seal_row, ""),
            "term": (is_text, ""),
            "apart": (is_flag, False),
            "client": (is_text, ""),
            "id": (is_number, 0),
        },
        True,
    ),  # client, id: the request whose streams it may open
    # client, id: the request that it belonged to, of which no stream goes on. who: of a call for which nobody waits
    # any more, the person who had asked; a root of an earlier version does not say it.
    "drop": Kind(37, {"call": (is_text, NEEDED), "client": (is_text, ""), "id": (is_number, 0), "who": (is_text, "")}),
    "fleet": Kind(
        38,
        {
            "fence": (is_number, NEEDED),
            "seq": (is_number, NEEDED),
            "holds": (are_fleet_holds, NEEDED),
            "seals": (a_table(is_name, is_seal), {}),
            "term": (is_text, ""),
        },
    ),
    # to clients
    "part": Kind(48, {**_TO_CLIENT, "names": (are_names, NEEDED)}, True),
    "parts": Kind(52, {**_TO_CLIENT, "parts": (are_parts, NEEDED)}, True, ("parts",)),
    "progress": Kind(49, {**_TO_CLIENT, "done": (is_number, NEEDED), "total": (is_number, NEEDED)}),
    "result": Kind(
        50,
        {
            **_TO_CLIENT,
            "exit": (is_number, 0),
            "message": (is_text, ""),
            "hint": (is_text, ""),
            "failed": (a_table(is_text, is_text), {}),
        },
        True,
    ),
    "event": Kind(51, _TO_CLIENT, True),
}
_ANSWER: Final = KINDS["answer"].code
#: The head of one node's complete answer as ``single_answer`` writes it, if its names are plain.
_SINGLE: Final = re.compile(
    rb'\{"call":"([\w.:-]{1,200})","final":true,"parts":\[\[\["([\w.-]{1,253})"\],([1-9]\d{0,7})\]\],"lost":\[\]'
    rb'(?:,"seals":\["([\w+/]{20})"\])?'
    rb'(?:,"batches":\[\["([\w.-]{1,253})","([\w-]{0,64})",(0|[1-9]\d{0,17}),(0|[1-9]\d{0,5}),([1-9]\d{0,7})\]\]'
    rb'(?:,"batch_seals":\["([\w+/]{1,256})"\])?)?\}'
)
_BY_CODE: Final = {kind.code: (name, kind) for name, kind in KINDS.items()}
TO_CLIENTS: Final = frozenset({"part", "parts", "progress", "result", "event"})


def _wrong(kind: Kind, head: Head, body: bytes, strict: bool) -> str:
    """Why this is not a message of its kind; "" if it is one. ``strict``: fields that the table does not name are wrong
    too."""
    known = 0
    for field, (check, default) in kind.fields.items():
        if field in head:
            known += 1
            if not check(head[field]):
                return f"{field} has the wrong type or size"
        elif default is NEEDED:
            return f"{field} is missing"
    if strict and known != len(head):
        return f"no field {next(f for f in head if f not in kind.fields)!r}"
    if kind.sized:
        size = 0
        for field in kind.sized:
            rows = head.get(field, ())
            size += rows[0][-1] if len(rows) == 1 else sum([row[-1] for row in rows])
        if size != len(body):
            return "its parts do not add up to its body"
    elif body and not kind.body:
        return "a body where none belongs"
    return ""


def encode(kind: str, head: Head, body: bytes = b"") -> bytes:
    """A frame. Raises LocalProtocolError for a message that the other side would refuse."""
    table = KINDS.get(kind)
    if table is None:
        raise LocalProtocolError(f"there is no message {kind!r}")
    why = _wrong(table, head, body, True)
    if why:
        raise LocalProtocolError(f"{kind}: {why}")
    try:
        raw = orjson.dumps(head)
    except (TypeError, ValueError) as exc:  # text with lone surrogates
        raise LocalProtocolError(f"{kind}: {exc}") from None
    if len(raw) > HEAD_MAX or _HEADER.size + len(raw) + len(body) > FRAME_MAX:
        raise LocalProtocolError(f"{kind}: {len(raw)} + {len(body)} bytes are too many for a frame")
    return b"".join((_HEADER.pack(MAGIC, table.code, len(raw)), raw, body))


def single_answer(
    call: str,
    name: str,
    body: bytes,
    batches: Sequence[Sequence[Any]] = (),
    lines: bytes = b"",
    seal: str = "",
    batch_seals: Sequence[str] = (),
) -> bytes:
    """What ``encode`` makes of one node's complete answer, for callers that have checked the call and the name before.
    ``batches``, ``lines`` and ``batch_seals``: ``events`` that go with it.
    """
    if len(body) + len(lines) > FRAME_MAX - HEAD_MAX or not is_text(call) or not is_name(name):
        raise LocalProtocolError(f"answer: no answer of {len(body)} bytes fits a frame")
    head: NewHead = {"call": call, "final": True, "parts": [[[name], len(body)]], "lost": []}
    if seal:
        head["seals"] = [seal]
    if batches:
        head["batches"] = batches
        if batch_seals:
            head["batch_seals"] = batch_seals
    try:
        raw = orjson.dumps(head)
    except TypeError as exc:  # text with lone surrogates
        raise LocalProtocolError(f"answer: {exc}") from None
    return b"".join((_HEADER.pack(MAGIC, _ANSWER, len(raw)), raw, body, lines))


def decode(frame: bytes | memoryview) -> Message:
    """The message in a frame. Raises RemoteProtocolError, and nothing else, for bytes that are no message. If the frame
    is a memoryview, so is the body.
    """
    if len(frame) < _HEADER.size:
        raise RemoteProtocolError(f"{len(frame)} bytes are no message")
    if len(frame) > FRAME_MAX:
        raise RemoteProtocolError(f"a frame of {len(frame)} bytes; at most {FRAME_MAX}")
    magic, code, size = _HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise RemoteProtocolError("not this protocol, or another version of it")
    name, kind = _BY_CODE.get(code, ("", None))
    if kind is None:
        raise RemoteProtocolError(f"unknown kind {code}")
    end = _HEADER.size + size
    if size > HEAD_MAX or end > len(frame):
        raise RemoteProtocolError(f"{name}: a head of {size} bytes in a frame of {len(frame)}")
    if code == _ANSWER:  # most frames that an aggregator reads
        answer = _single(frame, end)
        if answer is not None:
            return answer
    try:
        head = strict.loads(frame[_HEADER.size : end], HEAD_MAX)
    except strict.NotStrictError:
        raise RemoteProtocolError(f"{name}: its head is not JSON that is read here") from None
    body = cast(bytes, frame[end:])  # or a memoryview, which is used in the same way
    why = _wrong(kind, head, body, False) if type(head) is dict else "its head is no object"
    if why:
        raise RemoteProtocolError(f"{name}: {why}")
    if head.keys() != kind.fields.keys():  # unknown fields go no further: a relay that passes a head on encodes it
        head = {field: head.get(field, default) for field, (_, default) in kind.fields.items()}
    return Message(name, head, body)


def _single(frame: bytes | memoryview, end: int) -> Message | None:
    """One node's complete answer, read without parsing JSON; None for another or an unusual frame."""
    found = _SINGLE.fullmatch(frame, _HEADER.size, end)
    if found is None:
        return None
    call, name, own, seal, node, incarnation, first, count, more, batch_seal = found.groups()
    size = int(own)
    batches: Sequence[Any] = ()
    if node is not None:
        batches = [[node.decode(), incarnation.decode(), int(first), int(count), int(more)]]
    if size + (int(more) if batches else 0) != len(frame) - end:
        return None
    return Message(
        "answer",
        {
            "call": call.decode(),
            "final": True,
            "parts": [[[name.decode()], size]],
            "lost": [],
            "batches": batches,
            "seals": () if seal is None else [seal.decode()],
            "batch_seals": () if batch_seal is None else [batch_seal.decode()],
        },
        cast(bytes, frame[end:]),
    )


#: A node's answer to the question whether it is alive: always the same.
LIVES: Final = encode("beat", {"answer": True})
LIVES_MESSAGE: Final = decode(LIVES)


def message(kind: str, head: Head, body: bytes = b"") -> Message:
    """A message as ``decode`` would return it, for a peer in the same process."""
    return Message(kind, {**{f: d for f, (_, d) in KINDS[kind].fields.items() if d is not NEEDED}, **head}, body)


def sections(sized: Message, field: str) -> Iterator[tuple[list[Any], bytes]]:
    """The rows of ``field`` (batches of ``events``, parts of ``answer`` and so on), each with its share of the body."""
    at, body = 0, sized.body
    for before in KINDS[sized.kind].sized:
        if before == field:
            break
        at += sum([row[-1] for row in sized.head[before]])
    rows = sized.head[field]
    if len(rows) == 1 and rows[0][-1] == len(body):
        yield rows[0], body
        return
    for row in rows:
        end = at + row[-1]
        yield row, body[at:end]
        at = end


def beside(seals: Sequence[str], rows: Sequence[Any]) -> Sequence[str]:
    """The seal of each row; "" for all if the number of seals does not match."""
    return seals if len(seals) == len(rows) else ("",) * len(rows)


def seal_at(row: str, i: int) -> str:
    """The seal at one place in a row of seals; "" if the row is empty."""
    return row[i * SEAL_CHARS : (i + 1) * SEAL_CHARS]
