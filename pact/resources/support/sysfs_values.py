"""Values of sysfs as text: what is chosen among choices in brackets, and which texts mean the same. Pure."""

from __future__ import annotations

import re
from typing import Final

from pact.resources.support.sysctl_text import fold, number, same

#: ``always [madvise] never``: one of the words is in brackets.
CHOICE: Final = re.compile(r"\[([^\[\]\s]+)\]")
SPELLED: Final = {"Y": "1", "N": "0", "y": "1", "n": "0", "on": "1", "off": "0"}
MASK: Final = re.compile(r"[0-9a-fA-F]{1,8}(?:,[0-9a-fA-F]{8})+\Z")
HEX: Final = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,256}\Z")

#: The file beside a value that lists its choices.
LISTED: Final = {
    "scaling_governor": "scaling_available_governors",
    "energy_performance_preference": "energy_performance_available_preferences",
    "current_clocksource": "available_clocksource",
    "current_governor": "available_governors",
    "rng_current": "rng_available",
}


def value_of(text: str) -> str:
    """What a file says, without the end of its line: of choices in brackets the one that is chosen."""
    text = text.strip()
    return text if choices(text) is None else CHOICE.findall(text)[0]


def choices(text: str) -> list[str] | None:
    """The choices of a file that shows which of them is taken; ``None`` if it does not."""
    words = text.split()
    taken = [w for w in words if CHOICE.fullmatch(w)]
    if len(taken) != 1 or any("[" in w or "]" in w for w in words if w is not taken[0]):
        return None
    return [w.strip("[]") for w in words]


def equal(declared: str, actual: str) -> bool:
    """Whether the kernel may show ``actual`` where ``declared`` was written: numbers in any base, sets in any order,
    ``Y`` for 1, masks of CPUs with any number of zeros in front."""
    if same(declared, actual):
        return True
    declared, actual = fold(declared), fold(actual)
    if SPELLED.get(declared, declared) == SPELLED.get(actual, actual):
        return True
    if "," in declared and not MASK.match(declared):
        have, want = actual.split(","), declared.split(",")  # an array of a module's parameter
        return len(have) == len(want) > 1 and all(map(_same_part, want, have))
    return bool(MASK.match(actual) and HEX.match(declared.replace(",", ""))) and _mask(declared) == _mask(actual)


def is_numbers(text: str) -> bool:
    """Whether it is a number, several, or a mask."""
    words = text.replace(",", " ").split()
    return bool(words) and all(number(word) is not None or HEX.match(word) for word in words)


def _same_part(declared: str, actual: str) -> bool:
    return SPELLED.get(declared, declared) == SPELLED.get(actual, actual) or same(declared, actual)


def _mask(text: str) -> int:
    return int(text.replace(",", ""), 16)


def shown(words: list[str]) -> str:
    """For people: the choices, not too many."""
    more = f" and {len(words) - 20} more" if len(words) > 20 else ""
    return ", ".join(words[:20]) + more
