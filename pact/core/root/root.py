"""The root's decisions: what is written to the log, which nodes are asked, and which messages go to whom. No socket, no
disk.

The root speaks the messages of the tree as any parent does (``specs/cluster.md``): ``received`` takes messages from
below, ``Down`` is a message to below. Groups are in ``groups``, commands in ``questions``, the log and the nodes in
``term``.  # K1
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from pact.core import strict
from pact.core.ops import Op, SessionRevoke
from pact.core.root import log, payloads
from pact.core.root.envelope import PACT, Asker, Envelope
from pact.core.root.groups import Groups
from pact.core.root.log import RootState
from pact.core.root.persons import CHALLENGE
from pact.core.root.questions import Questions
from pact.core.root.term import AWAY_NS, REWIND_NS, Effect, Known, Limits, NodeSets, Term
from pact.core.tree.checks import BODY_MAX
from pact.core.tree.seals import RootSeals, bound_to, start_of
from pact.core.tree.wire import Head, Message
from pact.errors import EXIT_USAGE, PactError
from pact.limits import LOOKERS_EACH_MAX, LOOKERS_MAX


class Root(Term):
    """One term of a leading root, and the requests of people, nodes and groups."""

    def __init__(
        self,
        name: str,
        state: RootState,
        fence: int,
        sets: NodeSets,
        limits: Limits | None = None,
        seals: RootSeals | None = None,
        secret: bytes = b"",
    ) -> None:
        """``seals``: of this term; ``secret``: random bytes for people's challenges, known to nobody else."""
        super().__init__(name, state, fence, sets, limits, seals, secret)
        self.questions = Questions(self)
        self.groups = Groups(self.questions)
        self.lookers: dict[tuple[str, int], Asker] = {}  # who is told of the whole fleet, until it cancels
        self.questions.ops = {**self.groups.ops, "live": self._live}

    def start(self, t_ns: int, wall_ns: int, boot_id: str, offset_ns: int) -> list[Effect]:
        """Begin the term. ``t_ns`` is node time, computed with ``offset_ns``."""
        self.at(t_ns, wall_ns)
        self.begun_ns = self.t_ns
        reboot = bool(self.state.boot_id) and boot_id != self.state.boot_id
        self.record(
            payloads.AgentStarted(
                boot_id=boot_id, offset_ns=offset_ns, wall_ns=wall_ns, fence=self.fence, name=self.name
            ),
            self.actor(),
            self.groups.resume,
        )
        self.groups.begin_term(reboot)
        return self.flush()

    def received(self, message: Message, t_ns: int, wall_ns: int) -> list[Effect]:
        """Handle a message from below. The codec has checked its form, the relay its sender."""
        self.at(t_ns, wall_ns)
        handler = _KINDS.get(message.kind)
        if handler is None:
            self.refuse(f"a {message.kind} at the root")
        else:
            handler(self, message)
        return self.flush()

    def tick(self, t_ns: int, wall_ns: int) -> list[Effect]:
        self.at(t_ns, wall_ns)
        self.questions.tick()
        self.groups.tick()
        self.tell_refusals()
        return self.flush()

    def next_wake_ns(self) -> int | None:
        wakes = [w for w in (self.questions.next_wake_ns(), self.groups.next_wake_ns()) if w is not None]
        wakes += [self._refusals.next_ns] if self._refusals.beyond else []
        wakes += [self.rewound.get(n, -REWIND_NS) + REWIND_NS for n in self.behind]
        return min(wakes) if wakes else None

    def _below(self, message: Message) -> None:
        head = message.head
        racks, sessions = head.get("racks", {}), head.get("sessions", {})
        gone = [n for n in head["gone"] if self.nodes.pop(n, None) is not None]
        left = self.left_ns
        while left and left[first := next(iter(left))] + AWAY_NS <= self.t_ns:
            del left[first]
        for name in gone:
            left.pop(name, None)
            left[name] = self.t_ns
        self.shares.forget(gone, self.t_ns)
        self.questions.gone(gone)
        fresh, anew, back = [], [], []
        for name in head["add"]:
            if name == log.ROOT:
                self.refuse("a node that calls itself root")
                continue
            known, since_ns, session = self.nodes.get(name), self.t_ns, sessions.get(name, 0)
            if known is not None and start_of(known.session) == start_of(session):
                since_ns = known.since_ns  # it has only said hello again, and owes no more than before
            else:
                back.append(name)
            if known is not None and bound_to(known.session) != bound_to(session):
                anew.append(name)
            self.nodes[name] = Known(racks.get(name, ""), session, since_ns)
            if self.twins.came(name, session, self.t_ns):
                self.refuse("a second machine with the key", name)
            fresh.append(name)
        if self.seals is not None and fresh:
            self.tell_fleet(fresh)
        self.questions.came(fresh)
        if self.seals is not None and anew:
            self.questions.anew(anew)
        self.groups.came(back)
        self.questions.back(fresh)

    def _ask(self, message: Message) -> None:
        self.groups.asked(message.head["node"], message.head["groups"])

    def _answer(self, message: Message) -> None:
        self.questions.answered(message)

    def _frames(self, message: Message) -> None:
        self.questions.routes.frames(message)

    def revoked(self, users: Iterable[str], t_ns: int, wall_ns: int) -> list[Effect]:
        """Keys of these people were removed: their sessions end, not only their connections. An earlier root may have
        opened them, so every node is told."""
        self.at(t_ns, wall_ns)
        for user in users:
            self.questions.ask_members(
                list(self.nodes), SessionRevoke(user=user), PACT, lambda names, body: None, lambda lost: None
            )
        return self.flush()

    def _request(self, message: Message) -> None:
        head: Head = message.head
        if self.persons is not None and self.persons.came_before(head):
            self.refuse("a request that came twice")
            return
        try:
            args = strict.loads_object(message.body or b"{}", BODY_MAX)
        except strict.NotStrictError as exc:
            self.refuse("a request whose arguments are not read here")
            self.questions.reply(Envelope.of(head), EXIT_USAGE, f"its arguments are not read here: {exc}")
            return
        if self.persons is not None:
            try:
                if head["op"] == CHALLENGE:
                    self.questions.reply(Envelope.of(head), 0, result=self.persons.challenge(head))
                    return
                head = self.persons.authenticated(head, message.body)
            except PactError as exc:
                self.questions.reply(Envelope.of(head), exc.exit_code, exc.message, exc.hint)
                return
        self.questions.request(Envelope.of(head), args, message.body)

    def _live(self, head: Envelope, request: Op) -> None:
        """The shell tells the lookers: what they are told is folded beside the loop.  # V7"""
        for key in [k for k in self.lookers if k[0] == head.key[0]]:  # one for each connection
            del self.lookers[key]
        alike = [asker.user for asker in self.lookers.values() if asker.role == head.caller.role]  # S8
        mine = alike.count(head.caller.user)
        if len(alike) >= LOOKERS_MAX or mine >= LOOKERS_EACH_MAX:
            who, count = ("you look", mine) if mine >= LOOKERS_EACH_MAX else ("people look", len(alike))
            raise PactError(f"{who} at the fleet from {count} places already", "end one of them")
        self.lookers[head.key] = head.caller

    def _cancel(self, message: Message) -> None:
        client, id_ = message.head["client"], message.head["id"]
        for asked in (self.watchers, self.lookers):
            for key in [k for k in asked if k[0] == client and id_ in (0, k[1])]:
                del asked[key]
        if self.persons is not None:
            self.persons.cancelled(client, id_)
        self.questions.cancel(client, id_)


_KINDS: Final[Mapping[str, Callable[[Root, Message], None]]] = {
    "events": Root._events,
    "below": Root._below,
    "ask": Root._ask,
    "answer": Root._answer,
    "request": Root._request,
    "cancel": Root._cancel,
    "frames": Root._frames,
}
