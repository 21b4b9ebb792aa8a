"""Long lists of resources in few words: names that differ in a number are folded like node sets. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

DIGITS: Final = re.compile(r"\d+")
RUNS_MAX: Final = 4  # how many numbers of a name are tried
NUMBER_DIGITS_MAX: Final = 15
FOLD_FROM: Final = 2


def folded(names: Iterable[str]) -> list[str]:
    """``plugin-[1-220].conf`` for names that differ in one number; other names as they are, each in the place of its
    first."""
    rest = list(dict.fromkeys(names))
    places = {name: i for i, name in enumerate(rest)}
    out: list[tuple[int, str]] = []
    for run in range(1, RUNS_MAX + 1):
        groups: dict[tuple[str, str, int], list[str]] = {}
        single: list[str] = []
        for name in rest:
            key = _around(name, run)
            if key is None:
                single.append(name)
            else:
                groups.setdefault(key, []).append(name)
        for (head, tail, width), members in groups.items():
            if len(members) < FOLD_FROM:
                single += members
                continue
            numbers = sorted(int(m[len(head) : len(m) - len(tail)]) for m in members)
            out.append((min(places[m] for m in members), f"{head}[{_ranges(numbers, width)}]{tail}"))
        rest = single
    out += [(places[name], name) for name in rest]
    return [text for _, text in sorted(out)]


def _around(name: str, run: int) -> tuple[str, str, int] | None:
    """The text before and after the ``run``-th number from the end, and the number's width if it is padded."""
    found = list(DIGITS.finditer(name))
    if len(found) < run or len(found[-run][0]) > NUMBER_DIGITS_MAX:
        return None
    match = found[-run]
    padded = len(match[0]) if match[0].startswith("0") and len(match[0]) > 1 else 0
    return name[: match.start()], name[match.end() :], padded


def _ranges(numbers: Sequence[int], width: int) -> str:
    parts: list[tuple[int, int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ",".join(f"{a:0{width}}" if a == b else f"{a:0{width}}-{b:0{width}}" for a, b in parts)


def few(names: Iterable[str], most: int) -> str:
    """The first few folded names; the rest as a number."""
    listed = folded(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
