"""The actions of ``pact journal`` on a node's journal, on the files themselves; the agent need not run."""

from __future__ import annotations

import argparse
import os
import pwd
import re
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

import orjson

from pact.agent import config
from pact.agent.statedir import take_state_dir
from pact.cli.render import clean, emit, say
from pact.core.node import fold
from pact.core.node.payloads import LossAccepted
from pact.core.node.state import State
from pact.core.records import Record, rfc3339, seal, verify
from pact.errors import EXIT_DONE, ChainError, JournalError, PactError, UsageError
from pact.journal.head import Head, head_path, read_head
from pact.journal.moving import export, import_lines, read_export
from pact.journal.sqlite import FILE_NAME, SqliteJournal
from pact.model import Actor

MAGIC = b"SQLite format 3\0"
EMPTY = "holds no record"
WHAT_THEN = "it is no journal, or was emptied"


def run(args: argparse.Namespace) -> int:
    action = {"verify": _verify, "export": _export, "import": _import, "accept-loss": _accept_loss}[args.action]
    return action(args)


def _path(args: argparse.Namespace) -> str:
    return os.path.join(config.load(args.config).state_dir, FILE_NAME)


def _journal(args: argparse.Namespace) -> SqliteJournal:
    """The configured agent's journal, for reading. Raises JournalError."""
    path = _path(args)
    try:
        os.stat(path)
    except OSError as exc:
        raise JournalError(
            f"journal {path}: {os.strerror(exc.errno or 0)}",
            "has the agent run here? name its agent.toml with --config",
        ) from None
    return SqliteJournal(path, read_only=True, guard=True)


def _verify(args: argparse.Namespace) -> int:
    path, count, last = args.file or _path(args), 0, ""
    expected = _expected(args.expect)
    for record in verify(_records(args)):
        count, last = count + 1, record.hash
        if record.seq in expected and record.hash != expected[record.seq]:
            raise ChainError(record.seq, f"has the hash {record.hash}, and not the one that was expected")
    missing = [seq for seq in expected if seq >= count]
    if missing:
        raise ChainError(missing[0], "is missing: it was expected")
    if not count:  # every journal begins with a record; an emptied one has no chain to verify
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
        with open(args.file, "rb") as f:  # open it only once: a pipe cannot be read again
            first = f.read(len(MAGIC))
            if first != MAGIC:
                yield from _lines(first, f, marked=not args.without_mark)
                return
            if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
                raise UsageError(f"{args.file} is a journal's database in a pipe", "give its path, or pipe an export")
    except OSError as exc:
        raise UsageError(f"{args.file}: {os.strerror(exc.errno or 0)}") from None
    yield from _database(SqliteJournal(args.file, read_only=True, guard=True))


def _expected(said: list[str] | None) -> dict[int, str]:
    """``SEQ:HASH`` of records from another source. Raises UsageError."""
    found = {}
    for one in said or ():
        seq, _, hash_ = one.partition(":")
        if not seq.isascii() or not seq.isdigit() or not re.fullmatch("[0-9a-f]{64}", hash_):
            raise UsageError(f"--expect {one!r} is not SEQ:HASH", "as pact --json nodes says them")
        found[int(seq)] = hash_
    return found


def _database(journal: SqliteJournal) -> Iterator[Record]:
    """All records; at the end the head and the snapshot are compared with them. Raises ChainError."""
    state: State | None = State()
    try:
        snapshot = journal.load_snapshot()
        for record in journal.records():
            yield record  # when the verifying caller asks for the next record, it has verified this one
            if snapshot is not None and state is not None:
                fold.apply(state, record)
                if record.seq == snapshot["seq"]:
                    _require_same(state, snapshot)
                    state = None
        if journal.seq >= 0:
            journal.require_head()
    finally:
        journal.close()


def _require_same(state: State, snapshot: Mapping[str, Any]) -> None:
    """Check that a snapshot equals its records: a start uses it in place of them. Raises ChainError."""
    try:
        kept = State.from_json(snapshot).to_json()
    except (KeyError, TypeError, ValueError):
        return  # of another version: no start uses it
    if orjson.dumps(kept, option=orjson.OPT_SORT_KEYS) != orjson.dumps(state.to_json(), option=orjson.OPT_SORT_KEYS):
        raise ChainError(state.seq, "is whole, but the snapshot after it is not what the records make")


def _lines(first: bytes, rest: IO[bytes], *, marked: bool) -> Iterator[Record]:
    if first.startswith(b'{"root":'):
        raise UsageError("this is a backup of a root's log", "name the root's configuration with --root")

    def lines() -> Iterator[bytes]:
        begun = (first + rest.readline()).splitlines(keepends=True)
        yield from begun
        yield from rest

    for item in read_export(lines(), marked=marked):
        if isinstance(item, Record):
            yield item


def _export(args: argparse.Namespace) -> int:
    journal = _journal(args)
    try:
        if not args.file:
            export(journal, sys.stdout.buffer)
            return EXIT_DONE
        with created(args.file) as out:
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


def created(path: str) -> IO[bytes]:
    """A new file for writing, which only its owner can read. Raises UsageError."""
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
            head = read_head(head_path(path))
            if head is not None and head.seq >= 0:  # a head without records may be left by an interrupted import
                raise UsageError(
                    f"{head_path(path)} is of a journal that is not there any more: the directory is not empty",
                    "import into a new state directory",
                )
            with open(args.file, "rb") as f:
                records, blobs = import_lines(journal, f, marked=not args.without_mark)
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


def _accept_loss(args: argparse.Namespace) -> int:
    """Go on with a journal whose end is lost. Its next record says what is missing, who accepted the loss, and why."""
    path = _path(args)
    _journal(args).close()  # check that it exists
    lock = take_state_dir(os.path.dirname(path))
    try:
        journal = SqliteJournal(path)
        try:
            last = None
            for last in verify(journal.records()):  # noqa: B007  (the newest one is wanted)
                pass
            if last is None:
                raise UsageError(f"{path} {EMPTY}", "start the agent on a new state directory")
            lost = _lost(journal)
            row = seal(
                last.seq + 1,
                last.hash,
                rfc3339(time.time_ns()),
                last.t_ns,
                last.node,
                LossAccepted.type,
                _me().to_json(),
                LossAccepted(**lost, message=args.message).to_data(),
            )
            journal.accept_loss(row)
        finally:
            journal.close()
    finally:
        os.close(lock)
    if args.json:
        emit({"v": 1, "file": path, "seq": row[0].seq, **lost})
    else:
        say(f"{path}: {_missing(lost)}; record {row[0].seq} says so, and the agent may be started")
    return EXIT_DONE


def _missing(lost: dict[str, Any]) -> str:
    if lost["last"] is None:
        return "what is missing is not known"
    return f"records {lost['first']} to {lost['last']} are gone"


def _lost(journal: SqliteJournal) -> dict[str, Any]:
    """Which acknowledged records are missing: numbers, and the hash of the last one, as far as that is known. Raises
    UsageError if none is.
    """
    try:
        head: Head | None = read_head(head_path(journal.path))
        journal.require_head()
    except ChainError as exc:
        assert head is not None
        return {"first": exc.seq, "last": head.seq, "hash": head.hash}
    except JournalError:  # the head itself is damaged
        return {"first": journal.seq + 1, "last": None, "hash": None}
    raise UsageError(f"{journal.path} ends where it should: nothing is missing", "start the agent")


def _me() -> Actor:
    """The person who runs this command: the one who logged in, if that is known."""
    uid = os.getuid()
    try:
        with open("/proc/self/loginuid", encoding="ascii") as f:
            login = int(f.read())
        uid = login if login != (1 << 32) - 1 else uid
    except (OSError, ValueError):
        pass
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Actor(name, uid, "admin", "command")
