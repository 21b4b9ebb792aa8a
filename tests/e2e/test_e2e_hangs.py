"""File systems that do not answer: a FUSE server that hangs. Whoever looks there waits; the agent and others do not."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import HUNG_FUSE, TOP, Agent, wait_until

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="this kernel has no FUSE")
ADMIN: dict[str, Any] = {"uid": 1237, "groups": [8]}
BIG = 9 << 20  # looked at off the loop


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"access": {"admin_groups": ["mail"]}, "observe": {"rescan": "1s"}}


@contextmanager
def hung(agent: Agent, path: str) -> Iterator[None]:
    """``path`` does not answer as long as this lasts."""
    agent.world.sh(f"mkdir -p {path}")
    server = agent.world.python(HUNG_FUSE, path)
    try:
        yield
    finally:
        agent.world.end(server)
        agent.world.sh(f"umount -l {path}")


@pytest.mark.invariant("S1")
def test_who_uses_what_hangs_is_not_for_viewers_to_ask(agent: Agent) -> None:
    with hung(agent, f"{TOP}/h"):
        for resource in (f"file:{TOP}/h/x", f"file:{TOP}/h", f"mount:{TOP}/h"):
            assert "may hang" in agent.pact("consumers", resource, uid=1236, check=3).err
        assert agent.newest("denied")["data"]["request"] == "consumers"


@pytest.mark.invariant("F13")
def test_an_admin_s_question_that_hangs_holds_nothing_else_up(agent: Agent) -> None:
    path = agent.file("f", "one\n")
    with hung(agent, f"{TOP}/h"):
        asking = agent.world.popen(
            [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "consumers", f"file:{TOP}/h/x"],
            stdout=-1,
            stderr=-1,
        )
        wait_until(lambda: b"request_wait_answer" in wchan(agent), "a thread of the agent hangs")
        agent.drift(path, "two\n")
        agent.pact("commit", "--all", "-m", "m")
        agent.drift(path, "three\n")
        agent.pact("rollback", "--all")
        assert agent.world.path(path).read_text() == "two\n"
        agent.world.end(asking)


def wchan(agent: Agent) -> bytes:
    assert agent.process is not None
    task = f"/proc/{agent.process.pid}/task"
    return b" ".join(Path(task, t, "wchan").read_bytes() for t in os.listdir(task))


@pytest.mark.invariant("F13")
def test_what_is_mounted_over_a_declared_path_and_hangs_leaves_the_loop_alone(agent: Agent) -> None:
    """Also when it is there already at the start, and the resource comes back to the loop when it is gone."""
    path, other = agent.file("d/conf", "one\n"), agent.file("other", "one\n")
    with hung(agent, f"{TOP}/d"):
        agent.drift(other, "two\n")  # the loop goes on
        agent.pact("commit", f"file:{other}", "-m", "m")
        agent.restart()
        agent.drift(other, "three\n")
    wait_until(lambda: not agent.change_of(f"mount:{TOP}/d"), "nothing is mounted there any more")
    agent.world.path(path).write_text("changed\n")
    agent.drifted(f"file:{path}")


EXCHANGE = """
import ctypes
a, b = (os.fsencode(p) for p in sys.argv[1:])
assert ctypes.CDLL(None, use_errno=True).renameat2(-100, a, -100, b, 2) == 0, os.strerror(ctypes.get_errno())
ready()
"""


def test_a_directory_that_becomes_a_link_to_what_hangs_leaves_the_loop_alone(agent: Agent) -> None:
    """In one step. Where it takes two, a look that begins between them may still follow the link (see F13)."""
    path, other = agent.file("turned/dir/conf", "one\n"), agent.file("other2", "one\n")
    with hung(agent, f"{TOP}/far"):
        agent.world.sh(f"ln -s {TOP}/far {TOP}/turned/old")
        agent.world.end(agent.world.python(EXCHANGE, f"{TOP}/turned/old", f"{TOP}/turned/dir"))
        agent.drift(other, "two\n")
        assert agent.pact("consumers", f"file:{path}", uid=1236, check=3)
        agent.pact("export", uid=1236)
        agent.restart()
        agent.drift(other, "three\n")
        agent.world.sh(f"cd {TOP}/turned && rm dir && mv old dir")
    agent.world.path(path).write_text("changed\n")
    agent.drifted(f"file:{path}")


@pytest.mark.invariant("J4", "F13")
def test_what_was_not_seen_whole_before_the_end_is_seen_after_the_next_start(make_agent: Callable[..., Agent]) -> None:
    """A signature that is newer than what the journal knows would hide the change for ever."""
    agent = make_agent(observe={"rescan": "1s"})
    agent.start()
    big, lies = f"{TOP}/big", agent.file("l/x", "x\n")
    agent.world.sh(f"truncate -s {BIG} {big}")
    agent.adopt(f"file:{big}")
    wait_until((agent.state_dir / "signatures").exists, "the signatures were saved")
    with hung(agent, os.path.dirname(lies)):
        wait_until(lambda: b"request_wait_answer" in wchan(agent), "the thread for what takes long hangs")
        agent.world.sh(f"printf X | dd of={big} bs=1 seek=100 conv=notrunc 2>/dev/null")
        agent.file("late", "x\n")  # sees what has happened up to now, hands the big file on, and has signatures to save
        assert agent.status()["state"] == "drifted", "of the mount alone"
        time.sleep(1)
        agent.stop()
    agent.start()
    agent.drifted(f"file:{big}")
