"""Who is connected to the sockets of a daemon: by TCP and by UNIX sockets, as the kernel's tables tell.

A connection that the daemon itself has made to somebody is not one of its clients. A client on another machine is named
by its address.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

TABLE_MAX: Final = 64 << 20
ESTABLISHED, LISTEN = "01", "0A"
CLIENTS_MAX: Final = 1000
#: linux/sock_diag.h and linux/unix_diag.h
SOCK_DIAG: Final = 4
BY_FAMILY: Final = 20
DUMP: Final = 0x301
DONE, ERROR = 3, 2
SHOW: Final = 1 | 4  # names and peers
NAME, PEER = 0, 2
ANSWER_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Tcp:
    local: str
    remote: str
    state: str
    inode: int


def clients(own: Collection[int], there: Collection[int]) -> list[tuple[int, str]]:
    """The processes that are connected to sockets of ``own``, with the connection; pid 0 for one elsewhere. What is
    ``there`` already (in the same cgroup) is none."""
    mine = {inode for pid in own for inode in sockets_of(pid)}
    if not mine:
        return []
    wanted: dict[int, str] = {}  # the client's socket -> the connection
    out: list[tuple[int, str]] = []
    rows = [row for pid in sorted(own)[:1] for row in tcp_of(pid)]
    ports = {row.local.rpartition(":")[2] for row in rows if row.state == LISTEN and row.inode in mine}
    by_ends = {(row.local, row.remote): row.inode for row in rows}
    for row in rows:
        if row.state == ESTABLISHED and row.inode in mine and row.local.rpartition(":")[2] in ports:
            peer = by_ends.get((row.remote, row.local), 0)
            if peer:
                wanted[peer] = f"{row.remote} -> {row.local}"
            else:
                out.append((0, f"{row.remote} -> {row.local}"))
    named, peers = unix_sockets()
    for inode, peer in peers.items():
        if peer in mine and inode not in mine and peer in named:
            wanted[inode] = named[peer]
    if wanted:
        out += [(pid, wanted[inode]) for pid, inode in _owners(set(wanted)) if pid not in own and pid not in there]
    return out[:CLIENTS_MAX]


def sockets_of(pid: int) -> Iterator[int]:
    """The inodes of its sockets."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            link = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if link.startswith("socket:["):
            yield int(link[8:-1])


def _owners(inodes: set[int]) -> Iterator[tuple[int, int]]:
    for pid in (int(p) for p in os.listdir("/proc") if p.isdigit()):
        for inode in sockets_of(pid):
            if inode in inodes:
                yield pid, inode


def tcp_of(pid: int) -> list[Tcp]:
    """The TCP sockets of its network namespace."""
    out = []
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{table}") as f:
                text = f.read(TABLE_MAX)
        except OSError:
            continue
        for line in text.splitlines()[1:]:
            fields = line.split()
            if len(fields) >= 10 and fields[9].isdigit():
                out.append(Tcp(_address(fields[1]), _address(fields[2]), fields[3], int(fields[9])))
    return out


def _address(text: str) -> str:
    """``0100007F:1F90`` as people write it. An IPv4 address in IPv6 is an IPv4 address."""
    host, _, port = text.partition(":")
    raw = b"".join(bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8))
    address = ipaddress.ip_address(raw)
    mapped = getattr(address, "ipv4_mapped", None)
    return f"{mapped or address}:{int(port, 16)}"


def unix_sockets() -> tuple[dict[int, str], dict[int, int]]:
    """The names of UNIX sockets, and their peers, by inode. Empty if the kernel does not tell."""
    named: dict[int, str] = {}
    peers: dict[int, int] = {}
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, SOCK_DIAG) as link:
            link.settimeout(ANSWER_S)
            ask = struct.pack("=BBHIIIQ", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, SHOW, 0xFFFFFFFFFFFFFFFF)
            link.send(struct.pack("=IHHII", 16 + len(ask), BY_FAMILY, DUMP, 1, 0) + ask)
            while _take(link.recv(1 << 18), named, peers):
                pass
    except OSError:
        pass
    return named, peers


def _take(data: bytes, named: dict[int, str], peers: dict[int, int]) -> bool:
    """Take in one datagram. Returns False at the end."""
    at = 0
    while at + 16 <= len(data):
        size, kind = struct.unpack_from("=IH", data, at)
        if kind in (DONE, ERROR) or size < 16:
            return False
        (inode,) = struct.unpack_from("=I", data, at + 20)
        attr, end = at + 32, min(at + size, len(data))
        while attr + 4 <= end:
            width, what = struct.unpack_from("=HH", data, attr)
            if width < 4:
                break
            value = data[attr + 4 : attr + width]
            if what == NAME:
                named[inode] = value.rstrip(b"\0").replace(b"\0", b"@").decode("utf-8", "backslashreplace")
            elif what == PEER and len(value) == 4:
                peers[inode] = struct.unpack("=I", value)[0]
            attr += width + -width % 4
        at += size + -size % 4
    return bool(data)
