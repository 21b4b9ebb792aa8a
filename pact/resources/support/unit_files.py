"""Which files services read, as far as their unit files say: for proposals of ``notify`` when files are adopted.

Only unit files are read, those of systemd's usual places, and nothing is asked of systemd.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Final

#: The first place that has a unit's file decides.
PLACES: Final = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
SUFFIX: Final = ".service"
FILES_MAX: Final = 5000
BYTES_MAX: Final = 64 << 10
#: More services than this read it: no one of them is proposed.
READERS_MAX: Final = 2
_READS: Final = re.compile(r"^(?:EnvironmentFile|Exec[A-Za-z]+|Condition\w*PathExists)\s*=\s*(.*)$", re.MULTILINE)
_PATH: Final = re.compile(r"(?:^|[\s\"'=-])(/etc/[^\s\"';|&$%]+)")


def proposals(places: Sequence[str] = PLACES) -> Callable[[str], str]:
    """A function from a file's path to what it would be good to notify when it is restored; ``""`` for nothing."""
    units, readers = dict[str, str](), dict[str, set[str]]()
    for place in places:
        for unit in _names(place):
            if unit in units:
                continue
            units[unit] = f"{place}/{unit}"
            for path in read_by(_text(units[unit])):
                readers.setdefault(path, set()).add(unit.removesuffix(SUFFIX))

    def propose(path: str) -> str:
        place, _, name = path.rpartition("/")
        unit = os.path.basename(place).removesuffix(".d") if name.endswith(".conf") else name
        if path.startswith("/etc/systemd/system/") and unit.endswith(SUFFIX):
            return f'notify = ["service:{unit.removesuffix(SUFFIX)} daemon-reload"]'
        services = sorted(readers.get(path, ()))
        if not 0 < len(services) <= READERS_MAX:
            return ""
        return "notify = [" + ", ".join(f'"service:{s} restart"' for s in services) + "]"

    return propose


def read_by(text: str) -> set[str]:
    """The files below /etc that a unit names in its environment and arguments."""
    return {path for line in _READS.findall(text) for path in _PATH.findall(line)}


def _names(place: str) -> list[str]:
    try:
        names = sorted(os.listdir(place))[:FILES_MAX]
    except OSError:
        return []
    return [n for n in names if n.endswith(SUFFIX) and "@" not in n]


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read(BYTES_MAX).replace("\\\n", " ")
    except OSError:
        return ""
