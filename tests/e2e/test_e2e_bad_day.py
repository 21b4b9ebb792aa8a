"""What a bad day does to an agent: memory that runs out, deaths in the middle, disks that fail, boots that take long."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import TOP, Agent, World, wait_until

LARGE, COUNT = 3 << 20, 60
#: What a plan may have in memory at once, whatever its size: less than 16 MiB on top.
ON_TOP_KIB = 16 << 10


@pytest.fixture
def small(on_small_disk: Callable[..., Agent]) -> Agent:
    return on_small_disk("1h")


@contextmanager
def full(agent: Agent) -> Iterator[None]:
    """Its disk takes nothing more as long as this lasts."""
    filler = f"{agent.config['state']['dir']}/filler"
    agent.world.sh(f"cat /dev/zero > {filler}", check=False)
    try:
        yield
    finally:
        agent.world.sh(f"rm -f {filler}")


def lost(agent: Agent) -> bool:
    return "error" in agent.status()["journal"]


def peak_kib(agent: Agent, *, reset: bool = False) -> int:
    """The most memory that it had, since the last reset."""
    assert agent.process is not None
    if reset:
        Path(f"/proc/{agent.process.pid}/clear_refs").write_text("5")
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


# -- memory ---------------------------------------------------------------------------------------------------------


def fill(agent: Agent, letter: str) -> dict[str, str]:
    """Large files, each with a content of its own; their digests."""
    out = {}
    for n in range(COUNT):
        path, body = f"{TOP}/large/{n}", f"{letter}{n}".encode() * (LARGE // 8)
        agent.world.path(path).write_bytes(body)
        out[f"file:{path}"] = hashlib.sha256(body).hexdigest()
    return out


@pytest.mark.invariant("R4")
def test_what_a_plan_overwrites_is_kept_piece_by_piece_and_not_in_memory(another: Callable[..., Agent]) -> None:
    """A rollback, a commit, an application and an adoption: none has more than a few contents in memory at once."""
    agent = another()
    agent.world.sh(f"mkdir -p {TOP}/large; for n in $(seq 0 {COUNT - 1}); do echo declared > {TOP}/large/$n; done")
    agent.adopt(f"file:{TOP}/large/*")
    mine = fill(agent, "a")
    wait_until(lambda: agent.status()["drifted"] == COUNT, "all have drifted", 60)
    before = peak_kib(agent, reset=True)
    agent.pact("rollback", "--all")
    assert peak_kib(agent) - before < ON_TOP_KIB, "a rollback"
    started = agent.newest("rollback_started")
    assert {r: s["sha256"] for r, s in started["data"]["saves"].items()} == mine
    for resource in (min(mine), max(mine)):
        agent.pact("show", str(started["seq"]), "--resource", resource, "--restore", f"{TOP}/back")
        assert hashlib.sha256(agent.world.path(f"{TOP}/back").read_bytes()).hexdigest() == mine[resource]
        agent.world.sh(f"rm {TOP}/back")

    theirs = fill(agent, "b")
    wait_until(lambda: agent.status()["drifted"] == COUNT, "all have drifted", 60)
    peak_kib(agent, reset=True)
    agent.pact("commit", "--all", "-m", "large")
    assert peak_kib(agent) - before < ON_TOP_KIB, "a commit"
    agent.world.sh(f"rm {TOP}/large/0; echo x > {TOP}/large/1")
    wait_until(lambda: agent.status()["drifted"] == 2, "two have drifted")
    agent.pact("rollback", "--all")
    again = hashlib.sha256(agent.world.path(f"{TOP}/large/0").read_bytes()).hexdigest()
    assert again == theirs[f"file:{TOP}/large/0"], "what was committed can be restored"

    plan = "".join(f'[file."{r.partition(":")[2]}"]\ncontent = "applied"\n' for r in theirs)
    peak_kib(agent, reset=True)
    agent.pact("apply", "-", input=plan.encode())
    assert peak_kib(agent) - before < ON_TOP_KIB, "an application"
    fill(agent, "c")
    agent.world.sh(f"echo new > {TOP}/large/new")
    peak_kib(agent, reset=True)
    agent.pact("adopt", *(f"file:{TOP}/large/{n}" for n in range(COUNT)))
    assert peak_kib(agent) - before < ON_TOP_KIB, "an adoption"


def test_a_dry_run_and_a_rollback_that_is_blocked_store_nothing(another: Callable[..., Agent]) -> None:
    import sqlite3

    def stored() -> int:
        db = sqlite3.connect(agent.journal)
        try:
            return int(db.execute("SELECT count(*) FROM blob").fetchone()[0])
        finally:
            db.close()

    agent = another()
    path = agent.file("only/here.conf")
    agent.drift(path, "work\n")
    before = stored()
    agent.pact("rollback", "--all", "--dry-run")
    holder = agent.world.python(f"f = open({path!r})\nready()")
    agent.pact("rollback", "--all", check=10)
    assert stored() == before, "nothing was overwritten"
    agent.world.end(holder)
    agent.pact("rollback", "--all")
    assert stored() == before + 1


# -- deaths in the middle -------------------------------------------------------------------------------------------


@contextmanager
def slow_mount(agent: Agent, point: str, seconds: int = 60) -> Iterator[str]:
    """mount(8) of a tmpfs takes so long, unless the file that this yields exists."""
    name = uuid.uuid4().hex
    go, up = f"{TOP}/{name}.go", f"{TOP}/{name}.up"
    agent.world.sh(f"mkdir -p {up} {up}.work")
    agent.world.path(f"{up}/mount.tmpfs").write_text(
        f'#!/bin/sh\nfor i in $(seq {seconds}0); do [ -e {go} ] || sleep 0.1; done\nexec mount -i -t tmpfs -o size=1m tmpfs "$2"\n'
    )
    agent.world.sh(
        f"chmod 755 {up}/mount.tmpfs; d=$(readlink -f /sbin);"
        f"mount -t overlay -o lowerdir=$d,upperdir={up},workdir={up}.work overlay $d"
    )
    try:
        yield go
    finally:
        end_helpers(point)
        agent.world.sh(f"touch {go}; umount -l $(readlink -f /sbin)", check=False)


def helpers(point: str) -> list[int]:
    """The mount helpers that stand still for this mount point."""
    out = []
    for pid in (int(p) for p in os.listdir("/proc") if p.isdigit()):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(w.endswith(b"/mount.tmpfs") for w in words) and point.encode() in words:
                out.append(pid)
    return out


def end_helpers(point: str) -> None:
    """One outlives its agent: it must not mount later."""
    for pid in helpers(point):
        os.kill(pid, signal.SIGKILL)


def killed_in_the_middle(agent: Agent, point: str) -> None:
    """The agent dies while it mounts."""
    wait_until(lambda: helpers(point), "it mounts")
    agent.stop(signal.SIGKILL)
    end_helpers(point)


@pytest.mark.invariant("F65")
def test_what_kills_the_agent_three_times_is_left_to_a_person(another: Callable[..., Agent]) -> None:
    agent = another(window={"base": "1s", "floor": "0.2s"})
    point = f"{TOP}/fatal"
    path = agent.file("beside.conf")
    agent.world.sh(f"mkdir -p {point}; mount -t tmpfs -o size=1m tmpfs {point}")
    agent.adopt(f"mount:{point}")
    with slow_mount(agent, point) as go:
        agent.drift(path)
        agent.world.sh(f"umount {point}")
        agent.drifted(f"mount:{point}")
        for _ in range(3):
            killed_in_the_middle(agent, point)
            agent.start()
        change = agent.change_of(f"mount:{point}")
        assert (change["state"], "killed 3 times" in change["reason"]) == ("blocked", True), change
        assert (
            agent.status()["state"] == "blocked"
            and "killed 3 times" in agent.newest("rollback_blocked")["data"]["reason"]
        )
        seq = agent.status()["journal"]["seq"]
        agent.restart(signal.SIGKILL)
        time.sleep(1.5)
        assert not [r for r in agent.records("rollback_started") if r["seq"] > seq], "it is not tried again by itself"
        agent.world.sh(f"touch {go}")
        agent.pact("rollback", change["id"])
        assert agent.world.path(path).read_text() == "declared\n" and agent.world.sh(f"mountpoint {point}").code == 0
    agent.world.sh(f"umount {point}")


@pytest.mark.invariant("F65")
def test_two_deaths_are_bad_luck_and_the_third_run_does_it(another: Callable[..., Agent]) -> None:
    agent = another()
    point = f"{TOP}/unlucky"
    agent.world.sh(f"mkdir -p {point}; mount -t tmpfs -o size=1m tmpfs {point}")
    agent.adopt(f"mount:{point}")
    with slow_mount(agent, point) as go:
        agent.world.sh(f"umount {point}")
        agent.drifted(f"mount:{point}")
        roll = agent.world.popen(
            [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "rollback"], stderr=subprocess.DEVNULL
        )
        for at in range(2):
            killed_in_the_middle(agent, point)
            if at == 1:
                agent.world.sh(f"touch {go}")
            agent.start()
        agent.world.end(roll)
        agent.settled(f"mount:{point}")
        assert agent.world.sh(f"mountpoint {point}").code == 0
    agent.world.sh(f"umount {point}")


# -- what came while nothing could be recorded ----------------------------------------------------------------------


@pytest.mark.invariant("J9")
def test_a_mount_over_declared_paths_is_recorded_when_the_disk_is_back(small: Agent) -> None:
    """It is the first that the full disk refuses, and no event says it again."""
    path = small.file("hidden/a.conf")
    with full(small):
        small.world.sh(f"mount -t tmpfs -o size=1m tmpfs {TOP}/hidden")
        wait_until(lambda: lost(small), "its record is refused")
    wait_until(lambda: not lost(small), "it records again")
    change = small.drifted(f"mount:{TOP}/hidden")
    small.pact("rollback", change["id"])
    assert small.world.path(path).read_text() == "declared\n"


@pytest.mark.invariant("J9")
def test_a_mount_that_a_full_disk_refused_is_recorded_by_the_next_run_too(small: Agent) -> None:
    path = small.file("hidden2/a.conf")
    with full(small):
        small.world.sh(f"mount -t tmpfs -o size=1m tmpfs {TOP}/hidden2")
        wait_until(lambda: lost(small), "its record is refused")
        small.stop(signal.SIGKILL)
    small.start()
    change = small.drifted(f"mount:{TOP}/hidden2")
    small.pact("rollback", change["id"])
    assert small.world.path(path).read_text() == "declared\n"


@pytest.mark.invariant("J9")
def test_what_was_answered_with_no_is_not_done_later(small: Agent) -> None:
    """``rollback --to`` is worked out off the loop while the disk fills and is freed again."""
    path = small.file("to.conf", "one\n")
    to_seq = small.status()["journal"]["seq"]
    small.drift(path, "two\n")
    small.pact("commit", "--all", "-m", "two")
    seq = small.status()["journal"]["seq"]
    python = [sys.executable, "-m", "pact.cli.main", "--socket", small.socket]
    stopped = freeze_worker(small)
    asking = small.world.popen([*python, "rollback", "--to", str(to_seq)], stderr=subprocess.PIPE)
    try:
        time.sleep(0.5)  # it waits in the worker's queue
        with full(small):
            small.world.path(path).write_text("three\n")
            wait_until(lambda: lost(small), "the disk is full")
            err = asking.communicate(timeout=30)[1].decode()
        assert asking.returncode == 5 and "nothing was changed" in err, err
        wait_until(lambda: not lost(small), "it records again")
    finally:
        small.world.end(stopped)
    small.drifted(f"file:{path}")
    time.sleep(1)
    assert not [r for r in small.records("declared") if r["seq"] > seq], "the answer was final"
    assert small.world.path(path).read_text() == "three\n"


@pytest.mark.invariant("J9")
def test_who_asks_at_the_moment_the_disk_is_full_is_answered(small: Agent) -> None:
    """What is seen for the sake of the request is the first that cannot be recorded."""
    path = small.file("asked/a.conf")
    small.adopt(f"file:{TOP}/asked/**")
    for n in range(4):
        with full(small):
            small.world.path(f"{TOP}/asked/new{n}").write_text("x\n" * 2000)
            with small.connect() as sock, sock.makefile("rwb") as f:
                sock.settimeout(10)
                f.write(
                    json.dumps(
                        {
                            "v": 1,
                            "op": "apply",
                            "args": {
                                "message": "m",
                                "resources": {f"file:{path}": {"attrs": {"type": "file", "mode": f"060{n}"}}},
                            },
                        }
                    ).encode()
                    + b"\n"
                )
                f.flush()
                assert json.loads(f.readline())["exit"] == 5
        wait_until(lambda: not lost(small), "it records again")


def freeze_worker(agent: Agent) -> Any:
    """The worker hangs at a file system that does not answer, until this ends: what is asked waits behind it."""
    from harness import HUNG_FUSE

    if not os.path.exists("/dev/fuse"):
        pytest.skip("this kernel has no FUSE")
    point = f"{TOP}/hangs"
    agent.world.sh(f"mkdir -p {point}")
    server = agent.world.python(HUNG_FUSE, point)
    agent.world.popen(
        [sys.executable, "-m", "pact.cli.main", "--socket", agent.socket, "adopt", f"file:{point}/x"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert agent.process is not None
    task = f"/proc/{agent.process.pid}/task"

    def hangs() -> bool:
        return any(b"request_wait_answer" in Path(task, t, "wchan").read_bytes() for t in os.listdir(task))

    wait_until(hangs, "a worker hangs")
    return server


# -- a boot that takes long -----------------------------------------------------------------------------------------


def reboot(agent: Agent) -> None:
    boot = agent.base / f"boot-{uuid.uuid4()}"
    boot.write_text(f"{uuid.uuid4()}\n")
    agent.world.sh(f"mount --bind {boot} /proc/sys/kernel/random/boot_id")


@pytest.mark.invariant("B3")
def test_a_boot_that_is_cut_off_is_brought_back_by_the_next_run(another: Callable[..., Agent]) -> None:
    ttl = "/proc/sys/net/ipv4/ip_default_ttl"
    agent = another()
    point = f"{TOP}/boot"
    agent.world.sh(f"mkdir -p {point}; mount -t tmpfs -o size=1m tmpfs {point}; echo 77 > {ttl}")
    agent.adopt(f"mount:{point}", "sysctl:net.ipv4.ip_default_ttl")
    agent.stop(signal.SIGKILL)
    agent.world.sh(f"umount {point}; echo 64 > {ttl}")
    reboot(agent)
    with slow_mount(agent, point) as go:
        agent.start(wait=False)
        killed_in_the_middle(agent, point)
        agent.world.sh(f"touch {go}; echo 64 > {ttl}")
        agent.start()
        assert agent.newest("agent_started")["data"]["reboot"] is False
        assert agent.status()["drifted"] == 0, "what a boot reset is nobody's drift"
        assert agent.world.sh(f"cat {ttl}; mountpoint -q {point}").out == "77\n"
    agent.restart()
    agent.world.sh(f"echo 64 > {ttl}")
    agent.drifted("sysctl:net.ipv4.ip_default_ttl")
    agent.restart(signal.SIGKILL)
    assert agent.change_of("sysctl:net.ipv4.ip_default_ttl"), "once it is brought back, drift is drift again"
    agent.pact("rollback", "--all")
    agent.world.sh(f"umount {point}; echo 64 > {ttl}")


@pytest.mark.invariant("B3")
def test_the_service_manager_is_told_that_the_boot_takes_longer(another: Callable[..., Agent]) -> None:
    import socket

    agent = another()
    agent.cold = True  # the wrapper below starts it
    point = f"{TOP}/long"
    agent.world.sh(f"mkdir -p {point}; mount -t tmpfs -o size=1m tmpfs {point}")
    agent.adopt(f"mount:{point}")
    agent.stop(signal.SIGKILL)
    agent.world.sh(f"umount {point}")
    reboot(agent)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, slow_mount(agent, point) as go:
        manager.bind(f"\0{agent.base}/notify")
        manager.settimeout(20)
        os.environ["NOTIFY_SOCKET"] = f"@{agent.base}/notify"
        try:
            # an abstract socket is found in its network namespace only
            agent.world, whole = SameNet(agent.world), agent.world
            agent.start(wait=False)
        finally:
            del os.environ["NOTIFY_SOCKET"]
        said = [manager.recv(4096).decode() for _ in range(3)]
        assert all("EXTEND_TIMEOUT_USEC=" in s for s in said), said
        whole.sh(f"touch {go}")
        while "READY=1" not in said[-1]:
            said.append(manager.recv(4096).decode())
        agent.close()
        agent.world = whole
    agent.start()
    agent.world.sh(f"umount {point}")


class SameNet:
    """A world's mount namespace with the test's own network: an abstract socket is found there."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def popen(self, command: Any, **kwargs: Any) -> Any:
        from harness import environment

        argv = ["nsenter", f"--mount=/proc/{self._world.holder.pid}/ns/mnt", "--", *command]
        env = {**environment(), "NOTIFY_SOCKET": os.environ["NOTIFY_SOCKET"]}
        process = subprocess.Popen(argv, env=env, cwd="/", stdin=subprocess.DEVNULL, **kwargs)
        self._world.started.append(process)
        return process
