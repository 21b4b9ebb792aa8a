"""Long answers: pieces as the client takes them, whoever does not read, and whoever leaves in the middle."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from harness import TOP, Agent, wait_until

SIZE, COUNT = 400 << 10, 60
pytestmark = pytest.mark.invariant("S7")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"rollback": {"max_resources": 10_000}}


@pytest.fixture
def many(agent: Agent) -> list[str]:
    """Declared files, 24 MiB in all."""
    paths = [agent.file(f"many/f{n:02}", f"{n} " * (SIZE // 3)) for n in range(COUNT)]
    return paths


def begun(agent: Agent, op: str, **args: Any) -> Any:
    """Asked, and of the answer only the first bytes were read."""
    sock = agent.connect()
    sock.sendall(json.dumps({"v": 1, "op": op, "args": args}).encode() + b"\n")
    assert sock.recv(100)
    return sock


def rss_kib(agent: Agent) -> int:
    assert agent.process is not None
    return int(Path(f"/proc/{agent.process.pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def test_an_export_of_many_pieces_is_whole(agent: Agent, many: list[str]) -> None:
    table = tomllib.loads(agent.pact("export").out)
    assert sorted(table["file"]) == sorted(many)
    assert all(table["file"][path]["content"] == f"{n} " * (SIZE // 3) for n, path in enumerate(many))


def test_who_does_not_read_costs_a_piece_and_keeps_nobody_waiting(agent: Agent, many: list[str]) -> None:
    agent.pact("export")
    before = rss_kib(agent)
    held = [begun(agent, "export") for _ in range(10)]
    try:
        assert agent.pact("status").code == 0
        assert len(tomllib.loads(agent.pact("export").out)["file"]) == COUNT
        assert rss_kib(agent) - before < 16 << 10
    finally:
        for sock in held:
            sock.close()


def test_who_leaves_in_the_middle_leaves_nothing_behind(agent: Agent, many: list[str]) -> None:
    assert agent.process is not None
    fds = f"/proc/{agent.process.pid}/fd"
    agent.pact("export")
    agent.pact("log")
    before = len(os.listdir(fds))
    for n in range(30):
        begun(agent, ("export", "log")[n % 2]).close()
    wait_until(lambda: len(os.listdir(fds)) <= before, "no descriptor is left")
    assert "Traceback" not in agent.log()


def test_the_record_of_a_large_rollback_is_shown_and_each_content_of_it(agent: Agent, many: list[str]) -> None:
    for n, path in enumerate(many[:20]):
        agent.world.path(path).write_text(f"drifted {n}\n" * 10_000)
    wait_until(lambda: agent.status()["drifted"] == 20, "all have drifted")
    agent.pact("rollback", "--all")
    seq = agent.newest("rollback_started")["seq"]
    answer = agent.ask("show", seq=seq)["result"]
    assert len(answer["contents"]) == 20
    assert all(entry["content"].startswith("drifted ") for entry in answer["contents"].values())
    one = agent.ask("content", seq=seq, resource=f"file:{many[3]}")["result"]
    assert one["resource"] == f"file:{many[3]}"
    assert agent.ask("show", seq=10**9)["exit"] == 2 and agent.ask("content", seq=seq)["exit"] == 2
    assert agent.ask("content", seq=seq, resource="file:/nowhere")["exit"] == 2


@pytest.mark.invariant("S2", "S3")
def test_a_content_that_is_refused_elsewhere_is_journaled_too(agent: Agent) -> None:
    path = agent.file("secret", "one\n")
    agent.world.sh(f"chmod 600 {path}")
    agent.pact("commit", "--all", "-m", "m", check=None)
    agent.drift(path, "two\n")
    agent.pact("rollback", "--all")
    seq = agent.newest("rollback_started")["seq"]
    done = agent.pact("show", str(seq), "--restore", f"{TOP}/got", uid=1236, check=3)
    assert "not world-readable" in done.err
    assert agent.newest("denied")["data"]["request"] == "content"
