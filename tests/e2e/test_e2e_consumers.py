"""Whoever uses a resource stops its rollback, is named, and nothing is touched until they are gone (ADR-014 F5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import TOP, Agent, World, wait_until

pytestmark = pytest.mark.invariant("F5")

USERS = {
    "fd": "f = open(sys.argv[1] + '/used', 'r')",
    "cwd": "os.chdir(sys.argv[1])",
    "map": "import ctypes; f = os.open(sys.argv[1] + '/used', 0); c = ctypes.c_long; m = ctypes.CDLL(None).mmap;"
    " m(c(0), c(4096), 1, 2, f, c(0)); os.close(f)",
    "root": "os.chroot(sys.argv[1])",
}


def blocked(agent: Agent, resource: str) -> Any:
    def look() -> Any:
        change = agent.change_of(resource)
        return change if change and change["state"] == "blocked" else None

    return wait_until(look, f"{resource} is blocked: {agent.status()['changes']}")


def refused(agent: Agent, resource: str) -> Any:
    """Roll back, be refused, and return who is in the way. Asserts that the status says so too."""
    done = agent.pact("rollback", resource, check=10)
    assert "used by" in done.err or "in use" in done.err, done
    change = blocked(agent, resource)
    assert agent.status()["state"] == "blocked" and change["reason"] == "consumers" and change["consumers"]
    assert agent.newest("rollback_blocked")["data"]["holders"] == change["consumers"]
    return change["consumers"]


@pytest.mark.parametrize("how", ["fd", "map"])
def test_a_process_that_has_the_file_open_or_mapped_stops_its_rollback(agent: Agent, how: str) -> None:
    agent.world.sh(f"mkdir -p {TOP}/f")
    path = agent.file("f/used")
    agent.drift(path)
    holder = agent.world.python(USERS[how] + "\nready()", f"{TOP}/f")
    (found,) = refused(agent, f"file:{path}")
    assert (found["pid"], found["user"], found["how"]) == (holder.pid, "root", how)
    assert "python" in found["command"] and {"cgroup", "job"} <= set(found)
    assert agent.world.path(path).read_text() == "drifted\n", "nothing was touched"
    agent.world.end(holder)
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"


def test_the_program_that_runs_from_the_file_stops_its_rollback(agent: Agent) -> None:
    path = f"{TOP}/program"
    agent.world.sh(f"cp $(command -v sleep) {path}")
    agent.adopt(f"file:{path}")
    agent.world.sh(f"chmod 700 {path}; printf x >> {path}")
    agent.drifted(f"file:{path}")
    process = agent.world.popen([path, "1000"])
    wait_until(lambda: b"program" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), "it runs")
    holders = refused(agent, f"file:{path}")
    assert "exe" in {h["how"] for h in holders} and {h["pid"] for h in holders} == {process.pid}
    agent.world.end(process)
    agent.pact("rollback", "--all")


@pytest.fixture
def over(agent: Agent) -> Any:
    """A declared mount with another mounted over it: the rollback would have to unmount that."""
    point = f"{TOP}/m"
    agent.world.sh(f"mkdir -p {point}; mount -t tmpfs -o size=1m tmpfs {point}")
    agent.adopt(f"mount:{point}")
    agent.world.sh(f"mount -t tmpfs -o size=50m over {point}; echo x > {point}/used")
    agent.drifted(f"mount:{point}")
    yield point
    agent.world.sh(f"umount {point}; umount {point}", check=False)


@pytest.mark.parametrize("how", sorted(USERS))
def test_a_process_inside_a_mount_stops_its_unmounting(agent: Agent, over: str, how: str) -> None:
    holder = agent.world.python(USERS[how] + "\nready()", over)
    holders = refused(agent, f"mount:{over}")
    assert {h["pid"] for h in holders} == {holder.pid}
    assert agent.world.path(f"{over}/used").exists()
    agent.world.end(holder)
    agent.pact("rollback", "--all")
    saves = agent.newest("rollback_started")["data"]["saves"]
    assert f"file:{over}/used" in saves, "its files were only in memory: they are kept"
    assert f"over {over} " not in agent.world.sh("cat /proc/self/mounts").out


def test_a_mount_seen_in_another_namespace_stops_its_unmounting(agent: Agent, over: str) -> None:
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 999"]
    other = agent.world.popen(command, stdout=-1)
    assert other.stdout.readline() == b"ready\n"
    holders = refused(agent, f"mount:{over}")
    assert other.pid in {h["pid"] for h in holders}
    agent.world.end(other)
    agent.pact("rollback", "--all")


def test_a_loop_device_on_a_file_below_stops_its_unmounting(agent: Agent, over: str) -> None:
    device = agent.world.sh(f"truncate -s 1M {over}/disk; losetup -f --show {over}/disk", check=False)
    if device.code:
        pytest.skip("no loop device here")
    try:
        holders = refused(agent, f"mount:{over}")
        assert "loop" in {h["how"] for h in holders} and any("disk" in h["path"] for h in holders)
    finally:
        agent.world.sh(f"losetup -d {device.out}")
    agent.pact("rollback", "--all")


def test_a_loop_device_of_another_namespace_on_the_same_path_is_no_consumer(agent: Agent, over: str) -> None:
    other = World()
    try:
        device = other.sh(
            f"mkdir {over}; mount -t tmpfs m {over}; truncate -s 1M {over}/disk; losetup -f --show {over}/disk",
            check=False,
        )
        if device.code:
            pytest.skip("no loop device here")
        agent.pact("rollback", "--all")
        other.sh(f"losetup -d {device.out}")
    finally:
        other.close()


def test_a_bound_unix_socket_stops_its_unmounting(agent: Agent, over: str) -> None:
    holder = agent.world.python(
        f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({over + '/sock'!r}); s.listen()\nready()"
    )
    holders = refused(agent, f"mount:{over}")
    assert "socket" in {h["how"] for h in holders} and any("sock" in h["path"] for h in holders)
    agent.world.end(holder)
    agent.pact("rollback", "--all")


def test_a_mount_inside_that_nobody_declared_stops_its_unmounting(agent: Agent, over: str) -> None:
    agent.world.sh(f"mkdir {over}/in; mount -t tmpfs in {over}/in")
    holders = refused(agent, f"mount:{over}")
    assert [h["path"] for h in holders] == [f"{over}/in"] and holders[0]["how"] == "mount"
    agent.world.sh(f"umount {over}/in")
    agent.pact("rollback", "--all")


def test_one_consumer_blocks_the_whole_change(agent: Agent) -> None:
    one, two = agent.file("one.conf"), agent.file("two.conf")
    agent.drift(one)
    agent.drift(two)
    holder = agent.world.python(f"f = open({one!r})\nready()")
    agent.pact("rollback", "--all", check=10)
    assert agent.world.path(two).read_text() == "drifted\n"
    agent.world.end(holder)


def test_a_rule_names_a_program_that_uses_a_resource_without_opening_it(agent: Agent) -> None:
    path = f"{TOP}/ruled.conf"
    agent.world.sh(f"cp $(command -v sleep) {TOP}/pactd")
    agent.declare(f'[file."{path}"]\ncontent = "declared\\n"\nconsumers = ["exec:pactd"]\n')
    agent.drift(path)
    process = agent.world.popen([f"{TOP}/pactd", "1000"])
    wait_until(lambda: b"pactd" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), "it runs")
    (found,) = refused(agent, f"file:{path}")
    assert (found["pid"], found["how"]) == (process.pid, "exec")
    agent.world.end(process)
    agent.pact("rollback", "--all")


def test_consumers_none_looks_at_nobody(agent: Agent) -> None:
    path = f"{TOP}/none.conf"
    agent.declare(f'[file."{path}"]\ncontent = "declared\\n"\nconsumers = ["none"]\n')
    agent.drift(path)
    holder = agent.world.python(f"import os; fd = os.open({path!r}, os.O_PATH)\nready()")
    agent.pact("rollback", "--all")
    agent.world.end(holder)


def test_force_does_not_step_on_consumers(agent: Agent) -> None:
    path = agent.file("forced.conf")
    agent.drift(path)
    holder = agent.world.python(f"f = open({path!r})\nready()")
    agent.pact("rollback", "--all", "--force", check=10)
    agent.world.end(holder)


def test_declare_stopped_by_a_consumer_records_nothing(agent: Agent) -> None:
    path = agent.file("declared.conf")
    holder = agent.world.python(f"f = open({path!r})\nready()")
    seq = agent.status()["journal"]["seq"]
    done = agent.declare(f'[file."{path}"]\ncontent = "new\\n"\n', check=10)
    said = done.json()["message"]
    assert "nothing was declared" in said and "python" in said
    assert [(h["pid"], h["user"]) for h in done.json()["consumers"]] == [(holder.pid, "root")]
    assert agent.status()["journal"]["seq"] == seq and agent.world.path(path).read_text() == "declared\n"
    dry = agent.declare(f'[file."{path}"]\ncontent = "new\\n"\n', "--dry-run", check=10).json()
    assert [h["pid"] for h in dry["consumers"]] == [holder.pid]
    agent.world.end(holder)
    agent.declare(f'[file."{path}"]\ncontent = "new\\n"\n')
    assert agent.world.path(path).read_text() == "new\n"


# -- an expiry that meets a consumer --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(world: World, make_agent: Callable[..., Agent]) -> Agent:
    """Short windows; busy rollbacks are tried again."""
    agent = make_agent(window={"base": "0.6s", "floor": "0.2s"}, rollback={"on_busy": "retry", "retry": "0.3s"})
    agent.start()
    return agent


def test_expiry_with_on_busy_retry_waits_until_the_consumer_has_left(quick: Agent) -> None:
    path = quick.file("retry.conf")
    holder = quick.world.python(f"f = open({path!r})\nready()")
    quick.drift(path)
    (found,) = blocked(quick, f"file:{path}")["consumers"]
    assert found["pid"] == holder.pid
    quick.world.end(holder)
    quick.settled(f"file:{path}")
    assert quick.world.path(path).read_text() == "declared\n"
    assert len(quick.records("rollback_blocked")) == 1, "trying again says nothing new"


def test_expiry_with_on_busy_fail_stays_blocked_until_a_person_decides(agent: Agent, quick: Agent) -> None:
    quick.configure({"rollback": {"on_busy": "fail"}})
    quick.restart()
    path = quick.file("fail.conf")
    holder = quick.world.python(f"f = open({path!r})\nready()")
    quick.drift(path)
    change = blocked(quick, f"file:{path}")
    quick.world.end(holder)
    other = quick.file("clock.conf")
    quick.drift(other)
    quick.settled(f"file:{other}")
    assert quick.change_of(f"file:{path}")["state"] == "blocked", "time alone settles nothing"
    quick.pact("commit", change["id"], "-m", "we keep it")
    assert quick.world.path(path).read_text() == "drifted\n"
