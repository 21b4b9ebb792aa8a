"""Connections to parents: one DEALER for each, never one for two (it would alternate). For agents and aggregators."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Container
from typing import Any, Final

import zmq

from pact.core.tree import wire
from pact.core.tree.parents import Parent
from pact.core.tree.uplink import Connect, Disconnect, Send
from pact.core.tree.wire import Message
from pact.errors import RemoteProtocolError
from pact.limits import FRAME_MAX
from pact.net.floods import Floods, connection, travelled
from pact.net.keys import Key
from pact.net.monitors import next_event
from pact.net.ports import Port
from pact.net.unended import LOOK_S, Unended

DEAD_MS: Final = 15_000
KEEPALIVE_S: Final = (10, 5, 3)  # idle time before the first probe, interval, number of probes
RECONNECT_MS: Final = (100, 500)
SEND_HWM: Final = 10_000
#: More than a parent may have under way: the windows of an aggregator's streams, and a frame.
PARENT_BYTES_MAX: Final = (128 << 20) + 2 * FRAME_MAX
WATCHED: Final = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_CONNECTED
GOODBYE_MS: Final = 200
DRAIN_MAX: Final = 256
COPIED: Final = 1 << 62  # messages of a parent are copied, whatever their size
COPY_MAX: Final = 256 << 10  # longer messages to a parent are not copied: a thread of pyzmq's looks after those
NOW: Final = int(zmq.NOBLOCK)


class Links:
    """The sockets behind an uplink's ``Connect``, ``Disconnect`` and ``Send``."""

    def __init__(
        self,
        context: zmq.Context[Any],
        key: Key,
        opened: Callable[[zmq.Socket[bytes]], None],
        closing: Callable[[zmq.Socket[bytes]], None],
    ) -> None:
        self.ports: dict[str, Port] = {}
        self.bad = 0
        # The newest beat: the next one is usually equal.
        self._last: tuple[bytes, Message] = (wire.LIVES, wire.LIVES_MESSAGE)
        self._fds: dict[str, int] = {}
        self._monitors: dict[str, zmq.Socket[bytes]] = {}
        self._strange: set[str] = set()
        self._connections: dict[str, int] = {}  # descriptors of the TCP connections, the newest of each parent
        self._floods: dict[str, Floods] = {}
        self._parents: dict[str, Parent] = {}
        self._flooded: list[str] = []
        self._unended, self._look_due_s = Unended(PARENT_BYTES_MAX, 2 * FRAME_MAX), 0.0
        self._unsure: set[str] = set()  # parents whose descriptors may not show that messages came
        self._context = context
        self._key = key
        self._opened = opened
        self._closing = closing

    def perform(self, effect: Connect | Disconnect | Send) -> None:
        if isinstance(effect, Send):
            port = self.ports.get(effect.parent)
            if port is not None:
                self._unsure.add(effect.parent)
                try:
                    if len(effect.frame) < COPY_MAX:
                        port.send(effect.frame)
                    else:
                        port.socket.send(effect.frame, NOW, copy=False)
                except zmq.Again:
                    pass  # the connection is stuck: silence will end it, and everything is sent again
        elif isinstance(effect, Connect):
            self._connect(effect.parent)
        else:
            self._close(effect.parent, GOODBYE_MS)

    def _connect(self, parent: Parent) -> None:
        assert parent.url not in self.ports
        socket = self._context.socket(zmq.DEALER)
        socket.curve_publickey = self._key.public.encode()
        socket.curve_secretkey = self._key.secret.encode()
        socket.curve_serverkey = parent.key.encode()
        socket.linger = 0
        socket.sndhwm, socket.rcvhwm = SEND_HWM, 0  # see ``floods``
        socket.maxmsgsize = FRAME_MAX
        end_dead_connections(socket)
        socket.set(zmq.RECONNECT_IVL, random.randint(*RECONNECT_MS))
        socket.set(zmq.IPV6, 1)
        self._monitors[parent.url] = socket.get_monitor_socket(WATCHED)
        socket.connect(parent.url)
        self.ports[parent.url] = Port(socket, COPIED)
        self._fds[parent.url] = int(socket.fileno())
        self._unsure.add(parent.url)
        self._floods[parent.url], self._parents[parent.url] = Floods(PARENT_BYTES_MAX), parent
        self._opened(socket)

    def _close(self, parent: str, linger_ms: int) -> None:
        self._unsure.discard(parent)
        port = self.ports.pop(parent, None)
        if port is not None:
            self._closing(port.socket)
            self._look(parent)  # the last event is not lost
            port.socket.disable_monitor()
            self._monitors.pop(parent).close(0)
            port.socket.close(linger_ms)
            del self._floods[parent], self._parents[parent]
            self._connections.pop(parent, None)

    def _look(self, parent: str) -> None:
        """Take in what happened to the connection."""
        monitor = self._monitors[parent]
        while monitor.poll(0):
            event, value = next_event(monitor)
            if event == zmq.EVENT_CONNECTED:
                self._connections[parent] = value
                if (which := connection(value)) is not None:
                    self._unended.accepted([which])
                    self._unended.heard([value])  # something may have been read already
            else:
                self._strange.add(parent)

    def _check_flood(self, parent: str, size: int, everything: bool) -> None:
        """Make the connection to a parent that sends much faster than it is read anew, without what waits."""
        floods = self._floods[parent]
        if everything:
            floods.caught_up()
            return
        self._look(parent)  # libzmq may have connected anew
        fd = self._connections.get(parent)
        if fd is not None and floods.behind({fd: parent}, time.monotonic(), {fd: size}):
            self._again(parent)

    def _again(self, parent: str) -> None:
        """Make the connection anew."""
        again = self._parents[parent]
        self._close(parent, 0)
        self._connect(again)
        self._flooded.append(parent)

    def _check_unended(self) -> None:
        """Do so where nothing of what it sends ever ends."""
        now_s = time.monotonic()
        if now_s < self._look_due_s:
            return
        self._look_due_s = now_s + LOOK_S
        for parent in self.ports:
            self._look(parent)
        if not self._unsure:
            self._unended.caught_up()
        found = self._unended.look()
        for parent in [p for p, fd in self._connections.items() if fd in found]:
            self._again(parent)

    def refusing(self) -> list[str]:
        """Parents that have refused the connection since the last call: they do not know the key."""
        for parent in self._monitors:
            self._look(parent)
        found, self._strange = sorted(self._strange), set()
        return found

    def flooding(self) -> list[str]:
        """Parents whose connection was made anew since the last call, because they sent faster than was read."""
        found, self._flooded = self._flooded, []
        return found

    def drain(self, ready: Container[int] | None = None) -> list[tuple[str, Message]]:
        """A bounded number of messages of each parent; with ``ready`` (descriptors) only of those that may have some.
        Garbage is counted.
        """
        out: list[tuple[str, Message]] = []
        for parent, port in list(self.ports.items()):
            if ready is not None and parent not in self._unsure and self._fds[parent] not in ready:
                continue
            frames, everything = port.receive(DRAIN_MAX)
            (self._unsure.discard if everything else self._unsure.add)(parent)
            size = sum(travelled(len(frame)) for frame in frames if frame is not None)
            if size and parent in self._connections:
                self._unended.read(self._connections[parent], size)
            self._check_flood(parent, size, everything)
            for frame in frames:
                if frame == self._last[0]:
                    out.append((parent, self._last[1]))
                    continue
                try:
                    message = wire.decode(frame or b"")
                except RemoteProtocolError:
                    self.bad += 1
                    continue
                out.append((parent, message))
                if message.kind == "beat" and type(frame) is bytes:
                    self._last = frame, message
        self._check_unended()
        return out

    def readable(self) -> bool:
        """Whether there are more messages. A descriptor becomes readable only once, and a send may clear that: only a
        socket that was read to the end, and has sent nothing since, need not be checked.
        """
        for parent in list(self._unsure):
            if self.ports[parent].readable():
                return True
            self._unsure.discard(parent)
        return False

    def close(self) -> None:
        for parent in list(self.ports):
            self._close(parent, GOODBYE_MS)


def end_dead_connections(socket: zmq.Socket[bytes]) -> None:
    """Let the kernel end a connection whose other side is gone; call it before the socket is bound or connected.

    This does not use ZeroMQ's heartbeats: the tree's own beats show whether a child or a parent is alive, and each pong
    makes libzmq walk through the timers of all connections. With a few thousand connections its thread would do nothing
    else.
    """
    idle, every, times = KEEPALIVE_S
    socket.set(zmq.TCP_MAXRT, DEAD_MS)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, idle)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, every)
    socket.set(zmq.TCP_KEEPALIVE_CNT, times)
