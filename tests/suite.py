"""The whole suite: several tests at once, then those that need the machine for themselves, then a second try.

Tests of real processes wait for these with a time limit, and two cores that are lent for an hour may stand still for as
long as such a limit. So a test that fails among others is run once more, by itself. It fails if it fails again. One that
passes then is named at the end, as are the seconds that the second try took: such a test has a fault, or what it tests
has one, and somebody has to find out which. ``SECOND_TRIES`` is the most that may need it; none, in a good run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / "build" / "tests"  # where pytest notes what failed
SECOND_TRIES = 4
SKIPPED = 6  # the exit code, beside pytest's own, if something was skipped that must not be
FAILED = 1  # pytest's exit code when it has run the tests and some failed


def failed(kept: Path) -> list[str]:
    """The tests whose last run failed, as pytest has noted them."""
    try:
        return sorted(json.loads((kept / "v/cache/lastfailed").read_bytes()))
    except FileNotFoundError:
        return []


def run(*args: str, kept: Path) -> int:
    """pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={kept}", *args]
    return subprocess.run(command, check=False).returncode


def ran(report: Path) -> bool:
    """Whether a run has had a test, and left none out: who failed, and is skipped then, has not passed."""
    runs = [run.attrib for run in ElementTree.parse(report).iter("testsuite")]
    return all(int(run["tests"]) > int(run["skipped"]) == 0 for run in runs) and bool(runs)


def alone(folder: Path) -> list[str]:
    """The files that have tests which need the machine: to read all others again takes as long as some of these run."""
    return sorted(str(p) for p in folder.rglob("test_*.py") if "mark.alone" in p.read_text())


def tried(parts: Sequence[Sequence[str]], kept: Path) -> int:
    """Run pytest with each of these arguments, then what failed once more. The exit code: 0 if each test has passed."""
    shutil.rmtree(kept, ignore_errors=True)
    codes = list[int]()
    for args in parts:
        before = len(failed(kept))
        codes.append(run(*args, kept=kept))
        if codes[-1] == FAILED and len(failed(kept)) == before:
            return FAILED  # without a test that did
        if codes[-1] not in (0, FAILED):
            return codes[-1]
    names = failed(kept)
    if not names:
        return max(codes)
    print(f"\n{len(names)} failed: {' '.join(names)}", flush=True)
    if len(names) > SECOND_TRIES:
        return FAILED
    print("Each once more, by itself:", flush=True)
    begun = time.monotonic()
    for name in names:
        if run(name, f"--junitxml={kept / 'second.xml'}", kept=kept) or not ran(kept / "second.xml"):
            return FAILED
    print(
        f"passed at the second try, in {time.monotonic() - begun:.0f} s, and wants looking into: {' '.join(names)}",
        flush=True,
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=4, help="how many tests run at once (default: %(default)s)")
    jobs = parser.parse_args().jobs
    if jobs == 1:
        return tried([()], KEPT)
    together = ("-m", "not alone", f"--numprocesses={jobs}", "--dist=loadscope")
    return tried([together, ("-m", "alone", *alone(HERE))], KEPT)


if __name__ == "__main__":
    sys.exit(main())
