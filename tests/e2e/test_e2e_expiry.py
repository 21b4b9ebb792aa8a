"""A window that ends without a commit rolls its change back: every kind, every attribute, on the real kernel."""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest
from harness import TOP, Agent, wait_until

TTL = "net.ipv4.ip_default_ttl"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {"window": {"base": "0.8s", "floor": "0.2s"}, "observe": {"rescan": "1s"}}


def acl(agent: Agent, path: str) -> str:
    return agent.world.sh(f"getfacl -cp {path}").out


def mounted(agent: Agent, point: str) -> list[str]:
    """The lines of mountinfo for a mount point, the visible one last."""
    table = agent.world.sh("cat /proc/self/mountinfo").out.splitlines()
    return [line for line in table if line.split()[4] == point]


@pytest.mark.invariant("A4")
def test_expiry_restores_content_and_says_so_in_the_journal(agent: Agent) -> None:
    path = agent.file("content.conf")
    change = agent.drift(path)
    agent.settled(f"file:{path}")  # who looks into it meanwhile has it open
    assert agent.world.path(path).read_text() == "declared\n"
    record = agent.newest("rolled_back")
    assert record["data"]["change"] == change["id"] and record["data"]["cause"] == "expired"
    assert record["time"] >= change["deadline"], "not a moment before its deadline"
    started = agent.newest("rollback_started")
    assert started["seq"] < record["seq"] and started["data"]["saves"][f"file:{path}"]["sha256"]


def test_expiry_restores_mode_owner_and_group(agent: Agent) -> None:
    path = agent.file("meta.conf", mode=0o640)
    agent.world.sh(f"chmod 4777 {path}; chown 1234:4321 {path}")
    agent.drifted(f"file:{path}")
    agent.settled(f"file:{path}")
    st = agent.world.path(path).stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o640, 0, 0)


@pytest.mark.needs("setfacl", "setfattr")
def test_expiry_keeps_owner_mode_xattrs_and_acl_when_content_is_replaced(agent: Agent) -> None:
    path = agent.file("dressed.conf")
    agent.world.sh(
        f"chown 1234:4321 {path}; chmod 2755 {path}; setfacl -m u:2345:rw,g:3456:r {path};"
        f"setfattr -n user.note -v kept {path}"
    )
    agent.adopt(f"file:{path}")
    before, st = acl(agent, path), agent.world.path(path).stat()
    agent.world.sh(f"rm {path}; echo new > {path}; chmod 600 {path}")
    agent.drifted(f"file:{path}")
    agent.settled(f"file:{path}")
    after = agent.world.path(path).stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (st.st_mode, 1234, 4321)
    assert acl(agent, path) == before and "user:2345:rw-" in before
    assert os.getxattr(agent.world.path(path), "user.note") == b"kept"
    assert agent.world.path(path).read_text() == "declared\n"


@pytest.mark.needs("setfacl", "setfattr")
def test_expiry_restores_an_acl_and_an_attribute_alone(agent: Agent) -> None:
    path = agent.file("acl.conf")
    before = acl(agent, path)
    agent.world.sh(f"setfacl -m u:2345:rwx {path}; setfattr -n user.note -v x {path}")
    agent.drifted(f"file:{path}")
    agent.settled(f"file:{path}")
    assert acl(agent, path) == before and os.listxattr(agent.world.path(path)) == []


def test_expiry_restores_a_deleted_file(agent: Agent) -> None:
    path = agent.file("deleted.conf", mode=0o604)
    agent.world.path(path).unlink()
    agent.drifted(f"file:{path}")
    agent.settled(f"file:{path}")
    assert agent.world.path(path).read_text() == "declared\n"
    assert stat.S_IMODE(agent.world.path(path).stat().st_mode) == 0o604


def test_expiry_restores_what_was_replaced_by_rename(agent: Agent) -> None:
    path = agent.file("renamed.conf")
    agent.world.sh(f"echo new > {path}.new; mv {path}.new {path}")
    agent.drifted(f"file:{path}")
    agent.settled(f"file:{path}")
    assert agent.world.path(path).read_text() == "declared\n"


def test_expiry_removes_what_is_declared_absent(agent: Agent) -> None:
    path = f"{TOP}/absent.conf"
    agent.declare(f'[file."{path}"]\ntype = "absent"\n')
    agent.world.path(path).write_text("somebody's\n")
    agent.drifted(f"file:{path}")
    agent.settled(f"file:{path}")
    assert not agent.world.path(path).exists()
    seq = agent.newest("rollback_started")["seq"]
    assert agent.json("show", str(seq))["contents"][f"file:{path}"]["content"] == "somebody's\n"


def test_expiry_restores_a_symbolic_link(agent: Agent) -> None:
    path = f"{TOP}/link"
    agent.world.sh(f"ln -s /srv/a {path}")
    agent.adopt(f"file:{path}")
    for drift in (f"ln -sfn /srv/b {path}", f"rm {path}; echo file > {path}"):
        agent.world.sh(drift)
        agent.drifted(f"file:{path}")
        agent.settled(f"file:{path}")
        assert os.readlink(agent.world.path(path)) == "/srv/a"


def test_expiry_restores_a_directory_and_what_was_in_it(agent: Agent) -> None:
    agent.world.sh(f"mkdir -m 750 {TOP}/d; echo in > {TOP}/d/inner.conf")
    agent.adopt(f"file:{TOP}/d", f"file:{TOP}/d/**")
    agent.world.sh(f"rm -r {TOP}/d")
    agent.drifted(f"file:{TOP}/d")
    agent.drifted(f"file:{TOP}/d/inner.conf")
    agent.settled(f"file:{TOP}/d")
    agent.settled(f"file:{TOP}/d/inner.conf")
    assert stat.S_IMODE(agent.world.path(f"{TOP}/d").stat().st_mode) == 0o750
    assert agent.world.path(f"{TOP}/d/inner.conf").read_text() == "in\n"


def test_a_directory_that_is_not_empty_is_for_a_person_to_remove(agent: Agent) -> None:
    path = f"{TOP}/nodir"
    agent.declare(f'[file."{path}"]\ntype = "absent"\n')
    agent.world.sh(f"mkdir {path}; echo x > {path}/x")
    agent.drifted(f"file:{path}")
    wait_until(lambda: agent.status()["state"] == "blocked", "it is blocked")
    assert "not empty" in agent.status()["changes"][0]["reason"]
    agent.world.sh(f"rm -r {path}")
    agent.settled(f"file:{path}")


@pytest.mark.parametrize(
    ("name", "value"),
    [(TTL, "65"), ("net.ipv4.ip_local_port_range", "20000 30000"), ("net.ipv4.conf.all.rp_filter", "2")],
)
def test_expiry_restores_a_sysctl(agent: Agent, name: str, value: str) -> None:
    path = "/proc/sys/" + name.replace(".", "/")
    before = agent.world.sh(f"cat {path}").out
    agent.adopt(f"sysctl:{name}")
    agent.world.sh(f"echo {value} > {path}")
    agent.drifted(f"sysctl:{name}")
    agent.settled(f"sysctl:{name}")
    assert agent.world.sh(f"cat {path}").out == before


def test_sysctls_that_influence_each_other_are_restored_together(agent: Agent) -> None:
    agent.adopt("sysctl:net.ipv4.ip_forward", "sysctl:net.ipv4.conf.all.*", "sysctl:net.ipv4.conf.default.*")
    before = agent.world.sh("cd /proc/sys/net/ipv4; grep . ip_forward conf/all/* conf/default/*", check=False).out
    agent.world.sh("echo 1 > /proc/sys/net/ipv4/ip_forward")
    agent.drifted("sysctl:net.ipv4.ip_forward")
    wait_until(lambda: agent.status()["drifted"] == 0, "all is settled")
    assert (
        agent.world.sh("cd /proc/sys/net/ipv4; grep . ip_forward conf/all/* conf/default/*", check=False).out == before
    )
    assert agent.newest("rolled_back")["seq"] > (agent.newest("rollback_failed") or {"seq": -1})["seq"]


def test_expiry_restores_an_unmounted_file_system_with_its_options(agent: Agent) -> None:
    point = f"{TOP}/scratch"
    agent.world.sh(f"mkdir {point}")
    agent.declare(f'[mount."{point}"]\nsource = "tmpfs"\nfstype = "tmpfs"\noptions = ["size=2m", "noatime", "nodev"]\n')
    (line,) = mounted(agent, point)
    assert "noatime" in line and "nodev" in line and "size=2048k" in line
    agent.world.sh(f"umount {point}")
    agent.drifted(f"mount:{point}")
    agent.settled(f"mount:{point}")
    (line,) = mounted(agent, point)
    assert "noatime" in line and "nodev" in line and "size=2048k" in line
    agent.world.sh(f"umount {point}")


def test_expiry_remounts_with_the_declared_options_without_losing_what_is_there(agent: Agent) -> None:
    point = f"{TOP}/options"
    agent.world.sh(
        f"mkdir {point}; mount -t tmpfs -o size=2m,ro tmpfs {point}; mount -o remount,rw {point};"
        f"echo data > {point}/data"
    )
    agent.declare(f'[mount."{point}"]\nsource = "tmpfs"\nfstype = "tmpfs"\noptions = ["noexec", "size=2m"]\n')
    agent.world.sh(f"mount -o remount,exec,size=3m {point}")
    agent.drifted(f"mount:{point}")
    agent.settled(f"mount:{point}")
    (line,) = mounted(agent, point)
    assert "noexec" in line and "size=2048k" in line
    assert agent.world.path(f"{point}/data").read_text() == "data\n"
    agent.world.sh(f"umount {point}")


def test_what_is_mounted_over_a_declared_mount_is_taken_off(agent: Agent) -> None:
    point = f"{TOP}/over"
    agent.world.sh(f"mkdir {point}; mount -t tmpfs -o size=1m tmpfs {point}; echo below > {point}/below")
    agent.adopt(f"mount:{point}")
    agent.world.sh(f"mount -t ramfs other {point}")
    agent.drifted(f"mount:{point}")
    agent.settled(f"mount:{point}")
    assert len(mounted(agent, point)) == 1 and agent.world.path(f"{point}/below").exists()
    agent.world.sh(f"umount {point}")


def test_a_mount_declared_absent_is_unmounted(agent: Agent) -> None:
    point = f"{TOP}/unwanted"
    agent.world.sh(f"mkdir {point}")
    agent.declare(f'[mount."{point}"]\ntype = "absent"\n')
    agent.world.sh(f"mount -t tmpfs tmpfs {point}")
    agent.drifted(f"mount:{point}")
    agent.settled(f"mount:{point}")
    assert mounted(agent, point) == []


def test_mounts_inside_each_other_are_restored_from_the_outside_in(agent: Agent) -> None:
    outer, inner = f"{TOP}/outer", f"{TOP}/outer/inner"
    agent.world.sh(
        f"mkdir {outer}; mount -t tmpfs tmpfs {outer};mkdir {inner}; mount -t tmpfs -o size=1m tmpfs {inner}"
    )
    agent.adopt(f"mount:{outer}", f"mount:{inner}")
    agent.world.sh(f"umount {inner}; umount {outer}")
    agent.drifted(f"mount:{outer}")
    # two changes where the umounts were gone before they were looked up: each has its own end
    wait_until(lambda: [len(mounted(agent, p)) for p in (outer, inner)] == [1, 1], "both are mounted again")
    agent.settled(f"mount:{outer}")
    agent.settled(f"mount:{inner}")
    agent.world.sh(f"umount {inner}; umount {outer}")


def test_larger_drift_has_less_time(agent: Agent) -> None:
    one = agent.file("small.conf")
    many = [agent.file(f"many{i}.conf") for i in range(20)]
    change = agent.drift(one)
    short = change["remaining_s"]
    for path in many:
        agent.world.path(path).write_text("drifted\n")
    wait_until(lambda: agent.status()["window_s"] < 0.7, "the window shrank")
    assert agent.status()["window_s"] < short
    wait_until(lambda: agent.status()["drifted"] == 0, "all was rolled back")


@pytest.mark.invariant("F16")
def test_what_was_rolled_back_twice_within_the_hour_is_contended(agent: Agent) -> None:
    path = agent.file("fight.conf")
    for _ in range(2):
        agent.drift(path)
        agent.settled(f"file:{path}")
    agent.drift(path)
    wait_until(lambda: agent.status()["state"] == "blocked", "a person must decide")
    assert "contended" in agent.status()["changes"][0]["reason"]
    assert agent.world.path(path).read_text() == "drifted\n"
    agent.pact("rollback")
    assert agent.world.path(path).read_text() == "declared\n"


def test_commit_in_time_stops_the_rollback(agent: Agent) -> None:
    path = agent.file("intime.conf")
    change = agent.drift(path)
    # The window is half a second long: a program that has to be started may come too late on a busy machine.
    assert agent.ask("commit", targets=[change["id"]], message="in time")["exit"] == 0
    agent.drift(agent.file("clock.conf"))  # its end comes after the first one's would have come
    agent.settled(f"file:{TOP}/clock.conf")
    assert agent.world.path(path).read_text() == "drifted\n"
    assert change["id"] not in {r["data"]["change"] for r in agent.records("rolled_back")}
