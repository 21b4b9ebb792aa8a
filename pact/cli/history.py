"""log, watch, show."""

from __future__ import annotations

import argparse
import base64
import difflib
import os
from datetime import UTC, datetime, timedelta
from typing import Any

from pact.cli.client import ask, stream
from pact.cli.render import clean, emit, emit_line, event_line, record_page, say
from pact.core.records import TYPES, rfc3339
from pact.core.units import parse_duration
from pact.errors import EXIT_DONE, UsageError

DEFAULT_COUNT = 20
NEAR = 0.5  # how alike a word must be to be named as the one that was meant


def _since(text: str | None) -> str:
    """A point in time as records write it."""
    if text is None:
        return ""
    try:
        then = datetime.now(UTC) - timedelta(microseconds=parse_duration(text) / 1000)
    except ValueError:
        try:
            then = datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(f"--since {text!r} is neither a duration nor an RFC 3339 time") from None
    try:
        at_us = int(then.astimezone(UTC).timestamp() * 1_000_000)
        return rfc3339(max(0, at_us) * 1000)  # a year below 1000 would sort wrongly
    except (ValueError, OverflowError, OSError):  # before the year 1, or after 9999, where time is counted
        raise UsageError(f"--since {text!r} is no time that a record can have") from None


def _require_type(name: str) -> None:
    """Raises UsageError for a type that no record has: no output would look like nothing has happened."""
    if name and name not in TYPES:
        near = difflib.get_close_matches(name, sorted(TYPES), 1, NEAR)
        raise UsageError(
            f"--type {name!r}: there are no such records",
            f"did you mean {near[0]!r}?" if near else f"types: {', '.join(sorted(TYPES))}",
        )


def log(args: argparse.Namespace) -> int:
    _require_type(args.type)
    count = args.n if args.n is not None else None if args.since is not None else DEFAULT_COUNT
    lines = stream(args.socket, "log", count=count, since=_since(args.since), type=args.type, follow=args.follow)
    return _print(args, (x for x in lines if not args.type or x["record"]["type"] == args.type))


def watch(args: argparse.Namespace) -> int:
    return _print(args, stream(args.socket, "watch"))


def _print(args: argparse.Namespace, lines: Any) -> int:
    for line in lines:
        if args.json:
            emit_line(line["record"])
        else:
            say(event_line(line["record"]), flush=True)
    return EXIT_DONE


def show(args: argparse.Namespace) -> int:
    if args.restore is not None:
        return _restore(args)
    answer = ask(args.socket, "show", seq=args.seq)
    if args.resource is not None:
        answer.result["contents"] = _only(args, answer.result["contents"])
    if args.json:
        emit({"v": 1, **answer.result})
    else:
        record_page(answer.result)
    return answer.exit


def _only(args: argparse.Namespace, contents: dict[str, Any]) -> dict[str, Any]:
    """What the record keeps of ``--resource``. Raises UsageError if that is nothing."""
    if args.resource not in contents:
        kept = ", ".join(map(clean, sorted(contents)[:5]))
        raise UsageError(
            f"record {args.seq} keeps no content of {clean(args.resource)}",
            f"it keeps: {kept}" if kept else "pact log --type rollback_started",
        )
    return {args.resource: contents[args.resource]}


def _restore(args: argparse.Namespace) -> int:
    answer = ask(args.socket, "content", seq=args.seq, resource=args.resource)
    data = base64.b64decode(answer.result["data"])
    try:
        fd = os.open(args.restore, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
    except FileExistsError:
        raise UsageError(f"{args.restore} exists already", "name a path that does not") from None
    except OSError as exc:
        raise UsageError(f"{args.restore}: {os.strerror(exc.errno or 0)}") from None
    if args.json:
        emit({"v": 1, "resource": answer.result["resource"], "path": args.restore, "bytes": len(data)})
    else:
        say(f"wrote {len(data)} bytes of {clean(answer.result['resource'])} to {args.restore}")
    return EXIT_DONE
