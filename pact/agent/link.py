"""The agent's place in a cluster: its records go up, calls and holds come down. Loaded only if there are parents.

Everything here runs in the agent's loop. ``core.tree.member`` decides what a node does in the tree; this file has its
sockets and its records. The same ``Requests`` as for the control socket carry calls out, with the operator's identity.

Records leave the node in the form for viewers, whoever asks.  # S2
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import orjson
import zmq

from pact import __version__
from pact.agent import veil
from pact.agent.commandfiles import left_calls
from pact.agent.executing import Executing
from pact.agent.remote import ROWS_MAX, Callers, Remote
from pact.agent.streams import Streams
from pact.core import ops, strict
from pact.core.node import bonds
from pact.core.node.events import ContactChanged, FleetTold
from pact.core.records import Record, rfc3339
from pact.core.tree.checks import BODY_MAX
from pact.core.tree.member import (
    Answered,
    Called,
    Calls,
    CarryOut,
    Contact,
    Dropped,
    Effect,
    FleetSaid,
    Framed,
    Key,
    Member,
    Welcomed,
    refusal,
)
from pact.core.tree.nodeseals import NodeSeals
from pact.core.tree.outbox import WITH_ANSWER_RECORDS, Outbox, Read, Up, wait_ns, with_answer
from pact.core.tree.seals import key_id
from pact.core.tree.uplink import OF_LINKS, Lost, Note
from pact.core.tree.wire import Message
from pact.errors import (
    EXIT_FAILED,
    EXIT_USAGE,
    ConfigError,
    JournalError,
    RequestError,
)
from pact.host.budget import Budget
from pact.host.notify import log
from pact.limits import RECORD_MAX
from pact.model import NS_PER_S, Actor
from pact.net import keys
from pact.net.links import Links

if TYPE_CHECKING:
    from pact.agent.config import Config
    from pact.agent.driver import Driver
    from pact.agent.requests import Requests

FILE_NAME: Final = "replicated"
SAVE_NS: Final = 5 * NS_PER_S
RECENT_MAX: Final = 256
RECENT_BYTES_MAX: Final = 256 << 10
READ_BYTES: Final = 128 << 10
READS_PER_TURN: Final = 4
PUT_OFF_NS: Final = NS_PER_S // 20
REREAD_NS: Final = 2 * NS_PER_S
GONE: Final = "whoever asked waits for it no more"
BEGUN_RECORDS: Final = 1_000
HERE_ONLY: Final = frozenset(name for name, op in ops.AT_NODE.items() if op.at == "node" and not op.afar)


class Link:
    """See the module. Call ``turn`` in every turn of the agent's loop."""

    def __init__(self, agent: Driver, requests: Requests) -> None:
        """Raises ConfigError if the key cannot be used. Does not connect yet."""
        config = agent.config
        self.agent = agent
        self._requests = requests
        self._context: zmq.Context[Any] = zmq.Context(1)
        key = keys.load_own(config.secret)
        self._public, self._refusal = key.public, ""
        self.links = Links(self._context, key, self._opened, self._closing)
        first = agent.journal.get(0)
        incarnation = first.hash[:16] if first is not None else ""
        self._path = os.path.join(config.state_dir, FILE_NAME)
        self._saved, forked, differs, proven = self._load(incarnation)
        self._save_ns = 0
        self._recent: deque[tuple[int, str, bytes]] = deque()
        self._recent_bytes = 0
        self.outbox = Outbox(
            config.name, incarnation, newest=agent.journal.seq, acked=self._saved, hash_of=self._hash_of
        )
        self.outbox.forked, self.outbox.differs, self.outbox.proven = forked, differs, proven
        self._said_apart = ""
        session = secrets.randbits(64)
        left = left_calls(requests.sessions.directory) if requests.sessions is not None else set[str]()
        self.member = Member(
            self.outbox,
            config.parents,
            random.Random(),
            session=session,
            version=__version__,
            rack=config.rack,
            wall_ns=time.time_ns,
            unfinished=lambda: bonds.unfinished(agent.node),
            calls=Calls(self._calls_begun() | left),
            seals=_seals(config, key, session) if config.roots else None,
            stays=lambda: bool(self.streams.by_call or self.executing.running),
        )
        self.uplink = self.member.uplink
        self._todo: deque[Read | Up] = deque()
        self._reread_ns = 0  # when to try an unreadable record again; 0: there is none
        self._unread = False  # and that was logged
        self._callers = Callers()
        self._budget = Budget()
        self._since_wall_ns = 0
        self._cut_off = False  # since it had a parent
        self._under = ""  # the parent that streams go through
        self.streams = Streams(self, requests.sessions)
        self.executing = Executing(self.streams)

    def _calls_begun(self) -> set[str]:
        """Calls of which the journal has a record: they may come again, and their answers are lost.  # T12"""
        rows = self.agent.journal.newest(BEGUN_RECORDS)
        return {str(call) for body, _ in rows if (call := strict.own(body)["data"].get("call"))}

    def _opened(self, socket: zmq.Socket[bytes]) -> None:
        self.agent.watch_fd(socket.fileno())

    def _closing(self, socket: zmq.Socket[bytes]) -> None:
        self.agent.unwatch_fd(socket.fileno())

    # -- the loop -----------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Do a bounded amount of work."""
        now_ns = self.agent.clock.now_ns()
        if not self.uplink.connected:
            for parent in self.links.refusing():
                self._refused_by(
                    f"{parent} does not know the key of this node ({self._public}): it must stand in "
                    "authorized_keys.toml, with the role node"
                )
        for parent, message in self.links.drain():
            if message.kind == "sorry" and message.head["denied"]:
                self._refused_by(f"{parent} refuses the key of this node: {message.head['why']}")
            self._apply(self.member.received(parent, message, now_ns))
        for parent in self.links.flooding():
            log(f"{parent} sends faster than it can be read: connected anew", 4)
        self._apply(self.member.tick(now_ns))
        self.executing.turn()
        self.streams.turn(time.monotonic())
        if 0 < self._reread_ns <= now_ns:
            self._reread_ns = 0
            self._queue(self.outbox.more())
        put_off = self.member.calls.put_off
        for _ in range(len(put_off)):
            self._call(put_off.popleft())
        for _ in range(READS_PER_TURN):
            if not self._todo:
                break
            self._next(self._todo.popleft(), now_ns)
        if self.apart != self._said_apart:
            self._said_apart = self.apart
            if self.apart:
                log(f"cluster: {self.apart}. Nothing more is replicated; see docs/cluster.md", 3)
            else:
                log("cluster: the root has the records of this journal, and no others: they are replicated again", 4)
            self.save()
        if self.outbox.acked != self._saved and now_ns >= self._save_ns:
            self.save()
            self._save_ns = now_ns + SAVE_NS

    @property
    def apart(self) -> str:
        """Why nothing more of this journal goes to the root; "" if it does."""
        forked = self.outbox.forked
        if not forked:
            return ""
        said = "" if self.outbox.proven else "it was said without the root's seal that "
        if self.outbox.differs:
            return (
                f"{said}the root has another record {forked} of this journal: an older copy was put back, or a second "
                "machine has this node's key and a copy of its journal"
            )
        return (
            f"{said}the root has records up to {forked} of this journal, which ends before: an older copy was put back"
        )

    def _refused_by(self, why: str) -> None:
        """Log the reason once, and show it until a parent welcomes this node."""
        if why != self._refusal:
            self._refusal = why
            log(f"cluster: {why}", 3)

    def next_wake_ns(self) -> int:
        """0: at once."""
        if self._todo or self.links.readable():
            return 0
        wake_ns = self.member.next_wake_ns()
        due = [wake_ns] if wake_ns is not None else []
        if self._reread_ns:
            due.append(self._reread_ns)
        if self.executing.busy:
            due.append(self.agent.clock.now_ns() + int(self.executing.next_s() * NS_PER_S))
        if (slow_s := self.streams.next_s(time.monotonic())) is not None:
            due.append(self.agent.clock.now_ns() + int(slow_s * NS_PER_S))
        if self.member.calls.put_off:
            due.append(self.agent.clock.now_ns() + PUT_OFF_NS)
        return min(due, default=1 << 62)

    def _apply(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, OF_LINKS):
                self.links.perform(effect)
            elif isinstance(effect, Read):
                self._queue([effect])
            elif isinstance(effect, Framed):
                self.streams.heard(effect.message)
            elif isinstance(effect, Dropped):
                self.executing.cancel(effect.call, GONE)
                self.streams.withdraw(partial(_asked_in, effect.call), GONE)
            elif isinstance(effect, Called):
                self._call(effect.message)
            elif isinstance(effect, CarryOut):
                self._run(effect.key, effect.head, effect.body)
            elif isinstance(effect, Answered):
                self._answer(effect.key, effect.body)
            elif isinstance(effect, FleetSaid):
                self.agent.tell(FleetTold(*self.agent.now(), effect.fence, effect.seq, effect.holds))
                self.executing.replaced(effect.fence)
            elif isinstance(effect, Contact):
                self.agent.tell(ContactChanged(*self.agent.now(), effect.up))
            elif isinstance(effect, Welcomed):
                if effect.parent != self._under or self._cut_off:  # else it has only said hello again
                    log(f"cluster: under {effect.parent}")
                    self._since_wall_ns, self._cut_off = self.agent.now()[1], False
                if effect.parent != self._under:
                    self.streams.lost("the way to the root has changed")
                self._under = effect.parent
                self._refusal = ""
                self._todo.clear()
            elif isinstance(effect, Lost):
                self._cut_off = True
                log(f"cluster: no parent: {effect.why}", 4)
                self.streams.lost(effect.why)
                self.executing.lost("the way to whoever asked was lost")
            elif isinstance(effect, Note):
                log(f"cluster: {effect.text}", 4)

    def execute(self, client: Remote, request: ops.Exec) -> None:
        """Run a command for a person. Raises PactError."""
        self.executing.begin(client, request)

    def revoke(self, user: str) -> None:
        """A person's key was removed: what it has opened ends, and what it has asked for is not begun."""
        put_off = self.member.calls.put_off
        self.member.calls.put_off = deque(m for m in put_off if m.head["caller"]["user"] != user)
        self.streams.revoke(user)
        self.executing.revoke(user)

    def send(self, kind: str, head: Mapping[str, Any], body: bytes) -> None:
        """A message to the parent, now. Raises LocalProtocolError."""
        self._apply(self.uplink.send(kind, head, body))

    def close(self) -> None:
        """Say goodbye. Unacknowledged records are sent after the next start."""
        self.executing.close()
        self.streams.close()
        self._apply(self.uplink.stop())
        self.save()
        self.links.close()
        self._context.term()

    # -- records up ---------------------------------------------------------------------------------------------

    def recorded(self, rows: Sequence[tuple[Record, bytes]]) -> None:
        """These records are durable on this node."""
        for record, body in rows:
            self._recent.append((record.seq, record.hash, body))
            self._recent_bytes += len(body)
        while self._recent and (len(self._recent) > RECENT_MAX or self._recent_bytes > RECENT_BYTES_MAX):
            self._recent_bytes -= len(self._recent.popleft()[2])
        waits_ns = wait_ns(record for record, _ in rows)
        self._queue(self.outbox.recorded(rows[-1][0].seq, self.agent.clock.now_ns(), wait_ns=waits_ns))

    def _queue(self, reads: Sequence[Read]) -> None:
        """The outbox's newest ``Read`` replaces earlier ones: however many steps a turn has, only one waits."""
        for read in reads:
            if self._todo and isinstance(self._todo[-1], Read):
                self._todo.pop()
            self._todo.append(read)

    def _next(self, work: Read | Up, now_ns: int) -> None:
        if isinstance(work, Up):
            self._apply(self.member.send(work))
            return
        if work.first != self.outbox.following:
            return  # the records were read meanwhile
        try:
            lines = list(self._lines(work.first, work.limit))
        except JournalError as exc:
            if not self._unread:
                log(f"cluster: {exc}", 4)
            self._reread_ns, self._unread = now_ns + REREAD_NS, True
            return
        self._reread_ns, self._unread = 0, False
        self._todo.extendleft(reversed(self.outbox.rows(work.first, lines, now_ns)))

    def _lines(self, first: int, limit: int) -> Iterator[bytes]:
        """Records in the form for viewers, at least one; from memory if possible."""
        rows: Iterator[tuple[str, bytes]]
        if self._first_recent() <= first:
            rows = ((h, b) for _, h, b in islice(self._recent, first - self._recent[0][0], None))
        else:
            rows = self.agent.journal.bodies(first, limit)
        size = 0
        for hash_, body in islice(rows, limit):
            line = self.agent.veil.record_line(body, hash_, veil.VIEWER)
            if len(line) > RECORD_MAX or not strict.readable(line):
                line = veil.without_data(body, hash_)  # otherwise the root would refuse it, and ask for it for ever
            yield line + b"\n"
            size += len(line)
            if size >= READ_BYTES:
                return

    def _hash_of(self, seq: int) -> str | None:
        first = self._first_recent()
        if first <= seq < first + len(self._recent):
            return self._recent[seq - first][1]
        try:
            return self.agent.journal.hash_of(seq)
        except JournalError:
            return None

    @property
    def replicated(self) -> int:
        return self.outbox.acked

    def _load(self, incarnation: str) -> tuple[int, int, bool, bool]:
        """Up to which record the root is known to have the journal; up to which it is known to have another journal
        (else 0); whether that has another record there; and whether the root itself has said so."""
        try:
            with open(self._path, "rb") as f:
                obj = strict.loads_object(f.read(4096), strict.SMALL_MAX)
            if obj["incarnation"] == incarnation:
                forked, differs = int(obj.get("forked", 0)), bool(obj.get("differs"))
                return int(obj["seq"]), forked, differs, bool(obj.get("proven", not forked))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return -1, 0, False, True

    def save(self) -> None:
        """Save a hint for the next start; without it everything is sent again, and the root skips what it has."""
        try:
            with open(self._path + ".new", "wb") as f:
                out = self.outbox
                hint = {"incarnation": out.incarnation, "seq": out.acked}
                hint |= {"forked": out.forked, "differs": out.differs, "proven": out.proven}
                f.write(orjson.dumps(hint))
            os.replace(self._path + ".new", self._path)
        except OSError:
            pass
        self._saved = self.outbox.acked

    # -- calls --------------------------------------------------------------------------------------------------

    def _call(self, message: Message) -> None:
        self._apply(
            self.member.call(message, self.agent.clock.now_ns(), spent=self._over_budget(message.head["caller"]))
        )

    def _over_budget(self, caller: Mapping[str, Any]) -> bool:
        """Whether the caller has used up the share of the loop's time.  # S8"""
        return caller["role"] not in ("admin", "agent") and self._budget.wait_s(caller["user"]) > 0

    def spend(self, actor: Actor, seconds: float) -> None:
        """The loop was at a request of this person for so long."""
        if actor.role not in ("admin", "agent"):
            self._budget.spend(actor.user, seconds)

    def _run(self, key: Key, head: Mapping[str, Any], body: bytes) -> None:
        op = head["op"]
        try:
            args = strict.loads_object(body or b"{}", BODY_MAX)
            if op in HERE_ONLY or args.get("follow"):
                raise RequestError(f"{op} works on the node itself only" + (" with follow" if op == "log" else ""))
            if op == "log" and not 0 <= (args.get("count") or 0) <= ROWS_MAX:
                raise RequestError(f"at most {ROWS_MAX} records of a node can be asked for from afar")
        except (strict.NotStrictError, RequestError, TypeError) as exc:
            self._refuse(key, EXIT_USAGE, str(exc), "run it on the node for more" if op == "log" else "")
            return
        if op == "log" and args.get("count") is None:
            args["count"] = ROWS_MAX + 1  # one more than is shown: it tells whether there are more
        remote = Remote(partial(self.answered, key), self._callers.of(head["caller"], key), key)
        began_s = time.monotonic()
        self._requests.line(remote, orjson.dumps({"v": 1, "op": op, "args": args}))
        self.spend(remote.caller.actor, time.monotonic() - began_s)
        if remote.open and not remote.tokens:
            self._refuse(key, EXIT_FAILED, f"{op} gave no answer", "")

    def _refuse(self, key: Key, code: int, why: str, hint: str) -> None:
        self.answered(key, refusal(code, why, hint))

    def answered(self, key: Key, body: bytes) -> None:
        """A call is done."""
        self._answer(key, self.member.calls.done(key, body))

    def _answer(self, key: Key, body: bytes) -> None:
        self._apply(self.member.answer(key, body, self._with_answer()))

    def _with_answer(self) -> Up | None:
        """The records that were just made, if nothing else waits to go up. They are few and in memory: this is called
        in the middle of a step.
        """
        if not self.uplink.with_answers or len(self._todo) != 1:
            return None
        read = self._todo[0]
        if not isinstance(read, Read) or read.limit > WITH_ANSWER_RECORDS or self._first_recent() > read.first:
            return None
        self._next(self._todo.popleft(), self.agent.clock.now_ns())
        if self._todo and isinstance(up := self._todo[0], Up) and with_answer(up):
            self._todo.popleft()
            return up
        return None

    def _first_recent(self) -> int:
        """The first record that is in memory."""
        return self._recent[0][0] if self._recent else self.outbox.newest + 1

    def status(self) -> dict[str, Any]:
        """The cluster's part of ``pact status``."""
        since = rfc3339(self._since_wall_ns) if self.uplink.connected else None
        return {
            "parent": self.uplink.parent or None,
            "connected": self.uplink.connected,
            "since": since,
            "replicated": self.outbox.acked,
            "waiting": self.outbox.waiting,
            "forked": self.outbox.forked or None,
            **({"refused": self._refusal} if self._refusal else {}),
            **({"apart": self.apart} if self.apart else {}),
        }


def _asked_in(call: str, client: Remote) -> bool:
    return client.key[1] == call


def _seals(config: Config, key: keys.Key, session: int) -> NodeSeals:
    """Raises ConfigError."""
    from pact.net.shared import Shared

    shared = Shared(key)
    roots = {key_id(public): shared.key(public) for public in config.roots}
    if not all(roots.values()):
        raise ConfigError(f"{config.path}: [cluster] roots has a key that can be used for nothing")
    return NodeSeals(roots, session, required=config.sealed)
