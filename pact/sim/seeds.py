"""Which seeds a simulation runs: others each day, and those of ``PACT_SEED`` (the first) and ``PACT_SEEDS`` (how many).

Who finds a failure repeats it with ``PACT_SEED=N PACT_SEEDS=1``, which stands beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Final

DAY_S: Final = 86_400
A_DAY: Final = 100_000  # seeds that a day has for itself


def seeds(count: int) -> range:
    """``count`` seeds of this day, or what the environment says."""
    first = os.environ.get("PACT_SEED")
    many = int(os.environ.get("PACT_SEEDS", count))
    start = int(time.time()) // DAY_S * A_DAY if first is None else int(first)
    return range(start, start + many)


def blocks(of: range, size: int) -> list[range]:
    """The seeds in pieces of at most ``size``: one test each."""
    return [of[at : at + size] for at in range(0, len(of), size)]


def each(run: Callable[[int], object], of: Iterable[int]) -> None:
    """Run every seed. What one raises says which it was."""
    for seed in of:
        try:
            run(seed)
        except BaseException as exc:
            exc.add_note(f"repeat it with PACT_SEED={seed} PACT_SEEDS=1")
            raise
