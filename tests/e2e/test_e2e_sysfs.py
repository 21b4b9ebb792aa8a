"""Values below /sys on the real kernel: seen with their writer, rolled back, and brought back when a device comes back.

What is written here is the machine's own, so each value is put back as it was.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Agent, wait_until

HUGE = "kernel/mm/transparent_hugepage/khugepaged"
SLEEP = f"{HUGE}/alloc_sleep_millisecs"
SCAN = f"{HUGE}/scan_sleep_millisecs"
CHOICE = "kernel/mm/transparent_hugepage/shmem_enabled"
LOOP_CTL_ADD, LOOP_CTL_REMOVE = 0x4C80, 0x4C81
NUMBER = 157
DISK = f"block/loop{NUMBER}/queue"

pytestmark = pytest.mark.skipif(not os.path.exists(f"/sys/{SLEEP}"), reason="this kernel has no huge pages")


def get(name: str) -> str:
    return Path(f"/sys/{name}").read_text().strip()


def put(name: str, value: str) -> None:
    Path(f"/sys/{name}").write_text(value + "\n")


def chosen(name: str) -> str:
    return get(name).partition("[")[2].partition("]")[0]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = {name: get(name) for name in (SLEEP, SCAN)}
    choice = chosen(CHOICE)
    yield
    for name, value in before.items():
        put(name, value)
    put(CHOICE, choice)


def write(agent: Agent, name: str, value: str) -> None:
    """By another process, which stays until it is seen."""
    writer = agent.world.python("open(sys.argv[1], 'w').write(sys.argv[2] + '\\n')\nready()\n", f"/sys/{name}", value)
    try:
        agent.drifted(f"sysfs:{name}")
    finally:
        agent.world.end(writer)


def loop_control(request: int) -> None:
    fd = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, NUMBER)
    finally:
        os.close(fd)


@pytest.fixture
def disk() -> Iterator[None]:
    """A device that can be plugged and unplugged."""
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("no loop devices here")
    loop_control(LOOP_CTL_ADD)
    yield
    if os.path.exists(f"/sys/block/loop{NUMBER}"):
        loop_control(LOOP_CTL_REMOVE)


def test_a_write_is_seen_with_its_writer_and_rolled_back(agent: Agent) -> None:
    before = get(SLEEP)
    assert agent.adopt(f"sysfs:{HUGE}/*")["adopted"] >= 2
    write(agent, SLEEP, "54321")
    change = agent.change_of(f"sysfs:{SLEEP}")
    assert (change["owner"]["user"], change["resources"]) == ("root", [f"sysfs:{SLEEP}"])
    (shown,) = agent.json("diff")["resources"]
    assert (shown["declared"], shown["actual"]) == ({"value": before}, {"value": "54321"})
    agent.pact("rollback", "--all")
    assert get(SLEEP) == before
    assert agent.status()["state"] == "committed"


def test_it_is_declared_with_a_choice_refused_with_another_and_exported(agent: Agent) -> None:
    done = agent.pact("apply", "-", input=f'[sysfs]\n"{CHOICE}" = "sometimes"\n'.encode(), check=1)
    assert "is none of the kernel's choices here: always, within_size" in done.err + done.out
    agent.declare(f'[sysfs]\n"/sys/{CHOICE}" = "advise"\n"{SLEEP}" = 0x3039\n')
    assert (chosen(CHOICE), get(SLEEP)) == ("advise", "12345")
    out = agent.pact("export").out
    assert f'"{CHOICE}" = "advise"' in out and f'"{SLEEP}" = 12345' in out
    write(agent, CHOICE, "never")
    agent.pact("rollback", "--all")
    assert chosen(CHOICE) == "advise"
    refused = agent.declare('[sysfs]\n"fs/cgroup/x" = 1\n', check=2)
    assert "nothing below /sys/fs/cgroup is a setting of sysfs" in refused.err
    refused = agent.declare('[sysfs]\n"power/state" = "freeze"\n', check=2)
    assert "/sys/power/state is no setting: to write it is to act" in refused.err
    refused = agent.pact("adopt", "sysfs:power/state", check=2)
    assert "no setting" in refused.err
    assert agent.pact("adopt", "sysfs:power/stat?", check=None).code in (0, 1, 2)
    assert "power/state" not in agent.pact("export").out


def test_two_names_of_one_file_that_contradict_each_other_are_named(agent: Agent, disk: None) -> None:
    other = f"class/block/loop{NUMBER}/queue/read_ahead_kb"
    agent.declare(f'[sysfs]\n"{DISK}/read_ahead_kb" = 256\n')
    done = agent.declare(f'[sysfs]\n"{DISK}/read_ahead_kb" = 256\n"{other}" = 512\n', check=1)
    said = done.err + done.out
    assert "it contradicts" in said and other in said
    answer = agent.pact("adopt", f"sysfs:{other}")
    assert f"{DISK}/read_ahead_kb" in agent.pact("export").out, answer


def test_a_write_is_seen_under_every_declared_name_of_the_file_and_one_rollback_mends_them(
    agent: Agent, disk: None
) -> None:
    other = f"class/block/loop{NUMBER}/queue/read_ahead_kb"
    agent.declare(f'[sysfs]\n"{DISK}/read_ahead_kb" = 256\n"{other}" = 256\n')
    write(agent, other, "512")
    agent.drifted(f"sysfs:{DISK}/read_ahead_kb")
    (change,) = agent.status()["changes"]
    assert set(change["resources"]) == {f"sysfs:{other}", f"sysfs:{DISK}/read_ahead_kb"}
    agent.pact("rollback", "--all")
    assert get(other) == "256" and agent.status()["state"] == "committed"


@pytest.mark.invariant("C8")
def test_what_a_write_moves_elsewhere_joins_its_change(agent: Agent, disk: None) -> None:
    """Another scheduler brings another number of requests."""
    known = get(f"{DISK}/scheduler")
    if "mq-deadline" not in known:
        pytest.skip("this kernel has one scheduler")
    put(f"{DISK}/scheduler", "none")
    before = get(f"{DISK}/nr_requests")
    agent.declare(f'[sysfs]\n"{DISK}/scheduler" = "none"\n"{DISK}/nr_requests" = {before}\n')
    write(agent, f"{DISK}/scheduler", "mq-deadline")
    if get(f"{DISK}/nr_requests") != before:
        agent.drifted(f"sysfs:{DISK}/nr_requests")
    assert len(agent.status()["changes"]) == 1
    agent.pact("rollback", "--all")
    assert (chosen(f"{DISK}/scheduler"), get(f"{DISK}/nr_requests")) == ("none", before)
    assert agent.status()["state"] == "committed"


def test_what_the_kernel_made_of_a_value_counts_as_that_value(agent: Agent, disk: None) -> None:
    """It rounds to whole pages."""
    agent.declare(f'[sysfs]\n"{DISK}/read_ahead_kb" = 129\n')
    assert get(f"{DISK}/read_ahead_kb") == "128"
    time.sleep(2.2)
    assert agent.status()["changes"] == []
    write(agent, f"{DISK}/read_ahead_kb", "64")
    agent.pact("rollback", "--all")
    assert get(f"{DISK}/read_ahead_kb") == "128"


@pytest.mark.invariant("F71")
def test_a_device_that_is_not_there_is_told_and_not_tried(agent: Agent, disk: None) -> None:
    name = f"{DISK}/read_ahead_kb"
    agent.declare(f'[sysfs]\n"{name}" = 256\n')
    loop_control(LOOP_CTL_REMOVE)
    agent.drifted(f"sysfs:{name}")
    done = agent.pact("rollback", "--all", check=1)
    assert "the device is not there" in done.err + done.out
    change = agent.change_of(f"sysfs:{name}")
    assert change["state"] == "blocked" and "the device is not there" in change["reason"]


@pytest.mark.invariant("B4")
@pytest.mark.parametrize("tried", [False, True])
def test_a_device_that_comes_back_gets_its_values_back_and_nobody_owns_that(
    agent: Agent, disk: None, tried: bool
) -> None:
    name = f"{DISK}/read_ahead_kb"
    agent.declare(f'[sysfs]\n"{name}" = 256\n')
    loop_control(LOOP_CTL_REMOVE)
    agent.drifted(f"sysfs:{name}")
    if tried:
        agent.pact("rollback", "--all", check=1)
    loop_control(LOOP_CTL_ADD)
    agent.settled(f"sysfs:{name}")
    assert get(name) == "256"
    started, done = agent.newest("converge_started"), agent.newest("converged")
    assert (started["data"]["cause"], done["data"]["cause"]) == ("returned", "returned")
    assert done["data"]["results"] == {f"sysfs:{name}": "restored"}
    assert agent.status()["state"] == "committed"


@pytest.mark.invariant("B4")
def test_under_a_hold_a_device_that_came_back_stays_as_it_is(agent: Agent, disk: None) -> None:
    name = f"{DISK}/read_ahead_kb"
    agent.declare(f'[sysfs]\n"{name}" = 256\n')
    loop_control(LOOP_CTL_REMOVE)
    agent.drifted(f"sysfs:{name}")
    agent.pact("hold", "place", "--reason", "disks are being changed", "--for", "10m")
    loop_control(LOOP_CTL_ADD)
    wait_until(lambda: agent.json("diff")["resources"][0]["actual"], "it is seen")
    assert get(name) != "256" and agent.change_of(f"sysfs:{name}")


def test_after_a_restart_of_the_agent_what_was_written_meanwhile_is_found(agent: Agent) -> None:
    agent.adopt(f"sysfs:{SLEEP}")
    agent.stop()
    put(SLEEP, "45678")
    agent.start()
    assert agent.drifted(f"sysfs:{SLEEP}")["owner"]["user"] == "unattributed"


def test_a_value_that_only_root_may_read_is_shown_to_admins_only(agent: Agent) -> None:
    secret = next((p for p in Path("/sys/module").glob("*/parameters/*") if p.stat().st_mode & 0o777 == 0o600), None)
    if secret is None:
        pytest.skip("no such value here")
    name = str(secret.relative_to("/sys"))
    agent.adopt(f"sysfs:{name}")
    assert name not in agent.pact("export", uid=1234, check=None).out


@pytest.mark.invariant("B1")
def test_what_a_reboot_resets_is_brought_back_before_the_agent_is_ready(agent: Agent, disk: None) -> None:
    """Also what is read off the loop."""
    slow = f"class/block/loop{NUMBER}/bdi/min_ratio"
    assert os.path.exists(f"/sys/{slow}")
    was = get(slow)
    put(slow, "1")
    agent.declare(f'[sysfs]\n"{SLEEP}" = 23456\n"{slow}" = 1\n')
    agent.stop(signal.SIGKILL)
    put(SLEEP, "60000")
    put(slow, was)
    boot = agent.base / f"boot-{uuid.uuid4()}"
    boot.write_text(f"{uuid.uuid4()}\n")
    agent.world.sh(f"mount --bind {boot} /proc/sys/kernel/random/boot_id")
    agent.start()
    assert (get(SLEEP), get(slow)) == ("23456", "1"), "before its first answer"
    assert agent.status()["state"] == "committed"
    put(slow, was)


def test_without_fanotify_a_write_is_seen_too_and_its_writer_is_not_known(another: Callable[..., Agent]) -> None:
    agent = another(observe={"fanotify": False, "rescan": "1h"})
    before = get(SLEEP)
    agent.adopt(f"sysfs:{SLEEP}")
    put(SLEEP, "34567")
    assert agent.drifted(f"sysfs:{SLEEP}")["owner"]["user"] == "unattributed"
    agent.pact("rollback", "--all")
    assert get(SLEEP) == before
