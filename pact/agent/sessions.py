"""People's sessions, as the agent has them: who may open one and who may come back to it, and their records.

A session is a process of its own (``pact.session.host``) and outlives the agent. ``session_opened`` is durable before
the person's shell begins; ``session_closed`` is written when its process is gone, by this agent or by the next one,
from the file that the session has left.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pact.agent import admission
from pact.agent.client import Client
from pact.agent.keeping import Keeper, not_ready
from pact.agent.leftbehind import LeftBehind
from pact.agent.sessionfiles import (
    Known,
    cgroup_of,
    closed_record,
    end_what_is_left,
    named,
    own_audit,
    owner_of_session,
    read_state,
    shown,
    where_sits,
)
from pact.agent.transcripts import close as closed_transcript
from pact.agent.worker import Result
from pact.core import ops, strict
from pact.core.node.events import Caller, Event, SessionTold, Ticked
from pact.core.node.payloads import SessionOpened
from pact.core.records import rfc3339
from pact.errors import DeniedError, PactError, UnreachableError, UsageError
from pact.host import owned
from pact.host.notify import log
from pact.model import AGENT_ACTOR, Actor, Owner
from pact.observe.attribution import printable
from pact.session import cast, frames
from pact.session.places import NEVER_BEGAN, socket_path, started_at, state_path

if TYPE_CHECKING:
    from pact.agent.driver import Driver

LAUNCH_S: Final = 40.0
ANSWER_MAX: Final = 1 << 20  # it has the command, with every character escaped
COMMAND_MAX: Final = 64 << 10
DIRECTORY: Final = "directory of the sessions"
RECENT_MAX: Final = 64
TRANSCRIPT_MAX: Final = 4 << 20


@dataclass(slots=True)
class Launch:
    """A session that is being prepared: its connection to the host, and who waits for it."""

    id: str
    conn: socket.socket
    client: Client
    token: int
    caller: Caller
    op: str
    key: str
    where: str
    answered: Callable[[dict[str, Any]], None]
    since_s: float = field(default_factory=time.monotonic)
    input: bytes = b""
    rest: bytes = b""  # of the wish, what the keeper has not taken yet


class Sessions:
    """All sessions of this node."""

    def __init__(self, agent: Driver, epoll: select.epoll) -> None:
        """Find those that the last agent has left. Raises PactError if there is no place for them."""
        self.agent, self._epoll = agent, epoll
        self.directory = os.path.join(os.path.dirname(os.path.abspath(agent.config.socket)), "sessions")
        self.prompts = os.path.join(os.path.dirname(self.directory), "prompt")
        self.casts = os.path.join(agent.config.state_dir, "sessions")
        self.keeper = Keeper(self.directory)
        self.left = LeftBehind(agent, self.directory)
        self.launching: dict[int, Launch] = {}
        self.known: dict[str, Known] = {}
        self.by_fd: dict[int, Known] = {}
        self._closing: dict[str, Known] = {}  # its record is being made
        self._recorded: list[str] = []
        self._again: list[str] = []
        self._number = 0
        self.changed: Callable[[], None] = lambda: None
        if os.path.isdir(self.directory):
            self._find()

    # -- who may -----------------------------------------------------------------------------------------------------

    def _own(self, name: str, caller: Caller, what: str) -> Known:
        """A session of the caller's.  # X5

        Raises UsageError, DeniedError.
        """
        known = self.known.get(name)
        shown = printable(os.fsencode(name))[:64]
        mine = known is not None and known.person == caller.owner.user and not caller.owner.key.startswith("unit:")
        if known is None and caller.actor.role in self.agent.config.shell_roles:
            raise UsageError(f"there is no session {shown}", "pact sessions shows those that run")
        if known is None or not mine:
            raise DeniedError(f"{what} {shown} is for the person who opened it")
        return known

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(
        self,
        client: Client,
        request: ops.ShellOpen,
        answered: Callable[[dict[str, Any]], None] | None = None,
        *,
        op: str = "shell_open",
        where: str = "",
        login: str = "",
    ) -> None:
        """Begin one; the client gets its answer when it runs. ``answered`` is called instead of answering. ``login``:
        the account of a person whose key says so. Raises PactError."""
        agent, caller = self.agent, client.caller
        if login:
            caller = Caller(caller.actor, named(caller.owner, login))
        agent.require_journal()
        person, account = admission.account(agent.config, caller, request.account)
        running = (one.person for one in self.known.values())
        launching = [one.caller.owner.user for one in self.launching.values()]
        admission.require_room(agent.config.shell_sessions, caller.owner.user, running, launching)
        if sum(map(len, request.words)) > COMMAND_MAX or any("\0" in word for word in request.words):
            raise UsageError("the command is too long, or no command")
        self._make_places()
        name = self._next_id()
        recording = f"{self.casts}/{name}.cast" if agent.config.shell_transcript else ""
        size = frames.clamped(request.rows, request.cols)
        where = where or where_sits(client)
        wish = {
            "id": name,
            "dir": self.directory,
            "account": account,
            "person": person,
            "root": person in agent.config.shell_root,
            "who": f"{caller.actor.user} ({caller.actor.via})",
            "where": where,
            "rhost": "" if caller.actor.via == "socket" else where,
            "command": list(request.words),
            "terminal": request.terminal,
            "term": request.term,
            "rows": size[0],
            "cols": size[1],
            "env": {k: v for k, v in list(request.env.items())[:32] if isinstance(v, str)},
            "idle_s": agent.config.shell_idle_ns / 1e9,
            "detached_s": agent.config.shell_detached_ns / 1e9,
            "tasks": agent.config.shell_tasks,
            "transcript": recording,
            "transcript_max": min(TRANSCRIPT_MAX, agent.config.file_limit),
            "prompt": f"{self.prompts}/{name}",
            "about": {"actor": caller.actor.to_json(), "user": caller.owner.user},
        }
        conn, rest = self.keeper.ask(wish)
        token = agent.next_token()
        client.tokens.add(token)
        give = answered or (lambda result: agent.answer(client, result))
        key = caller.actor.user if caller.actor.via == "cluster" else caller.actor.via
        launch = Launch(name, conn, client, token, caller, op, key, where, give, rest=rest)
        self.launching[conn.fileno()] = launch
        self._epoll.register(conn, select.EPOLLIN | (select.EPOLLOUT if rest else 0))

    def _next_id(self) -> str:
        self._number = max(self._number, self.agent.node.state.seq) + 1
        while os.path.lexists(state_path(self.directory, f"s{self._number}")):
            self._number += 1
        return f"s{self._number}"

    def _make_places(self) -> None:
        for path, mode in ((self.directory, 0o700), (self.casts, 0o700), (self.prompts, 0o755)):
            try:
                owned.make_directory(path, DIRECTORY, mode)
                owned.require(path, DIRECTORY)
                os.chmod(path, mode)
            except OSError as exc:
                raise PactError(f"{DIRECTORY} {path}: {os.strerror(exc.errno or 0)}") from None

    @property
    def fds(self) -> Mapping[int, object]:
        """Descriptors of the loop that belong here."""
        return {**self.launching, **self.by_fd} if self.launching else self.by_fd

    def ready(self, fd: int) -> None:
        """One of ``fds`` is readable."""
        if fd in self.launching:
            self._wish(self.launching[fd])
            self._hear(self.launching[fd])
        else:
            self._gone(self.by_fd[fd])

    def _wish(self, launch: Launch) -> None:
        """Say more of what is wanted."""
        if not launch.rest:
            return
        try:
            launch.rest = launch.rest[launch.conn.send(launch.rest) :]
        except BlockingIOError:
            return
        except OSError:
            launch.rest = b""  # it has ended, and what it has said is read
        if not launch.rest:
            self._epoll.modify(launch.conn, select.EPOLLIN)

    def _hear(self, launch: Launch) -> None:
        try:
            data = launch.conn.recv(ANSWER_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        launch.input += data
        if data and b"\n" not in launch.input and len(launch.input) < ANSWER_MAX:
            return
        try:
            said = strict.loads_object(launch.input, ANSWER_MAX)
        except strict.NotStrictError:
            self._give_up(launch, UnreachableError("the session could not be prepared", "see the agent's log"))
            return
        if isinstance(ready := said.get("ready"), dict):
            self._begin(launch, ready)
        elif "refused" in said:
            denied = DeniedError(str(said["refused"]))
            self.agent.record_denied(launch.op, denied, launch.caller)
            self._give_up(launch, denied)
        else:
            self._give_up(launch, PactError(f"the session could not be prepared: {said.get('failed', '')}"))

    def _begin(self, launch: Launch, state: dict[str, Any]) -> None:
        """It is prepared: record it, then let it run.  # X4"""
        agent = self.agent
        if not agent.control.connected(launch.client):
            self._give_up(launch, UnreachableError("nobody waits for it any more"))
            return
        try:
            pidfd = os.pidfd_open(state["pid"])
        except OSError:
            self._give_up(launch, UnreachableError("the session's process has ended"))
            return
        known = Known(launch.id, state, owner_of_session(state, launch.caller.owner), launch.caller.owner.user, pidfd)
        opened = SessionOpened(
            session=launch.id,
            owner=known.owner,
            account=state["account"],
            key=launch.key,
            from_=launch.where,
            terminal=state["tty"],
            command=shown(state["command"]),
            uid=known.owner.uid,
            cgroup=cgroup_of(state["pid"]),
        )
        if not agent.journal_error:
            agent.step(SessionTold(*agent.now(), opened, launch.caller.actor))
        if agent.journal_error:
            os.close(pidfd)
            self._give_up(launch, UnreachableError(agent.journal_error))
            return
        self._keep(known)
        self.changed()  # its prompt has something to read from the first line on
        try:
            launch.conn.send(b"go\n")
        except OSError:
            pass  # its end is noticed by its pidfd
        self._forget(launch)
        self._answer(
            launch, lambda: launch.answered({"session": launch.id, "account": state["account"], "tty": state["tty"]})
        )

    def _answer(self, launch: Launch, give: Callable[[], None]) -> None:
        client = launch.client
        if launch.token in client.tokens and self.agent.control.connected(client):
            client.tokens.discard(launch.token)
            give()
            self.agent.control.flush(client)

    def _give_up(self, launch: Launch, error: PactError) -> None:
        try:
            launch.conn.send(b"no\n")  # nothing of it stays
        except OSError:
            pass  # it has ended already
        self._forget(launch)
        self._answer(launch, lambda: self.agent.fail(launch.client, error))

    def _forget(self, launch: Launch) -> None:
        self._epoll.unregister(launch.conn)
        del self.launching[launch.conn.fileno()]
        launch.conn.close()

    def _keep(self, known: Known) -> None:
        self.known[known.id] = self.by_fd[known.pidfd] = known
        self._epoll.register(known.pidfd, select.EPOLLIN)
        if (audit := own_audit(known.state)) is not None:
            self.agent.watching.observers.follow(audit)

    # -- attaching ---------------------------------------------------------------------------------------------------

    def attach(self, client: Client, request: ops.ShellAttach) -> None:
        """Answer with a descriptor of the session's socket. Raises PactError."""
        known = self.returned_to(request.session, client.caller)
        by = f"{client.caller.actor.user} on {where_sits(client)}"
        size = {"rows": request.rows, "cols": request.cols} if request.rows > 0 < request.cols else {}
        with self.connect(known, {"by": by, "redraw": True, **size}) as sock:
            answer = {"session": known.id, "account": known.state["account"], "terminal": known.state["terminal"]}
            client.hand(
                {"ok": True, "exit": 0, "message": "", "hint": "", "result": {**answer, "owner": known.owner.key}}, sock
            )

    def returned_to(self, name: str, caller: Caller) -> Known:
        """A session of the caller's, who may have one now: the role, or whom ``root`` names, may be others since.
        Raises UsageError, DeniedError."""
        known = self._own(name, caller, "to attach to the session")
        admission.account(self.agent.config, caller, "root" if known.state["uid"] == 0 else "")
        return known

    def connect(self, known: Known, wish: Mapping[str, Any]) -> socket.socket:
        """A connection to a session, on which ``wish`` was said. Raises UnreachableError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.connect(socket_path(self.directory, known.id))
            sock.send(frames.said(b"A", wish))
            return sock
        except OSError as exc:
            sock.close()
            raise UnreachableError(
                f"session {known.id} does not answer: {os.strerror(exc.errno or 0).lower()}"
            ) from None

    def end(self, client: Client, request: ops.SessionEnd) -> None:
        """Hang one up. Raises PactError."""
        known = self.known.get(request.session)
        caller = client.caller
        if known is None or caller.actor.role != "admin":
            known = self._own(request.session, caller, "to end the session")
        self.hang_up(known, f"ended by {caller.actor.user}")
        self.agent.answer(client, {"session": known.id}, message=f"session {known.id} was hung up")

    def hang_up(self, known: Known, why: str) -> None:
        """Raises UnreachableError."""
        self.connect(known, {"end": why}).close()

    def listed(self, caller: Caller) -> list[dict[str, Any]]:
        """The sessions that the caller may see."""
        out = []
        for known in self.known.values():
            if caller.actor.role != "admin" and known.person != caller.owner.user:
                continue
            state = read_state(state_path(self.directory, known.id)) or known.state
            out.append(
                {
                    "id": known.id,
                    "user": known.person,
                    "account": state["account"],
                    "from": state.get("where", ""),
                    "terminal": state["tty"],
                    "command": shown(state["command"]),
                    "uid": known.owner.uid,
                    "since": rfc3339(state["began"]),
                    "attached": state.get("attached", ""),
                    "owner": known.owner.key,
                    "ended": state.get("end") is not None,
                }
            )
        return out

    # -- their end ---------------------------------------------------------------------------------------------------

    def _find(self) -> None:
        """Take over what the last agent has left: sessions that run, and ends without a record."""
        try:
            owned.require(self.directory, DIRECTORY)
            names = sorted(n[:-5] for n in os.listdir(self.directory) if n.endswith(".json"))
        except (OSError, PactError) as exc:
            log(f"sessions of an earlier run are not looked at: {exc}", 4)
            return
        for name in names:
            state = read_state(state_path(self.directory, name))
            if state is None:
                log(f"the file of session {printable(os.fsencode(name))} makes no sense", 4)
                continue
            about = state.get("about", {})
            before = Owner("", about.get("user", state["person"]))
            known = Known(name, state, owner_of_session(state, before), before.user, -1)
            if started_at(state["pid"]) == state["start"] != 0:
                try:
                    known.pidfd = os.pidfd_open(state["pid"])
                except OSError:
                    pass
            if known.pidfd >= 0:
                self._keep(known)
                continue
            self._closing[name] = known
            if (state.get("end") or {}).get("why") == NEVER_BEGAN and not self._was_recorded(name):
                self._recorded.append(name)  # the last agent was killed just before it could record that it opened
            else:
                self._close(known)

    def _was_recorded(self, name: str) -> bool:
        rows = self.agent.journal.newest(RECENT_MAX, type_=SessionOpened.type)
        return any(strict.own(body)["data"]["session"] == name for body, _ in rows)

    def _gone(self, known: Known) -> None:
        self._epoll.unregister(known.pidfd)
        os.close(known.pidfd)
        del self.by_fd[known.pidfd], self.known[known.id]
        self._closing[known.id] = known
        self.changed()
        self._close(known)

    def _close(self, known: Known) -> None:
        """Make the record, off the loop: the transcript may be long."""
        agent, limit, room = self.agent, min(TRANSCRIPT_MAX, self.agent.config.file_limit), self.agent.room()
        if not known.commands and (audit := own_audit(known.state)) is not None:
            known.commands, known.seen = agent.watching.observers.unfollow(audit)

        def work() -> Result:
            state = read_state(state_path(self.directory, known.id)) or known.state
            if state.get("end") is None:
                end_what_is_left(state)
            kept, blobs = closed_transcript(f"{self.casts}/{known.id}.cast", state, limit, room)
            closed = closed_record(known, state, kept)

            def made(t_ns: int, wall_ns: int) -> Event:
                self._recorded.append(known.id)
                actor = state.get("about", {}).get("actor")
                return SessionTold(t_ns, wall_ns, closed, AGENT_ACTOR if actor is None else Actor(**actor))

            return Result(0, None, blobs, make=made)

        def guarded() -> Result:
            try:
                return work()
            except Exception as exc:
                log(f"the end of session {known.id} could not be recorded: {exc!r}", 3)
                return Result(0, Ticked(0, 0))

        agent.telling.call(guarded)

    def turn(self) -> None:
        """After results were taken: what is recorded needs its files no longer; what is not is tried again."""
        done, self._recorded = self._recorded, []
        for name in done:
            if self.agent.journal_error:
                self._again.append(name)
                continue
            self._closing.pop(name, None)
            cast.forget(f"{self.casts}/{name}.cast")
            for path in (state_path(self.directory, name), socket_path(self.directory, name), f"{self.prompts}/{name}"):
                try:
                    os.unlink(path)
                except OSError:
                    pass
        if self._again and not self.agent.journal_error:
            again, self._again = self._again, []
            for name in again:
                self._close(self._closing[name])
        if self.launching:
            now_s = time.monotonic()
            for launch in [x for x in self.launching.values() if now_s >= x.since_s + LAUNCH_S]:
                self._give_up(launch, not_ready("session", bool(launch.rest)))
        self.left.turn()
        self.keeper.reap()

    def next_s(self) -> float | None:
        """Seconds until ``turn`` has something to do that nobody tells of; ``None``: it has nothing."""
        due = [max(0.0, x.since_s + LAUNCH_S - time.monotonic()) for x in self.launching.values()]
        return min(due + [s for s in (self.left.next_s(),) if s is not None], default=None)

    def close(self) -> None:
        """The agent ends; the sessions do not."""
        for launch in list(self.launching.values()):
            self._forget(launch)
        for fd in self.by_fd:
            self._epoll.unregister(fd)
            os.close(fd)
        self.by_fd = {}
        self.keeper.close()
