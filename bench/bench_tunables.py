"""Values below /sys, declared commands and GPUs: what looking at them costs, how soon a drift is on record, and memory.

A real agent adopts every tunable that this machine has, and watches a dozen commands and a GPU (without NVML: it asks
for it all the same). Loop devices of our own serve for the writes.
"""

from __future__ import annotations

import fcntl
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _beside import Figure, figure, main  # noqa: E402
from bench_agent import Running  # noqa: E402

from pact.resources.kinds.sysfs import KIND  # noqa: E402

LOOP_CTL_ADD, LOOP_CTL_REMOVE = 0x4C80, 0x4C81
FIRST_DISK = 300
PATTERN = "sysfs:**"


def looks(rounds: int) -> list[Figure]:
    """Finding and reading all tunables, in this process."""
    find, read, names = list[float](), list[float](), list[str]()
    for _ in range(rounds):
        begin = time.perf_counter()
        names = list(KIND.discover("**").names)
        find.append((time.perf_counter() - begin) * 1000)
        begin = time.perf_counter()
        for name in names:
            KIND.observe(name)
        read.append((time.perf_counter() - begin) * 1000)
    count = len(names)
    return [
        figure(f"finding this machine's {count} tunables below /sys", statistics.median(find), "ms"),
        figure(f"reading {count} of them", statistics.median(read), "ms"),
        figure("reading one", statistics.median(read) / max(1, count) * 1000, "us", "< 50"),
    ]


@contextmanager
def disks(count: int) -> Iterator[list[int]]:
    """Loop devices of our own. Each is written once: a resource that moves again is observed at a slower pace."""
    made = list[int]()
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for number in range(FIRST_DISK, FIRST_DISK + count):
            fcntl.ioctl(control, LOOP_CTL_ADD, number)
            made.append(number)
        yield made
    finally:
        for number in made:
            fcntl.ioctl(control, LOOP_CTL_REMOVE, number)
        os.close(control)


def latencies(agent: Running, writes: int) -> list[float]:
    """Milliseconds from a write to having read its durable record, sorted. The write itself takes the kernel ten, in
    which it waits for the disk's queue to be empty."""
    out = list[float]()
    with disks(writes) as numbers, agent.connect() as sock, sock.makefile("rb") as lines:
        sock.settimeout(10)
        names = [f"block/loop{number}/queue/read_ahead_kb" for number in numbers]
        agent.ask("declare", resources=declared("sysfs", {n: Path(f"/sys/{n}").read_text().strip() for n in names}))
        time.sleep(1)
        sock.sendall(b'{"v":1,"op":"watch","args":{}}\n')
        time.sleep(0.2)
        for name in names:
            Path(f"/sys/{name}").write_text("256\n")
            begin = time.perf_counter()
            while True:
                record = json.loads(lines.readline())["record"]
                if record["type"] == "drift_detected" and record["data"]["resource"] == f"sysfs:{name}":
                    break
            out.append((time.perf_counter() - begin) * 1000)
            time.sleep(0.01)
        agent.ask("declare", resources={}, prune=True)
    return sorted(out)


def declared(kind: str, entries: dict[str, Any]) -> dict[str, Any]:
    from pact.resources import KINDS

    parsed = {f"{kind}:{name}": KINDS[kind].parse(name, value, "/").declared for name, value in entries.items()}
    return {resource: value.to_json() for resource, value in parsed.items()}


def memory(agent: Running) -> list[Figure]:
    """What each kind adds to an agent, one after the other."""
    out, before = list[Figure](), agent.rss_mib()
    adopted = agent.ask("adopt", patterns=[PATTERN])["result"]["adopted"]
    agent.stop()
    agent.start()
    after = agent.rss_mib()
    out.append(figure(f"memory: {adopted} tunables", after - before, "MiB RSS"))
    commands = {f"c{n}": {"observe": ["uname", "-r"], "state": os.uname().release, "every": "5m"} for n in range(12)}
    for what, entries in (
        ("a dozen commands", declared("command", commands)),
        ("a GPU", declared("gpu", {"0000:3b:00.0": {"persistence": True}})),
    ):
        before = agent.rss_mib()
        agent.ask("declare", resources=entries)
        time.sleep(3)
        out.append(figure(f"memory: {what}", agent.rss_mib() - before, "MiB RSS"))
    total = agent.rss_mib()
    out.append(figure("memory of the agent with all three", total, "MiB RSS", "< 45", total < 45))
    return out


def loop_ns(agent: Running) -> int:
    """The time of the loop's thread. The thread that reads events works for every process that starts on the machine,
    whatever is declared: bench_agent measures that."""
    return int(Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/schedstat").read_text().split()[0])


def run(quick: bool = False) -> list[Figure]:
    """All figures. Needs root."""
    figures = looks(3 if quick else 9)
    agent = Running(0)
    try:
        agent.start()
        begin = time.perf_counter()
        agent.ask("adopt", patterns=[PATTERN])
        took_s = time.perf_counter() - begin
        agent.ask("declare", resources={}, prune=True)
        figures.append(figure("adopt of them, to its durable record", took_s * 1000, "ms", "< 300", took_s < 0.3))
        times = latencies(agent, 30 if quick else 100)
        p99 = times[int(len(times) * 0.99)]
        figures.append(figure("write below /sys to durable record: median", statistics.median(times), "ms"))
        figures.append(figure("write below /sys to durable record: 99th percentile", p99, "ms", "< 20", p99 < 20))
        agent.ask("declare", resources={}, prune=True)
        agent.stop()
        agent.start()
        figures += memory(agent)
        time.sleep(2)
        before, idle_s = loop_ns(agent), 10.0 if quick else 60.0
        time.sleep(idle_s)
        share = (loop_ns(agent) - before) / (idle_s * 1e9) * 100
        figures.append(figure("idle with all three, the loop: share of a core", share, "%", "< 0.2", share < 0.2))
    finally:
        agent.close()
    return figures


if __name__ == "__main__":
    main(run)
