"""A disk that fails: writes, reads, and what was refused because of it. strace makes the kernel's calls fail."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chain
import pytest
from harness import Agent, wait_until

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def lost(agent: Agent) -> bool:
    return "error" in agent.status()["journal"]


@pytest.mark.invariant("F3")
def test_a_disk_that_fails_reads_and_writes_ends_no_agent(another: Callable[..., Agent]) -> None:
    agent = another()
    path, other = agent.file("io.conf"), agent.file("io2.conf")
    agent.drift(path)
    strace = failing(agent)
    try:
        agent.world.path(other).write_text("drifted\n")
        wait_until(lambda: lost(agent), "the agent notices")
        err = agent.pact("commit", "--all", "-m", "x", check=5).err
        assert "nothing was changed" in err
        assert agent.world.path(other).read_text() == "drifted\n"
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(10)
    wait_until(lambda: not lost(agent), "it records again")
    wait_until(lambda: agent.status()["drifted"] == 2, "what came meanwhile is recorded")
    agent.pact("rollback", "--all")
    assert agent.world.path(other).read_text() == "declared\n"
    records = agent.records()
    assert chain.verify(records) == len(records)


@pytest.mark.invariant("J9")
@pytest.mark.parametrize("head_too", [False, True])
def test_a_commit_that_was_refused_is_not_there_after_a_kill(another: Callable[..., Agent], head_too: bool) -> None:
    """The disk fails to make it durable: it stands in SQLite's log all the same, whole."""
    agent = another()
    path = agent.file("refused.conf")
    agent.drift(path)
    strace = failing(
        agent,
        "fdatasync,fsync,pwrite64" if head_too else "fdatasync,fsync",
        *([str(agent.state_dir / "journal.head")] if head_too else ()),
    )
    answer = agent.ask("commit", targets=[], all=True, message="m", shared=True)
    strace.send_signal(signal.SIGINT)
    strace.wait(10)
    assert answer["exit"] == 5
    agent.restart(signal.SIGKILL)
    if head_too and "not known" in answer["message"]:
        return  # then nobody was told no
    assert not agent.records("committed") and agent.change_of(f"file:{path}")
    agent.pact("commit", "--all", "-m", "again")
    agent.restart(signal.SIGKILL)
    assert len(agent.records("committed")) == 1
    records = agent.records()
    assert chain.verify(records) == len(records)


def failing(agent: Agent, calls: str = "pread64,pwrite64,read,write,fdatasync,fsync", *more: str) -> Any:
    """These calls on the journal's files (and on ``more``) fail, until this is ended."""
    assert agent.process is not None
    files = [f"{agent.journal}{end}" for end in ("", "-wal")] + list(more)
    process = subprocess.Popen(
        [
            "strace",
            "-f",
            "-q",
            "-o",
            "/dev/null",
            *(w for f in files for w in ("-P", f)),
            "-e",
            f"inject={calls}:error=EIO",
            "-p",
            str(agent.process.pid),
        ],
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: "TracerPid:\t0" not in Path(f"/proc/{agent.process.pid}/status").read_text(), "it is traced")
    return process


@pytest.mark.invariant("F9")
def test_what_could_not_be_read_for_a_while_is_looked_at_again(another: Callable[..., Agent]) -> None:
    """The disk fails to read a file right after it was written: no event comes any more, and its times stay."""
    agent = another(observe={"rescan": "1s"})
    path = agent.file("eio.conf")
    assert agent.process is not None
    real = str(agent.world.path(path).resolve())
    process = subprocess.Popen(
        [
            "strace",
            "-f",
            "-q",
            "-o",
            "/dev/null",
            "-P",
            path,
            "-P",
            real,
            "-e",
            "inject=read,pread64:error=EIO",
            "-p",
            str(agent.process.pid),
        ],
        stderr=subprocess.DEVNULL,
    )
    status = Path(f"/proc/{agent.process.pid}/status")
    wait_until(lambda: "TracerPid:\t0" not in status.read_text(), "it is traced")
    agent.process.send_signal(signal.SIGSTOP)
    agent.world.path(path).write_text("drifted\n")
    time.sleep(0.2)  # so long ago that its times prove something
    agent.process.send_signal(signal.SIGCONT)
    wait_until(lambda: agent.status()["unreadable"], "it cannot be read")
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    process.wait(10)
    agent.drifted(f"file:{path}")
