"""Worlds and agents for the end-to-end tests. One of each a module; ended by pid; the agent's log shown on failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import systemd_kit
from harness import BOX, FILES, REPOSITORY, TOP, Agent, World

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and "demo" not in item.path.name:
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Agent):
                report.sections.append((f"the agent's log ({value.base})", value.log()[-8000:]))
    return report


@pytest.fixture(scope="session", autouse=True)
def no_login() -> None:
    """Owners are told apart by uid here: forget the login that this session may have."""
    try:
        with open("/proc/self/loginuid", "w") as f:
            f.write("4294967295")
    except OSError:
        pass


@pytest.fixture(scope="module")
def file_system() -> str:
    """The file system that tests write on; a module may define a fixture of this name."""
    return FILES


@pytest.fixture(scope="module")
def world(file_system: str) -> Iterator[World]:
    world = World(file_system)
    yield world
    world.close()


@pytest.fixture(scope="module")
def base(file_system: str) -> Iterator[Path]:
    """A directory with a short path, on the disk, for state, socket and configuration: one for each file system."""
    path = Path(tempfile.mkdtemp(prefix="pact-e2e-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def make_agent(world: World, base: Path) -> Iterator[Callable[..., Agent]]:
    """``make_agent(section={key: value}, ...)``: an agent that is not started yet."""
    made: list[Agent] = []

    def make(**config: Any) -> Agent:
        agent = Agent(world, base / f"a{len(made)}", config)
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.close()


@pytest.fixture(scope="module")
def machine(base: Path) -> Iterator[systemd_kit.Machine]:
    """A real systemd: a booted system of the module's own (see ``systemd_kit``)."""
    made = systemd_kit.boot(base)
    yield made
    made.close()


@pytest.fixture(scope="module")
def machines_agent(machine: systemd_kit.Machine, base: Path) -> Iterator[systemd_kit.NodeAgent]:
    """An agent that is a unit of it. What it sees it has from sources of events: it rescans once an hour."""
    made = systemd_kit.NodeAgent(machine, base / "node", {"observe": {"rescan": "1h"}})
    made.start()
    yield made
    made.close()


@pytest.fixture
def node(machines_agent: systemd_kit.NodeAgent) -> Iterator[systemd_kit.NodeAgent]:
    """The machine's agent, with nothing open after the test."""
    yield machines_agent
    machines_agent.clear()


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """A module's own configuration; it defines a fixture of this name."""
    return {}


@pytest.fixture(scope="module")
def running(make_agent: Callable[..., Agent], config: dict[str, Any]) -> Agent:
    """The module's agent."""
    agent = make_agent(**config)
    agent.start()
    return agent


@pytest.fixture
def agent(running: Agent) -> Iterator[Agent]:
    """The module's agent, with nothing declared and nothing open when the test begins."""
    yield running
    if running.process is not None and (code := running.process.poll()) is not None:
        running.close()
        running.start()  # for the next test
        running.clear()
        pytest.fail(f"the agent ended with {code}:\n{running.log()[-4000:]}")
    if running.process is not None:
        running.clear()


@pytest.fixture
def another(make_agent: Callable[..., Agent]) -> Iterator[Callable[..., Agent]]:
    """An agent with a configuration of its own, started. It ends with the test: it may remove what others make."""
    made: list[Agent] = []

    def start(**config: Any) -> Agent:
        made.append(make_agent(**config))
        made[-1].start()
        return made[-1]

    yield start
    for agent in made:
        agent.close()


@pytest.fixture
def on_small_disk(world: World, make_agent: Callable[..., Agent]) -> Iterator[Callable[[str], Agent]]:
    """``on_small_disk(base)``: a running agent whose state directory is a file system of four mebibytes."""
    state, made = f"{TOP}/small-disk", list[Agent]()

    def start(base: str) -> Agent:
        world.sh(f"mkdir -p {state}; mount -t tmpfs -o size=4m,mode=700 tmpfs {state}")
        made.append(make_agent(state={"dir": state}, window={"base": base, "floor": "0.2s"}))
        made[-1].start()
        return made[-1]

    yield start
    for agent in made:
        agent.close()
    world.sh(f"umount {state}", check=False)


# -- a kind of another package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed: a place of its own, in front of pact's."""
    place, source = tmp_path_factory.mktemp("toys"), tmp_path_factory.mktemp("source") / "toykind"
    shutil.copytree(REPOSITORY / "tests" / "toykind", source)  # pip builds where the source is
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--target",
            str(place),
            str(source),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    os.chmod(place, 0o755)
    return place


@pytest.fixture
def toys(world: World, package: Path) -> Iterator[World]:
    world.sh(f"mkdir -p {BOX}; echo red > {BOX}/bear; echo blue > {BOX}/duck")
    world.env = {"PYTHONPATH": f"{package}{os.pathsep}{REPOSITORY}", "TOY_BOX": BOX}
    yield world
    world.env = {}
    world.sh(f"rm -rf {BOX}")
