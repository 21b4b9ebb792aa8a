"""``pact journal``: verify, export and import, on the file itself; the agent need not run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

from pact.agent import config
from pact.agent.statedir import take_state_dir
from pact.cli.render import clean, emit, say
from pact.core.records import Record, verify
from pact.errors import EXIT_DONE, UsageError
from pact.journal.sqlite import FILE_NAME, SqliteJournal, export, import_lines, read_export

MAGIC = b"SQLite format 3\0"


def run(args: argparse.Namespace) -> int:
    action = {"verify": _verify, "export": _export, "import": _import}[args.action]
    return action(args)


def _path(args: argparse.Namespace) -> str:
    return os.path.join(config.load(args.config).state_dir, FILE_NAME)


def _verify(args: argparse.Namespace) -> int:
    path = args.file or _path(args)
    try:
        with open(path, "rb") as f:
            first = f.read(len(MAGIC))
    except OSError as exc:
        raise UsageError(f"{path}: {os.strerror(exc.errno or 0)}") from None
    count, last = 0, ""
    for record in verify(_database(path) if first == MAGIC else _lines(path)):
        count, last = count + 1, record.hash
    if args.json:
        emit({"v": 1, "file": path, "records": count, "hash": last, "ok": True})
    else:
        print(f"{path}: {count} records, chain unbroken, last hash {last[:16] or '-'}")
    return EXIT_DONE


def _database(path: str) -> Iterator[Record]:
    journal = SqliteJournal(path, read_only=True)
    try:
        yield from journal.records()
    finally:
        journal.close()


def _lines(path: str) -> Iterator[Record]:
    with open(path, "rb") as f:
        for item in read_export(f):
            if isinstance(item, Record):
                yield item


def _export(args: argparse.Namespace) -> int:
    journal = SqliteJournal(_path(args), read_only=True)
    try:
        if args.file:
            fd = os.open(args.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as out:
                records, blobs = export(journal, out)
                out.flush()
                os.fsync(out.fileno())
            if args.json:
                emit({"v": 1, "file": args.file, "records": records, "contents": blobs})
            else:
                say(f"{clean(args.file)}: {records} records, {blobs} contents")
        else:
            export(journal, sys.stdout.buffer)
    except FileExistsError:
        raise UsageError(f"{args.file} exists already") from None
    except OSError as exc:
        raise UsageError(f"{args.file}: {os.strerror(exc.errno or 0)}") from None
    finally:
        journal.close()
    return EXIT_DONE


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
    if args.json:
        emit({"v": 1, "file": path, "records": records, "contents": blobs})
    else:
        say(f"{path}: {records} records, {blobs} contents, chain unbroken")
    return EXIT_DONE
