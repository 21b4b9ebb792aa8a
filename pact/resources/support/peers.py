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
SHOW_NAMES, SHOW_FILES, SHOW_PEERS = 1, 2, 4
NAME, FILE, PEER = 0, 1, 2
MINOR_BITS: Final = 20  # of a device's number inside the kernel
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
        for inode, said in _told(SHOW_NAMES | SHOW_PEERS):
            if NAME in said:
                name = said[NAME].rstrip(b"\0").replace(b"\0", b"@")
                named[inode] = name.decode("utf-8", "backslashreplace")
            if len(said.get(PEER, b"")) == 4:
                peers[inode] = struct.unpack("=I", said[PEER])[0]
    except OSError:
        pass
    return named, peers


def bound_sockets() -> list[tuple[bytes, tuple[int, int]]]:
    """The UNIX sockets of this network namespace that are files: the name with which each was bound, and the device
    (major, minor) of the file system that has it. The name is its owner's: in a mount namespace of one's own it may be
    any. Raises OSError if the kernel does not tell."""
    out = []
    for _, said in _told(SHOW_NAMES | SHOW_FILES):
        if len(said.get(FILE, b"")) == 8 and NAME in said:
            (device,) = struct.unpack_from("=I", said[FILE], 4)
            out.append((said[NAME].rstrip(b"\0"), (device >> MINOR_BITS, device & (1 << MINOR_BITS) - 1)))
    return out


def _told(show: int) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Each UNIX socket's inode, and what the kernel tells of it. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, SOCK_DIAG) as link:
        link.settimeout(ANSWER_S)
        ask = struct.pack("=BBHIIIQ", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, show, 0xFFFFFFFFFFFFFFFF)
        link.send(struct.pack("=IHHII", 16 + len(ask), BY_FAMILY, DUMP, 1, 0) + ask)
        more = True
        while more:
            found: list[tuple[int, dict[int, bytes]]] = []
            more = _take(link.recv(1 << 18), found)
            yield from found


def _take(data: bytes, found: list[tuple[int, dict[int, bytes]]]) -> bool:
    """Take in one datagram. Returns False at the end. Raises OSError if the kernel does not tell."""
    at = 0
    while at + 16 <= len(data):
        size, kind = struct.unpack_from("=IH", data, at)
        if kind == ERROR:
            raise OSError("the kernel does not tell of UNIX sockets")
        if kind == DONE or size < 16:
            return False
        (inode,) = struct.unpack_from("=I", data, at + 20)
        attr, end, said = at + 32, min(at + size, len(data)), dict[int, bytes]()
        while attr + 4 <= end:
            width, what = struct.unpack_from("=HH", data, attr)
            if width < 4:
                break
            said[what] = data[attr + 4 : attr + width]
            attr += width + -width % 4
        found.append((inode, said))
        at += size + -size % 4
    return bool(data)
