"""The node's end of streams: between the tree and the sockets of sessions (``pact.session``).

A stream is opened by a call that the root has authorised; its secret is made of two keys that serve once, which
travelled in the sealed call and in its sealed answer. When the way to the person is lost the stream ends: a session
goes on without it, and a command (``executing``) is ended.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import zmq

from pact.agent.remote import Remote
from pact.core import ops
from pact.core.tree.lanes import Lane, cost
from pact.core.tree.wire import Head, Message
from pact.errors import (
    ConfigError,
    ConflictError,
    DeniedError,
    LocalProtocolError,
    PactError,
    RemoteProtocolError,
    UnreachableError,
)
from pact.net.ends import End
from pact.net.keys import Key, is_public
from pact.session import frames
from pact.session.frames import FrameError
from pact.session.packing import Exchange

if TYPE_CHECKING:
    from pact.agent.driver import Driver
    from pact.agent.sessions import Sessions

READ: Final = 256 << 10
UNREAD_MAX: Final = 1 << 20  # what a session may leave unread of what it was sent
UNREAD_S: Final = 30.0  # and how long
UNREAD: Final = "the session's process does not read: is it stopped?"
WHERE: Final = "the cluster"
RUNS: Final = "nothing is done twice; ask again"


class Way(Protocol):
    """The way to the parent."""

    agent: Driver

    def send(self, kind: str, head: Head, body: bytes) -> None: ...


class Carrier:
    """The tree's side of one stream. ``heard`` is called with what the person sends, the credit that this gives, and
    what it has cost; ``ended`` once when nothing more can be sent or will come: the text says why, and is empty if this
    side ended it."""

    def __init__(
        self,
        streams: Streams,
        call: str,
        secret: bytes,
        *,
        bulk: bool,
        heard: Callable[[bytes, int, int], None],
        ended: Callable[[str], None],
    ) -> None:
        self.call, self.bulk = call, bulk
        self.heard, self.ended = heard, ended
        self._streams = streams
        self.end = End(secret, node=True)
        self._head: Head = {"call": call, "node": streams.node, "bulk": bulk}

    def send(self, body: bytes, size: int = 0, give: int = 0, *, last: bool = False) -> bytes:
        """Returns the body as it travels; b"" where the stream has ended."""
        if self._streams.by_call.get(self.call) is not self:
            return b""
        if last:
            del self._streams.by_call[self.call]
        head, sealed = self.end.say(body, size, give, end=last)
        self._streams.say({**self._head, **head}, sealed)
        return sealed


class Pipe:
    """A session's socket, written to without ever waiting. ``ready`` is called by the loop; ``taken`` when the session
    has taken all that it was sent."""

    def __init__(
        self,
        streams: Streams,
        sock: socket.socket,
        readable: Callable[[], None],
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        self._streams, self.sock, self._readable, self._taken = streams, sock, readable, taken
        self.fd = sock.fileno()
        self.out = bytearray()  # what the session has not taken yet
        self.moved_s = 0.0  # when it has taken something, or was first sent something
        self._reads = True
        self._mask = select.EPOLLIN
        streams.add(self.fd, self)

    def ready(self, mask: int) -> None:
        if self.out and (mask & select.EPOLLOUT or not self._reads):  # one that has ended takes nothing
            self.send(b"")
            if not self.out:
                self._taken()
        if self.fd >= 0 and self._reads and mask & ~select.EPOLLOUT:
            self._readable()

    def read(self, wanted: bool) -> None:
        """Whether what it says is to be read now."""
        if wanted != self._reads and self.fd >= 0:
            self._reads = wanted
            self._watch()

    def _watch(self) -> None:
        mask = (select.EPOLLIN if self._reads else 0) | (select.EPOLLOUT if self.out else 0)
        before, self._mask = self._mask, mask
        if not mask and before:  # its end would be told again and again
            self._streams.remove(self.fd)
        elif mask and not before:
            self._streams.add(self.fd, self)
        if mask and mask != (before or select.EPOLLIN):
            self._streams.watch(self.fd, mask)

    def send(self, data: bytes) -> None:
        if self.fd < 0:
            return
        if not self.out:
            self.moved_s = time.monotonic()
        self.out += data
        while self.out:
            try:
                sent = self.sock.send(self.out)
            except BlockingIOError:
                break
            except OSError:
                self.out.clear()  # it has ended, and what it said before is read first
                break
            del self.out[:sent]
            self.moved_s = time.monotonic()
        self._watch()

    def receive(self, most: int = READ) -> bytes | None:
        """What has come; b"" if it has ended, ``None`` if there is nothing now."""
        try:
            return self.sock.recv(most)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def close(self) -> None:
        if self.fd >= 0:
            self._streams.remove(self.fd)
            self.fd = -1
            self.sock.close()


class Bridge:
    """Carries frames between a session's socket and its stream, as they are. The session outlives it. While the person
    does not take what it says, it is not read."""

    def __init__(self, streams: Streams, sock: socket.socket, call: str, secret: bytes) -> None:
        self._streams = streams
        self._pipe = Pipe(streams, sock, self._from_session, self._pass_on)
        self.carrier = Carrier(
            streams, call, secret, bulk=False, heard=self._heard, ended=lambda why: self._pipe.close()
        )
        streams.by_call[call] = self.carrier
        self._exchange = Exchange(lambda body, size, give, last: self.carrier.send(body, size, give, last=last))
        self._exchange.begin()  # now the root knows that there is a stream

    def _from_session(self) -> None:
        data = self._pipe.receive()
        if data is None:
            return
        try:
            self._exchange.out.feed(data)
        except FrameError:
            data = b""
        if not data:
            self._exchange.out.put(b"X", b'{"why":"the session has ended"}')
        self._pass_on()

    def _pass_on(self) -> None:
        self._exchange.pass_on(reads=not self._pipe.out)
        if self._exchange.over:
            self._pipe.close()
        else:
            self._pipe.read(not self._exchange.out.waits)

    def _heard(self, body: bytes, give: int, cost: int) -> None:
        self._pipe.send(body)
        self._exchange.heard(cost, give)
        if len(self._pipe.out) > UNREAD_MAX:
            self._give_up()
            return
        if self._pipe.out:
            self._streams.slow[self] = None
        self._pass_on()

    def _give_up(self) -> None:
        self.carrier.send(frames.said(b"X", {"why": UNREAD}), last=True)
        self._pipe.close()

    def ends_s(self) -> float | None:
        """When it is given up, unless its process takes something of what waits for it; ``None``: nothing waits."""
        return self._pipe.moved_s + UNREAD_S if self._pipe.fd >= 0 and self._pipe.out else None

    def look(self, now_s: float) -> bool:
        """Whether it is to be looked at again: something waits for its process, which may be stopped."""
        ends_s = self.ends_s()
        if ends_s is not None and now_s >= ends_s:
            self._give_up()
        return ends_s is not None and now_s < ends_s


class Streams:
    """All streams of this node."""

    def __init__(self, link: Way, sessions: Sessions | None) -> None:
        self._link = link
        self.agent = link.agent
        self.kept = sessions
        self.node = link.agent.config.name
        self.by_call: dict[str, Carrier] = {}
        self.fds: dict[int, Any] = {}  # descriptor -> who has a method ``ready``
        self._lane = Lane()  # output of commands gives way to terminals
        self.slow: dict[Bridge, None] = {}  # something waits for their processes

    @property
    def sessions(self) -> Sessions:
        """Raises UnreachableError where none are kept."""
        if self.kept is None:
            raise UnreachableError("no sessions are kept here")
        return self.kept

    # -- for the loop -------------------------------------------------------------------------------------------------

    def turn(self, now_s: float) -> None:
        """End what is stuck."""
        for bridge in list(self.slow):
            if not bridge.look(now_s):
                del self.slow[bridge]

    def next_s(self, now_s: float) -> float | None:
        """Seconds until ``turn`` has something to do; ``None``: it has nothing."""
        ends = [ends_s for bridge in self.slow if (ends_s := bridge.ends_s()) is not None]
        return max(0.0, min(ends) - now_s) if ends else None

    def ready(self, fd: int, mask: int) -> None:
        self.fds[fd].ready(mask)

    def add(self, fd: int, what: Any) -> None:
        self.fds[fd] = what
        self._link.agent.watch_stream(fd)

    def watch(self, fd: int, mask: int) -> None:
        self._link.agent.watch_stream(fd, mask)

    def remove(self, fd: int) -> None:
        if self.fds.pop(fd, None) is not None:
            self._link.agent.unwatch_fd(fd)

    def say(self, head: Head, body: bytes) -> None:
        """A message to the parent; nothing if there is none: then the stream has ended, or is about to."""
        if not head["bulk"]:
            self._send(head, body)
            return
        self._lane.put(head, body)
        self._pass_on()

    def _pass_on(self) -> None:
        while (said := self._lane.next()) is not None:
            self._send(*said)

    def _send(self, head: Head, body: bytes) -> None:
        try:
            self._link.send("frames", head, body)
        except LocalProtocolError:
            self._link.send("frames", {**head, "size": 0, "end": True, "why": "what was said is too long"}, b"")

    # -- what comes ---------------------------------------------------------------------------------------------------

    def heard(self, message: Message) -> None:
        head = message.head
        if message.kind == "took":
            self._lane.took(head["bytes"])
            self._pass_on()
            return
        carrier = self.by_call.get(head["call"])
        if carrier is None or head["node"] != self.node:
            return
        if carrier.end.cut(head, message.body):
            self._over(carrier, head["why"] or "the stream was ended on the way")
            return
        try:
            body = carrier.end.hear(head, message.body)
        except RemoteProtocolError as exc:
            carrier.send(frames.said(b"X", {"why": exc.message}), last=True)
            carrier.ended(exc.message)
            return
        carrier.heard(body, head["give"], cost(head, message.body, head["give"]))
        if head["end"]:
            self._over(carrier, "the client has left")

    def _over(self, carrier: Carrier, why: str) -> None:
        if self.by_call.get(carrier.call) is carrier:
            del self.by_call[carrier.call]
        carrier.ended(why)

    def lost(self, why: str) -> None:
        """There is no way to any person now."""
        self._lane = Lane()
        for carrier in list(self.by_call.values()):
            self._over(carrier, why)

    # -- opening ------------------------------------------------------------------------------------------------------

    def require_new(self, call: str) -> None:
        """A call that comes twice, by mistake or by intent, takes no stream from the first. Raises ConflictError."""
        launching = () if self.kept is None else self.kept.launching.values()
        asked = (launch.client for launch in launching)
        if call in self.by_call or any(isinstance(c, Remote) and c.key[1] == call for c in asked):
            raise ConflictError(f"call {call} is under way on this node already", RUNS)

    def secret(self, theirs: str) -> tuple[str, bytes]:
        """This side's public key for one stream, and what both sides share; nothing where nothing can be sealed."""
        if not theirs:
            return "", b""
        if not is_public(theirs):
            raise DeniedError("the client's key for the stream is no key")
        from pact.net.shared import Shared

        public, secret = (key.decode() for key in zmq.curve_keypair())
        try:
            shared = Shared(Key(public, secret)).key(theirs)
        except ConfigError:
            return "", b""
        if not shared:
            raise DeniedError("the client's key for the stream can be used for nothing")
        return public, shared

    def open(self, client: Remote, request: ops.ShellOpen) -> None:
        """Begin a session, and answer with a stream to it. Raises PactError."""
        agent = self._link.agent
        self.require_new(client.key[1])

        def answered(result: Mapping[str, Any]) -> None:
            try:
                self._answer(client, result["session"], request.stream, {"account": result["account"]}, {})
            except PactError as exc:
                agent.fail(client, exc)

        self.sessions.open(client, request, answered, where=WHERE)

    def attach(self, client: Remote, request: ops.ShellAttach) -> None:
        """Take a session over. Raises PactError."""
        self.require_new(client.key[1])
        known = self.sessions.returned_to(request.session, client.caller)
        size = {"rows": request.rows, "cols": request.cols} if request.rows > 0 < request.cols else {}
        more = {"account": known.state["account"], "terminal": known.state["terminal"]}
        self._answer(client, known.id, request.stream, more, {"redraw": True, **size})

    def _answer(self, client: Remote, name: str, theirs: str, more: Mapping[str, Any], wish: Mapping[str, Any]) -> None:
        sessions = self.sessions
        known = sessions.known.get(name)
        if known is None:
            raise PactError("the session has ended already")
        public, secret = self.secret(theirs)
        sock = sessions.connect(known, {"by": f"{client.caller.actor.user} on {WHERE}", **wish})
        self._link.agent.answer(client, {"session": name, **more, "owner": known.owner.key, "stream": public})
        Bridge(self, sock, client.key[1], secret)

    def withdraw(self, what: Callable[[Remote], bool], why: str) -> None:
        """Sessions that are just being opened for these callers are not opened."""
        launching = () if self.kept is None else list(self.kept.launching.values())
        for launch in launching:
            if isinstance(launch.client, Remote) and what(launch.client):
                self.sessions._give_up(launch, UnreachableError(why))

    def revoke(self, user: str) -> None:
        """What this person has opened over the cluster ends."""
        if self.kept is None:
            return
        self.withdraw(lambda client: client.caller.actor.user == user, "your key was removed")
        sessions = self.kept
        for known in list(sessions.known.values()):
            actor = known.state.get("about", {}).get("actor") or {}
            if actor.get("via") == "cluster" and actor.get("user") == user:
                try:
                    sessions.hang_up(known, "your key was removed: this session ends")
                except PactError:
                    pass  # it ends just now

    def close(self) -> None:
        self.lost("the agent ends")
        for fd in list(self.fds):
            self.remove(fd)
