"""Durations as people write them: ``90``, ``90s``, ``15m``, ``4h``, ``2d``; fractions are allowed."""

from __future__ import annotations

import re
from typing import Final

from pact.values import NS_PER_S

UNITS_NS: Final = {"": NS_PER_S, "ms": NS_PER_S // 1000, "s": NS_PER_S, "m": 60 * NS_PER_S, "h": 3600 * NS_PER_S}
UNITS_NS["d"] = 24 * UNITS_NS["h"]
DIGITS_MAX: Final = 20  # more of a whole number are too many, and more of a fraction make no nanosecond
PATTERN: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)\s*\Z")
DURATION_MAX_NS: Final = 3650 * 86400 * NS_PER_S


def parse_duration(text: str | int | float) -> int:
    """Nanoseconds. Raises ValueError for a text that is no duration, is negative, or is longer than ten years."""
    match = PATTERN.match(str(text)) if not isinstance(text, bool) else None
    if match is None and str(text).strip().startswith("-") and PATTERN.match(str(text).strip()[1:]):
        raise ValueError(f"{text!r}: a duration is not negative")
    if match is None:
        raise ValueError(f"{text!r} is no duration; write for example 90, 90s, 15m, 4h or 2d")
    whole, _, part = match[1].partition(".")
    whole, part = whole.lstrip("0"), part[:DIGITS_MAX]
    ns: int = int(f"0{whole[:DIGITS_MAX]}{part}") * UNITS_NS[match[2]] // 10 ** len(part)
    if len(whole) > DIGITS_MAX or ns > DURATION_MAX_NS:
        raise ValueError(f"{text!r} is more than ten years")
    return ns


def format_duration(ns: int) -> str:
    """The largest two units: ``3m 20s``, ``4h``, ``0.8s``."""
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    seconds = ns / NS_PER_S
    if seconds < 10 and ns % NS_PER_S:
        return f"{sign}{seconds:.1f}s"
    whole = round(seconds)
    parts: list[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        if whole >= size and len(parts) < 2:
            parts.append(f"{whole // size}{unit}")
            whole %= size
        elif parts:
            break
    return sign + (" ".join(parts) or "0s")
