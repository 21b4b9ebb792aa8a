"""Calls on their way down, and their answers on their way up: split among children, merged as set unions.

Equal answers become one part with all their names. A name counts once: a repeated answer, or one from another child,
changes nothing.  # T6

A relay that has sent all answers up remembers nothing of a call: if the call comes again, it goes to the nodes again,
and they give the same answers as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from pact.core.tree import seals as seals_
from pact.core.tree import wire
from pact.core.tree.checks import SEAL_CHARS
from pact.core.tree.outbox import Up
from pact.core.tree.wire import Head
from pact.model import NS_PER_S

QUIET_NS: Final = NS_PER_S // 20
PARTIAL_NS: Final = NS_PER_S // 4
PATIENCE_MAX: Final = 5
PARTS_BYTES: Final = 1 << 20
CALLS_MAX: Final = 1024
GRACE_NS: Final = NS_PER_S
TIMEOUT_MAX_NS: Final = 3600 * NS_PER_S
PLACE: Final = "~" * SEAL_CHARS  # placeholder for a child's seal
SPLICED_MAX: Final = 16 << 10  # size in bytes up to which a call is copied for each child with the child's seal in it


class Below(Protocol):
    """A child as calls see it. ``below`` is None for a node."""

    rid: bytes
    name: str

    @property
    def below(self) -> object: ...


class Together:
    """The names that gave one answer, and the exclusive or of their seals; for a single name, its seal's text as
    received."""

    __slots__ = ("_one", "_xor", "names")

    def __init__(self, names: list[str], seal: str) -> None:
        self.names = names
        self._one = seal
        self._xor: int | None = None

    def join(self, names: Iterable[str], seal: str) -> bool:
        """Add names with their seal. Returns False if either text is not a seal."""
        more = seals_.number(seal)
        if self._xor is None:
            self._xor = seals_.number(self._one)
        if more is None or self._xor is None:
            return False
        self._xor ^= more
        self.names += names
        return True

    def seal(self) -> str:
        return self._one if self._xor is None else seals_.number_text(self._xor)


class Call:
    """One call that some nodes have not answered yet."""

    __slots__ = (
        "alone",
        "answered_ns",
        "apart",
        "body",
        "bytes",
        "deadline_ns",
        "direct",
        "first_ns",
        "flushed",
        "frame",
        "head",
        "left",
        "lost",
        "parts",
        "said",
        "sealed_parts",
        "seals",
        "via",
    )

    def __init__(self, head: Head, body: bytes, deadline_ns: int) -> None:
        self.head = {**head, "nodes": None, "seals": "", "apart": False}
        self.body = body
        self.frame = wire.encode("call", self.head, body)
        self.seals: dict[str, str] = {}  # the root's seal for each name that has one
        self.apart: set[str] = set()  # names whose answers are not merged with others
        self.deadline_ns = deadline_ns
        self.direct: set[str] = set()
        self.via: dict[str, set[str]] = {}  # aggregator -> names
        self.left = 0
        self.parts: dict[bytes, list[str]] = {}
        self.sealed_parts: dict[bytes, Together] = {}
        self.alone: list[tuple[list[str], bytes, str]] = []  # answers that are not merged
        self.bytes = 0
        self.said: set[str] = set()  # names whose answers have not gone up yet
        self.lost: dict[str, None] = {}
        self.first_ns = -1  # when the oldest unsent answer came; -1: there is none
        self.answered_ns = 0
        self.flushed = 0  # how often some of the answers went up

    def frame_for(self, names: Iterable[str]) -> bytes:
        """A frame for these names: those of an aggregator, or many children of this relay at once, each of which finds
        its own name in it."""
        named = list(names)
        seals = "".join([self.seals.get(n, seals_.NONE) for n in named]) if self.seals else ""
        apart = bool(self.apart) and not self.apart.isdisjoint(named)
        return wire.encode("call", {**self.head, "nodes": named, "seals": seals, "apart": apart}, self.body)

    def sealed(self, head: Head) -> None:
        """Take the root's seals for the names, and whether the nodes must answer separately."""
        if head["nodes"] is None:
            return
        if len(head["seals"]) == len(head["nodes"]) * SEAL_CHARS:
            for i, name in enumerate(head["nodes"]):
                self.seals[name] = wire.seal_at(head["seals"], i)
        if head["apart"]:
            self.apart.update(head["nodes"])

    def frames_for(self, names: Sequence[str]) -> list[bytes]:
        """A frame for each of these children, with its own seal: everything else is encoded once."""
        whole = wire.encode("call", {**self.head, "seals": PLACE}, self.body)
        before, _, after = whole.partition(PLACE.encode())
        return [b"".join((before, self.seals.get(n, seals_.NONE).encode(), after)) for n in names]

    def add(self, child: Below, name: str) -> None:
        """Ask ``name`` through ``child``. If it was lost and that was not reported yet, it is no longer lost."""
        self.lost.pop(name, None)
        if name in self.said:
            return  # its answer is on its way up  # T6
        names = self.direct if child.below is None else self.via.setdefault(child.name, set())
        if name not in names:
            names.add(name)
            self.left += 1

    def discard(self, child: Below, name: str) -> bool:
        names = self.direct if child.below is None else self.via.get(child.name, set())
        if name not in names:
            return False
        names.discard(name)
        self.left -= 1
        return True

    def taken(self, child: Below, names: list[str]) -> list[str]:
        """Those of the names for which this child's answer was awaited; from now on it is not."""
        if child.below is None:
            return names if names and self.discard(child, names[0]) else []
        waiting = self.via.get(child.name)
        if not waiting:
            return []
        new = [n for n in dict.fromkeys(names) if n in waiting]
        waiting.difference_update(new)
        self.left -= len(new)
        return new

    def all_taken(self, child: Below, names: list[str]) -> bool:
        """The same for many names, if each was awaited and none occurs twice; else nothing is done."""
        waiting, each = self.via.get(child.name), set(names)
        if not waiting or len(each) != len(names) or not each <= waiting:
            return False
        waiting -= each
        self.left -= len(each)
        return True

    def lose(self, names: Iterable[str], t_ns: int) -> None:
        self.lost.update(dict.fromkeys(names))
        self._touched(t_ns)

    def _touched(self, t_ns: int) -> None:
        self.first_ns = t_ns if self.first_ns < 0 else self.first_ns
        self.answered_ns = t_ns

    def answer(self, names: list[str], body: bytes, t_ns: int, seal: str = "") -> None:
        """Take the answer of these names; ``seal``: the combined seal. Answers with seal and without are not merged."""
        self.said.update(names)
        if self.apart and not self.apart.isdisjoint(names):
            self.alone.append((list(names), body, seal))
            self.bytes += len(body)
        elif seal:
            self._sealed(names, body, seal)
        else:
            known = self.parts.get(body)
            if known is None:
                self.parts[body] = list(names)
                self.bytes += len(body)
            else:
                known += names
        self._touched(t_ns)

    def _sealed(self, names: list[str], body: bytes, seal: str) -> None:
        known = self.sealed_parts.get(body)
        if known is None:
            self.sealed_parts[body] = Together(list(names), seal)
            self.bytes += len(body)
        elif not known.join(names, seal):  # one of the two has no valid seal
            self.alone.append((list(names), body, seal))
            self.bytes += len(body)

    def due_ns(self) -> int:
        """When something must be sent or done."""
        if self.first_ns < 0:
            return self.deadline_ns
        if not self.left or self.bytes >= PARTS_BYTES:
            return 0
        times = min(self.flushed, PATIENCE_MAX)  # growing intervals: few messages, however slowly the nodes answer
        return min(self.answered_ns + (QUIET_NS << times), self.first_ns + (PARTIAL_NS << times))

    def flush(self) -> list[Up]:
        """The answers since the last flush; the last message has ``final``."""
        out: list[Up] = []
        rows: list[list[Any]] = []
        seals: list[str] = []
        bodies: list[bytes] = []
        size = 0
        every = [(names, body, "") for body, names in self.parts.items()]
        every += [(part.names, body, part.seal()) for body, part in self.sealed_parts.items()]
        for names, body, seal in every + self.alone:
            if rows and size + len(body) > PARTS_BYTES:
                out.append(self._up(False, rows, seals, bodies, []))
                rows, seals, bodies, size = [], [], [], 0
            rows.append([names, len(body)])
            seals.append(seal)
            bodies.append(body)
            size += len(body)
        out.append(self._up(not self.left, rows, seals, bodies, list(self.lost)))
        self.parts, self.sealed_parts, self.alone, self.bytes, self.lost, self.first_ns = {}, {}, [], 0, {}, -1
        self.said.clear()
        self.flushed += 1
        return out

    def _up(self, final: bool, rows: list[list[Any]], seals: list[str], bodies: list[bytes], lost: list[str]) -> Up:
        sealed = {"seals": seals} if any(seals) else {}
        return Up(
            "answer",
            {"call": self.head["call"], "final": final, "parts": rows, "lost": lost, **sealed},
            b"".join(bodies),
        )


class Calls:
    """The open calls, by id."""

    def __init__(self) -> None:
        self.open: dict[str, Call] = {}

    def begin(self, message: wire.Message, t_ns: int) -> Call | None:
        """A call from above; ``None`` if too many are open. A call that comes again is asked again."""
        head = message.head
        call = self.open.get(head["call"])
        if call is None:
            if len(self.open) >= CALLS_MAX:
                return None
            limit_ns = min(head["timeout_ms"] * 1_000_000, TIMEOUT_MAX_NS)
            call = self.open[head["call"]] = Call(head, message.body, t_ns + limit_ns + GRACE_NS)
        return call

    def drop(self, call_id: str) -> Call | None:
        return self.open.pop(call_id, None)

    def lost(self, child: Below, name: str, t_ns: int) -> None:
        """``name`` is no longer below any child."""
        for call in self.open.values():
            if call.discard(child, name):
                call.lose([name], t_ns)

    def finished(self, child: Below, call: Call, t_ns: int) -> None:
        """A child has no more answers: names that it did not answer for are lost."""
        rest = call.via.pop(child.name, None) if child.below is not None else None
        if rest:
            call.left -= len(rest)
            call.lose(sorted(rest), t_ns)

    def flush(self, t_ns: int) -> list[Up]:
        out: list[Up] = []
        for call_id, call in list(self.open.items()):
            if call.due_ns() > t_ns:
                continue
            if t_ns >= call.deadline_ns and call.left:
                rest = call.direct.union(*call.via.values())
                call.left = 0
                call.lose(sorted(rest), t_ns)
            out += call.flush()
            if not call.left:
                del self.open[call_id]
        return out

    def next_wake_ns(self) -> int | None:
        return min((c.due_ns() for c in self.open.values()), default=None)
