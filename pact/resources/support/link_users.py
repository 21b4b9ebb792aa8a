"""Who uses what a step takes away from a link: sockets with its addresses, and network mounts served over it.

Sockets come from the kernel's own list (sock_diag), and the processes that have them from /proc. A socket on all
addresses (0.0.0.0) loses nothing that it was bound to. Servers of mounts count if their addresses are written there:
looking up a name could hang just when the network is broken.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final

from pact.core.plan import Step
from pact.model import Attrs, Holder, decode_name, encode_name
from pact.observe.mountinfo import MountEntry, is_remote, read_mounts
from pact.resources.support.link_talk import Talk
from pact.resources.support.link_wire import INET, INET6, UP, Link, Malformed

SOCK_DIAG: Final = 4
BY_FAMILY: Final = 20
REQUEST: Final = struct.Struct("=BBBxI48x")
#: Family and state; ports; the two addresses; the link that it is bound to; at the end its inode.
ANSWER: Final = struct.Struct("=BBxx2s2s16s16sI24xI")
PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132, "raw": 255}
#: All but TIME_WAIT and a connection that is not accepted yet: nobody has these.
STATES: Final = 0xFFFFFFFF & ~(1 << 6) & ~(1 << 3) & ~(1 << 12)
#: Classes of devices below that of a link, and where their files are.
DEVICES: Final = (
    (b"infiniband_verbs", b"/dev/infiniband/"),
    (b"infiniband_mad", b"/dev/infiniband/"),
    (b"cxi", b"/dev/"),
    (b"cxi_user", b"/dev/"),
)
#: Kinds of links that lie on another one. (The parent of a veth is its other end.)
ON_TOP: Final = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"})
MAPPED: Final = bytes(10) + b"\xff\xff"
_ADDRESS_OPTIONS: Final = (b"addr=", b"clientaddr=", b"mountaddr=", b"srcaddr=", b"ip=")
_IN_SOURCE: Final = re.compile(rb"\[([0-9A-Fa-f:.]+)\]|(\d{1,3}(?:\.\d{1,3}){3})")


@dataclass(frozen=True, slots=True)
class Goes:
    """What a step takes away: these addresses, and with ``link`` all traffic over it."""

    addresses: frozenset[str]
    link: bool

    def __bool__(self) -> bool:
        return bool(self.addresses) or self.link


@dataclass(frozen=True, slots=True)
class Socket:
    protocol: str
    local: str
    local_port: int
    other: str
    other_port: int
    bound: int
    inode: int

    @property
    def text(self) -> str:
        far = f" to {self.other} port {self.other_port}" if self.other_port else ""
        return f"{self.protocol} {self.local} port {self.local_port}{far}"


def _local(text: str) -> str:
    return text.split(" ", 1)[0].partition("/")[0]


def goes(step: Step) -> Goes:
    """Pure: of the two states of a step."""
    actual, target = step.actual, step.target
    if not actual:
        return Goes(frozenset(), False)
    every = [*actual.get("addresses", ()), *actual.get("dynamic", ())]
    if target is None or _stops(actual, target):
        return Goes(frozenset(map(_local, every)), True)
    have: list[str] = actual.get("addresses", [])
    left: list[str] = target.get("addresses", have)
    lost = {_local(a) for a in have if a not in left} - set(map(_local, left))
    return Goes(frozenset(lost), False)


def _stops(actual: Attrs, target: Attrs) -> bool:
    was, becomes = actual.get("state"), target.get("state", actual.get("state"))
    joins = target.get("master", "") not in ("", actual.get("master", ""))
    return was == "up" and (becomes == "down" or joins)


def users(name: str, step: Step, resource: str) -> list[Holder]:
    """Those of this process are left out: whether it still reaches its parents is checked after the step."""
    what = goes(step)
    if not what:
        return []
    try:
        with Talk() as talk:
            lost, local = set(what.addresses), set[int]()
            if what.link:
                local = stopped(talk.links(), decode_name(name))
                lost |= {a.local for a in talk.addresses() if a.index in local}
            mounts = [m for m in read_mounts() if is_remote(m.fstype) and _served(talk, m, local, lost)]
        found = [s for s in sockets() if s.local in lost or s.bound in local]
    except (OSError, ValueError, Malformed) as exc:
        return [Holder(resource, 0, "unknown", f"its users cannot be read: {exc}")]
    out = [Holder(resource, 0, "mount", encode_name(m.mount_point)) for m in mounts]
    return out + _named(found, resource)


def devices(name: str, sys: str = "/sys/class/net") -> list[bytes]:
    """The devices by which processes use the hardware of a link past the kernel's network (RDMA, Slingshot), for which
    nobody has a socket."""
    out: list[bytes] = []
    for kind, place in DEVICES:
        try:
            names = os.listdir(os.path.join(os.fsencode(sys), decode_name(name), b"device", kind))
        except OSError:
            continue
        out += [place + n for n in sorted(names)]
    return out


def stopped(links: Sequence[Link], name: bytes) -> set[int]:
    """The indexes of the links that no longer carry anything when this one does not: itself, those that lie on it (a
    VLAN), and a bridge or bond whose last member that is up it is; and so on."""
    out = {link.index for link in links if link.name == name}
    while out:
        members: dict[int, list[Link]] = {}
        for link in links:
            members.setdefault(link.master, []).append(link)
        more = {link.index for link in links if link.parent in out and link.kind in ON_TOP and not link.elsewhere}
        more |= {
            master
            for master, those in members.items()
            if master and any(m.index in out for m in those) and all(m.index in out or not m.flags & UP for m in those)
        }
        if more <= out:
            break
        out |= more
    return out


def _named(found: list[Socket], resource: str) -> list[Holder]:
    """A holder for each process that has one of these, and for sockets that nobody in sight has."""
    by_inode = {s.inode: s for s in found if s.inode}
    out: list[Holder] = []
    seen: set[int] = set()
    own = os.getpid()
    for pid in (int(p) for p in os.listdir("/proc") if p.isdigit()) if by_inode else ():
        first = None
        for inode in _inodes(pid):
            if inode in by_inode:
                seen.add(inode)
                first = first or by_inode[inode]
        if first is not None and pid != own:
            out.append(Holder(resource, pid, "socket", first.text))
    out += [Holder(resource, 0, "socket", s.text) for s in found if s.inode and s.inode not in seen]
    return out


def _inodes(pid: int) -> list[int]:
    out: list[int] = []
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return out
    for fd in names:
        try:
            text = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if text.startswith("socket:[") and text[8:-1].isdigit():
            out.append(int(text[8:-1]))
    return out


def sockets() -> list[Socket]:
    """All sockets of this network namespace with a local address. Raises OSError or Malformed."""
    out: list[Socket] = []
    told = False
    with Talk(SOCK_DIAG) as talk:
        for protocol, number in PROTOCOLS.items():
            for family in (INET, INET6):
                try:
                    answer = talk.ask(BY_FAMILY, REQUEST.pack(family, number, 0, STATES), dump=True)
                except OSError as exc:
                    if protocol in ("tcp", "udp") and exc.errno != 2:
                        raise
                    continue  # the kernel has no such protocol, or cannot list it
                told = told or protocol == "tcp"
                out += [_socket(protocol, body) for body in answer]
    return out if told else out + _from_proc()


def _socket(protocol: str, body: bytes) -> Socket:
    if len(body) < ANSWER.size:
        raise Malformed(f"a socket of {len(body)} bytes")
    family, _, near, far, local, other, bound, inode = ANSWER.unpack_from(body)
    return Socket(
        protocol,
        _text(family, local),
        int.from_bytes(near, "big"),
        _text(family, other),
        int.from_bytes(far, "big"),
        bound,
        inode,
    )


def _text(family: int, raw: bytes) -> str:
    if family == INET6 and not raw.startswith(MAPPED):
        return socket.inet_ntop(INET6, raw)
    return socket.inet_ntop(INET, raw[:4] if family == INET else raw[12:])


def _from_proc() -> list[Socket]:
    """The same of TCP and UDP for a kernel without sock_diag."""
    out: list[Socket] = []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as f:
                rows = [line.split() for line in f][1:]
        except OSError:
            continue
        for row in rows:
            (near, near_port), (far, far_port) = (_hex(row[1]), _hex(row[2]))
            if row[3] not in ("06", "03"):
                out.append(Socket(name[:3], near, near_port, far, far_port, 0, int(row[9])))
    return out


def _hex(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    words = [int(host[i : i + 8], 16) for i in range(0, len(host), 8)]
    raw = b"".join(w.to_bytes(4, "little" if struct.pack("=H", 1) == b"\1\0" else "big") for w in words)
    return _text(INET if len(raw) == 4 else INET6, raw), int(port, 16)


def _served(talk: Talk, entry: MountEntry, local: Container[int], lost: Container[str]) -> bool:
    """Whether a network mount's server is reached over one of these links, or from an address that goes."""
    return any(address in lost or talk.way_to(address) in local for address in servers(entry))


def servers(entry: MountEntry) -> list[str]:
    """The addresses that stand in its source and in its options, the server's and its own."""
    texts = [m[1] or m[2] for m in _IN_SOURCE.finditer(entry.source)]
    for option in entry.super_options:
        for key in _ADDRESS_OPTIONS:
            if option.startswith(key):
                texts.append(option[len(key) :].strip(b"[]"))
    out: list[str] = []
    for raw in texts:
        text = raw.decode("ascii", "replace")
        family = INET6 if ":" in text else INET
        try:
            out.append(socket.inet_ntop(family, socket.inet_pton(family, text)))
        except (OSError, ValueError):
            continue
    return list(dict.fromkeys(out))
