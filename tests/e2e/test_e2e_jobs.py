"""Consumers that a rule names: members of a cgroup, programs; jobs named from real cgroups; a package manager at work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import TOP, Agent, wait_until

pytestmark = pytest.mark.invariant("F5")

JOB = "slurm/uid_0/job_42/step_0"


def hierarchies() -> list[Path]:
    """Where cgroups can be made: the unified hierarchy, else any of version 1."""
    rows = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(r[1]) for kind in ("cgroup2", "cgroup") for r in rows if r[2] == kind]


@pytest.fixture(scope="module")
def step() -> Iterator[Path]:
    """A job's cgroup as Slurm makes it."""
    top, path = made()
    yield path
    wait_until(lambda: not (path / "cgroup.procs").read_text(), "the job has ended")
    remove(top, path)


def made() -> tuple[Path, Path]:
    """In the first hierarchy that lets us: its top, and the cgroup."""
    for top in hierarchies():
        path = top / JOB
        try:
            path.mkdir(parents=True)
            probe = os.fork()
            if probe == 0:
                time.sleep(30)
                os._exit(0)
            try:
                (path / "cgroup.procs").write_text(str(probe))
            finally:
                os.kill(probe, 9)
                os.waitpid(probe, 0)
        except OSError:
            remove(top, path)
            continue
        return top, path
    pytest.fail("no cgroup hierarchy can be written")


def remove(top: Path, path: Path) -> None:
    while path != top:
        try:
            path.rmdir()
        except OSError:
            return
        path = path.parent


def job_process(agent: Agent, step: Path, script: str, *args: str) -> Any:
    process = agent.world.python(script + "\nready()", *args)
    (step / "cgroup.procs").write_text(str(process.pid))
    return process


def refused(agent: Agent) -> list[Any]:
    agent.pact("rollback", "--all", check=10)
    (change,) = agent.status()["changes"]
    assert (change["state"], change["reason"]) == ("blocked", "consumers")
    return list(change["consumers"])


def test_the_holder_s_job_is_named_from_its_cgroup(agent: Agent, step: Path) -> None:
    path = agent.file("scratch.conf")
    agent.drift(path)
    process = job_process(agent, step, f"f = open({path!r})")
    (found,) = refused(agent)
    assert (found["pid"], found["job"]) == (process.pid, "42") and found["cgroup"].endswith(f"/{JOB}")
    done = agent.pact("rollback", "--all", check=10)
    assert "42" in done.out + done.err, "the person is told whose job it is"
    assert " job 42 " in agent.pact("consumers", f"file:{path}").out
    agent.world.end(process)
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"


@pytest.mark.parametrize("glob", ["/slurm/*", "*/job_42/*", f"/{JOB}"])
def test_every_process_of_a_cgroup_uses_what_a_rule_gives_it(agent: Agent, step: Path, glob: str) -> None:
    path = f"{TOP}/ruled.conf"
    agent.declare(f'[file."{path}"]\ncontent = "declared\\n"\nconsumers = ["cgroup:{glob}"]\n')
    agent.drift(path)
    bystander = agent.world.python(f"f = open({path!r})\nready()")
    process = job_process(agent, step, "pass")
    (found,) = refused(agent)
    assert (found["pid"], found["how"], found["job"]) == (process.pid, "cgroup", "42")
    agent.world.end(process)
    wait_until(lambda: not (step / "cgroup.procs").read_text(), "the job has ended")
    agent.world.end(bystander)
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"


def test_a_rule_makes_a_sysctl_have_consumers(agent: Agent, step: Path) -> None:
    agent.world.sh(f"cp $(command -v sleep) {TOP}/slurmstepx; echo 4096 > /proc/sys/net/core/somaxconn")
    agent.declare(
        '[sysctl]\n"net.core.somaxconn" = {value = 4096, consumers = ["exec:slurmstepx", "cgroup:/slurm/*"]}\n'
    )
    agent.world.sh("echo 100 > /proc/sys/net/core/somaxconn")
    agent.drifted("sysctl:net.core.somaxconn")
    daemon = agent.world.popen([f"{TOP}/slurmstepx", "1000"])
    wait_until(lambda: b"slurmstepx" in Path(f"/proc/{daemon.pid}/cmdline").read_bytes(), "it runs")
    process = job_process(agent, step, "pass")
    assert {(h["pid"], h["how"]) for h in refused(agent)} == {(daemon.pid, "exec"), (process.pid, "cgroup")}
    agent.world.end(process)
    assert {h["pid"] for h in refused(agent)} == {daemon.pid}
    assert agent.world.sh("cat /proc/sys/net/core/somaxconn").out == "100\n", "nothing was touched"
    agent.world.end(daemon)
    agent.pact("rollback", "--all")
    assert agent.world.sh("cat /proc/sys/net/core/somaxconn").out == "4096\n"


MOUNTER = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for point in sys.argv[1:]:
    os.makedirs(point, exist_ok=True)
    assert libc.mount(b"tmpfs", point.encode(), b"tmpfs", 0, None) == 0, os.strerror(ctypes.get_errno())
ready()
"""


def test_mounts_inside_mounts_that_nobody_declared_leave_together(agent: Agent) -> None:
    """They are one change: whoever mounts stays until he is seen, as mount(8) would not."""
    outer, inner = f"{TOP}/outer", f"{TOP}/outer/inner"
    agent.declare("".join(f'[mount."{p}"]\ntype = "absent"\n' for p in (outer, inner)))
    mounter = agent.world.python(MOUNTER, outer, inner)
    assert agent.drifted(f"mount:{outer}")["id"] == agent.drifted(f"mount:{inner}")["id"], agent.status()
    agent.world.end(mounter)
    holder = agent.world.python(f"os.chdir({outer!r})\nready()")
    assert {(h["resource"], h["pid"]) for h in refused(agent)} == {(f"mount:{outer}", holder.pid)}
    assert agent.world.sh(f"mountpoint -q {inner} && mountpoint -q {outer}", check=False).code == 0
    agent.world.end(holder)
    agent.pact("rollback", "--all")
    assert agent.world.sh(f"mountpoint -q {outer}", check=False).code != 0


LOCKER = """
import fcntl
f = open(sys.argv[1], "w")
fcntl.lockf(f, fcntl.LOCK_EX)
ready()
"""


@pytest.mark.invariant("R3", "F15")
def test_a_rollback_waits_for_the_package_manager_unless_forced(agent: Agent) -> None:
    """The lock lies on a tmpfs over the directory in this world only; the host's package manager is not touched."""
    lock = "/var/lib/dpkg/lock-frontend"
    agent.world.sh("mkdir -p /var/lib/dpkg; mount -t tmpfs tmpfs /var/lib/dpkg; touch " + lock)
    agent.world.sh("mount -t tmpfs -o mode=755 tmpfs /opt && echo declared > /opt/packaged.conf")
    path, own = "/opt/packaged.conf", agent.file("own.conf")
    agent.adopt(f"file:{path}")
    agent.drift(own)
    holder = agent.world.python(LOCKER, lock)
    agent.pact("rollback")
    assert agent.world.path(own).read_text() == "declared\n", "no package touches it"
    agent.drift(path)
    agent.pact("rollback", check=1)
    (change,) = agent.status()["changes"]
    assert change["state"] == "blocked"
    assert change["reason"].startswith(f"a package manager holds {lock} (pid {holder.pid}): python")
    assert agent.world.path(path).read_text() == "drifted\n"
    assert "a package manager holds" in agent.pact("--json", "rollback", "--dry-run", check=None).out
    agent.pact("rollback", "--force")
    assert agent.world.path(path).read_text() == "declared\n"
    agent.drift(path)
    agent.world.end(holder)
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"
    agent.clear()
    agent.world.sh("umount /var/lib/dpkg /opt")
