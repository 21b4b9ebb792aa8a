"""An agent that has no file descriptor left, by its clients or by its limit."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Agent, wait_until


def descriptors(agent: Agent, left: int) -> None:
    """Let the agent have so many more than it uses now."""
    assert agent.process is not None
    pid = agent.process.pid
    used = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + left, 4096))


def spent_s(agent: Agent) -> float:
    assert agent.process is not None
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.invariant("F66")
@pytest.mark.parametrize("left", [0, 1, 3, 30])
def test_without_a_descriptor_left_nobody_is_served_and_nothing_spins(another: Callable[..., Agent], left: int) -> None:
    agent = another()
    path = agent.file("fd.conf")
    descriptors(agent, left)
    waiting = [agent.connect() for _ in range(40)]
    before = spent_s(agent)
    time.sleep(2)
    assert spent_s(agent) - before < 0.4, "no processor is spent on it"
    told = b""
    for sock in waiting:
        with contextlib.suppress(TimeoutError, OSError):
            sock.settimeout(0.05)
            told += sock.recv(4096)
    assert b"no file descriptor left" in told or left == 0
    for sock in waiting:
        sock.close()
    descriptors(agent, 400)
    wait_until(lambda: agent.ask("ping")["ok"], "it serves again")
    agent.drift(path)
    agent.pact("rollback", "--all")


@pytest.mark.invariant("F66")
def test_what_needs_a_descriptor_says_that_there_is_none(another: Callable[..., Agent]) -> None:
    agent = another()
    path = agent.file("fd2.conf")
    change = agent.drift(path)
    with agent.connect() as sock, sock.makefile("rwb") as f:
        f.write(b'{"v":1,"op":"ping"}\n')
        f.flush()
        assert b"true" in f.readline()
        descriptors(agent, 0)
        for op, args in (
            ("consumers", {"resource": f"file:{path}"}),
            ("rollback", {"targets": [change["id"]]}),
            ("commit", {"targets": [], "message": "m"}),
            ("adopt", {"patterns": [f"file:{path}"]}),
            ("diff", {}),
            ("status", {}),
        ):
            f.write(json.dumps({"v": 1, "op": op, "args": args}).encode() + b"\n")
            f.flush()
            assert "internal error" not in (answer := f.readline().decode()), (op, answer)
        descriptors(agent, 400)
    assert agent.world.path(path).read_text() == "drifted\n"
    assert "Traceback" not in agent.log()
    wait_until(lambda: agent.pact("rollback", "--all", check=None).code == 0, "it works again")


@pytest.mark.invariant("F66")
def test_a_start_without_enough_descriptors_says_so(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    for most in (8, 10, 12, 16, 20):
        done = agent.world.call(
            [
                "prlimit",
                f"--nofile={most}",
                "timeout",
                "3",
                sys.executable,
                "-m",
                "pact.cli.main",
                "agent",
                "--config",
                str(agent.config_path),
            ],
            check=False,
        )
        assert done.code in (1, 5, 124) and "Traceback" not in done.err and "internal" not in done.err, (most, done)
        assert done.code == 124 or "descriptor" in done.err or "Too many open files" in done.err, (most, done)
