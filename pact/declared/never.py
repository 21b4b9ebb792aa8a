"""Finds patterns that can match no resource: their authors believe that they do something."""

from __future__ import annotations

from collections.abc import Callable

from pact.resources import KINDS, known
from pact.resources.support.patterns import ANYTHING


def why_never(pattern: str) -> str:
    """Why this pattern of ``ignore`` can match no resource; empty if it may match one. In doubt, it may."""
    wild = ANYTHING.search(pattern)
    kind, colon, name = pattern.partition(":")
    if not colon or (wild is not None and wild.start() < len(kind)):
        head = pattern[: wild.start()] if wild is not None else pattern
        return (
            ""
            if wild is not None and any(f"{k}:".startswith(head) for k in known())
            else ("it does not begin with a kind, as file:/etc/mtab does")
        )
    if kind not in known():
        return f"kind {kind!r} is not known; known: {', '.join(known())}"
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
    return f"the name of a {kind} is {KINDS[kind].spelling}"


def _why_no_name(canonical: Callable[[str], str], name: str) -> str:
    try:
        written = canonical(name)
    except ValueError as exc:
        return str(exc)
    return "" if written == name else f"the name is written {written!r}"
