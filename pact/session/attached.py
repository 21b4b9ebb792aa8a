"""Who is attached to a session."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from typing import Final

from pact.session import frames
from pact.session.frames import CREDIT

ANSWERS_MAX: Final = 1 << 20
READS_S: Final = 5.0  # how long the end of a session waits for a client to read it


class Client:
    """Who is attached. ``may``: how many bytes of output may still be sent to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.reader = frames.Reader()
        self.by = ""
        self.may = CREDIT
        self.given = CREDIT  # bytes of input that it may still send
        self.consumed = 0
        self.out = bytearray()
        self.gone = False  # it takes nothing any more; what it has sent before still counts

    def send(self, data: bytes) -> None:
        self.out += data

    def flush(self) -> bool:
        """Send what is taken. Returns False if it reads nothing."""
        while self.out:
            try:
                sent = self.sock.send(self.out)
            except BlockingIOError:
                break
            except OSError:
                self.gone = True
                self.out.clear()
                break
            del self.out[:sent]
        return len(self.out) <= ANSWERS_MAX

    def has_read(self) -> bool:
        """Whether it has read everything that it was sent: one that is cut off before comes back for it. One that does
        not read for a while has it all the same: what the socket holds is its own."""
        until_s = time.monotonic() + READS_S
        while True:
            self.flush()
            if self.gone:
                return False
            left = struct.unpack("i", fcntl.ioctl(self.sock, termios.TIOCOUTQ, b"\0" * 4))[0]
            if not self.out and not left:
                return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            if time.monotonic() >= until_s:
                return True
            time.sleep(0.002)
