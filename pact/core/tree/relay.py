"""One member of the tree between its children and its parent: sessions, the directory of nodes, events up, calls down.

Every message is checked against the key that sent it: a node speaks only for itself, an aggregator for the nodes below
it, a person only makes requests. A message that breaks this is dropped, counted, and logged once with a count; it is
never fatal.  # T13

The parent may be another aggregator (over an uplink) or the root in the same process; the relay does not see the
difference: messages for it are ``Up`` effects of ``flush``, messages of it come in by ``from_parent``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pact.core.tree import checks, wire
from pact.core.tree.acks import Acks
from pact.core.tree.backlog import Backlog
from pact.core.tree.beats import Beats
from pact.core.tree.calls import SPLICED_MAX, Call, Calls
from pact.core.tree.clients import Clients
from pact.core.tree.directory import ROOT, Child, Directory, Peer, Rid, checksum, older
from pact.core.tree.outbox import Up
from pact.core.tree.streams import Said, Streams
from pact.core.tree.uplink import SILENCE_NS, STOOD_NS, Note
from pact.core.tree.wire import Head, Message, NewHead
from pact.errors import LocalProtocolError
from pact.limits import RECORD_MAX
from pact.model import NS_PER_S

CHILDREN_MAX: Final = 256
BUFFER_MAX: Final = 64 << 20
CREDIT_MIN: Final = 64 << 10
CREDIT_MAX: Final = 1 << 20
FRAMES_PER_S: Final = {"node": 2_000, "aggregator": 50_000, "client": 200}
STREAM_FRAMES_PER_S: Final = {"node": 20_000, "aggregator": 100_000, "client": 20_000}
HELLOS_PER_S: Final = {"node": 4, "aggregator": 4, "client": 32}  # of one key; people have several connections at once
DROPPED_NS: Final = 30 * NS_PER_S  # an aggregator that was away for longer has lost its nodes
DROPPED_MAX: Final = 256
AGAIN_NS: Final = 2 * NS_PER_S  # open calls are sent to one child again at most this often
UNROOTED_RETRY_MS: Final = 1_000
REFUSED_RETRY_MS: Final = 30_000
SCAN_NS: Final = NS_PER_S
UNREAD_MAX_NS: Final = 5 * NS_PER_S  # a flood must not keep dead children for longer
LATE_MAX_NS: Final = 30 * NS_PER_S  # who is busy for long, and never reads all, must serve people again
NOTE_NS: Final = 60 * NS_PER_S
NOTES_MAX: Final = 4096
DETAIL_MAX: Final = 200
UNSEALED: Final = "this cluster is sealed: [cluster] roots of the agent must name the key of this root"

#: The place of each role's key in the tree. Subscribers have none.
PLACES: Final = {"node": "node", "aggregator": "aggregator", "viewer": "client", "ops": "client", "admin": "client"}
MAY_SAY: Final = {
    "node": frozenset({"beat", "events", "ask", "answer", "frames", "goodbye"}),
    "aggregator": frozenset(
        {"beat", "events", "ask", "answer", "below", "request", "cancel", "frames", "took", "goodbye"}
    ),
    "client": frozenset({"beat", "request", "cancel", "frames", "took", "goodbye"}),
}


NOBODY: Final = Child(b"", Peer("", "", ""), "node", 0, "", 0)


class ToChildren(NamedTuple):
    """One frame, the same bytes, to each of these routing ids."""

    rids: tuple[Rid, ...]
    frame: bytes


class ToEach(NamedTuple):
    """To each of these routing ids a separate frame."""

    rids: tuple[Rid, ...]
    frames: list[bytes]


class Ended(NamedTuple):
    """A session has ended: nothing is sent to this routing id any more."""

    rid: Rid


Effect = ToChildren | ToEach | Up | Ended | Note


class Relay:
    """See the module. Use: ``received`` and ``from_parent`` for each message, then ``flush``; ``tick`` at its time."""

    def __init__(
        self,
        name: str,
        *,
        rack: str = "",
        children_max: int = CHILDREN_MAX,
        buffer_max: int = BUFFER_MAX,
        gather_ns: int = 0,
        hops: bool = False,
    ) -> None:
        """``hops``: the parent is another process."""
        self.name = name
        self.hops = hops
        self.rack = rack
        self.children_max = children_max
        self.buffer_max = buffer_max
        self.rooted = False
        self.path: list[str] = []
        self.fence = 0
        self.fleet: Head | None = None
        self.violations = 0
        self.unsaid = 0
        self.backlog = Backlog(max(buffer_max, children_max * CREDIT_MIN), gather_ns)
        self.calls = Calls()
        self.tree = Directory(self.calls, self.backlog)
        self.beats = Beats(self.tree)
        self.acks = Acks()
        self.clients = Clients(name)
        self.streams = Streams(self.clients, self.tree)
        self._up: list[Up] = []
        self._last: list[Up] = []  # events that go up before the news of who has left
        self._fleet_at_ns = 0
        self._fleet_seals: dict[str, str] = {}
        self._fleet_term = ""
        self._cut_ns: int | None = None
        self._scan_ns = 0
        self._unread_ns = 0  # since when more messages waited after every read
        self._turned_ns = 0  # when ``tick`` was last called
        self._late_s = 0  # what is read now waited while this process stood still for so long
        self._late_until_ns = 0
        # The encoded beat that answers, and the one that asks; encoded again when their content changes.
        self._beat: bytes = b""
        self._asking: bytes = b""
        self._noted: dict[tuple[str, str], list[int]] = {}  # (peer, what) -> [count, next time of a log line]
        self._sorry_ns: dict[Rid, int] = {}
        self._hellos: Counter[str] = Counter()  # by key, in this second
        self._hello_second = 0
        self._asked_ns: dict[str, int] = {}  # child -> when open calls were last sent to it again
        self._ask_later: set[str] = set()
        #: Calls for which nobody waits any more -> until when that is said again, and who had asked; the oldest first.
        self._dropped: dict[str, tuple[int, str]] = {}
        self._handlers: Mapping[str, Callable[[Child, Message, int], list[Effect]]] = {
            "goodbye": self._on_goodbye,
            "events": self._on_events,
            "below": self._on_below,
            "ask": self._on_ask,
            "answer": self._on_answer,
            "request": self._on_request,
            "cancel": self._on_cancel,
            "frames": self._on_frames,
            "took": self._on_took,
        }

    # -- small things -------------------------------------------------------------------------------------------

    def credit(self) -> int:
        """The number of bytes that a child may have unacknowledged."""
        return max(CREDIT_MIN, min(CREDIT_MAX, self.buffer_max // max(1, len(self.tree.named))))

    def _violation(self, who: str, what: str, t_ns: int, detail: str = "") -> list[Effect]:
        """Drop a message that breaks the rules: count it, log it once and later with a count. ``what`` is a text of our
        own, ``detail`` comes from the peer."""
        self.violations += 1
        if len(self._noted) >= NOTES_MAX and (who, what) not in self._noted:
            who, detail = "others", ""
        entry = self._noted.setdefault((who, what), [0, 0])
        entry[0] += 1
        if t_ns < entry[1]:
            return []
        entry[1] = t_ns + NOTE_NS
        count = f" ({entry[0]} times)" if entry[0] > 1 else ""
        more = f" ({detail[:DETAIL_MAX]!r})" if detail else ""
        return [Note(f"refused: {who}: {what}{more}{count}")]

    def bad_frame(self, rid: Rid, peer: Peer, why: str, t_ns: int) -> list[Effect]:
        """The frame is not a message."""
        return self._violation(peer.name, "what is no message", t_ns, why)

    def _to(self, children: Iterable[Child], kind: str, head: Head, body: bytes = b"") -> list[Effect]:
        rids = tuple(c.rid for c in children)
        try:
            return [ToChildren(rids, wire.encode(kind, head, body))] if rids else []
        except LocalProtocolError as exc:
            return self._unsaid(exc)

    def _unsaid(self, exc: LocalProtocolError) -> list[Effect]:
        """A message that does not fit a frame is dropped and counted, whoever caused it: it must not end the
        process.  # T13"""
        self.unsaid += 1
        return [Note(f"not sent: {exc.message} ({self.unsaid})")] if self.unsaid & (self.unsaid - 1) == 0 else []

    def unsendable(self, message: Message | Up, exc: LocalProtocolError) -> list[Effect]:
        """The same for a message from or for the parent. The client that asked gets a failure."""
        out = self._unsaid(exc)
        if message.kind in ("request", "part", "parts", "result"):
            to = self.clients.unsent(message.head, "too much to be handed on in one message; ask for less")
            out += self._to([to[0]], "result", to[1]) if to is not None else []
        return out

    def _sorry(self, rid: Rid, why: str, retry_ms: int, rootless: bool = False, denied: bool = False) -> list[Effect]:
        head = {"why": why, "again": False, "retry_ms": retry_ms, "rootless": rootless, "denied": denied}
        return [ToChildren((rid,), wire.encode("sorry", head))]

    def _unknown(self, rid: Rid, t_ns: int) -> list[Effect]:
        """A peer without a session at this routing id: ask it to say hello again."""
        if t_ns - self._sorry_ns.get(rid, -NS_PER_S) < NS_PER_S // 2:
            return []
        if len(self._sorry_ns) > 4 * self.children_max:
            self._sorry_ns.clear()
        self._sorry_ns[rid] = t_ns
        return [ToChildren((rid,), wire.encode("sorry", {"why": "who are you?", "again": True}))]

    def sessions(self, key: str) -> list[Rid]:
        """The present sessions of a key."""
        return [c.rid for c in self.tree.children.values() if c.peer.key == key]

    # -- sessions -----------------------------------------------------------------------------------------------

    def received(self, rid: Rid, peer: Peer, message: Message, t_ns: int) -> list[Effect]:
        """A message that came with this routing id and was sent with this key."""
        self._look_at_clock(t_ns)
        kind = message.kind
        if kind == "hello":
            if self._too_often(peer, t_ns):
                return self._violation(peer.name, "says hello too often", t_ns)
            return self._hello(rid, peer, message.head, t_ns)
        child = self.tree.children.get(rid)
        if child is None or child.peer.key != peer.key:
            return self._unknown(rid, t_ns)
        if child.peer != peer:  # the key's name or role was changed
            return [*self.gone(rid, t_ns), *self._unknown(rid, t_ns)]
        child.heard_ns = t_ns
        second = t_ns // NS_PER_S
        if second != child.second:
            child.second, child.frames, child.streamed = second, 0, 0
        read = self.streams.read(child, message) if kind == "frames" else ()
        out = self._said(child, message, t_ns)
        return [*self._streamed(list(read)), *out] if read else out

    def _look_at_clock(self, t_ns: int) -> None:
        """After a stop of this process its clients' requests are old: they were told that there is no answer.  # T16"""
        if self._turned_ns and t_ns - self._turned_ns > STOOD_NS:
            self._late_s, self._late_until_ns = (t_ns - self._turned_ns) // NS_PER_S, t_ns + LATE_MAX_NS

    def _said(self, child: Child, message: Message, t_ns: int) -> list[Effect]:
        kind = message.kind
        if kind in ("frames", "took") and (child.role != "client" or child.rid in self.streams.answered):
            child.streamed += 1  # S8: who only claims to have a stream has no such share
        else:
            child.frames += 1
        if child.frames > FRAMES_PER_S[child.role] or child.streamed > STREAM_FRAMES_PER_S[child.role]:
            return self._violation(child.name, "too many messages", t_ns)
        if len(message.body) > checks.BODY_MAX and kind not in ("events", "request"):
            return self._violation(child.name, f"a {kind} that is too long to be handed on", t_ns)
        if kind not in MAY_SAY[child.role]:
            return self._violation(child.name, f"a {child.role} does not say {kind}", t_ns)
        if kind == "beat":
            out = [] if child.below is None else self._compared(child, message.head["below"])
            if not message.head["answer"]:
                self._make_beats()
                out.insert(0, ToChildren((child.rid,), self._beat))
            return out
        return self._handlers[kind](child, message, t_ns)

    def _make_beats(self) -> None:
        if not self._beat:
            seq = self.fleet["seq"] if self.fleet is not None else 0
            head = {"path": self.path, "fence": self.fence, "fleet_seq": seq}
            self._beat, self._asking = wire.encode("beat", head), wire.encode("beat", {**head, "ask": True})

    def _too_often(self, peer: Peer, t_ns: int) -> bool:
        """A hello costs more than any other message: all names, and every open call again.  # T9"""
        second = t_ns // NS_PER_S
        if second != self._hello_second:
            self._hello_second = second
            self._hellos.clear()
        self._hellos[peer.key] += 1
        return self._hellos[peer.key] > HELLOS_PER_S[PLACES.get(peer.role, "node")]

    def _compared(self, child: Child, names: int) -> list[Effect]:
        """Twice in a row an aggregator reported other names than are known here: a message was lost. Ask for a new
        hello.  # T7"""
        differs = child.below is not None and names != checksum(child.claimed())
        again, child.mismatch = differs and child.mismatch, differs
        said = self._unknown(child.rid, child.heard_ns) if again else []
        return [*self._cut(child), *said] if said else []  # it takes that for a new beginning, too

    def _hello(self, rid: Rid, peer: Peer, head: Head, t_ns: int) -> list[Effect]:
        why = self._objection(peer, head)
        if why:
            denied = head["v"] == wire.VERSION
            return [
                *self._violation(peer.name, "a hello that is not its own", t_ns, why),
                *self._sorry(rid, why[: 2 * DETAIL_MAX], REFUSED_RETRY_MS, denied=denied),
            ]
        if not self.rooted:
            return self._sorry(rid, "no way to the root", UNROOTED_RETRY_MS, True)
        role, session = PLACES[peer.role], head["session"]
        same = self.tree.children.get(rid)
        out: list[Effect] = []
        if same is not None and (same.peer != peer or same.role == "client"):
            out += self.gone(rid, t_ns)
        if role == "client":
            return [*out, *self._hello_client(rid, peer, head, t_ns)]
        old = self.tree.named.get(peer.name)
        if old is not None and older(session, old.session):
            return []  # a late message: the same node has said hello again since
        if old is None and len(self.tree.named) >= self.children_max:
            return [*out, *self._sorry(rid, "there are enough children here", REFUSED_RETRY_MS)]
        child = Child(rid, peer, role, session, head["rack"] or self.rack, t_ns)
        if role == "node":
            if head["proof"]:
                child.proof = [head["proof"], head["incarnation"], head["seq"], head["wall_ns"]]
            gate, here = self.tree.gate, peer.name in self.tree.where
            if gate is not None and not gate.admits(peer.name, session, child.proof, here=here, direct=peer.key):
                return [*out, *self._sorry(rid, UNSEALED, REFUSED_RETRY_MS, denied=True)]
        if old is not None and old.rid == rid:  # the connection is the same, and nothing was lost on it
            self.streams.renewed(old, child)
            self.clients.renewed(old, child)
        elif old is not None:
            out += self._cut(old)
        if role == "aggregator" and old is not None:  # the aggregator may have lost some nodes
            self._before_leaving(t_ns)
        before = self.tree.enter(child, head, t_ns)
        if before is not None:
            out.append(Ended(before))
        self.beats.enter(child, t_ns)
        fresh = old is None or old.rid != rid
        out += [*self._refusals(child, t_ns), *self._welcome(child, t_ns, fresh), *self._drop_again(child, t_ns)]
        return [*out, *self._ask_again(child, t_ns)]

    def _refusals(self, child: Child, t_ns: int) -> list[Effect]:
        """Log claims of nodes that lack the nodes' own proof; they are not believed."""
        names = child.refused
        return self._violation(child.name, "nodes below it without their word", t_ns, ",".join(names)) if names else []

    def _objection(self, peer: Peer, head: Head) -> str:
        if head["v"] != wire.VERSION:
            return f"speaks version {head['v']}; here it is {wire.VERSION}"
        if PLACES.get(peer.role) != head["role"] or PLACES.get(peer.role) is None:
            if head["role"] == "client":
                return f"the key of {peer.name} is for a {peer.role}: this needs one for a viewer, ops or admin"
            return f"says it is a {head['role']}, but its key is for a {peer.role}"
        if head["name"] != peer.name:
            return f"calls itself {head['name']}"
        if head["role"] != "client" and (peer.name in (ROOT, self.name) or peer.name in self.path):
            return "is above itself"  # T4
        return ""

    def _hello_client(self, rid: Rid, peer: Peer, head: Head, t_ns: int) -> list[Effect]:
        child = Child(rid, peer, "client", head["session"], "", t_ns)
        if not self.clients.enter(child):
            return self._sorry(rid, "too many connections with this key", UNROOTED_RETRY_MS)
        self.tree.children[rid] = child
        return self._welcome(child, t_ns)

    def _welcome(self, child: Child, t_ns: int, fresh: bool = False) -> list[Effect]:
        """``fresh``: what was on its way to a child that believes to be connected is lost."""
        return self._to(
            [child],
            "welcome",
            {
                "v": wire.VERSION,
                "name": self.name,
                "path": self.path,
                "fence": self.fence,
                "credit": self.credit(),
                "fleet": self._fleet_now(child, t_ns),
                "with_answers": True,
                "fresh": fresh,
            },
        )

    def _fleet_now(self, child: Child, t_ns: int) -> Head | None:
        """The fleet's holds, with the time that each has left now, and the seals for this child."""
        if self.fleet is None:
            return None
        past_ns = t_ns - self._fleet_at_ns
        holds = [{**h, "left_ns": max(0, h["left_ns"] - past_ns)} for h in self.fleet["holds"]]
        return {**self._fleet_head(child), "holds": holds}

    def _fleet_head(self, child: Child) -> NewHead:
        assert self.fleet is not None
        head = {k: self.fleet[k] for k in ("fence", "seq", "holds")}
        if self._fleet_seals:
            mine = {n: seal for n in child.names() if (seal := self._fleet_seals.get(n))}
            head.update(seals=mine, term=self._fleet_term)
        return head

    def gone(self, rid: Rid, t_ns: int) -> list[Effect]:
        """End a session: its child is silent, unreachable, has said goodbye, or lost its key."""
        child = self.tree.children.get(rid)
        if child is None:
            return []
        out = self._cut(child)
        if child.role == "client":
            del self.tree.children[rid]
        else:
            self._before_leaving(t_ns)
            self.tree.leave(child, t_ns)
        return [*out, Ended(rid)]

    def _cut(self, child: Child) -> list[Effect]:
        """What was on its way to or from this child is lost: its streams end, and its clients' requests."""
        said = self.streams.gone(child, f"lost contact with {child.name}")
        self._up += [one for one in said if isinstance(one, Up)]
        self._up += self.clients.leave(child)
        return self._streamed([one for one in said if not isinstance(one, Up)])

    def _before_leaving(self, t_ns: int) -> None:
        """Send the last events of nodes that will be reported gone, while they are still below; after the news of those
        that came."""
        if self.rooted:
            events = self.backlog.flush(t_ns, now=True)
            if events and self.tree.news:
                self._last.append(Up("below", self.tree.take_news()))
            self._last += events

    # -- what children say --------------------------------------------------------------------------------------

    def _on_goodbye(self, child: Child, message: Message, t_ns: int) -> list[Effect]:
        return self.gone(child.rid, t_ns)

    def _on_events(self, child: Child, message: Message, t_ns: int) -> list[Effect]:
        out: list[Effect] = []
        said = message.head["seals" if message.kind == "events" else "batch_seals"]
        seals = wire.beside(said, message.head["batches"])
        for (row, data), seal in zip(wire.sections(message, "batches"), seals, strict=True):
            node, incarnation, first, count, size = row
            if not self.tree.has(child, node):
                out += self._violation(child.name, "events of a node that is not below it", t_ns)
            elif not 0 < count <= checks.BATCH_RECORDS_MAX or not 0 < size <= (
                RECORD_MAX if count == 1 else checks.BATCH_BYTES_MAX
            ):
                out += self._violation(child.name, "a batch that is too large, or empty", t_ns)
            elif self.tree.where.get(node) is child:  # a kept batch must not keep the whole frame in memory
                kept = data if size == len(message.body) else bytes(data)
                self.backlog.put(row, node, incarnation, first, count, kept, seal)
        return out

    def _on_below(self, child: Child, message: Message, t_ns: int) -> list[Effect]:
        head = message.head
        before = len(child.refused)
        for name in self.tree.note(child, head, head["add"]):
            self.tree.claim(child, name)
        out = self._refusals(child, t_ns) if len(child.refused) > before else []
        for name in [n for n in head["gone"] if n in child.refused]:
            del child.refused[name]
        gone = [n for n in head["gone"] if n in child.below]  # type: ignore[operator]
        if gone:
            self._before_leaving(t_ns)
            self.tree.drop(child, gone, t_ns)
        return out

    def _on_ask(self, child: Child, message: Message, t_ns: int) -> list[Effect]:
        if not self.tree.has(child, message.head["node"]):
            return self._violation(child.name, "asks for a node that is not below it", t_ns)
        self._up.append(Up("ask", message.head))
        return []

    def _on_answer(self, child: Child, message: Message, t_ns: int) -> list[Effect]:
        head = message.head
        call = self.calls.open.get(head["call"])
        out: list[Effect] = []
        below, name = child.below, child.name
        whole = None  # the call, if all names were awaited, as is nearly always so
        if below is not None and call is not None:
            every = [n for names, _ in head["parts"] for n in names]
            whole = call if below.keys() >= set(every) and call.all_taken(child, every) else None
        seals = wire.beside(head["seals"], head["parts"])
        for ((names, _), body), seal in zip(wire.sections(message, "parts"), seals, strict=True):
            if whole is not None and names:
                whole.answer(names, body, t_ns, seal)
                continue
            if names != [name] if below is None else not below.keys() >= set(names):
                out += self._violation(child.name, "answers for a node that is not below it", t_ns)
                continue
            new = call.taken(child, names) if call is not None else []
            if new and call is not None:  # only some names are new: the combined seal does not fit these alone
                call.answer(new, body, t_ns, seal if len(new) == len(names) else "")
        if call is not None:
            lost = call.taken(child, [n for n in head["lost"] if child.below is not None])
            if lost:
                call.lose(lost, t_ns)
            if head["final"]:
                self.calls.finished(child, call, t_ns)
        return out + self._on_events(child, message, t_ns) if head["batches"] else out

    def _on_request(self, child: Child, message: Message, t_ns: int) -> list[Effect]:
        why = "" if self.rooted else "there is no way to the root now"
        if self._late_s:
            why = f"this aggregator stood still for {self._late_s} s, and what was asked meanwhile is not done"
        what = self.clients.request(child, message, why)
        if what is None:
            return self._violation(child.name, "a request of a client that is not below it", t_ns)
        if not isinstance(what, Up):
            return self._to([what[0]], "result", what[1])
        self._up.append(what)
        return []

    def _on_cancel(self, child: Child, message: Message, t_ns: int) -> list[Effect]:
        said = self.streams.cancelled(child, child.client or message.head["client"], message.head["id"])
        self._up += self.clients.cancel(child, message.head)
        return self._streamed(said)

    def _on_frames(self, child: Child, message: Message, t_ns: int) -> list[Effect]:
        if not self.rooted:
            return []
        said, why = self.streams.from_child(child, message, self.hops)
        return [*self._streamed(said), *(self._violation(child.name, why, t_ns) if why else [])]

    def _on_took(self, child: Child, message: Message, t_ns: int) -> list[Effect]:
        return self._streamed(self.streams.took(child, message.head["bytes"]))

    def _streamed(self, said: Said) -> list[Effect]:
        """These do not wait for a flush: somebody may be typing."""
        out: list[Effect] = []
        for one in said:
            out += [one] if isinstance(one, Up) else self._to([one.child], one.kind, one.head, one.body)
        return out

    # -- what the parent says -----------------------------------------------------------------------------------

    def from_parent(self, message: Message, t_ns: int) -> list[Effect]:
        """``welcome`` comes first; from then on there is a way to the root, until ``parent_lost``."""
        head = message.head
        kind = message.kind
        if kind == "welcome":
            return self._rooted(head, t_ns)
        if kind == "sorry":  # the root in this process no longer leads
            return [*self.parent_lost(t_ns), *self._dismiss(t_ns)]
        if kind == "beat":
            if (head["path"] or self.path[:-1], head["fence"]) != (self.path[:-1], self.fence):
                self._placed(head["path"] or self.path[:-1], head["fence"])
            return []
        if kind == "ack":
            return self._acknowledged(head, t_ns)
        if kind == "call":
            return self._call(message, t_ns)
        if kind == "frames":
            said, why = self.streams.from_parent(message, self.hops)
            return [*self._streamed(said), *(self._violation("the parent", why, t_ns) if why else [])]
        if kind == "took":
            return self._streamed(self.streams.took(None, head["bytes"]))
        if kind == "drop":
            return [*self._drop_call(head, not head["client"], t_ns), *self._settled(head)]
        if kind == "fleet":
            return self._told_fleet(head, t_ns)
        if kind in wire.TO_CLIENTS:
            return self._to_client(message)
        return self._violation("the parent", f"it says {kind}", t_ns)

    def _placed(self, above: list[str], fence: int) -> None:
        self.path = [*above, self.name]
        self.fence = max(self.fence, fence)
        self._beat = b""

    def _rooted(self, head: Head, t_ns: int) -> list[Effect]:
        """A parent has welcomed this relay: send what changed since the hello, and everything that the root may
        lack."""
        self.rooted, self._cut_ns = True, None
        # Forget what the last parent said of the root and its holds: it may have lied. Nodes decide by themselves which
        # of two messages is newer.  # T14
        self.fence, told = 0, head["fleet"]
        if told is not None and self.fleet is not None and older_table(told, self.fleet):
            self.fleet = None
        self._placed([n for n in head["path"] if n != self.name], head["fence"])
        self.backlog.welcomed(head["credit"], t_ns)
        self.tree.welcomed()
        return self._told_fleet(head["fleet"], t_ns) if head["fleet"] is not None else []

    def moved(self) -> list[Effect]:
        """Another parent has welcomed this relay: what was under way through the last one is lost."""
        out = self._streamed([*self.streams.lost("the way to the root has changed")])
        for child, head in self.clients.lost():
            out += self._to([child], "result", head)
        return out

    def parent_lost(self, t_ns: int) -> list[Effect]:
        """There is no way to the root for now. After ``SILENCE_NS`` the children are told."""
        if self.rooted:
            self._cut_ns = t_ns
        self.rooted = False
        self.backlog.lost()
        out = self._streamed([*self.streams.lost("the way to the root was lost")])
        for child, head in self.clients.lost():
            out += self._to([child], "result", head)
        self._up.clear()
        self._last.clear()
        return out

    def _dismiss(self, t_ns: int, rootless: bool = True) -> list[Effect]:
        """There was no way to the root for too long: the children go elsewhere.  # T8"""
        self._cut_ns = None
        head = {"why": "no way to the root", "again": False, "retry_ms": UNROOTED_RETRY_MS, "rootless": rootless}
        out = self._to(self.tree.children.values(), "sorry", head)
        for rid in list(self.tree.children):
            out += self.gone(rid, t_ns)
        self.backlog.clear()
        self._up.clear()
        return out

    def leave(self, t_ns: int) -> list[Effect]:
        """This aggregator ends: the children are told, and go elsewhere at once."""
        return [*self.parent_lost(t_ns), *self._dismiss(t_ns, False)]

    def _told_fleet(self, fleet: Head, t_ns: int) -> list[Effect]:
        if self.fleet is not None and older_table(fleet, self.fleet):
            return []
        news = self.fleet is None or fleet["seq"] != self.fleet["seq"] or fleet["fence"] != self.fleet["fence"]
        self.fleet, self._fleet_at_ns, self._beat = fleet, t_ns, b""
        seals, term = fleet.get("seals") or {}, fleet.get("term", "")
        if news or term != self._fleet_term:
            self._fleet_seals, self._fleet_term = {}, term
        self._fleet_seals.update(seals)
        if not self._fleet_seals:  # no child seals
            return self._to(self.tree.named.values(), "fleet", self._fleet_head(NOBODY)) if news else []
        children: Iterable[Child] = self.tree.named.values()
        if not news:  # only for nodes that came since
            children = {c.name: c for n in seals if (c := self.tree.where.get(n)) is not None}.values()
        return [e for child in children for e in self._to([child], "fleet", self._fleet_head(child))]

    def _acknowledged(self, head: Head, t_ns: int) -> list[Effect]:
        now = []
        signed = (head["fence"], head["term"])
        rows = head["cursors"]
        beside = wire.beside(head["seals"], rows), wire.beside(head["hashes"], rows)
        for row, seal, hash_ in zip(rows, *beside, strict=True):
            node, incarnation, seq, rewind = row
            cursor = [*row, seal, hash_, *signed]
            size = self.backlog.acknowledged(node, incarnation, seq, rewind, t_ns)
            child = self.tree.where.get(node)
            if child is None:
                continue
            holds = child.below is None and self.calls.open
            said = self.acks.hold(cursor, size, t_ns) if holds else self.acks.newest(cursor)
            if said is not None:
                now.append(said)
        return self._say_acks(now, t_ns)

    def _say_acks(self, cursors: Iterable[list[Any]], t_ns: int) -> list[Effect]:
        by_child: dict[tuple[Rid, int, str], list[Any]] = {}
        for cursor in cursors:
            child = self.tree.where.get(cursor[0])
            if child is not None:
                child.told_ns = t_ns
                by_child.setdefault((child.rid, *cursor[6:]), []).append(cursor)
        out: list[Effect] = []
        for (rid, fence, term), rows in by_child.items():
            head: NewHead = {"cursors": [row[:4] for row in rows]}
            if any(row[4] for row in rows):
                head.update(seals=[row[4] for row in rows], fence=fence, term=term)
            if any(row[5] for row in rows):
                head["hashes"] = [row[5] for row in rows]
            out += self._to([self.tree.children[rid]], "ack", head)
        return out

    def _to_client(self, message: Message) -> list[Effect]:
        to = self.clients.down(message)
        if to is None:
            return []
        try:
            return [ToChildren((to[0].rid,), wire.encode(message.kind, to[1], message.body))]
        except LocalProtocolError as exc:
            return self.unsendable(message, exc)

    # -- calls --------------------------------------------------------------------------------------------------

    def _call(self, message: Message, t_ns: int) -> list[Effect]:
        head = message.head
        if head["fence"] < self.fence:
            return self._violation("the parent", "a call of a root that has been replaced", t_ns)
        if head["fence"] > self.fence:
            self.fence, self._beat = head["fence"], b""
        try:
            call = self.calls.begin(message, t_ns)
        except LocalProtocolError as exc:
            lost = list(self.tree.where) if head["nodes"] is None else head["nodes"]
            self._up.append(Up("answer", {"call": head["call"], "final": True, "parts": [], "lost": lost}))
            return self._unsaid(exc)
        if call is None:
            lost = list(self.tree.where) if head["nodes"] is None else head["nodes"]
            self._up.append(Up("answer", {"call": head["call"], "final": True, "parts": [], "lost": lost}))
            return self._violation("the parent", "too many calls at once", t_ns)
        call.sealed(head)
        if head["client"]:
            self.clients.called(head, head["nodes"] or ())
        direct: list[Child] = []
        through: dict[str, list[str]] = {}
        unknown: list[str] = []
        for name in list(self.tree.where) if head["nodes"] is None else head["nodes"]:
            child = self.tree.where.get(name)
            if child is None:
                unknown.append(name)
                continue
            call.add(child, name)
            if child.below is None:
                direct.append(child)
                child.told_ns = t_ns
            else:
                through.setdefault(child.name, []).append(name)
        if unknown or not call.left:
            call.lose(unknown, t_ns)
        out: list[Effect] = []
        if direct:
            out += self._directly(call, direct)
        # Always name the nodes: a node that has just come under an aggregator was not asked.  # T6
        for aggregator, names in through.items():
            out += self._through(call, self.tree.named[aggregator], names, t_ns)
        return out

    def _directly(self, call: Call, children: Sequence[Child]) -> list[Effect]:
        """A call for nodes that are children. Each needs its own seal: a small call is encoded for each of them; a
        large one contains all their seals, so that it is kept once for all.
        """
        rids = tuple([c.rid for c in children])
        if not call.seals:
            return [ToChildren(rids, call.frame)]
        names = [c.name for c in children]
        if len(call.frame) <= SPLICED_MAX:
            return [ToEach(rids, call.frames_for(names))]
        return [ToChildren(rids, call.frame_for(names))]

    def _through(self, call: Call, child: Child, names: Iterable[str], t_ns: int) -> list[Effect]:
        try:
            if child.below is None:
                return self._directly(call, [child])
            return [ToChildren((child.rid,), call.frame_for(names))]
        except LocalProtocolError as exc:  # more names than fit a head
            call.lose(call.taken(child, list(names)), t_ns)
            return self._unsaid(exc)

    def _ask_again(self, child: Child, t_ns: int) -> list[Effect]:
        """A child said hello again: open calls may never have reached it."""
        out: list[Effect] = []
        if t_ns - self._asked_ns.get(child.name, -AGAIN_NS) < AGAIN_NS:
            self._ask_later.add(child.name)
            return out
        if self.calls.open:
            self._asked_ns[child.name] = t_ns
        for call in self.calls.open.values():
            if call.via.get(child.name) if child.below is not None else child.name in call.direct:
                out += self._through(call, child, call.via.get(child.name, ()), t_ns)
        return out

    def _call_again(self, t_ns: int) -> list[Effect]:
        """Send the open calls of nodes that moved to their new children."""
        moved, self.tree.moved = self.tree.moved, []
        names: dict[tuple[str, Rid], tuple[Call, Child, list[str]]] = {}
        for call, child, name in moved:
            names.setdefault((call.head["call"], child.rid), (call, child, []))[2].append(name)
        return [e for call, child, which in names.values() for e in self._through(call, child, which, t_ns)]

    def claims(self) -> NewHead:
        """The fields of ``hello`` that name the nodes below (for the uplink)."""
        return self.tree.claims()

    def beat(self) -> NewHead:
        """The fields of ``beat`` (for the uplink)."""
        return {"below": checksum(self.tree.where)}

    def _drop_call(self, head: Head, unwanted: bool, t_ns: int) -> list[Effect]:
        """``unwanted``: nobody waits for it any more. An aggregator that was cut off for a moment knows it still, while
        here its nodes are lost for the call, or the aggregator itself is not back yet: it is told then.  # F90"""
        call = self.calls.drop(head["call"])
        names = dict.fromkeys([*call.direct, *(a for a, rest in call.via.items() if rest)] if call is not None else ())
        if unwanted:
            self._dropped[head["call"]] = (t_ns + DROPPED_NS, head["who"])
            if len(self._dropped) > DROPPED_MAX:  # who asks and cancels all the time pushes out nobody else's  # S8
                ((most, _),) = Counter(who for _, who in self._dropped.values()).most_common(1)
                del self._dropped[next(c for c, (_, who) in self._dropped.items() if who == most)]
            names |= dict.fromkeys(c.name for c in self.tree.named.values() if c.below is not None)
        said = {"call": head["call"], "who": head["who"]}
        return self._to([c for n in names if (c := self.tree.named.get(n)) is not None], "drop", said)

    def _drop_again(self, child: Child, t_ns: int) -> list[Effect]:
        if child.below is None:  # what a node was asked through another connection, it has ended
            return []
        self._dropped = {call: (until_ns, who) for call, (until_ns, who) in self._dropped.items() if t_ns < until_ns}
        return [
            e for call, (_, who) in self._dropped.items() for e in self._to([child], "drop", {"call": call, "who": who})
        ]

    def _settled(self, head: Head) -> list[Effect]:
        """No stream of this request goes on: the relays on the way to its client forget that."""
        to = self.clients.settled(head) if head["client"] else None
        return self._to([to], "drop", head) if to is not None and to.role != "client" else []

    # -- time ---------------------------------------------------------------------------------------------------

    def flush(self, t_ns: int) -> Iterator[Effect]:
        """The messages that go up now: the news of nodes below, then answers and questions, then events; and calls for
        nodes that moved.  # T9"""
        if self.tree.moved:
            yield from self._call_again(t_ns)
        if not self.rooted:
            return
        while self._last:
            yield self._last.pop(0)
        if self.tree.news:
            yield Up("below", self.tree.take_news())
        yield from self.calls.flush(t_ns)
        if self._up:
            waiting, self._up = self._up, []
            yield from waiting
        yield from self.backlog.flush(t_ns)

    def tick(self, t_ns: int, *, unread: bool = False) -> list[Effect]:
        """Time has passed. Call ``flush`` after it. ``unread``: more messages wait to be read: after a stall they
        include the beats of children that seem silent.
        """
        out = self._say_acks(self.acks.due(t_ns), t_ns)
        self.backlog.tick(t_ns)
        if self._cut_ns is not None and t_ns >= self._cut_ns + SILENCE_NS:
            out += self._dismiss(t_ns)
        self._unread_ns = 0 if not unread else self._unread_ns or t_ns
        self._look_at_clock(t_ns)
        self._turned_ns = t_ns
        if not unread or t_ns >= self._late_until_ns:
            self._late_s = 0
        if t_ns >= self._scan_ns and (not unread or t_ns - self._unread_ns >= UNREAD_MAX_NS):
            self._scan_ns = t_ns + SCAN_NS
            for rid in [c.rid for c in self.tree.children.values() if t_ns - c.heard_ns >= SILENCE_NS]:
                out += self.gone(rid, t_ns)
            self._asked_ns = {n: at_ns for n, at_ns in self._asked_ns.items() if t_ns - at_ns < AGAIN_NS}
            later, self._ask_later = self._ask_later, set()
            for child in [c for n in later if (c := self.tree.named.get(n)) is not None]:
                out += self._ask_again(child, t_ns)
        asked = self.beats.due(t_ns)
        if asked:
            self._make_beats()
            out.append(ToChildren(tuple([c.rid for c in asked]), self._asking))
        return out

    def next_wake_ns(self) -> int:
        due = [self._scan_ns, self.beats.next_wake_ns(self._scan_ns)]
        acks_ns = self.acks.next_wake_ns()
        if acks_ns is not None:
            due.append(acks_ns)
        if self.tree.moved:
            return 0
        if self._cut_ns is not None:
            due.append(self._cut_ns + SILENCE_NS)
        if self.rooted:
            if self.tree.news or self._up or self._last:
                return 0
            for wake_ns in (self.calls.next_wake_ns(), self.backlog.next_wake_ns(), self.backlog.due_ns()):
                if wake_ns is not None:
                    due.append(wake_ns)
        return min(due)


def older_table(fleet: Head, than: Head) -> bool:
    """Whether these holds are older: of an earlier root, or an earlier message of the same root."""
    return bool((fleet["fence"], fleet["seq"]) < (than["fence"], than["seq"]))
