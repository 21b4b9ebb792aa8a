"""What /proc says of a process: whether it lives, and since when."""

from __future__ import annotations

from typing import Final

#: Fields of /proc/PID/stat after the name.
STATE, PARENT, THREADS, STARTED = 0, 1, 17, 19
FIELDS: Final = STARTED + 1
STAT_MAX: Final = 4096


def stat_of(pid: int | str) -> list[bytes]:
    """The fields of a process's ``stat`` after its name, the state first; none if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read(STAT_MAX).rpartition(b")")[2].split()
    except OSError:
        return []
    return fields if len(fields) >= FIELDS else []


def lives(fields: list[bytes]) -> bool:
    """Whether the process of these fields does. One that has ended waits for its parent; one whose first thread has
    ended looks like that, and lives on in the others."""
    return bool(fields) and (fields[STATE] not in (b"Z", b"X") or int(fields[THREADS]) > 1)
