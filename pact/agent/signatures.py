"""Signatures of files and sysctls that one run leaves for the next, so that a start need not read everything.

They hold for one record of the journal: the journal's state of a resource at that record is what its signature shows. A
resource that later records mention is observed whatever its signature: drift that was rolled back after the signatures
were saved, and came again while no agent ran, has the saved signature.  # J5
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
#: After more records than this a start reads everything: that costs less than reading the records.
RECORDS_MAX: Final = 100_000


def pack(seq: int, hash_: str, dump: bytes) -> bytes:
    """``dump`` holds the signatures as of record ``seq``."""
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
    """The resources that records after ``seq`` mention; ``None`` if this journal does not have that record, or if there
    are so many later ones that everything must be observed."""
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
    """Every resource that a record names, anywhere in its data."""
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
    """Replace the file as a whole, or leave it as it is."""
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
    """How many signatures were loaded, and the resources that later records mention. A damaged cache counts as none."""
    try:
        with open(path, "rb") as f:
            seq, hash_, dump = unpack(f.read())
        moved = moved_since(seq, hash_)
        return (0, set()) if moved is None else (table.restore(dump), moved)
    except (OSError, ValueError):
        return 0, set()
