"""How much may be on its way on a stream, and on one link for all commands' output: what relays (``streams``), nodes
and people's programs count in the same way."""

from __future__ import annotations

from collections import deque
from typing import Final

from pact.core.tree.wire import Head

#: Bytes that either side may be sent before it has given any credit: of a terminal, and of a command's output.
CREDIT: Final = 256 << 10
BULK_CREDIT: Final = 4 << 10
#: The most that may be on its way in one direction of a stream, however much credit its receiver gives.
WINDOW_MAX: Final = 1 << 20
BULK_WINDOW_MAX: Final = 64 << 10
PIECE_MAX: Final = 64 << 10  # bytes of data in one message
CONTROL_MAX: Final = 4 << 10  # what a message may have beside data: window sizes, signals, the end
HOP_WINDOW: Final = 256 << 10  # bytes of commands' output that the next relay has not read yet: more waits here
TOOK_STEP: Final = 64 << 10
WEIGHT_MIN: Final = 256  # what a message of a command's output counts at least, whatever it says
TERMINAL_MIN: Final = 1 << 10  # the same of a terminal's stream: few enough for what the socket of a child holds
SEAL_BYTES: Final = 16  # a message that says nothing has no more than a seal


def weight(head: Head) -> int:
    """How much of its stream's credit a message uses up. Many small messages cost more than their bytes; of the last
    one only those count."""
    return int(head["size"]) if head["end"] else max(head["size"], _least(head))


def cost(head: Head, body: bytes | memoryview, read: int) -> int:
    """The same, but a message that says nothing and gives credit is free. ``read``: how much of what was on its way to
    its sender it says to be read. So there are never more such messages than others."""
    said = head["size"] or len(body) > SEAL_BYTES or read < _least(head)
    return weight(head) if said else 0


def _least(head: Head) -> int:
    return WEIGHT_MIN if head["bulk"] else TERMINAL_MIN


class Lane:
    """Output of commands on its way over one link: as much as the other side has not read may be on its way, and the
    rest waits here, while terminals pass. What waits is bounded by the credit of its streams."""

    __slots__ = ("held", "read", "sent", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[Head, bytes]] = deque()
        self.held = 0  # how much waits, counted as in ``sent``
        self.sent = 0  # bytes that the other side has not said to have read
        self.read = 0  # bytes read from the other side that it was not told of

    def put(self, head: Head, body: bytes) -> None:
        self.waiting.append((head, body))
        self.held += max(len(body), WEIGHT_MIN)

    def clear(self) -> None:
        """What waits is for nobody any more."""
        self.waiting.clear()
        self.held = 0

    def next(self) -> tuple[Head, bytes] | None:
        if not self.waiting or self.sent >= HOP_WINDOW:
            return None
        head, body = self.waiting.popleft()
        size = max(len(body), WEIGHT_MIN)
        self.sent += size
        self.held -= size
        return head, body

    def took(self, size: int) -> None:
        self.sent = max(0, self.sent - size)

    def has_read(self, body: bytes) -> int:
        """A message was read: how much to say now that was read; 0: nothing yet."""
        self.read += max(len(body), WEIGHT_MIN)
        if self.read < TOOK_STEP:
            return 0
        size, self.read = self.read, 0
        return size
