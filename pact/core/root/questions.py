"""The root's questions to many nodes at once: sent down as one message, answered as folded parts, bounded in time.

Requests of operators to nodes pass unchanged; the nodes decide by the operator's role. Groups and holds of the fleet
have their own files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from pact.core import ops, strict
from pact.core.ops import GroupApply, Op
from pact.core.roles import BY_KEY, RANK
from pact.core.root.answers import SAID_MAX, ToClient, answer_of
from pact.core.root.envelope import Asker, Envelope
from pact.core.root.log import ROOT
from pact.core.root.replies import Replies
from pact.core.root.routes import Routes
from pact.core.root.term import AWAY_NS, Term
from pact.core.tree.checks import BODY_MAX
from pact.core.tree.clients import request_max
from pact.core.tree.wire import Message, NewHead, beside, sections
from pact.errors import (
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    AbsentError,
    DeniedError,
    PactError,
    UsageError,
)
from pact.limits import QUESTIONS_EACH_MAX, QUESTIONS_MAX
from pact.model import NS_PER_S, Json, JsonRead

TIMEOUT_NS: Final = 60 * NS_PER_S
TIMEOUT_MAX_NS: Final = 3600 * NS_PER_S
TRIES_MAX: Final = 2
MESSAGE_MAX: Final = 4_000
#: The most bytes of arguments that the root writes anew for nodes; a group's other arguments are added to them.
ARGS_MAX: Final = BODY_MAX - (1 << 20)
GROWTH: Final = 8  # JSON that is written anew grows at most this many times: 1E15 becomes 1000000000000000.0
LOST: Final = "lost contact before it answered; it may have been done"
LATE: Final = "no answer in time; it may still be done"
ABSENT: Final = "not connected"
NOT_ITS_OWN: Final = "what came in its name is not sealed with its key; it may have been done"

#: Operations that nodes carry out for the root as they do for their control socket.
NODE_OPS: Final = frozenset(name for name, op in ops.AT_NODE.items() if op.afar)
#: Operations that no number of open questions keeps out: stopping the fleet, and settling before a window ends.
SETTLING: Final = frozenset(name for name, op in ops.AT_ROOT.items() if op.settles)
STALE: Final = b'"stale fence '  # in a node's answer: the node has obeyed another root with a higher fence
FENCED_BYTES: Final = 500

#: Which nodes may be absent: this many, or these.
Allowed = int | frozenset[str]
Part = Callable[[list[str], bytes], None]
Done = Callable[[dict[str, str]], None]


@dataclass(slots=True)
class Question:
    """One open question. ``waiting`` are the nodes that have not answered; ``away`` those of them that are
    disconnected, each with the time until which it may come back; ``lost`` says why some nodes will not answer.
    """

    id: str
    waiting: set[str]
    op: str
    args: bytes
    caller: Asker
    until_ns: int
    part: Part
    done: Done
    client: str = ""
    client_id: int = 0
    flush: Callable[[], None] | None = None
    lost: dict[str, str] = field(default_factory=dict)
    away: dict[str, int] = field(default_factory=dict)  # the earliest first
    unasked: set[str] = field(default_factory=set)  # nodes of ``away`` that have not received the question yet
    apart: set[str] = field(default_factory=set)  # nodes whose answers come unmerged
    tries: dict[str, int] = field(default_factory=dict)  # how often a connected node that was reported lost was asked

    def told(self, names: Iterable[str]) -> None:
        """Stop waiting for these nodes."""
        self.waiting.difference_update(names)
        if self.away:
            for name in names:
                self.away.pop(name, None)


@dataclass(slots=True, eq=False)
class _Later:
    """A request that needs nodes which may be back soon: handled when all of them are back, or at ``until_ns``."""

    head: Envelope
    args: JsonRead
    raw: bytes
    absent: set[str]
    until_ns: int


class Questions(Replies):
    """All questions of one root."""

    def __init__(self, root: Term) -> None:
        super().__init__(root)
        self.ops: Mapping[str, Callable[[Envelope, Any], None]] = {}  # operations that the root itself carries out
        self.open: dict[str, Question] = {}
        self.routes = Routes(root)
        self._later: list[_Later] = []
        self._n = 0

    # -- down and up --------------------------------------------------------------------------------------------

    def ask(
        self,
        names: Iterable[str],
        op: str,
        args: bytes,
        caller: Asker,
        timeout_ns: int,
        part: Part,
        done: Done,
        client: tuple[str, int] = ("", 0),
        flush: Callable[[], None] | None = None,
        expected: Mapping[str, int] | None = None,
    ) -> str:
        """Ask connected nodes, and the ``expected`` ones, which may be back until a time, the earliest first. Calls
        ``part(names, answer)`` for each set of nodes with equal answers, ``flush()`` after several that came together,
        and ``done(lost)`` at the end. Returns the call's name, "" if nobody is asked.
        """
        root = self.root
        here = dict.fromkeys(names)  # in the given order: the same in every run
        waiting = {*here, *(expected or ())}
        if not waiting:
            done({})
            return ""
        self._n += 1
        question = Question(
            f"{root.fence:x}.{self._n}",
            waiting,
            op,
            args,
            caller,
            root.t_ns + timeout_ns,
            part,
            done,
            *client,
            flush,
            away=dict(expected or {}),
            unasked=set(expected or ()),
        )
        self.open[question.id] = question
        if here:
            self._call(question, here)
        return question.id

    def _call(self, question: Question, names: Iterable[str]) -> None:
        """Name the nodes in the message: a node that connects just now is not asked."""
        root, named = self.root, list(names)
        head: NewHead = {
            "call": question.id,
            "op": question.op,
            "nodes": named,
            "caller": question.caller.to_json(),
            "fence": root.fence,
            "timeout_ms": max(0, question.until_ns - root.t_ns) // 1_000_000,
        }
        if question.op in ops.STREAMING:
            head.update(client=question.client, id=question.client_id)
        if root.seals is not None:
            head.update(term=root.seals.term, apart=not question.apart.isdisjoint(named))
            head["seals"] = root.seals.calls(head, question.args, named)
        root.down("call", head, question.args)

    def ask_members(
        self,
        names: Iterable[str],
        asked: Op | bytes,
        caller: Asker,
        part: Part,
        done: Done,
        timeout_ns: int | None = None,
        client: tuple[str, int] = ("", 0),
    ) -> None:
        """Ask those of ``names`` that are connected; the others are lost at once. ``asked``: the request, or the
        arguments of a ``group_apply``, encoded once. ``client``: the only client that gets the answers.
        """
        connected, away = [], {}
        for name in names:
            if name in self.root.nodes:
                connected.append(name)
            else:
                away[name] = LOST
        ended = done if not away else lambda lost: done({**away, **lost})
        op, raw = (GroupApply.asked_as, asked) if isinstance(asked, bytes) else (asked.asked_as, encoded(asked))
        self.ask(connected, op, raw, caller, timeout_ns or self.root.limits.answer_ns, part, ended, client)

    def allowance(self, given: int | str | None) -> Allowed:
        """``--allow-missing``: a number of nodes, or the names of those that may be absent. Raises UsageError."""
        if given is None or (isinstance(given, int) and given >= 0):
            return given or 0
        if not isinstance(given, str):
            raise UsageError("--allow-missing takes a number or a node set")
        return frozenset(self.root.named(given))

    def answered(self, message: Message) -> None:
        question = self.open.get(message.head["call"])
        if question is None:
            return  # answered already, or asked in another term
        with self.root.spending(question.caller):
            self._take(question, message)

    def _take(self, question: Question, message: Message) -> None:
        head, waiting = message.head, question.waiting
        every = [n for names, _ in head["parts"] for n in names]
        each = set(every)
        # Nearly always true: then no name need be checked separately.
        exact = len(each) == len(every) and each <= waiting
        checked = self.root.seals
        said = beside(head["seals"], head["parts"]) if checked is not None else ()
        for i, ((names, _), body) in enumerate(sections(message, "parts")):
            fresh = names if exact else [n for n in names if n in waiting]  # a set union: repetition is harmless  # G7
            if fresh and checked is not None and not checked.answers(names, question.id, body, said[i]):
                self._doubt(question, fresh)
            elif fresh:
                question.told(fresh)
                if len(body) < FENCED_BYTES and STALE in body:  # another root is newer, or this root's log was lost
                    self.root.refuse("a fence lower than the last one", fresh[0], answer_of(body).message)
                if question.op in ops.STREAMING:
                    self.routes.answered(question.id, fresh, body)
                question.part(fresh, body)
        if question.flush is not None:
            question.flush()
        self._missed(question, [n for n in head["lost"] if n in waiting])
        self._finish_if_done(question)

    def _doubt(self, question: Question, names: Sequence[str]) -> None:
        """The seal of these nodes' answer does not fit: one of the nodes lies, or a member that carries the answer
        does. Ask them once more, each separately: then it is known which answer belongs to which node.  # T14
        """
        self.root.refuse("answers whose seal does not fit", names[0] if len(names) == 1 else "")
        again = [n for n in names if n not in question.apart]
        for name in names if not again else [n for n in names if n in question.apart]:
            self._lose(question, name, NOT_ITS_OWN)
        question.apart.update(again)
        self._again(question, again)

    def gone(self, names: Iterable[str]) -> None:
        """These nodes are no longer connected."""
        self.routes.gone(names)
        for question in list(self.open.values()):
            self._missed(question, [n for n in names if n in question.waiting])

    def came(self, names: Iterable[str]) -> None:
        """Nodes are connected, for the first time or again: the awaited ones are asked again. A node does not do twice
        what it has done already.  # T6
        """
        for question in self.open.values():
            self._again(question, question.away.keys() & names)

    def anew(self, names: Iterable[str]) -> None:
        """These agents have a new session, perhaps without a disconnection: what was sealed for their last one is not
        valid for them, or not for long. Whoever carries the calls may have to tell them again.  # T14
        """
        for question in self.open.values():
            self._again(question, question.waiting.intersection(names) - question.away.keys())

    def back(self, names: Iterable[str]) -> None:
        """These nodes are connected and have got the decisions of their groups: requests that wait for them are
        handled."""
        if self._later:
            for x in self._later:
                x.absent.difference_update(names)
            self._take_up([x for x in self._later if not x.absent])

    def _take_up(self, waiting: Sequence[_Later]) -> None:
        """Handle these requests: the nodes that they wait for are back, or will not be."""
        if waiting:
            self._later = [x for x in self._later if x not in waiting]
            for x in waiting:
                self.request(x.head, x.args, x.raw)

    def _missed(self, question: Question, names: Iterable[str]) -> None:
        """The members below no longer wait for these nodes. A disconnected node may come back. A connected node may
        have come back before its loss was reported, and is asked again; after several such reports the question counts
        as undeliverable.
        """
        root, again = self.root, []
        for name in names:
            tries = question.tries.get(name, 0)
            if name not in root.nodes:
                question.away.setdefault(name, root.t_ns + AWAY_NS)
            elif tries < TRIES_MAX:
                question.tries[name] = tries + 1
                again.append(name)
            else:
                self._lose(question, name, LOST)
        self._again(question, again)

    def _again(self, question: Question, names: Collection[str]) -> None:
        if not names:
            return
        for name in list(names):
            question.away.pop(name, None)
        question.unasked.difference_update(names)
        self._call(question, names)

    def _lose(self, question: Question, name: str, why: str) -> None:
        if name in question.waiting:
            question.told((name,))
            question.lost[name] = ABSENT if name in question.unasked else why

    def _finish_if_done(self, question: Question) -> None:
        if not question.waiting and self.open.pop(question.id, None) is not None:
            question.done(question.lost)
            self.routes.settled(question.id)

    def tick(self) -> None:
        t_ns = self.root.t_ns
        for question in list(self.open.values()):
            late = question.until_ns <= t_ns
            gone = [n for n, until_ns in question.away.items() if late or until_ns <= t_ns]
            if late or gone or not question.waiting:
                with self.root.spending(question.caller):
                    self._end(question, gone, late=late)
        self._take_up([x for x in self._later if x.until_ns <= t_ns])

    def _end(self, question: Question, gone: Sequence[str], *, late: bool) -> None:
        """Wait no longer for these nodes; if it is late, for none."""
        for name in gone:
            self._lose(question, name, LOST)
        if late:
            for name in sorted(question.waiting):
                self._lose(question, name, LATE)
            self.root.down("drop", {"call": question.id, "who": question.caller.user})
        self._finish_if_done(question)

    def next_wake_ns(self) -> int | None:
        wakes = [min(q.until_ns, next(iter(q.away.values()), q.until_ns)) for q in self.open.values()]
        return min([*wakes, *(x.until_ns for x in self._later)], default=None)

    def cancel(self, client: str, id_: int) -> None:
        """The client no longer listens to this request (0: to any). Nodes still do what they were asked; nobody gets
        the answers."""
        for key in [k for k in self.told_ns if k[0] == client and id_ in (0, k[1])]:
            del self.told_ns[key]
        self.routes.cancelled(client, id_)
        self._later = [x for x in self._later if x.head.client != client or id_ not in (0, x.head.id)]
        for question in list(self.open.values()):
            if question.client == client and id_ in (0, question.client_id):
                del self.open[question.id]
                self.root.down("drop", {"call": question.id, "who": question.caller.user})

    # -- clients ------------------------------------------------------------------------------------------------

    def request(self, head: Envelope, args: JsonRead, raw: bytes) -> None:
        """Handle a person's request; ``raw`` is ``args`` as received. The answer is one ``result``, after ``part``
        messages if nodes were asked.
        """
        root, op = self.root, head.op
        try:
            if len(raw) > request_max(head.caller.role):  # the member that carries it may not have checked
                raise UsageError(f"a request of {len(raw)} bytes; at most {request_max(head.caller.role)}")
            if op not in SETTLING and self._busy_with(head.caller):
                raise PactError("the root has too many questions under way", "try again in a moment")
            own = self.ops.get(op)
            if own is not None:
                _require_small(args, raw)
                own(head, _own_request(op, args))
            elif op in NODE_OPS:
                self._ask_nodes(head, raw)
            elif op == "watch":
                names = None if head.nodes is None else root.named(head.nodes)
                root.watch(head.client, head.id, names)
            elif op == "nodes":
                self._list_nodes(head)
            else:
                raise UsageError(f"unknown request {strict.shown(op)}")
        except DeniedError as exc:
            root.record_denied(op, exc.message, head.caller)
            self.reply(head, exc.exit_code, exc.message, exc.hint)
        except AbsentError as exc:  # nothing was done
            expected = root.expected(exc.failed)
            if expected:
                self._later.append(_Later(head, args, raw, set(expected), max(expected.values())))
            else:
                self.reply(head, exc.exit_code, exc.message, exc.hint, failed=exc.failed)
        except PactError as exc:
            self.reply(head, exc.exit_code, exc.message, exc.hint)
        except Exception as exc:  # a bug in one person's request must not end the root for all others  # T13
            root.note(f"{op} of {head.caller.user}: {type(exc).__name__}: {exc}"[:SAID_MAX])
            self.reply(head, EXIT_FAILED, f"internal error: {type(exc).__name__}")

    def _busy_with(self, asker: Asker) -> bool:
        """Whether enough requests are open already, of this person or of all with the same role: viewers keep nobody
        out who has to act. The root's own questions do not count."""
        people = [q.caller for q in self.open.values() if q.client]
        people += [x.head.caller for x in self._later]
        alike = [p.user for p in people if p.role == asker.role]
        return len(alike) >= QUESTIONS_MAX or alike.count(asker.user) >= QUESTIONS_EACH_MAX

    def targets(self, text: str | None) -> tuple[list[str], list[str]]:
        """Connected and absent nodes of a node set (``None``: every node that the root knows and that was not taken out
        of service).
        """
        root = self.root
        if text is None:
            known, here = root.state, root.nodes
            wanted = [*here, *(n for n in known.cursors if n not in here and n not in known.forgotten and n != ROOT)]
        else:
            wanted = root.named(text)
        return [n for n in wanted if n in root.nodes], [n for n in wanted if n not in root.nodes]

    def timeout_ns(self, head: Envelope) -> int:
        asked = head.timeout_ms * 1_000_000
        return min(asked, TIMEOUT_MAX_NS) if asked > 0 else TIMEOUT_NS

    def _ask_nodes(self, head: Envelope, args: bytes) -> None:
        here, absent = self.targets(head.nodes)
        expected = self.root.expected(absent)
        absent = [n for n in absent if n not in expected]
        self.progress(head, 0, len(here) + len(expected))

        def done(lost: dict[str, str]) -> None:
            failed = {**lost, **dict.fromkeys(absent, ABSENT)}
            self.reply(head, EXIT_UNREACHABLE if failed else 0, failed=failed)

        to = ToClient(self.root.down, head)
        call = self.ask(
            here,
            head.op,
            args,
            head.caller,
            self.timeout_ns(head),
            to.part,
            done,
            head.key,
            to.flush,
            expected,
        )
        self.routes.begin(call, head, [*here, *expected])

    def _list_nodes(self, head: Envelope) -> None:
        root = self.root
        here, absent = self.targets(head.nodes)
        rows: dict[str, Json] = {n: {"connected": True, "rack": root.nodes[n].rack} for n in here}
        rows.update({n: {"connected": False, "rack": ""} for n in absent})
        for name, row in rows.items():
            cursor = root.state.cursors.get(name)
            row.update(
                {"seq": -1, "incarnation": "", "hash": ""}
                if cursor is None
                else {"seq": cursor.seq, "incarnation": cursor.incarnation, "hash": cursor.hash}
            )
        self.reply(
            head, 0, result={"v": 1, "root": root.name, "fence": root.fence, "gseq": root.state.gseq, "nodes": rows}
        )


def allowed(absent: Mapping[str, str], allow: Allowed) -> bool:
    """Whether these nodes may be absent."""
    return len(absent) <= allow if isinstance(allow, int) else absent.keys() <= allow


def require_role(caller: Asker, least: str, what: str) -> None:
    """Raises DeniedError. Nodes check their own operations; this is for what the root itself decides."""
    if caller.role == "agent" or RANK.get(caller.role, -1) < RANK[least]:  # no person may be the agent
        raise DeniedError(f"{what} needs the role {least}; {caller.user} is {caller.role}", BY_KEY)


def encoded(request: Op) -> bytes:
    """The arguments of a request to nodes."""
    return orjson.dumps(ops.args_of(request))


def _own_request(op: str, args: JsonRead) -> Op:
    """A request to the root itself. Unknown fields are ignored. Raises UsageError."""
    kind = ops.AT_ROOT[op]
    known = {name: args[name] for name in ops.types_of(kind) if name in args}
    if wrong := ops.wrong(kind, known):
        raise UsageError(f"{op}: {wrong}")
    return kind(**known)


def _require_small(args: JsonRead, raw: bytes) -> None:
    """Raises UsageError for arguments that are too long once they are written anew."""
    size = len(raw) if len(raw) > ARGS_MAX or len(raw) * GROWTH <= ARGS_MAX else len(orjson.dumps(args))
    if size > ARGS_MAX:
        raise UsageError(f"arguments of {size} bytes; at most {ARGS_MAX} travel", "split the file")


def require_short(message: str) -> None:
    """Raises UsageError for a message that is too long: it is stored in the log, in every list of groups, and in every
    member's journal."""
    if len(message) > MESSAGE_MAX:
        raise UsageError(f"a message of {len(message)} characters; at most {MESSAGE_MAX}")


def refuse_absent(root: Term, absent: Mapping[str, str], allow: Allowed, what: str) -> None:
    """Raises AbsentError unless these nodes may be absent."""
    if not allowed(absent, allow):
        raise AbsentError(
            f"{what}: {root.sets.fold(absent)} cannot be reached",
            "bring them back, or go on without them: --allow-missing N or NODESET",
            absent,
        )
