"""``/proc/PID/mountinfo`` as values. Its parser is pure, and refuses text that the kernel would not write, naming the
line.

Names in it come from any process that may mount: they can contain any byte; the kernel escapes space, tab, newline,
backslash and (in options) comma, equals sign and ``#`` in octal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")

#: File systems that depend on another machine or another process: touching a path on them can block for ever.
REMOTE_TYPES = frozenset(
    (
        b"nfs nfs4 cifs smb3 smbfs ceph lustre gpfs beegfs afs 9p fuse autofs orangefs pvfs2 panfs wekafs weka dvs "
        b"glusterfs virtiofs"
    ).split()
)


AUTOFS = "autofs"
TABLE = "/proc/{pid}/mountinfo"


@dataclass(slots=True, frozen=True)
class MountEntry:
    mount_id: int
    parent_id: int
    major: int
    minor: int
    root: bytes
    mount_point: bytes
    options: tuple[bytes, ...]
    optional: tuple[bytes, ...]
    fstype: str
    source: bytes
    super_options: tuple[bytes, ...]


#: This process's own table as it was read last, by line. It is read again at every change, and most lines are the same.
_own_lines: dict[bytes, MountEntry] = {}


def unescape(raw: bytes) -> bytes:
    """Undo the kernel's octal escapes."""
    return _ESCAPE.sub(lambda m: bytes((int(m[1], 8),)), raw) if b"\\" in raw else raw


def is_remote(fstype: bytes | str) -> bool:
    """Whether an access to this file system may wait for another machine or another process."""
    raw = fstype.encode("utf-8", "backslashreplace") if isinstance(fstype, str) else fstype
    return raw in REMOTE_TYPES or raw.startswith(b"fuse.")


def read_mounts(pid: str = "self") -> list[MountEntry]:
    """The mount table of a process's namespace, in the kernel's order. Raises OSError, ValueError."""
    global _own_lines
    with open(TABLE.format(pid=pid), "rb") as f:
        text = f.read()
    if pid != "self":
        return parse_mountinfo(text)
    lines = _lines(text, _own_lines)
    _own_lines = dict(lines)  # several threads read it
    return [entry for _, entry in lines]


def parse_mountinfo(text: bytes) -> list[MountEntry]:
    """All mounts in the kernel's order. Raises ValueError that names the line."""
    return [entry for _, entry in _lines(text, {})]


def _lines(text: bytes, known: Mapping[bytes, MountEntry]) -> list[tuple[bytes, MountEntry]]:
    """Each line, and what it says."""
    out: list[tuple[bytes, MountEntry]] = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line:
            continue
        try:
            out.append((line, known.get(line) or _entry(line)))
        except ValueError as e:
            raise ValueError(f"mountinfo line {number}: {e}") from None
    return out


def _entry(line: bytes) -> MountEntry:
    fields = line.split(b" ")
    try:
        dash = fields.index(b"-", 6)
    except ValueError:
        raise ValueError('no "-" ends the optional fields') from None
    if len(fields) < dash + 3:
        raise ValueError("file system type, source or options are missing")
    major, colon, minor = fields[2].partition(b":")
    if not colon:
        raise ValueError("the device is not MAJOR:MINOR")
    return MountEntry(
        _number(fields[0]),
        _number(fields[1]),
        _number(major),
        _number(minor),
        unescape(fields[3]),
        unescape(fields[4]),
        _options(fields[5]),
        tuple(unescape(f) for f in fields[6:dash]),
        unescape(fields[dash + 1]).decode("utf-8", "backslashreplace"),
        unescape(fields[dash + 2]),
        _options(b" ".join(fields[dash + 3 :])),
    )


def _number(raw: bytes) -> int:
    if not raw.isdigit() or len(raw) > 10:
        raise ValueError(f"{raw!r} is no number")
    return int(raw)


def _options(raw: bytes) -> tuple[bytes, ...]:
    return tuple(unescape(o) for o in raw.split(b",")) if raw else ()


def mount_table(text: bytes) -> dict[bytes, tuple[tuple[bytes, bytes, bytes], ...]]:
    """Mount point to its stack of ``(mount id, device, file system type)``, for comparing two moments quickly."""
    out: dict[bytes, tuple[tuple[bytes, bytes, bytes], ...]] = {}
    for line in text.split(b"\n"):
        head, sep, tail = line.partition(b" - ")
        fields = head.split(b" ", 5)
        if not sep or len(fields) < 6:
            continue
        point = unescape(fields[4])
        out[point] = (*out.get(point, ()), (fields[0], fields[2], tail.split(b" ", 1)[0]))
    return out
