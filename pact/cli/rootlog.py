"""The actions of ``pact journal --root``: verify, back up and restore the log of a root, on SQLite or etcd."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pact.cli.journal import EMPTY, WHAT_THEN, created
from pact.cli.render import clean, emit, say
from pact.cluster import config
from pact.errors import EXIT_DONE, JournalError, PactError, UsageError
from pact.journal.rootlog import LogStore
from pact.journal.rootlog_moving import Backup, fill_store, read_backup, read_store
from pact.journal.stores import open_store

NEW = ".import"


def run(args: argparse.Namespace) -> int:
    action = {"verify": _verify, "export": _export, "import": _import}[args.action]
    return action(args, config.load(args.root))


@contextmanager
def _store(settings: config.AggregatorConfig, url: str = "") -> Iterator[LogStore]:
    store = open_store(url or settings.journal, settings.cluster, settings.journal_options)
    try:
        yield store
    finally:
        store.close()


def _path(settings: config.AggregatorConfig) -> str:
    """The path of SQLite's file; empty for etcd."""
    url = settings.journal
    return "/" + url.removeprefix("sqlite://").lstrip("/") if url.startswith("sqlite://") else ""


def _read(settings: config.AggregatorConfig) -> Backup:
    path = _path(settings)
    if path and not os.path.exists(path):
        raise JournalError(f"root's log {path}: {os.strerror(2)}", "has a root run here?")
    with _store(settings) as store:
        return read_store(store, settings.cluster)


def _file(args: argparse.Namespace) -> Backup:
    try:
        with open(args.file, "rb") as f:
            backup = read_backup(f)
    except OSError as exc:
        raise UsageError(f"{args.file}: {os.strerror(exc.errno or 0)}") from None
    return backup


def _say(args: argparse.Namespace, where: str, backup: Backup, what: str) -> int:
    end = backup.end()
    if args.json:
        emit(
            {
                "v": 1,
                "file": where,
                "cluster": backup.cluster,
                "chunks": end["chunks"],
                "gseq": end["gseq"],
                "snapshot": end["snapshot"] is not None,
                "ok": True,
            }
        )
    else:
        say(f"{clean(where)}: the log of {clean(backup.cluster)} up to event {end['gseq']}, {what}")
    return EXIT_DONE


def _verify(args: argparse.Namespace, settings: config.AggregatorConfig) -> int:
    backup = _file(args) if args.file else _read(settings)
    where = args.file or settings.journal
    if backup.events < 0:
        raise PactError(f"{where} {EMPTY}", WHAT_THEN)
    return _say(args, where, backup, f"{len(backup.chunks)} chunks follow")


def _export(args: argparse.Namespace, settings: config.AggregatorConfig) -> int:
    backup = _read(settings)
    if not args.file:
        backup.write(sys.stdout.buffer)
        return EXIT_DONE
    with created(args.file) as out:
        backup.write(out)
        out.flush()
        os.fsync(out.fileno())
    return _say(args, args.file, backup, "backed up")


def _import(args: argparse.Namespace, settings: config.AggregatorConfig) -> int:
    """Import completely or not at all: SQLite's file gets its name when it is complete; on etcd the snapshot comes
    last."""
    backup, path = _file(args), _path(settings)
    if backup.cluster != settings.cluster:
        raise UsageError(f"{args.file} is the log of cluster {backup.cluster}, not of {settings.cluster}")
    if backup.events < 0:
        raise PactError(f"{args.file} {EMPTY}", WHAT_THEN)
    if not path:
        with _store(settings) as store:
            fill_store(store, backup, settings.name)
        return _say(args, settings.journal, backup, "brought back")
    there = [path + rest for rest in ("", "-wal", "-shm", "-journal") if os.path.exists(path + rest)]
    if there:  # SQLite would use an old write-ahead log beside the new file
        raise UsageError(f"{', '.join(there)} exists already", f"stop every root and move {path}* aside")
    for rest in ("", "-wal", "-shm", ".lock", ".head"):
        if os.path.exists(path + NEW + rest):
            os.unlink(path + NEW + rest)  # from an interrupted import
    with _store(settings, "sqlite://" + path + NEW) as store:
        fill_store(store, backup, settings.name)
    for rest in (".lock", ".head"):
        os.unlink(path + NEW + rest)  # the first root that leads creates them anew
    os.rename(path + NEW, path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return _say(args, path, backup, "brought back")
