"""What a fuzz target is, and what all of them share: reading choices from bytes, time limits, corpora as text.

A target is a function of bytes that gives them to a real entrance and asserts what must hold. It returns for every
input, or raises: whatever it raises is a finding. It keeps nothing from one input to the next that would change what
the next one does, so that one file is enough to run a finding again.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

HERE: Final = Path(__file__).resolve().parent
CORPUS: Final = HERE / "corpus"
FOUND: Final = HERE / "found"
SLOW_S: Final = 2.0  # of a processor, for one input: what takes longer is a finding
NATIVE_SLOWER: Final = 5  # with sanitizers


class TooSlow(AssertionError):
    """One input took longer than any may."""


@dataclass(frozen=True)
class Target:
    """``run`` takes one input. ``seeds`` are inputs to begin with, besides those that are kept. ``words``: what the
    entrance looks for, and bytes alone would hardly hit upon."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    words: Sequence[bytes] = ()
    size_max: int = 4096
    slow_s: float = SLOW_S
    also: Callable[[], None] = field(default=lambda: None)

    def __call__(self, data: bytes) -> None:
        began_s = time.process_time()
        self.run(data)
        took_s = time.process_time() - began_s
        if took_s > self.slow_s:
            raise TooSlow(f"{took_s:.1f} s for {len(data)} bytes")


class Feed:
    """Choices, one after another, from bytes; zeros when there are no more."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def take(self, size: int) -> bytes:
        out = self.data[self.at : self.at + size]
        self.at += size
        return out

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")

    def pick(self, among: Sequence[T]) -> T:
        return among[self.number() % len(among)]

    def piece(self) -> bytes:
        """Some bytes, their number before them."""
        return self.take(self.number(2))

    def rest(self) -> bytes:
        return self.take(len(self.data))


def piece(data: bytes) -> bytes:
    """What ``Feed.piece`` reads back."""
    return len(data).to_bytes(2, "little") + data


def outcome(call: Callable[[], Any], *expected: type[Exception]) -> Any:
    """What it gives, or the expected error's type: for comparing two that must do the same."""
    try:
        return call()
    except expected as exc:
        return type(exc)


# -- corpora as text: one input a line, as Python writes bytes ----------------------------------------------------------


def kept(path: Path) -> Iterator[bytes]:
    """The inputs of a file; lines with ``#`` say what they are."""
    if path.exists():
        for line in path.read_text(encoding="ascii").splitlines():
            if line and not line.startswith("#"):
                yield ast.literal_eval(line)


def keep(path: Path, inputs: Iterable[bytes], about: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    head = f"# {about}\n" if about else ""
    path.write_text(
        head + "".join(f"{data!r}\n" for data in sorted(set(inputs), key=lambda d: (len(d), d))), encoding="ascii"
    )


def start(target: Target) -> list[bytes]:
    """Every input that fuzzing of this target begins with."""
    all_ = [*target.seeds(), *kept(CORPUS / f"{target.name}.txt"), *kept(FOUND / f"{target.name}.txt")]
    return list({hashlib.sha256(d).digest(): d for d in all_ if len(d) <= target.size_max}.values())


#: The environment's name for a directory of files that targets need; whoever runs many of them makes and removes it.
SCRATCH: Final = "PACT_FUZZ_SCRATCH"


def in_memory() -> str | None:
    """A place for files that nobody waits for; None: the usual one."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def scratch() -> str:
    """A directory of this process's own. A fuzzer ends without any last word: then whoever runs it removes it."""
    above = os.environ.get(SCRATCH)
    made = tempfile.mkdtemp(prefix="pact-fuzz-", dir=above or in_memory())
    if above is None:
        atexit.register(shutil.rmtree, made, True)
    return made
