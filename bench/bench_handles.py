"""open_handles beside a C program that reads the same links and maps, ``fuser`` and psutil.

The machine is filled with processes first: 500 sleeping children with 20 open files each (100 in a quick run), so that
the figures mean something on an idle one.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import psutil  # noqa: E402
from _beside import Figure, compile_c, faster, figure, in_turns, main, within  # noqa: E402

from pact._fast import open_handles  # noqa: E402

FILES_EACH = 20


def crowd(count: int, directory: str) -> list[subprocess.Popen[bytes]]:
    """Sleeping programs that inherited open files."""
    programs = []
    for child in range(count):
        files = [os.open(f"{directory}/{child % 10}-{number}", os.O_CREAT | os.O_RDWR) for number in range(FILES_EACH)]
        programs.append(subprocess.Popen(["sleep", "3600"], pass_fds=files, stdin=subprocess.DEVNULL))
        for number in files:
            os.close(number)
    return programs


def psutil_open_files() -> int:
    found = 0
    for process in psutil.process_iter():
        try:
            found += len(process.open_files())
        except psutil.Error:
            continue
    return found


def psutil_everything() -> int:
    """psutil asked what open_handles answers; mappings too."""
    found = 0
    for process in psutil.process_iter():
        try:
            found += len(process.open_files()) + len(process.memory_maps()) + len(process.cwd() + process.exe())
        except psutil.Error:
            continue
    return found


def run(quick: bool = False) -> list[Figure]:
    library = compile_c("handles")
    library.scan.restype = ctypes.c_long
    links = ctypes.c_long()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="pact-bench-") as directory:
        programs = crowd(100 if quick else 500, directory)
        try:
            none = os.fsencode(directory) + b"-not"
            plan = [none + b"/%d" % number for number in range(300)]
            rounds = 7 if quick else 15
            contenders = {
                "ours": lambda: open_handles([none]),
                "c": lambda: library.scan(none, ctypes.byref(links)),
                "plan": lambda: open_handles(plan),
            }
            took = in_turns(rounds, contenders)
            label = f"open_handles, {len(psutil.pids())} processes, {links.value:,} links"
            figures.append(within(f"{label}: C program", took["ours"], took["c"], 1.2))
            figures.append(within(f"{label}: 300 roots, C program", took["plan"], took["c"], 1.2))
            slow = {"ours": contenders["ours"], "psutil": psutil_open_files, "c": contenders["c"]}
            slow["all"] = psutil_everything
            fuser = shutil.which("fuser")
            if fuser:
                slow["fuser"] = lambda: subprocess.run([fuser, "-m", "/dev/shm"], capture_output=True, check=False)
            took = in_turns(3 if quick else 5, slow)
            if fuser:
                mine = in_turns(rounds, {"ours": lambda: open_handles([b"/dev/shm"])})["ours"]
                figures.append(faster(f"{label}: fuser -m", mine, took["fuser"], 1))
            else:
                figures.append(figure("fuser not installed", 0, ""))
            figures.append(faster(f"{label}: psutil open_files", took["ours"], took["psutil"], 8))
            floor = took["psutil"] / took["c"]
            figures.append(figure(f"{label}: the C program against psutil open_files", floor, "times faster"))
            figures.append(faster(f"{label}: psutil, files, maps, cwd, exe", took["ours"], took["all"], 8))
        finally:
            for program in programs:
                program.kill()
                program.wait()
    return figures


if __name__ == "__main__":
    main(run)
