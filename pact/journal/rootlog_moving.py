"""A backup of the root's log as JSON lines, and back, between stores.

It ends with a mark that has the number of entries: a truncated file is not accepted. The log is folded, as a root would
fold it, both when it is written and when it is read.  # J8
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import IO, Any, Final

import orjson

from pact.core import strict
from pact.core.records import GENESIS
from pact.core.root import chunks as chunks_
from pact.core.root import log
from pact.errors import ChainError, JournalError, PactError
from pact.journal.moving import CutError
from pact.journal.rootlog import LogStore

VERSION: Final = 1
TRIES: Final = 3
BEGINS: Final = b'{"root":'


class Backup:
    """The contents of a backup: the newest snapshot, the last chunk that it covers, and the chunks after it."""

    def __init__(self, cluster: str, snapshot: bytes | None, chunks: list[bytes]) -> None:
        """Raises PactError for a log with which a root could not lead."""
        self.cluster, self.snapshot, self.chunks = cluster, snapshot, chunks
        try:
            self.state = log.load(snapshot, chunks)
        except (ValueError, ChainError) as exc:
            raise PactError(f"the root's log of {cluster} is damaged: {exc}", "take an earlier backup") from None

    @property
    def events(self) -> int:
        """The number of the newest event; -1 if there is none."""
        return self.state.gseq

    def end(self) -> dict[str, Any]:
        last = chunks_.chunk_hash(self.chunks[-1]) if self.chunks else GENESIS
        return {
            "chunks": len(self.chunks),
            "gseq": self.state.gseq,
            "hash": last,
            "snapshot": None if self.snapshot is None else hashlib.sha256(self.snapshot).hexdigest(),
        }

    def write(self, out: IO[bytes]) -> None:
        out.write(BEGINS + orjson.dumps({"v": VERSION, "cluster": self.cluster}) + b"}\n")
        if self.snapshot is not None:
            out.write(orjson.dumps({"snapshot": base64.b64encode(self.snapshot).decode()}) + b"\n")
        for chunk in self.chunks:
            out.write(orjson.dumps({"chunk": base64.b64encode(chunk).decode()}) + b"\n")
        out.write(orjson.dumps({"end": self.end()}, option=orjson.OPT_SORT_KEYS) + b"\n")


def read_store(store: LogStore, cluster: str) -> Backup:
    """Read the present log; a root may lead on it meanwhile. Raises JournalError, PactError."""
    for _ in range(TRIES):
        snapshot, _ = store.load()  # with the last chunk in it: the numbers go on from there
        chunks = list(store.read(0 if snapshot is None else log.load(snapshot, ()).gseq))
        if not all(chunks):
            raise PactError(f"the root's log of {cluster} has a chunk that is damaged", "take an earlier backup")
        oldest = store.oldest()
        if not chunks or oldest <= chunks_.read_chunk(chunks[0]).first:
            backup = Backup(cluster, snapshot, chunks)
            # New chunks may have come; a hole may not be there.
            following = next(iter(store.read(backup.events + 1)), None)
            if following is not None and chunks_.read_chunk(following).first > backup.events + 1:
                raise PactError(
                    f"the root's log of {cluster} is damaged: event {backup.events + 1} is missing",
                    "take an earlier backup",
                )
            return backup
    raise JournalError("the root's log was trimmed while it was read, again and again", "try again")


def read_backup(lines: Iterable[bytes]) -> Backup:
    """The inverse of ``Backup.write``. Raises CutError if it is incomplete, PactError if it is not a backup."""
    about, snapshot, chunks, said = dict[str, Any](), None, list[bytes](), None
    for at, line in enumerate(lines):
        if said is not None:
            raise CutError(f"line {at + 1} comes after the end of the backup", "give one backup at a time")
        try:
            ((key, value),) = strict.loads_object(line, strict.LINE_MAX).items()
            if at == 0:
                about = {"v": value["v"], "cluster": str(value["cluster"])} if key == "root" else {}
                if about.get("v") != VERSION:
                    raise ValueError("no backup of a root's log of this version")
            elif key == "chunk":
                chunks.append(base64.b64decode(value, validate=True))
            elif key == "snapshot" and at == 1:
                snapshot = base64.b64decode(value, validate=True)
            elif key == "end":
                said = value or {}
            else:
                raise ValueError(f"{key!r} is not expected here")
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise PactError(f"line {at + 1} is no part of a backup of a root's log ({exc})") from None
    if said is None:
        raise CutError(f"the backup has no mark at its end: it was cut off after {len(chunks)} chunks", "back up again")
    backup = Backup(about["cluster"], snapshot, chunks)
    if said != backup.end():
        raise CutError("the backup is not what its end says: parts are missing, or are others", "back up again")
    return backup


def fill_store(store: LogStore, backup: Backup, name: str) -> None:
    """Write a backup into an empty store. The snapshot comes last: without it no root leads with these chunks. Raises
    JournalError."""
    snapshot, chunks = store.load()
    if snapshot is not None or next(iter(chunks), None) is not None:
        raise JournalError("the log is not empty", "import into a new one")
    fence = store.campaign(name)
    if fence is None:
        raise JournalError("a root leads on this log", "stop every root of the cluster first")
    for chunk in backup.chunks:
        about = chunks_.read_chunk(chunk)
        store.append(fence, about.first, about.count, chunk)
    if backup.snapshot is not None:
        store.save_snapshot(fence, log.load(backup.snapshot, ()).gseq, backup.snapshot)
