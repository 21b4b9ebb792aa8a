"""Saved signatures hide nothing: what the journal has moved since they were saved is looked at when the agent starts."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest
from harness import TOP, Agent, wait_until

TTL = "net.ipv4.ip_default_ttl"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"observe": {"rescan": "1h"}}


def write(agent: Agent, value: int) -> None:
    agent.world.sh(f"echo {value} > /proc/sys/{TTL.replace('.', '/')}")


@pytest.mark.invariant("J5")
def test_the_same_drift_again_while_no_agent_ran_is_seen(agent: Agent) -> None:
    write(agent, 64)
    agent.adopt(f"sysctl:{TTL}")
    write(agent, 77)
    agent.drifted(f"sysctl:{TTL}")
    agent.restart()  # saves what it has seen: 77
    agent.pact("rollback", "--all")
    assert agent.status()["changes"] == []
    agent.stop(signal.SIGKILL)
    write(agent, 77)
    agent.start()
    wait_until(lambda: agent.change_of(f"sysctl:{TTL}"), "it is seen", 5)
    agent.pact("rollback", "--all")


@pytest.mark.invariant("J5")
def test_a_file_with_the_very_signature_that_was_saved_is_seen(agent: Agent) -> None:
    """Kept aside and put back: the same inode, time and size."""
    path = agent.file("a.conf")
    kept = f"{TOP}/kept"
    agent.drift(path, "drifted\n")
    agent.world.sh(f"ln {path} {kept}")
    agent.restart()
    agent.pact("rollback", "--all")
    agent.stop(signal.SIGKILL)
    agent.world.sh(f"mv -f {kept} {path} || cp -a {kept} {path}")
    agent.start()
    wait_until(lambda: agent.change_of(f"file:{path}"), "it is seen", 5)
    agent.pact("rollback", "--all")


@pytest.mark.invariant("J5")
def test_signatures_of_another_journal_are_none(agent: Agent) -> None:
    write(agent, 64)
    agent.adopt(f"sysctl:{TTL}")
    write(agent, 77)
    agent.drifted(f"sysctl:{TTL}")
    agent.stop()
    agent.journal.unlink()
    for beside in agent.state_dir.glob("journal.*"):
        beside.unlink()
    declared = agent.base / "declared.toml"
    declared.write_text(f'[sysctl]\n"{TTL}" = 64\n')
    agent.configure({"declared": {"files": [str(declared)]}})
    agent.start()
    wait_until(lambda: agent.change_of(f"sysctl:{TTL}"), "what is declared anew is looked at", 5)
    agent.pact("rollback", "--all")
    agent.configure({"declared": {"files": []}})


@pytest.mark.invariant("C5")
def test_what_was_read_long_ago_is_looked_at_again_when_it_is_declared(agent: Agent) -> None:
    """A long adopt reads a file, which is something else again by the time that is recorded."""
    path, big = agent.file("a.conf"), f"{TOP}/big"
    agent.drift(path, "for a moment\n")
    agent.world.sh(f"truncate -s 6G {big}")
    with agent.connect() as sock, sock.makefile("rwb") as f:
        f.write(
            json.dumps({"v": 1, "op": "adopt", "args": {"patterns": [f"file:{path}", f"file:{big}"]}}).encode() + b"\n"
        )
        f.flush()
        time.sleep(0.5)
        agent.world.path(path).write_text("what it is now\n")
        wait_until(lambda: agent.newest("drift_detected")["data"]["actual"]["size"] == 15, "the loop has seen it")
        assert json.loads(f.readline())["ok"]
    wait_until(lambda: agent.change_of(f"file:{path}"), "declared is one thing, and the other is there", 3)
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "for a moment\n"


MOVING = """
n = 0
while True:
    open(sys.argv[1], "w").write(str(n))
    n += 1
    if n == 2:
        print("ready", flush=True)
    time.sleep(0.002)
"""


@pytest.mark.invariant("J5")
def test_one_file_in_constant_motion_keeps_no_other_from_being_saved(agent: Agent) -> None:
    """And what was in motion is looked at after the start."""
    path, other = agent.file("moving.conf"), agent.file("still.conf")
    writer = agent.world.python(MOVING, path)
    agent.drifted(f"file:{path}")
    saved = agent.state_dir / "signatures"
    saved.unlink(missing_ok=True)
    agent.stop()
    assert saved.exists(), "a clean stop saves what it has seen"
    agent.world.end(writer)
    agent.world.path(path).write_text("declared\n")
    agent.start()
    wait_until(lambda: not agent.change_of(f"file:{path}"), "it is seen", 5)
    agent.drift(other, "x\n")
    agent.pact("rollback", "--all")


@pytest.mark.invariant("J5", "B1")
def test_a_kernel_default_that_a_boot_brings_back_is_brought_to_declared_state(agent: Agent) -> None:
    """The signature that was saved is that of the default: the drift was seen, and rolled back, before the boot."""
    write(agent, 70)
    agent.adopt(f"sysctl:{TTL}")
    write(agent, 64)
    agent.drifted(f"sysctl:{TTL}")
    agent.restart()
    agent.pact("rollback", "--all")
    agent.stop(signal.SIGKILL)
    write(agent, 64)
    boot = agent.base / "another-boot"
    boot.write_text("00000000-0000-4000-8000-000000000001\n")
    agent.world.sh(f"mount --bind {boot} /proc/sys/kernel/random/boot_id")
    agent.start()
    assert agent.world.sh(f"cat /proc/sys/{TTL.replace('.', '/')}").out == "70\n"
    agent.world.sh("umount /proc/sys/kernel/random/boot_id")
    agent.stop(signal.SIGKILL)
    write(agent, 64)
    agent.start()
