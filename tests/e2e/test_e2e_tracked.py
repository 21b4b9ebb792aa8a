"""What is new below adopted patterns: it is seen, told with its owner, and becomes what the pattern's mode says."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from harness import TOP, Agent, wait_until

ETC = f"{TOP}/etc"
EVIL = f"file:{ETC}/evil"


def made_by(agent: Agent, uid: int, script: str) -> subprocess.Popen[Any]:
    """``uid`` runs a script inside and stays until it is ended, so that the kernel can name him."""
    who = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"] if uid else []
    process = agent.world.popen([*who, "sh", "-c", f"{script}\necho made && exec cat"], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == b"made\n", script
    return process


def etc(agent: Agent, mode: int = 0o777) -> Path:
    """A directory with one file, adopted by a pattern."""
    place = agent.world.path(ETC)
    place.mkdir()
    place.chmod(mode)
    (place / "known").write_text("known\n")
    agent.adopt(f"file:{ETC}/**")
    return place


def untracked(agent: Agent) -> dict[str, Any]:
    return {u["resource"]: u for u in agent.status()["untracked_resources"]}


def test_a_new_file_below_an_adopted_pattern_shows_in_status_with_its_owner(agent: Agent) -> None:
    etc(agent)
    assert agent.status()["untracked"] == 0
    who = made_by(agent, 1234, f"echo evil > {ETC}/evil")
    began = time.monotonic()
    wait_until(lambda: agent.newest("untracked_seen"), "it is recorded without anybody asking", 2)
    assert time.monotonic() - began < 1.0
    agent.world.end(who)
    status = agent.status()
    assert status["untracked"] == 1 and status["drifted"] == 0 and status["changes"] == []
    assert status["state"] == "committed" and status["magnitude"] == 0
    (found,) = status["untracked_resources"]
    assert found["resource"] == EVIL and found["owner"]["uid"] == 1234 and "evil" in found["owner"]["command"]
    assert found["actual"]["type"] == "file" and found["seen"]
    assert "untracked: 1" in agent.pact("status").out
