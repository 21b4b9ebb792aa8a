"""Holds of the whole fleet, which every node gets; they are durable at the root before any node is told.  # G8"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import orjson

from pact.core.ops import FleetHold, FleetRelease
from pact.core.records import rfc3339
from pact.core.root import payloads
from pact.core.root.answers import answer_of
from pact.core.root.envelope import Envelope
from pact.core.root.questions import Questions, require_role
from pact.errors import EXIT_UNREACHABLE, ConflictError, DeniedError, UsageError
from pact.model import NS_PER_S, Json, JsonRead

TELL_EVERY_NS: Final = 10 * NS_PER_S
FOR_MAX_NS: Final = 30 * 24 * 3600 * NS_PER_S
REASON_MAX: Final = 2_000
HOLDS_MAX: Final = 64


class Holds:
    """The holds of the whole fleet."""

    def __init__(self, questions: Questions, released: Callable[[], None]) -> None:
        """``released`` is called when the last hold has ended."""
        self.root = questions.root
        self.questions = questions
        self._released = released
        self._tell_at_ns: int | None = None
        self._ending: set[str] = set()
        self._placing = False

    def tick(self) -> None:
        root = self.root
        for name in [n for n, h in root.state.holds.items() if h.ends_ns <= root.t_ns and n not in self._ending]:
            self._release_one(name, "expired", root.actor(), None)
        if self._tell_at_ns is not None and self._tell_at_ns <= root.t_ns:
            self.tell()

    def next_wake_ns(self) -> int | None:
        wakes = [h.ends_ns for n, h in self.root.state.holds.items() if n not in self._ending]
        if self._tell_at_ns is not None:
            wakes.append(self._tell_at_ns)
        return min(wakes, default=None)

    def place(self, head: Envelope, args: FleetHold) -> None:
        """Stop all rollbacks: the hold is durable first, then sent to every node.  # G8"""
        root = self.root
        require_role(head.caller, "ops", "hold")
        reason, for_ns = args.reason.strip(), args.for_ns
        if not reason:
            raise UsageError("--reason must say why")
        if len(reason) > REASON_MAX or len(root.state.holds) >= HOLDS_MAX:  # every node gets all holds
            raise UsageError(f"a reason has at most {REASON_MAX} characters, and the fleet at most {HOLDS_MAX} holds")
        if for_ns is None or not 0 < for_ns <= FOR_MAX_NS:
            raise UsageError("--for must lie between nothing and 30d")
        name = f"f{root.state.hold_n + 1}"
        if self._placing:
            raise ConflictError("another hold is being placed just now", "try again in a moment")
        self._placing = True
        ends_ns = root.t_ns + for_ns
        root.record(
            payloads.HoldPlaced(
                hold=name,
                owner=payloads.Person(head.caller.user),
                reason=reason,
                ends_ns=ends_ns,
                ends=rfc3339(root.wall_ns + for_ns),
                fence=root.fence,
            ),
            root.actor(head.caller),
            lambda: self._held(head, name),
        )

    def _held(self, head: Envelope, name: str) -> None:
        self._placing = False
        self.tell()
        self._confirm(head, {"hold": name, "ends": self.root.state.holds[name].ends})

    def _confirm(self, head: Envelope, result: Json) -> None:
        """Answer when every node has confirmed. The answer names the nodes that will hear of it when they return."""
        root = self.root
        here, absent = self.questions.targets(None)
        deaf: dict[str, str] = {}

        def part(names: list[str], body: bytes) -> None:
            if not answer_of(body).result.get("seen"):
                deaf.update(dict.fromkeys(names, "it has not heard of it yet"))

        def done(lost: dict[str, str]) -> None:
            failed = {**deaf, **lost, **dict.fromkeys(absent, "away: it learns of it before it acts")}
            code = EXIT_UNREACHABLE if failed else 0
            heard = len(here) - len(deaf.keys() | lost.keys())
            self.questions.reply(head, code, "", "", {**result, "nodes": heard}, failed)

        table = {k: v for k, v in root.fleet().items() if k in ("fence", "seq", "holds")}
        self.questions.ask(
            here, "fleet_seen", orjson.dumps(table), head.caller, self.questions.timeout_ns(head), part, done
        )

    def release(self, head: Envelope, args: FleetRelease) -> None:
        root, name = self.root, args.hold
        require_role(head.caller, "ops", "hold")
        user, admin = head.caller.user, head.caller.role == "admin"
        holds = {n: h for n, h in root.state.holds.items() if n not in self._ending}
        picked = [n for n, h in holds.items() if (name == n if name else h.user == user)]
        if not picked:
            others = ", ".join(f"{n} of {h.user}" for n, h in holds.items())
            raise ConflictError(
                f"there is no hold {name} of the fleet" if name else "no hold of the fleet is yours",
                f"the fleet is held by {others}" if others else "the fleet is not held",
            )
        for one in picked:
            if holds[one].user != user and not admin:
                raise DeniedError(f"releasing the hold of {holds[one].user} needs the role admin")
        for one in picked:
            last = one == picked[-1]
            self._release_one(one, "released", root.actor(head.caller), head if last else None, picked)

    def _release_one(
        self, name: str, cause: str, actor: JsonRead, head: Envelope | None, picked: Sequence[str] = ()
    ) -> None:
        def done() -> None:
            self._ending.discard(name)
            self.tell()
            if not self.root.state.holds:
                self._released()
            if head is not None:
                self._confirm(head, {"released": list(picked), "held": self.root.holds()})

        root = self.root
        self._ending.add(name)
        root.record(payloads.HoldReleased(hold=name, cause=cause, fence=root.fence), actor, done)

    def tell(self) -> None:
        root = self.root
        root.fleet_seq = max(root.fleet_seq, root.state.chain.seq)
        root.tell_fleet(root.nodes)
        self._tell_at_ns = root.t_ns + TELL_EVERY_NS if root.state.holds else None
