"""What travels in the tree, as bytes: one frame a message, with a table of what each kind may say.

A frame is ``P1``, the kind (1 byte), the head's length (u32, little endian), the head (a JSON object) and the body
(bytes). What is not in the tables is refused here, once, so that nobody behind has to look again; fields that a table
does not name are passed over (a newer peer may say more). Bodies are opaque, except that their parts must add up.  # T2
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import orjson

from pact.core import strict
from pact.errors import LocalProtocolError, RemoteProtocolError
from pact.limits import FRAME_MAX, HEAD_MAX

VERSION: Final = 1
MAGIC: Final = b"P1"
NAME_MAX: Final = 253
TEXT_MAX: Final = 64 << 10
ITEMS_MAX: Final = 100_000  # entries of any list or table in a head
BATCH_BYTES_MAX: Final = 64 << 10
BATCH_RECORDS_MAX: Final = 256
BODY_MAX: Final = FRAME_MAX - HEAD_MAX - (1 << 10)  # of a request or an answer: whoever hands it on adds to its head
RACK_MAX: Final = NAME_MAX
INCARNATION_MAX: Final = 64
SEAL_CHARS: Final = 20
SEALS_MAX: Final = 256  # characters of the seals of one thing, for each root that may lead
NUMBER_MAX: Final = (1 << 64) - 1
_HEADER: Final = struct.Struct("<2sBI")

_LIST: Final = (list, tuple)
_TEXTS: Final = {str}
Check = Callable[[Any], bool]
Head = dict[str, Any]


class Message(NamedTuple):
    """One message. ``head`` holds every field of its kind's table: those that the peer left out have their defaults."""

    kind: str
    head: Head
    body: bytes = b""


# -- checks ---------------------------------------------------------------------------------------------------------


def _text(value: Any) -> bool:
    return type(value) is str and len(value) <= TEXT_MAX


def _name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= NAME_MAX


def _rack(value: Any) -> bool:
    return type(value) is str and len(value) <= RACK_MAX


def _incarnation(value: Any) -> bool:
    return type(value) is str and len(value) <= INCARNATION_MAX


def _number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_MAX


def _seq(value: Any) -> bool:
    """The number of a record, or -1 for none."""
    return type(value) is int and -1 <= value < NUMBER_MAX


def _flag(value: Any) -> bool:
    return type(value) is bool


def _names(value: Any) -> bool:
    if type(value) not in _LIST or len(value) > ITEMS_MAX:
        return False
    if len(value) <= 4:
        return all(map(_name, value))
    return set(map(type, value)) == _TEXTS and max(map(len, value)) <= NAME_MAX and min(map(len, value)) > 0


def _names_or_all(value: Any) -> bool:
    return value is None or _names(value)


def _text_or_none(value: Any) -> bool:
    return value is None or (type(value) is str and len(value) <= HEAD_MAX)


def _table(key: Check, value_check: Check) -> Check:
    def check(value: Any) -> bool:
        return (type(value) is dict and len(value) <= ITEMS_MAX and all(map(key, value))
                and all(map(value_check, value.values())))  # fmt: skip

    return check


def _rows(*columns: Check) -> Check:
    width = len(columns)

    def check(value: Any) -> bool:
        return type(value) in _LIST and len(value) <= ITEMS_MAX and all(
            type(row) in _LIST and len(row) == width and all(c(v) for c, v in zip(columns, row, strict=True))
            for row in value
        )  # fmt: skip

    return check


_HOLD: Final = {"hold": _text, "owner": _text, "reason": _text, "ends": _text, "left_ns": _number}


def _holds(value: Any) -> bool:
    return type(value) in _LIST and len(value) <= ITEMS_MAX and all(
        type(h) is dict and all(k in h and c(h[k]) for k, c in _HOLD.items()) for h in value
    )  # fmt: skip


def are_holds(value: Any) -> bool:
    """Holds of the fleet, wherever they come from: also in a request that a frame carries."""
    return _holds(value)


def _fleet(value: Any) -> bool:
    return value is None or (
        type(value) is dict and _number(value.get("fence")) and _number(value.get("seq")) and _holds(value.get("holds"))
    )


def _caller(value: Any) -> bool:
    return type(value) is dict and all(_text(value.get(k)) for k in ("user", "role", "via"))


def _rows_of_text(most: int) -> Check:
    """A row of short texts, or of none."""

    def check(value: Any) -> bool:
        return (type(value) in _LIST and len(value) <= ITEMS_MAX
                and all(type(text) is str and len(text) <= most for text in value))  # fmt: skip

    return check


def _seal_row(value: Any) -> bool:
    """The seals of a list of names, one after the other."""
    return type(value) is str and len(value) <= ITEMS_MAX * SEAL_CHARS


def _seal(value: Any) -> bool:
    return type(value) is str and len(value) <= SEALS_MAX


def _proof(value: Any) -> bool:
    """``[seals, incarnation, seq, wall_ns]``: what a node said in its hello, for the root."""
    return (type(value) in _LIST and len(value) == 4 and _seal(value[0]) and _incarnation(value[1]) and _seq(value[2])
            and _number(value[3]))  # fmt: skip


_groups: Final = _rows(_text, _text, _number)
_seals: Final = _rows_of_text(SEALS_MAX)


def _batches(value: Any) -> bool:
    """``[[node, incarnation, first, count, bytes], ...]``, written out, as all that every record passes through."""
    if type(value) not in _LIST or len(value) > ITEMS_MAX:
        return False
    for row in value:
        if type(row) not in _LIST or len(row) != 5:
            return False
        node, incarnation, first, count, size = row
        if not (type(node) is str and 0 < len(node) <= NAME_MAX
                and type(incarnation) is str and len(incarnation) <= INCARNATION_MAX
                and type(first) is int and 0 <= first <= NUMBER_MAX and type(count) is int and 0 <= count <= NUMBER_MAX
                and type(size) is int and 0 <= size <= NUMBER_MAX):  # fmt: skip
            return False
    return True


def _cursors(value: Any) -> bool:
    """``[[node, incarnation, seq, rewind], ...]``, likewise."""
    if type(value) not in _LIST or len(value) > ITEMS_MAX:
        return False
    for row in value:
        if type(row) not in _LIST or len(row) != 4:
            return False
        node, incarnation, seq, rewind = row
        if not (type(node) is str and 0 < len(node) <= NAME_MAX
                and type(incarnation) is str and len(incarnation) <= INCARNATION_MAX
                and type(seq) is int and -1 <= seq < NUMBER_MAX and type(rewind) is bool):  # fmt: skip
            return False
    return True


def _parts(value: Any) -> bool:
    """``[[names, bytes], ...]``, written out: every node's answer passes through here."""
    if type(value) not in _LIST or len(value) > ITEMS_MAX:
        return False
    for row in value:
        if type(row) not in _LIST or len(row) != 2 or type(row[1]) is not int or row[1] < 0 or not _names(row[0]):
            return False
    return True


# -- the tables -----------------------------------------------------------------------------------------------------

#: Stands for "must be there".
NEEDED: Final = object()


class Kind(NamedTuple):
    """Fields: name -> (check, default or NEEDED). ``sized``: the fields whose rows' last columns cut up the body."""

    code: int
    fields: Mapping[str, tuple[Check, Any]]
    body: bool = False
    sized: tuple[str, ...] = ()


#: ``n`` counts what goes to one request's asker, ``seal`` is the root's for him.
_TO_CLIENT: Final[dict[str, tuple[Check, Any]]] = {
    "client": (_text, ""), "id": (_number, NEEDED), "n": (_number, 0), "seal": (_seal, ""),
}  # fmt: skip
KINDS: Final[Mapping[str, Kind]] = {
    # from child to parent
    "hello": Kind(1, {
        "v": (_number, NEEDED), "role": (_text, NEEDED), "name": (_name, NEEDED), "session": (_number, NEEDED),
        "version": (_text, ""), "wall_ns": (_number, 0), "rack": (_rack, ""), "incarnation": (_incarnation, ""),
        "seq": (_seq, -1), "groups": (_groups, ()), "below": (_names, ()), "racks": (_table(_name, _rack), {}),
        "sessions": (_table(_name, _number), {}), "proof": (_seal, ""), "proofs": (_table(_name, _proof), {}),
    }),
    "beat": Kind(2, {"path": (_names, ()), "fence": (_number, 0), "fleet_seq": (_number, 0), "below": (_number, 0),
                     "ask": (_flag, False), "answer": (_flag, False)}),  # both ways; below: a checksum of names
    "events": Kind(3, {"batches": (_batches, NEEDED), "seals": (_seals, ())}, True, ("batches",)),
    "below": Kind(4, {"add": (_names, ()), "gone": (_names, ()), "racks": (_table(_name, _rack), {}),
                      "sessions": (_table(_name, _number), {}), "proofs": (_table(_name, _proof), {})}),
    "ask": Kind(5, {"node": (_name, NEEDED), "groups": (_groups, NEEDED)}),
    "answer": Kind(6, {"call": (_text, NEEDED), "final": (_flag, NEEDED), "parts": (_parts, ()), "lost": (_names, ()),
                       "batches": (_batches, ()), "seals": (_seals, ()), "batch_seals": (_seals, ())},
                   True, ("parts", "batches")),  # batches: events that came of it; seals: of the parts
    "request": Kind(7, {"id": (_number, NEEDED), "op": (_text, NEEDED), "nodes": (_text_or_none, None),
                        "timeout_ms": (_number, 0), "client": (_text, ""),
                        "caller": (_caller, {"user": "", "role": "", "via": ""}), "person": (_text, ""),
                        "challenge": (_text, ""), "seal": (_seal, ""),
                        "direct": (_flag, False)}, True),  # direct: said by the relay in the root's own process
    "cancel": Kind(8, {"id": (_number, NEEDED), "client": (_text, "")}),
    "goodbye": Kind(9, {}),
    # from parent to child
    "welcome": Kind(33, {"v": (_number, NEEDED), "name": (_name, NEEDED), "path": (_names, NEEDED),
                         "fence": (_number, NEEDED), "credit": (_number, NEEDED), "fleet": (_fleet, None),
                         "with_answers": (_flag, False)}),  # it takes events together with an answer
    "sorry": Kind(34, {"why": (_text, ""), "again": (_flag, False), "retry_ms": (_number, 0),
                       "rootless": (_flag, False),  # it has no way to a root, perhaps just now
                       "denied": (_flag, False)}),  # the key is not for this
    "ack": Kind(35, {"cursors": (_cursors, NEEDED), "seals": (_seals, ()), "fence": (_number, 0), "term": (_text, "")}),
    "call": Kind(36, {"call": (_text, NEEDED), "op": (_text, NEEDED), "nodes": (_names_or_all, None),
                      "caller": (_caller, NEEDED), "fence": (_number, NEEDED), "timeout_ms": (_number, NEEDED),
                      "seals": (_seal_row, ""), "term": (_text, ""), "apart": (_flag, False)}, True),
    "drop": Kind(37, {"call": (_text, NEEDED)}),
    "fleet": Kind(38, {"fence": (_number, NEEDED), "seq": (_number, NEEDED), "holds": (_holds, NEEDED),
                       "seals": (_table(_name, _seal), {}), "term": (_text, "")}),
    # to clients
    "part": Kind(48, {**_TO_CLIENT, "names": (_names, NEEDED)}, True),
    "parts": Kind(52, {**_TO_CLIENT, "parts": (_parts, NEEDED)}, True, ("parts",)),
    "progress": Kind(49, {**_TO_CLIENT, "done": (_number, NEEDED), "total": (_number, NEEDED)}),
    "result": Kind(50, {**_TO_CLIENT, "exit": (_number, 0), "message": (_text, ""), "hint": (_text, ""),
                        "failed": (_table(_text, _text), {})}, True),
    "event": Kind(51, _TO_CLIENT, True),
}  # fmt: skip
_ANSWER: Final = KINDS["answer"].code
#: The head of one node's whole answer as ``single_answer`` writes it, as long as its names are plain.
_SINGLE: Final = re.compile(
    rb'\{"call":"([\w.:-]{1,200})","final":true,"parts":\[\[\["([\w.-]{1,253})"\],([1-9]\d{0,7})\]\],"lost":\[\]'
    rb'(?:,"seals":\["([\w+/]{20})"\])?'
    rb'(?:,"batches":\[\["([\w.-]{1,253})","([\w-]{0,64})",(0|[1-9]\d{0,17}),(0|[1-9]\d{0,5}),([1-9]\d{0,7})\]\]'
    rb'(?:,"batch_seals":\["([\w+/]{1,256})"\])?)?\}')
_BY_CODE: Final = {kind.code: (name, kind) for name, kind in KINDS.items()}
TO_CLIENTS: Final = frozenset({"part", "parts", "progress", "result", "event"})


def _wrong(kind: Kind, head: Mapping[str, Any], body: bytes, strict: bool) -> str:
    """Why this is no message of its kind; "" if it is one. ``strict``: what the table does not name is wrong too."""
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


def encode(kind: str, head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A frame. Raises LocalProtocolError for what the other side would refuse."""
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


def single_answer(call: str, name: str, body: bytes, batches: Sequence[Sequence[Any]] = (), lines: bytes = b"",
                  seal: str = "", batch_seals: Sequence[str] = ()) -> bytes:  # fmt: skip
    """What ``encode`` makes of one node's whole answer, for those who have checked the call and the name before.
    ``batches``, ``lines`` and ``batch_seals``: ``events`` that go with it.
    """
    if len(body) + len(lines) > FRAME_MAX - HEAD_MAX or not _text(call) or not _name(name):
        raise LocalProtocolError(f"answer: no answer of {len(body)} bytes fits a frame")
    head: Head = {"call": call, "final": True, "parts": [[[name], len(body)]], "lost": []}
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
    """The message in a frame. Raises RemoteProtocolError, and nothing else, for what is none. The body of a message in
    a memoryview is one too.
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
    if code == _ANSWER:  # most of what an aggregator reads
        answer = _single(frame, end)
        if answer is not None:
            return answer
    try:
        head = strict.loads(frame[_HEADER.size : end], HEAD_MAX)
    except strict.NotStrictError:
        raise RemoteProtocolError(f"{name}: its head is not JSON that is read here") from None
    body = cast(bytes, frame[end:])  # or a memoryview, which is used alike
    why = _wrong(kind, head, body, False) if type(head) is dict else "its head is no object"
    if why:
        raise RemoteProtocolError(f"{name}: {why}")
    if head.keys() != kind.fields.keys():  # what no table names goes no further: whoever hands a head on encodes it
        head = {field: head.get(field, default) for field, (_, default) in kind.fields.items()}
    return Message(name, head, body)


def _single(frame: bytes | memoryview, end: int) -> Message | None:
    """One node's whole answer, read without its JSON; None for what is none, or looks strange."""
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
    return Message("answer", {"call": call.decode(), "final": True, "parts": [[[name.decode()], size]], "lost": [],
                              "batches": batches, "seals": () if seal is None else [seal.decode()],
                              "batch_seals": () if batch_seal is None else [batch_seal.decode()]},
                   cast(bytes, frame[end:]))  # fmt: skip


#: What a node says when it is asked whether it lives: always the same.
LIVES: Final = encode("beat", {"answer": True})
LIVES_MESSAGE: Final = decode(LIVES)


def message(kind: str, head: Mapping[str, Any], body: bytes = b"") -> Message:
    """A message as ``decode`` would give it, for whoever stands in the same process."""
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
    """The seal of each row; "" for all where they do not go with these rows."""
    return seals if len(seals) == len(rows) else ("",) * len(rows)


def seal_at(row: str, i: int) -> str:
    """One of the seals of a list of names; "" where there are none."""
    return row[i * SEAL_CHARS : (i + 1) * SEAL_CHARS]
