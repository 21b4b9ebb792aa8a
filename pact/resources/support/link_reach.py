"""No lock-out: whether this node still reaches those above it, before and after a step on a link.

With parents in the configuration: one of them takes a TCP connection, or refuses it. Without: one of the default
gateways answers for its address (ARP, neighbour discovery). Names are resolved before the step: afterwards a resolver
may be out of reach itself. Nothing here changes a link; each question has a short limit.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pact.host import reach
from pact.resources.support import link_wire as wire
from pact.resources.support.link_talk import Talk
from pact.resources.support.link_wire import Malformed

CONNECT_S: Final = 1.0
RESOLVE_S: Final = 1.0
#: After a step a link needs time: a carrier, a port of a switch that learns, a duplicate address that is looked for.
SETTLE_S: Final = 15.0
#: After a step that only took something away there is nothing to wait for.
TAKEN_S: Final = 3.0
PAUSE_S: Final = 0.1
GATEWAYS_MAX: Final = 8
NEIGHBOUR_HEAD: Final = struct.Struct("=BxxxiHBB")
NDA_DST: Final = 1
NUD_REACHABLE: Final = 0x02
NUD_PROBE: Final = 0x10
NUD_SET: Final = 0x40 | 0x80  # it needs no ARP, or is permanent
NUD_SURE: Final = NUD_REACHABLE | NUD_SET
REPLACE: Final = 0x100
ACK: Final = 0x4
DISCARD_PORT: Final = 9

Target = tuple[int, Any, str]  # family, address for connect(), and how people write it


@dataclass(frozen=True, slots=True)
class Before:
    """Who was reached before a step: ``parents``, or ``gateways``; neither: nobody was, and nothing can be lost."""

    parents: tuple[Target, ...] = ()
    gateways: tuple[tuple[int, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.parents or self.gateways)

    @property
    def names(self) -> str:
        if self.parents:
            return "its parents (" + ", ".join(name for _, _, name in self.parents) + ")"
        return "the default gateway (" + ", ".join(text for _, text in self.gateways) + ")"


def before() -> Before:
    """Whom this node reaches now. Where no parent is reached (an aggregator is down, nobody resolves its name), a
    gateway that is reached must not be lost either."""
    parents = connected([t for t in _resolved(reach.places()) if not _is_here(t)])
    return Before(parents=tuple(parents)) if parents else Before(gateways=tuple(gateways_answering()))


def _is_here(target: Target) -> bool:
    """Whether it is this node itself, which is reached whatever becomes of a link."""
    return str(target[1][0]).startswith(("127.", "::1", "::ffff:127."))


def why_lost(reached: Before, settle_s: float = SETTLE_S) -> str:
    """``""`` if at least one of those who were reached is reached still, which may take a while; else the reason."""
    if not reached:
        return ""
    ends = time.monotonic() + settle_s
    while True:
        if connected(reached.parents) if reached.parents else gateways_answering():
            return ""
        if time.monotonic() >= ends:
            return f"after it this node did not reach {reached.names} within {settle_s:g} s"
        time.sleep(PAUSE_S)


# -- parents --------------------------------------------------------------------------------------------------------


def _resolved(places: Sequence[reach.Place]) -> list[Target]:
    """Their addresses; names are looked up beside, because a resolver may hang."""
    found: list[Target] = []

    def look_up(host: str, port: int) -> None:
        try:
            for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                found.append((int(family), address, f"{host}:{port}"))
        except OSError:
            pass

    threads = [threading.Thread(target=look_up, args=place, daemon=True) for place in places]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + RESOLVE_S
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    return list(found)


def connected(targets: Sequence[Target]) -> list[Target]:
    """Those that take a connection, or refuse one: an answer comes from there. At most ``CONNECT_S``."""
    waiting: dict[int, tuple[socket.socket, Target]] = {}
    out: list[Target] = []
    poll = select.poll()
    try:
        for target in targets:
            try:
                sock = socket.socket(target[0], socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            except OSError:
                continue  # no descriptor, or no such family: not reached
            number = sock.connect_ex(target[1])
            if number in (0, errno.ECONNREFUSED):
                out.append(target)
            if number != errno.EINPROGRESS:
                sock.close()
                continue
            waiting[sock.fileno()] = sock, target
            poll.register(sock, select.POLLOUT)
        ends = time.monotonic() + CONNECT_S
        while waiting and (left := ends - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                sock, target = waiting.pop(fd)
                poll.unregister(fd)
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED):
                    out.append(target)
                sock.close()
    finally:
        for sock, _ in waiting.values():
            sock.close()
    return out


# -- gateways -------------------------------------------------------------------------------------------------------


def gateways_answering() -> list[tuple[int, str]]:
    """The default gateways, by link and address, that answer for their address; as soon as there is one, the others
    are not waited for. A gateway without an address (a tunnel, PPP) counts as long as there is its route."""
    try:
        with Talk() as talk:
            found = talk.gateways()[:GATEWAYS_MAX]
            for index, gateway in found:
                if gateway:
                    _provoke(talk, index, gateway)
            ends = time.monotonic() + CONNECT_S
            while found:
                if there := [g for g in found if not g[1] or _neighbour(talk, *g) & NUD_SURE]:
                    return there
                if time.monotonic() >= ends:
                    break
                time.sleep(PAUSE_S / 10)
    except (OSError, Malformed):
        pass
    return []


def _neighbour(talk: Talk, index: int, gateway: str) -> int:
    """The state of the kernel's entry for an address, 0 for none."""
    family, raw = _packed(gateway)
    body = NEIGHBOUR_HEAD.pack(family, index, 0, 0, 0) + wire.attribute(NDA_DST, raw)
    try:
        answer = talk.ask(wire.GETNEIGH, body, dump=False)
    except OSError:
        return 0
    return int(NEIGHBOUR_HEAD.unpack_from(answer[0])[2]) if len(answer[0]) >= NEIGHBOUR_HEAD.size else 0


def _packed(gateway: str) -> tuple[int, bytes]:
    family = wire.INET6 if ":" in gateway else wire.INET
    return family, socket.inet_pton(family, gateway)


def _provoke(talk: Talk, index: int, gateway: str) -> None:
    """Make the kernel ask the gateway for its address now, whatever it knows already."""
    family, raw = _packed(gateway)
    state = _neighbour(talk, index, gateway)
    if state & NUD_SET:
        return  # somebody has set it, and it must stay so: nothing is asked for it
    if state:
        body = NEIGHBOUR_HEAD.pack(family, index, NUD_PROBE, 0, 0) + wire.attribute(NDA_DST, raw)
        try:
            talk.order(wire.NEWNEIGH, REPLACE, body)
            return
        except OSError:
            pass  # it went away, or is permanent
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        try:
            scope = (0, index) if family == wire.INET6 else ()
            sock.sendto(b"", (gateway, DISCARD_PORT, *scope))
        except OSError:
            pass  # no way there: nobody answers
