"""What a large plan costs: a rollback of thousands of files beside the same work without pact, its memory, how long a
question of the same size keeps others waiting, and what the head of the journal costs an append.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _beside import Figure, figure, main  # noqa: E402
from bench_agent import Running  # noqa: E402

LARGE = 3 << 20


def bare(top: str, count: int) -> float:
    """Seconds for as many files, each written, made durable, exchanged and removed, as a rollback has to."""
    os.makedirs(top)
    for n in range(count):
        Path(f"{top}/f{n}").write_text(f"drifted {n}\n")
    dirfd = os.open(top, os.O_RDONLY)
    begin = time.perf_counter()
    for n in range(count):
        fd = os.open(f".new{n}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=dirfd)
        os.write(fd, f"declared {n}\n".encode())
        os.fsync(fd)
        os.close(fd)
        os.rename(f"f{n}", f".old{n}", src_dir_fd=dirfd, dst_dir_fd=dirfd)
        os.rename(f".new{n}", f"f{n}", src_dir_fd=dirfd, dst_dir_fd=dirfd)
        os.unlink(f".old{n}", dir_fd=dirfd)
    os.fsync(dirfd)
    os.close(dirfd)
    return time.perf_counter() - begin


def drifted(agent: Running, count: int) -> None:
    while agent.ask("status")["result"]["drifted"] < count:
        time.sleep(0.1)


def longest_ping(agent: Running, op: str, **args: object) -> float:
    """Milliseconds that another client's ping takes at most while this is answered. The answer is read and not parsed:
    that would keep this process from noticing that the ping was answered."""
    done, worst = threading.Event(), 0.0

    def asks() -> None:
        with agent.connect() as asking:
            asking.sendall(json.dumps({"v": 1, "op": op, "args": args}).encode() + b"\n")
            while not asking.recv(1 << 16).endswith(b"\n"):
                pass
        done.set()

    thread = threading.Thread(target=asks)
    with agent.connect() as sock, sock.makefile("rb") as lines:
        thread.start()
        while not done.is_set():
            begin = time.perf_counter()
            sock.sendall(b'{"v":1,"op":"ping","args":{}}\n')
            json.loads(lines.readline())
            worst = max(worst, time.perf_counter() - begin)
            time.sleep(0.001)
    thread.join()
    return worst * 1000


def peak_kib(agent: Running, *, reset: bool = False) -> int:
    if reset:
        Path(f"/proc/{agent.process.pid}/clear_refs").write_text("5")
    return int(Path(f"/proc/{agent.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])


def append_us(top: str, rounds: int) -> tuple[float, float]:
    """Microseconds for one record: with the head beside the journal, and the transaction alone."""
    from pact.core.records import GENESIS, seal
    from pact.journal.sqlite import SqliteJournal

    journal, prev, spent = SqliteJournal(f"{top}/journal.db"), GENESIS, [0.0, 0.0]
    for n in range(2 * rounds):
        record, body = seal(n, prev, "2026-01-01T00:00:00.000000Z", n, "n", "agent_stopped", {}, {"reason": "bench"})
        begin = time.perf_counter()
        journal.append([(record, body)], {}, accepting=bool(n % 2))
        spent[n % 2] += time.perf_counter() - begin
        prev = record.hash
    journal.close()
    return spent[0] / rounds * 1e6, spent[1] / rounds * 1e6


@contextlib.contextmanager
def journaled() -> Iterator[str]:
    """A directory on an ext4 with a journal, in a file on this disk; empty where none can be mounted.

    What this disk costs may say little of a node's: ext4 without a journal does not use the inode of a removed file
    again for a minute, and looks at each of them whenever a file is made. Thousands of files that were just removed,
    by anybody, then cost more than all else.
    """
    top = tempfile.mkdtemp(prefix="pact-bench-", dir="/var/tmp")
    image, where, mounted = f"{top}/image", f"{top}/disk", False
    try:
        os.mkdir(where)
        with open(image, "wb") as f:
            f.truncate(1 << 30)
        made = subprocess.run(["mkfs.ext4", "-q", image], check=False, capture_output=True).returncode == 0
        mounted = (
            made
            and subprocess.run(["mount", "-o", "loop", image, where], check=False, capture_output=True).returncode == 0
        )
        yield where if mounted else ""
    finally:
        if mounted:
            subprocess.run(["umount", where], check=True)
        shutil.rmtree(top)


def write_all(top: str, count: int, text: str) -> None:
    for n in range(count):
        Path(f"{top}/f{n}").write_text(f"{text} {n}\n")


@contextlib.contextmanager
def agent_of_many(where: str = "/var/tmp") -> Iterator[tuple[Running, str]]:
    """An agent that may roll back as many resources as it likes, and an empty directory for its files."""
    agent = Running(0, where)
    files = f"{agent.top}/watched"
    os.makedirs(files)
    with open(agent.config, "a", encoding="utf-8") as f:
        f.write("[rollback]\nmax_resources = 1000000\n")
    try:
        agent.start()
        yield agent, files
    finally:
        agent.close()


def rolled_back(where: str, called: str, count: int) -> list[Figure]:
    """Seconds of a rollback of small files in this directory, beside the same without pact."""
    with agent_of_many(where) as (agent, files):
        write_all(files, count, "declared")
        agent.ask("adopt", patterns=[f"file:{files}/*"])
        write_all(files, count, "drifted")
        drifted(agent, count)
        begin = time.perf_counter()
        agent.ask("rollback", targets=[], all=True)
        took = time.perf_counter() - begin
        ratio = took / bare(f"{agent.top}/bare", count)
    goal_s = count / 2000
    return [
        figure(f"rollback of {count} small files on {called}", took, "s", f"<= {goal_s:g}", took <= goal_s),
        figure("  beside the same files written, exchanged and removed without pact", ratio, "x"),
    ]


def waits(count: int) -> list[Figure]:
    """The longest wait of another client during each request about thousands of files."""
    every: dict[str, object] = {"targets": [], "all": True}
    out = list[Figure]()
    with agent_of_many() as (agent, files):
        asked: tuple[tuple[str, str, dict[str, object]], ...] = (
            ("are adopted", "adopt", {"patterns": [f"file:{files}/*"]}),
            ("are told by diff", "diff", {}),
            ("are looked at for a dry run", "rollback", {**every, "dry_run": True}),
            ("are rolled back", "rollback", every),
            ("are committed", "commit", {**every, "message": "bench"}),
        )
        write_all(files, count, "declared")
        for said, op, args in asked:
            if op != "adopt" and not agent.ask("status")["result"]["drifted"]:
                write_all(files, count, f"drifted before {op}")
                drifted(agent, count)
            held = longest_ping(agent, op, **args)
            what = f"longest wait of another client while {count} files {said}"
            out.append(figure(what, held, "ms", "<= 20", held <= 20))
    return out


def on_top(large: int) -> float:
    """MiB that a rollback of large files needs on top."""
    with agent_of_many() as (agent, files):
        write_all(files, large, "declared")
        agent.ask("adopt", patterns=[f"file:{files}/*"])
        for n in range(large):
            Path(f"{files}/f{n}").write_bytes(f"d{n}".encode() * (LARGE // 4))
        drifted(agent, large)
        before = peak_kib(agent, reset=True)
        agent.ask("rollback", targets=[], all=True)
        return (peak_kib(agent) - before) / 1024


def run(quick: bool = False) -> list[Figure]:
    count, large = (2_000, 20) if quick else (10_000, 100)
    out = rolled_back("/var/tmp", "this disk", count)
    with journaled() as where:
        out += rolled_back(where, "ext4 with a journal", count) if where else []
    out += waits(count)
    top = on_top(large)
    out.append(figure(f"memory on top for a rollback of {large} files of 3 MiB", top, "MiB", "<= 16", top <= 16))
    top_dir = tempfile.mkdtemp(prefix="pact-bench-", dir="/var/tmp")
    try:
        with_head, without = append_us(top_dir, 200 if quick else 1_000)
    finally:
        shutil.rmtree(top_dir)
    out.append(figure("an append with its head, as often as the transaction alone", with_head / without, "x"))
    return out


if __name__ == "__main__":
    main(run)
