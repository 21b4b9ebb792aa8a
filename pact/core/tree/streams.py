"""Streams: what travels both ways between a person and one node, through every relay between them.

A stream belongs to a call that the root has authorised. Its messages (``frames``) are routed by the call and the node
below the root, and by the client, its request and the node on the person's side. Who joins the two is the lowest relay
that has both below it: a call says for whom it is (``pact.core.tree.clients.Turn``); else the root. Nothing is kept
here but numbers: a receiver says how much it may still be sent, ends keep to it, and a relay that sees more than that
ends the stream (``Streams``). So the most that can wait in a relay is known in advance.

What the two ends say is encrypted and sealed with a key that they alone have (``pact.net.ends``): a relay can
delay and drop, which ends the stream, but neither read, type nor show anything.  # T15
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from pact.core.tree.clients import CLIENT, Clients
from pact.core.tree.directory import Child, Directory
from pact.core.tree.lanes import (
    BULK_CREDIT,
    BULK_WINDOW_MAX,
    CONTROL_MAX,
    CREDIT,
    PIECE_MAX,
    WINDOW_MAX,
    Lane,
    cost,
)
from pact.core.tree.outbox import Up
from pact.core.tree.wire import Head, Message, NewHead

#: The most that may be on its way from one child, or to it, of all its streams together.
CHILD_WINDOW_MAX: Final = {"node": 16 << 20, "client": 64 << 20, "aggregator": 128 << 20}
#: How many streams may lead to or from one child.
STREAMS_MAX: Final = {"node": 1024, "client": 16_384, "aggregator": 16_384}
WHY_MAX: Final = 200
CALL_MAX: Final = 64  # characters of a call's name

Key = tuple[str, str, int, str]


def key_of(head: Head) -> Key:
    """What a stream is called on one side of the root."""
    return head["call"], head["client"], head["id"], head["node"]


def end_of(head: Head, why: str) -> NewHead:
    """The last message of a stream that ends on the way: it has no seal, and can say nothing but why."""
    named = {k: head[k] for k in ("call", "client", "id", "node")}
    return {**named, "n": 0, "give": 0, "size": 0, "bulk": head["bulk"], "end": True, "why": why[:WHY_MAX]}


# -- what a relay knows -----------------------------------------------------------------------------------------------


class Flow:
    """One stream at one relay. ``up`` and ``down``: how many bytes may still pass; ``behind`` and ``ahead``: how many
    have passed upwards, and downwards, for which nobody has given credit yet."""

    __slots__ = ("ahead", "behind", "child", "down", "head", "most", "up")

    def __init__(self, child: Child, head: Head) -> None:
        self.child = child
        self.head = head
        self.up = self.down = BULK_CREDIT if head["bulk"] else CREDIT
        self.most = BULK_WINDOW_MAX if head["bulk"] else WINDOW_MAX
        self.behind = self.ahead = 0


class Down(NamedTuple):
    """A message for a child."""

    child: Child
    kind: str
    head: Head
    body: bytes = b""


Said = list[Up | Down]


class Streams:
    """All streams of one relay. ``above``: the parent is a process of its own."""

    def __init__(self, clients: Clients, tree: Directory) -> None:
        self._clients, self._tree = clients, tree
        self.open: dict[Key, Flow] = {}
        self.above = Lane()
        self._behind: dict[bytes, int] = {}  # by child
        self._ahead: dict[bytes, int] = {}
        self._count: dict[bytes, int] = {}
        self.lanes: dict[bytes, Lane] = {}  # by child
        self._whose: deque[tuple[bytes, int]] = deque()  # what waits in ``above``: of which child, and how much
        self._held: dict[bytes, int] = {}  # the same by child
        self.answered: set[bytes] = set()  # clients to which a node has said something
        self.terminals = 0  # how many of them are no commands' output

    # -- what comes -----------------------------------------------------------------------------------------------

    def read(self, child: Child, message: Message) -> Said:
        """A message was read, whatever becomes of it: who sends output waits to hear so. What is dropped counts, too:
        else the lane below would have less room after each, and none in the end."""
        if message.kind == "frames" and message.head["bulk"] and child.role != CLIENT:
            size = self._lane(child).has_read(message.body)
            return [Down(child, "took", {"bytes": size})] if size else []
        return []

    def from_child(self, child: Child, message: Message, hops: bool) -> tuple[Said, str]:
        """What to pass on, and why this breaks the rules (``""``: it does not). ``hops``: the parent is another
        process."""
        head, body = message.head, message.body
        if child.role == CLIENT:
            head = {**head, "call": "", "client": child.client}
            if not self._clients.streams(child, head["client"], head["id"]):
                return [], "" if head["end"] or not head["size"] else "frames that belong to no request"
        elif head["client"]:
            if not self._clients.streams(child, head["client"], head["id"]):  # it may have just left
                return [], "" if self._clients.child(head["client"]) in (child, None) else "frames of another's client"
        elif self._tree.where.get(head["node"]) is not child:
            left = self.open.get(key_of(head))  # a node's stream may end after the news that it is not there any more
            if not head["end"] or left is None or left.child is not child:
                return [], "frames of a node that is not below it"
        if len(head["call"]) > CALL_MAX or len(head["why"]) > WHY_MAX:
            return [], "frames of a call with an endless name, or reason"
        out: Said = []
        by = child if hops else None
        key = key_of(head)
        flow = self.open.get(key)
        if flow is not None and flow.child is not child:
            self._close(key)
            flow = None
        if flow is None:
            if self._clients.over(head):
                return out, ""
            if head["end"] and (head["size"] or len(body) > CONTROL_MAX):
                return out, ""  # it was ended before
            if self._held.get(child.rid, 0) > CHILD_WINDOW_MAX[child.role]:
                return out, "more than goes up"
            if head["end"]:
                return [*out, *self._rise(head, body, by)], ""
            if self._count.get(child.rid, 0) >= STREAMS_MAX[child.role]:
                return [*out, Down(child, "frames", _for(child, end_of(head, "too many streams at once")))], ""
            flow = self._begin(key, child, head)
        why = self._fault(head, body)
        if not why:
            read = min(flow.ahead, head["give"])
            size = cost(head, body, read)
            flow.up -= size
            flow.down = min(flow.down + head["give"], flow.most)
            flow.ahead -= read
            self._ahead[child.rid] = self._ahead.get(child.rid, 0) - read
            flow.behind += size
            self._behind[child.rid] = behind = self._behind.get(child.rid, 0) + size
            if flow.up < 0 or max(behind, self._held.get(child.rid, 0)) > CHILD_WINDOW_MAX[child.role]:
                why = "more on a stream than anybody asked for"
        if why:
            self._close(key)
            said = end_of(head, why)
            return [*out, Down(child, "frames", _for(child, said)), *self._rise(said, b"", by)], why
        if head["end"]:
            self._close(key)
        return [*out, *self._rise(head, body, by)], ""

    def from_parent(self, message: Message, hops: bool) -> tuple[Said, str]:
        head, body = message.head, message.body
        out: Said = []
        if head["bulk"] and hops and (size := self.above.has_read(body)):
            out.append(Up("took", {"bytes": size}))
        child = self._clients.child(head["client"]) if head["client"] else self._tree.where.get(head["node"])
        key = key_of(head)
        flow = self.open.get(key)
        if child is None or (flow is not None and flow.child is not child):
            self._close(key)
            return out if head["end"] else [*out, *self._rise(end_of(head, "it is not here any more"))], ""
        if flow is None:
            if head["end"]:
                return [*out, Down(child, "frames", _for(child, head), body)], ""
            if self._count.get(child.rid, 0) >= STREAMS_MAX[child.role]:
                return [*out, *self._rise(end_of(head, "too many streams at once"))], ""
            flow = self._begin(key, child, head)
        why = self._fault(head, body)
        back = min(flow.behind, head["give"])
        size = cost(head, body, back)
        lane = self.lanes.get(child.rid)
        flow.down -= size
        flow.ahead += size
        self._ahead[child.rid] = ahead = self._ahead.get(child.rid, 0) + size
        if not why and lane is not None:  # streams that have ended have left something, too
            ahead = max(ahead, lane.held)
        if not why and (flow.down < 0 or ahead > CHILD_WINDOW_MAX[child.role]):
            why = "more on a stream than anybody asked for" if flow.down < 0 else f"{child.name} reads too little"
        if why:
            if child.role == CLIENT:
                flow.ahead = 0  # what it has not read stays on its way, and counts until it has gone
            self._close(key)
            said = end_of(head, why)
            return [*out, *self._rise(said), Down(child, "frames", _for(child, said))], why
        if child.role == CLIENT and not head["end"]:
            self.answered.add(child.rid)
        flow.up = min(flow.up + head["give"], flow.most)
        flow.behind -= back
        self._behind[child.rid] = self._behind.get(child.rid, 0) - back
        if head["end"]:
            self._close(key)
        if head["bulk"] and (child.below is not None or child.role == CLIENT):
            self._lane(child).put(head, body)
            return [*out, *self.pass_down(child)], ""
        return [*out, Down(child, "frames", _for(child, head), body)], ""

    def took(self, child: Child | None, size: int) -> Said:
        """The other side of a link has read so much of commands' output; ``None``: the parent."""
        if child is None:
            self.above.took(size)
            return list(self.pass_up())
        self._lane(child).took(size)
        return list(self.pass_down(child))

    def pass_up(self) -> Iterable[Up]:
        while (said := self.above.next()) is not None:
            rid, size = self._whose.popleft()
            if (left := self._held.pop(rid, size) - size) > 0:
                self._held[rid] = left
            yield Up("frames", *said)

    def pass_down(self, child: Child) -> Iterable[Down]:
        lane = self._lane(child)
        while (said := lane.next()) is not None:
            yield Down(child, "frames", _for(child, said[0]), said[1])

    def _rise(self, head: Head, body: bytes = b"", by: Child | None = None) -> Said:
        """On towards the other end: up, or down again if that is below this relay, too. ``by``: the child that has said
        it, if commands' output waits on the way up."""
        other = self._clients.turned(head)
        if other is not None:
            return self.from_parent(Message("frames", other, body), False)[0]
        return [*self._pass_up(head, body, by)]

    def _pass_up(self, head: Head, body: bytes, by: Child | None) -> Iterable[Up]:
        if not head["bulk"] or by is None:
            return [Up("frames", head, body)]
        before = self.above.held
        self.above.put(head, bytes(body))
        size = self.above.held - before
        self._whose.append((by.rid, size))
        self._held[by.rid] = self._held.get(by.rid, 0) + size
        return self.pass_up()

    # -- what ends ------------------------------------------------------------------------------------------------

    def gone(self, child: Child, why: str) -> Said:
        """A child has gone: its streams end on the other side. Call it before the child has left."""
        heads = {key: flow.head for key, flow in self.open.items() if flow.child is child}
        for key in heads:
            self._close(key)
        out = [one for head in heads.values() for one in self._rise(end_of(head, why))]
        self._behind.pop(child.rid, None)
        self._ahead.pop(child.rid, None)
        self._count.pop(child.rid, None)
        self.lanes.pop(child.rid, None)
        self.answered.discard(child.rid)
        return out

    def renewed(self, old: Child, child: Child) -> None:
        """A child has said hello again on the same connection."""
        for flow in self.open.values():
            if flow.child is old:
                flow.child = child

    def cancelled(self, child: Child, client: str, id_: int) -> Said:
        """A client has left this request: what turns round here ends at the nodes. Call it before it is forgotten."""
        call = self._clients.call_of(child, client, id_)
        heads = [flow.head for key, flow in self.open.items() if call and key[0] == call]
        out: Said = []
        for head in heads:
            end = end_of(head, "the client is gone")
            other = self._clients.turned(end)
            if other is not None:
                self._close(key_of(other))  # nobody is told there
            out += self.from_parent(Message("frames", end), False)[0]
        return out

    def lost(self, why: str) -> list[Down]:
        """The parent is lost: all streams end below."""
        out = [Down(f.child, "frames", _for(f.child, end_of(f.head, why))) for f in self.open.values()]
        for key in list(self.open):
            self._close(key)
        self.above = Lane()
        self._whose.clear()
        self._held.clear()
        for lane in self.lanes.values():
            lane.clear()
        return out

    # -- small things ---------------------------------------------------------------------------------------------

    def _lane(self, child: Child) -> Lane:
        return self.lanes.setdefault(child.rid, Lane())

    def _begin(self, key: Key, child: Child, head: Head) -> Flow:
        self.open[key] = flow = Flow(child, {k: head[k] for k in ("call", "client", "id", "node", "bulk")})
        self._count[child.rid] = self._count.get(child.rid, 0) + 1
        self.terminals += not head["bulk"]
        return flow

    def _close(self, key: Key) -> None:
        flow = self.open.pop(key, None)
        if flow is None:
            return
        rid = flow.child.rid
        self.terminals -= not flow.head["bulk"]
        self._count[rid] = self._count.get(rid, 1) - 1
        self._behind[rid] = self._behind.get(rid, 0) - flow.behind
        self._ahead[rid] = self._ahead.get(rid, 0) - flow.ahead

    @staticmethod
    def _fault(head: Head, body: bytes) -> str:
        if head["size"] > PIECE_MAX or not head["size"] <= len(body) <= head["size"] + CONTROL_MAX:
            return "a message of the wrong size on a stream"
        return ""


def _for(child: Child, head: Head) -> Head:
    """A client is not told its own name."""
    return {**head, "client": ""} if child.role == CLIENT else head
