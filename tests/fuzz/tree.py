"""The tree: frames, a relay with the root behind it, the root alone, a node's way up, nodes' answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import nasty
import orjson
from public_root import Chain

from fuzz.entrances import request_lines
from fuzz.kit import Feed, Target, piece
from pact.agent import link as links
from pact.cluster.nodesets import NodeSets
from pact.core.root import public
from pact.core.root.answers import RESULT_MAX, answer_of, fitting, refusal_of
from pact.core.root.log import RootState
from pact.core.root.root import Root
from pact.core.root.term import Commit, Down, Publish
from pact.core.tree import wire
from pact.core.tree.directory import Peer
from pact.core.tree.outbox import Up
from pact.core.tree.relay import Relay, ToChildren, ToEach
from pact.core.tree.seals import Keys, RootSeals, for_each, key_id, of_events, of_hello, seal
from pact.core.tree.seals import text as seal_text
from pact.errors import RemoteProtocolError
from pact.limits import FRAME_MAX
from pact.model import NS_PER_S
from pact.sim.world import EPOCH_NS

KINDS: Final = tuple(wire.KINDS)
SEAL_OF_N1: Final = for_each({key_id("root's"): b"k1".ljust(32, b"k")}, of_hello(1 << 20, "i", 1, 5))
CALLER: Final = {"user": "u", "role": "admin", "via": "cluster"}


def raw(kind: str, head: bytes, body: bytes = b"") -> bytes:
    return wire._HEADER.pack(wire.MAGIC, wire.KINDS[kind].code, len(head)) + head + body


def _plain(message: wire.Message) -> tuple[str, Any, bytes]:
    """Whether a list was one or a tuple is no difference."""
    return message.kind, orjson.loads(orjson.dumps(message.head)), bytes(message.body)


# -- one frame ------------------------------------------------------------------------------------------------------------


def frame(data: bytes) -> None:
    """What is let through is written again, and is the same then; a memoryview is read alike."""
    feed = Feed(data)
    which = feed.number()
    one = feed.rest() if which == 255 else raw(KINDS[which % len(KINDS)], feed.piece(), feed.rest())
    try:
        message = wire.decode(one)
    except RemoteProtocolError as exc:
        assert len(exc.message) < 200
        return
    again = wire.encode(message.kind, message.head, message.body)
    assert _plain(wire.decode(again)) == _plain(message)
    shared = wire.decode(memoryview(one))
    assert _plain(shared) == _plain(message)
    for field in wire.KINDS[message.kind].sized:
        assert sum(len(b) for _, b in wire.sections(message, field)) == sum(r[-1] for r in message.head[field])


def heads() -> Iterator[tuple[str, bytes, bytes]]:
    """A real message of every kind, and more of those that matter."""
    chain = Chain("n1")
    lines = b"\n".join(chain.batch("agent_started", "committed").lines) + b"\n"
    row = ["n1", chain.incarnation, 0, 2, len(lines)]
    fleet = {
        "fence": 1,
        "seq": 1,
        "holds": [{"hold": "f1", "owner": "o", "reason": "r", "ends": "2030-01-01T00:00:00Z", "left_ns": 10**12}],
    }
    some: list[tuple[str, Mapping[str, Any], bytes]] = [
        (
            "hello",
            {"v": 1, "role": "node", "name": "n1", "session": 1 << 20, "rack": "r1", "groups": [["g1", "open", 1]]},
            b"",
        ),
        (
            "hello",
            {
                "v": 1,
                "role": "aggregator",
                "name": "a1",
                "session": 1 << 20,
                "below": ["n3", "n4"],
                "racks": {"n3": "r"},
                "sessions": {"n3": 1},
            },
            b"",
        ),
        ("hello", {"v": 1, "role": "client", "name": "adm", "session": 7}, b""),
        ("beat", {}, b""),
        ("beat", {"answer": True, "below": 3}, b""),
        ("goodbye", {}, b""),
        ("events", {"batches": [row]}, lines),
        ("below", {"add": ["n5"], "gone": ["n3"], "sessions": {"n5": 2}}, b""),
        ("ask", {"node": "n1", "groups": [["g1", "prepared", 1]]}, b""),
        (
            "answer",
            {"call": "1.1", "final": True, "parts": [[["n1"], 36]]},
            b'{"ok":true,"exit":0,"result":{"a":1}}'[:36],
        ),
        ("answer", {"call": "1.1", "final": True, "parts": [[["n1"], 2]], "batches": [row]}, b"{}" + lines),
        ("answer", {"call": "1.1", "final": True, "parts": [[["n3", "n4"], 2]], "lost": ["n5"]}, b"{}"),
        ("request", {"id": 2, "op": "status", "nodes": "n[1-4]", "timeout_ms": 1000}, b"{}"),
        ("request", {"id": 2, "op": "status", "nodes": "n3", "client": "a1:7", "caller": CALLER}, b"{}"),
        ("cancel", {"id": 2}, b""),
        (
            "welcome",
            {"v": 1, "name": "r", "path": ["r"], "fence": 1, "credit": 1 << 20, "fleet": fleet, "with_answers": True},
            b"",
        ),
        ("sorry", {"why": "w", "again": True}, b""),
        ("sorry", {"rootless": True, "retry_ms": 5}, b""),
        ("ack", {"cursors": [["sim", chain.incarnation, 1, False], ["n1", chain.incarnation, 0, True]]}, b""),
        ("drop", {"call": "1.1"}, b""),
        ("fleet", fleet, b""),
        ("part", {"id": 1, "names": ["n1"]}, b"{}"),
        ("parts", {"id": 1, "parts": [[["n1"], 2]]}, b"{}"),
        ("progress", {"id": 1, "done": 1, "total": 2}, b""),
        ("result", {"id": 1, "exit": 0, "message": "m", "failed": {"n1": "w"}}, b"{}"),
        ("event", {"id": 1}, b'{"seq":1}'),
    ]
    whole = {**fleet, "holds": [{**fleet["holds"][0], "whole_ns": 10**12}]}  # type: ignore[index]
    some += [
        (
            "hello",
            {
                "v": 1,
                "role": "node",
                "name": "n1",
                "session": 1 << 20,
                "incarnation": "i",
                "seq": 1,
                "wall_ns": 5,
                "proof": SEAL_OF_N1,
            },
            b"",
        ),
        ("below", {"add": ["n3"], "sessions": {"n3": 5}, "proofs": {"n3": ["x" * 28, "i", 1, 1]}}, b""),
        ("events", {"batches": [row], "seals": [seal_text(seal(b"k" * 32, of_events(row, lines)))]}, lines),
        ("answer", {"call": "1.1", "final": True, "parts": [[["n1"], 2]], "seals": ["A" * 20]}, b"{}"),
        ("request", {"id": 4, "op": "challenge", "person": "adm's", "challenge": "c"}, b"{}"),
        ("request", {"id": 5, "op": "nodes", "person": "adm's", "challenge": "1.x", "seal": "B" * 20}, b"{}"),
        ("ack", {"cursors": [["sim", "i", 1, False]], "seals": ["C" * 20], "fence": 1, "term": "term"}, b""),
        ("fleet", {**whole, "term": "term", "seals": {"sim": "D" * 20}}, b""),
    ]
    some += [
        (
            "call",
            {
                "call": f"1.{n}",
                "op": orjson.loads(line)["op"],
                "nodes": None,
                "caller": CALLER,
                "fence": 1,
                "timeout_ms": 5000,
            },
            orjson.dumps(orjson.loads(line)["args"]),
        )
        for n, (_, line) in enumerate(request_lines(), 2)
    ]
    for kind, head, body in some:
        yield kind, orjson.dumps(head), body


def frame_seeds() -> Iterator[bytes]:
    for kind, head, body in heads():
        yield bytes([KINDS.index(kind)]) + piece(head) + body
    yield b"\xff" + raw("beat", b"{}")
    for text in nasty.REFUSED.values():
        if len(text) < 600:
            yield bytes([KINDS.index("request")]) + piece(b'{"id":1,"op":"x","extra":%b}' % text.replace(b"%", b"%%"))
    yield bytes([KINDS.index("answer")]) + piece(wire.single_answer("1.1", "n1", b"{}")[7:-2]) + b"{}"


# -- a relay under a root -------------------------------------------------------------------------------------------------

PEERS: Final = (
    Peer("n1", "node", "k1"),
    Peer("n2", "node", "k2"),
    Peer("a1", "aggregator", "k3"),
    Peer("eve", "viewer", "k4"),
    Peer("olga", "ops", "k5"),
    Peer("adm", "admin", "k6"),
    Peer("sub", "subscriber", "k7"),
)
FROM_ABOVE: Final = frozenset({"welcome", "beat", "ack", "call", "drop", "fleet", *wire.TO_CLIENTS})
T: Final = 100 * NS_PER_S


class Ring(Keys):
    """Everybody shares a key of his own with the root."""

    def of(self, name: str) -> list[str]:
        return [f"{name}'s"]

    def person(self, public: str) -> tuple[str, str] | None:
        return ("adm", "admin") if public == "adm's" else None

    def shared(self, public: str) -> bytes:
        return public.encode("utf-8", "replace")[:32].ljust(32, b"k")


class Tree:
    """A relay, and the root in the same process, as an aggregator wires them. What is sent is looked at and dropped."""

    def __init__(self) -> None:
        self.t_ns = T
        self.sets = NodeSets()
        seals = RootSeals("root's", Ring(), required=False)
        seals.begin("term", 1)
        self.root = Root("root", RootState(), 1, self.sets, seals=seals, secret=b"s" * 32)
        self.relay = Relay("root")
        self.relay.tree.gate = seals
        self.log: list[bytes] = []
        self.from_root(self.root.start(T, EPOCH_NS, "boot", 0))
        self.down(
            "welcome", {"v": 1, "name": "root", "path": [], "fence": 1, "credit": 64 << 20, "fleet": self.root.fleet()}
        )
        for peer, more in (
            (PEERS[0], {}),
            (PEERS[1], {}),
            (PEERS[2], {"below": ["n3", "n4"], "sessions": {"n3": 1}}),
            *((p, {}) for p in PEERS[3:6]),
        ):
            role = peer.role if peer.role in ("node", "aggregator") else "client"
            self.say(peer, wire.encode("hello", {"v": 1, "role": role, "name": peer.name, "session": 1 << 20, **more}))
        self.flush()
        for op in ("status", "apply"):
            args = (
                {"resources": {"sysctl:kernel.k0": {"attrs": {"value": "1"}}}, "message": "m"} if op == "apply" else {}
            )
            self.say(
                PEERS[5],
                wire.encode(
                    "request",
                    {"id": 1 + (op == "apply"), "op": op, "nodes": "n[1-4]", "timeout_ms": 10**6},
                    orjson.dumps(args),
                ),
            )
        self.flush()

    def down(self, kind: str, head: Mapping[str, Any], body: bytes = b"") -> None:
        self.perform(self.relay.from_parent(wire.message(kind, head, body), self.t_ns))

    def say(self, peer: Peer, one: bytes) -> None:
        rid = peer.name.encode()
        try:
            message = wire.decode(one)
        except RemoteProtocolError as exc:
            self.perform(self.relay.bad_frame(rid, peer, exc.message, self.t_ns))
        else:
            self.perform(self.relay.received(rid, peer, message, self.t_ns))

    def told(self, one: bytes) -> None:
        """By a parent that is another aggregator, as far as an uplink hands it on."""
        try:
            message = wire.decode(one)
        except RemoteProtocolError:
            return
        if message.kind in FROM_ABOVE:
            self.perform(self.relay.from_parent(message, self.t_ns))

    def flush(self) -> None:
        self.perform(self.relay.flush(self.t_ns))

    def perform(self, effects: Iterable[Any]) -> None:
        for effect in effects:
            if isinstance(effect, ToChildren | ToEach):
                for one in effect.frames if isinstance(effect, ToEach) else [effect.frame]:
                    assert len(one) <= FRAME_MAX
                    wire.decode(one)
            elif isinstance(effect, Up):
                message = wire.message(effect.kind, effect.head, effect.body)
                self.from_root(self.root.received(message, self.t_ns, EPOCH_NS))

    def from_root(self, effects: Iterable[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Down):
                self.down(effect.kind, effect.head, effect.body)
            elif isinstance(effect, Commit):
                self.log.append(effect.chunk)
                self.from_root(self.root.durable(effect.first, effect.count, self.t_ns, EPOCH_NS))
            elif isinstance(effect, Publish):
                for event in public.events(effect.chunk, "c"):
                    assert all(map(orjson.loads, event.frames[1:]))

    def wait(self, ns: int) -> None:
        self.t_ns += ns
        self.perform(self.relay.tick(self.t_ns))
        self.from_root(self.root.tick(self.t_ns, EPOCH_NS + self.t_ns))

    def check(self) -> None:
        """A root that began on this log knows the same."""
        state = RootState()
        for chunk in self.log:
            state.apply(chunk)
        assert state.to_bytes() == self.root.state.to_bytes()
        assert RootState.from_bytes(state.to_bytes()).to_bytes() == state.to_bytes()


def relay(data: bytes) -> None:
    """Frames of every kind from every kind of sender, and time: nobody ends the relay, nor the root behind it."""
    feed = Feed(data)
    tree = Tree()
    for _ in range(12):
        if not feed:
            break
        who, kind = feed.number(), feed.number()
        if who >= 240:
            tree.wait(NS_PER_S * kind // (1 if who & 1 else 100))
        else:
            one = raw(KINDS[kind % len(KINDS)], feed.piece(), feed.piece()) if kind < 250 else feed.piece()
            if who % (len(PEERS) + 1) == len(PEERS):
                tree.told(one)
            else:
                tree.say(PEERS[who % (len(PEERS) + 1)], one)
        tree.flush()
    tree.wait(NS_PER_S)
    tree.flush()
    tree.check()


def _said(who: int, kind: str, head: bytes, body: bytes = b"") -> bytes:
    return bytes([who, KINDS.index(kind)]) + piece(head) + piece(body)


def relay_seeds() -> Iterator[bytes]:
    every = list(heads())
    for who in range(len(PEERS) + 1):
        yield from (_said(who, *each) for each in every if len(each[2]) < 4000)
    yield _said(2, "below", b'{"gone":["n3"]}') + b"\xf1\x05" + _said(2, "goodbye", b"{}") + b"\xf1\xff"
    answer = orjson.dumps({"ok": True, "exit": 0, "result": {"changes": 1, "magnitude_n": 5, "window_ns": 10**12}})
    for call in ("1.2", "1.3", "1.4"):
        for i, name in enumerate(("n1", "n2")):
            yield _said(
                i, "answer", orjson.dumps({"call": call, "final": True, "parts": [[[name], len(answer)]]}), answer
            )
        both = orjson.dumps({"call": call, "final": True, "parts": [[["n3", "n4"], len(answer)]]})
        yield b"".join(
            [
                *(
                    _said(
                        i, "answer", orjson.dumps({"call": call, "final": True, "parts": [[[n], len(answer)]]}), answer
                    )
                    for i, n in enumerate(("n1", "n2"))
                ),
                _said(2, "answer", both, answer),
            ]
        )
    for op, args in ROOT_OPS:
        for nodes in (b"null", b'"n1"', b'"n[1-99]"'):
            yield _said(
                5,
                "request",
                b'{"id":3,"op":"%b","nodes":%b,"timeout_ms":5000}' % (op.encode(), nodes),
                orjson.dumps(args),
            )
        yield _said(3, "request", b'{"id":3,"op":"%b"}' % op.encode(), orjson.dumps(args)) + b"\xf1\x20"


ROOT_OPS: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    ("nodes", {}),
    ("groups", {}),
    ("groups", {"group": "g1"}),
    ("watch", {}),
    ("fleet_hold", {"reason": "r", "for_ns": 10**12}),
    ("fleet_release", {}),
    ("apply", {"resources": {"sysctl:kernel.k0": {"attrs": {"value": "2"}}}, "message": "m"}),
    ("group_commit", {"group": "g1", "message": "m", "ttl_ns": None, "force": True, "allow_missing": True}),
    ("group_rollback", {"group": "g1", "dry_run": True}),
    ("group_extend", {"group": "g1", "by_ns": 10**10}),
    ("forget", {"nodes": "n9"}),
    ("commit", {"targets": [], "all": True, "message": "m"}),
    ("log", {"count": 5}),
    ("ping", {}),
    ("declare", {"resources": {}}),
)


def root(data: bytes) -> None:
    """Requests to the root by name and arguments alone, in a fleet that drifts through groups and holds; nodes answer
    anything."""
    feed = Feed(data)
    tree = Tree()
    for _ in range(8):
        if not feed:
            break
        what, op = feed.number(), ROOT_OPS[feed.number() % len(ROOT_OPS)][0]
        if what >= 240:
            tree.wait(NS_PER_S * (what - 239) ** 2)
        elif what >= 120:  # every open question is answered by somebody
            body = feed.piece()
            for question in list(tree.root.questions.open.values())[:3]:
                for names in (["n1"], ["n2"], ["n3", "n4"])[what % 3 :]:
                    head = orjson.dumps({"call": question.id, "final": True, "parts": [[names, len(body)]]})
                    tree.say(PEERS[{"n1": 0, "n2": 1, "n3": 2}[names[0]]], raw("answer", head, body))
                    tree.flush()
        else:
            nodes = (None, "n1", "n[1-4]", "n[1-9]", feed.piece().decode("utf-8", "replace") if what & 8 else "n2")[
                what % 5
            ]
            head = orjson.dumps({"id": what, "op": op, "nodes": nodes, "timeout_ms": 5000})
            tree.say(PEERS[3 + what % 3], raw("request", head, feed.piece()))
        tree.flush()
    tree.wait(NS_PER_S)
    tree.check()


def root_seeds() -> Iterator[bytes]:
    answers = [
        orjson.dumps({"ok": True, "exit": 0, "message": "", "result": r})
        for r in (
            {"changes": 1, "magnitude_n": 5, "window_ns": 10**12, "newest": 3},
            {"vote": "yes"},
            {"vote": "no", "why": "w"},
            {"state": "committed"},
            {"seen": True},
            {},
        )
    ]
    for n, (_, args) in enumerate(ROOT_OPS):
        asked = bytes((2, n)) + piece(orjson.dumps(args))
        yield asked
        yield asked + b"".join(b"\x78\0" + piece(a) for a in answers[:3])
        yield (
            b"\x78\0"
            + piece(answers[0])
            + b"\x78\0"
            + piece(answers[5])
            + asked
            + b"\x78\0"
            + piece(answers[1])
            + b"\xf5\0"
        )
    yield from (
        b"\x78\0" + piece(b'{"exit":0,"result":%b}' % t.replace(b"%", b"%%"))
        for t in nasty.FINE.values()
        if len(t) < 400
    )
    yield from (
        b"\2\6" + piece(b'{"resources":%b}' % t.replace(b"%", b"%%")) for t in nasty.FINE.values() if len(t) < 400
    )


# -- a node's way up ------------------------------------------------------------------------------------------------------

links.log = lambda text, level=6: None  # type: ignore[attr-defined]


# -- what nodes answered --------------------------------------------------------------------------------------------------


def answer(data: bytes) -> None:
    """A node's answer is one, or counts as a refusal; what people are told of it fits a message."""
    said = answer_of(data)
    assert 0 <= said.exit <= 255 and isinstance(said.message, str) and isinstance(said.result, dict)
    told = refusal_of(said)
    assert isinstance(told.why, str) and type(told.absent) is bool
    orjson.dumps(told.holders)
    body, note = fitting(said.result)
    assert len(body) <= RESULT_MAX and isinstance(note, str) and orjson.loads(body) is not None


def answer_seeds() -> Iterator[bytes]:
    yield b'{"ok":true,"exit":0,"message":"m","hint":"","result":{"why":"w","holders":[{"pid":1,"path":"x","how":5}],"absent":true}}'
    yield b'{"exit":300}'
    yield b'{"exit":0,"result":{"groups":[{"id":"g1"}],"nodes":{},"members":{}}}'
    for text in (*nasty.REFUSED.values(), *nasty.FINE.values()):
        if len(text) < 600:
            yield b'{"exit":0,"message":"","result":{"why":' + text + b',"holders":[' + text + b"]}}"


FIELDS: Final = [f'"{f}":'.encode() for f in sorted({f for k in wire.KINDS.values() for f in k.fields})]
OPS: Final = [f'"op":"{op}"'.encode() for op, _ in ROOT_OPS]
WORDS: Final = [
    *FIELDS,
    *OPS,
    b'"1.1"',
    b'"1.2"',
    b'"n1"',
    b'"n3"',
    b'["n3","n4"]',
    b"18446744073709551615",
    b"true",
    b"null",
]
TARGETS: Final = {
    t.name: t
    for t in (
        Target("frame", frame, frame_seeds, WORDS, 2048),
        Target("relay", relay, relay_seeds, WORDS, 3072),
        Target(
            "root", root, root_seeds, [b'"group":"g1"', b'"resources":', b'"window_ns":', b'"vote":"yes"', *WORDS], 2048
        ),
        Target("answer", answer, answer_seeds, [b'"holders":[{', b'"result":{', b'"groups":[{', b'"exit":0']),
    )
}
