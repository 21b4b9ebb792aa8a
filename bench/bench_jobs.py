"""Batch systems: what an epilog and a health check wait for, and what it costs to look which jobs run.

The commands are started as an epilog starts them, a new process each; the agent's own part is measured at its socket,
beside them. The look at the node's jobs stands beside the program that prints processes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _beside import Figure, figure, in_turns, main  # noqa: E402
from bench_agent import Running  # noqa: E402

from pact.agent.scheduler_slurm import Slurm  # noqa: E402

FILES = 100
RUNS = 200


def p99(times: list[float]) -> float:
    return sorted(times)[max(0, len(times) * 99 // 100 - 1)]


def timed(rounds: int, works: Mapping[str, Callable[[int], object]]) -> dict[str, list[float]]:
    """Milliseconds of each run; each round runs every one once."""
    out: dict[str, list[float]] = {name: [] for name in works}
    for n in range(rounds):
        for name, work in works.items():
            start = time.perf_counter_ns()
            work(n)
            out[name].append((time.perf_counter_ns() - start) / 1e6)
    return out


def run(quick: bool = False) -> list[Figure]:
    runs = RUNS // 4 if quick else RUNS
    agent = Running(FILES)
    command = [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket]

    def epilog(n: int) -> None:
        subprocess.run([*command, "epilog", "--job", str(n + 1)], check=True, cwd=HERE.parent)

    def check(_: int) -> None:
        subprocess.run([*command, "check"], check=False, cwd=HERE.parent, stdout=subprocess.DEVNULL)

    def bare(_: int) -> None:
        subprocess.run([sys.executable, "-c", "pass"], check=True)

    try:
        agent.start()
        with agent.connect() as sock, sock.makefile("rwb") as stream:

            def asked(op: str, **args: str) -> None:
                stream.write(json.dumps({"v": 1, "op": op, "args": args}).encode() + b"\n")
                stream.flush()
                assert stream.readline()

            works = {"check": lambda _: asked("check"), "epilog": lambda n: asked("epilog", job=str(n + 1))}
            at_socket = timed(runs * 5, works)
        processes = timed(runs, {"epilog": epilog, "check": check, "python": bare})
        out = []
        for name, times in at_socket.items():
            out.append(figure(f"pact {name} at the socket, median", statistics.median(times), "ms"))
            out.append(figure(f"pact {name} at the socket, p99", p99(times), "ms", "< 5 ms", p99(times) < 5))
        for name in ("epilog", "check"):
            ratio = statistics.median(processes[name]) / statistics.median(processes["python"])
            out.append(figure(f"pact {name} as a command, p99", p99(processes[name]), "ms"))
            out.append(figure(f"pact {name} as a command, median against a bare python", ratio, "x"))
        return out + look(runs)
    finally:
        agent.stop()
        agent.close()


def look(rounds: int) -> list[Figure]:
    slurm = Slurm("n1")
    times = in_turns(
        max(5, rounds // 10),
        {
            "look": slurm.running,
            "ps": lambda: subprocess.run(["ps", "-e", "-o", "pid,args"], capture_output=True, check=True),
        },
    )
    processes = sum(name.isdigit() for name in os.listdir("/proc"))
    return [
        figure(f"which jobs run, {processes} processes", times["look"], "ms"),
        figure("which jobs run, against ps", times["look"] / times["ps"], "x"),
    ]


if __name__ == "__main__":
    main(run)
