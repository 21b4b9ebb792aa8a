"""What the kernel benches share: C baselines, rounds that alternate, and one table.

Machines are noisy, so a figure is never a time on its own: what is compared runs in turns, several rounds, and medians
are compared. Baselines are compiled here from ``bench/c`` with ``cc -O3 -march=native``, which our own code is not.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

C_DIR = Path(__file__).resolve().parent / "c"

Figure = dict[str, Any]


def compile_c(name: str, *flags: str) -> ctypes.CDLL:
    """The shared library of ``bench/c/NAME.c``. Raises RuntimeError with the compiler's words."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no C compiler: install gcc to run the benches")
    target = Path(tempfile.mkdtemp(prefix="pact-bench-")) / f"{name}.so"
    command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", *flags]
    command += ["-o", str(target), str(C_DIR / f"{name}.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    library = ctypes.CDLL(str(target))
    shutil.rmtree(target.parent)
    return library


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / 1e6


def in_turns(rounds: int, contenders: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each contender; each round runs every one once. What returns a float timed itself."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            start = time.perf_counter_ns()
            own = work()
            elapsed = (time.perf_counter_ns() - start) / 1e6
            times[name].append(own if isinstance(own, float) else elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def figure(name: str, value: float, unit: str, goal: str = "", ok: bool | None = None, **more: Any) -> Figure:
    return {"name": name, "value": round(value, 4), "unit": unit, "goal": goal, "ok": ok, **more}


def faster(name: str, ours: float, theirs: float, times: float) -> Figure:
    """A goal of the kind "at least ``times`` times faster"."""
    ratio = theirs / ours
    return figure(
        name, ratio, "times faster", f">= {times:g}", ratio >= times, ours=round(ours, 4), baseline=round(theirs, 4)
    )


def within(name: str, ours: float, theirs: float, factor: float) -> Figure:
    """A goal of the kind "within ``factor`` of"."""
    ratio = ours / theirs
    return figure(
        name, ratio, "times its time", f"<= {factor:g}", ratio <= factor, ours=round(ours, 4), baseline=round(theirs, 4)
    )


def main(run: Callable[[bool], list[Figure]]) -> None:
    """The command line of one bench: ``[--quick] [--json]``."""
    figures = run("--quick" in sys.argv)
    if "--json" in sys.argv:
        print(json.dumps(figures, indent=1))
        return
    print(f"{'name':<68} {'ours ms':>10} {'baseline':>10} {'value':>10}  {'unit':<14} {'goal':<8} ok")
    for row in figures:
        ours, baseline = (f"{row[key]:.3f}" if key in row else "" for key in ("ours", "baseline"))
        verdict = {True: "yes", False: "NO", None: ""}[row["ok"]]
        print(f"{row['name']:<68} {ours:>10} {baseline:>10} {row['value']:>10.3f}", end="  ")
        print(f"{row['unit']:<14} {row['goal']:<8} {verdict}")
