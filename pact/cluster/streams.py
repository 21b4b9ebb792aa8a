"""The person's end of streams: what nodes say on them, and a terminal's way to a session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

import zmq

from pact.cluster.client import RootClient
from pact.core.tree.lanes import CREDIT, cost
from pact.core.tree.wire import Message
from pact.errors import ConfigError, DeniedError, PactError, RemoteProtocolError, UnreachableError
from pact.net.ends import End
from pact.net.keys import Key, is_public
from pact.session import frames
from pact.session.packing import Exchange

TICK_MS: Final = 500  # how often to look whether the connection lives
PUMP: Final = 16  # messages at once
WHY_MAX: Final = 1000
EARLY_MAX: Final = 2 * CREDIT  # bytes that may come before the answer that opens the stream, and what is beside them


class Secrets:
    """The keys of one request: its public key travels in it, sealed like the rest."""

    def __init__(self) -> None:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        self._own = Key(public, secret)
        self.public = public

    def with_node(self, theirs: str, *, needed: bool) -> bytes:
        """What is shared with the node whose answer has named ``theirs``. Raises UnreachableError if there must be
        something and is not."""
        if theirs and is_public(theirs):
            from pact.net.shared import Shared

            try:
                found = Shared(self._own).key(theirs)
            except ConfigError:
                found = b""
            if found:
                return found
        if needed or theirs:
            raise UnreachableError("the node's answer has no key for the stream that can be used")
        return b""


class Early:
    """Messages of a stream whose opening answer has not come yet."""

    def __init__(self) -> None:
        self._kept: list[Message] = []
        self._size = 0

    def put(self, message: Message) -> None:
        if self._size <= EARLY_MAX:
            self._kept.append(message._replace(body=bytes(message.body)))
            self._size += len(message.body) + 64

    def take(self, hear: Callable[[Message], None]) -> None:
        kept, self._kept = self._kept, []
        for message in kept:
            hear(message)


class Terminal:
    """A stream as a ``pact.session.client`` has it: like a socket on which frames travel. ``why``: what ended it, if it
    was not the session; ``denied``: that is because the key does not count any more."""

    def __init__(self, client: RootClient, node: str, secret: bytes, early: Early) -> None:
        self.client, self.node = client, node
        self.why = ""
        self.denied = False
        self._end = End(secret, node=False)
        self._exchange = Exchange(self._try)
        self._in: list[bytes] = []
        self._over = False
        self._came = 0
        self._wide = False
        client.on_frames = self._hear
        early.take(self._hear)

    def fileno(self) -> int:
        return self.client.socket.fileno()

    def setblocking(self, flag: bool, /) -> None:
        """It never blocks."""

    def pending(self) -> bool:
        """Whether there may be something to receive: a descriptor of ZeroMQ tells of news only once."""
        return bool(self._in) or self._over or self.client.waits()

    def unsent(self) -> bool:
        """Whether something waits for the session's credit."""
        return self._exchange.out.waits and not self._over

    def recv(self, most: int, /) -> bytes:
        """What has come, once more than ``most`` is there nothing more is read. Raises BlockingIOError if there is
        nothing now."""
        if not self._in and not self._over:
            try:
                self.client.pump(most=PUMP)
            except PactError as exc:
                self._cut(exc.message, isinstance(exc, DeniedError))
        if not self._in and not self._over:
            raise BlockingIOError
        data, self._in = b"".join(self._in), []
        return data

    def send(self, data: bytearray, /) -> int:
        """Takes everything, as much as the session has asked for. What does not get through is told by ``recv``."""
        self._exchange.out.feed(bytes(data))
        if not self._wide and self._came > CREDIT:  # more than a screen
            self._wide = True
            self._exchange.widen()
        self._exchange.pass_on()
        return len(data)

    def _try(self, body: bytes, size: int, give: int, last: bool) -> bytes:
        try:
            return self._say(body, size, give)
        except PactError as exc:
            self._cut(exc.message, isinstance(exc, DeniedError))
            return b""

    def leave(self) -> None:
        """This side goes; the session does not."""
        if not self._over:
            with contextlib.suppress(PactError):
                self._say(b"", 0, 0, end=True)

    def _say(self, body: bytes, size: int, give: int, *, end: bool = False) -> bytes:
        if self._over:
            return b""
        head, body = self._end.say(body, size, give, end=end)
        self.client.stream(self.node, head, body)
        return body

    def _cut(self, why: str, denied: bool = False) -> None:
        """It ends here, and the person is told."""
        if not self._over:
            self.why, self.denied, self._over = why, denied, True
            self._in.append(frames.frame(b"N", why.encode()[:WHY_MAX]))

    def _hear(self, message: Message) -> None:
        head = message.head
        if head["node"] != self.node or self._over:
            return
        if self._end.cut(head, message.body):
            self._cut(head["why"] or "the stream was ended on the way")
            return
        try:
            body = self._end.hear(head, message.body)
        except RemoteProtocolError as exc:
            self._cut(exc.message)
            self.client.cancel()
            return
        self._came += head["size"]
        if body:
            self._in.append(body)
        self._over = head["end"]
        self._exchange.heard(cost(head, message.body, head["give"]), head["give"])
        self._exchange.pass_on()
