"""Path patterns of ``adopt``: ``**`` matches any depth, ``*`` and ``?`` within one component."""

from __future__ import annotations

import re
from typing import Final

WILD: Final = re.compile(rb"[*?\[]")


def compile_pattern(pattern: bytes) -> re.Pattern[bytes]:
    """A regular expression for a path pattern. ``/etc/**`` matches everything below /etc."""
    out, at = bytearray(), 0
    while at < len(pattern):
        if pattern.startswith(b"**", at):
            out += b".*"
            at += 2
            continue
        char = pattern[at : at + 1]
        if char == b"*":
            out += b"[^/]*"
        elif char == b"?":
            out += b"[^/]"
        elif char == b"[":
            end = pattern.find(b"]", at + 1)
            if end < 0:
                out += rb"\["
            else:
                inner = pattern[at + 1 : end].replace(b"\\", rb"\\")
                out += b"[" + (b"^" + inner[1:] if inner[:1] == b"!" else inner) + b"]"
                at = end
        else:
            out += re.escape(char)
        at += 1
    return re.compile(bytes(out) + rb"\Z", re.DOTALL)
