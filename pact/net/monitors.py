"""What happened to a socket's connections. pyzmq's own module for it imports asyncio, which costs each command and each
agent more than everything else of pyzmq."""

from __future__ import annotations

import struct
from typing import Final

import zmq

_EVENT: Final = struct.Struct("=hi")


def next_event(monitor: zmq.Socket[bytes], flags: int = 0) -> tuple[int, int]:
    """The number of the next event (``zmq.EVENT_...``), and its value: a descriptor, or an error's number. Raises
    zmq.Again if there is none, with ``zmq.NOBLOCK``."""
    said, _ = monitor.recv_multipart(flags)
    number, value = _EVENT.unpack(said)
    return number, value
