"""Output that is on its way to a client: bounded, numbered, and kept for a client that comes back."""

from __future__ import annotations

from typing import Final

from pact.session.frames import CREDIT

KEPT_MAX: Final = CREDIT
#: What a client of a terminal sees again when it comes: its prompt, at least.
CONTEXT: Final = 4 << 10


class Output:
    """The newest bytes of one stream. ``start`` is the number of the first byte kept, ``end`` of the one to come,
    ``sent`` of the first that the present client has not got.

    ``lossy``: while there is no client the oldest bytes give way (a terminal goes on); else the writer has to wait.
    """

    def __init__(self, lossy: bool) -> None:
        self.lossy = lossy
        self.start = self.end = self.sent = self.seen = self.lost = 0
        self._kept = bytearray()

    def put(self, data: bytes) -> None:
        self._kept += data
        self.end += len(data)

    def room(self, attached: bool) -> int:
        """How many bytes may be read from the writer now."""
        if self.lossy and not attached:
            return KEPT_MAX
        return KEPT_MAX - (self.end - self.sent)

    def trim(self) -> None:
        """Forget the oldest beyond the bound. What a client was sent and has given no credit for is kept, too: it may
        come back for it."""
        over = len(self._kept) - (KEPT_MAX + CREDIT)
        if over > 0:
            del self._kept[:over]
            self.start += over
            if self.sent < self.start:
                self.lost += self.start - self.sent
                self.sent = self.start

    def next(self, most: int) -> bytes:
        """The next bytes for the client; ``b""`` if there are none."""
        at = self.sent - self.start
        data = bytes(memoryview(self._kept)[at : at + most]) if self.sent < self.end else b""
        self.sent += len(data)
        return data

    @property
    def waiting(self) -> int:
        return self.end - self.sent

    def attach(self, come: int | None) -> tuple[int, int]:
        """A client comes; ``come``: the bytes that it has got already, if it knows. Returns the number of the first
        byte that it gets, and how many are lost to it."""
        before, lost, self.lost = self.sent, self.lost, 0
        if come is not None and come <= self.end:
            self.sent = max(come, self.start)
            return self.sent, self.sent - come
        at = min(before, self.end - CONTEXT) if self.lossy else before
        self.sent = max(at, self.start)
        return self.sent, lost
