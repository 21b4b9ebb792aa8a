"""A session's frames on their way into the tree: several in one message, and, while the other side is to be waited for,
the more of them the longer that takes.

What costs no credit of the session (``frames``) is bounded here. Of window sizes only the newest counts; a signal that
waits already is not sent twice, as for a process; credits are added up, and go with what else is said, or when they are
many. A message costs at least ``TERMINAL_MIN`` of the stream's own credit (``pact.core.tree.lanes``), whatever it says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from pact.core.tree.lanes import CREDIT, TERMINAL_MIN, WINDOW_MAX, cost
from pact.session import frames
from pact.session.frames import CREDIT_STEP, HEAD, PAYLOAD_MAX

DATA: Final = frozenset((b"I", b"O", b"E"))
CONTROL_MAX: Final = 2 << 10  # of the frames beside data in one message
SMALL: Final = 4 << 10  # what is added to what waits, instead of being kept beside it
SIGNALS_MAX: Final = 16
LINES_MAX: Final = 16  # lines for the person that wait


class Piece(NamedTuple):
    """One message. ``size``: bytes of data in it; ``last``: ``X`` is among its frames."""

    body: bytes
    size: int
    last: bool


class Outgoing:
    """What waits to be said. ``credit``: for the session; ``step``: how much of it goes by itself."""

    def __init__(self) -> None:
        self._reader = frames.Reader()
        self._kept: deque[list[bytes | bytearray]] = deque()  # types and payloads; b"": what another one has replaced
        self._size: list[bytes | bytearray] | None = None  # the newest window size, if it waits
        self._signals: set[bytes] = set()
        self._lines = 0
        self._over = False
        self.credit = 0
        self.step = CREDIT_STEP

    @property
    def waits(self) -> bool:
        """Whether there is anything but credit."""
        return bool(self._kept)

    def feed(self, data: bytes) -> None:
        """What comes from a session's socket. Raises FrameError for what is no frame."""
        for kind, payload in self._reader.feed(data):
            self.put(kind, payload)

    def put(self, kind: bytes, payload: bytes) -> None:
        """One frame. Nothing comes after the end."""
        if self._over:
            return
        if kind in DATA:
            self._put_data(kind, payload)
            return
        if kind == b"C":
            self.credit += frames.credit_of(payload)
            return
        if kind == b"S":
            if payload in self._signals or len(self._signals) >= SIGNALS_MAX:
                return
            self._signals.add(payload)
        elif kind == b"N":
            if self._lines >= LINES_MAX:
                return
            self._lines += 1
            payload = payload[:CONTROL_MAX]
        entry: list[bytes | bytearray] = [kind, payload]
        if kind == b"W":
            if self._size is not None:
                self._size[0] = b""
            self._size = entry
        self._over = kind == b"X"
        self._kept.append(entry)

    def _put_data(self, kind: bytes, payload: bytes) -> None:
        last = self._kept[-1] if self._kept else None
        if last is None or last[0] != kind or len(last[1]) >= SMALL:
            self._kept.append([kind, payload])
            return
        if not isinstance(last[1], bytearray):
            last[1] = bytearray(last[1])
        last[1] += payload

    def take(self, room: int) -> Piece | None:
        """The next message, if there is one and it may cost so much."""
        most = min(room, PAYLOAD_MAX) if room >= TERMINAL_MIN else 0
        if not self._kept and (self.credit < self.step or not most):
            return None
        if not most and not (self._over and len(self._kept) == 1):  # the end is free
            return None
        parts, size, other = list[bytes | bytearray](), 0, 0
        if self.credit:
            parts.append(frames.credit(self.credit))
            other, self.credit = len(parts[0]), 0
        last = False
        while self._kept and not last:
            entry = self._kept[0]
            kind, payload = entry
            if kind in DATA:
                count = min(len(payload), most - size)
                if (not count and payload) or other > CONTROL_MAX:
                    break
                parts += (HEAD.pack(bytes(kind), count), payload[:count])
                size, other = size + count, other + HEAD.size
                if count < len(payload):
                    entry[1] = payload[count:]
                    break
            elif kind:
                if size + other and other + len(payload) > CONTROL_MAX:
                    break
                parts += (HEAD.pack(bytes(kind), len(payload)), payload)
                other += HEAD.size + len(payload)
                last = kind == b"X"
                self._gone(entry)
            self._kept.popleft()
        return Piece(b"".join(parts), size, last) if parts else None

    def _gone(self, entry: list[bytes | bytearray]) -> None:
        if entry is self._size:
            self._size = None
        elif entry[0] == b"S":
            self._signals.discard(bytes(entry[1]))
        elif entry[0] == b"N":
            self._lines -= 1


class Exchange:
    """One end of a terminal's stream: what it may say, and what it owes the other end for what it has heard."""

    def __init__(self, say: Callable[[bytes, int, int, bool], bytes]) -> None:
        """``say`` sends a message: its body, bytes of data, credit, and whether it is the last. It returns the body as
        it travels: what a message costs, both ends and all relays find out from that."""
        self.out = Outgoing()
        self._say = say
        self._room = CREDIT
        self._owed = self._more = 0  # how much of it is for nothing that was heard
        self._step = CREDIT // 2
        self.over = False

    def pass_on(self, *, reads: bool = True) -> None:
        """Say what may be said. ``reads``: what was heard has been taken by whom it was for."""
        while not self.over and (piece := self.out.take(self._room)) is not None:
            self.over = piece.last
            self._send(piece.body, piece.size, last=piece.last, reads=reads)
        if reads and not self.over and self._owed >= self._step:
            self._send(b"")

    def _send(self, body: bytes, size: int = 0, *, last: bool = False, reads: bool = True) -> None:
        give, read = 0, 0
        if reads:
            give, read = self._owed, self._owed - self._more
            self._owed = self._more = 0
        sent = self._say(body, size, give, last)
        self._room -= cost({"size": size, "bulk": False, "end": last}, sent, read)

    def begin(self) -> None:
        """Say only that there is a stream."""
        self._send(b"")

    def heard(self, cost: int, give: int) -> None:
        """A message was heard that has cost so much of the other end's credit."""
        self._owed += cost
        self._room = min(self._room + give, WINDOW_MAX)

    def widen(self) -> None:
        """Much comes: let it come as fast as it can."""
        more = WINDOW_MAX - CREDIT
        self._owed += more
        self._more += more
        self._step = self.out.step = WINDOW_MAX // 4
        self.out.credit += more
