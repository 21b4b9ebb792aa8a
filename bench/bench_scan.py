"""FileTable beside C programs that do the least that can be done, and ``aide --check``.

The declared set: 10,000 files of 1 to 4 KiB (1,000 in a quick run) in 100 directories, and 100 sysctls. Warm cache.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _beside import Figure, compile_c, faster, figure, in_turns, main, within  # noqa: E402

from pact._fast import FileTable  # noqa: E402

SYSCTLS = 100


def readable_sysctls(count: int) -> list[bytes]:
    found: list[bytes] = []
    for directory, _, names in os.walk(b"/proc/sys"):
        for name in sorted(names):
            path = directory + b"/" + name
            try:
                with open(path, "rb") as file:
                    file.read()
            except OSError:
                continue
            found.append(path)
            if len(found) == count:
                return found
    return found


def make_files(top: str, count: int) -> list[bytes]:
    draw = Random(5)
    paths = []
    for number in range(count):
        directory = f"{top}/files/d{number % 100}"
        os.makedirs(directory, exist_ok=True)
        path = f"{directory}/file-{number}.conf"
        Path(path).write_bytes(draw.randbytes(draw.randrange(1024, 4097)))
        paths.append(os.fsencode(path))
    return paths


def aide_check(top: str) -> list[str] | None:
    """The command that checks what was just taken into its database, None where aide is not installed."""
    aide = shutil.which("aide")
    if aide is None:
        return None
    config = Path(top) / "aide.conf"
    config.write_text(
        f"database_in=file:{top}/aide.db\ndatabase_out=file:{top}/aide.db.new\n"
        f"report_url=file:{top}/aide.log\n{top}/files p+u+g+i+s+m+c+sha256\n"
    )
    subprocess.run([aide, "--config", str(config), "--init"], capture_output=True, check=True)
    os.rename(f"{top}/aide.db.new", f"{top}/aide.db")
    command = [aide, "--config", str(config), "--check"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"aide --check: {done.stdout.decode()} {done.stderr.decode()}")
    return command


def run(quick: bool = False) -> list[Figure]:
    library = compile_c("scan")
    count = 1_000 if quick else 10_000
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="pact-bench-") as top:
        paths = make_files(top, count)
        sysctls = readable_sysctls(SYSCTLS)
        table, stats = FileTable(), FileTable()
        for key, path in enumerate(paths):
            table.put(key, path)
            stats.put(key, path)
        for key, path in enumerate(sysctls, start=count):
            table.put(key, path, volatile=True)
        time.sleep(0.05)
        for each in (table, stats):
            each.scan(full=True)
        everything = (ctypes.c_char_p * (count + len(sysctls)))(*paths, *sysctls)
        rounds = 7 if quick else 21

        def full() -> None:
            table.scan(full=True)

        took = in_turns(
            rounds,
            {
                "full": full,
                "read": lambda: library.read_all(everything, ctypes.c_long(count + len(sysctls))),
                "unchanged": stats.scan,
                "stat": lambda: library.stat_all(everything, ctypes.c_long(count)),
            },
        )
        label = f"{count:,} files, {len(sysctls)} sysctls"
        what = "open, fstat, read, XXH3 in C" if library.hash_is_xxh3() else "open, fstat, read, sum in C"
        figures.append(within(f"full check of {label}: {what}", took["full"], took["read"], 1.3))
        figures.append(within(f"unchanged check of {count:,} files: statx in C", took["unchanged"], took["stat"], 1.3))
        command = aide_check(top)
        if command is None:
            figures.append(figure("aide not installed", 0, ""))
        else:
            slow = in_turns(
                1 if quick else 3,
                {"aide": lambda: subprocess.run(command, capture_output=True, check=False), "full": full},
            )
            figures.append(faster(f"full check of {label}: aide --check (files)", slow["full"], slow["aide"], 30))
        figures.append(hash_speed(top, library))
    return figures


def hash_speed(top: str, library: ctypes.CDLL) -> Figure:
    """What the fingerprint adds to reading: a scan of 64 MiB, less what only reading them costs."""
    size = 64 << 20
    path = Path(top) / "large"
    path.write_bytes(os.urandom(1 << 20) * 64)
    table = FileTable(content_max=size)
    table.put(1, os.fsencode(path))
    table.scan(full=True)
    buffer = bytearray(1 << 16)

    def only_read() -> None:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    took = in_turns(9, {"scan": lambda: table.scan(full=True), "read": only_read})
    speed = size / 1e6 / max(took["scan"] - took["read"], 1e-3)
    return figure(
        "fingerprint, beyond reading", speed, "GB/s", ">= 5", speed >= 5, ours=took["scan"], baseline=took["read"]
    )


if __name__ == "__main__":
    main(run)
