"""The machine's package database, read once for all who ask, and never while a package manager is at work.

While one is at work, the last reading before it counts: what is under way is no drift yet.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from pact.model import Unreadable
from pact.resources.support import locks
from pact.resources.support.package_dpkg import Dpkg
from pact.resources.support.package_reading import ReadError, Reading
from pact.resources.support.package_rpm import Rpm

NO_DATABASE: Final = "package: neither dpkg nor rpm has a database here"
RELEASE_BYTES: Final = 64 << 10
FREE_S: Final = 0.05
Manager = Dpkg | Rpm
Signature = tuple[str, tuple[int, ...]]


class Database:
    """``root``: where the databases are, ``""`` for the machine's own. ``settling``: somebody else says that a package
    manager is at work, or that its result is being read; the last reading then counts as current."""

    def __init__(self, root: str = "", rpm: str = "rpm") -> None:
        self.root = root
        self.dpkg, self.rpm = Dpkg(root), Rpm(root, rpm)
        self.settling = False
        self._reading = threading.Lock()
        self._last: tuple[Signature, Reading | Unreadable] | None = None

    def manager(self) -> Manager | None:
        """The one whose database exists; of both, the one that the distribution uses."""
        dpkg, rpm = self.dpkg.signature() is not None, self.rpm.signature() is not None
        if dpkg and rpm:
            return self.dpkg if self._is_debian() else self.rpm
        return self.dpkg if dpkg else self.rpm if rpm else None

    def _is_debian(self) -> bool:
        try:
            with open(f"{self.root}/etc/os-release", encoding="utf-8", errors="replace") as f:
                lines = f.read(RELEASE_BYTES).splitlines()
        except OSError:
            return True
        ids = [word for line in lines if line.startswith(("ID=", "ID_LIKE=")) for word in line.split("=", 1)[1].split()]
        return any(word.strip("\"'") in ("debian", "ubuntu") for word in ids)

    def _signed(self) -> tuple[Manager, Signature] | None:
        manager = self.manager()
        signature = manager.signature() if manager is not None else None
        return None if manager is None or signature is None else (manager, (manager.name, signature))

    def current(self) -> Reading | Unreadable | None:
        """The last reading, if nothing has changed since as far as is known; in microseconds."""
        last = self._last
        if last is None:
            return None
        if self.settling and isinstance(last[1], Reading):
            return last[1]
        signed = self._signed()
        return last[1] if signed is not None and signed[1] == last[0] else None

    def changed(self) -> bool:
        """Whether the database is not as it was read last."""
        signed, last = self._signed(), self._last
        return (signed and signed[1]) != (last and last[0])

    def now(self) -> Reading | Unreadable:
        """The database as it is, or as it was before a package manager began that is at work now."""
        with self._reading:
            signed = self._signed()
            if signed is None:
                self._last = None
                return Unreadable(NO_DATABASE)
            manager, signature = signed
            last = self._last
            if last is not None and last[0] == signature:
                return last[1]
            before = last[1] if last is not None and isinstance(last[1], Reading) else None
            if busy := at_work(manager):
                return before or Unreadable(f"package: {busy}")
            read: Reading | Unreadable
            try:
                read = manager.read()
            except ReadError as exc:
                read = Unreadable(f"package: {exc}"[:300])
            if busy := at_work(manager):  # it began meanwhile: this may be half of its work
                return before or Unreadable(f"package: {busy}")
            self._last = (signature, read)
            return read

    def free(self, seconds: float) -> str:
        """Wait until no package manager is at work. Returns who still is."""
        end = time.monotonic() + seconds
        while True:
            manager = self.manager()
            busy = at_work(manager) if manager is not None else ""
            if not busy or time.monotonic() >= end:
                return busy
            time.sleep(FREE_S)


def at_work(manager: Manager) -> str:
    """Who holds the package manager's lock, for people; ``""`` if nobody does."""
    return "; ".join(locks.holders(manager.locks)[:3])
