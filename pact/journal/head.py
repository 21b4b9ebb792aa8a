"""A copy of the newest record's number and hash beside the journal: a journal that lost its end still verifies, and
this file shows the loss.  # J6

Two slots are written in turn, in place, each with its own digest, so that an interrupted write leaves the other one
whole. A slot is written after its record is durable and before anything that depends on the record leaves. So a head
that is behind is normal (a kill came between the two), and a head that is ahead means that acknowledged records are
lost.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

import orjson

from pact.core import strict
from pact.errors import JournalError
from pact.values import dataclass

SLOT_BYTES: Final = 512
STRIDE_BYTES: Final = 4096  # the slots share no page and no sector
SLOTS: Final = 2
HINT: Final = "it is damaged: pact journal accept-loss checks the journal and writes a new one"


@dataclass(frozen=True, slots=True)
class Head:
    """The newest acknowledged record. ``bad`` is a record that a check in the background found wrong. ``refused`` is
    the hash of the record after it, if that record was refused: it may be in SQLite's log all the same, complete, and
    would count after a kill.
    """

    seq: int
    hash: str
    bad: int | None = None
    count: int = 0
    refused: str | None = None


def head_path(journal: str) -> str:
    """``journal.head`` beside ``journal.db``."""
    return journal.removesuffix(".db") + ".head"


def read_head(path: str) -> Head | None:
    """``None`` if there is no such file. Raises JournalError if no slot is whole, or the file cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise JournalError(f"journal's head {path}: {os.strerror(exc.errno or 0)}") from None
    try:
        return _newest(fd, path)
    finally:
        os.close(fd)


def _newest(fd: int, path: str) -> Head:
    try:
        found = [_parsed(os.pread(fd, SLOT_BYTES, n * STRIDE_BYTES)) for n in range(SLOTS)]
    except OSError as exc:
        raise JournalError(f"journal's head {path}: {os.strerror(exc.errno or 0)}") from None
    whole = [head for head in found if head is not None]
    if not whole:
        raise JournalError(f"journal's head {path} says nothing that can be believed", HINT)
    return max(whole, key=lambda head: head.count)


def _parsed(slot: bytes) -> Head | None:
    body, _, rest = slot.partition(b" ")
    if rest[:64] != hashlib.sha256(body).hexdigest().encode():
        return None
    try:
        said = strict.loads_object(body, strict.SMALL_MAX)
        return Head(said["seq"], said["hash"], said.get("bad"), said["count"], said.get("refused"))
    except (ValueError, KeyError, TypeError):
        return None


def _slot(head: Head) -> bytes:
    said = {"count": head.count, "hash": head.hash, "seq": head.seq}
    more = {"bad": head.bad, "refused": head.refused}
    body = orjson.dumps({**said, **{k: v for k, v in more.items() if v is not None}}, option=orjson.OPT_SORT_KEYS)
    return (body + b" " + hashlib.sha256(body).hexdigest().encode()).ljust(SLOT_BYTES - 1) + b"\n"


class HeadFile:
    """The writer's side. Not thread-safe."""

    def __init__(self, path: str, first: Head) -> None:
        """Open the file, or create it with ``first``. Raises JournalError (damaged, disk)."""
        self.path = path
        if read_head(path) is None:
            self._create(first)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_DSYNC | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as exc:
            raise JournalError(f"journal's head {path}: {os.strerror(exc.errno or 0)}") from None
        self.head = _newest(self._fd, path)

    def _create(self, first: Head) -> None:
        """Create the file complete from the start: an incomplete file means damage, never a beginning."""
        new = self.path + ".new"
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.pwrite(fd, _slot(first).ljust(SLOTS * STRIDE_BYTES), 0)  # allocates its blocks for good
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(new, self.path)
            directory = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as exc:
            raise JournalError(
                f"journal's head {self.path}: {os.strerror(exc.errno or 0)}",
                "check the disk, its space and the permissions",
            ) from None

    def write(self, seq: int, hash_: str, bad: int | None = None, refused: str | None = None) -> None:
        """Durable on return. Raises OSError; the newest slot so far stays whole in any case."""
        head = Head(seq, hash_, bad, self.head.count + 1, refused)
        there, ours = os.stat(self.path), os.fstat(self._fd)
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):  # F55
            raise OSError(f"{self.path} was removed or replaced under this process")
        if os.pwrite(self._fd, _slot(head), head.count % SLOTS * STRIDE_BYTES) != SLOT_BYTES:
            raise OSError(f"{self.path} was not written whole")
        self.head = head

    def close(self) -> None:
        os.close(self._fd)
