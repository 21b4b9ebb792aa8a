"""A question changes nothing on the machine, and a step for another's sake is taken back when that other is not done."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import TOP, Agent, wait_until

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
OPS: dict[str, Any] = {"uid": 1234, "groups": [60]}
EXPIRE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.umount2(sys.argv[1].encode(), 4 | 8), ctypes.get_errno(), flush=True)
"""


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"access": {"ops_groups": ["games"]}}


@contextmanager
def traced(agent: Agent, *options: str) -> Iterator[Path]:
    """What the agent asks of the kernel, in a file."""
    assert agent.process is not None
    out = agent.base / f"strace-{uuid.uuid4().hex}"
    process = subprocess.Popen(
        ["strace", "-f", "-q", "-o", str(out), *options, "-p", str(agent.process.pid)], stderr=subprocess.DEVNULL
    )
    status = Path(f"/proc/{agent.process.pid}/status")
    wait_until(lambda: "TracerPid:\t0" not in status.read_text(), "it is traced")
    try:
        yield out
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:  # it delays a call of a process that is dead
            process.kill()
            process.wait(10)


def mounted(agent: Agent, name: str) -> str:
    point = f"{TOP}/{name}"
    agent.world.sh(f"mkdir -p {point}; mount -t tmpfs -o size=1m tmpfs {point}; echo work > {point}/only-copy")
    return point


@pytest.mark.invariant("S4")
def test_no_question_asks_the_kernel_by_a_step(agent: Agent) -> None:
    """``consumers``, dry runs and a group's question neither mark a mount nor lease a file."""
    point = f"{TOP}/asked"
    agent.world.sh(f"mkdir -p {point}")
    agent.declare(f'[mount]\n"{point}" = {{ type = "absent" }}\n')
    path = agent.file("asked.conf")
    mounted(agent, "asked")
    agent.drifted(f"mount:{point}")
    plan = json.dumps({f"mount:{point}": {"attrs": None}})
    agent.drift(path)
    with traced(agent, "-e", "trace=umount2,fcntl") as out:
        agent.pact("consumers", f"mount:{point}", uid=1236)
        agent.pact("consumers", f"file:{path}", uid=1236)
        agent.pact("rollback", "--all", "--dry-run", check=None)
        agent.ask("apply", resources=json.loads(plan), message="m", dry_run=True)
        agent.ask("declare", resources=json.loads(plan), dry_run=True)
    said = out.read_text()
    assert "umount2" not in said and "F_SETLEASE" not in said, said
    assert agent.world.sh(f"cat {point}/only-copy").out == "work\n"
    agent.pact("rollback", "--all")


@pytest.mark.invariant("S4")
def test_who_asks_for_a_mount_that_another_has_marked_does_not_unmount_it(agent: Agent) -> None:
    point = mounted(agent, "marked")
    agent.adopt(f"mount:{point}")
    for _ in range(20):
        marked = agent.world.call(["python3", "-c", "import sys\n" + EXPIRE, point]).out
        assert marked == "-1 11\n", "it was idle, and is marked"
        agent.ask("consumers", resource=f"mount:{point}")
        agent.world.sh(f"stat {point} >/dev/null")
    assert agent.world.sh(f"cat {point}/only-copy").out == "work\n"
    agent.world.sh(f"umount {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    agent.world.sh(f"umount {point}")


@pytest.mark.invariant("R11")
def test_a_mark_that_a_kill_left_is_taken_off_by_the_next_run(agent: Agent) -> None:
    """As a kill between the kernel's answer and the touch leaves it: on record, and on the mount."""
    point = mounted(agent, "left")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    agent.stop(signal.SIGKILL)
    row = next(
        line.split() for line in agent.world.sh("cat /proc/self/mountinfo").out.splitlines() if f" {point} " in line
    )
    major, minor = map(int, row[2].split(":"))
    (agent.state_dir / "loose").write_text(
        json.dumps(
            {"boot": boot, "ends": [{"what": "marked", "point": point, "id": int(row[0]), "device": [major, minor]}]}
        )
    )
    assert agent.world.call(["python3", "-c", "import sys\n" + EXPIRE, point]).out == "-1 11\n"
    agent.start()
    assert agent.world.call(["python3", "-c", "import sys\n" + EXPIRE, point]).out == "-1 11\n", "no mark was left"
    agent.world.sh(f"stat {point}; umount {point}")


@pytest.mark.invariant("R11")
def test_what_was_made_read_only_for_an_unmounting_that_was_cut_off_can_be_written_again(
    another: Callable[..., Agent],
) -> None:
    agent = another()
    point = f"{TOP}/frozen"
    agent.world.sh(f"mkdir -p {point}")
    path = agent.file("frozen/below.conf")
    change = cut_off(agent, point)
    holder = agent.world.popen(
        ["sh", "-c", f"exec 3<{point}/only-copy; echo in; exec sleep 60"], stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"in\n"
    assert agent.world.sh(f"echo x > {point}/new", check=False).code != 0, "it is read-only: the kill came in between"
    agent.start()
    wait_until(lambda: agent.change_of(f"mount:{point}")["state"] == "failed", "somebody uses it again")
    agent.world.sh(f"echo x > {point}/new")
    agent.world.end(holder)
    agent.pact("rollback", change)
    assert agent.world.path(path).read_text() == "declared\n"


def cut_off(agent: Agent, point: str) -> str:
    """Something is mounted over a declared file, and the agent dies right before it unmounts it."""
    agent.world.sh(f"mount -t tmpfs -o size=1m tmpfs {point}; echo work > {point}/only-copy")
    change = agent.drifted(f"mount:{point}")["id"]
    with traced(agent, "-e", "trace=umount2", "-e", "inject=umount2:delay_enter=20000000:when=2+"):
        roll = agent.world.popen(["python3", "-c", ROLLBACK, agent.socket], stdout=subprocess.DEVNULL)
        options = f"grep ' {point} ' /proc/self/mountinfo"
        wait_until(lambda: " ro," in agent.world.sh(options).out, "it is read-only for its unmounting")
        assert agent.process is not None
        agent.process.send_signal(signal.SIGKILL)
        time.sleep(0.1)
    agent.stop(signal.SIGKILL)
    agent.world.end(roll)
    return change


ROLLBACK = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"v":1,"op":"rollback","args":{"targets":[],"all":true}}\\n')
s.recv(100)
"""
