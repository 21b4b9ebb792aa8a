"""The public side of the leading root: events on XPUB, from a separate thread. ``replay`` is the other half.

The root never waits for it: it passes durable chunks on and continues. A subscriber that does not read loses events,
notices that by the numbers, and asks the replay port.  # V4
"""

from __future__ import annotations

import os
import select
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import zmq

from pact.cluster.guard import Guard
from pact.cluster.subscriptions import SUBSCRIPTION_MAX, TOO_MANY_AT_ONCE, TOO_MANY_SILENT, Subscriptions
from pact.cluster.zap import end_connection
from pact.core.root import public
from pact.core.root.term import Publish
from pact.net.links import end_dead_connections

WAITING_BYTES_MAX: Final = 64 << 20
SEND_MAX: Final = 4000
HEADS_S: Final = 1.0
BIND_RETRY_S: Final = 0.1
DRAIN_MAX: Final = 256
PAUSE_S: Final = 0.1
CLOSE_S: Final = 5.0
SWEEP_S: Final = 1.0
RECEIVED_BYTES_MAX: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address to bind, and the identity. Without a secret the socket is open to everybody: for tests and
    simulation."""

    address: str
    secret: str = ""
    domain: str = ""


def bind(
    context: zmq.Context[Any],
    kind: int,
    at: Endpoint,
    options: Mapping[int, int],
    made: Callable[[zmq.Socket[Any]], object] = lambda sock: None,
) -> zmq.Socket[Any]:
    """The bound socket of a CURVE server; ``made`` gets it before that. Raises ZMQError."""
    sock: zmq.Socket[Any] = context.socket(kind)
    try:
        made(sock)
        sock.linger = 0
        sock.set(zmq.BACKLOG, 4096)
        end_dead_connections(sock)  # no heartbeats of ZeroMQ's own: see ``floods``
        sock.set(zmq.HANDSHAKE_IVL, 5_000)
        sock.set(zmq.IPV6, int("[" in at.address))
        for option, value in options.items():
            sock.set(option, value)
        if at.secret:
            sock.curve_server = True
            sock.curve_secretkey = at.secret.encode()
            sock.zap_domain = at.domain.encode()
            sock.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # reject connections while no authentication handler runs  # T10
        sock.bind(at.address)
    except BaseException:
        sock.close(0)
        raise
    return sock


class Threaded(ABC):
    """A thread that polls one socket and can be woken. Only that thread makes and uses the socket."""

    kind: int
    options: Mapping[int, int]

    def __init__(self, context: zmq.Context[Any], at: Endpoint, name: str) -> None:
        self._context = context
        self._at = at
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closing = False
        self._rebind = False
        self._socket: zmq.Socket[Any] | None = None
        self._poller = select.poll()
        self._took = False  # whether ``_drain`` has received anything
        self.bound = threading.Event()
        self.address = ""
        self.error = ""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def rebind(self) -> None:
        """End every connection, so that one with a removed key does not stay. The others reconnect by themselves."""
        self._rebind = True
        self._ring()

    def close(self) -> None:
        self._closing = True
        self._ring()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            os.close(self._wake)

    def _ring(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        try:
            while not self._closing:
                if self._rebind and self._socket is not None:
                    self._socket.close(0)
                    self._socket, self._rebind = None, False
                    self.bound.clear()
                if self._socket is None and not self._bind():
                    time.sleep(BIND_RETRY_S)
                    continue
                assert self._socket is not None
                self._turn_begins()
                try:
                    wait_s = self._work(self._socket)
                    self._took = False
                    if self._drain(self._socket) or self._took:  # sending may have taken in what shows that more came
                        wait_s = 0.0
                except Exception as exc:  # one error must not end the thread
                    self.error, wait_s = repr(exc), PAUSE_S
                    if isinstance(exc, zmq.ContextTerminated):
                        return
                self._turn_ends()
                self._poller.poll(max(0.0, wait_s * 1000))
                try:
                    os.eventfd_read(self._wake)
                except BlockingIOError:
                    pass
        finally:
            if self._socket is not None:
                self._socket.close(0)

    def _bind(self) -> bool:
        try:
            self._socket = bind(self._context, self.kind, self._at, self.options, self._made)
            address = bytes(self._socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        except zmq.ZMQError as exc:  # the address is in use, perhaps for a moment by this process
            self.error = f"{self._at.address}: {exc}"
            return False
        # Of libzmq's descriptor: asked for events, libzmq reads what came first, and keeps all other threads waiting.
        self._poller = select.poll()
        self._poller.register(int(self._socket.get(zmq.FD)), select.POLLIN)
        self._poller.register(self._wake, select.POLLIN)
        self.error, self.address = "", address
        self._at = Endpoint(address, self._at.secret, self._at.domain)
        self._begun()
        self.bound.set()
        return True

    def _made(self, sock: zmq.Socket[Any]) -> None:  # noqa: B027  (most have nothing to do)
        """A new socket is not bound yet."""

    def _turn_begins(self) -> None:  # noqa: B027
        """The thread stops waiting."""

    def _turn_ends(self) -> None:  # noqa: B027
        """It waits again."""

    @abstractmethod
    def _begun(self) -> None:
        """A new socket has no subscriptions."""

    @abstractmethod
    def _work(self, sock: zmq.Socket[Any]) -> float:
        """Do the work; returns in how many seconds there may be more."""

    @abstractmethod
    def _drain(self, sock: zmq.Socket[Any]) -> bool:
        """Receive a bounded number of messages; returns whether there may be more."""


class Publisher(Threaded):
    """Events and heads. The root's loop calls ``lead``, ``publish`` and ``depose``, which return at once."""

    kind = zmq.XPUB

    def __init__(
        self,
        context: zmq.Context[Any],
        at: Endpoint,
        cluster: str,
        *,
        send_max: int = SEND_MAX,
        heads_s: float = HEADS_S,
        note: Callable[[str], None] = lambda text: None,
        put_off: Callable[[str], object] = lambda key: None,
    ) -> None:
        """``put_off(key)``: do not let this key connect for a while; it is called in the publisher's thread."""
        super().__init__(context, at, "pact-events")
        self.options = {
            zmq.SNDHWM: send_max,
            zmq.RCVHWM: 0,
            zmq.RCVBUF: RECEIVED_BYTES_MAX,
            zmq.MAXMSGSIZE: SUBSCRIPTION_MAX,
            zmq.XPUB_VERBOSER: 1,
        }
        self._cluster = cluster
        self._heads_s = heads_s
        self._note = note
        self._queue: deque[public.Heads | Publish | None] = deque()
        self._bytes = 0
        self._heads: public.Heads | None = None
        self._heads_due_s = 0.0
        self._subscriptions = Subscriptions(self._cut)
        self._sweep_due_s = 0.0
        self._put_off = put_off
        self._guard = Guard(context, "pact-events-guard", self._cut_flood, self._cut_silent)
        #: Descriptors of connections that the guard has ended, until all that came is read, and their keys.
        self._cut_off: dict[int, str | None] = {}
        self.published = 0
        self.left_out = 0

    def _made(self, sock: zmq.Socket[Any]) -> None:
        self._guard.follow(sock)

    def _turn_begins(self) -> None:
        self._guard.begins()

    def _turn_ends(self) -> None:
        self._guard.ends()

    def start(self) -> None:
        super().start()
        self._guard.start()

    def close(self) -> None:
        super().close()
        self._guard.close()

    @property
    def _at_port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def lead(self, gseq: int, types: Mapping[str, int], incarnation: str = "") -> None:
        """This root leads; ``gseq`` is the newest event of the log, whose first record gives its ``incarnation``.
        Chunks follow that event. A log without an incarnation is empty: there are no heads yet.
        """
        self._give(public.Heads(gseq, types, incarnation))

    def publish(self, chunk: Publish) -> bool:
        """Publish a durable chunk. Returns False if too much is waiting: then only the replay port has it.  # V4

        After that call ``lead`` again, so that heads name the newest event.
        """
        with self._lock:
            if self._bytes and self._bytes + len(chunk.chunk) > WAITING_BYTES_MAX:
                self.left_out += 1
                return False
            self._bytes += len(chunk.chunk)
        self._give(chunk)
        return True

    def depose(self) -> None:
        """Publish no more heads: only the leader does."""
        self._give(None)

    def stats(self) -> dict[str, Any]:
        return {
            "published": self.published,
            "left_out": self.left_out,
            "waiting_bytes": self._bytes,
            "subscriptions": self._subscriptions.topics,
            "refused": dict(self._subscriptions.refused),
        }

    def _cut(self, fd: int, key: str, why: str) -> None:
        end_connection(fd, self._at_port)
        count = self._subscriptions.refused[why]
        if count & (count - 1) == 0:
            self._note(f"a subscriber with the key {key or '(none)'} is cut off: {why} ({count} times)")

    def _cut_flood(self, fd: int) -> None:
        """In the guard's thread."""
        self._cut_off[fd] = None
        self._subscriptions.refused[TOO_MANY_AT_ONCE] += 1
        self._cut(fd, "", TOO_MANY_AT_ONCE)

    def _cut_silent(self, fd: int) -> None:
        """In the guard's thread."""
        self._subscriptions.refused[TOO_MANY_SILENT] += 1
        self._cut(fd, "", TOO_MANY_SILENT)

    def _give(self, item: public.Heads | Publish | None) -> None:
        with self._lock:
            if not isinstance(item, Publish) and self._queue and not isinstance(self._queue[-1], Publish):
                self._queue.pop()
            self._queue.append(item)
        self._ring()

    def _begun(self) -> None:
        self._subscriptions.clear()

    def _work(self, sock: zmq.Socket[Any]) -> float:
        more = self._drain(sock)
        if not more:
            self._cut_off.clear()
        self._sweep()
        item: public.Heads | Publish | None = None
        with self._lock:
            waiting = bool(self._queue)
            if waiting:
                item = self._queue.popleft()
        if isinstance(item, Publish):
            with self._lock:
                self._bytes -= len(item.chunk)
            self._send(sock, item)
        elif waiting:
            self._heads, self._heads_due_s = item, 0.0
        now_s = time.monotonic()
        heads = self._heads if self._heads is not None and self._heads.incarnation else None
        if heads is not None and now_s >= self._heads_due_s:
            self._heads_due_s = now_s + self._heads_s
            frames = heads.frames(self._cluster, time.time_ns())
            sock.send_multipart(frames)
            self._subscriptions.published(frames)
        if more or self._queue:
            return 0.0
        wait_s = SWEEP_S if self._subscriptions.listening else 60.0
        return wait_s if heads is None else min(wait_s, self._heads_due_s - now_s)

    def _drain(self, sock: zmq.Socket[Any]) -> bool:
        """Subscriptions come in as messages whose metadata name the connection. A message without metadata means that a
        connection has ended."""
        for _ in range(DRAIN_MAX):
            try:
                frame = sock.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._guard.unended.caught_up()
                return False
            self._took = True
            self._guard.moved += 1
            fd = fd_of(frame)
            self._guard.heard(fd, len(frame))
            if fd < 0:
                self._sweep_due_s = min(self._sweep_due_s, time.monotonic() + PAUSE_S)
                continue
            user = user_of(frame)
            if fd in self._cut_off and self._left_over(fd, user):
                continue
            self._subscriptions.heard(fd, user, bytes(frame.buffer))
        return True

    def _left_over(self, fd: int, user: str) -> bool:
        """Whether a connection sent this before the guard ended it: its descriptor may be another's by now."""
        whose = self._cut_off[fd]
        if whose is None:  # the first of it: it came before anything of a connection that was accepted later
            self._cut_off[fd] = whose = user
            self._put_off(user)
        if user != whose:
            del self._cut_off[fd]
        return user == whose

    def _sweep(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._sweep_due_s:
            self._sweep_due_s = now_s + SWEEP_S
            self._subscriptions.sweep()

    def _send(self, sock: zmq.Socket[Any], chunk: Publish) -> None:
        if self._heads is None:
            self._heads = public.Heads()
        self._heads.incarnation = chunk.incarnation
        if not self._subscriptions.listening:
            self._heads.skip(chunk.last)
            return
        send, more, guard = sock.send, zmq.SNDMORE, self._guard
        for event in public.events(chunk.chunk, self._cluster):
            topic, header, body = event.frames
            send(topic, more)  # dropped for a subscriber that is too slow
            send(header, more)
            send(body)
            self._subscriptions.published(event.frames)
            self._heads.saw(event)
            self.published += 1
            guard.moved += 1


def fd_of(frame: Any) -> int:
    """The descriptor of the connection that brought the frame; -1 if none did."""
    try:
        return int(frame.get("__fd"))
    except (zmq.ZMQError, ValueError):
        return -1


def user_of(frame: Any) -> str:
    """The key that sent the frame."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""  # without CURVE nobody has a key
