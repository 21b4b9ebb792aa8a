"""The example on the page about kinds works as it stands there: installed, adopted, seen, rolled back, exported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import REPOSITORY, TOP, Agent, World, wait_until

PAGE = (REPOSITORY / "docs" / "kinds.md").read_text()


def block(head: str) -> str:
    """The block of the page that begins with this comment."""
    (found,) = re.findall(rf"^```\w+\n# {re.escape(head)}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture
def agent(world: World, make_agent: Callable[..., Agent], tmp_path: Path) -> Iterator[Agent]:
    place, source = tmp_path / "place", tmp_path / "source"
    (source / "site_timezone").mkdir(parents=True)
    (source / "site_timezone" / "__init__.py").write_text(block("site_timezone/__init__.py"))
    (source / "pyproject.toml").write_text(block("pyproject.toml"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    done = subprocess.run([*pip, str(place), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for above in (place, tmp_path, tmp_path.parent, tmp_path.parent.parent):
        os.chmod(above, 0o755)
    world.sh(
        f"mkdir -p {TOP}/up {TOP}/work; mount -t overlay -o lowerdir=/etc,upperdir={TOP}/up,workdir={TOP}/work o /etc"
    )
    world.sh("ln -sf /usr/share/zoneinfo/Etc/UTC /etc/localtime")
    world.env = {"PYTHONPATH": f"{place}{os.pathsep}{REPOSITORY}"}
    world.cold = True  # as on a site, from the reading of the package on
    made = make_agent(observe={"rescan": "1h"})
    made.start()
    yield made
    made.close()
    world.env = {}
    world.sh("umount /etc")


def test_the_example_works_as_it_stands_there(agent: Agent) -> None:
    assert len(block("site_timezone/__init__.py").strip().splitlines()) <= 50
    assert agent.adopt("timezone:*")["adopted"] == 1
    agent.world.sh("ln -sfn /usr/share/zoneinfo/Asia/Tokyo /etc/localtime")
    change = wait_until(lambda: agent.change_of("timezone:local"), "the drift")
    assert change["owner"]["user"] in ("root", "unattributed")
    (row,) = agent.json("diff")["resources"]
    assert (row["declared"], row["actual"]) == ({"zone": "Etc/UTC"}, {"zone": "Asia/Tokyo"})
    agent.pact("rollback", "--all")
    assert agent.world.sh("readlink /etc/localtime").out == "/usr/share/zoneinfo/Etc/UTC\n"
    text = agent.pact("export").out
    assert "[timezone.local]" in text or "[timezone]" in text, text
    agent.declare(text)
    assert agent.status()["state"] == "committed"
    assert "there is one: timezone:local" in agent.declare('[timezone]\nother = "UTC"\n', check=2).err
