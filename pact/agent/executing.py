"""One command on this node for a person who asked many nodes at once (``pact exec``).

It runs as that person's account, in a process tree of its own that the keeper of sessions forks (``pact.session``),
with pipes and no terminal. A short output goes in the answer of the call, so that equal answers of many nodes are
merged on the way; a longer one goes on a stream. When its time is over, when nobody waits for it any more, and when
the way to the person is lost, everything that it started is killed. ``exec_begun`` is durable before it begins, and
``executed`` before anybody hears the end.  # X9
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pact.agent import admission
from pact.agent.commandfiles import DIRECTORY, executed_of, forget_files, left_of, place_beside, shown_output, tell_end
from pact.agent.commandrecords import CommandRecords
from pact.agent.commandwish import input_of, wish_of
from pact.agent.keeping import not_ready
from pact.agent.leftbehind import keep, name_of
from pact.agent.leftcommands import LeftCommands
from pact.agent.sessionfiles import end_host, end_what_is_left, owner_of_session, read_state, shown
from pact.agent.streams import RUNS, Carrier, Pipe, Streams
from pact.core import ops, strict
from pact.core.node.events import Caller
from pact.core.node.payloads import ExecBegun, Executed
from pact.core.tree.lanes import BULK_CREDIT, PIECE_MAX, WEIGHT_MIN
from pact.errors import ConflictError, DeniedError, PactError, UnreachableError
from pact.host import owned
from pact.model import Actor
from pact.session import frames
from pact.session.frames import CREDIT, FrameError
from pact.session.places import socket_path, state_path

if TYPE_CHECKING:
    from pact.agent.remote import Remote

INLINE_MAX: Final = 16 << 10  # bytes of output that go in the answer
RUNNING_MAX: Final = 32
RUNNING_EACH_MAX: Final = RUNNING_MAX // 2  # of one person
LAUNCH_S: Final = 20.0
UNREAD_S: Final = 60.0  # how long output is kept after the command's time, for a reader that does not read
KILL_S: Final = 20.0  # when its process is killed that does not end it
READS_PER_TURN: Final = 2
READ: Final = 64 << 10
THROWN_BYTES, THROWN_S = 256 << 10, 0.02  # how fast output beyond the bound is read
ANSWER_MAX: Final = 1 << 20  # it has the command, with every character escaped


@dataclass(slots=True, eq=False)
class Execution:
    """One command. ``pipe``: to the process that prepares it, then to the one that has its pipes."""

    id: str
    call: str
    client: Remote
    caller: Caller
    request: ops.Exec
    stdin: bytes
    token: int
    ends_s: float
    began_s: float = field(default_factory=time.monotonic)
    pipe: Pipe = field(init=False)
    state: dict[str, Any] | None = None  # what its process is, once it runs
    begun: int | None = None  # the number of the record that says so
    said: bytes = b""
    reader: frames.Reader = field(default_factory=frames.Reader)
    sent: int = 0  # bytes of its input
    may: int = CREDIT  # how many more may be sent
    kept: deque[tuple[bytes, bytes]] = field(default_factory=deque)  # output that is to go
    out: int = 0
    carrier: Carrier | None = None
    room: int = BULK_CREDIT  # how much may be sent on the stream
    thrown: int = 0  # bytes beyond the bound for which no credit was given yet
    truncated: bool = False
    why: str = ""
    asked: bool = False  # its process was asked to end it
    end: dict[str, Any] | None = None
    told: bool = False  # its end is on record, or owed


class Executing:
    """All commands of this node."""

    def __init__(self, streams: Streams, now_s: Callable[[], float] = time.monotonic) -> None:
        self._streams = streams
        self._agent = streams.agent
        self._now_s = now_s
        self.directory = place_beside(streams.kept.directory) if streams.kept is not None else ""
        self.running: dict[str, Execution] = {}  # by call
        self.unread: dict[str, Execution] = {}  # by call: they have ended, and not all of their output was taken
        self._readable: dict[str, Execution] = {}
        self._number = 0
        self._thrown_s = 0.0
        self._left = LeftCommands(self)
        self._ready: list[tuple[Execution, dict[str, Any]]] = []  # prepared: they begin when that is on record
        self._records = CommandRecords(self._agent, self.forget_files, now_s)

    # -- beginning ----------------------------------------------------------------------------------------------------

    def begin(self, client: Remote, request: ops.Exec) -> None:
        """Raises PactError."""
        agent, caller = self._agent, client.caller
        agent.require_journal()
        person, account = admission.account(agent.config, caller, "")
        self._require_new(client.key[1])
        self._require_room(caller.actor.user)
        stdin = input_of(request)
        self._make_place()
        self._number += 1
        while os.path.lexists(state_path(self.directory, f"x{self._number}")):
            self._number += 1
        name = f"x{self._number}"
        wish = wish_of(name, self.directory, person, account, caller, request, agent.config)
        sock, rest = self._streams.sessions.keeper.ask(wish)
        token = agent.next_token()
        client.tokens.add(token)
        now_s = self._now_s()
        ends_s = now_s + LAUNCH_S
        one = Execution(name, client.key[1], client, caller, request, stdin, token, ends_s, now_s)
        one.pipe = Pipe(self._streams, sock, lambda: self.ready(one))
        one.pipe.send(rest)
        self.running[one.call] = one

    def _require_room(self, user: str) -> None:
        """Nobody takes all places. Raises ConflictError.  # S8"""
        users = [one.caller.actor.user for one in (*self.running.values(), *self.unread.values())]
        users += self._records.ending
        if users.count(user) >= RUNNING_EACH_MAX:
            raise ConflictError(
                f"{RUNNING_EACH_MAX} commands of {user} are under way on this node, and no more are run for one person",
                "repeat it when one has ended",
            )
        if len(users) >= RUNNING_MAX:
            raise ConflictError(f"{RUNNING_MAX} commands are under way on this node", "repeat it later")

    def _require_new(self, call: str) -> None:
        """Raises ConflictError."""
        if call in self.running or call in self.unread:
            raise ConflictError(f"call {call} is under way on this node already", RUNS)
        self._streams.require_new(call)

    def _make_place(self) -> None:
        self._streams.sessions._make_places()  # the keeper's socket is there
        try:
            owned.make_directory(self.directory, DIRECTORY, 0o700)
            owned.require(self.directory, DIRECTORY)
        except OSError as exc:
            raise PactError(f"{DIRECTORY} {self.directory}: {os.strerror(exc.errno or 0)}") from None

    def ready(self, one: Execution) -> None:
        if one.state is None:
            self._prepared(one)
        else:
            self._readable[one.call] = one  # its turn comes: a terminal on this node does not wait for all of them

    def _prepared(self, one: Execution) -> None:
        data = one.pipe.receive()
        if data is None:
            return
        one.said += data
        if data and b"\n" not in one.said and len(one.said) < ANSWER_MAX:
            return
        try:
            said = strict.loads_object(one.said, ANSWER_MAX)
        except strict.NotStrictError:
            self._fail(one, UnreachableError("the command could not be prepared", "see the agent's log"))
            return
        state = said.get("ready")
        if "refused" in said:
            denied = DeniedError(str(said["refused"]))
            self._agent.record_denied("exec", denied, one.caller)
            self._fail(one, denied)
        elif not isinstance(state, dict):
            self._fail(one, PactError(f"the command could not be prepared: {said.get('failed', '')}"))
        else:
            self._ready.append((one, state))

    def _begin_ready(self) -> None:
        """Those that are prepared begin: that is durable first, for all of them at once."""
        if not self._ready:
            return
        ready, rows = list[tuple[Execution, dict[str, Any]]](), list[tuple[ExecBegun, Actor]]()
        for one, state in self._ready:
            if self.running.get(one.call) is not one:
                continue
            if one.why:  # it was cancelled meanwhile
                self._fail(one, UnreachableError(one.why))
                continue
            owner, actor = owner_of_session(state, one.caller.owner), one.caller.actor
            command = shown(list(one.request.words))
            begun = ExecBegun(command=command, owner=owner, account=state["account"], key=actor.user, uid=owner.uid)
            ready.append((one, state))
            rows.append((begun, actor))
        self._ready.clear()
        if not rows:
            return
        try:
            numbers = self._records.begin(rows)
        except PactError as exc:
            for one, _ in ready:
                self._fail(one, exc)
            return
        for (one, state), one.begun in zip(ready, numbers, strict=True):
            self._run(one, state)

    def _run(self, one: Execution, state: dict[str, Any]) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.connect(socket_path(self.directory, one.id))
            sock.send(frames.said(b"A", {"by": "exec"}))
            one.pipe.sock.send(b"go\n")
        except OSError:
            sock.close()
            one.why = "its process ended before it began"
            error = UnreachableError("the command's process has ended")
            self._record(one, state, None, lambda: self._fail(one, error))
            return
        one.pipe.close()
        one.state = state
        one.ends_s = self._now_s() + one.request.limit_ms / 1000
        one.pipe = Pipe(self._streams, sock, lambda: self.ready(one))
        self._feed(one)
        if one.request.live:
            self._open_stream(one)

    # -- while it runs ------------------------------------------------------------------------------------------------

    def _feed(self, one: Execution) -> None:
        """Its input, as far as it takes it."""
        while one.sent < len(one.stdin) and one.may > 0:
            data = one.stdin[one.sent : one.sent + min(one.may, frames.PAYLOAD_MAX)]
            one.sent += len(data)
            one.may -= len(data)
            one.pipe.send(frames.frame(b"I", data))
        if one.sent == len(one.stdin) and one.may >= 0:
            one.may = -1
            one.pipe.send(frames.frame(b"D"))

    def _from_command(self, one: Execution) -> None:
        data = one.pipe.receive(READ)
        if data is None:
            return
        try:
            for kind, payload in one.reader.feed(data):
                if kind in (b"O", b"E"):
                    self._output(one, kind, payload)
                elif kind == b"C" and one.may >= 0:
                    one.may += frames.credit_of(payload)
                    self._feed(one)
                elif kind == b"X":
                    one.end = frames.object_of(payload)
        except FrameError:
            data = b""
        if not data and one.end is None:
            one.end = {"why": "its process was killed"}
            if one.state is not None:
                end_what_is_left(read_state(state_path(self.directory, one.id)) or one.state)
        if one.end is not None:
            self._ended(one)
        elif one.carrier is None and not one.why and one.out > INLINE_MAX:
            self._open_stream(one)
        self._pass_on(one)

    def _output(self, one: Execution, kind: bytes, data: bytes) -> None:
        room = max(0, one.request.output_max - one.out)
        one.out += len(data)
        if len(data) > room:
            one.truncated = True
            one.thrown += len(data) - room
            data = data[:room]
        if data:
            one.kept.append((kind, data))

    def _open_stream(self, one: Execution) -> None:
        """Answer the call: what it says from now on goes on a stream."""
        try:
            public, secret = self._streams.secret(one.request.stream)
        except PactError as exc:
            one.why = exc.message
            self._kill(one)
            return
        one.carrier = Carrier(
            self._streams,
            one.call,
            secret,
            bulk=True,
            heard=lambda body, give, cost: self._heard(one, give),
            ended=lambda why: self._stop(one, why),
        )
        self._streams.by_call[one.call] = one.carrier
        self._answer(one, {"stream": public})
        one.carrier.send(b"")  # the root knows from now on that there is a stream to end
        one.room -= WEIGHT_MIN
        self._pass_on(one)

    def _heard(self, one: Execution, give: int) -> None:
        one.room += give
        self._pass_on(one)

    def _pass_on(self, one: Execution) -> None:
        """Output onto the stream, as far as its reader takes it."""
        carrier = one.carrier
        if carrier is None:
            return
        given = 0
        while one.kept and one.room >= WEIGHT_MIN:
            parts: list[bytes] = []
            size, most = 0, min(one.room, PIECE_MAX)
            while one.kept and size < most and len(parts) < 64:
                kind, data = one.kept[0]
                if len(data) > most - size:
                    one.kept[0] = kind, data[most - size :]
                    data = data[: most - size]
                else:
                    one.kept.popleft()
                parts.append(frames.frame(kind, data))
                size += len(data)
            one.room -= max(size, WEIGHT_MIN)
            carrier.send(b"".join(parts), size)
            given += size
        if given and one.end is None:
            one.pipe.send(frames.credit(given))
        if one.told and not one.kept:
            carrier.send(frames.said(b"X", self._result(one)), last=True)
            one.carrier = None
            self.unread.pop(one.call, None)

    # -- its end ------------------------------------------------------------------------------------------------------

    def _result(self, one: Execution) -> dict[str, Any]:
        end = one.end or {}
        code, name, why = end.get("exit"), end.get("signal"), one.why or end.get("why", "")
        result: dict[str, Any] = {"exit": code if type(code) is int else None, "truncated": one.truncated}
        if isinstance(name, str) and name:
            result["signal"] = name
        if isinstance(why, str) and why:
            result["why"] = why
        if left := left_of(end):
            result["left"] = {"id": name_of(one.call, one.id), "processes": left}
        return result

    def _ended(self, one: Execution) -> None:
        """Record it, then say so."""
        assert one.state is not None and one.end is not None
        self._close(one)
        state = read_state(state_path(self.directory, one.id)) or one.state
        self._record(one, state, int((self._now_s() - one.began_s) * 1e9), lambda: self._tell(one))

    def _record(self, one: Execution, state: dict[str, Any], took_ns: int | None, then: Callable[[], None]) -> None:
        owner, actor = owner_of_session(state, one.caller.owner), one.caller.actor
        left = left_of(one.end or {})
        if left:
            keep(self.directory, name_of(one.call, one.id), state, one.begun)
        made = executed_of(one.request.words, owner, state, actor.user, one.begun, {**self._result(one), "left": left})
        self._records.end(one.id, made(took_ns, one.sent, one.out, one.truncated), actor, then)

    def _tell(self, one: Execution) -> None:
        """Its end is on record, or owed: say so."""
        agent, one.told = self._agent, True
        if one.carrier is not None:
            self.unread[one.call] = one
            one.ends_s = self._now_s() + UNREAD_S
        if one.carrier is None and one.token in one.client.tokens:
            out = {kind: b"".join(data for k, data in one.kept if k == kind) for kind in (b"O", b"E")}
            one.kept.clear()
            if agent.journal_error:
                self._fail(one, UnreachableError(agent.journal_error))
                return
            self._answer(
                one, {**self._result(one), **shown_output("stdout", out[b"O"]), **shown_output("stderr", out[b"E"])}
            )
        self._pass_on(one)

    def record(self, name: str, executed: Executed, actor: Actor) -> None:
        """One that the last agent has left has ended."""
        self._records.end(name, executed, actor)

    def begun(self, call: str) -> int | None:
        return self._records.begun(call)

    def _answer(self, one: Execution, result: dict[str, Any]) -> None:
        if one.token in one.client.tokens:
            one.client.tokens.discard(one.token)
            self._agent.answer(one.client, result)

    def _fail(self, one: Execution, error: PactError) -> None:
        if one.state is None:
            one.pipe.send(b"no\n")  # nothing of it stays
        self._close(one)
        if one.token in one.client.tokens:
            one.client.tokens.discard(one.token)
            self._agent.fail(one.client, error)

    def _close(self, one: Execution) -> None:
        self.running.pop(one.call, None)
        one.pipe.close()

    def forget_files(self, name: str) -> None:
        forget_files(self.directory, name)

    # -- ending it ----------------------------------------------------------------------------------------------------

    def cancel(self, call: str, why: str) -> None:
        """Nobody waits for this call any more."""
        one = self.running.get(call)
        if one is not None:
            self._stop(one, why)

    def close(self) -> None:
        """The agent ends. What has ended is recorded; what is just ending, the next agent finds."""
        self.lost("the agent ends")
        self.turn()
        self._records.turn(alone=True)

    def lost(self, why: str) -> None:
        for one in [*self.running.values(), *self.unread.values()]:
            self._stop(one, why)

    def replaced(self, fence: int) -> None:
        """This root leads now. Questions of one before it are forgotten: nobody waits for their answers."""
        for one in [*self.running.values(), *self.unread.values()]:
            if one.client.key[0] < fence:
                self._stop(one, "the root through which it was asked for leads no more")

    def revoke(self, user: str) -> None:
        """This person's key counts no more."""
        for one in list(self.running.values()):
            if one.caller.actor.user == user:
                self._stop(one, "the key of who asked was removed")

    def _stop(self, one: Execution, why: str) -> None:
        """Ask it to end, and kill everything of it a moment later."""
        one.carrier = None
        one.kept.clear()
        self.unread.pop(one.call, None)
        if one.why or self.running.get(one.call) is not one:
            return
        one.why = why
        if one.state is not None:
            self._kill(one)

    def _kill(self, one: Execution) -> None:
        """Its own process asks it to end, and kills everything of it a moment later, even if this agent dies."""
        one.asked, one.ends_s = True, self._now_s() + KILL_S
        self.tell_end(one.id, one.why)

    def turn(self) -> None:
        """What is due."""
        self._begin_ready()
        if not self._agent.journal_error:
            self._left.turn(self._now_s())
        now_s = self._now_s()
        for one in [x for x in self.unread.values() if now_s >= x.ends_s]:
            carrier = one.carrier
            self._stop(one, "")
            if carrier is not None:
                carrier.send(frames.said(b"X", {"why": "its output was not read"}), last=True)
        for call in list(self._readable)[:READS_PER_TURN]:
            readable = self._readable.pop(call)
            if self.running.get(call) is readable:
                self._from_command(readable)
        self._records.turn(alone=not self._readable)
        if not self._left.busy:
            self._records.settle([one.begun for one in self.running.values() if one.begun is not None])
        if not self.running:
            return
        throws = now_s >= self._thrown_s + THROWN_S
        for one in list(self.running.values()):
            if now_s >= one.ends_s:
                if one.state is None:
                    self._fail(one, not_ready("command", bool(one.pipe.out)))
                    continue
                if one.asked:  # it is stopped, or has not heard it
                    one.ends_s = float("inf")
                    end_host(one.state)
                    continue
                one.why = f"it did not end within {one.request.limit_ms / 1000:g}s, and was ended"
                self._kill(one)
            if throws and one.thrown and one.end is None:
                given = min(one.thrown, THROWN_BYTES)
                one.thrown -= given
                self._thrown_s = now_s
                one.pipe.send(frames.credit(given))

    @property
    def busy(self) -> bool:
        return self._left.busy or bool(self.running or self.unread or self._records.busy)

    def next_s(self) -> float:
        """Seconds until ``turn`` has something to do. Call it while ``busy``."""
        if self._readable or self._records.ending:
            return 0.0
        now_s = self._now_s()
        due = [min(one.ends_s, now_s + 60.0) for one in (*self.running.values(), *self.unread.values())]
        due += [self._thrown_s + THROWN_S for one in self.running.values() if one.thrown]
        if self._left.busy and not self._agent.journal_error:
            due.append(self._left.look_s)
        return max(0.0, min(due, default=now_s + 1.0) - now_s)

    def tell_end(self, name: str, why: str) -> None:
        """Ask its process to end it."""
        tell_end(self.directory, name, why)
