"""A session's output as an asciicast (version 2), written while it comes. Input is never in it.

It is two files of at most half the limit each: when the second is full, the first is dropped, so that the newest output
is kept and a session that prints for a week costs no more than one that prints for a minute.
"""

from __future__ import annotations

import codecs
import json
import os
import time
from collections.abc import Mapping
from typing import Any, Final

VERSION: Final = 2
TITLE_MAX: Final = 200


class Cast:
    """Appends to ``path``. A disk that takes no more ends the cast, and never the session."""

    def __init__(self, path: str, limit: int) -> None:
        self.path, self._half = path, max(limit // 2, 4096)
        self.dropped = 0  # files of half the limit that are gone
        self.why_ended = ""
        self._began = time.monotonic()
        self._size = 0
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        self._fd = -1
        self._open()

    def _open(self) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd, self._size = os.open(self.path, flags, 0o600), 0
        except OSError as exc:
            self._fd, self.why_ended = -1, os.strerror(exc.errno or 0)

    def output(self, data: bytes, stream: str = "o") -> None:
        """What the terminal was given. ``stream`` keeps the pieces of different streams' characters apart."""
        if self._fd < 0:
            return
        decoder = self._decoders.get(stream)
        if decoder is None:
            decoder = self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data)
        if text:
            self._write("o", text)

    def resized(self, rows: int, columns: int) -> None:
        if self._fd >= 0:
            self._write("r", f"{columns}x{rows}")

    def _write(self, code: str, text: str) -> None:
        line = f'[{time.monotonic() - self._began:.6f}, "{code}", {json.dumps(text)}]\n'.encode()
        try:
            if self._size + len(line) > self._half and self._size:
                os.close(self._fd)
                self.dropped += os.path.exists(f"{self.path}.1")
                os.replace(self.path, f"{self.path}.1")
                self._open()
            if self._fd >= 0:
                os.write(self._fd, line)
                self._size += len(line)
        except OSError as exc:
            self.why_ended = os.strerror(exc.errno or 0)
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def header(rows: int, columns: int, began_s: int, title: str, env: Mapping[str, str]) -> bytes:
    head: dict[str, Any] = {"version": VERSION, "width": columns, "height": rows, "timestamp": began_s}
    head |= {"title": title[:TITLE_MAX], "env": dict(env)}
    return json.dumps(head).encode() + b"\n"


def whole(path: str, head: bytes, limit: int) -> bytes:
    """The cast of a session that has ended, from its files: at most ``limit`` bytes and the header; ``b""`` without any
    output. A line that a crash has cut is left out."""
    parts = []
    for name in (f"{path}.1", path):
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        with os.fdopen(fd, "rb") as f:
            data = f.read(limit + 1)
            parts.append(data[: data.rfind(b"\n") + 1])
    events = b"".join(parts)
    if not events:
        return b""
    return head + events[-limit:].partition(b"\n")[2] if len(events) > limit else head + events


def forget(path: str) -> None:
    for name in (f"{path}.1", path):
        try:
            os.unlink(name)
        except OSError:
            pass
