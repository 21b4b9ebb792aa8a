"""The naive twin of ``sockets.pyx``: the same results with pyzmq alone, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import zmq

Frame = bytes | memoryview | None
#: ZeroMQ's flags as plain numbers: an enumeration costs as much as a call into the library.
NOW: Final = int(zmq.NOBLOCK)
NOW_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
EVENTS: Final = int(zmq.EVENTS)
READABLE: Final = int(zmq.POLLIN)
READ_BYTES: Final = 256 << 10


class Port:
    """See ``sockets.Port``."""

    def __init__(self, socket: zmq.Socket[bytes], shared_from: int) -> None:
        self.socket = socket
        self._shared_from = shared_from

    def _taken(self, frame: zmq.Frame) -> Frame:
        if frame.more:
            while self.socket.get(zmq.RCVMORE):
                self.socket.recv(NOW)
            return None
        return frame.buffer.toreadonly() if len(frame) >= self._shared_from else frame.bytes

    def receive(self, most: int) -> tuple[list[Frame], bool]:
        out: list[Frame] = []
        room = READ_BYTES
        while len(out) < most and room > 0:
            try:
                frame = self.socket.recv(NOW, copy=False)
            except zmq.Again:
                return out, True
            room -= len(frame)
            out.append(self._taken(frame))
        return out, False

    def receive_from(self, most: int) -> tuple[list[tuple[bytes, str, int, Frame]], bool]:
        out: list[tuple[bytes, str, int, Frame]] = []
        room = READ_BYTES
        while len(out) < most and room > 0:
            try:
                rid = self.socket.recv(NOW)
                frame = self.socket.recv(NOW, copy=False)
            except zmq.Again:
                return out, True
            try:
                sender = str(frame.get("User-Id"))
            except (zmq.ZMQError, KeyError):
                sender = ""
            try:
                fd = int(frame.get("__fd"))
            except (zmq.ZMQError, ValueError, TypeError, KeyError):
                fd = -1
            room -= len(frame)
            out.append((rid, sender, fd, self._taken(frame)))
        return out, False

    def send(self, frame: bytes) -> bool:
        try:
            self.socket.send(frame, NOW)
        except zmq.Again:
            return False
        return True

    def send_to(self, rids: Iterable[bytes], frame: bytes) -> list[bytes]:
        lost = []
        if self.socket.closed:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        shared = zmq.Frame(frame) if len(frame) >= self._shared_from else frame
        for rid in rids:
            try:
                self.socket.send(rid, NOW_MORE)
                self.socket.send(shared, NOW, copy=shared is frame)
            except zmq.ZMQError:
                lost.append(rid)
        return lost

    def send_each(self, rids: Sequence[bytes], frames: list[bytes]) -> list[bytes]:
        lost = []
        if self.socket.closed:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        for rid, frame in zip(rids, frames, strict=True):
            try:
                self.socket.send(rid, NOW_MORE)
                self.socket.send(frame, NOW)
            except zmq.ZMQError:
                lost.append(rid)
        return lost

    def readable(self) -> bool:
        return bool(int(self.socket.get(EVENTS)) & READABLE)
