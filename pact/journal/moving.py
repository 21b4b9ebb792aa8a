"""A journal as JSON lines, and back. An export ends with a mark that has the number of entries: a truncated file is not
accepted.  # J8
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import IO, Any, Final

import orjson

from pact.core import strict
from pact.core.node import fold
from pact.core.node.state import State
from pact.core.records import GENESIS, Record, canonical, parse, unhashed, verify
from pact.errors import ChainError, JournalError, PactError
from pact.journal.sqlite import SqliteJournal

UNMARKED_HINT: Final = (
    "export again; an export of an older version has no mark: where you know that it is whole, "
    "--without-mark takes it as it is"
)


class CutError(PactError):
    """An export that does not end correctly."""


class End:
    """The number of entries of an export, counted while it is written or read."""

    def __init__(self) -> None:
        self.records = self.contents = 0
        self.hash = GENESIS
        self._contents = hashlib.sha256()

    def record(self, record: Record) -> None:
        self.records, self.hash = self.records + 1, record.hash

    def content(self, name: str) -> None:
        self.contents += 1
        self._contents.update(name.encode("utf-8", "replace") + b"\n")

    def to_json(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "hash": self.hash,
            "blobs": self.contents,
            "digests": self._contents.hexdigest(),
        }


def export(journal: SqliteJournal, out: IO[bytes]) -> tuple[int, int]:
    """JSON lines: every record with its hash, every content as ``{"blob", "data"}`` (base64), and ``{"end"}`` with the
    counts. Raises ChainError for a journal that ends before its head.
    """
    journal.require_head()
    end = End()
    for record in journal.records():
        out.write(orjson.dumps(record.to_json(), option=orjson.OPT_SORT_KEYS) + b"\n")
        end.record(record)
    for name, data in journal.blobs():
        out.write(orjson.dumps({"blob": name, "data": base64.b64encode(data).decode()}) + b"\n")
        end.content(name)
    out.write(orjson.dumps({"end": end.to_json()}, option=orjson.OPT_SORT_KEYS) + b"\n")
    return end.records, end.contents


def read_export(lines: Iterator[bytes], *, marked: bool = True) -> Iterator[Record | tuple[str, bytes]]:
    """The inverse of ``export``. Raises ChainError with the wrong line, CutError if the mark at the end is missing
    (unless ``marked`` is False), has other counts, or is not at the end.
    """
    end, said = End(), None
    for at, line in enumerate(lines):
        if said is not None:
            raise CutError(f"line {at + 1} comes after the end of the export", "give one export at a time")
        try:
            obj = strict.loads(line, strict.LINE_MAX)
            if isinstance(obj, dict) and "end" in obj:
                said = obj["end"] or {}
                continue
            if isinstance(obj, dict) and "blob" in obj:
                item: Record | tuple[str, bytes] = obj["blob"], base64.b64decode(obj["data"], validate=True)
                end.content(str(obj["blob"]))
            else:
                item = parse(line)
                end.record(item)
        except (ValueError, KeyError, TypeError) as exc:
            raise ChainError(at, f"line {at + 1} is no record ({exc})") from None
        yield item
    if said is None and marked and (end.records or end.contents):
        raise CutError(
            f"the export has no mark at its end: it was cut off after {end.records} records and "
            f"{end.contents} contents",
            UNMARKED_HINT,
        )
    if said is not None and said != end.to_json():
        raise CutError(
            f"the export says at its end that it holds {_counted(said)}, and holds {end.records} records "
            f"and {end.contents} contents: parts are missing, or are others",
            "export again",
        )


def _counted(said: Any) -> str:
    if not isinstance(said, dict):
        return "nothing that can be read"
    return f"{said.get('records')} records and {said.get('blobs')} contents"


def import_lines(journal: SqliteJournal, lines: Iterator[bytes], *, marked: bool = True) -> tuple[int, int]:
    """Fill an empty journal from an export. Verifies the chain and every content, and that the records give a state.
    All of it or nothing. Raises PactError."""
    if journal.seq >= 0:
        raise JournalError(f"{journal.path} is not empty", "import into a new state directory")
    rows: list[tuple[Record, bytes]] = []
    blobs: dict[str, bytes] = {}

    def records() -> Iterator[Record]:
        for item in read_export(lines, marked=marked):
            if isinstance(item, Record):
                yield item
            elif hashlib.sha256(item[1]).hexdigest() != item[0]:
                raise JournalError(f"content {str(item[0])[:12]} does not match its digest")
            else:
                blobs[item[0]] = item[1]

    state = State()
    for record in verify(records()):
        try:
            fold.apply(state, record)
        # The hashes are right, but the contents make no sense: no agent would start with this journal.
        except Exception as exc:
            why = f"its chain is unbroken, but the record makes no sense ({type(exc).__name__}: {exc})"
            raise ChainError(record.seq, why, "export again, from the journal itself") from None
        rows.append((record, canonical(unhashed(record))))
    journal.append(rows, blobs)
    return len(rows), len(blobs)
