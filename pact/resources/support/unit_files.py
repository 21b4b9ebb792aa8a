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
#: What an administrator writes, and units that are asked for by their whole name.
OWN: Final = PLACES[0]
WHOLE: Final = (".timer", ".socket", ".path", ".target", ".mount", ".automount", ".slice", ".swap")
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
        if path.startswith(f"{OWN}/") and (unit := _concerned(path)):
            return _notify(f"service:{unit} daemon-reload")
        services = sorted(readers.get(path, ()))
        if not 0 < len(services) <= READERS_MAX:
            return ""
        return _notify(*(f"service:{s} restart" for s in services))

    return propose


def _notify(*told: str) -> str:
    """As it stands in TOML; the names of units can have backslashes."""
    return "notify = [" + ", ".join('"' + t.replace("\\", "\\\\") + '"' for t in told) + "]"


def own_file(name: str) -> str:
    """Where an administrator's own file of this unit would lie."""
    return f"{OWN}/{name}" + ("" if name.endswith((SUFFIX, *WHOLE)) else SUFFIX)


def _concerned(path: str) -> str:
    """A service or other unit that can be named for a unit file or a drop-in; ``""`` for another file. systemd reads
    all its unit files again, whichever is named: of a template and of units that are no services it is the service or
    the instance of that name."""
    place, _, leaf = path.rpartition("/")
    unit = os.path.basename(place).removesuffix(".d") if leaf.endswith(".conf") and place.endswith(".d") else leaf
    if not unit.endswith((SUFFIX, *WHOLE)):
        return ""
    stem, _, suffix = unit.rpartition(".")
    stem += "any" if stem.endswith("@") else ""
    return stem if f".{suffix}" in (SUFFIX, *WHOLE[4:]) else f"{stem}.{suffix}"


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
