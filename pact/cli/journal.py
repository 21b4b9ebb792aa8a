"""``pact journal``: verify, export and import, on the file itself; the agent need not run."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from typing import IO

from pact.agent import config
from pact.agent.statedir import take_state_dir
from pact.cli.render import clean, emit, say
from pact.core.records import Record, verify
from pact.errors import EXIT_DONE, JournalError, PactError, UsageError
from pact.journal.sqlite import FILE_NAME, SqliteJournal, export, import_lines, read_export

MAGIC = b"SQLite format 3\0"
EMPTY = "holds no record"
WHAT_THEN = "it is no journal, or was emptied"


def run(args: argparse.Namespace) -> int:
    action = {"verify": _verify, "export": _export, "import": _import}[args.action]
    return action(args)


def _path(args: argparse.Namespace) -> str:
    return os.path.join(config.load(args.config).state_dir, FILE_NAME)


def _journal(args: argparse.Namespace) -> SqliteJournal:
    """The configured agent's, to read. Raises JournalError."""
    path = _path(args)
    try:
        os.stat(path)
    except OSError as exc:
        raise JournalError(f"journal {path}: {os.strerror(exc.errno or 0)}",
                           "has the agent run here? name its agent.toml with --config") from None  # fmt: skip
    return SqliteJournal(path, read_only=True)


def _verify(args: argparse.Namespace) -> int:
    path, count, last = args.file or _path(args), 0, ""
    for record in verify(_records(args)):
        count, last = count + 1, record.hash
    if not count:  # every journal begins with a record; one that was emptied has no chain that could be whole
        raise PactError(f"{path} {EMPTY}", WHAT_THEN)
    if args.json:
        emit({"v": 1, "file": path, "records": count, "hash": last, "ok": True})
    else:
        print(f"{path}: {count} records, chain unbroken, last hash {last[:16]}")
    return EXIT_DONE


def _records(args: argparse.Namespace) -> Iterator[Record]:
    if args.file is None:
        yield from _database(_journal(args))
        return
    try:
        with open(args.file, "rb") as f:  # once: what a pipe gave is gone
            first = f.read(len(MAGIC))
            if first != MAGIC:
                yield from _lines(first, f)
                return
            if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
                raise UsageError(f"{args.file} is a journal's database in a pipe", "give its path, or pipe an export")
    except OSError as exc:
        raise UsageError(f"{args.file}: {os.strerror(exc.errno or 0)}") from None
    yield from _database(SqliteJournal(args.file, read_only=True))


def _database(journal: SqliteJournal) -> Iterator[Record]:
    try:
        yield from journal.records()
    finally:
        journal.close()


def _lines(first: bytes, rest: IO[bytes]) -> Iterator[Record]:
    def lines() -> Iterator[bytes]:
        begun = (first + rest.readline()).splitlines(keepends=True)
        yield from begun
        yield from rest

    for item in read_export(lines()):
        if isinstance(item, Record):
            yield item


def _export(args: argparse.Namespace) -> int:
    journal = _journal(args)
    try:
        if not args.file:
            export(journal, sys.stdout.buffer)
            return EXIT_DONE
        with _created(args.file) as out:
            records, blobs = export(journal, out)
            out.flush()
            os.fsync(out.fileno())
    finally:
        journal.close()
    if args.json:
        emit({"v": 1, "file": args.file, "records": records, "contents": blobs})
    else:
        say(f"{clean(args.file)}: {records} records, {blobs} contents")
    return EXIT_DONE


def _created(path: str) -> IO[bytes]:
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
    except FileExistsError:
        raise UsageError(f"{path} exists already") from None
    except OSError as exc:
        raise UsageError(f"{path}: {os.strerror(exc.errno or 0)}") from None


def _import(args: argparse.Namespace) -> int:
    path = _path(args)
    lock = take_state_dir(os.path.dirname(path))
    try:
        journal = SqliteJournal(path)
        try:
            if journal.seq >= 0:
                raise UsageError(f"{path} is not empty", "import into a new state directory")
            with open(args.file, "rb") as f:
                records, blobs = import_lines(journal, f)
        except OSError as exc:
            raise UsageError(f"{args.file}: {os.strerror(exc.errno or 0)}") from None
        finally:
            journal.close()
    finally:
        os.close(lock)
    if not records:
        raise PactError(f"{args.file} {EMPTY}", WHAT_THEN)
    if args.json:
        emit({"v": 1, "file": path, "records": records, "contents": blobs})
    else:
        say(f"{path}: {records} records, {blobs} contents, chain unbroken")
    return EXIT_DONE
