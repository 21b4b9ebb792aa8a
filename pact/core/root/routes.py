"""The root's side of streams: which client's request a call belongs to. A stream exists only for a call that the root
has sent for a person, to a node that was asked, while that person's client listens.

The call says for which client it is: a relay that has both the node and the client below it joins them by itself
(``pact.core.tree.clients.Turn``), and nothing of that stream comes here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pact.core import ops
from pact.core.ops import BULK
from pact.core.root.envelope import Envelope
from pact.core.root.term import Term
from pact.core.tree.streams import end_of
from pact.core.tree.wire import Head, Message

#: In an answer that opens a stream. Inside a text its quotes would be escaped.
OPENS: Final = b'"stream":'


@dataclass(slots=True)
class Route:
    """``nodes``: those that were asked and whose streams have not ended; the value says whether one has begun.
    ``streams``: those of them whose answer has opened one."""

    call: str
    client: str
    id: int
    op: str
    nodes: dict[str, bool]
    streams: set[str] = field(default_factory=set)


class Routes:
    """All streams of one root."""

    def __init__(self, root: Term) -> None:
        self._root = root
        self._by_call: dict[str, Route] = {}
        self._by_client: dict[tuple[str, int], Route] = {}

    def begin(self, call: str, head: Envelope, names: Iterable[str]) -> None:
        """A request that may open streams was sent to these nodes."""
        if head.op not in ops.STREAMING or not call:
            return
        if head.key in self._by_client:  # a client of ours counts on: else nobody would find the earlier call any more
            self.cancelled(*head.key)
        route = Route(call, head.client, head.id, head.op, dict.fromkeys(names, False))
        self._by_call[call] = self._by_client[head.key] = route

    def answered(self, call: str, names: Iterable[str], body: bytes) -> None:
        """These nodes have given this answer."""
        if OPENS in body and (route := self._by_call.get(call)) is not None:
            route.streams.update(route.nodes.keys() & names)

    def settled(self, call: str) -> None:
        """All nodes have answered, or are given up: of those that have opened no stream nothing can come."""
        route = self._by_call.get(call)
        if route is None:
            return
        route.nodes = {n: begun for n, begun in route.nodes.items() if begun or n in route.streams}
        if not route.nodes:
            self._drop(route)
            self._root.down("drop", {"call": call, "client": route.client, "id": route.id})

    def frames(self, message: Message) -> None:
        """Pass on what a node or a client says."""
        head = message.head
        node = head["node"]
        route = (
            self._by_call.get(head["call"]) if not head["client"] else self._by_client.get((head["client"], head["id"]))
        )
        if route is None or node not in route.nodes:
            if not head["end"]:
                self._root.down("frames", end_of(head, "there is no such stream"))
            return
        if head["bulk"] != (route.op in BULK):
            self._root.refuse("frames that are not what they say", node)
            self._end(route, node, "what a relay passed on was no frame of this stream")
            return
        begun = route.nodes[node]
        route.nodes[node] = True
        if head["end"]:
            self._forget(route, node)
        if head["client"]:
            said = {**head, "call": route.call, "client": "", "id": 0}
        else:
            said = {**head, "call": "", "client": route.client, "id": route.id}
        if head["end"] and head["client"] and not begun:
            return
        self._root.down("frames", said, message.body)

    def cancelled(self, client: str, id_: int) -> None:
        """The client no longer listens to this request (0: to none)."""
        for route in [r for r in self._by_client.values() if r.client == client and id_ in (0, r.id)]:
            for node, begun in list(route.nodes.items()):
                if begun:
                    self._root.down("frames", end_of(self._to_node(route, node), "the client is gone"))
            self._drop(route)

    def gone(self, names: Iterable[str]) -> None:
        """These nodes are no longer connected."""
        for route in list(self._by_call.values()):
            for node in [n for n in names if route.nodes.get(n)]:
                self._end(route, node, f"lost contact with {node}")

    def _end(self, route: Route, node: str, why: str) -> None:
        """End a stream on both sides."""
        self._forget(route, node)
        self._root.down("frames", end_of(self._to_node(route, node), why))
        self._root.down("frames", end_of(self._to_client(route, node), why))

    def _forget(self, route: Route, node: str) -> None:
        del route.nodes[node]
        if not route.nodes:
            self._drop(route)

    def _drop(self, route: Route) -> None:
        self._by_call.pop(route.call, None)
        self._by_client.pop((route.client, route.id), None)

    @staticmethod
    def _to_node(route: Route, node: str) -> Head:
        return {"call": route.call, "client": "", "id": 0, "node": node, "bulk": route.op in BULK}

    @staticmethod
    def _to_client(route: Route, node: str) -> Head:
        return {"call": "", "client": route.client, "id": route.id, "node": node, "bulk": route.op in BULK}
