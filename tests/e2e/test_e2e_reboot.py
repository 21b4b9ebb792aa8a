"""A reboot, as near as a test can come to one: the agent is killed, sysctls and mounts lose what they had, and another
boot id stands in /proc (bind-mounted in the world's namespace). The clock of the machine goes on: what is charged for
the time down is tested in tests/test_core_clock.py and tests/scripts/restart.txt.
"""

from __future__ import annotations

import signal
import time
import uuid
from typing import Any

import pytest
from harness import TOP, Agent, wait_until

TTL = "/proc/sys/net/ipv4/ip_default_ttl"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"window": {"base": "1h", "floor": "2s"}}


def reboot(agent: Agent) -> None:
    """Power cut: the agent is gone, volatile state is reset by ``after``, and the boot has another id."""
    boot = agent.base / f"boot-{uuid.uuid4()}"
    boot.write_text(f"{uuid.uuid4()}\n")
    agent.world.sh(f"mount --bind {boot} /proc/sys/kernel/random/boot_id")


@pytest.mark.invariant("B1", "B2", "F2")
def test_what_a_reboot_resets_is_brought_back_before_the_agent_is_ready(agent: Agent) -> None:
    path = agent.file("reboot.conf")
    agent.world.sh(f"mkdir -p {TOP}/m && mount -t tmpfs -o size=4m tmpfs {TOP}/m && echo 77 > {TTL}")
    agent.adopt("sysctl:net.ipv4.ip_default_ttl", f"mount:{TOP}/m")
    agent.stop(signal.SIGKILL)
    agent.world.sh(f"umount {TOP}/m; echo 64 > {TTL}")
    agent.world.path(path).write_text("edited while it was down\n")
    reboot(agent)
    agent.start()
    status = agent.status()
    assert agent.world.sh(f"cat {TTL}").out == "77\n", "before its first answer"
    assert f" {TOP}/m " in agent.world.sh("cat /proc/self/mountinfo").out
    assert agent.newest("agent_started")["data"]["reboot"] is True
    assert agent.newest("converged")["data"]["cause"] == "boot"
    assert [c["resources"] for c in status["changes"]] == [[f"file:{path}"]], "a changed file is ordinary drift"


@pytest.mark.invariant("B1", "E1")
def test_in_an_emergency_a_reboot_converges_nothing(agent: Agent) -> None:
    agent.world.sh(f"echo 78 > {TTL}")
    agent.adopt("sysctl:net.ipv4.ip_default_ttl")
    agent.pact("emergency", "start", "--reason", "debugging the boot")
    agent.stop(signal.SIGKILL)
    agent.world.sh(f"echo 64 > {TTL}")
    reboot(agent)
    agent.start()
    assert agent.status()["state"] == "emergency"
    assert agent.world.sh(f"cat {TTL}").out == "64\n"
    assert agent.change_of("sysctl:net.ipv4.ip_default_ttl")
    agent.pact("emergency", "end", "--rollback", "--force")
    assert agent.world.sh(f"cat {TTL}").out == "78\n"


@pytest.mark.invariant("B2", "F2")
def test_what_has_expired_gets_the_floor_after_a_reboot(agent: Agent) -> None:
    path = agent.file("floor.conf")
    agent.stop()
    agent.configure({"window": {"base": "3s"}})
    agent.start()
    agent.drift(path)
    agent.stop(signal.SIGKILL)
    time.sleep(3.2)
    reboot(agent)
    agent.start()
    started = time.monotonic()
    assert agent.world.path(path).read_text() == "drifted\n", "not rolled back at once"
    wait_until(lambda: agent.world.path(path).read_text() == "declared\n", "rolled back")
    assert time.monotonic() - started > 1.0
