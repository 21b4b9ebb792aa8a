"""What travels on a session's socket, and over the tree: a byte for the type, four for the length, and the payload.

``I`` input, ``O`` output (of the terminal, or standard output), ``E`` standard error (without a terminal only), ``W``
window size (JSON ``[rows, columns, x pixels, y pixels]``), ``S`` signal (its name), ``C`` credit (decimal: how many
more bytes of ``O`` and ``E``, or of ``I``, the other side may send), ``D`` end of input, ``X`` the end (JSON
``{"exit": n}``, ``{"signal": name}`` or ``{"why": text}``), ``N`` a line for the person, ``A`` attached.

Each side may send ``CREDIT`` bytes before it has got any credit. Whoever connects sends ``A`` first, ``{"by": text}``
(and what ``attach`` takes); the session answers with ``A``: its id, who opened it, when, ``lost`` bytes of output
that nobody will see, and ``at``, the number of the first byte of output that follows.

Frames come from processes of root and from the tree's members, and are checked all the same: a frame of another type,
or longer than ``PAYLOAD_MAX``, ends the connection.
"""

from __future__ import annotations

import json
import signal
import struct
from collections.abc import Iterator
from typing import Any, Final

from pact.core import strict

HEAD: Final = struct.Struct(">cI")
PAYLOAD_MAX: Final = 64 << 10
#: Bytes of output, or of input, that may be on their way without anybody having asked for more.
CREDIT: Final = 256 << 10
#: A credit is given when this much was consumed.
CREDIT_STEP: Final = 64 << 10
TYPES: Final = frozenset(b"IOEWSCDXNA")
SIZE_MAX: Final = 4096
PIXELS_MAX: Final = 65_535
SIZE_DEFAULT: Final = (24, 80, 0, 0)
#: Signals that a client may send: what a terminal's keys and its end mean.
SIGNALS: Final = {
    name: getattr(signal, f"SIG{name}")
    for name in ("HUP", "INT", "QUIT", "TERM", "KILL", "USR1", "USR2", "TSTP", "CONT", "WINCH", "STOP")
}

Size = tuple[int, int, int, int]


class FrameError(ValueError):
    """What came is no frame."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame. ``payload`` has at most ``PAYLOAD_MAX`` bytes."""
    assert len(payload) <= PAYLOAD_MAX and kind[0] in TYPES
    return HEAD.pack(kind, len(payload)) + payload


def said(kind: bytes, value: Any) -> bytes:
    """A frame whose payload is JSON."""
    return frame(kind, json.dumps(value, separators=(",", ":")).encode())


def credit(count: int) -> bytes:
    return frame(b"C", b"%d" % count)


class Reader:
    """Makes frames of bytes as they come. Keeps at most one incomplete frame."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The complete frames: types and payloads. Raises FrameError."""
        self._rest = data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while end - at >= HEAD.size:
            kind, length = HEAD.unpack_from(data, at)
            if kind[0] not in TYPES or length > PAYLOAD_MAX:
                raise FrameError(f"no frame: {kind!r} with {length} bytes")
            whole = at + HEAD.size + length
            if whole > end:
                break
            payload = data[at + HEAD.size : whole]
            at = whole
            yield kind, payload
        self._rest = data[at:]


def credit_of(payload: bytes) -> int:
    """Raises FrameError."""
    if not payload.isdigit() or len(payload) > 12:
        raise FrameError(f"no credit: {payload[:16]!r}")
    return int(payload)


def size_of(payload: bytes) -> Size:
    """A window size; what is absurd is brought into bounds. Raises FrameError."""
    try:
        given = strict.loads(payload, PAYLOAD_MAX)
    except ValueError:
        raise FrameError("no window size") from None
    if not isinstance(given, list) or not 2 <= len(given) <= 4 or not all(type(n) is int for n in given):
        raise FrameError("no window size")
    return clamped(*given)


def clamped(rows: int, columns: int, x: int = 0, y: int = 0) -> Size:
    """A terminal of no rows is one of unknown size; one of ten thousand columns has the most that programs bear."""
    rows, columns = rows if rows > 0 else SIZE_DEFAULT[0], columns if columns > 0 else SIZE_DEFAULT[1]
    return min(rows, SIZE_MAX), min(columns, SIZE_MAX), min(max(x, 0), PIXELS_MAX), min(max(y, 0), PIXELS_MAX)


def object_of(payload: bytes) -> dict[str, Any]:
    """JSON that must be an object. Raises FrameError."""
    try:
        return strict.loads_object(payload, PAYLOAD_MAX)
    except ValueError:
        raise FrameError("no JSON object") from None


def ended(payload: bytes) -> tuple[int, str]:
    """The exit code that an ``X`` means to a shell, and what to say of it (``""``: nothing)."""
    end = object_of(payload)
    if type(end.get("exit")) is int:
        return end["exit"] & 0xFF, ""
    name = end.get("signal")
    if isinstance(name, str):
        number = getattr(signal, f"SIG{name}", None)
        return 128 + int(number) if isinstance(number, signal.Signals) else 255, ""
    why = end.get("why")
    return 255, why if isinstance(why, str) else "the session has ended"
