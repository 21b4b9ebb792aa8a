"""Temporary steps for another step, on record until that other step is done.  # R11

A file system in memory is made read-only before it is unmounted, a mount is marked while the kernel is asked whether it
is idle, directories are made for a file that is restored, flags are taken off, a link is set before it is known whether
this node can still be reached. A kill in between would leave each of them for ever: when the agent starts, it takes
back the steps on record.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import orjson

from pact._fast import syscalls
from pact.core import strict
from pact.model import decode_name, encode_name
from pact.observe.mountinfo import MountEntry, read_mounts
from pact.resources.support.way import unmake

BYTES_MAX: Final = 16 << 10
FROZEN: Final = "frozen"
MARKED: Final = "marked"
MADE: Final = "made"
#: Steps that outlive a boot.
LASTING: Final = {MADE}
#: What is not taken back at the start: somebody else looks after it, as long as the agent runs.
STAYING: Final = set[str]()
#: Steps whose end is durable, too: taken back once more after a power cut, they would undo what was done since.
DURABLE: Final = set[str]()
#: Who takes back steps of other kinds than mounts and files, by what they are called; it raises what a record that is
#: none makes it raise. Gives lines for the log.
TAKEN_BACK_BY: Final[dict[str, Callable[[Mapping[str, Any]], Iterator[str]]]] = {}


class LooseEnds:
    """One file beside the journal. Without it (``keep_in`` was not called) nothing is remembered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = -1
        self._boot = ""
        self._ends: dict[int, dict[str, Any]] = {}
        self._number = 0

    def keep_in(self, path: str, boot_id: str) -> list[str]:
        """Keep the record there from now on, after taking back what the last run left. Returns lines for the log."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.posix_fallocate(fd, 0, BYTES_MAX)  # so that a full disk does not stop it later
        except OSError:
            return []
        try:
            known = strict.loads_object(os.pread(fd, BYTES_MAX, 0).rstrip(b"\0 \n") or b"{}", BYTES_MAX)
            ends = [e for e in known["ends"] if known["boot"] == boot_id or e["what"] in LASTING]
        except (OSError, ValueError, KeyError, TypeError):
            ends = []
        stay = [e for e in ends if isinstance(e, dict) and isinstance(what := e.get("what"), str) and what in STAYING]
        said = [text for end in ends if end not in stay for text in _taken_back(end)]
        with self._lock:
            before, self._fd, self._boot, self._ends = self._fd, fd, boot_id, {}
            for end in stay:
                self._number += 1
                self._ends[self._number] = end
            if before >= 0:
                os.close(before)
            self._write()
        return said

    def begin(self, what: str, most: int = BYTES_MAX, /, **about: Any) -> int:
        """Put a step on record; it is durable when this returns. ``most``: the bytes of all that may be on record with
        it; the rest is for others. Raises OSError if that fails: then the step is not taken."""
        with self._lock:
            self._number += 1
            self._ends[self._number] = {"what": what, **about}
            try:
                self._write(most, durable=True)
            except OSError:
                del self._ends[self._number]
                raise
            return self._number

    def end(self, number: int) -> None:
        """The other step is done, or this one was taken back."""
        with self._lock:
            ended = self._ends.pop(number, {})
            try:
                self._write(durable=ended.get("what") in DURABLE)
            except OSError:
                pass  # taken back once more after the next start

    def of(self, what: str) -> list[tuple[int, dict[str, Any]]]:
        """The steps of this kind that are on record, with their numbers."""
        with self._lock:
            return [(number, end) for number, end in self._ends.items() if end["what"] == what]

    def take_back(self, numbers: Iterable[int]) -> list[str]:
        """The other step was broken off, and this process goes on. Returns lines for the log."""
        said = list[str]()
        for number in numbers:
            if number in self._ends:
                said += _taken_back(self._ends[number])
                self.end(number)
        return said

    @contextmanager
    def during(self, what: str, **about: Any) -> Iterator[None]:
        number = self.begin(what, **about)
        try:
            yield
        finally:
            self.end(number)

    def _write(self, most: int = BYTES_MAX, *, durable: bool = False) -> None:
        """Write in place, in one piece. Raises OSError."""
        if self._fd < 0:
            return
        raw = orjson.dumps({"boot": self._boot, "ends": list(self._ends.values())})
        if len(raw) > most:
            raise OSError(errno.ENOSPC, "too much is under way at once")
        os.pwrite(self._fd, raw.ljust(BYTES_MAX), 0)
        if durable:
            os.fdatasync(self._fd)


def mounted(entry: MountEntry) -> dict[str, Any]:
    """The identity of a mount, beyond its name."""
    return {"point": encode_name(entry.mount_point), "id": entry.mount_id, "device": [entry.major, entry.minor]}


def _taken_back(end: Any) -> Iterator[str]:
    """Never raises for the file's contents, or for what the machine does."""
    try:
        if end["what"] == MADE:
            unmake(map(decode_name, end["paths"]))
            return
        if end["what"] in TAKEN_BACK_BY:
            yield from TAKEN_BACK_BY[end["what"]](end)
            return
        entry = _find(end)
        if entry is None:
            return
        if end["what"] == MARKED:
            touch(entry.mount_point)
        elif end["what"] == FROZEN and b"ro" in entry.options:
            syscalls.mount_read_only(entry.mount_point, False)
            yield f"{end['point']} can be written again: its unmounting was cut off"
    except (OSError, ValueError, KeyError, TypeError) as exc:
        yield f"a step that was cut off could not be taken back: {exc}"


def _find(end: Any) -> MountEntry | None:
    """The same mount, if it is still the visible one there."""
    there = [m for m in read_mounts() if m.mount_point == decode_name(end["point"])]
    top = there[-1] if there else None
    if top is None or (top.mount_id, [top.major, top.minor]) != (end["id"], end["device"]):
        return None
    return top


def touch(path: bytes) -> bool:
    """Take a mark of MNT_EXPIRE off. Returns False if nothing exists there."""
    try:
        os.close(os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW))
    except OSError:
        return False
    return True


LOOSE: Final = LooseEnds()
