"""A whole machine with every dimension on: how long its adoption takes, what the agent needs of memory, and when idle.

/etc, sysctls, tunables below /sys, mounts, modules, links and packages of the machine on which this runs, and its
services where systemd runs it. Nothing is changed: what is adopted is only read.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _beside import Figure, figure, main  # noqa: E402
from bench_agent import Running  # noqa: E402

PATTERNS = ["file:/etc/**", "sysctl:**", "sysfs:**", "mount:**", "module:**", "link:**", "package:**"]
IDLE_S = 30.0


def run(quick: bool = False) -> list[Figure]:
    """Needs root."""
    patterns = [*PATTERNS, "service:**"] if os.path.isdir("/run/systemd/system") else PATTERNS
    agent = Running(1)
    try:
        agent.start()
        began = time.perf_counter()
        answer = agent.ask("adopt", patterns=patterns)
        took_s = time.perf_counter() - began
        count = answer["result"]["adopted"]
        names = ", ".join(p.partition(":")[0] for p in patterns)
        figures = [figure(f"adopt of {count:,} resources of this machine ({names})", took_s, "s", "< 3", took_s < 3)]
        time.sleep(5)
        before, idle_s = agent.cpu_ns(), 5.0 if quick else IDLE_S
        time.sleep(idle_s)
        share = (agent.cpu_ns() - before) / (idle_s * 1e9) * 100
        rss = agent.rss_mib()
        figures.append(figure("idle with all of it: share of a core", share, "%", "< 0.2", share < 0.2))
        figures.append(figure("memory with all of it", rss, "MiB RSS", "< 45", rss < 45))
        return figures
    finally:
        agent.close()


if __name__ == "__main__":
    main(run)
