"""One client of the control socket: its requests as they come, and its answers as it reads them."""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from pact.core.node.events import Caller
from pact.errors import PactError
from pact.limits import REQUEST_ADMIN_MAX, REQUEST_MAX

OUTPUT_LOW: Final = 64 << 10
OUTPUT_MAX: Final = 8 << 20
READ_CHUNK: Final = 256 << 10
#: In a client's output: the end of a line of which more comes. What follows waits behind it.
GOES_ON: Final = b""


class Client:
    """One connection. Its ``caller`` does not change, but the caller's role follows the groups of the process."""

    remote = False  # True for a call of the cluster, which has no socket
    open = True
    gathered: Any = None  # for the answer to its present request

    def __init__(self, sock: socket.socket, caller: Caller) -> None:
        self.sock = sock
        self.caller = caller
        self.fd = sock.fileno()
        self.tokens: set[int] = set()  # requests whose answers come later
        self.watching = False  # it is told of every record after number ``told``
        self.told = -1
        self.behind = False  # records after number ``told`` wait in the journal: a long line is on its way
        self.alive = False  # it wants signs of life
        self.gone = False  # it has hung up: nobody reads an answer
        self.said_s = time.monotonic()  # when something was last sent to it
        self.closing = False
        self.half_closed = False  # it sends no more requests, but still reads
        self.events = 0  # the events for which epoll watches
        self.lines: deque[bytes] = deque()  # the next request, if all of it is there
        self._input = bytearray()  # what came after it
        self._searched = 0  # so much of that has no end of a line
        self._output: deque[bytes | memoryview] = deque()
        self._queued = 0
        self._when_taken: Callable[[], None] | None = None

    @property
    def admin(self) -> bool:
        return self.caller.actor.role == "admin"

    def send(self, value: Any) -> None:
        line = value if isinstance(value, bytes) else orjson.dumps(value)
        self._output.append(line + b"\n")
        self._queued += len(line) + 1
        self.said_s = time.monotonic()
        if self._queued > OUTPUT_MAX and len(self._output) > 1:  # the peer does not read
            self.closing = True
            self._output.clear()
            self._queued = 0

    def hand(self, value: Any, sock: socket.socket) -> None:
        """Answer at once, with a descriptor beside the line. Raises OSError if the peer does not take it."""
        line = orjson.dumps(value) + b"\n"
        if self._output or socket.send_fds(self.sock, [line], [sock.fileno()]) != len(line):
            raise OSError(errno.EAGAIN, "the client does not read its answers")
        self.said_s = time.monotonic()

    def take(self, written: Sequence[bytes]) -> None:
        """Take a piece of an answer that was written elsewhere."""
        self._output.extend(written)
        self._queued += sum(map(len, written))
        self.said_s = time.monotonic()

    def send_part(self, part: bytes, *, last: bool) -> None:
        """Send a part of a long line. Other lines wait until its last part has come."""
        if not part and not last:
            return
        if not last and GOES_ON not in self._output:
            self._output.append(GOES_ON)
        here = self._output.index(GOES_ON) if GOES_ON in self._output else len(self._output)
        if last and here < len(self._output):
            del self._output[here]
        self._output.insert(here, part + b"\n" if last else part)
        self._queued += len(part) + last
        self.said_s = time.monotonic()

    def send_sign(self) -> None:
        """A sign of life; in the middle of a line, a space, which means nothing there."""
        if self.wants_write():
            self.send_part(b" ", last=False)
        else:
            self.send(b'{"working":true}')

    def break_off(self) -> None:
        """The rest of a line that was begun cannot be sent: hang up, so that nobody takes it for the whole."""
        self.closing = True
        self._output.clear()
        self._queued = 0

    def when_taken(self, more: Callable[[], None]) -> None:
        """Call this after the peer has read most of the output."""
        self._when_taken = more

    def wants_write(self) -> bool:
        """Whether something of its answers was not read yet, or a line has begun of which more comes."""
        return bool(self._output)

    @property
    def amid_a_line(self) -> bool:
        """Whether a line has begun of which more comes: what is sent now waits in memory until its end."""
        return GOES_ON in self._output

    @property
    def may_write(self) -> bool:
        return bool(self._output) and self._output[0] != GOES_ON

    @property
    def wants_a_sign(self) -> bool:
        """Whether it waits for an answer and there is nothing for it to read."""
        return self.alive and bool(self.tokens) and not self.may_write

    @property
    def silent(self) -> bool:
        """Whether it waits for nothing, and no request of it is open."""
        return not (self.tokens or self.lines or self.watching or self.behind or self.wants_write())

    @property
    def ready_for_more(self) -> bool:
        """Whether its next request may be carried out: answers come in the order of the requests, one at a time."""
        return not (self.closing or self.tokens or self.wants_write())

    def read(self) -> bool:
        """Take in what has come. Returns False if the peer is gone. Raises PactError for a request that is too long.

        The end of the input sets ``half_closed``: earlier requests are still answered.
        """
        try:
            chunk = self.sock.recv(READ_CHUNK if self.admin else REQUEST_MAX)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not chunk:
            self.half_closed = True
        self._input += chunk
        if not self.lines:
            self._find_line()
        return True

    def next_request(self) -> bytes:
        """Take the next request out. Raises PactError if what follows it is too long."""
        line = self.lines.popleft()
        self._find_line()
        return line

    def _find_line(self) -> None:
        """Cut off one line, whatever else has come: a hundred thousand empty ones cost no more than one.  # S8"""
        while not self.lines:
            if not self._searched:
                blank = len(self._input) - len(self._input.lstrip())
                del self._input[: self._input.rfind(b"\n", 0, blank) + 1]
            end = self._input.find(b"\n", self._searched)
            self._searched = len(self._input)
            if (end if end >= 0 else len(self._input)) > (REQUEST_ADMIN_MAX if self.admin else REQUEST_MAX):
                raise PactError("the request is too long")
            if end < 0:
                return
            line = bytes(self._input[:end])
            del self._input[: end + 1]
            self._searched = 0
            if line.strip():
                self.lines.append(line)

    def write(self) -> bool:
        """Send what the peer takes. Returns False if the peer is gone, or if everything was sent to a closing
        client."""
        try:
            while self.may_write:
                sent = self.sock.send(self._output[0])
                self._queued -= sent
                if sent == len(self._output[0]):
                    self._output.popleft()
                else:
                    self._output[0] = memoryview(self._output[0])[sent:]
        except BlockingIOError:
            self._ask_for_more()
            return True
        except OSError:  # the peer is gone
            return False
        self._ask_for_more()
        return not self._finished() or self.wants_write()

    def _ask_for_more(self) -> None:
        if self._when_taken is not None and self._queued < OUTPUT_LOW:
            more, self._when_taken = self._when_taken, None
            more()

    def _finished(self) -> bool:
        owed = self.tokens or self.watching or self.behind or self.lines
        return self.closing or (self.half_closed and not owed)
