"""What the tests of tracked patterns share: a directory that is adopted by a pattern, and who makes things in it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from harness import TOP, Agent, World, wait_until

ETC = f"{TOP}/etc"
EVIL = f"file:{ETC}/evil"


def empty(world: World, agent: Agent) -> None:
    """Nothing is there, declared or tracked."""
    world.sh(f"for m in {TOP}/*; do umount -q $m; done; rm -rf {TOP}/*; true")
    assert agent.ask("declare", resources={}, prune=True)["exit"] == 0
    wait_until(lambda: agent.status()["untracked"] == 0, "nothing is tracked")


def made_by(agent: Agent, uid: int, script: str) -> subprocess.Popen[Any]:
    """``uid`` runs a script inside and stays until it is ended, so that the kernel can name him."""
    who = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"] if uid else []
    process = agent.world.popen(
        [*who, "sh", "-c", f"{script}\necho made && read _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
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
