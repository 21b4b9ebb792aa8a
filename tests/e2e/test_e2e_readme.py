"""What the README says can be pasted."""

from __future__ import annotations

import re
import signal
import sys
import time

import pytest
from harness import REPOSITORY, TOP, Agent, World

INSTALLS = 2  # the first lines, which need a registry: an environment of its own, and the link to it


def commands(heading: str) -> list[str]:
    """The lines after the prompts in the first block below a heading of the README."""
    text = (REPOSITORY / "README.md").read_text()
    block = text.split(f"## {heading}\n")[1].split("```console\n")[1].split("```")[0]
    return [line.removeprefix("# ") for line in block.splitlines()]


@pytest.mark.alone  # its commit is of what is the caller's: who wrote must be known
@pytest.mark.timeout(180)
def test_use_it_as_the_readme_says_ends_well_and_only_watches() -> None:
    world = World()
    try:
        world.sh(
            "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && ip link set lo up && "
            f"mkdir {TOP}/up {TOP}/work {TOP}/bin && "
            f"mount -t overlay -o lowerdir=/etc,upperdir={TOP}/up,workdir={TOP}/work overlay /etc"
        )
        world.path(f"{TOP}/bin/pact").write_text(f'#!/bin/sh\nexec {sys.executable} -m pact.cli.main "$@"\n')
        world.path(f"{TOP}/bin/pact").chmod(0o755)
        lines = commands("Use it")
        assert all("/opt/pact" in line for line in lines[:INSTALLS])
        script = "\n".join([f"cd {REPOSITORY}", f"PATH={TOP}/bin:$PATH", "set -e", *lines[INSTALLS:], "echo well"])
        assert "pact agent &" in script
        done = world.call(["bash", "-c", f"trap 'kill $!; wait' EXIT\n{script}"], check=False, timeout=150)
        assert done.code == 0 and done.out.endswith("well\n"), done
        assert "net.core.somaxconn" in done.out and "observe" in done.out
        assert re.search(r"^committed ", done.out, re.MULTILINE)
    finally:
        world.close()


def test_a_command_waits_for_an_agent_that_is_just_starting(make_agent: type[Agent]) -> None:
    agent = make_agent()
    agent.cold = True  # it is known by its command line
    agent.world.path(f"{TOP}/f").write_text("x")
    for command in (["agent", "--wait", "--config", str(agent.config_path)], ["adopt", f"file:{TOP}/**"], ["status"]):
        agent.start(wait=False)
        agent.pact(*command)
        agent.stop(signal.SIGKILL)  # leaves its socket: nobody listens there


def test_who_waits_for_an_agent_that_never_comes_is_told(make_agent: type[Agent]) -> None:
    agent = make_agent()
    began_s = time.monotonic()
    done = agent.pact("agent", "--wait", "--timeout", "1", check=5)
    assert "no agent answers" in done.err and 1 < time.monotonic() - began_s < 4
    began_s = time.monotonic()
    agent.pact("status", check=5)
    assert time.monotonic() - began_s < 2.5, "nobody starts one: there is nothing to wait for"
