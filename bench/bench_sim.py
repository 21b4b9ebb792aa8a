"""The simulations' speed: steps of random lives a second of one core's time.

A step is what a life does to its world (a write, a request, a while that passes), with all that follows from it; the
healing at the end and all checks are in the time. ``PACT_SEED`` is the first of the seeds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests")]

import test_cluster_simulation as cluster  # noqa: E402
import test_simulation as one  # noqa: E402
from _beside import Figure, figure, main  # noqa: E402

#: Three times the 8,100 and 2,500 of before starts went on from snapshots and nodes were woken when they asked for it;
#: those were measured on an idle machine.
GOALS = {"one": 24_300, "cluster": 7_500}


def speed(live: Callable[[int], object], count: int, steps: int) -> float:
    """Steps a second of processor time."""
    first = int(os.environ.get("PACT_SEED", "0"))
    start = time.process_time()
    for seed in range(first, first + count):
        live(seed)
    return count * steps / (time.process_time() - start)


def run(quick: bool = False) -> list[Figure]:
    count = 60 if quick else 600
    alone, together = speed(one.live, count, one.STEPS), speed(cluster.live, count, cluster.STEPS)
    return [
        figure("random steps of one node", alone, "steps/s", f">= {GOALS['one']}", alone >= GOALS["one"]),
        figure(
            "random steps of a root with two to six nodes",
            together,
            "steps/s",
            f">= {GOALS['cluster']}",
            together >= GOALS["cluster"],
        ),
    ]


if __name__ == "__main__":
    main(run)
