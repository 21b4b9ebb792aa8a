"""What attribution costs a machine, and how many short-lived writers it finds.

Four ways beside each other, in turns: /proc alone at normal priority, exec events, real time, and both (the default);
on an idle machine and under a fork storm on every CPU. A writer counts as *found* with its user and cgroup, as *whole*
with its command line too. The storm's own rate with and without an observer is the price. Also: from the write to the
event in the loop, and what 100,000 events about undeclared names in a watched directory cost.

Needs root. ``--quick`` for fewer rounds, ``--json`` for figures.
"""

from __future__ import annotations

import os
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _beside import Figure, figure, main

from pact.observe import Observers, open_observers
from pact.observe.base import Touched

WAYS: dict[str, dict[str, Any]] = {
    "proc alone": {"realtime": False, "proc_connector": False},
    "exec events": {"realtime": False, "proc_connector": True},
    "real time": {"realtime": True, "proc_connector": False},
    "both": {"realtime": True, "proc_connector": True},
}
SYSCTL = "/proc/sys/vm/swappiness"
STORM = """
import os, sys, time
end = time.monotonic() + float(sys.argv[1])
n = 0
while time.monotonic() < end:
    os.waitpid(os.posix_spawn("/bin/true", ["/bin/true"], {}), 0)
    n += 1
print(n)
"""
NOISE = """
import os, sys
fds = [os.open(f"{sys.argv[1]}/noise{i}", os.O_CREAT | os.O_WRONLY) for i in range(2000)]
for _ in range(50):
    for fd in fds:
        os.pwrite(fd, b"x", 0)
"""


@contextmanager
def opened(way: str) -> Iterator[Observers]:
    obs = open_observers(**WAYS[way])
    try:
        yield obs
    finally:
        obs.close()


def start_storm(seconds: float) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-S", "-c", STORM, str(seconds)]
    return [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(os.cpu_count() or 1)]


def storm_rate(seconds: float) -> float:
    return sum(int(p.communicate()[0]) for p in start_storm(seconds)) / seconds


def wait_for(obs: Observers, path: bytes) -> Touched | None:
    end = time.monotonic() + 1
    while time.monotonic() < end:
        select.select([obs.fileno()], [], [], 0.2)
        for event in obs.drain(64):
            if isinstance(event, Touched) and event.path == path:
                return event
    return None


def shares(obs: Observers, times: int) -> tuple[float, float]:
    """Share of writers found, and with their command line."""
    path = SYSCTL.encode()
    obs.watch(path)
    value = Path(SYSCTL).read_text().strip()
    argv = ["/usr/sbin/sysctl", "-qw", f"vm.swappiness={value}"]
    found = whole = 0
    for _ in range(times):
        # a parent that reaps at once, as a shell does
        os.waitpid(os.posix_spawn(argv[0], argv, {}), 0)
        event = wait_for(obs, path)
        if event is not None and event.writer is not None:
            found += 1
            whole += "-qw" in event.writer.command
    return found / times, whole / times


def latency_us(obs: Observers, times: int) -> tuple[float, float]:
    """From before the write until the loop has the event: median and 99th percentile."""
    with tempfile.TemporaryDirectory() as top:
        path = os.fsencode(top) + b"/f"
        obs.watch(path)
        code = (
            "import os,sys,time\nfor line in sys.stdin:\n"
            f" t=time.clock_gettime_ns(time.CLOCK_BOOTTIME); f=os.open({path!r},65); os.write(f,b'%d'%t); os.close(f)\n"
        )
        writer = subprocess.Popen([sys.executable, "-u", "-c", code], stdin=subprocess.PIPE)
        assert writer.stdin
        took: list[float] = []
        for _ in range(times):
            writer.stdin.write(b"\n")
            writer.stdin.flush()
            if wait_for(obs, path) is None:
                continue
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            time.sleep(0.002)
            obs.drain(64)
            took.append((now_ns - int(Path(os.fsdecode(path)).read_bytes())) / 1000)
        writer.communicate()
    took.sort()
    return statistics.median(took), took[int(len(took) * 0.99)]


def noise_cost(obs: Observers) -> tuple[float, int]:
    """CPU of this process per event about undeclared names, in microseconds; and how many got through to the loop."""
    with tempfile.TemporaryDirectory() as top:
        obs.watch(os.fsencode(top) + b"/declared")
        before, read = resource.getrusage(resource.RUSAGE_SELF), obs.stats()["read"]
        subprocess.run([sys.executable, "-c", NOISE, top], check=True)
        time.sleep(0.2)
        kept = len(obs.drain(1000))
        after, stats = resource.getrusage(resource.RUSAGE_SELF), obs.stats()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu * 1e6 / max(1, stats["read"] - read), kept


def run(quick: bool) -> list[Figure]:
    rounds, seconds, writers = (3, 0.5, 40) if quick else (9, 1.0, 200)
    out: list[Figure] = []

    rates: dict[str, list[float]] = {way: [] for way in ("none", *WAYS)}
    storm_rate(0.3)
    for _ in range(rounds):
        rates["none"].append(storm_rate(seconds))
        for way in WAYS:
            with opened(way):
                rates[way].append(storm_rate(seconds))
    alone = statistics.median(rates["none"])
    out.append(figure("fork storm, no observer", alone, "execs/s"))
    for way in WAYS:
        ratios = [with_it / without for with_it, without in zip(rates[way], rates["none"], strict=True)]
        out.append(figure(f"fork storm, {way}", statistics.median(ratios), "of its rate without"))

    for load in ("idle", "storm"):
        for way in WAYS:
            with opened(way) as obs:
                storm = start_storm(writers / 20) if load == "storm" else []
                found, whole = shares(obs, writers)
                for process in storm:
                    process.kill()
                    process.communicate()
            out.append(figure(f"short-lived writers found, {load}, {way}", found, "share"))
            out.append(figure(f"  with their command line, {load}, {way}", whole, "share"))

    with opened("both") as obs:
        median, p99 = latency_us(obs, 100 if quick else 1000)
        out.append(figure("write to event in the loop", median, "us", "<= 1000", median <= 1000))
        out.append(figure("  99th percentile", p99, "us"))
    with opened("both") as obs:
        cost, kept = noise_cost(obs)
        out.append(figure("undeclared name in a watched directory", cost, "us of CPU", kept=kept))
    return out


if __name__ == "__main__":
    main(run)
