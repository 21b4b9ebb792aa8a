"""The groups of the process at the other end of a socket, and the numbers of groups."""

from __future__ import annotations

import errno
import grp
import socket
import struct
from collections.abc import Sequence
from typing import Final

GROUPS_MAX: Final = 65536
SO_PEERGROUPS: Final = 59


def gids_of(names: Sequence[str]) -> set[int]:
    out = set()
    for name in names:
        try:
            out.add(grp.getgrnam(name).gr_gid)
        except KeyError:
            continue  # a group that does not exist has no members
    return out


def groups_of(sock: socket.socket) -> set[int]:
    """All groups of the peer. Python's getsockopt takes at most 1024 bytes, 256 groups; libc takes them all."""
    _, _, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError as exc:
        if exc.errno != errno.ERANGE:
            return {gid}
        raw = _many_peer_groups(sock)
    return {gid, *struct.unpack(f"{len(raw) // 4}I", raw)}


def _many_peer_groups(sock: socket.socket) -> bytes:
    import ctypes

    buffer, length = ctypes.create_string_buffer(GROUPS_MAX * 4), ctypes.c_uint32(GROUPS_MAX * 4)
    libc = ctypes.CDLL(None)
    failed = libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(length))
    return b"" if failed else buffer.raw[: length.value]
