"""What parents say to a node: calls, acknowledgements, holds."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final

import orjson

from fuzz.entrances import Agent, _world
from fuzz.kit import Feed, Target
from fuzz.tree import KINDS, WORDS, _said, heads, raw
from pact.agent.executing import Executing
from pact.agent.link import Link
from pact.agent.remote import Callers
from pact.agent.requests import Requests
from pact.agent.streams import Streams
from pact.core.node import bonds
from pact.core.tree import wire
from pact.core.tree.member import Calls, Member
from pact.core.tree.nodeseals import NodeSeals
from pact.core.tree.outbox import Outbox
from pact.core.tree.parents import Parent
from pact.core.tree.uplink import Send
from pact.errors import RemoteProtocolError
from pact.host.budget import Budget
from pact.model import NS_PER_S

SEALED_FOR: Final = "5ea1ed00"
PARENTS: Final = [Parent("tcp://a1:1", "k", "r0"), Parent("tcp://a2:1", "k", "r1")]


class Bodies:
    """Of a virtual node's journal."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def newest(self, *_: Any, **__: Any) -> Iterator[Any]:
        return iter(())

    def bodies(self, first: int, limit: int) -> Iterator[tuple[str, bytes]]:
        for record in self._agent.world.journal[first : first + limit]:
            value = record.to_json()
            yield value.pop("hash"), orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _link(sealed: int) -> tuple[Link, list[Any]]:
    agent: Any = Agent(_world(True))
    agent.config.name = "sim"
    world, sent = agent.world, list[Any]()
    agent.tell = lambda event: world.feed(lambda: event)
    requests = Requests(agent)
    agent.journal = SimpleNamespace(
        path="/nonexistent", blob=lambda d: None, newest=Bodies(agent).newest, bodies=Bodies(agent).bodies
    )
    out: Any = Link.__new__(Link)
    first = world.journal[0].hash[:16]
    out._requests = requests
    out.agent, out._refusal, out._path, out._saved = agent, "", "/nonexistent/x", -1
    out.links = SimpleNamespace(perform=sent.append, readable=lambda: False, refusing=list, drain=list)
    out.outbox = Outbox("sim", first, newest=world.journal[-1].seq)
    out.member = Member(
        out.outbox,
        PARENTS,
        random.Random(1),
        session=1 << 40,
        version="",
        rack="r1",
        wall_ns=lambda: world.wall_ns,
        unfinished=lambda: bonds.unfinished(world.node),
        calls=Calls(),
        seals=NodeSeals({SEALED_FOR: b"k" * 32}, 1 << 40, required=bool(sealed & 1)) if sealed else None,
    )
    out.uplink = out.member.uplink
    out._recent, out._todo = deque(), deque()
    out._recent_bytes = out._reread_ns = out._since_wall_ns = out._save_ns = out._said_forked = 0
    out._unread, out._callers, out._budget, out._under = False, Callers(), Budget(), ""
    out.streams = Streams(out, None)
    out.executing = Executing(out.streams)
    agent.link = out
    return out, sent


def uplink(data: bytes) -> None:
    """What parents say to a node. Whatever it is, what the node answers and sends up are frames, and its journal
    replays."""
    feed = Feed(data)
    flags = feed.number()
    node, sent = _link(flags >> 1 & 3)
    world = node.agent.world

    def work() -> None:
        node._apply(node.member.tick(world.t_ns))
        for _ in range(8):
            if node._todo:
                node._next(node._todo.popleft(), world.t_ns)
        for effect in sent:
            if isinstance(effect, Send):
                wire.decode(effect.frame)
        sent.clear()

    work()
    if flags & 1:
        welcome = {"v": 1, "name": "a", "path": ["root", "a"], "fence": 1, "credit": 1 << 20, "with_answers": True}
        for parent in PARENTS:
            node._apply(node.member.received(parent.url, wire.message("welcome", welcome), world.t_ns))
    for _ in range(8):
        if not feed:
            break
        who, kind = feed.number(), feed.number()
        if who >= 240:
            world.advance(NS_PER_S * kind)
        else:
            one = raw(KINDS[kind % len(KINDS)], feed.piece(), feed.piece()) if kind < 250 else feed.piece()
            try:
                message = wire.decode(one)
            except RemoteProtocolError:
                continue
            node._apply(node.member.received(PARENTS[who & 1].url, message, world.t_ns))
        if world.journal[-1].seq > node.outbox.newest:
            node._queue(node.outbox.recorded(world.journal[-1].seq, world.t_ns, wait_ns=0))
        work()
    orjson.dumps(node.status())
    world.check()


def uplink_seeds() -> Iterator[bytes]:
    every = list(heads())
    for joined in (b"\0", b"\1"):
        for who in (0, 1):
            yield from (joined + _said(who, *each) for each in every)
    calls = [each for each in every if each[0] == "call"]
    fleet = next(each for each in every if each[0] == "fleet")
    for at in range(0, len(calls) - 2, 2):
        yield b"\1" + b"".join(_said(0, *each) for each in calls[at : at + 3]) + _said(0, *fleet) + b"\xf0\x20"
    yield (
        b"\1"
        + _said(
            0,
            "fleet",
            orjson.dumps(
                {
                    "fence": 2,
                    "seq": 2,
                    "holds": [{"hold": "f1", "owner": "o", "reason": "r", "ends": "x", "left_ns": (1 << 64) - 1}],
                }
            ),
        )
        + b"\xf0\x20"
    )


TARGETS: Final = {"uplink": Target("uplink", uplink, uplink_seeds, WORDS, 3072)}
