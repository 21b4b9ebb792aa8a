"""The people below a relay: their requests go up with their names, and the answers come down to them.

A client's name in the tree consists of its relay and its session, so that a late answer never reaches another client.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pact.core import ops
from pact.core.tree.checks import BODY_MAX
from pact.core.tree.directory import Child
from pact.core.tree.outbox import Up
from pact.core.tree.wire import Head, Message
from pact.errors import EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE
from pact.limits import (
    NODE_SET_MAX,
    REQUEST_MAX,
    TREE_CLIENTS_ADMIN,
    TREE_CLIENTS_BEYOND_MAX,
    TREE_CLIENTS_EACH_MAX,
    TREE_CLIENTS_MAX,
    TREE_REQUESTS_MAX,
)

CLIENT: Final = "client"


def request_max(role: str) -> int:
    """The most bytes of a request's arguments. Operations of administrators need more. A request goes to every
    node.  # S8"""
    return BODY_MAX if role == "admin" else REQUEST_MAX


Result = tuple[Child, Head]


class Turn:
    """A call with streams that has come through this relay, for a client that is below it, too: what its nodes and
    that client say to each other need go no further up."""

    __slots__ = ("bulk", "client", "id", "nodes", "over")

    def __init__(self, client: str, id_: int, bulk: bool) -> None:
        self.client, self.id, self.bulk = client, id_, bulk
        self.nodes: set[str] = set()
        self.over: set[str] = set()  # nodes whose stream has ended: nothing of it comes after that


class _Client:
    """The child that gets the answers for a client, and the client's open requests."""

    __slots__ = ("child", "requests", "streams")

    def __init__(self, child: Child) -> None:
        self.child = child
        self.requests: set[int] = set()
        # requests whose streams go on after their answers, until they are cancelled: -> their call, once it has come
        self.streams: dict[int, str] = {}


def failed(child: Child, head: Head, why: str, exit_code: int = EXIT_UNREACHABLE) -> Result:
    """A ``result`` for a request that cannot be carried out now."""
    client = "" if child.role == CLIENT else head[CLIENT]
    return child, {CLIENT: client, "id": head["id"], "exit": exit_code, "message": why}


class Clients:
    """``relay``: the relay's name."""

    def __init__(self, relay: str) -> None:
        self._relay = relay
        self._clients: dict[str, _Client] = {}
        self._turns: dict[str, Turn] = {}

    def enter(self, child: Child) -> bool:
        """Begin a session. Returns False if its key has too many, or all have."""
        name = f"{self._relay}:{child.session:x}"
        same = sum(c.child.peer.key == child.peer.key for c in self._clients.values() if c.child.role == CLIENT)
        if name in self._clients or same >= TREE_CLIENTS_EACH_MAX or not self._room(child.peer.role):
            return False
        child.client = name
        self._clients[name] = _Client(child)
        return True

    def _room(self, role: str) -> bool:
        """Whether there is a place: whoever has many keys keeps no administrator out."""
        return len(self._clients) < TREE_CLIENTS_MAX - (TREE_CLIENTS_ADMIN if role != "admin" else 0)

    def leave(self, child: Child) -> list[Up]:
        """A client, or an aggregator with clients below, has gone: nobody waits for its requests any more."""
        out = []
        for name in [name for name, c in self._clients.items() if c.child is child]:
            client = self._clients.pop(name)
            out += [Up("cancel", {"id": i, CLIENT: name}) for i in sorted(client.requests | client.streams.keys())]
            for call in client.streams.values():
                self._turns.pop(call, None)
        return out

    def renewed(self, old: Child, child: Child) -> None:
        """An aggregator has said hello again on the same connection."""
        for client in self._clients.values():
            if client.child is old:
                client.child = child

    def request(self, child: Child, message: Message, why: str) -> Up | Result | None:
        """The message to send up; or the failure; or None for a client that is not below this child. ``why`` it cannot
        be carried out now, else empty."""
        head = message.head
        if child.role == CLIENT:
            caller = {"user": child.name, "role": child.peer.role, "via": "cluster"}  # T13: from the key
            head = {**head, CLIENT: child.client, "caller": caller, "direct": True}
        else:  # its caller was filled in by another relay
            head = {**head, "direct": False}
        client = self._clients.get(head[CLIENT])
        if client is None and head[CLIENT]:
            same = sum(c.child is child for c in self._clients.values())
            if same >= TREE_CLIENTS_BEYOND_MAX or not self._room(head["caller"]["role"]):
                return failed(child, head, "too many people ask at once")
            client = self._clients[head[CLIENT]] = _Client(child)
        if client is None or client.child is not child:
            return None
        if (failure := self._failure(child, client, message, head, why)) is not None:
            self._forget(head[CLIENT], client)
            return failure
        client.requests.add(head["id"])
        if head["op"] in ops.STREAMING:
            client.streams.setdefault(head["id"], "")
        return Up("request", head, message.body)

    def _failure(self, child: Child, client: _Client, message: Message, head: Head, why: str) -> Result | None:
        # Each relay adds to the head: a head that just fits here would not fit above.
        if len(head["nodes"] or "") > NODE_SET_MAX:
            return failed(child, head, f"a node set of more than {NODE_SET_MAX} characters", EXIT_USAGE)
        most = request_max(child.peer.role) if child.role == CLIENT else BODY_MAX
        if len(message.body) > most:
            return failed(child, head, f"a request of {len(message.body)} bytes; at most {most}", EXIT_USAGE)
        if why:
            return failed(child, head, why)
        if len(client.requests | client.streams.keys()) >= TREE_REQUESTS_MAX and head["id"] not in client.requests:
            return failed(child, head, f"{TREE_REQUESTS_MAX} requests are under way already")
        return None

    def unsent(self, head: Head, why: str) -> Result | None:
        """A request of this client, or a message to it, does not fit a frame: this failure goes to the client
        instead."""
        client = self._clients.get(head[CLIENT])
        if client is None:
            return None
        client.requests.discard(head["id"])
        self._forget(head[CLIENT], client)
        return failed(client.child, head, why, EXIT_FAILED)

    def _forget(self, name: str, client: _Client) -> None:
        """Of somebody below another aggregator nothing is kept between requests: nobody says here that he has left."""
        if client.child.role != CLIENT and not client.requests and not client.streams:
            self._clients.pop(name, None)

    def cancel(self, child: Child, head: Head) -> list[Up]:
        name = child.client or head[CLIENT]
        client = self._clients.get(name)
        if client is None or client.child is not child:
            return []
        if head["id"] not in client.requests and head["id"] not in client.streams:
            return []
        client.requests.discard(head["id"])
        self._turns.pop(client.streams.pop(head["id"], ""), None)
        self._forget(name, client)
        return [Up("cancel", {"id": head["id"], CLIENT: name})]

    def settled(self, head: Head) -> Child | None:
        """The root says that no stream of this request goes on. Returns the child that leads to its client."""
        client = self._clients.get(head[CLIENT])
        if client is None or client.streams.get(head["id"]) not in ("", head["call"]):
            return None
        del client.streams[head["id"]]
        self._turns.pop(head["call"], None)
        self._forget(head[CLIENT], client)
        return client.child

    def lost(self) -> list[Result]:
        """The way to the root is lost: open requests fail."""
        out = []
        for name, client in list(self._clients.items()):
            why = "the way to the root was lost; what was asked may still be done"
            out += [failed(client.child, {CLIENT: name, "id": i}, why) for i in sorted(client.requests)]
            client.requests.clear()
            client.streams.clear()
            self._forget(name, client)
        self._turns.clear()
        return out

    def called(self, head: Head, nodes: Iterable[str]) -> None:
        """A call goes down to these nodes; if a client below has asked for it, its streams turn round here."""
        client = self._clients.get(head[CLIENT]) if head[CLIENT] else None
        if (
            client is None
            or head["op"] not in ops.STREAMING
            or client.streams.get(head["id"]) not in ("", head["call"])
        ):
            return
        client.streams[head["id"]] = head["call"]
        turn = self._turns.get(head["call"])
        if turn is None:
            turn = self._turns[head["call"]] = Turn(head[CLIENT], head["id"], head["op"] in ops.BULK)
        turn.nodes.update(nodes)

    def turned(self, head: Head) -> Head | None:
        """What a message of a stream is to the other end, if that is below this relay, too."""
        call, turn = self._turn(head)
        if turn is None or head["node"] not in turn.nodes or head["bulk"] != turn.bulk:
            return None
        if head["end"]:
            turn.over.add(head["node"])
        if head[CLIENT]:
            return {**head, "call": call, CLIENT: "", "id": 0}
        return {**head, "call": "", CLIENT: turn.client, "id": turn.id}

    def over(self, head: Head) -> bool:
        """Whether the stream has turned round here, and has ended."""
        turn = self._turn(head)[1]
        return turn is not None and head["node"] in turn.over

    def _turn(self, head: Head) -> tuple[str, Turn | None]:
        call = self._call_of(head[CLIENT], head["id"]) if head[CLIENT] else head["call"]
        return call, self._turns.get(call)

    def _call_of(self, name: str, id_: int) -> str:
        client = self._clients.get(name)
        return client.streams.get(id_, "") if client is not None else ""

    def call_of(self, child: Child, name: str, id_: int) -> str:
        """The call of a request of a client below this child, if its streams turn round here."""
        return self._call_of(name, id_) if self.child(name) is child else ""

    def streams(self, child: Child, name: str, id_: int) -> bool:
        """Whether this child leads to the client, and the request is one that may have streams."""
        client = self._clients.get(name)
        return client is not None and client.child is child and id_ in client.streams

    def child(self, name: str) -> Child | None:
        """The child that leads to a client."""
        client = self._clients.get(name)
        return None if client is None else client.child

    def down(self, message: Message) -> Result | None:
        """The child that gets a message from above, and the head for it."""
        head = message.head
        client = self._clients.get(head[CLIENT])
        if client is None:
            return None
        if message.kind == "result":
            client.requests.discard(head["id"])
            self._forget(head[CLIENT], client)
        return client.child, {**head, CLIENT: ""} if client.child.role == CLIENT else head
