"""Asking the kernel about links, addresses and routes: one netlink socket for each look, no process.

The kernel answers at once, unless a driver holds its lock on all links: so a look belongs off the loop.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Final

from pact.resources.support import link_wire as wire
from pact.resources.support.link_wire import Address, Link, Malformed, Route

SOL_NETLINK: Final = 270
STRICT: Final = 12  # NETLINK_GET_STRICT_CHK: a dump heeds the filter in its request
REQUEST: Final = 0x1
ACK: Final = 0x4
DUMP: Final = 0x300
INTERRUPTED: Final = 0x10
ERROR: Final = 2
DONE: Final = 3
WAIT_S: Final = 10.0
DATAGRAM_MAX: Final = 1 << 18
MESSAGES_MAX: Final = 200_000
TRIES: Final = 3


class Talk:
    """Raises OSError if the kernel has no such socket."""

    def __init__(self, protocol: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._seq = 0
        try:
            self._socket.settimeout(WAIT_S)
            with contextlib.suppress(OSError):  # an older kernel gives everything, and the caller filters
                self._socket.setsockopt(SOL_NETLINK, STRICT, 1)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, kind: int, body: bytes, *, dump: bool) -> list[bytes]:
        """The bodies of the answer. Raises OSError (with the kernel's number) or Malformed."""
        for _ in range(TRIES):
            self._seq += 1
            flags = REQUEST | (DUMP if dump else 0)
            self._socket.sendto(wire.request(kind, flags, self._seq, body), (0, 0))
            answer = self._answer(dump)
            if answer is not None:
                return answer
        raise OSError("the links change faster than they can be read")

    def order(self, kind: int, flags: int, body: bytes) -> None:
        """A request without an answer but the kernel's agreement. Raises OSError."""
        self._seq += 1
        self._socket.sendto(wire.request(kind, REQUEST | ACK | flags, self._seq, body), (0, 0))
        self._answer(False)

    def _answer(self, dump: bool) -> list[bytes] | None:
        """``None`` if what was read changed meanwhile."""
        out: list[bytes] = []
        whole = True
        while len(out) < MESSAGES_MAX:
            data, _, flags, sender = self._socket.recvmsg(DATAGRAM_MAX)
            if sender[0] != 0:
                continue  # another process may send here; only the kernel is asked
            if flags & socket.MSG_TRUNC:
                raise Malformed(f"more than {DATAGRAM_MAX} bytes at once")
            for message in wire.messages(data):
                if message.seq != self._seq:
                    continue
                whole = whole and not message.flags & INTERRUPTED
                if message.type in (ERROR, DONE):
                    number = struct.unpack_from("=i", message.body)[0] if len(message.body) >= 4 else 0
                    if number < 0:
                        raise OSError(-number, os.strerror(-number))
                    return out if whole else None
                out.append(message.body)
                if not dump:
                    return out
        raise Malformed(f"more than {MESSAGES_MAX} messages")

    def link(self, name: bytes = b"", index: int = 0) -> Link | None:
        """One link by its name, or by its index. ``None``: there is none; a link of which this is only another name
        (``altname``) does not count. Raises OSError or Malformed."""
        found = self.called(name, index)
        return found if found is None or not name or found.name == name else None

    def called(self, name: bytes, index: int = 0) -> Link | None:
        """The same, also by another name."""
        body = wire.LINK_HEAD.pack(0, 0, index, 0, 0)
        body += wire.attribute(wire.IFLA_EXT_MASK, wire.U32.pack(wire.SKIP_STATISTICS))
        if name:
            body += wire.attribute(wire.IFLA_IFNAME, name + b"\0")
        try:
            answer = self.ask(wire.GETLINK, body, dump=False)
        except OSError as exc:
            if exc.errno in (19, 6):  # ENODEV, ENXIO
                return None
            raise
        return wire.link_of(answer[0])

    def links(self) -> list[Link]:
        body = wire.LINK_HEAD.pack(0, 0, 0, 0, 0)
        body += wire.attribute(wire.IFLA_EXT_MASK, wire.U32.pack(wire.SKIP_STATISTICS))
        return [wire.link_of(b) for b in self.ask(wire.GETLINK, body, dump=True)]

    def addresses(self, index: int = 0) -> list[Address]:
        """Those of one link, or all."""
        body = wire.ADDRESS_HEAD.pack(0, 0, 0, 0, index)
        found = [wire.address_of(b) for b in self.ask(wire.GETADDR, body, dump=True)]
        return [a for a in found if a is not None and index in (0, a.index)]

    def routes(self, index: int = 0) -> list[Route]:
        """Those of persons and static configurations over one link, or over all."""
        made = (wire.BOOT, wire.STATIC)
        found = [wire.route_of(body) for protocol in made for body in self._routes(protocol, index)]
        routes = [r for r in found if r is not None and index in (0, r.index) and r.protocol in made]
        return list(dict.fromkeys(routes))  # an older kernel gives all, twice

    def gateways(self) -> list[tuple[int, str]]:
        """The ways of all default routes: link and gateway."""
        return list(dict.fromkeys(way for body in self._routes(0, 0) for way in wire.gateways_of(body)))

    def _routes(self, protocol: int, index: int) -> list[bytes]:
        out: list[bytes] = []
        for family in (wire.INET, wire.INET6):
            body = wire.ROUTE_HEAD.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0)
            if index:
                body += wire.attribute(wire.RTA_OIF, wire.U32.pack(index))
            try:
                out += self.ask(wire.GETROUTE, body, dump=True)
            except OSError as exc:
                if exc.errno not in (2, 95, 97):  # no such table yet, or a kernel without this family
                    raise
        return out

    def way_to(self, address: str) -> int:
        """The index of the link over which the kernel would send to an address; 0: it has no way."""
        family = wire.INET6 if ":" in address else wire.INET
        raw = socket.inet_pton(family, address)
        body = wire.ROUTE_HEAD.pack(family, 8 * len(raw), 0, 0, 0, 0, 0, 0, 0)
        body += wire.attribute(wire.RTA_DST, raw)
        try:
            answer = self.ask(wire.GETROUTE, body, dump=False)
        except OSError:
            return 0
        found = wire.attributes(answer[0], wire.ROUTE_HEAD.size)
        value = found.get(wire.RTA_OIF, b"")
        return int(wire.U32.unpack(value)[0]) if len(value) == 4 else 0
