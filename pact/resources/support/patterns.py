"""Path patterns of ``adopt``: ``**`` matches any depth, ``*`` and ``?`` match within one component.

And patterns of ``[drift] ignore``, in which all wildcards match any text: which of them nobody can have meant.
"""

from __future__ import annotations

import re
from typing import Final

WILD: Final = re.compile(rb"[*?\[]")
ANYTHING: Final = re.compile(r"\[!?\]?[^\]]*\]|[*?]+")  # as fnmatch reads them


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
            first = at + 2 if pattern[at + 1 : at + 2] == b"!" else at + 1
            end = pattern.find(b"]", first + 1)  # a bracket that comes first is one of the characters, as in a shell
            if end < 0:
                out += rb"\["
            else:
                out += _one_of(pattern[first:end], first > at + 1)
                at = end
        else:
            out += re.escape(char)
        at += 1
    return re.compile(bytes(out) + rb"\Z", re.DOTALL)


def _one_of(inner: bytes, negated: bool) -> bytes:
    """A regular expression for the text in brackets. No character in it has another meaning there, and a descending
    range (``9-0``) is empty: every pattern can be compiled."""
    out, at = bytearray(), 0
    while at < len(inner):
        low = high = inner[at : at + 1]
        if inner[at + 1 : at + 2] == b"-" and at + 2 < len(inner):
            high = inner[at + 2 : at + 3]
            at += 2
        if low <= high:
            out += re.escape(low) + b"-" + re.escape(high)
        at += 1
    if not out:
        return b"[^/]" if negated else rb"(?!)"
    return rb"(?!/)[" + (b"^" if negated else b"") + out + b"]"
