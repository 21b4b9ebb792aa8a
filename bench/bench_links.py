"""Network links: from a link that is set down to the durable record, a look at a hundred, and what the kind costs.

All of it runs in a network namespace of its own, with veth pairs. The latency ends when a follower has read the record
from the control socket. Each link is set down once, by one call to the kernel: no process is started in between.
"""

from __future__ import annotations

import fcntl
import json
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _beside import Figure, faster, figure, in_turns, main  # noqa: E402
from bench_agent import Running  # noqa: E402

SIOCSIFFLAGS = 0x8914
INSIDE = "--inside"
LOOKED_AT = 100


def ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines).encode(), check=True)


def make(count: int) -> list[str]:
    names = [f"hsn{n}" for n in range(count)]
    ip(*(f"link add {n} type veth peer name far{i}" for i, n in enumerate(names)))
    ip(*(f"link set {n} up" for n in names), *(f"link set far{i} up" for i in range(count)))
    ip(*(f"address add 10.{i // 200}.{i % 200}.1/24 dev {n}" for i, n in enumerate(names)))
    return names


def set_down(control: socket.socket, name: str) -> None:
    fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), 0))


def latencies(agent: Running, names: list[str]) -> list[float]:
    """Milliseconds from just before a link is set down to having read its durable record."""
    out = []
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with control, agent.connect() as sock, sock.makefile("rb") as lines:
        sock.sendall(b'{"v":1,"op":"watch","args":{}}\n')
        time.sleep(0.5)
        for name in names:
            begin = time.perf_counter()
            set_down(control, name)
            while True:
                record = json.loads(lines.readline())["record"]
                if record["type"] == "drift_detected" and record["data"]["resource"] == f"link:{name}":
                    break
            out.append((time.perf_counter() - begin) * 1000)
            time.sleep(0.02)
    return out


def looks(names: list[str], rounds: int) -> Figure:
    from pact.resources.kinds.link import KIND

    def ours() -> None:
        look = KIND.many()
        for name in names:
            assert isinstance(look(name), dict)

    def theirs() -> None:
        for words in (["-d", "address"], ["route"], ["-6", "route"]):
            json.loads(subprocess.run(["ip", "-j", *words], capture_output=True, check=True).stdout or b"[]")

    times = in_turns(rounds, {"ours": ours, "theirs": theirs})
    return faster(f"look at {len(names)} links, beside ip -j (ms)", times["ours"], times["theirs"], 1)


def inside(quick: bool) -> list[Figure]:
    names = make(110 if quick else 300)
    agent = Running(0)
    try:
        agent.start()
        bare = agent.rss_mib()
        agent.ask("adopt", patterns=["link:hsn*"])
        times = sorted(latencies(agent, names))
        median, p99 = statistics.median(times), times[int(len(times) * 0.99)]
        agent.ask("commit", all=True, message="bench")
        time.sleep(2)
        before, idle_s = agent.cpu_ns(), 5.0 if quick else 20.0
        time.sleep(idle_s)
        share = (agent.cpu_ns() - before) / (idle_s * 1e9) * 100
        agent.stop()
        agent.start()
        time.sleep(1)
        held = agent.rss_mib() - bare
    finally:
        agent.close()
    return [
        figure("link set down to durable record: median", median, "ms"),
        figure("link set down to durable record: 99th percentile", p99, "ms", "< 20", p99 < 20),
        looks(names[:LOOKED_AT], 5 if quick else 25),
        figure(f"memory of an agent for {len(names)} links", held, "MiB RSS"),
        figure(f"idle with {len(names)} links: share of a core", share, "%", "< 0.2", share < 0.2),
    ]


def run(quick: bool = False) -> list[Figure]:
    """All figures. Needs root."""
    command = ["unshare", "--net", sys.executable, __file__, INSIDE, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it did not run")
    figures: list[Figure] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    if INSIDE in sys.argv:
        print(json.dumps(inside("--quick" in sys.argv)))
    else:
        main(run)
