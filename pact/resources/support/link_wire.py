"""The kernel's messages about links, addresses and routes (rtnetlink), read strictly.

Nothing here sends or waits. Every length is checked against the bytes that are there; ``Malformed`` says what is wrong.
Numbers are in the machine's order, as the kernel writes them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

NEWLINK: Final = 16
DELLINK: Final = 17
GETLINK: Final = 18
NEWADDR: Final = 20
DELADDR: Final = 21
GETADDR: Final = 22
NEWROUTE: Final = 24
DELROUTE: Final = 25
GETROUTE: Final = 26
NEWNEIGH: Final = 28
GETNEIGH: Final = 30

HEADER: Final = struct.Struct("=IHHII")
LINK_HEAD: Final = struct.Struct("=BxHiII")
ADDRESS_HEAD: Final = struct.Struct("=BBBBI")
ROUTE_HEAD: Final = struct.Struct("=BBBBBBBBI")
ATTRIBUTE: Final = struct.Struct("=HH")
NEXTHOP: Final = struct.Struct("=HxxI")
U16: Final = struct.Struct("=H")
U32: Final = struct.Struct("=I")

INET: Final = 2
INET6: Final = 10
UNSPEC: Final = 0
UP: Final = 0x1  # IFF_UP: the administrative state
LOOPBACK: Final = 0x8

IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_LINK: Final = 5
IFLA_MASTER: Final = 10
IFLA_LINKINFO: Final = 18
IFLA_EXT_MASK: Final = 29
IFLA_LINK_NETNSID: Final = 37
IFLA_MIN_MTU: Final = 50
IFLA_MAX_MTU: Final = 51
IFLA_PERM_ADDRESS: Final = 54
INFO_KIND: Final = 1
INFO_DATA: Final = 2
VLAN_ID: Final = 1
BOND_MODE: Final = 1
SKIP_STATISTICS: Final = 8

IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_FLAGS: Final = 8
IFA_TEMPORARY: Final = 0x01  # for IPv6; the same bit is "secondary" for IPv4
IFA_PERMANENT: Final = 0x80
SCOPE_LINK: Final = 253

RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RTA_PRIORITY: Final = 6
RTA_PREFSRC: Final = 7
RTA_METRICS: Final = 8
RTA_MULTIPATH: Final = 9
RTA_TABLE: Final = 15
RTA_VIA: Final = 18
RTA_ENCAP: Final = 22
RTA_NH_ID: Final = 30
UNICAST: Final = 1
MAIN: Final = 254
ONLINK: Final = 4
#: Who made a route: a person (``ip route add``) or a static configuration. Others are daemons' and the kernel's.
BOOT: Final = 3
STATIC: Final = 4
METRIC6: Final = 1024  # what the kernel takes for IPv6 if nothing is said

#: Of a message about a route: it took the place of another, which no message of its own says.
REPLACE: Final = 0x100

NAME_MAX: Final = 15
MODES: Final = (
    "balance-rr",
    "active-backup",
    "balance-xor",
    "broadcast",
    "802.3ad",
    "balance-tlb",
    "balance-alb",
)


class Malformed(ValueError):
    """The bytes are no message of the kernel's."""


@dataclass(frozen=True, slots=True)
class Message:
    type: int
    flags: int
    seq: int
    port: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """``master`` and ``parent`` are indexes, 0 for none; ``kind`` is ``""`` for hardware (and the loopback)."""

    index: int
    name: bytes
    flags: int
    mtu: int
    master: int
    parent: int
    kind: str
    vlan: int
    mode: int
    hardware: bytes
    elsewhere: bool  # its other end, or its parent, is in another network namespace
    mtu_min: int
    mtu_max: int


@dataclass(frozen=True, slots=True)
class Address:
    """``text`` as in ``addresses``; ``kept``: a person or a static configuration set it."""

    index: int
    family: int
    text: str
    local: str
    kept: bool
    passing: bool  # a temporary one for privacy, which the kernel replaces by itself


@dataclass(frozen=True, slots=True)
class Route:
    index: int
    family: int
    protocol: int
    text: str


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram. Raises Malformed."""
    at = 0
    while at < len(data):
        if len(data) - at < HEADER.size:
            raise Malformed(f"{len(data) - at} bytes are no header")
        size, kind, flags, seq, port = HEADER.unpack_from(data, at)
        if not HEADER.size <= size <= len(data) - at:
            raise Malformed(f"a message of {size} bytes in {len(data) - at}")
        yield Message(kind, flags, seq, port, data[at + HEADER.size : at + size])
        at += (size + 3) & ~3


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """The attributes after a head of ``at`` bytes, by type. Raises Malformed."""
    out: dict[int, bytes] = {}
    if at > len(data):
        raise Malformed("a message shorter than its head")
    while at < len(data):
        if len(data) - at < 4:
            raise Malformed("an attribute without a head")
        size, kind = ATTRIBUTE.unpack_from(data, at)
        if not 4 <= size <= len(data) - at:
            raise Malformed(f"an attribute of {size} bytes in {len(data) - at}")
        out[kind & 0x3FFF] = data[at + 4 : at + size]  # without the bits for nesting and byte order
        at += (size + 3) & ~3
    return out


def attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def request(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, flags, seq, 0) + body


def _number(found: dict[int, bytes], kind: int, shape: struct.Struct = U32) -> int:
    value = found.get(kind)
    if value is None:
        return 0
    if len(value) != shape.size:
        raise Malformed(f"attribute {kind} of {len(value)} bytes")
    return int(shape.unpack(value)[0])


def _text(value: bytes) -> bytes:
    return value.partition(b"\0")[0]


def link_of(body: bytes) -> Link:
    """Raises Malformed."""
    if len(body) < LINK_HEAD.size:
        raise Malformed("a link without a head")
    _, _, index, flags, _ = LINK_HEAD.unpack_from(body)
    found = attributes(body, LINK_HEAD.size)
    name = _text(found.get(IFLA_IFNAME, b""))
    if not 0 < len(name) <= NAME_MAX or index <= 0:
        raise Malformed("a link without a name")
    info = attributes(found.get(IFLA_LINKINFO, b""))
    kind = _text(info.get(INFO_KIND, b"")).decode("ascii", "replace")
    data = info.get(INFO_DATA, b"") if kind in ("vlan", "bond") else b""
    inner = attributes(data)
    return Link(
        index,
        name,
        flags,
        _number(found, IFLA_MTU),
        _number(found, IFLA_MASTER),
        _number(found, IFLA_LINK),
        kind,
        _number(inner, VLAN_ID, U16) if kind == "vlan" else 0,
        inner.get(BOND_MODE, b"\0")[0] if kind == "bond" else 0,
        found.get(IFLA_PERM_ADDRESS) or b"",
        IFLA_LINK_NETNSID in found,
        _number(found, IFLA_MIN_MTU),
        _number(found, IFLA_MAX_MTU),
    )


def ip_text(family: int, value: bytes) -> str:
    """Raises Malformed."""
    if (family, len(value)) in ((INET, 4), (INET6, 16)):
        return socket.inet_ntop(family, value)
    raise Malformed(f"an address of {len(value)} bytes of family {family}")


def address_of(body: bytes) -> Address | None:
    """``None`` for one of another family than IPv4 and IPv6. Raises Malformed."""
    if len(body) < ADDRESS_HEAD.size:
        raise Malformed("an address without a head")
    family, length, flags, scope, index = ADDRESS_HEAD.unpack_from(body)
    if family not in (INET, INET6):
        return None
    found = attributes(body, ADDRESS_HEAD.size)
    flags = _number(found, IFA_FLAGS) or flags
    other = found.get(IFA_ADDRESS)
    raw = found.get(IFA_LOCAL, other)
    if raw is None:
        raise Malformed("an address message without an address")
    local = ip_text(family, raw)
    text = f"{local}/{length}"
    if other is not None and other != raw:
        text = f"{local} peer {ip_text(family, other)}/{length}"
    of_link = family == INET6 and scope == SCOPE_LINK
    return Address(
        index,
        family,
        text,
        local,
        bool(flags & IFA_PERMANENT) and not of_link,
        family == INET6 and bool(flags & IFA_TEMPORARY),
    )


def route_of(body: bytes) -> Route | None:
    """``None`` for a route that leads over no single link, or that text cannot say. Raises Malformed."""
    if len(body) < ROUTE_HEAD.size:
        raise Malformed("a route without a head")
    family, length, source, _, table, protocol, _, kind, flags = ROUTE_HEAD.unpack_from(body)
    if family not in (INET, INET6) or kind != UNICAST or source:
        return None
    found = attributes(body, ROUTE_HEAD.size)
    index = _number(found, RTA_OIF)
    if not index or not {RTA_METRICS, RTA_MULTIPATH, RTA_VIA, RTA_ENCAP, RTA_NH_ID}.isdisjoint(found):
        return None
    table = _number(found, RTA_TABLE) or table
    text = f"{ip_text(family, found[RTA_DST])}/{length}" if RTA_DST in found else "default"
    if RTA_GATEWAY in found:
        text += f" via {ip_text(family, found[RTA_GATEWAY])}"
    if RTA_PREFSRC in found:
        text += f" src {ip_text(family, found[RTA_PREFSRC])}"
    metric = _number(found, RTA_PRIORITY)
    if metric != (METRIC6 if family == INET6 else 0):
        text += f" metric {metric}"
    if table != MAIN:
        text += f" table {table}"
    if flags & ONLINK:
        text += " onlink"
    return Route(index, family, protocol, text)


def gateways_of(body: bytes) -> list[tuple[int, str]]:
    """Of a default route in the main table: its ways, by link and gateway (``""``: it needs none). Raises Malformed."""
    if len(body) < ROUTE_HEAD.size:
        raise Malformed("a route without a head")
    family, length, source, _, table, _, _, kind, _ = ROUTE_HEAD.unpack_from(body)
    if family not in (INET, INET6) or kind != UNICAST or length or source:
        return []
    found = attributes(body, ROUTE_HEAD.size)
    if (_number(found, RTA_TABLE) or table) != MAIN:
        return []
    ways = [(_number(found, RTA_OIF), found)]
    several = found.get(RTA_MULTIPATH, b"")
    at = 0
    while at < len(several):
        if len(several) - at < NEXTHOP.size:
            raise Malformed("a way without a head")
        size, index = NEXTHOP.unpack_from(several, at)
        if not NEXTHOP.size <= size <= len(several) - at:
            raise Malformed(f"a way of {size} bytes in {len(several) - at}")
        ways.append((index, attributes(several[at + NEXTHOP.size : at + size])))
        at += (size + 3) & ~3
    return [(index, _gateway(family, more)) for index, more in ways if index]


def _gateway(family: int, found: dict[int, bytes]) -> str:
    if RTA_VIA in found:  # an IPv4 route with a gateway of IPv6: the family first
        via = found[RTA_VIA]
        return ip_text(int(U16.unpack(via[:2])[0]) if len(via) > 2 else 0, via[2:])
    return ip_text(family, found[RTA_GATEWAY]) if RTA_GATEWAY in found else ""


def name_in(body: bytes) -> bytes:
    """The name that a message about a link says, ``b""`` for none: nearly at its beginning, and the rest is not read.
    Raises Malformed."""
    at = LINK_HEAD.size
    while at + 4 <= len(body):
        size, kind = ATTRIBUTE.unpack_from(body, at)
        if not 4 <= size <= len(body) - at:
            raise Malformed(f"an attribute of {size} bytes in {len(body) - at}")
        if kind == IFLA_IFNAME:
            return _text(body[at + 4 : at + size])
        at += (size + 3) & ~3
    return b""


def index_and_name(message: Message) -> tuple[int, bytes]:
    """Of a notification: the index of the link that it is about, 0 for none, and its name if the message says it.
    Raises Malformed."""
    body = message.body
    if message.type in (NEWLINK, DELLINK):
        if len(body) < LINK_HEAD.size:
            raise Malformed("a link without a head")
        return int(LINK_HEAD.unpack_from(body)[2]), name_in(body)
    if message.type in (NEWADDR, DELADDR):
        if len(body) < ADDRESS_HEAD.size:
            raise Malformed("an address without a head")
        return int(ADDRESS_HEAD.unpack_from(body)[4]), b""
    if message.type in (NEWROUTE, DELROUTE):
        return _number(attributes(body, ROUTE_HEAD.size), RTA_OIF), b""
    return 0, b""
