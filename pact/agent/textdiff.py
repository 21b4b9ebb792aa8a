"""A unified diff of two texts within a bounded time: the author of a text controls how hard the comparison is.

Equal beginnings and ends are cut off first. A rest that takes longer than ``TEXT_DIFF_S`` to compare is shown as all of
its lines removed and all others added, which is a diff, too.  # S7
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, Final

from pact.limits import TEXT_DIFF_S

CONTEXT: Final = 3
#: How many pairs of equal lines one search may visit: about 50 ms.
PAIRS_MAX: Final = 500_000

Codes = Sequence[tuple[str, int, int, int, int]]


class _TooLongError(Exception):
    pass


class _Matcher(SequenceMatcher[str]):
    """Gives up when its time is over: difflib searches many times, each for a while."""

    ends_s = 0.0

    def find_longest_match(self, *args: Any, **kwargs: Any) -> Any:
        if time.monotonic() > self.ends_s:
            raise _TooLongError
        return super().find_longest_match(*args, **kwargs)


def unified(before: str, after: str, name: str, match_s: float = TEXT_DIFF_S) -> str:
    """The diff; empty if the texts are equal. Lines end at newlines only."""
    one, two = _lines(before), _lines(after)
    out = []
    for group in _grouped(_opcodes(one, two, match_s)):
        first, last = group[0], group[-1]
        out.append(f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@\n")
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                out += [" " + line for line in one[i1:i2]]
                continue
            out += ["-" + line for line in one[i1:i2]]
            out += ["+" + line for line in two[j1:j2]]
    whole = [line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in out]
    return "".join([f"--- declared {name}\n", f"+++ actual {name}\n", *whole]) if whole else ""


def _lines(text: str) -> list[str]:
    *whole, rest = text.split("\n")
    return [line + "\n" for line in whole] + ([rest] if rest else [])


def _opcodes(one: list[str], two: list[str], match_s: float) -> Codes:
    """Opcodes as in difflib, for the whole texts."""
    shorter = min(len(one), len(two))
    head = 0
    while head < shorter and one[head] == two[head]:
        head += 1
    tail = 0
    while tail < shorter - head and one[-1 - tail] == two[-1 - tail]:
        tail += 1
    a, b = one[head : len(one) - tail], two[head : len(two) - tail]
    codes: list[tuple[str, int, int, int, int]] = [("equal", 0, head, 0, head)] if head else []
    codes += [(tag, i1 + head, i2 + head, j1 + head, j2 + head) for tag, i1, i2, j1, j2 in _matched(a, b, match_s)]
    if tail:
        codes.append(("equal", len(one) - tail, len(one), len(two) - tail, len(two)))
    return codes


def _matched(a: list[str], b: list[str], match_s: float) -> Codes:
    counts = Counter(b)
    if sum(counts[line] for line in a) <= PAIRS_MAX:
        matcher = _Matcher(None, a, b)
        matcher.ends_s = time.monotonic() + match_s
        try:
            return matcher.get_opcodes()
        except _TooLongError:
            pass
    return [("replace", 0, len(a), 0, len(b))]


def _grouped(codes: Codes) -> Iterator[Codes]:
    """Changes with a few equal lines around them; changes that are near each other form one group."""
    group: list[tuple[str, int, int, int, int]] = []
    for at, (tag, i1, i2, j1, j2) in enumerate(codes):
        if tag != "equal":
            group.append((tag, i1, i2, j1, j2))
            continue
        if group:
            cut = 0 if i2 - i1 <= 2 * CONTEXT and at < len(codes) - 1 else max(0, i2 - i1 - CONTEXT)
            group.append((tag, i1, i2 - cut, j1, j2 - cut))
            if not cut and at < len(codes) - 1:
                continue
            yield group
            group = []
        if at < len(codes) - 1:
            skip = max(0, i2 - i1 - CONTEXT)
            group = [(tag, i1 + skip, i2, j1 + skip, j2)]
    if group and any(code[0] != "equal" for code in group):
        yield group


def _range(start: int, stop: int) -> str:
    count = stop - start
    first = start + 1 if count else start
    return f"{first}" if count == 1 else f"{first},{count}"
