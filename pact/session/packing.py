"""A session's frames as they travel through the tree: several in one message, credit beside them as a number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from pact.session import frames
from pact.session.frames import HEAD, PAYLOAD_MAX

DATA: Final = frozenset((b"I", b"O", b"E"))
CONTROL_MAX: Final = 2 << 10  # of the frames beside data in one message


class Piece(NamedTuple):
    """Frames without credits. ``size``: bytes of data in them; ``give``: the credits' sum; ``last``: ``X`` is among
    them."""

    body: bytes
    size: int
    give: int
    last: bool


class Packer:
    """Makes messages of what comes from a session's socket. Raises FrameError for what is no frame."""

    def __init__(self) -> None:
        self._reader = frames.Reader()

    def feed(self, data: bytes) -> Iterator[Piece]:
        out: list[bytes] = []
        run: list[bytes] = []  # payloads of one kind, which become one frame
        kind, size, long, other, give = b"", 0, 0, 0, 0

        def end_run() -> None:
            nonlocal long
            if run:
                out.append(HEAD.pack(kind, long))
                out.extend(run)
                run.clear()
                long = 0

        for this, payload in self._reader.feed(data):
            if this == b"C":
                give += frames.credit_of(payload)
                continue
            if this in DATA:
                if this != kind or long + len(payload) > PAYLOAD_MAX:
                    end_run()
                    other += HEAD.size
                kind = this
                if size and (size + len(payload) > PAYLOAD_MAX or other > CONTROL_MAX):
                    end_run()
                    yield Piece(b"".join(out), size, give, False)
                    out, size, other, give = [], 0, HEAD.size, 0
                run.append(payload)
                long += len(payload)
                size += len(payload)
                continue
            end_run()
            kind = b""
            if this == b"N":
                payload = payload[:CONTROL_MAX]
            if other and other + len(payload) > CONTROL_MAX:
                yield Piece(b"".join(out), size, give, False)
                out, size, other, give = [], 0, 0, 0
            out.append(HEAD.pack(this, len(payload)) + payload)
            other += HEAD.size + len(payload)
            if this == b"X":
                yield Piece(b"".join(out), size, give, True)
                return
        end_run()
        if out or give:
            yield Piece(b"".join(out), size, give, False)


def unpacked(body: bytes, give: int) -> bytes:
    """The bytes for a session's socket."""
    return frames.credit(give) + bytes(body) if give else bytes(body)
