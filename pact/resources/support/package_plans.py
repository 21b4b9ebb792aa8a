"""Which package manager carries a plan out."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pact.errors import RestoreError
from pact.model import Attrs
from pact.resources.support.package_apt import Apt
from pact.resources.support.package_database import Database
from pact.resources.support.package_dnf import Dnf
from pact.resources.support.package_reading import Judged, Move, Reading
from pact.resources.support.package_zypper import Zypper

NOTHING: Final = "neither dnf nor zypper is here to carry it out"


class Plans:
    """``tools``: programs by name, where they are not the usual ones."""

    def __init__(self, database: Database, tools: Mapping[str, str]) -> None:
        root = database.root
        self._apt = Apt(root, tools.get("apt-get", "apt-get"), tools.get("apt-cache", "apt-cache"))
        self._dnf, self._zypper = Dnf(root, tools.get("dnf", "dnf")), Zypper(root, tools.get("zypper", "zypper"))

    def of(self, reading: Reading) -> Apt | Dnf | Zypper | None:
        """The one that is installed."""
        if reading.manager == "dpkg":
            return self._apt
        for tool in (self._dnf, self._zypper):
            if shutil.which(tool.program) is not None:
                return tool
        return None

    def judge(self, moves: Sequence[Move], reading: Reading) -> Judged:
        """Why the plan would not be carried out. Touches nothing."""
        tool = self.of(reading)
        return Judged(whole=NOTHING) if tool is None else tool.judge(moves, reading.native)

    def carry_out(self, moves: Sequence[Move], reading: Reading) -> None:
        """Raises RestoreError."""
        tool = self.of(reading)
        if tool is None:
            raise RestoreError(NOTHING)
        tool.carry_out(moves, reading.native)

    def available(self, names: Iterable[str], reading: Reading) -> dict[str, list[str]]:
        """The versions that repositories have. Raises RestoreError if that cannot be said."""
        tool = self.of(reading)
        if tool is None:
            raise RestoreError(NOTHING)
        return tool.available(names)


def move_of(name: str, target: Attrs | None, actual: Attrs | None) -> Move:
    return Move(
        name,
        None if target is None else target["version"],
        None if actual is None else actual["version"],
        "" if actual is None else actual.get("status", ""),
        target is not None and bool(target.get("native")),
    )
