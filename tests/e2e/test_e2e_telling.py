"""Long answers: pieces as the client takes them, whoever does not read, and whoever leaves in the middle."""

from __future__ import annotations

import json
import os
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from harness import TOP, Agent, wait_until

SIZE, COUNT = 400 << 10, 25
pytestmark = pytest.mark.invariant("S7")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"rollback": {"max_resources": 10_000}}


@pytest.fixture
def many(agent: Agent) -> list[str]:
    """Declared files, 10 MiB in all."""
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


def test_a_record_of_much_is_shown_without_all_of_it_and_costs_a_person_one_answer(
    agent: Agent, many: list[str]
) -> None:
    """10 MiB, asked for by one viewer over many connections that he does not read."""
    for n, path in enumerate(many):
        agent.world.path(path).write_text(f"changed {n} " * (SIZE // 10))
    wait_until(lambda: agent.status()["drifted"] == COUNT, "all have drifted")
    agent.pact("rollback", "--all")
    seq = agent.newest("rollback_started")["seq"]
    contents = agent.ask("show", seq=seq)["result"]["contents"]
    left_out = [r for r, entry in contents.items() if "left_out" in entry]
    assert 0 < len(left_out) < COUNT and all("content" in e for r, e in contents.items() if r not in left_out)
    assert agent.ask("content", seq=seq, resource=left_out[0])["result"]["data"]
    before = rss_kib(agent)
    script = (
        f"held = []\nfor _ in range(25):\n s = socket.socket(socket.AF_UNIX)\n s.connect({agent.socket!r})\n"
        f' s.sendall(b\'{{"op":"show","args":{{"seq":{seq}}}}}\\n\')\n held.append(s)\nready()'
    )
    crowd = agent.world.python("import socket\nos.setgroups([])\nos.setgid(1236)\nos.setuid(1236)\n" + script)
    try:
        assert agent.pact("status").code == 0 and len(agent.ask("show", seq=seq)["result"]["contents"]) == COUNT
        assert rss_kib(agent) - before < 64 << 10
    finally:
        agent.world.end(crowd)


def test_who_is_slow_gets_his_whole_answer_and_signs_of_life_only_where_he_has_read_all(
    agent: Agent, many: list[str]
) -> None:
    with agent.connect() as sock:
        sock.sendall(json.dumps({"v": 1, "op": "export", "args": {}, "alive": True}).encode() + b"\n")
        time.sleep(5)
        with sock.makefile("rb") as lines:
            texts = []
            for line in lines:
                value = json.loads(line)
                if value == {"end": True}:
                    break
                texts.append(value.get("text", ""))
    assert len(tomllib.loads("".join(texts))["file"]) == COUNT
