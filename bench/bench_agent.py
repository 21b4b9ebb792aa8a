"""The running agent: from the write to the durable record, start, memory, idleness, and asking who uses what.

A real agent, a separate process, watches 10,000 files of 1 to 4 KiB and 100 sysctls (2,000 files in a quick run). The
latency ends when a follower has read the record from the control socket, which is after it is durable.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _beside import Figure, faster, figure, main  # noqa: E402

from pact.core.node.events import Observed, Scanned, Sighting, Started  # noqa: E402
from pact.core.node.step import Node  # noqa: E402
from pact.core.settings import Settings  # noqa: E402
from pact.resources.kinds.file import leased  # noqa: E402
from pact.resources.rules import KindRules  # noqa: E402
from pact.resources.support.mount_users import expire_says_busy  # noqa: E402

SYSCTL_PATTERN = "sysctl:net.ipv4.conf.**"
WRITES = 500
IDLE_S = 20.0


class Running:
    """One agent on a directory of its own below /var/tmp (files below /tmp are never resources), or elsewhere."""

    def __init__(self, count: int, where: str = "/var/tmp") -> None:
        self.top = tempfile.mkdtemp(prefix="pact-bench-", dir=where)
        self.files = self._make(count)
        self.socket = f"{self.top}/agent.sock"
        self.config = f"{self.top}/agent.toml"
        Path(self.config).write_text(
            f'[node]\nname = "bench"\n[state]\ndir = "{self.top}/state"\n[control]\nsocket = "{self.socket}"\n'
            "[declared]\nfiles = []\n"
        )
        self.process: subprocess.Popen[bytes]

    def _make(self, count: int) -> list[str]:
        draw, out = Random(7), []
        for number in range(count):
            directory = f"{self.top}/files/d{number % 100:02}"
            os.makedirs(directory, exist_ok=True)
            path = f"{directory}/f{number:05}.conf"
            Path(path).write_bytes(draw.randbytes(draw.randrange(1024, 4097)))
            out.append(path)
        return out

    def start(self) -> float:
        """Milliseconds from exec to the first answer on the control socket."""
        begin = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pact.cli.main", "agent", "--config", self.config],
            cwd=HERE.parent,
            stderr=subprocess.DEVNULL,
        )
        while True:
            try:
                self.ask("ping")
                return (time.perf_counter() - begin) * 1000
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError("the agent did not start; run this bench as root") from None
                time.sleep(0.002)

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait()

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.socket)
        return sock

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        with self.connect() as sock, sock.makefile("rb") as lines:
            sock.sendall(json.dumps({"v": 1, "op": op, "args": args}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(lines.readline())
            return answer

    def cpu_ns(self) -> int:
        total = 0
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            with open(f"/proc/{self.process.pid}/task/{task}/schedstat", encoding="ascii") as f:
                total += int(f.read().split()[0])
        return total

    def rss_mib(self) -> float:
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) / 1024

    def close(self) -> None:
        if self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.top)


def latencies(agent: Running, writes: int) -> list[float]:
    """Milliseconds from just before a write to having read its durable record."""
    out = []
    with agent.connect() as sock, sock.makefile("rb") as lines:
        sock.sendall(b'{"v":1,"op":"watch","args":{}}\n')
        time.sleep(0.2)
        for path in Random(3).sample(agent.files, writes):
            wanted = f"file:{path}"
            begin = time.perf_counter()
            with open(path, "ab") as f:
                f.write(b"changed\n")
            while True:
                record = json.loads(lines.readline())["record"]
                if record["type"] == "drift_detected" and record["data"]["resource"] == wanted:
                    break
            out.append((time.perf_counter() - begin) * 1000)
            time.sleep(0.004)
    return out


def quiet(*command: str) -> None:
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)


def per_call_us(work: Any, calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begin) / calls * 1e6


def in_use(agent: Running, rounds: int) -> list[Figure]:
    """Asking the kernel whether an idle file or mount is used, beside fuser."""
    path = agent.files[0]
    point = f"{agent.top}/mount"
    os.makedirs(point, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
    try:
        assert leased(os.fsencode(path)) is False
        assert expire_says_busy(os.fsencode(point)) is False
        ours_file = statistics.median(per_call_us(lambda: leased(os.fsencode(path)), 200) for _ in range(rounds))
        ours_mount = statistics.median(
            per_call_us(lambda: expire_says_busy(os.fsencode(point)), 200) for _ in range(rounds)
        )
        if shutil.which("fuser") is None:
            return [
                figure("in use, file: microseconds", ours_file, "us", "fuser is not installed"),
                figure("in use, mount: microseconds", ours_mount, "us", "fuser is not installed"),
            ]
        fuser = ["fuser", "-s"]
        theirs_file = statistics.median(per_call_us(lambda: quiet(*fuser, path), 1) for _ in range(rounds))
        theirs_mount = statistics.median(per_call_us(lambda: quiet(*fuser, "-m", point), 1) for _ in range(rounds))
    finally:
        subprocess.run(["umount", point], check=True)
    return [
        faster("in use, idle file: write lease / fuser (us)", ours_file, theirs_file, 100),
        faster("in use, idle mount: MNT_EXPIRE / fuser -m (us)", ours_mount, theirs_mount, 100),
    ]


class Rules(KindRules):
    def distance_n(self, resource: str, declared: Any, actual: Any) -> int:
        return 0 if declared == actual else 1_000_000_000

    def meant_secret(self, resource: str, attrs: Any) -> bool:
        return False

    def volatile(self, resource: str) -> bool:
        return False

    def matches(self, pattern: str, resource: str) -> bool:
        return False


def magnitude_cost(small: int, large: int, rounds: int) -> Figure:
    """One more drifted resource on a node where few and where many have drifted: O(k), so the ratio is near 1."""
    nodes = {}
    for size in (small, large):
        node = Node("bench", Rules())
        declared = {f"file:/f{i}": {"attrs": {"value": "0"}} for i in range(size + rounds)}
        node.step(Started(0, 0, "boot", 0, Settings(), "bench", False, declared))
        node.step(Scanned(0, 0, [Sighting(f"file:/f{i}", {"value": "1"}) for i in range(size)]))
        nodes[size] = node
    times: dict[int, list[float]] = {small: [], large: []}
    for turn in range(rounds):
        for size, node in nodes.items():
            sighting = Sighting(f"file:/f{size + turn}", {"value": "1"})
            begin = time.perf_counter_ns()
            node.step(Observed(turn, turn, [sighting]))
            times[size].append(time.perf_counter_ns() - begin)
    ratio = statistics.median(times[large]) / statistics.median(times[small])
    name = f"one more drift at {large:,} drifted / at {small:,}"
    return figure(name, ratio, "times its time", "<= 1.5", ratio <= 1.5)


def run(quick: bool = False) -> list[Figure]:
    """All figures. Needs root."""
    count, writes = (2_000, 100) if quick else (10_000, WRITES)
    agent = Running(count)
    figures: list[Figure] = []
    try:
        agent.start()
        adopted = agent.ask("adopt", patterns=[f"file:{agent.top}/files/**", SYSCTL_PATTERN])["result"]["adopted"]
        times = sorted(latencies(agent, writes))
        figures.append(
            figure(
                f"write to durable record, {adopted:,} watched: median",
                statistics.median(times),
                "ms",
                "< 5",
                statistics.median(times) < 5,
            )
        )
        p99 = times[int(len(times) * 0.99)]
        figures.append(figure("write to durable record: 99th percentile", p99, "ms", "< 25", p99 < 25))
        agent.ask("commit", all=True, message="bench")
        agent.stop()
        starts = []
        for _ in range(3):
            starts.append(agent.start())
            rss = agent.rss_mib()
            agent.stop()
        figures.append(
            figure(
                "start to first answer, after a clean stop",
                statistics.median(starts),
                "ms",
                "< 500",
                statistics.median(starts) < 500,
            )
        )
        agent.start()
        agent.stop(signal.SIGKILL)
        killed = agent.start()
        figures.append(figure("start to first answer, after SIGKILL", killed, "ms", "< 500", killed < 500))
        agent.stop()
        os.unlink(f"{agent.top}/state/signatures")
        cold = agent.start()
        figures.append(figure("start to first answer, without cached signatures", cold, "ms"))
        figures.append(figure(f"memory of an agent with {adopted:,} resources", rss, "MiB RSS", "< 40", rss < 40))
        time.sleep(2)
        before, idle_s = agent.cpu_ns(), 5.0 if quick else IDLE_S
        time.sleep(idle_s)
        share = (agent.cpu_ns() - before) / (idle_s * 1e9) * 100
        figures.append(figure("idle: share of a core", share, "%", "< 0.2", share < 0.2))
        figures += in_use(agent, 3 if quick else 9)
    finally:
        agent.close()
    figures.append(magnitude_cost(10, 10_000, 200))
    return figures


if __name__ == "__main__":
    main(run)
