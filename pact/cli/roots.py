"""Asking a root: the connection, the progress bar, and the result of a request."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from pact.cli.render import clean, spoken
from pact.errors import UnreachableError, UsageError
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.cluster.client import Result, RootClient

EVERY_S: Final = 0.1
NONSENSE: Final = "an answer that makes no sense"


# -- the connection -------------------------------------------------------------------------------------------------


def _say_waiting(why: str) -> None:
    if sys.stderr.isatty():
        print(f"pact: {clean(why)}; waiting for a root", file=sys.stderr, flush=True)  # an aggregator's words


@contextlib.contextmanager
def connected(args: argparse.Namespace, waiting: Callable[[str], None] = _say_waiting) -> Iterator[RootClient]:
    from pact.cluster.client import RootClient
    from pact.cluster.clientconfig import load_client
    from pact.net import keys

    config = load_client()
    via = args.via or ([config.via] if config.via else [])
    server_key = args.server_key or config.server_key
    path = args.key or config.key
    servers = [] if args.via else [(p.url, p.key) for p in config.servers]
    needed = [(path, "--key NAME.secret")]
    if not servers:
        needed = [("".join(via), "--via tcp://HOST:7417"), (server_key, "--server-key KEY"), *needed]
    if not any(value for value, _ in needed):
        raise UnreachableError(
            "no root is configured on this machine",
            "name one with --via, --server-key and --key, or in ~/.config/pact/client.toml or /etc/pact/client.toml",
        )
    for value, what in needed:
        if not value:
            raise UsageError(f"{what} is missing", "or write it in ~/.config/pact/client.toml or /etc/pact/client.toml")
    if via:
        server_key = keys.server_key(server_key, "" if args.server_key else config.directory)
    servers = [*((url, server_key) for url in via), *servers]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(path).removesuffix(".secret")) or "operator"
    with RootClient(servers, keys.load(path), name, waiting, _timeout_s(args), config.roots, config.sealed) as client:
        try:
            yield client
        except KeyboardInterrupt:
            client.cancel()
            raise


def _timeout_s(args: argparse.Namespace) -> float:
    return (getattr(args, "timeout", None) or 0) / NS_PER_S


# -- progress -------------------------------------------------------------------------------------------------------


class _Progress:
    """``312 of 4000`` on the terminal while answers come in; nothing if standard error is not a terminal."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self._shown_s = 0.0
        self._on = sys.stderr.isatty()

    def update(self, *, total: int | None = None, done: int | None = None, more: int = 0) -> None:
        self.total = self.total if total is None else total
        self.done = (self.done if done is None else done) + more
        now_s = time.monotonic()
        if self._on and now_s - self._shown_s >= EVERY_S:
            self._shown_s = now_s
            width = 30
            full = width * self.done // max(1, self.total)
            bar = "█" * full + "░" * (width - full)
            print(f"\r\x1b[2K{bar} {self.done} of {self.total} nodes", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._on and self._shown_s:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


class Answers:
    """All results: answers with the nodes that gave them, and the nodes that failed."""

    def __init__(
        self,
        parts: dict[bytes, list[str]] | None = None,
        failed: dict[str, str] | None = None,
        codes: list[int] | None = None,
    ) -> None:
        self.parts = {} if parts is None else parts
        self.failed = {} if failed is None else failed
        self.codes = [] if codes is None else codes


def ask(args: argparse.Namespace, op: str, fields: dict[str, Any], nodes: str | None) -> tuple[Answers, Result]:
    from pact.cluster.client import Parts, Progress, Result

    answers, progress = Answers(), _Progress()
    try:
        with connected(args) as client:
            for item in client.ask(op, fields, nodes, _timeout_s(args)):
                if isinstance(item, Parts):
                    answers.parts.setdefault(item.body, []).extend(item.names)
                    progress.update(more=len(item.names))
                elif isinstance(item, Progress):
                    progress.update(total=item.total, done=item.done)
                elif isinstance(item, Result):
                    return answers, item
    finally:
        progress.end()
    raise AssertionError("a request without a result")


@contextlib.contextmanager
def making_sense(who: str = "the root") -> Iterator[None]:
    """Answers are read and shown inside this: if one has the right form but wrong contents, the person is told that.
    Raises UnreachableError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        raise UnreachableError(
            f"{who}'s answer makes no sense", "is it of another version? see its log, and pact --version on both"
        ) from None


def say_failed(failed: dict[str, str]) -> None:
    sys.stdout.flush()
    for names, why in failed.items():
        print(f"pact: {clean(names)}: {spoken(why)}", file=sys.stderr)


def fold(names: Iterable[str]) -> str:
    """A node set as people write it."""
    from pact.cluster import nodesets

    return nodesets.fold(names)
