"""Seals: messages between node and root, and between person and root, that the aggregators between them cannot forge.

A member that carries a message may read, delay or drop it. It cannot make a message, nor repeat one so that it counts
again: both ends share a key that nobody else has (the X25519 shared secret of their two CURVE keys, so there are no new
keys), and each message carries a keyed BLAKE2b of its content, its *seal*. Equal answers of many nodes travel as one,
with the exclusive or of their seals, which only the root can check.  # T14

Everything here is pure: keys are passed in, nothing is read and no time passes. A seal is ``SEAL_BYTES`` long (120
bits), so that its text has no padding and the texts of many are a plain concatenation.
"""

from __future__ import annotations

import hmac
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import orjson

from pact.core.tree.checks import BY_SESSION, BY_TIME, HOLDS_BY_TIME, SESSION_BITS
from pact.core.tree.wire import Head
from pact.model import NS_PER_S

if TYPE_CHECKING:
    pass

SEAL_BYTES: Final = 15
SEAL_CHARS: Final = 20
# An essence up to this size in bytes is sealed without a hash: one hash of three blocks is cheaper than two hashes.
SHORT: Final = 240
ID_CHARS: Final = 8
ROOTS_MAX: Final = 8  # of one cluster, for whose keys a node seals
#: A person's word, or a table of the fleet's holds, is sealed with the time since the node's hello reached the root, in
#: such steps. The node counts from when it said it: so it knows how long a word was on its way at most, and neither
#: compares a clock with the other's.
STEP_NS: Final = 10 * NS_PER_S
#: Of the hash of the newest record that the root has of a journal, so many characters go with an acknowledgement.
HASH_CHARS: Final = 32
NONE: Final = "A" * SEAL_CHARS  # in a row of seals: this name has none

HELLO: Final = b"H"
CALL: Final = b"C"
ANSWER: Final = b"A"
EVENTS: Final = b"E"
ACK: Final = b"K"
FLEET: Final = b"F"
REQUEST: Final = b"Q"
REPLY: Final = b"R"
CHALLENGE: Final = b"N"

Key = bytes


def essence(kind: bytes, fields: Sequence[Any], body: bytes | memoryview = b"") -> bytes:
    """What stands for a message of this kind: its fields as JSON, then its body; a hash of both if they are longer."""
    said = orjson.dumps(fields) + body
    if len(said) <= SHORT:
        return kind + b"=" + said
    return kind + b"#" + blake2b(said, digest_size=32).digest()


def seal(key: Key, what: bytes) -> bytes:
    """``SEAL_BYTES`` bytes. ``what``: an essence."""
    return blake2b(what, key=key, digest_size=SEAL_BYTES).digest()


def text(sealed: bytes) -> str:
    """The text of one seal, or of several concatenated ones."""
    return b2a_base64(sealed, newline=False).decode()


def number(said: str) -> int | None:
    """The seal in a text as a number; None if the text is no seal."""
    if len(said) != SEAL_CHARS:
        return None
    try:
        return int.from_bytes(a2b_base64(said, strict_mode=True), "big")
    except (Base64Error, ValueError):
        return None


def number_text(n: int) -> str:
    return text(n.to_bytes(SEAL_BYTES, "big"))


def fits(key: Key, what: bytes, said: str) -> bool:
    """Whether ``said`` is the seal of ``what``."""
    made = b2a_base64(blake2b(what, key=key, digest_size=SEAL_BYTES).digest(), newline=False)
    return hmac.compare_digest(made, said.encode("utf-8", "replace"))


def key_id(public: str) -> str:
    """A short name of a public key. It only helps to find a seal; security does not depend on it."""
    return blake2b(public.encode(), digest_size=ID_CHARS // 2, person=b"key id").hexdigest()


def for_each(keys: Mapping[str, Key], what: bytes) -> str:
    """One seal for each root that may lead: its key's id, then the seal."""
    return "".join([i + text(seal(k, what)) for i, k in keys.items()])


def mine(said: str, own_id: str) -> str:
    """The seal for this root from such a text; "" if there is none."""
    step = ID_CHARS + SEAL_CHARS
    for at in range(0, min(len(said), step * ROOTS_MAX), step):
        if said.startswith(own_id, at):
            return said[at + ID_CHARS : at + step]
    return ""


def start_of(session: int) -> int:
    """The common part of the sessions of one start of an agent."""
    return session >> SESSION_BITS


# -- what is sealed: both ends make it alike ------------------------------------------------------------------------


def of_hello(session: int, incarnation: str, seq: int, wall_ns: int) -> bytes:
    return essence(HELLO, (session, incarnation, seq, wall_ns))


def of_call(head: Head, body: bytes | memoryview) -> bytes:
    """The same for all nodes that are asked: each node's start is added, so that a call to an earlier start does not
    count."""
    caller = head["caller"]
    return essence(
        CALL,
        (head["term"], head["fence"], head["call"], head["op"], caller["user"], caller["role"], caller["via"]),
        body,
    )


def dated(head: Head) -> bool:
    """Whether this call is a person's word, which counts only while the person waits for it. What a root says of its
    own accord (to members of a group) is repeated until it is done, and may be late."""
    return bool(head["caller"]["role"] != "agent")


def start_bytes(session: int) -> bytes:
    """The bytes that stand for a start in a seal."""
    return start_of(session).to_bytes(8, "big")


def bound_to(session: int) -> bytes:
    """The bytes in a seal that bind it to a node's session; an agent of the last version knows its start only."""
    return session.to_bytes(8, "big") if session & BY_SESSION else start_bytes(session)


def age_bytes(steps: int) -> bytes:
    """The bytes in the seal of a person's word, or of the fleet's holds, that tell when it was said."""
    return b"@" + steps.to_bytes(4, "big")


def of_answer(term: str, call: str, body: bytes | memoryview) -> bytes:
    return essence(ANSWER, (term, call), body)


def of_events(row: Sequence[Any], lines: bytes | memoryview) -> bytes:
    """``row``: node, incarnation, first, count, bytes."""
    return essence(EVENTS, list(row), lines)


def of_ack(fence: int, term: str, cursor: Sequence[Any]) -> bytes:
    """``cursor``: node, incarnation, seq, rewind. For the seal that stands beside a hash, that hash follows: relays of
    the last version drop it, and pass on the seal of the four alone."""
    return essence(ACK, (fence, term, *cursor))


def of_fleet(term: str, fleet: Head) -> bytes:
    """For each hold, what the root sent: the time left *now* changes on the way, and is not sealed."""
    holds = [[h["hold"], h["owner"], h["reason"], h["ends"], h.get("whole_ns", -1)] for h in fleet["holds"]]
    return essence(FLEET, (term, fleet["fence"], fleet["seq"], holds))


def of_request(head: Head, body: bytes | memoryview) -> bytes:
    return essence(REQUEST, (head["challenge"], head["id"], head["op"], head["nodes"], head["timeout_ms"]), body)


def of_reply(kind: str, request: str, challenge: str, head: Head, body: bytes | memoryview) -> bytes:
    """For a message to a person: everything but the carrier. ``head["n"]`` counts the messages. ``request``: the seal
    of the request, so that the message answers no other one; "" for a question for a challenge, which has no seal.
    """
    said = {k: v for k, v in head.items() if k not in ("client", "seal")}
    return essence(REPLY, (kind, request, challenge, sorted(said.items())), body)


def of_one(head: Head, name: str) -> str:
    """The seal for this node in a call, which has that one alone, or those of several nodes with their names."""
    names, row = head["nodes"], head["seals"]
    if names is not None:
        at = names.index(name) * SEAL_CHARS if name in names else len(row)
        row = row[at : at + SEAL_CHARS]
    return "" if row == NONE else str(row)


# -- the root's side ------------------------------------------------------------------------------------------------


class Proof(NamedTuple):
    """What a node's hello said, in the form in which members pass it on."""

    seals: str
    incarnation: str
    seq: int
    wall_ns: int


class _Known(NamedTuple):
    """A node whose proof has been checked."""

    public: str
    key: Key
    session: int
    incarnation: str
    seq: int
    wall_ns: int
    bound: bytes
    heard_ns: int  # when this session's hello first came
    dates: bool  # it knows how old a person's word is
    dates_holds: bool  # and how old a table of the fleet's holds is


class _Ages(dict[int, bytes]):
    """``age_bytes`` of each step: most nodes have said hello in the same few."""

    def __missing__(self, step: int) -> bytes:
        self[step] = age_bytes(step)
        return self[step]


class Keys(Protocol):
    """What the root needs from its surroundings: the authorised keys, and the key shared with each."""

    def of(self, name: str) -> Iterable[str]:
        """The public keys that are authorised for a node."""

    def person(self, public: str) -> tuple[str, str] | None:
        """Name and role of a person's key; None if it is no person's key."""

    def shared(self, public: str) -> Key:
        """The key shared with the owner of this public key; b"" if the public key cannot be used."""


class RootSeals:
    """``public``: the root's own key. ``required``: messages without a seal do not count."""

    def __init__(self, public: str, keys: Keys, *, required: bool) -> None:
        self.id = key_id(public)
        self.keys = keys
        self.required = required
        self.term, self.fence = "", 0
        self.t_ns = 0  # the owner keeps it up to date
        self._known: dict[str, _Known] = {}

    def begin(self, term: str, fence: int) -> None:
        """A term begins; ``term``: a random text that no other term had."""
        self.term, self.fence = term, fence

    def knows(self, name: str) -> bool:
        """Whether this node seals its messages."""
        return name in self._known

    def revoked(self, publics: Iterable[str]) -> None:
        """These keys no longer count."""
        gone = set(publics)
        self._known = {n: k for n, k in self._known.items() if k.public not in gone}

    # -- who is there -------------------------------------------------------------------------------------------

    def admits(self, name: str, session: int, proof: Sequence[Any] | None, *, here: bool, direct: str = "") -> bool:
        """Whether a claim that this node is below a child is the node's own word. ``proof``: seals, incarnation, seq
        and wall_ns of its hello. ``here``: the node is known to be connected somewhere already. ``direct``: its key, if
        it is connected to this process. A node of the last version has no proof; if seals are not required, its claim
        is believed without one, as before.
        """
        known, seen = self._known.get(name), Proof(*proof) if proof is not None else None
        said = mine(seen.seals, self.id) if seen is not None else ""
        if seen is None or not said:
            if not self.required:
                self._known.pop(name, None)
            return not self.required
        what = of_hello(session, seen.incarnation, seen.seq, seen.wall_ns)
        for public in [direct] if direct else self.keys.of(name):
            key = self.keys.shared(public)
            if key and fits(key, what, said):
                if here and not direct and known is not None and _earlier(session, seen, known):
                    return False
                again = known is not None and (known.public, known.session) == (public, session)
                heard_ns = known.heard_ns if known is not None and again else self.t_ns
                dates, holds = bool(session & BY_TIME), bool(session & HOLDS_BY_TIME)
                self._known[name] = _Known(public, key, session, *seen[1:], bound_to(session), heard_ns, dates, holds)
                return True
        return False

    # -- to nodes -----------------------------------------------------------------------------------------------

    def calls(self, head: Head, body: bytes, names: Iterable[str]) -> str:
        """The seals for a call to these names, in their order. Empty if none of them seals."""
        what, known = of_call(head, body), self._known
        rows = [known.get(n) for n in names]
        if not any(rows):
            return ""
        none, t_ns, ages = bytes(SEAL_BYTES), self.t_ns, _Ages()
        whats = [what + k.bound if k is not None else b"" for k in rows]
        if dated(head):
            whats = [
                said + ages[(t_ns - k.heard_ns) // STEP_NS] if k is not None and k.dates else said
                for said, k in zip(whats, rows, strict=True)
            ]
        return text(
            b"".join(
                [
                    blake2b(said, key=k.key, digest_size=SEAL_BYTES).digest() if k is not None else none
                    for said, k in zip(whats, rows, strict=True)
                ]
            )
        )

    def acks(self, cursors: Sequence[Sequence[Any]]) -> list[str]:
        """The seal of each acknowledgement; "" if its node does not seal."""
        term, fence, known = self.term, self.fence, self._known
        return [text(seal(known[c[0]].key, of_ack(fence, term, c))) if c[0] in known else "" for c in cursors]

    def hashes(self, cursors: Sequence[Sequence[Any]], hashes: Sequence[str]) -> list[str]:
        """For each acknowledgement the hash that the log has of its record, and its seal if its node seals."""
        cut = [hash_[:HASH_CHARS] for hash_ in hashes]
        sealed = self.acks([[*cursor, hash_] for cursor, hash_ in zip(cursors, cut, strict=True)])
        return [hash_ and hash_ + seal for hash_, seal in zip(cut, sealed, strict=True)]

    def fleet(self, fleet: Head, names: Iterable[str]) -> dict[str, str]:
        """The seals of the fleet's holds; name -> seal."""
        what, ages, out = of_fleet(self.term, fleet), _Ages(), dict[str, str]()
        for name in names:
            if (known := self._known.get(name)) is not None:
                age = ages[(self.t_ns - known.heard_ns) // STEP_NS] if known.dates_holds else b""
                out[name] = text(seal(known.key, what + known.bound + age))
        return out

    # -- from nodes ---------------------------------------------------------------------------------------------

    def answers(self, names: Sequence[str], call: str, body: bytes | memoryview, said: str) -> bool:
        """Whether each of these nodes has given this answer."""
        known = self._known
        if not said:
            return not self.required and not any(n in known for n in names)
        what, from_bytes = of_answer(self.term, call, body), int.from_bytes
        if len(names) == 1:
            one = known.get(names[0])
            return one is not None and fits(one.key, what, said)
        claimed = number(said)
        if claimed is None or len(set(names)) != len(names):  # the seals of a repeated name would cancel each other out
            return False
        try:
            keys = [known[n].key for n in names]
        except KeyError:
            return False
        for key in keys:
            claimed ^= from_bytes(blake2b(what, key=key, digest_size=SEAL_BYTES).digest(), "big")
        return claimed == 0

    def events(self, row: Sequence[Any], lines: bytes | memoryview, said: str) -> bool:
        """Whether these records are the node's own."""
        known = self._known.get(row[0])
        if known is None:
            return not self.required
        return fits(known.key, of_events(row, lines), mine(said, self.id))


def _earlier(session: int, proof: Proof, known: _Known) -> bool:
    """Whether the node said this before what is known of it."""
    if start_of(session) == start_of(known.session):
        return session < known.session
    if proof.incarnation == known.incarnation:
        return (proof.seq, proof.wall_ns) <= (known.seq, known.wall_ns)
    return proof.wall_ns <= known.wall_ns
