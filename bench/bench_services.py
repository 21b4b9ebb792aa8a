"""How soon a stopped service is recorded drift, and what the services of a node cost its agent.

On a real systemd (``tests/systemd_kit.py``), with an agent that is a unit of it. A service is stopped a hundred times,
by systemctl; the clock runs from when systemd has it as inactive until the time of the record, and, beside it, from
before systemctl is started. Memory is the agent's with two hundred services declared, less what it is with none, and
what a bare interpreter pays for jeepney. Needs root, mmdebstrap and systemd-nspawn. ``--quick`` for fewer rounds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests"), str(HERE.parent / "tests" / "e2e")]

from _beside import Figure, figure, main  # noqa: E402
from harness import wait_until  # noqa: E402
from systemd_kit import Machine, NodeAgent, boot  # noqa: E402

GOAL_MS = 20.0
SERVICES = 200
MODULE = "import sys,os\n{}\nprint(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')))"


def rss_mib(node: NodeAgent, machine: Machine) -> float:
    text = machine.path(f"/proc/{node.pid()}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS"))) / 1024


def cpu_s(node: NodeAgent, machine: Machine) -> float:
    fields = machine.path(f"/proc/{node.pid()}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / 100


def quiet(node: NodeAgent, machine: Machine) -> bool:
    before = cpu_s(node, machine)
    time.sleep(2)
    return cpu_s(node, machine) - before < 0.05


def interpreter_mib(code: str) -> float:
    done = subprocess.run([sys.executable, "-c", MODULE.format(code)], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def times_ms(node: NodeAgent, machine: Machine, rounds: int) -> tuple[list[float], list[float]]:
    """From inactive, and from before systemctl, to the record."""
    since_inactive, since_command = list[float](), list[float]()
    for _ in range(rounds):
        before = len(node.records("drift_detected"))
        began = time.time()
        machine.systemctl("stop", "bench")
        wait_until(lambda seen=before: len(node.records("drift_detected")) > seen, "it is recorded")  # type: ignore[misc]
        recorded = datetime.fromisoformat(node.newest("drift_detected")["time"]).timestamp()
        stamp = machine.systemctl("show", "--timestamp=us+utc", "-P", "InactiveEnterTimestamp", "bench").out.strip()
        stopped = datetime.strptime(stamp + " +0000", "%a %Y-%m-%d %H:%M:%S.%f UTC %z").timestamp()
        since_inactive.append((recorded - stopped) * 1000)
        since_command.append((recorded - began) * 1000)
        machine.systemctl("start", "bench")
        wait_until(lambda: node.status()["drifted"] == 0, "it is as declared")
        time.sleep(0.6)  # a resource that has just drifted is looked at again half a second later
    return since_inactive, since_command


def figures(machine: Machine, node: NodeAgent, quick: bool) -> list[Figure]:
    out = []
    machine.service("bench", more="[Unit]\nStartLimitIntervalSec=0\n")
    machine.systemctl("enable", "--now", "bench")
    node.adopt("service:bench")
    taken, whole = times_ms(node, machine, 20 if quick else 100)
    worst = sorted(taken)[int(len(taken) * 0.99) - 1]
    share = sum(t < GOAL_MS for t in taken) / len(taken) * 100
    out.append(figure("stopped to recorded drift, median", statistics.median(taken), "ms"))
    out.append(figure("stopped to recorded drift, 99th of 100", worst, "ms", "< 20", worst < GOAL_MS))
    out.append(figure("stopped and recorded within 20 ms", share, "%", ">= 99", share >= 99))
    out.append(figure("systemctl stop to recorded drift, median", statistics.median(whole), "ms"))
    out.append(figure("systemctl stop to recorded drift, 99th of 100", sorted(whole)[int(len(whole) * 0.99) - 1], "ms"))
    node.clear()
    return out


def many(machine: Machine, node: NodeAgent, quick: bool) -> list[Figure]:
    bare = rss_mib(node, machine)
    for number in range(SERVICES):
        machine.service(f"many{number}", reload=False)
    machine.systemctl("daemon-reload")
    names = [f"many{n}" for n in range(SERVICES)]
    machine.systemctl("start", *names)
    began = time.monotonic()
    node.adopt("service:**")
    took = time.monotonic() - began
    count = node.status()["declared"]
    wait_until(lambda: quiet(node, machine), "all has been looked at", 60)
    used, seconds = cpu_s(node, machine), 20 if quick else 60
    time.sleep(seconds)
    idle = (cpu_s(node, machine) - used) / seconds * 100
    return [
        figure(f"adopt 'service:**' ({count} units)", took, "s", "< 3", took < 3),
        figure("a unit of it", took / count * 1000, "ms"),
        figure(f"memory for {count} services and their source", rss_mib(node, machine) - bare, "MiB"),
        figure(f"idle with {count} services", idle, "% of a core", "< 0.2", idle < 0.2),
    ]


def run(quick: bool = False) -> list[Figure]:
    base = Path(tempfile.mkdtemp(prefix="pact-bench-"))
    base.chmod(0o755)
    machine = boot(base)
    try:
        node = NodeAgent(machine, base / "node", {"observe": {"rescan": "5m"}})
        node.start()
        out = many(machine, node, quick) + figures(machine, node, quick)
        node.close()
    finally:
        machine.close()
    plain = interpreter_mib("")
    out.append(figure("memory of jeepney in a bare interpreter", interpreter_mib("import jeepney") - plain, "MiB"))
    return out


if __name__ == "__main__":
    main(run)
