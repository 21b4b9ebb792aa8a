"""Whether a version that is declared now could be installed again later, as far as the package manager knows without
asking anybody else.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from pact.errors import RestoreError
from pact.resources.support.package_database import Database
from pact.resources.support.package_plans import Plans
from pact.resources.support.package_reading import Reading

#: Their status changes with what repositories offer.
PLACES: Final = (
    "/var/lib/apt/lists",
    "/var/cache/apt/archives",
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d",
    "/var/cache/dnf",
    "/etc/yum.repos.d",
    "/var/cache/zypp/solv",
    "/etc/zypp/repos.d",
)


class Offers:
    """One question for all installed packages, remembered until the database or the repositories' lists change."""

    def __init__(self, database: Database, plans: Plans) -> None:
        self._database, self._plans = database, plans
        self._lock = threading.Lock()
        self._asked: tuple[Reading, tuple[int, ...]] | None = None
        self._lacking: frozenset[str] = frozenset()

    def lacking(self, name: str, version: str, reading: Reading) -> str:
        """Why this installed version could not be had again; ``""`` if it could, or if nobody can say."""
        with self._lock:
            asked = (reading, self._signature())
            if self._asked is None or self._asked[0] is not reading or self._asked[1] != asked[1]:
                self._asked, self._lacking = asked, self._ask(reading)
            lacks = reading.plain(name) in self._lacking
        return f"no repository that is known here has version {version}" if lacks else ""

    def _ask(self, reading: Reading) -> frozenset[str]:
        """The names of packages whose installed version is offered by nobody."""
        try:
            found = self._plans.available(reading.versions, reading)
        except RestoreError:
            return frozenset()
        if not any(found.values()):  # no lists at all: nobody can say
            return frozenset()
        return frozenset(name for name, version in reading.versions.items() if version not in found.get(name, ()))

    def _signature(self) -> tuple[int, ...]:
        out = []
        for place in PLACES:
            try:
                out.append(os.stat(self._database.root + place).st_mtime_ns)
            except OSError:
                out.append(0)
        return tuple(out)
