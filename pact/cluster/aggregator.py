"""``pact aggregator``: the same program at every level of the tree. Its decisions are in ``pact.core.tree.relay``.

One loop over the children's ROUTER, a DEALER for each parent, the authentication requests and, in a root, the root's
own descriptors. Each turn takes a bounded number of messages, so that authentication, votes and commands never wait for
a flood of events.  # T9
"""

from __future__ import annotations

import os
import random
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import zmq

from pact import __version__
from pact._fast import syscalls
from pact.cluster import auth, config, sealing
from pact.cluster.config import AggregatorConfig
from pact.cluster.gate import Gate
from pact.cluster.http import Http
from pact.cluster.keyfile import KeyFile
from pact.cluster.live import Live
from pact.cluster.zap import Zap, end_connection
from pact.core.tree import wire
from pact.core.tree.backlog import GATHER_NS
from pact.core.tree.outbox import Up
from pact.core.tree.relay import UNREAD_MAX_NS, Effect, Ended, Relay, ToChildren, ToEach
from pact.core.tree.seals import RootSeals
from pact.core.tree.uplink import OF_LINKS, Deliver, Lost, Note, Uplink
from pact.core.tree.uplink import Effect as UplinkEffect
from pact.core.tree.wire import Message
from pact.errors import LocalProtocolError, PactError, RemoteProtocolError
from pact.host import descriptors, garbage, owned
from pact.host.clock import boottime_ns
from pact.host.notify import Notifier, log
from pact.limits import FRAME_MAX
from pact.model import NS_PER_S
from pact.net import keys
from pact.net.links import Links, end_dead_connections
from pact.net.ports import Port

ROUTER_BATCH: Final = 16  # how many batches one turn reads
ROUTER_READ: Final = 64  # how many messages are read at once
ROUTER_NS: Final = NS_PER_S // 50
BACKLOG: Final = 4_096
CHILD_HWM: Final = 4_096  # messages to a child, see ``unread``; for those from it see ``gate``
SOCKETS_MAX: Final = 16_384
SHARED_FROM: Final = 16 << 10  # frames of at least this size are shared among children, not copied
KEEP_FREED: Final = 64 << 20  # kept between two calls of ``trim``: events come and go in large blocks
HANDSHAKE_MS: Final = 5_000  # a connection that sends nothing for this long is closed
AUTH_LOOK_NS: Final = NS_PER_S // 2
SHOW_NS: Final = NS_PER_S
SHOW_PAGES_NS: Final = NS_PER_S // 4  # while somebody has the live page open
TRIM_NS: Final = 30 * NS_PER_S
WAIT_MAX_NS: Final = NS_PER_S
EVENTS_CODE: Final = wire.KINDS["events"].code


class RootPart(Protocol):
    """The part that makes an aggregator a root. The relay handles its messages like a parent's: ``welcome`` when it
    leads, ``sorry`` when it no longer leads. A pollable is a socket of ZeroMQ, or an object with ``fileno``.
    """

    def received(self, message: Message, t_ns: int, wall_ns: int) -> Iterable[Message]: ...
    def tick(self, t_ns: int, wall_ns: int) -> Iterable[Message]: ...
    def next_wake_ns(self) -> int | None: ...
    def pollables(self) -> Sequence[Any]: ...
    def ready(self, pollable: Any, t_ns: int, wall_ns: int) -> Iterable[Message]: ...
    def removed(self, keys: Sequence[str]) -> None: ...
    def revoked(self, users: Sequence[str], t_ns: int, wall_ns: int) -> Iterable[Message]: ...
    def shown(self) -> Mapping[str, Any]: ...
    def close(self) -> None: ...


#: Makes the root part of an aggregator.
MakeRoot = Callable[["Aggregator"], RootPart]


class Aggregator:
    """See the module."""

    def __init__(self, settings: AggregatorConfig, make_root: MakeRoot | None = None) -> None:
        """Bind and begin. Raises PactError with the reason."""
        syscalls.one_arena()
        syscalls.keep_freed(KEEP_FREED)
        self.config = settings
        config.require_owned(settings)
        self.key = keys.load_own(settings.secret)
        config.refuse_own_key(settings, self.key.public)
        self._keys = KeyFile(settings.authorized)
        self.authorized = self._keys.read()
        descriptors.raise_limit(settings.children, settings.path)
        self.relay = Relay(
            settings.name,
            rack=settings.rack,
            children_max=settings.children,
            buffer_max=settings.buffer,
            gather_ns=GATHER_NS if settings.parents else 0,
            hops=bool(settings.parents),
        )
        self.context: zmq.Context[Any] = zmq.Context(2 if settings.children > 512 else 1)
        self.context.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
        self.poller = select.epoll()
        self.door = descriptors.Door()
        self._pollables: dict[int, Any] = {}
        self._fds: dict[int, str] = {}  # connection -> key: at most as many as there are descriptors
        self._stopping = False
        self.gate, self.bad = Gate(self.context, lambda fd: end_connection(fd, self.port)), 0
        note = lambda text: log(text, 4)  # noqa: E731
        self.zap = Zap(self.context, self._may_connect, note, self._watch, self._unwatch, self.gate.waits)
        self.router = self._bind()
        self._watch(self.router)
        self._router_fd = self.router.fileno()
        self._zap_more = self._router_more = self._sent = True
        self._port = Port(self.router, SHARED_FROM)
        self.links = Links(self.context, self.key, self._watch, self._unwatch)
        self.uplink: Uplink | None = None
        self.root: RootPart | None = None
        self.seals: RootSeals | None = None
        if settings.parents:
            self.uplink = Uplink(
                settings.name,
                "aggregator",
                settings.parents,
                random.Random(),
                session=secrets.randbits(64),
                version=__version__,
                rack=settings.rack,
                more=self.relay.claims,
                beat=self.relay.beat,
                stays=lambda: bool(self.relay.streams.open),
            )
        elif make_root is not None:
            self.seals = sealing.of_root(self.key, lambda: self.authorized, required=settings.sealed)
            self.relay.tree.gate = self.seals
            self.root = make_root(self)
            for pollable in self.root.pollables():
                self._watch(pollable)
        self.notifier = Notifier()
        self._shown: Mapping[str, Any] = {}
        self._show_ns = 0
        self.http = self._open_http() if settings.http else None

    def _open_http(self) -> Http | None:
        """Only a configured address must be free: several aggregators on one machine cannot all have the default
        one."""
        watcher = getattr(self.root, "watcher", None)
        try:
            http = Http(self.config.http, lambda: self._shown, Live(watcher), self.config.http_names)
        except PactError as exc:
            if self.config.http != config.DEFAULT_HTTP:
                raise
            log(f"no web page: {exc.message}", 4)
            return None
        if watcher is not None:
            watcher.changed = http.changed
        http.start()
        return http

    def _bind(self) -> zmq.Socket[bytes]:
        router: zmq.Socket[bytes] = self.context.socket(zmq.ROUTER)
        self.secure(router, auth.TREE)
        # No handover either: a routing id belongs to its connection while that lives.
        router.set(zmq.ROUTER_MANDATORY, 1)  # T13
        router.sndhwm, router.rcvhwm = CHILD_HWM, 0
        self.gate.follow(router)
        self.bind(router, self.config.tree)
        return router

    def secure(self, socket: zmq.Socket[bytes], domain: str) -> None:
        """Set CURVE and limits on a socket to which others connect; call it before the socket is bound."""
        socket.curve_server = True
        socket.curve_secretkey = self.key.secret.encode()
        socket.zap_domain = domain.encode()
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # reject connections while no authentication handler runs  # T10
        socket.linger = 0
        socket.maxmsgsize = FRAME_MAX
        end_dead_connections(socket)
        socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.set(zmq.BACKLOG, BACKLOG)
        socket.set(zmq.IPV6, 1)

    def bind(self, socket: zmq.Socket[bytes], url: str) -> None:
        """Bind a socket. Raises PactError."""
        try:
            socket.bind(url)
        except zmq.ZMQError as exc:
            raise PactError(f"{url}: {exc.strerror}", "another program may listen there") from None

    def _may_connect(self, key: str, domain: str) -> bool:
        return self.authorized.may_connect(key, domain)

    @property
    def port(self) -> int:
        endpoint = self.router.get(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        return int(endpoint.rpartition(b":")[2].rstrip(b"\0"))

    # -- the loop -----------------------------------------------------------------------------------------------

    def watch(self, pollable: Any) -> None:
        """The root's part has one more."""
        self._watch(pollable)

    def _watch(self, pollable: Any) -> None:
        fd = pollable.fileno()
        self._pollables[fd] = pollable
        self.poller.register(fd, select.EPOLLIN)

    def _unwatch(self, pollable: Any) -> None:
        fd = pollable.fileno()
        del self._pollables[fd]
        self.poller.unregister(fd)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self.poller.register(read_fd, select.EPOLLIN)
        garbage.set_aside()
        self.notifier.send("READY=1")
        log(f"aggregator {self.config.name} ready on {self.config.tree}")
        try:
            while not self._stopping:
                self.turn(self._timeout_s(), read_fd)
        finally:
            signal.set_wakeup_fd(-1)
            self.poller.unregister(read_fd)
            os.close(read_fd)
            os.close(write_fd)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self._keys.asked = True
        else:
            self._stopping = True

    def _timeout_s(self) -> float:
        if self._more():
            return 0.0
        now_ns = boottime_ns()
        due = [now_ns + WAIT_MAX_NS, self.relay.next_wake_ns()]
        if self.http is not None and self.http.pages:
            due.append(self._show_ns)
        for part in (self.uplink, self.root):
            wake_ns = part.next_wake_ns() if part is not None else None
            if wake_ns is not None:
                due.append(wake_ns)
        return max(0, min(due) - now_ns) / NS_PER_S + 0.0005

    def _more(self) -> bool:
        """Whether the router has more messages. A descriptor of ZeroMQ becomes readable only once, and a send may clear
        that. If the router was read to the end and nothing was sent since, it need not be checked.
        """
        if self._sent and not self._router_more:
            self._router_more = self._port.readable()
        self._sent = False
        return self._router_more or self._zap_more or self.links.readable()

    def turn(self, timeout_s: float, signal_fd: int = -1) -> None:
        """Wait at most this long, then do a bounded amount of work."""
        ready = {fd for fd, _ in self.poller.poll(timeout_s)}
        if signal_fd in ready:
            os.read(signal_fd, 64)
        if self._zap_more or not self.zap.fds.isdisjoint(ready):
            self._zap_more = self.zap.drain()
        now_ns, wall_ns = boottime_ns(), time.time_ns()
        if self.seals is not None:
            self.seals.t_ns = now_ns
        if self.uplink is not None:
            for parent in () if self.uplink.connected else self.links.refusing():
                log(f"{parent} does not know the key of this aggregator: it must stand in authorized_keys.toml", 3)
            for parent, message in self.links.drain(ready):
                self._from_uplink(self.uplink.received(parent, message, now_ns), now_ns)
            for parent in self.links.flooding():
                log(f"{parent} sends faster than it can be read: connected anew", 4)
        if self._router_more or self._router_fd in ready:
            self._router_more = self._drain_router()
        now_ns = boottime_ns()
        if self.root is not None:
            mine = self.root.pollables()
            for pollable in [self._pollables.get(fd) for fd in ready]:
                if pollable is not None and pollable in mine:
                    self._from_root(self.root.ready(pollable, now_ns, wall_ns), now_ns)
        if self.uplink is not None:
            self._from_uplink(self.uplink.tick(now_ns), now_ns)
        self._perform(self.relay.tick(now_ns, unread=self._router_more), now_ns)
        self._flush(now_ns)
        self._tick_root(now_ns, wall_ns)
        if now_ns >= self._show_ns and self.http is not None:
            self._show_ns = now_ns + (SHOW_PAGES_NS if self.http.pages else SHOW_NS)
            self._shown = self._show()
            self.http.changed()
        if self._keys.asked or now_ns >= self._auth_look_ns:
            self._look_at_keys(now_ns)
        if self.notifier.watchdog_ns:
            self.notifier.send("WATCHDOG=1")

    def _tick_root(self, now_ns: int, wall_ns: int) -> None:
        """Call the root's ``tick`` only after all earlier messages were read: after a stall, the answers that seem late
        and the hellos of nodes that are back still wait to be read.
        """
        self._unread_ns = 0 if not self._router_more else self._unread_ns or now_ns
        if self.root is not None and (not self._router_more or now_ns - self._unread_ns >= UNREAD_MAX_NS):
            self._from_root(self.root.tick(now_ns, wall_ns), now_ns)

    _unread_ns = _auth_look_ns = _trim_ns = 0
    _under = ""

    def _drain_router(self) -> bool:
        """Handle a bounded batch of the children's messages, for a bounded time. Returns True if there may be more."""
        relay, peers = self.relay, self.authorized.peers
        now_ns = boottime_ns()
        ends_ns = now_ns + ROUTER_NS
        for _ in range(ROUTER_BATCH):
            messages, everything = self._port.receive_from(ROUTER_READ)
            for key in self.gate.read(messages, everything, peers):
                self._end(key, now_ns)
            for rid, key, connection, frame in messages:
                peer = peers.get(key)
                if peer is None:  # a key that was removed
                    end_connection(connection, self.port)
                if peer is None or frame is None:
                    self.bad += 1
                    continue
                try:
                    if type(frame) is memoryview and not _passed_on(frame):
                        frame = bytes(frame)
                    message = wire.LIVES_MESSAGE if frame == wire.LIVES else wire.decode(frame)
                except RemoteProtocolError as exc:
                    self.bad += 1
                    self._perform(relay.bad_frame(rid, peer, exc.message, now_ns), now_ns)
                    continue
                if message.kind == "hello":
                    self._fds[connection] = key
                    self.gate.unread.came(rid, connection, peer)
                effects = relay.received(rid, peer, message, now_ns)
                if effects:
                    self._perform(effects, now_ns)
            if everything:
                return False
            now_ns = boottime_ns()
            if now_ns >= ends_ns:
                return True
        return True

    # -- effects ------------------------------------------------------------------------------------------------

    def _perform(self, effects: Iterable[Effect], now_ns: int) -> None:
        lost: set[bytes] = set()
        for effect in effects:
            if isinstance(effect, ToChildren):
                self._send(effect.rids, effect.frame, lost)
            elif isinstance(effect, ToEach):
                self._send_each(effect.rids, effect.frames, lost)
            elif isinstance(effect, Up):
                self._send_up(effect, now_ns)
            elif not isinstance(effect, Ended):
                log(effect.text, 4)
        for rid in lost:
            self._perform(self.relay.gone(rid, now_ns), now_ns)

    def _send(self, rids: tuple[bytes, ...], frame: bytes, lost: set[bytes]) -> None:
        """Send the same bytes to each. The sessions of children that cannot be reached, or do not read, end."""
        self._sent = True
        lost.update(unsent := self._port.send_to(rids, frame), self.gate.unread.sent(rids, frame, unsent))

    def _send_each(self, rids: tuple[bytes, ...], frames: list[bytes], lost: set[bytes]) -> None:
        """Send each child its own frame."""
        self._sent = True
        lost.update(unsent := self._port.send_each(rids, frames), self.gate.unread.sent_each(rids, frames, unsent))

    def _send_up(self, up: Up, now_ns: int) -> None:
        if self.uplink is not None:
            try:
                effects = self.uplink.send(up.kind, up.head, up.body)
            except LocalProtocolError as exc:  # T13
                self._perform(self.relay.unsendable(up, exc), now_ns)
                return
            self._from_uplink(effects, now_ns)
        elif self.root is not None:
            message = wire.message(up.kind, up.head, up.body)
            self._from_root(self.root.received(message, now_ns, time.time_ns()), now_ns)

    def _from_uplink(self, effects: Iterable[UplinkEffect], now_ns: int) -> None:
        for effect in effects:
            if isinstance(effect, OF_LINKS):
                self.links.perform(effect)
            elif isinstance(effect, Deliver):
                if effect.message.kind == "welcome":
                    assert self.uplink is not None
                    log(f"under {self.uplink.parent}")
                    if self.relay.rooted and self.uplink.parent != self._under:
                        self._perform(self.relay.moved(), now_ns)
                    self._under = self.uplink.parent
                self._perform(self.relay.from_parent(effect.message, now_ns), now_ns)
            elif isinstance(effect, Lost):
                log(f"no parent: {effect.why}", 4)
                self._perform(self.relay.parent_lost(now_ns), now_ns)
            elif isinstance(effect, Note):
                log(effect.text, 4)

    def _from_root(self, messages: Iterable[Message], now_ns: int) -> None:
        for message in messages:
            self._perform(self.relay.from_parent(message, now_ns), now_ns)

    def _flush(self, now_ns: int) -> None:
        self._perform(self.relay.flush(now_ns), now_ns)

    def shown(self) -> dict[str, Any]:
        """What any member says of itself."""
        relay = self.relay
        return {
            "name": self.config.name,
            "cluster": self.config.cluster,
            "version": __version__,
            "root": False,
            "children": len(relay.tree.named),
            "connected": len(relay.tree.where),
            "buffered": relay.backlog.bytes,
            "healthy": relay.rooted,
            "trouble": "" if relay.rooted else "no way to the root",
        }

    def _show(self) -> Mapping[str, Any]:
        """The data of the web page and the metrics. Made in the loop, read by their thread."""
        relay, own = self.relay, self.shown()
        if self.root is None and self.http is not None and self.http.pages:
            own["fleet"] = {"racks": {name: child.claim(name).rack for name, child in relay.tree.where.items()}}
        theirs = dict(self.root.shown()) if self.root is not None else {}
        refused = {
            **theirs.get("refused", {}),
            "messages of children": relay.violations + self.bad,
            "messages that fit no frame": relay.unsaid,
        }
        return {**own, **theirs, "refused": refused}

    # -- keys ---------------------------------------------------------------------------------------------------

    def _look_at_keys(self, now_ns: int) -> None:
        """Read the file of authorised keys again if it has changed, and end whose key is gone."""
        self._auth_look_ns = now_ns + AUTH_LOOK_NS
        self._zap_more |= self.zap.renew(now_ns)
        self.gate.look(not self._router_more)
        if said := self.door.look():
            log(said, 4)
        if now_ns >= self._trim_ns and not self.relay.calls.open:
            self._trim_ns = now_ns + TRIM_NS
            garbage.search(quiet=True)
            syscalls.trim()
        newer = self._keys.newer()
        if newer is None:
            return
        removed, before, self.authorized = self.authorized.removed(newer), self.authorized, newer
        log(f"{len(newer.peers)} authorised keys, {len(removed)} removed or changed")
        if self.seals is not None:
            self.seals.revoked(removed)
        for key in removed:
            self._end(key, now_ns)
        if removed and self.root is not None:
            self.root.removed(removed)
            users = [before.peers[key].name for key in removed if before.peers[key].role in sealing.PERSONS]
            self._from_root(self.root.revoked(users, now_ns, time.time_ns()), now_ns)
        self.relay.tree.reconsider()

    def _end(self, key: str, now_ns: int) -> None:
        """End the sessions and connections of a removed key now.  # T11"""
        for rid in self.relay.sessions(key):
            self._perform(self.relay.gone(rid, now_ns), now_ns)
        for fd in [fd for fd, owner in self._fds.items() if owner == key]:  # also connections without a session
            del self._fds[fd]
            end_connection(fd, self.port)

    def close(self) -> None:
        """Children find another parent by themselves."""
        self.notifier.send("STOPPING=1")
        now_ns = boottime_ns()
        if self.http is not None:
            self.http.close()
        if self.root is not None:
            self.root.close()
        elif self.uplink is not None:
            self._from_uplink(self.uplink.stop(), now_ns)
        self._perform(self.relay.leave(now_ns), now_ns)
        self.links.close()
        self.router.close(100)
        self.gate.close()
        self.zap.close()
        self.poller.close()
        self.context.term()


def _passed_on(frame: memoryview) -> bool:
    """Whether the frame is passed on as it is: kept events keep the frame in memory, so they must be most of it."""
    return frame[2] == EVENTS_CODE and 2 * int.from_bytes(frame[3:7], "little") < len(frame)


def serve(settings: AggregatorConfig, make_root: MakeRoot | None = None) -> None:
    """Run until a signal ends it. Raises PactError if it cannot start."""
    owned.require(settings.path, "configuration")
    aggregator = Aggregator(settings, make_root)
    try:
        aggregator.run()
    finally:
        aggregator.close()
