"""Fuzzing, target after target: ``make fuzz SECONDS=600``, or ``make fuzz`` until it is stopped.

Each target is a process of its own, with libFuzzer by way of atheris. Those in Python are forked from this one, where the
modules are instrumented once for all of them; those in C run under address and undefined-behaviour sanitizers. What is found goes into a file, and the command that runs it again is printed. Inputs that reached something
new stay in the corpus, so that the next run goes on from there. ``--keep`` writes the best of them into the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import io
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
REPOSITORY: Final = HERE.parents[1]
sys.path[0:1] = [str(HERE.parent), str(REPOSITORY)]

from fuzz import build, kit, one, targets  # noqa: E402

TURN_S: Final = 60.0  # for each target, in a run without an end
INPUT_S: Final = 20  # libFuzzer's own limit for one input, where a target hangs
MEMORY_MB: Final = 3072
ENDING_S: Final = 90.0  # to start, and to write what was found
#: What real inputs say of this machine, and nobody else needs to know.
HERE_ONLY: Final = tuple(
    {os.fsencode(p) for p in (REPOSITORY, Path.home(), sys.prefix, os.uname().nodename) if len(str(p)) > 4}
)
KEPT_BYTES: Final = 12 << 10  # of one target's corpus in the repository


@dataclass
class Figures:
    inputs: int = 0
    seconds: float = 0.0
    reached: int = 0
    findings: list[str] = field(default_factory=list)


class Runner:
    """One target at a time."""

    def __init__(self, corpus: Path, found: Path, names: list[str]) -> None:
        self.corpus, self.found = corpus, found
        self.figures: dict[str, Figures] = {}
        self.process: multiprocessing.process.BaseProcess | None = None
        python = [name for name in names if name not in targets.NATIVE]
        with contextlib.redirect_stderr(io.StringIO()):  # a line for each module
            self.instrumented = one.instrumented(python) if python else {}

    def run(self, name: str, seconds: float) -> None:
        here, found = self.corpus / name, self.found / name
        here.mkdir(parents=True, exist_ok=True)
        found.mkdir(parents=True, exist_ok=True)
        before = set(found.iterdir())
        arguments = [
            str(here),
            f"-artifact_prefix={found}/",
            f"-max_total_time={max(1, round(seconds))}",
            f"-timeout={INPUT_S}",
            f"-rss_limit_mb={MEMORY_MB}",
            "-print_final_stats=1",
            "-reload=0",
        ]
        said = self.corpus / f"{name}.log"
        began_s = time.monotonic()
        self.process = multiprocessing.get_context("fork").Process(target=self.fuzz, args=(name, arguments, said))
        self.process.start()
        self.process.join(seconds + ENDING_S)
        code = self.process.exitcode
        self.end()
        out = said.read_text(encoding="utf-8", errors="replace")
        if code is None:
            out, code = f"{out}{name} does not end\n", 1
        figures = self.figures.setdefault(name, Figures())
        counts = re.findall(r"^#(\d+)\s", out, re.MULTILINE) + re.findall(r"number_of_executed_units: (\d+)", out)
        inputs = max(map(int, counts), default=0)
        figures.inputs += inputs
        figures.seconds += time.monotonic() - began_s
        figures.reached = max([figures.reached, *map(int, re.findall(r" cov: (\d+)", out))])
        if code:
            files = sorted(set(found.iterdir()) - before) or [Path("(no input was saved)")]
            again = "\n".join(
                f"run it again: PYTHONPATH=. {shlex.join([sys.executable, 'tests/fuzz/one.py', name, str(f)])}"
                for f in files
            )
            why = "\n".join(
                line for line in out.splitlines() if not re.match(r"#\d+\s|INFO:|\s*#\d+ 0x\w+ in _?Py", line)
            )
            figures.findings.append(f"FINDING {name}\n{why[-4000:]}\n{again}")
            print(figures.findings[-1], flush=True)
        print(
            f"{name:16} {inputs:>12,} inputs {inputs / max(1.0, seconds):>9,.0f}/s  {figures.reached:>6} edges  "
            f"{len(figures.findings)} findings",
            flush=True,
        )

    def fuzz(self, name: str, arguments: list[str], said: Path) -> None:
        """In a process of the target's own, which this ends. What is said goes to ``said``."""
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with open(said, "wb") as log, open(os.devnull, "rb") as nothing:
            for to, file in enumerate((nothing, log, log)):
                os.dup2(file.fileno(), to)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        os.chdir(REPOSITORY)
        if name in self.instrumented:
            try:
                one.fuzz(self.instrumented[name], arguments)
            except SystemExit as exc:
                ctypes.CDLL(None).exit(exc.code)  # libFuzzer saves what it found when C ends, not when Python does
        else:
            os.execv(sys.executable, [sys.executable, str(HERE / "one.py"), name, "--fuzz", *arguments])

    def end(self) -> None:
        if self.process is not None:
            if self.process.is_alive() and self.process.pid is not None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join()
            self.process = None

    def summary(self) -> None:
        total = sum(f.inputs for f in self.figures.values())
        found = sum(len(f.findings) for f in self.figures.values())
        print(
            f"\n{total:,} inputs of {len(self.figures)} targets, {found} findings; the corpus is in {self.corpus}",
            flush=True,
        )

    def keep(self, name: str) -> None:
        """What reaches most with the fewest bytes, into the repository."""
        merged = self.corpus / f"{name}.merged"
        shutil.rmtree(merged, ignore_errors=True)
        merged.mkdir()
        subprocess.run(
            [sys.executable, str(HERE / "one.py"), name, "--fuzz", str(merged), str(self.corpus / name), "-merge=1"],
            cwd=REPOSITORY,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        inputs, size = [], 0
        for path in sorted(merged.iterdir(), key=lambda p: p.stat().st_size):
            data = path.read_bytes()
            if any(word in data for word in HERE_ONLY):
                continue
            size += len(repr(data)) + 1
            if size > KEPT_BYTES:
                break
            inputs.append(data)
        kit.keep(kit.CORPUS / f"{name}.txt", inputs)
        shutil.rmtree(merged)
        print(f"{name}: {len(inputs)} inputs kept", flush=True)


def chosen(names: list[str]) -> tuple[list[str], str]:
    """The targets that can run here, and why others cannot."""
    for name in names:
        if name not in {**targets.ALL, **targets.SELF}:
            sys.exit(f"no target {name}; there are {', '.join(targets.ALL)}")
    wanted = names or list(targets.ALL)
    if not any(n in targets.NATIVE for n in wanted):
        return wanted, ""
    try:
        build.build()
    except build.Missing as exc:
        return [n for n in wanted if n not in targets.NATIVE], f"without the targets in C: {exc}"
    return wanted, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="how long, of all targets together; 0: until it is stopped"
    )
    parser.add_argument("--target", action="append", default=[], help="only this one; may be given several times")
    parser.add_argument(
        "--corpus", type=Path, default=build.TOP / "corpus", help="where inputs are kept from run to run"
    )
    parser.add_argument("--found", type=Path, default=build.TOP / "found", help="where findings are written")
    parser.add_argument(
        "--keep", action="store_true", help="write the corpora into tests/fuzz/corpus, smallest inputs first"
    )
    parser.add_argument("--list", action="store_true", help="name the targets")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name}  ({'C, sanitized' if name in targets.NATIVE else 'Python'})" for name in targets.ALL))
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (pip install '.[fuzz]'); it has no package for every Python")
        return 2
    names, without = chosen(args.target)
    if without:
        print(without, flush=True)
    with tempfile.TemporaryDirectory(prefix="pact-fuzz-", dir=kit.in_memory()) as scratch:
        os.environ[kit.SCRATCH] = scratch
        return _run(args, names)


def _run(args: argparse.Namespace, names: list[str]) -> int:
    runner = Runner(args.corpus.resolve(), args.found.resolve(), [] if args.keep else names)
    if args.keep:
        for name in names:
            runner.keep(name)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    turn_s = args.seconds / len(names) if args.seconds else TURN_S
    print(
        f"{len(names)} targets, {turn_s:.0f} s each"
        + ("" if args.seconds else ", round after round until it is stopped"),
        flush=True,
    )
    left = list(names)
    try:
        while left:
            for name in list(left):
                runner.run(name, turn_s)
                if runner.figures[name].findings:  # it would find the same again
                    left.remove(name)
            if args.seconds:
                break
    except KeyboardInterrupt:
        runner.end()
        print("stopped")
    runner.summary()
    return 1 if any(f.findings for f in runner.figures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
