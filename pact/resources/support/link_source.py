"""Notifications of links, addresses and routes, from a plain netlink socket.

A message says which link, and sometimes the port of the socket that asked for the change; the present state is then
read by itself. Routes of routing daemons are dropped by a filter in the kernel: there may be a thousand in a second.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from typing import Final

from pact.model import decode_name, encode_name
from pact.resources.base import is_own_tool
from pact.resources.shapes import Drained
from pact.resources.support import link_wire as wire
from pact.resources.support.link_look import known, learn
from pact.resources.support.link_wire import Malformed

#: RTNLGRP_*: link, IPv4 and IPv6 addresses, IPv4 and IPv6 routes.
GROUPS: Final = (1, 5, 9, 7, 11)
SOL_NETLINK: Final = 270
ADD_MEMBERSHIP: Final = 1
SO_ATTACH_FILTER: Final = 26
SO_RCVBUFFORCE: Final = 33
BUFFER_BYTES: Final = 4 << 20  # the kernel uses as much of it as there are messages waiting
DATAGRAM_MAX: Final = 1 << 16
DRAIN_MAX: Final = 500
INDEXES_MAX: Final = 4096
#: The family of a message about a link; a bridge tells of its members in messages of its own family.
OF_LINKS: Final = b"\0"
#: Each instruction: code, how far to jump if true, if false, and its number.
LOAD_HALF: Final = 0x28
LOAD_BYTE: Final = 0x30
IF_EQUAL: Final = 0x15
RETURN: Final = 0x06
ALL: Final = 0xFFFFFFFF


def _program() -> bytes:
    """Lets everything pass but the routes of daemons."""
    new, gone = socket.htons(wire.NEWROUTE), socket.htons(wire.DELROUTE)
    protocol = wire.HEADER.size + 5
    rows = (
        (LOAD_HALF, 0, 0, 4),
        (IF_EQUAL, 2, 0, new),
        (IF_EQUAL, 1, 0, gone),
        (RETURN, 0, 0, ALL),
        (LOAD_BYTE, 0, 0, protocol),
        (IF_EQUAL, 1, 0, wire.BOOT),
        (IF_EQUAL, 0, 1, wire.STATIC),
        (RETURN, 0, 0, ALL),
        (RETURN, 0, 0, 0),
    )
    return b"".join(struct.pack("=HBBI", *row) for row in rows)


class Notifications:
    """A ``Source`` (``resources.shapes``). Raises OSError if the kernel has no such socket."""

    def __init__(self) -> None:
        self._wanted: set[bytes] = set()
        self._news = False
        self._names: dict[int, bytes] = {}  # index -> name, as last said
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            self._enlarge()
            self._filter()
            self._socket.bind((0, 0))
            for group in GROUPS:
                self._socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            raise

    def _enlarge(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        except OSError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)

    def _filter(self) -> None:
        rows = array("B", _program())
        program = struct.pack("@HP", len(rows) // 8, rows.buffer_info()[0])
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> Drained:
        changed: dict[tuple[str, int], None] = {}
        self._news = False
        for _ in range(DRAIN_MAX):
            try:
                data, _, flags, sender = self._socket.recvmsg(DATAGRAM_MAX)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                self._names.clear()
                return Drained((), "the kernel had to drop notifications")
            if sender[0] != 0:
                continue  # a process sent this: only the kernel is believed
            if flags & socket.MSG_TRUNC:
                return Drained((), f"a notification of more than {DATAGRAM_MAX} bytes")
            try:
                for message in wire.messages(data):
                    for name in self._concerned(message):
                        changed[name, 0 if is_own_tool(message.port) else message.port] = None
            except Malformed as exc:
                return Drained((), f"a notification cannot be read: {exc}")
        return Drained([*changed], ports=True, news=self._news)

    def _concerned(self, message: wire.Message) -> list[str]:
        """The wanted links that this is about: by the name that it says, and by the one that the link had before."""
        index, name = wire.index_and_name(message)
        if not index:
            return []
        before = self._names.get(index, b"")
        of_link = message.type in (wire.NEWLINK, wire.DELLINK) and message.body[:1] == OF_LINKS
        if of_link and message.type == wire.DELLINK:
            self._names.pop(index, None)
            self._news = True
        elif of_link and name != before:
            self._news = True  # it came, or has another name
            if len(self._names) < INDEXES_MAX or before:
                self._names[index] = name
        elif not before:
            before = self._ask(index)
        concerned = [encode_name(n) for n in dict.fromkeys((before, name)) if n in self._wanted]
        if concerned and message.type in (wire.NEWROUTE, wire.DELROUTE):
            route = wire.route_of(message.body)
            came = message.type == wire.NEWROUTE
            if route is not None and (came or message.port):  # the kernel takes routes away by itself, too
                learn(concerned[0], route, there=came)
        if message.type == wire.NEWROUTE and message.flags & wire.REPLACE:
            concerned += [n for n in self._that_had(message, index) if n not in concerned]
        return concerned

    def _that_had(self, message: wire.Message, index: int) -> list[str]:
        """The wanted links over which the route led whose place this one has taken: the kernel says only where the new
        one leads. Of a link of which too little is known it may be, too."""
        route = wire.route_of(message.body)
        if route is None:
            return []
        to, out = route.text.split(" ", 1)[0], []
        for raw in sorted(self._wanted - {self._names.get(index, b"")}):
            before = known(name := encode_name(raw))
            had = [text.split(" ", 1)[0] for past in (before.pasts[-1:] if before else ()) for text, _ in past.routes]
            if before is None or to in had:
                out.append(name)
        return out

    def _ask(self, index: int) -> bytes:
        try:
            return os.fsencode(socket.if_indextoname(index))
        except OSError:
            return b""  # it is gone: its own notification comes

    def want(self, name: str) -> None:
        raw = decode_name(name)
        self._wanted.add(raw)
        try:
            self._names[socket.if_nametoindex(raw)] = raw  # type: ignore[arg-type]
        except OSError:
            pass

    def unwant(self, name: str) -> None:
        self._wanted.discard(decode_name(name))

    def health(self) -> str:
        return "ok"

    def close(self) -> None:
        self._socket.close()
