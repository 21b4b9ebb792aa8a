"""Which nodes are below a relay, and through which child: sessions, claims, and the news for the parent.

For a moment several children may claim one node (it moved, or an old connection is not yet known to be dead). The
newest connection counts; when it is given up, another claim that still stands counts again.  # T7
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from pact.core.tree.backlog import Backlog
from pact.core.tree.calls import Call, Calls
from pact.core.tree.checks import SESSION_BITS
from pact.core.tree.wire import Head, NewHead

ROOT: Final = "_root"

Rid = bytes


class Peer(NamedTuple):
    """The owner of a message's key, from the authorised keys."""

    name: str
    role: str
    key: str


class Claim(NamedTuple):
    """A claim that a node is below: its connection, its rack, and the node's own proof of it."""

    session: int
    rack: str
    proof: Sequence[Any] | None = None  # in the form of ``wire``


class Child:
    """One session. ``below``: the claims of an aggregator, by name; ``None`` for a node or a client. ``refused``:
    claims that are not believed.
    """

    __slots__ = (
        "asked_ns",
        "beat",
        "below",
        "client",
        "frames",
        "heard_ns",
        "mismatch",
        "name",
        "peer",
        "proof",
        "rack",
        "refused",
        "rid",
        "role",
        "second",
        "session",
        "streamed",
        "told_ns",
    )

    def __init__(self, rid: Rid, peer: Peer, role: str, session: int, rack: str, t_ns: int) -> None:
        self.rid = rid
        self.peer = peer
        self.name = peer.name
        self.role = role
        self.session = session
        self.rack = rack
        self.heard_ns = self.told_ns = t_ns  # time of its last message; time of the last call or ack to it
        self.below: dict[str, Claim] | None = {} if role == "aggregator" else None
        self.refused: dict[str, Claim] = NO_CLAIMS
        self.proof: Sequence[Any] | None = None
        self.client = ""
        self.beat = 0  # number of its entry in the order of beats
        self.asked_ns = t_ns
        self.mismatch = False  # its last beat had another checksum of names than this relay computes
        self.second = 0
        self.frames = 0
        self.streamed = 0  # messages of streams in this second

    def claim(self, name: str) -> Claim:
        """The claim for a node that is this child, or below it."""
        return Claim(self.session, self.rack, self.proof) if self.below is None else self.below[name]

    def claimed(self) -> Iterable[str]:
        """All names that it claimed."""
        below: dict[str, Claim] = self.below or {}
        return below if not self.refused else {**below, **self.refused}

    def names(self) -> list[str]:
        return [self.name] if self.below is None else list(self.below)


#: For a child without refused claims. Never written to.
NO_CLAIMS: Final[dict[str, Claim]] = {}


def older(session: int, than: int) -> bool:
    """Whether ``session`` is an earlier connection of the same start. Of different starts, the one that came last is
    newer."""
    return session >> SESSION_BITS == than >> SESSION_BITS and session < than


def checksum(names: Iterable[str]) -> int:
    """A checksum of the set of names; their order does not matter."""
    return sum(zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in names)


class Gate(Protocol):
    """Decides at the root whether a claim is the node's own word. See ``seals.RootSeals.admits``."""

    def knows(self, name: str) -> bool: ...

    def admits(self, name: str, session: int, proof: Sequence[Any] | None, *, here: bool, direct: str = "") -> bool: ...


class Directory:
    """The children and everything below them. It also moves the open calls and drops the events of a node that moves or
    goes. ``gate``: only at the root.
    """

    gate: Gate | None = None

    def __init__(self, calls: Calls, backlog: Backlog) -> None:
        self.children: dict[Rid, Child] = {}
        self.named: dict[str, Child] = {}  # children that are nodes or aggregators, by name
        self.where: dict[str, Child] = {}  # every node below, and the child that leads to it
        self.moved: list[tuple[Call, Child, str]] = []  # calls that must be sent again, elsewhere
        self._calls = calls
        self._backlog = backlog
        self._added: dict[str, None] = {}
        self._gone: dict[str, None] = {}
        self._told: frozenset[str] = frozenset()  # the names in the last hello

    # -- what the parent hears ----------------------------------------------------------------------------------

    def claims(self) -> NewHead:
        """The fields of ``hello`` that name the nodes below."""
        self._told = frozenset(self.where)
        return {"below": list(self.where), **self._described(self.where)}

    def _described(self, names: Iterable[str]) -> NewHead:
        racks, sessions, proofs = {}, {}, {}
        for name in names:
            sessions[name], rack, proof = self.where[name].claim(name)
            if rack:
                racks[name] = rack
            if proof is not None:
                proofs[name] = proof
        return {"racks": racks, "sessions": sessions, **({"proofs": proofs} if proofs else {})}

    def welcomed(self) -> None:
        """The parent knows the names of the last hello, and none of the later changes."""
        self._added = {n: None for n in self.where if n not in self._told}
        self._gone = {n: None for n in self._told if n not in self.where}
        self._told = frozenset()

    @property
    def news(self) -> bool:
        return bool(self._added or self._gone)

    def take_news(self) -> NewHead:
        """The head of ``below``."""
        added, gone = list(self._added), list(self._gone)
        self._added, self._gone = {}, {}
        return {"add": added, "gone": gone, **self._described(added)}

    # -- sessions -----------------------------------------------------------------------------------------------

    def enter(self, child: Child, head: Head, t_ns: int) -> Rid | None:
        """A node's or aggregator's new session replaces its earlier one. Returns the routing id of the earlier session
        if it was different.
        """
        old = self.named.get(child.name)
        if old is not None:
            self.children.pop(old.rid, None)
        self.children[child.rid] = self.named[child.name] = child
        if child.below is not None:
            self.note(child, head)
        for name in child.names():
            if old is not None and self.where.get(name) is old:  # the way is the same as before
                self.where[name] = child
                self._added[name] = None
            else:
                self.claim(child, name)
        if old is not None:
            mine = set(child.names())
            self.drop(old, [n for n in old.names() if n not in mine], t_ns)
        return old.rid if old is not None and old.rid != child.rid else None

    def leave(self, child: Child, t_ns: int) -> None:
        """A session has ended."""
        self.children.pop(child.rid, None)
        if self.named.get(child.name) is child:
            del self.named[child.name]
        self.drop(child, child.names(), t_ns)

    # -- claims -------------------------------------------------------------------------------------------------

    def has(self, child: Child, name: str) -> bool:
        """Whether the child is connected and this node is it, or below it."""
        if self.children.get(child.rid) is not child:
            return False
        return name == child.name if child.below is None else name in child.below

    def note(self, child: Child, head: Head, names: Iterable[str] | None = None) -> list[str]:
        """Take an aggregator's claims of nodes below it. Returns their names."""
        assert child.below is not None
        racks, sessions, proofs = head["racks"], head["sessions"], head["proofs"]
        allowed = [n for n in (head["below"] if names is None else names) if n != ROOT]
        believed = []
        for name in allowed:
            claim = Claim(sessions.get(name, 0), racks.get(name, ""), proofs.get(name))
            if self.gate is None or self.gate.admits(name, claim.session, claim.proof, here=name in self.where):
                child.below[name] = claim
                child.refused.pop(name, None)
                believed.append(name)
            else:
                if child.refused is NO_CLAIMS:
                    child.refused = {}
                child.refused[name] = claim
        return believed

    def claim(self, child: Child, name: str) -> None:
        """``name`` is ``child``, or below it; unless another child has a newer connection of it."""
        old = self.where.get(name)
        if old is not None and old is not child:
            if self.has(old, name) and older(child.claim(name)[0], old.claim(name)[0]):
                return
            self._move(name, old, child)
        self.where[name] = child
        self._added[name] = None
        self._gone.pop(name, None)

    def _move(self, name: str, old: Child, child: Child) -> None:
        """Move the open calls of a node to the child that now leads to it."""
        for call in self._calls.open.values():
            if call.discard(old, name):
                call.add(child, name)
                self.moved.append((call, child, name))

    def drop(self, child: Child, names: Iterable[str], t_ns: int) -> None:
        """``child`` no longer leads to these names. If another child still claims a name, that claim counts."""
        others = [c for c in self.named.values() if c.below is not None and c is not child]
        for name in names:
            if child.below is not None:
                child.below.pop(name, None)
                child.refused.pop(name, None)
            if self.where.get(name) is not child:
                continue
            other = self.named.get(name)
            if other is None or other.below is not None or other is child:
                other = next((c for c in others if c.below is not None and name in c.below), None)
            if other is None:
                other = self._believed_now(name, others)
            if other is not None:
                self._move(name, child, other)
                self.where[name] = other
                self._added[name] = None
                continue
            del self.where[name]
            self._added.pop(name, None)
            self._gone[name] = None
            self._backlog.forget(name)
            self._calls.lost(child, name, t_ns)

    def _believed_now(self, name: str, others: Iterable[Child]) -> Child | None:
        """No other child has the node any more: a claim that was refused as too old may be its last one."""
        for child in others:
            claim = child.refused.get(name)
            if claim is None or child.below is None or self.gate is None:
                continue
            if self.gate.admits(name, claim.session, claim.proof, here=False):
                child.below[name] = child.refused.pop(name)
                return child
        return None

    def reconsider(self) -> None:
        """The authorised keys have changed: refused claims may be believed now, and believed ones no longer."""
        gate = self.gate
        if gate is None:
            return
        for child in list(self.named.values()):
            if child.below is None:
                gate.admits(child.name, child.session, child.proof, here=True, direct=child.peer.key)
                continue
            for name, claim in list(child.refused.items()):
                if gate.admits(name, claim.session, claim.proof, here=name in self.where):
                    child.below[name] = child.refused.pop(name)
                    self.claim(child, name)
            for name, claim in child.below.items():
                if self.where.get(name) is child and not gate.knows(name):
                    gate.admits(name, claim.session, claim.proof, here=True)
