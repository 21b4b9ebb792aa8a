"""What lies in a file system in memory when it is taken off, what lies beside files, and what a boot did not do: nothing
of somebody's work is lost, read without end, or taken for the boot's.
"""

from __future__ import annotations

import hashlib
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import TOP, Agent, wait_until

TTL = "/proc/sys/net/ipv4/ip_default_ttl"


def over(agent: Agent, name: str, count: int) -> tuple[str, str]:
    """A file system in memory with somebody's work stands over a declared file; its mount point, and the change."""
    point = f"{TOP}/{name}"
    agent.file(f"{name}/declared.conf")
    agent.world.sh(
        f"mount -t tmpfs -o size=200m work {point};"
        f"for n in $(seq {count}); do head -c 1000000 /dev/urandom > {point}/work$n; done; echo one > {point}/a"
    )
    return point, agent.drifted(f"mount:{point}")["id"]


@pytest.mark.invariant("R4")
def test_what_is_saved_once_more_while_it_is_being_kept_is_not_lost(agent: Agent) -> None:
    point, change = over(agent, "memory1", 14)
    roll = agent.world.popen(
        [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "rollback", change],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen = agent.status()["journal"]["seq"]
    while agent.status()["journal"]["seq"] == seen:
        pass
    assert agent.records("rollback_started"), "its contents are being kept"
    written = agent.world.sh(f"echo two > {point}/work14", check=False).code == 0
    roll.wait(60)
    agent.world.end(roll)
    if agent.world.sh(f"mountpoint -q {point}", check=False).code == 0:
        assert agent.world.sh(f"cat {point}/work14").out == "two\n" and written
        agent.pact("rollback", change)
    elif written:
        saves = agent.newest("rollback_started")["data"]["saves"]
        assert saves[f"file:{point}/work14"]["sha256"] == hashlib.sha256(b"two\n").hexdigest(), "a record names it"


@pytest.mark.invariant("R4", "R6")
def test_what_was_written_while_no_agent_ran_is_not_taken_off_by_a_resumed_rollback(
    another: Callable[..., Agent],
) -> None:
    agent = another()
    point, change = over(agent, "memory2", 14)
    roll = agent.world.popen(
        [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "rollback", change],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen = agent.status()["journal"]["seq"]
    while agent.status()["journal"]["seq"] == seen:
        pass
    agent.stop(signal.SIGKILL)
    agent.world.end(roll)
    if agent.world.sh(f"mountpoint -q {point}", check=False).code != 0:
        pytest.skip("it was unmounted already")
    agent.world.sh(f"echo last > {point}/last")
    agent.start()
    wait_until(lambda: agent.newest("rollback_failed") or agent.newest("rolled_back"), "it has ended")
    kept = any(f"file:{point}/last" in r["data"].get("saves", {}) for r in agent.records("rollback_started"))
    assert kept or agent.world.sh(f"cat {point}/last", check=False).out == "last\n", "no record names it: it stays"
    agent.pact("rollback", "--all")


@pytest.mark.invariant("R6", "F28")
def test_what_lies_beside_a_file_is_neither_read_without_end_nor_a_reason_for_much_memory(agent: Agent) -> None:
    """An ordinary user puts a sparse file, and one of one byte, under names that pact's own temporary files have."""
    size, count = 3 << 20, 30
    agent.world.sh(f"mkdir -p {TOP}/beside; chown 1234:1234 {TOP}/beside")
    for n in range(count):
        agent.world.path(f"{TOP}/beside/{n}").write_bytes(f"a{n}".encode() * (size // 8))
    agent.adopt(f"file:{TOP}/beside/[0-9]*")
    for n in range(count):
        agent.world.path(f"{TOP}/beside/{n}").write_bytes(f"b{n}".encode() * (size // 8))
    wait_until(lambda: agent.status()["drifted"] == count, "all have drifted", 60)
    agent.world.sh(
        f"truncate -s 1T {TOP}/beside/.pact-0123456789abcdef; printf x > {TOP}/beside/.pact-0123456789abcde0", uid=1234
    )
    assert agent.process is not None
    status = Path(f"/proc/{agent.process.pid}/status")
    Path(f"/proc/{agent.process.pid}/clear_refs").write_text("5")
    before = int(status.read_text().partition("VmHWM:")[2].split()[0])
    agent.pact("rollback", "--all", check=None)
    assert int(status.read_text().partition("VmHWM:")[2].split()[0]) - before < 24 << 10
    assert agent.status()["drifted"] <= 1 and agent.world.path(f"{TOP}/beside/0").read_bytes()[:2] == b"a0"
    assert "kept.pact-0123456789abcdef" in agent.world.sh(f"ls -a {TOP}/beside").out, "it is nobody's to remove"
    agent.world.sh(f"rm -r {TOP}/beside")


@pytest.mark.invariant("B3")
def test_what_somebody_sets_long_after_a_boot_is_not_the_boot_s(another: Callable[..., Agent]) -> None:
    """The disk is full when what the boot reset has been brought back: that it has is not on record."""
    state = f"{TOP}/boot-disk"
    agent = another()
    agent.stop()
    agent.world.sh(f"mkdir -p {state}; mount -t tmpfs -o size=4m,mode=700 tmpfs {state}; echo 77 > {TTL}")
    agent.configure({"state": {"dir": state}})
    agent.start()
    agent.adopt("sysctl:net.ipv4.ip_default_ttl")
    agent.stop(signal.SIGKILL)
    boot = agent.base / f"boot-{uuid.uuid4()}"
    boot.write_text(f"{uuid.uuid4()}\n")
    agent.world.sh(f"echo 64 > {TTL}; mount --bind {boot} /proc/sys/kernel/random/boot_id")
    agent.start()
    records = agent.records()
    assert [r["type"] for r in records][-2:] == ["converge_started", "converged"]
    agent.stop(signal.SIGKILL)
    agent.world.call([sys.executable, "-c", FORGET, state])  # as a disk that was full then leaves it
    agent.start()  # owed still, by the record; it is as declared
    agent.world.sh(f"echo 99 > {TTL}")
    change = agent.drifted("sysctl:net.ipv4.ip_default_ttl")
    agent.restart(signal.SIGKILL)
    assert agent.world.sh(f"cat {TTL}").out == "99\n", "it has its window"
    assert agent.change_of("sysctl:net.ipv4.ip_default_ttl")["id"] == change["id"]
    agent.close()
    agent.world.sh(f"umount {state}; umount /proc/sys/kernel/random/boot_id; echo 64 > {TTL}")


FORGET = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1] + "/journal.db")
db.execute("DELETE FROM record WHERE seq = (SELECT max(seq) FROM record)")
db.execute("DELETE FROM snapshot")
db.commit()
db.close()
os.unlink(sys.argv[1] + "/journal.head")
"""


@pytest.mark.invariant("F22")
def test_who_asks_for_many_diffs_and_takes_none_costs_one_and_holds_nobody_up(another: Callable[..., Agent]) -> None:
    agent = another(mode={"enforcement": "observe"})
    count = 1500
    agent.world.sh(f"mkdir -p {TOP}/big; cd {TOP}/big; for i in $(seq {count}); do echo d > f$i; done")
    agent.adopt(f"file:{TOP}/big/f*")
    agent.world.sh(f"cd {TOP}/big; for i in $(seq {count}); do seq $i 2 $((i+400)) > f$i; done")
    wait_until(lambda: agent.status()["drifted"] == count, "all have drifted", 60)
    assert agent.process is not None
    status = Path(f"/proc/{agent.process.pid}/status")
    Path(f"/proc/{agent.process.pid}/clear_refs").write_text("5")
    before = int(status.read_text().partition("VmHWM:")[2].split()[0])
    script = (
        "import socket, sys, time\nss = []\nfor i in range(24):\n s = socket.socket(socket.AF_UNIX)\n"
        ' s.connect(sys.argv[1])\n s.sendall(b\'{"v":1,"op":"diff","args":{}}\\n\')\n ss.append(s)\n'
        "print('asked', flush=True)\ntime.sleep(60)\n"
    )
    asking = agent.world.popen(
        [
            "setpriv",
            "--reuid=4321",
            "--regid=4321",
            "--clear-groups",
            "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search",
            "--",
            sys.executable,
            "-c",
            script,
            agent.socket,
        ],
        stdout=subprocess.PIPE,
    )
    assert asking.stdout.readline() == b"asked\n"
    time.sleep(1)
    began = time.monotonic()
    assert len(agent.ask("diff", targets=[f"file:{TOP}/big/f1"])["result"]["resources"]) == 1
    assert time.monotonic() - began < 5, "an admin's is answered all the same"
    time.sleep(1)
    peak = int(status.read_text().partition("VmHWM:")[2].split()[0]) - before
    agent.world.end(asking)
    assert peak < 48 << 10, "one answer, not two dozen"
    with agent.connect() as sock:
        assert isinstance(sock, socket.socket) and agent.ask("ping")["ok"]
