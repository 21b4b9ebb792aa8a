"""dpkg's database, and apt.

The database is ``/var/lib/dpkg/status`` and, while dpkg runs or after it was killed, later entries in ``updates/``,
which dpkg merges the next time. Both are parsed as strictly as dpkg itself does: a fault anywhere makes the
whole database unreadable, because nobody knows what else is wrong.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Final

from pact.model import encode_name
from pact.resources.support.package_reading import (
    PACKAGES_MAX,
    ReadError,
    Reading,
    is_version,
    require_name,
)

STATUS_BYTES_MAX: Final = 32 << 20
UPDATE_BYTES_MAX: Final = 1 << 20
UPDATES_MAX: Final = 10_000
LIST_BYTES_MAX: Final = 8 << 20
ADMIN: Final = "/var/lib/dpkg"
LOCKS: Final = (f"{ADMIN}/lock-frontend", f"{ADMIN}/lock")
NOT_THERE: Final = frozenset({b"not-installed", b"config-files"})
STATES: Final = frozenset(
    {
        b"installed",
        b"half-installed",
        b"unpacked",
        b"half-configured",
        b"triggers-awaited",
        b"triggers-pending",
        *NOT_THERE,
    }
)
WANTS: Final = frozenset({b"unknown", b"install", b"hold", b"deinstall", b"purge"})
REINSTALL: Final = "reinstall-required"
#: dpkg's names of architectures, by the kernel's.
MACHINES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "i686": "i386",
    "armv7l": "armhf",
    "ppc64le": "ppc64el",
    "riscv64": "riscv64",
    "s390x": "s390x",
}
FIELD: Final = re.compile(rb"^(Package|Status|Version|Architecture):[ \t]*(.*)", re.MULTILINE)
UPDATE: Final = re.compile(r"[0-9]+\Z")

#: Version, status words and architecture of a package, by name and architecture.
Entries = dict[tuple[bytes, bytes], tuple[bytes, bytes]]


class Dpkg:
    """The database below ``root`` (``""`` for the machine's own)."""

    name = "dpkg"

    def __init__(self, root: str = "") -> None:
        self.admin = root + ADMIN
        self.locks = tuple(root + path for path in LOCKS)
        self.watched = (self.admin,)
        self.written: tuple[str, ...] = ()  # its files are replaced, never written in place

    def signature(self) -> tuple[int, ...] | None:
        """Changes with the database; ``None`` if there is none."""
        try:
            st = os.stat(f"{self.admin}/status")
        except OSError:
            return None
        try:
            updates = os.stat(f"{self.admin}/updates").st_mtime_ns
        except OSError:
            updates = 0
        return st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, updates

    def read(self) -> Reading:
        """Raises ReadError."""
        entries: Entries = {}
        _take(entries, _content(f"{self.admin}/status", STATUS_BYTES_MAX), "status")
        if not entries and self._has_lists():  # as after a power cut
            raise ReadError("status is empty, and lists of packages' files are there")
        for name in self._updates():
            _take(entries, _content(f"{self.admin}/updates/{name}", UPDATE_BYTES_MAX), f"updates/{name}")
        return _reading(entries, self._native(entries))

    def _has_lists(self) -> bool:
        try:
            return any(leaf.endswith(".list") for leaf in os.listdir(f"{self.admin}/info"))
        except OSError:
            return False

    def interrupted(self) -> bool:
        """Whether dpkg was ended in the middle, so that apt refuses to do anything before ``dpkg --configure -a``."""
        try:
            return bool(self._updates())
        except ReadError:
            return True

    def _updates(self) -> list[str]:
        try:
            names = [n for n in os.listdir(f"{self.admin}/updates") if UPDATE.match(n)]
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise ReadError(f"updates: {os.strerror(exc.errno or 0).lower()}") from None
        if len(names) > UPDATES_MAX:
            raise ReadError(f"updates has {len(names)} files")
        return sorted(names)

    def _native(self, entries: Entries) -> bytes:
        try:
            first = _content(f"{self.admin}/arch", UPDATE_BYTES_MAX).split(b"\n", 1)[0].strip()
        except ReadError:
            first = b""
        own = [arch for name, arch in entries if name == b"dpkg" and arch != b"all"]
        machine = os.uname().machine
        return first or (own[0] if own else MACHINES.get(machine, machine).encode())

    def files(self, name: str, native: str) -> list[bytes]:
        """The paths of a package, directories included. Raises ReadError."""
        plain, _, arch = name.partition(":")
        for leaf in (f"{plain}:{arch or native}.list", f"{plain}.list"):
            try:
                text = _content(f"{self.admin}/info/{leaf}", LIST_BYTES_MAX)
            except ReadError as exc:
                missing = exc
                continue
            return [path for path in text.split(b"\n") if path.startswith(b"/") and path != b"/."]
        raise missing


def _content(path: str, limit: int) -> bytes:
    """The whole file. Raises ReadError; a pipe in its place does not hang."""
    leaf = os.path.basename(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                raise ReadError(f"{leaf} is no regular file")
            if st.st_size > limit:
                raise ReadError(f"{leaf} has {st.st_size} bytes: at most {limit} are read")
            pieces, size = list[bytes](), 0
            while size <= st.st_size and (piece := os.read(fd, st.st_size - size + 1)):
                pieces.append(piece)
                size += len(piece)
            return b"".join(pieces)  # of one piece no copy is made
        finally:
            os.close(fd)
    except OSError as exc:
        raise ReadError(f"{leaf}: {os.strerror(exc.errno or 0).lower()}") from None


def _take(entries: Entries, text: bytes, where: str) -> None:
    """Put the stanzas of a file into ``entries``. Raises ReadError for the first fault."""
    if text and not text.endswith(b"\n"):
        raise ReadError(f"{where} is cut off: its last line has no end")
    if b"\0" in text:
        raise ReadError(f"{where} has a NUL byte")
    seen = set[tuple[bytes, bytes]]()
    begin = number = 0
    while begin < len(text):  # the text is not copied: it may have many megabytes
        end = text.find(b"\n\n", begin)
        end = len(text) if end < 0 else end
        found, rest, begin = FIELD.findall(text, begin, end), begin, end + 2
        number += 1
        if not found:
            if text[rest:end].strip(b"\n"):
                raise ReadError(f"{where}: entry {number} is no package")
            continue
        fields = {field: value.rstrip(b" \t\r") for field, value in found}
        name, words = fields.get(b"Package", b""), fields.get(b"Status", b"").split()
        if len(fields) != len(found) or not name or len(words) != 3:
            raise ReadError(f"{where}: entry {number} ({_shown(name)}) is faulty")
        if words[0] not in WANTS or words[1] not in (b"ok", b"reinstreq") or words[2] not in STATES:
            raise ReadError(f"{where}: {_shown(name)} has a status that is not known: {_shown(b' '.join(words))}")
        key = name, fields.get(b"Architecture", b"")
        if key in seen:
            raise ReadError(f"{where} has {_shown(name)} twice")
        seen.add(key)
        entries[key] = fields.get(b"Version", b""), words[1] + b" " + words[2]
        if len(entries) > PACKAGES_MAX:
            raise ReadError(f"{where} has more than {PACKAGES_MAX} packages")


def _shown(raw: bytes) -> str:
    return encode_name(raw[:80])


def _reading(entries: Mapping[tuple[bytes, bytes], tuple[bytes, bytes]], native: bytes) -> Reading:
    versions, states, left = dict[str, str](), dict[str, str](), 0
    here = native.decode("ascii", "replace")
    for (raw, arch), (version_raw, status) in entries.items():
        flag, _, state = status.partition(b" ")
        if state in NOT_THERE and flag == b"ok":
            left += state == b"config-files"
            continue
        try:
            name = raw.decode("ascii")
            name = require_name(name if arch in (native, b"all", b"") else f"{name}:{arch.decode('ascii')}")
            version = version_raw.decode("ascii")
        except (UnicodeDecodeError, ValueError):
            raise ReadError(f"status: {_shown(raw)} is no package name") from None
        if not is_version(version):
            if version or state != b"half-installed":
                raise ReadError(f"status: {name} has no proper version: {_shown(version_raw)}")
            version = "0"  # its first unpacking was interrupted: dpkg knows no version yet
        if name in versions and name not in states and (flag != b"ok" or state != b"installed"):
            continue
        versions[name] = version
        states.pop(name, None)
        if flag != b"ok":
            states[name] = REINSTALL
        elif state != b"installed":
            states[name] = state.decode()
    return Reading("dpkg", here, versions, states, left=left)


def upgraded(lines: Iterable[str]) -> tuple[set[str], set[str]]:
    """What ``apt-get -s`` says it would unpack, and what it would remove: names."""
    coming, going = set[str](), set[str]()
    for line in lines:
        word, _, rest = line.partition(" ")
        name = rest.split(" ", 1)[0]
        if word == "Inst":
            coming.add(name)
        elif word in ("Remv", "Purg"):
            going.add(name)
    return coming, going
