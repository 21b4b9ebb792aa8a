"""The seeds of a simulation: different ones each day, or those of ``PACT_SEED`` (the first) and ``PACT_SEEDS`` (how
many).

A failure names its seed; ``PACT_SEED=N PACT_SEEDS=1`` repeats it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Final

DAY_S: Final = 86_400
A_DAY: Final = 100_000  # seeds reserved for each day


def seeds(count: int) -> range:
    """``count`` seeds of this day, or those that the environment gives."""
    first = os.environ.get("PACT_SEED")
    many = int(os.environ.get("PACT_SEEDS", count))
    start = int(time.time()) // DAY_S * A_DAY if first is None else int(first)
    return range(start, start + many)


def blocks(of: range, size: int) -> list[range]:
    """The seeds in pieces of at most ``size``: one test each."""
    return [of[at : at + size] for at in range(0, len(of), size)]


def each(run: Callable[[int], object], of: Iterable[int]) -> None:
    """Run every seed. An exception names its seed."""
    for seed in of:
        try:
            run(seed)
        except BaseException as exc:
            exc.add_note(f"repeat it with PACT_SEED={seed} PACT_SEEDS=1")
            raise
