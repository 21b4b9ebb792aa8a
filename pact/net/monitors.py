"""What happened to a socket's connections. pyzmq's own module for it imports asyncio, which costs each command and each
agent more than everything else of pyzmq."""

from __future__ import annotations

import struct
from typing import Final

import zmq

_EVENT: Final = struct.Struct("=hi")


def next_event(monitor: zmq.Socket[bytes]) -> int:
    """The number of the next event (``zmq.EVENT_...``)."""
    said, _ = monitor.recv_multipart()
    number: int = _EVENT.unpack(said)[0]
    return number
