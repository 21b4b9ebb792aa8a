"""rpm's database: read whole by one ``rpm -qa``, whenever its file has changed.

No binding of librpm is loaded: none fits a Python of pact's own.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Final

from pact.errors import RestoreError
from pact.model import encode_name
from pact.resources.support.package_reading import PACKAGES_MAX, ReadError, Reading, is_version, require_name
from pact.resources.support.package_tool import run

QUERY_S: Final = 60.0
DIRECTORIES: Final = ("/usr/lib/sysimage/rpm", "/var/lib/rpm")
#: The files of one database: SQLite's, ndb's, Berkeley's.
FILES: Final = ("rpmdb.sqlite", "rpmdb.sqlite-wal", "Packages.db", "Packages")
LOCKS: Final = (*(f"{d}/.rpm.lock" for d in DIRECTORIES), "/run/zypp.pid")
FORMAT: Final = "%{NAME}\\t%{EPOCHNUM}\\t%{VERSION}\\t%{RELEASE}\\t%{ARCH}\\t%{INSTALLTIME}\\n"
LIST: Final = "[%{=NAME}\\t%{=ARCH}\\t%{FILENAMES}\\n]"
#: Keys to which rpm gives the form of packages.
KEYS: Final = "gpg-pubkey"
ARCHLESS: Final = frozenset({"noarch", "(none)"})


class Rpm:
    """The database below ``root`` (``""`` for the machine's own); ``rpm`` is the program."""

    name = "rpm"

    def __init__(self, root: str = "", rpm: str = "rpm") -> None:
        self.root, self.program = root, rpm
        self.locks = tuple(root + path for path in LOCKS)
        self.watched = tuple(root + d for d in DIRECTORIES)
        self.written = tuple(f"{root}{d}/{leaf}" for d in DIRECTORIES for leaf in FILES)

    def _directory(self) -> str | None:
        """The directory of the database, as seen below the root."""
        for directory in DIRECTORIES:
            if any(os.path.isfile(f"{self.root}{directory}/{leaf}") for leaf in FILES):
                return directory
        return None

    def signature(self) -> tuple[int, ...] | None:
        """Changes with the database; ``None`` if there is none."""
        directory = self._directory()
        if directory is None:
            return None
        out = list[int]()
        for leaf in FILES:
            try:
                st = os.stat(f"{self.root}{directory}/{leaf}")
            except OSError:
                continue
            if st.st_size:  # an empty log of SQLite comes and goes with each reader
                out += [st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns]
        return tuple(out)

    def _ask(self, *words: str) -> str:
        """What a query prints. Raises ReadError; also if rpm left out what is damaged: only its errors tell."""
        directory = self._directory()
        command = [self.program, *(["--root", self.root] if self.root else ())]
        command += ["--dbpath", directory] if directory is not None else []
        try:
            ended = run("rpm", [*command, *words], QUERY_S)
        except RestoreError as exc:
            raise ReadError(exc.message) from None
        if ended.code != 0 or ended.late or any(line.startswith("error:") for line in ended.err.splitlines()):
            raise ReadError(ended.why("rpm"))
        return ended.out

    def read(self) -> Reading:
        """Raises ReadError."""
        return parsed(self._ask("-qa", "--qf", FORMAT), os.uname().machine)

    def files(self, names: Collection[str], native: str) -> dict[str, list[bytes]]:
        """The paths of these packages, directories included. Raises ReadError."""
        out: dict[str, list[bytes]] = {name: [] for name in names}
        if not names:
            return out
        for line in self._ask("-q", "--qf", LIST, "--", *sorted(names)).splitlines():
            parts = line.split("\t", 2)
            if len(parts) == 3 and parts[2].startswith("/"):
                name, arch, path = parts
                for known in (name, f"{name}.{arch}"):
                    if known in out and (known != name or arch in (native, *ARCHLESS)):
                        out[known].append(os.fsencode(path))
        return out


def parsed(text: str, native: str) -> Reading:
    """The output of the query. Raises ReadError for the first line that is not as asked for."""
    if text and not text.endswith("\n"):
        raise ReadError("rpm -qa: its last line is cut off")
    rows = dict[str, list[tuple[int, str]]]()
    for number, line in enumerate(text.split("\n")[:-1], 1):
        parts = line.split("\t")
        if len(parts) != 6 or not parts[1].isdigit() or not parts[5].isdigit():
            raise ReadError(f"rpm -qa: line {number} is not as asked for: {encode_name(line[:80])}")
        name, epoch, version, release, arch, at = parts
        if name == KEYS:
            continue
        whole = f"{version}-{release}" if epoch == "0" else f"{epoch}:{version}-{release}"
        try:
            name = require_name(name if arch in (native, *ARCHLESS) else f"{name}.{arch}")
        except ValueError:
            raise ReadError(f"rpm -qa: line {number} has no package name: {encode_name(line[:80])}") from None
        if not is_version(whole):
            raise ReadError(f"rpm -qa: {name} has no proper version: {encode_name(whole[:80])}")
        rows.setdefault(name, []).append((int(at), whole))
        if len(rows) > PACKAGES_MAX:
            raise ReadError(f"rpm -qa: more than {PACKAGES_MAX} packages")
    return Reading("rpm", native, {n: max(v)[1] for n, v in rows.items()}, {}, _others(rows.items()))


def _others(rows: Iterable[tuple[str, list[tuple[int, str]]]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(v for _, v in sorted(found)[:-1]) for name, found in rows if len(found) > 1}
