"""Torture, seed after seed, until it is stopped or its time is over: ``make torture SECONDS=600``.

Every seed runs in mount, network and process namespaces of its own: whatever ends it, nothing of it is left. A finding is
printed with its seed, its step, what was wrong and the command that runs that seed again. The clock decides only how long
this runs. Without root the simulated worlds run instead: what they have of disks and kernels is virtual.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
NAMESPACES = [
    "setpriv",
    "--pdeathsig",
    "KILL",
    "--",
    "unshare",
    "--mount",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation",
    "private",
]
STEPS = {"node": 150, "cluster": 10}
NODE_SEEDS_EACH = 4  # for each seed of the cluster
ENDING_S = 150.0  # beyond its time a seed heals, settles and is judged
SEED_S = 1200.0  # no seed lasts for longer
LEAST_S = 4.0
SIMULATED = 40


def seed_of_the_day() -> int:
    return int(datetime.datetime.now(datetime.UTC).strftime("%Y%m%d")) * 1000


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}


class Runner:
    """One seed at a time."""

    def __init__(self, without: list[str]) -> None:
        self.without = without
        self.counts: collections.Counter[str] = collections.Counter()
        self.findings: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def command(self, kind: str, seed: int) -> list[str]:
        left_out = [word for name in self.without if kind == "node" for word in ("--without", name)]
        return [*NAMESPACES, sys.executable, str(HERE / f"{kind}.py"), "--seed", str(seed), *left_out]

    def run(self, kind: str, seed: int, until: float, steps: int) -> None:
        command = [*self.command(kind, seed), "--steps", str(steps)]
        began = time.monotonic()
        # Its own session: Ctrl-C ends this process, and this process ends that one with everything in its namespaces.
        self.process = subprocess.Popen(
            [*command, "--until", f"{until:.3f}"],
            env=environment(),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            out, _ = self.process.communicate(timeout=min(SEED_S, max(0.0, until - began) + ENDING_S))
        except subprocess.TimeoutExpired:
            self.end()
            out = f"FINDING {kind} seed {seed}: it does not end\n"
        code = self.process.returncode
        self.process = None
        counts = re.findall(r"^COUNTS (.*)$", out, re.MULTILINE)
        for pair in ", ".join(counts).split(", ") if counts else []:
            name, _, number = pair.rpartition("=")
            self.counts[name] += int(number)
        self.counts[f"seeds ({kind})"] += 1
        shown = "\n".join(line for line in out.splitlines() if not line.startswith("COUNTS"))
        verdict = "ok" if code == 0 else "FOUND SOMETHING"
        print(f"{kind} seed {seed}: {verdict} in {time.monotonic() - began:.0f} s", flush=True)
        if code:
            again = f"PYTHONPATH=. {shlex.join(self.command(kind, seed))} --steps {steps}"
            self.findings.append(f"{shown}\nrun it again: {again}")
            print(self.findings[-1], flush=True)
        elif shown:
            print(shown, flush=True)

    def end(self) -> None:
        """End the seed that runs, with all its namespaces hold."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()

    def summary(self, seconds: float) -> None:
        c = self.counts
        print(
            f"\n{seconds:.0f} s, {len(self.findings)} findings; {c['steps']} steps on a node in {c['seeds (node)']} seeds, "
            f"{c['rounds']} rounds of a cluster in {c['seeds (cluster)']} seeds"
        )
        groups = {"asked": [], "other": []}  # type: dict[str, list[str]]
        for name, number in sorted(c.items()):
            if name not in ("steps", "rounds") and not name.startswith("seeds"):
                groups["asked" if name.startswith("asked: ") else "other"].append(
                    f"{name.removeprefix('asked: ')} {number}"
                )
        print("deeds, faults and what was left: " + ", ".join(groups["other"]))
        print("answers by request and exit code: " + ", ".join(groups["asked"]), flush=True)


def simulate(seed: int, end: float) -> int:
    """What can be done without root: the simulated worlds, seed after seed."""
    print(
        "the torture of a real agent needs root: namespaces, file systems and strace are its tools.\n"
        "Without it the simulated worlds run (tests/test_simulation.py).",
        flush=True,
    )
    count = 0
    while time.monotonic() < end or not count:
        env = {**environment(), "PACT_SEED": str(seed + count), "PACT_SEEDS": str(SIMULATED)}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "tests/test_simulation.py"],
            env=env,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(
                f"{done.stdout[-6000:]}\nrun it again: PACT_SEED={seed + count} PACT_SEEDS={SIMULATED} python -m pytest "
                "tests/test_simulation.py"
            )
            return 1
        count += SIMULATED
    print(f"{count} simulated seeds from {seed} on: nothing was found")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.0, help="how long; 0: until it is stopped")
    parser.add_argument("--seed", type=int, default=0, help="where to begin; 0: the seed of the day")
    parser.add_argument("--only", choices=["node", "cluster"])
    parser.add_argument("--without", action="append", default=[], help="a deed or fault of the node that is left out")
    args = parser.parse_args()
    began = time.monotonic()
    end = began + (args.seconds or 1e9)
    seed = args.seed or seed_of_the_day()
    if os.geteuid() != 0:
        return simulate(seed, end)
    runner = Runner(args.without)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(
        f"torture from seed {seed} on" + (f", for {args.seconds:.0f} s" if args.seconds else ", until it is stopped"),
        flush=True,
    )
    turn = 0
    try:
        while not turn or end - time.monotonic() > LEAST_S:
            kind: Any = args.only or ("cluster" if turn % (NODE_SEEDS_EACH + 1) == NODE_SEEDS_EACH else "node")
            runner.run(kind, seed + turn, end, STEPS[kind])
            turn += 1
    except KeyboardInterrupt:
        runner.end()
        print("stopped")
    runner.summary(time.monotonic() - began)
    return 1 if runner.findings else 0


if __name__ == "__main__":
    sys.exit(main())
