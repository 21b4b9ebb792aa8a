"""Patterns that can match no resource: who writes one believes that it does something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pact.core.settings import DIMENSION_OF
from pact.resources import KINDS
from pact.resources.support.patterns import ANYTHING

WRITTEN: Final = {
    "file": "an absolute path, without '//', '/./', '/../' and a slash at its end",
    "sysctl": "dotted: net.ipv4.ip_forward",
    "module": "letters, digits and '_'",
}


def why_never(pattern: str) -> str:
    """Why this pattern of ``ignore`` can match no resource; empty if it may match one. Where it is not plain from the
    pattern alone, it may.
    """
    wild = ANYTHING.search(pattern)
    kind, colon, name = pattern.partition(":")
    if not colon or (wild is not None and wild.start() < len(kind)):
        head = pattern[: wild.start()] if wild is not None else pattern
        return (
            ""
            if wild is not None and any(f"{k}:".startswith(head) for k in (*DIMENSION_OF, *KINDS))
            else ("it does not begin with a kind, as file:/etc/mtab does")
        )
    if kind not in DIMENSION_OF and kind not in KINDS:
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
    written = WRITTEN.get(kind, WRITTEN["file"] if kind in DIMENSION_OF else "written otherwise")
    return f"the name of a {kind} is {written}"


def _why_no_name(canonical: Callable[[str], str], name: str) -> str:
    try:
        written = canonical(name)
    except ValueError as exc:
        return str(exc)
    return "" if written == name else f"the name is written {written!r}"
