"""The files of packages: whose programs and libraries are in use, and which package is the running kernel."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Collection, Sequence
from typing import Final

from pact.resources.support.package_database import Database
from pact.resources.support.package_dpkg import Dpkg
from pact.resources.support.package_reading import ReadError, Reading
from pact.resources.support.package_rpm import Rpm

#: Paths of one package that are looked at: kernels and firmware have more, and are not run.
PATHS_MAX: Final = 20_000
#: Nothing below these is a program or a library.
DULL: Final = (b"/usr/share/doc/", b"/usr/share/man/", b"/usr/share/locale/", b"/usr/share/info/", b"/usr/src/")


class Files:
    """Lists of paths by package. rpm is asked once for a whole plan: what it said is kept until it is used."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._kept: tuple[Reading | None, dict[str, list[bytes]]] = (None, {})

    def ahead(self, names: Collection[str], reading: Reading) -> None:
        """These will be asked for soon, one by one."""
        if reading.manager == "rpm" and len(names) > 1:
            found = self._asked_rpm(names, reading)
            with self._lock:
                self._kept = (reading, found)

    def of(self, name: str, reading: Reading, *, again: bool = False) -> list[bytes]:
        """The paths of a package, directories included; none if the package manager's list cannot be read. ``again``:
        it will be asked for once more."""
        manager = self._database.manager()
        if isinstance(manager, Dpkg):
            try:
                return manager.files(reading.plain(name), reading.native)[:PATHS_MAX]
            except ReadError:
                return []
        with self._lock:
            kept = self._kept[1] if self._kept[0] is reading else {}
            known = kept.get(name) if again else kept.pop(name, None)
        return known if known is not None else self._asked_rpm([name], reading).get(name, [])

    def _asked_rpm(self, names: Collection[str], reading: Reading) -> dict[str, list[bytes]]:
        manager = self._database.manager()
        try:
            found = manager.files([reading.plain(n) for n in names], reading.native) if isinstance(manager, Rpm) else {}
        except ReadError:
            return {}
        return {n: found.get(reading.plain(n), [])[:PATHS_MAX] for n in names}

    def used(self, name: str, reading: Reading) -> list[bytes]:
        """The real paths of its programs and libraries: regular files that can be executed, or are shared objects."""
        root, places = os.fsencode(self._database.root), dict[bytes, bytes]()
        out = []
        for path in self.of(name, reading):
            if path.startswith(DULL):
                continue
            directory, leaf = os.path.split(root + path)
            if directory not in places:
                places[directory] = os.path.realpath(directory)  # /lib is a link to /usr/lib
            real = os.path.join(places[directory], leaf)
            try:
                mode = os.lstat(real).st_mode
            except OSError:
                continue
            if stat.S_ISREG(mode) and (mode & 0o111 or b".so" in leaf):
                out.append(real)
        return out


def is_running_kernel(paths: Sequence[bytes], release: str) -> bool:
    """Whether these are the files of the kernel with this release."""
    own = os.fsencode(release)
    places = (b"/boot/vmlinuz-" + own, b"/lib/modules/" + own, b"/usr/lib/modules/" + own)
    return any(path in places for path in paths)
