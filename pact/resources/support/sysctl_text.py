"""How sysctls are written: names in both forms of sysctl.d(5), and different texts of equal values. Pure.

A name whose first separator is a slash is a path: dots in it are literal. Otherwise dots separate, and a slash stands
for a dot within a component. pact stores the second form.
"""

from __future__ import annotations

import re
from typing import Final

WILD: Final = re.compile(r"[*?\[]")
DECIMAL: Final = re.compile(r"-?[0-9]{1,40}\Z")
#: Numbers as the kernel reads them: 0x is hexadecimal, a leading 0 octal.
HEXADECIMAL: Final = re.compile(r"-?0[xX][0-9a-fA-F]{1,32}\Z")
OCTAL: Final = re.compile(r"-?0[0-7]{1,40}\Z")
RANGES: Final = re.compile(r"[0-9]{1,9}(?:-[0-9]{1,9})?(?:,[0-9]{1,9}(?:-[0-9]{1,9})?)*,?\Z")
SWAP: Final = str.maketrans("./", "/.")


def dotted(name: str) -> str:
    """The dotted form of a name or pattern."""
    first = next((c for c in name if c in "./"), "")
    return name.translate(SWAP) if first == "/" else name


def why_not_literal(name: str) -> str:
    """Why a name that the kernel does not have literally declares nothing, although sysctl.d(5) accepts it; else
    ``""``."""
    if name != name.strip():
        return "there is white space at an end of the name"
    if name.startswith("-"):
        return "a '-' in front (go on if it fails) is not known here: leave it out"
    if WILD.search(name):
        return "a pattern declares nothing: name each, or take what is there with pact adopt"
    return ""


def fold(value: str) -> str:
    """The value with white space folded."""
    return " ".join(value.split())


def number(text: str) -> int | None:
    """The number that the kernel reads in this text; ``None`` if it is none."""
    if HEXADECIMAL.match(text):
        return int(text, 16)
    if OCTAL.match(text):
        return int(text, 8)
    return int(text) if DECIMAL.match(text) and text.lstrip("-") == str(abs(int(text))) else None


def same(declared: str, actual: str) -> bool:
    """Whether the kernel may show ``actual`` for ``declared``: numbers in any base, sets in any order, and of a vector
    the first numbers if no more are declared."""
    declared, actual = fold(declared), fold(actual)
    if declared == actual:
        return True
    wanted, have = declared.split(), actual.split()
    if wanted and len(wanted) <= len(have):
        pairs = list(zip(map(number, wanted), map(shown, have), strict=False))
        if all(w is not None and w == h for w, h in pairs) and all(shown(h) is not None for h in have):
            return True
    one_each = len(wanted) == len(have) == 1 and not (declared.isdigit() and actual.isdigit())
    return one_each and is_set(declared) and is_set(actual) and members(declared) == members(actual)


def shown(text: str) -> int | None:
    """The number in a text that the kernel shows: it writes decimal, whatever was written."""
    if DECIMAL.match(text):
        return int(text)
    return int(text, 16) if HEXADECIMAL.match(text) else None


def is_set(text: str) -> bool:
    """Whether it is a list of numbers and ranges, as ``net.ipv4.ip_local_reserved_ports`` takes them."""
    return RANGES.match(text) is not None


def members(text: str) -> list[tuple[int, int]]:
    """A set's ranges (first, last), sorted and merged."""
    ranges = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first:
            ranges.append((int(first), int(last or first)))
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(high, out[-1][1])
        else:
            out.append((low, high))
    return out
