"""Which keys may connect: ZeroMQ's authentication requests, answered in the aggregator's own loop (RFC 27).

It uses no thread and no authenticator of the library: no request may end the handler, because after that nobody could
connect any more.  # T10
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

import zmq
from zmq.utils import z85

from pact.host.notify import Few
from pact.limits import STRANGERS_AT_ONCE, STRANGERS_EVERY_S
from pact.model import NS_PER_S

ENDPOINT: Final = "inproc://zeromq.zap.01"
DRAIN_MAX: Final = 64
RENEW_AFTER: Final = 256
ANSWERED_NS: Final = 5 * NS_PER_S  # earlier requests are answered by then, or their handshakes have timed out
REFUSED_MAX: Final = 1024


class Zap:
    """``allowed(key, domain)`` decides; the domain is the socket's name. A key that ``waits`` is hung up on without a
    word: its libzmq tries again, which it does not after a refusal. ``opened`` and ``closing`` are called with
    sockets for the poller.

    libzmq keeps a pipe from each connection to this socket for as long as both live: about ten KiB that are useless
    after the answer. So the socket is renewed from time to time; the old one answers for a while and is closed.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        allowed: Callable[[str, str], bool],
        note: Callable[[str], None],
        opened: Callable[[zmq.Socket[bytes]], None] = lambda made: None,
        closing: Callable[[zmq.Socket[bytes]], None] = lambda old: None,
        waits: Callable[[str], bool] = lambda key: False,
    ) -> None:
        self.refused = 0
        self.fds: set[int] = set()  # descriptors of the sockets, for the poller
        self._context = context
        self._allowed, self._waits = allowed, waits
        self._tell = Few(note, STRANGERS_AT_ONCE, STRANGERS_EVERY_S)
        self._opened, self._closing = opened, closing
        self._seen: dict[tuple[str, str], int] = {}
        self._asked = 0  # requests since the last renewal
        self._old: zmq.Socket[bytes] | None = None
        self._old_ns = 0
        self.socket = self._made()
        self.socket.bind(ENDPOINT)

    def _made(self) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        made.linger = 0
        self.fds.add(int(made.fileno()))
        self._opened(made)
        return made

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        return [self.socket] if self._old is None else [self.socket, self._old]

    def renew(self, now_ns: int) -> bool:
        """Call it from time to time. Returns True if the socket was renewed: there is a new one to drain. A connection
        in the moment between the two is refused, since every secured socket sets ``ZAP_ENFORCE_DOMAIN`` (by default
        libzmq would let anybody in), and connects again.
        """
        if self._old is not None and now_ns - self._old_ns >= ANSWERED_NS:
            self.fds.discard(int(self._old.fileno()))
            self._closing(self._old)
            self._old.close(0)
            self._old = None
        if self._old is None and self._asked >= RENEW_AFTER:
            self._asked = 0
            try:
                made = self._made()
            except zmq.ZMQError:  # no descriptor is left: keep the present socket
                return False
            self._old, self._old_ns, self.socket = self.socket, now_ns, made
            self._old.unbind(ENDPOINT)
            made.bind(ENDPOINT)
            return True
        return False

    def drain(self) -> bool:
        """Answer a bounded number of requests. Returns True if there may be more."""
        more = [self._drain(each) for each in self.sockets]
        return True in more

    def _drain(self, asked: zmq.Socket[bytes]) -> bool:
        for _ in range(DRAIN_MAX):
            try:
                frames = asked.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._asked += 1
            try:
                reply = self._answer(frames)
            except Exception as exc:
                self._tell(f"authentication: {type(exc).__name__}: {exc}")
                reply = [b"1.0", frames[3] if len(frames) > 3 else b"", b"500", b"internal error", b"", b""]
            try:
                asked.send_multipart([*frames[:2], *reply], zmq.NOBLOCK)
            except zmq.ZMQError:
                pass  # the requesting connection is gone
        return True

    def _answer(self, frames: list[bytes]) -> list[bytes]:
        version, request, domain, address, _identity, mechanism, *credentials = frames[2:]
        no = [b"1.0", request, b"400", b"no", b"", b""]
        if version != b"1.0" or mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != 32:
            self._refuse("", address.decode("ascii", "replace"))
            return no
        key, name = z85.encode(credentials[0]).decode(), domain.decode("ascii", "replace")
        if not self._allowed(key, name):
            self._refuse(key, f"{address.decode('ascii', 'replace')} at the {name} socket")
            return no
        if self._waits(key):
            return [b"1.0", request, b"300", b"later", b"", b""]
        return [b"1.0", request, b"200", b"OK", key.encode(), b""]

    def _refuse(self, key: str, where: str) -> None:
        """Count a refusal; log it at the first time, and at powers of two. Strangers make as many keys as they
        like."""
        self.refused += 1
        if len(self._seen) >= REFUSED_MAX:
            self._seen.clear()
        count = self._seen[key, where] = self._seen.get((key, where), 0) + 1
        if count & (count - 1) == 0:
            self._tell(f"refused the key {key or '(none)'} from {where}" + (f" ({count} times)" if count > 1 else ""))

    def close(self) -> None:
        for each in self.sockets:
            each.close(0)


def end_connection(fd: int, port: int) -> bool:
    """Cut one TCP connection that a ZeroMQ socket accepted on ``port``; its frames name its descriptor (``__fd``).

    Otherwise the connection of a revoked key would live on. The descriptor may belong to another connection by now: if
    that one is on the same port it reconnects, otherwise it is left alone.
    """
    sock = None
    try:
        sock = socket.socket(fileno=fd)  # no copy: there may be no descriptor left
        if sock.type != socket.SOCK_STREAM or sock.getsockname()[1] != port:
            return False
        sock.shutdown(socket.SHUT_RDWR)
        return True
    except (OSError, IndexError, TypeError, ValueError):  # -1: libzmq knew none
        return False
    finally:
        if sock is not None:
            sock.detach()  # libzmq's
