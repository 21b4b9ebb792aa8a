"""Signatures of files and sysctls that one run leaves to the next, so that a start need not read everything.

They are true for one record of the journal: what it says of a resource is what its signature shows. What the journal
has moved since is looked at, whatever the signature says: a drift that was rolled back after the signatures were saved,
and came again while no agent ran, has the very signature that was saved.  # J5
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson

from pact._fast import FileTable
from pact.core import strict
from pact.core.records import Record
from pact.errors import PactError
from pact.journal.sqlite import SqliteJournal
from pact.model import split_id
from pact.resources import KINDS

MAGIC: Final = b"pact signatures 2\n"
#: After more records than this a start reads everything: it costs less than going through them.
RECORDS_MAX: Final = 100_000


def pack(seq: int, hash_: str, dump: bytes) -> bytes:
    """``dump`` holds what was true after record ``seq``."""
    return MAGIC + orjson.dumps([seq, hash_]) + b"\n" + dump


def unpack(raw: bytes) -> tuple[int, str, bytes]:
    """The inverse of ``pack``. Raises ValueError."""
    if not raw.startswith(MAGIC):
        raise ValueError("no signatures of this version")
    head, newline, dump = raw[len(MAGIC) :].partition(b"\n")
    mark = strict.loads(head, strict.SMALL_MAX)
    if not newline or not isinstance(mark, list) or [type(m) for m in mark] != [int, str]:
        raise ValueError("signatures without the record that they are true for")
    return mark[0], mark[1], dump


def moved_since(journal: SqliteJournal, seq: int, hash_: str) -> set[str] | None:
    """The resources that records after ``seq`` speak of; ``None`` if this journal is not the one that had this record,
    or so much has happened that everything is to be looked at."""
    if seq > journal.seq or journal.seq - seq > RECORDS_MAX:
        return None
    try:
        at = journal.get(seq) if seq >= 0 else None
        if seq >= 0 and (at is None or at.hash != hash_):
            return None
        return {r for record in journal.records(seq + 1) for r in spoken_of(record)}
    except PactError:
        return None


def spoken_of(record: Record) -> Iterator[str]:
    """Every resource that a record names, wherever in its data."""
    todo: list[Any] = [record.data]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            if _is_resource(value):
                yield value
        elif isinstance(value, dict):
            yield from filter(_is_resource, value)
            todo.extend(value.values())
        elif isinstance(value, list | tuple):
            todo.extend(value)


def _is_resource(text: str) -> bool:
    if ":" not in text:
        return False
    try:
        return split_id(text)[0] in KINDS
    except ValueError:
        return False


def written(path: str, text: bytes) -> bool:
    """Put it in the file's place as a whole, or leave what is there."""
    fresh = path + ".new"
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(text)
        os.replace(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        return False
    return True


def loaded(path: str, table: FileTable, moved_since: Callable[[int, str], set[str] | None]) -> tuple[int, set[str]]:
    """How many signatures were taken over, and what the journal has moved since. A damaged cache is no cache."""
    try:
        with open(path, "rb") as f:
            seq, hash_, dump = unpack(f.read())
        moved = moved_since(seq, hash_)
        return (0, set()) if moved is None else (table.restore(dump), moved)
    except (OSError, ValueError):
        return 0, set()
