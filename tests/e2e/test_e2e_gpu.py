"""GPUs with a real agent, and a library of our own in the place of NVML."""

from __future__ import annotations

import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Agent, World, wait_until

sys.path.insert(0, str(Path(__file__).parent.parent))
from nvml_kit import FIRST, SECOND, Nvml

pytestmark = pytest.mark.needs("gcc")
GPU = f"gpu:{FIRST}"


@pytest.fixture(scope="module")
def nvml(base: Path) -> Nvml:
    return Nvml(base / "nvml")


@pytest.fixture(scope="module")
def cards(world: World, make_agent: Callable[..., Agent], nvml: Nvml) -> Iterator[Agent]:
    world.env = {"LD_LIBRARY_PATH": str(nvml.place)}
    made = make_agent(observe={"rescan": "1s"})
    made.start()
    yield made
    made.close()
    world.env = {}


@pytest.fixture
def agent(cards: Agent, nvml: Nvml) -> Iterator[Agent]:
    yield cards
    nvml.values = {}
    nvml.__init__(nvml.place)  # type: ignore[misc]
    cards.clear()


def test_they_are_adopted_seen_and_rolled_back(agent: Agent, nvml: Nvml) -> None:
    assert agent.adopt("gpu:**")["adopted"] == 2
    nvml.set(gpu0_persistence=0, gpu0_power=200000)
    change = agent.drifted(GPU)
    assert change["owner"]["user"] == "unattributed"
    assert f"{FIRST}" in agent.pact("diff").out
    agent.pact("rollback", "--all")
    assert (nvml.read()["gpu0.persistence"], nvml.read()["gpu0.power"]) == ("1", "300000")
    assert agent.status()["state"] == "committed"
    out = agent.pact("export").out
    assert "power_limit_mw = 300000" in out and "now" not in out
    again = agent.base / "again.toml"
    again.write_text(out)
    agent.pact("declare", str(again))
    assert agent.status()["state"] == "committed"


def test_a_process_on_the_card_blocks_the_rollback_and_is_named(agent: Agent, nvml: Nvml) -> None:
    agent.adopt("gpu:0")
    user = agent.world.python("ready()\n")
    try:
        nvml.set(gpu0_compute=user.pid, gpu0_compute_mode=2)
        agent.drifted(GPU)
        agent.pact("rollback", "--all", check=10)
        assert agent.change_of(GPU)["consumers"][0]["pid"] == user.pid
        assert nvml.read()["gpu0.compute_mode"] == "2"
    finally:
        agent.world.end(user)
    nvml.set(gpu0_compute=None)
    agent.pact("rollback", "--all")
    assert nvml.read()["gpu0.compute_mode"] == "0"


@pytest.mark.invariant("F73", "B4")
def test_a_lost_gpu_is_told_never_tried_and_set_up_when_it_is_back(agent: Agent, nvml: Nvml) -> None:
    agent.adopt("gpu:**")
    nvml.set(gpu0_error=15)
    agent.drifted(GPU)
    done = agent.pact("rollback", "--all", check=1)
    assert "no rollback can mend that" in done.err + done.out
    assert agent.change_of(GPU)["state"] == "blocked"
    nvml.set(gpu0_error=None, gpu0_persistence=0)
    agent.settled(GPU)
    assert nvml.read()["gpu0.persistence"] == "1"
    assert agent.newest("converged")["data"]["cause"] == "returned"


@pytest.mark.invariant("F73")
def test_a_driver_that_is_exchanged_is_unreadable_meanwhile_and_then_drift(agent: Agent, nvml: Nvml) -> None:
    agent.adopt("gpu:**")
    nvml.set(init_error=9)
    wait_until(lambda: agent.status()["unreadable"] == 2, "it is told")
    assert agent.status()["changes"] == []
    nvml.set(init_error=None, driver="560.28.03")
    change = agent.drifted(GPU)
    assert set(change["resources"]) <= {GPU, f"gpu:{SECOND}"}
    done = agent.pact("rollback", "--all", check=1)
    assert "a person must mend it" in done.err + done.out


@pytest.mark.invariant("B1")
def test_what_a_reboot_resets_is_brought_back_before_the_agent_is_ready(agent: Agent, nvml: Nvml) -> None:
    agent.adopt("gpu:**")
    agent.stop(signal.SIGKILL)
    nvml.set(gpu0_persistence=0, gpu1_power=250000)
    boot = agent.base / f"boot-{uuid.uuid4()}"
    boot.write_text(f"{uuid.uuid4()}\n")
    agent.world.sh(f"mount --bind {boot} /proc/sys/kernel/random/boot_id")
    agent.start()
    assert (nvml.read()["gpu0.persistence"], nvml.read()["gpu1.power"]) == ("1", "300000"), "before its first answer"
    assert agent.newest("converged")["data"]["cause"] == "boot"
    assert agent.status()["state"] == "committed"


def test_without_nvml_it_is_said_and_nothing_else_suffers(another: Callable[..., Agent], cards: Agent) -> None:
    cards.world.env = {}
    agent = another()
    assert "no NVML" in str(agent.pact("adopt", "gpu:**", check=None))
    agent.declare(f'[gpu."{FIRST}"]\npersistence = true\n', check=None)
    wait_until(lambda: "no NVML" in agent.pact("status", "-v").out, "it is said")
    assert agent.status()["changes"] == [] and agent.ask("ping")["ok"]
