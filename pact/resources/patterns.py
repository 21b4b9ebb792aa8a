"""Path patterns of ``adopt``: ``**`` matches any depth, ``*`` and ``?`` within one component.

And of ``[drift] ignore``, where all of them stand for anything at all: which of those nobody can have meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

WILD: Final = re.compile(rb"[*?\[]")
ANYTHING: Final = re.compile(r"\[!?\]?[^\]]*\]|[*?]+")  # as fnmatch reads them
WRITTEN: Final = {
    "file": "an absolute path, without '//', '/./', '/../' and a slash at its end",
    "sysctl": "dotted: net.ipv4.ip_forward", "module": "letters, digits and '_'",
}  # fmt: skip


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
            end = pattern.find(b"]", first + 1)  # one that comes first is one of the characters, as in a shell
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
    """A regular expression for what stands in brackets. Nothing in it has another meaning there, and a range that goes
    down (``9-0``) holds nothing: no pattern is one that cannot be compiled."""
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


def why_never(pattern: str) -> str:
    """Why this pattern of ``ignore`` can match no resource; empty if it may match one. Where it is not plain from the
    pattern alone, it may.
    """
    from pact.core.settings import DIMENSION_OF
    from pact.resources import KINDS

    wild = ANYTHING.search(pattern)
    kind, colon, name = pattern.partition(":")
    if not colon or (wild is not None and wild.start() < len(kind)):
        head = pattern[: wild.start()] if wild is not None else pattern
        return "" if wild is not None and any(f"{k}:".startswith(head) for k in DIMENSION_OF) else (
            "it does not begin with a kind, as file:/etc/mtab does")  # fmt: skip
    if kind not in DIMENSION_OF:
        return f"kind {kind!r} is not known; known: {', '.join(DIMENSION_OF)}"
    if kind not in KINDS:
        return ""  # another version may have it
    canonical = KINDS[kind].canonical
    if wild is None:
        return _why_no_name(canonical, name)
    if "%" in name:  # a wildcard may stand for a part of an escape
        return ""
    wants = ANYTHING.sub("x", name)
    able = [wants, "/" + wants] if ANYTHING.match(name) else [wants]
    if not all(_why_no_name(canonical, each) for each in able):
        return ""
    return f"the name of a {kind} is {WRITTEN.get(kind, WRITTEN['file'])}"


def _why_no_name(canonical: Callable[[str], str], name: str) -> str:
    try:
        written = canonical(name)
    except ValueError as exc:
        return str(exc)
    return "" if written == name else f"the name is written {written!r}"
