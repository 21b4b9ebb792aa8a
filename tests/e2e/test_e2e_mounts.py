"""Mounts as machines have them: one on the other, in other namespaces, with options that the kernel prints its own way."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from harness import TOP, Agent, wait_until
from test_e2e_consumers import refused


def mounted(agent: Agent, point: str) -> list[str]:
    """Types and sources on a point, in the order of the table."""
    rows = [line.split(" - ") for line in agent.world.sh("cat /proc/self/mountinfo").out.splitlines()]
    return [" ".join(right.split()[:2]) for left, right in rows if left.split()[4] == point]


def options(agent: Agent, point: str) -> set[str]:
    return set(agent.world.sh(f"findmnt -rn -o OPTIONS --mountpoint {point} | tail -n 1").out.strip().split(","))


def mount(point: str, fstype: str, *wanted: str, source: str = "") -> str:
    listed = ", ".join(f'"{o}"' for o in wanted)
    return f'[mount."{point}"]\nsource = "{source or fstype}"\nfstype = "{fstype}"\noptions = [{listed}]\n'


@pytest.fixture
def point(agent: Agent) -> Iterator[str]:
    place = f"{TOP}/stack"
    agent.world.sh(f"mkdir -p {place}")
    yield place
    agent.world.sh(f"while umount {place}; do :; done", check=False)


#: A trigger that an automounter (this process, which never answers) waits at: nobody may look into it.
AUTOFS = """
import ctypes
os.setpgid(0, 0)
read, write = os.pipe()
data = f"fd={write},pgrp={os.getpgid(0)},minproto=5,maxproto=5,direct".encode()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"automount", sys.argv[1].encode(), b"autofs", 0, data) == 0, os.strerror(ctypes.get_errno())
ready()
"""


# -- one on the other ---------------------------------------------------------------------------------------------


def test_a_flag_of_the_upper_mount_is_mended_and_the_lower_one_stays(agent: Agent, point: str) -> None:
    agent.world.sh(
        f"mount -t tmpfs -o size=1m below {point}; touch {point}/below; mount -t tmpfs -o size=2m,noexec upper {point};"
        f" touch {point}/upper"
    )
    agent.adopt(f"mount:{point}")
    agent.world.sh(f"mount -o remount,exec {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    assert mounted(agent, point) == ["tmpfs below", "tmpfs upper"]
    assert "noexec" in options(agent, point)
    assert agent.world.sh(f"ls {point}").out == "upper\n"


def test_a_flag_of_one_mount_is_mended_and_the_file_system_stays_writable_elsewhere(agent: Agent, point: str) -> None:
    other = f"{TOP}/other"
    agent.world.sh(
        f"mkdir {other} && mount -t tmpfs -o size=1m shared {other} && mount --bind {other} {point} && "
        f"mount -o remount,bind,ro,noexec {point}"
    )
    try:
        agent.adopt(f"mount:{point}")
        agent.world.sh(f"mount -o remount,bind,ro,exec {point}")
        agent.change_of(f"mount:{point}")
        agent.pact("rollback", "--all")
        assert {"ro", "noexec"} <= options(agent, point)
        agent.world.sh(f"echo more > {other}/f")
        assert "ro" not in options(agent, other)
    finally:
        agent.world.sh(f"umount {point} {other}; rmdir {other}", check=False)


def test_the_upper_mount_that_went_comes_back_over_the_lower_one(agent: Agent, point: str) -> None:
    agent.world.sh(
        f"mount -t tmpfs -o size=1m below {point}; touch {point}/below; mount -t tmpfs -o size=2m upper {point}"
    )
    agent.adopt(f"mount:{point}")
    agent.restart()
    agent.world.sh(f"umount {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    assert mounted(agent, point) == ["tmpfs below", "tmpfs upper"]
    agent.world.sh(f"umount {point}; mount -t tmpfs another {point}")
    wait_until(lambda: agent.change_of(f"mount:{point}"), "drift")
    agent.pact("rollback", "--all")
    assert mounted(agent, point) == ["tmpfs below", "tmpfs upper"]
    agent.world.sh(f"umount {point}")
    assert agent.world.sh(f"ls {point}").out == "below\n"


def test_a_foreign_mount_over_the_declared_one_is_taken_off(agent: Agent, point: str) -> None:
    agent.world.sh(f"mount -t tmpfs below {point}; mount -t tmpfs -o size=2m upper {point}; touch {point}/kept")
    agent.adopt(f"mount:{point}")
    agent.world.sh(f"mount -t ramfs foreign {point}; mount -t ramfs foreign2 {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    assert mounted(agent, point) == ["tmpfs below", "tmpfs upper"]
    assert agent.world.sh(f"ls {point}").out == "kept\n"


def test_a_flag_of_a_mount_on_an_automounters_trigger_is_mended(agent: Agent, point: str) -> None:
    daemon = agent.world.python(AUTOFS, point)
    agent.world.sh(f"mount -t tmpfs -o size=1m,nosuid upper {point}")
    agent.declare(mount(point, "tmpfs", "size=1m", "nosuid", source="upper"))
    agent.world.sh(f"mount -o remount,suid {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    assert mounted(agent, point) == ["autofs automount", "tmpfs upper"]
    assert "nosuid" in options(agent, point)
    agent.world.sh(f"umount {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    assert mounted(agent, point) == ["autofs automount", "tmpfs upper"], "the trigger is never taken off"
    agent.world.sh(f"umount {point}; umount {point}")
    agent.world.end(daemon)


def test_a_trigger_that_waits_is_what_a_mount_on_demand_is_and_what_absent_is(agent: Agent, point: str) -> None:
    daemon = agent.world.python(AUTOFS, point)
    agent.declare(mount(point, "tmpfs", "size=1m", "x-systemd.automount", source="upper"))
    assert mounted(agent, point) == ["autofs automount"]
    assert agent.status()["state"] == "committed"
    agent.declare(f'[mount."{point}"]\ntype = "absent"\n')
    assert mounted(agent, point) == ["autofs automount"]
    agent.world.sh(f"mount -t tmpfs upper {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    assert mounted(agent, point) == ["autofs automount"]
    agent.world.sh(f"umount {point}")
    agent.world.end(daemon)


def test_a_mount_adopted_on_a_trigger_is_one_on_demand(agent: Agent, point: str) -> None:
    daemon = agent.world.python(AUTOFS, point)
    agent.world.sh(f"mount -t tmpfs -o size=1m,nosuid upper {point}")
    agent.ask("adopt", patterns=[f"mount:{TOP}/st*"])
    exported = agent.pact("export").out
    assert 'source = "upper"' in exported and "x-systemd.automount" in exported
    agent.world.sh(f"umount {point}")
    agent.file("beside")
    assert agent.status()["state"] == "committed", "it has expired, as on-demand mounts do"
    agent.world.sh(f"mount -t tmpfs -o size=1m upper {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    assert "nosuid" in options(agent, point) and len(mounted(agent, point)) == 2
    agent.declare(exported)
    agent.world.sh(f"umount {point}; umount {point}")
    agent.world.end(daemon)


def test_a_mount_that_an_automounter_makes_over_declared_files_is_no_drift(agent: Agent, point: str) -> None:
    agent.declare(f'[file."{point}/sub"]\ntype = "absent"\n')
    daemon = agent.world.python(AUTOFS.replace("data =", "os.close(read)\ndata ="), point)  # whoever looks is sent away
    agent.world.sh(f"mount -t tmpfs upper {point}")
    agent.file("beside")
    assert agent.change_of(f"mount:{point}") is None
    agent.world.sh(f"umount {point}; umount {point}")
    agent.world.end(daemon)


# -- other namespaces -----------------------------------------------------------------------------------------------


@pytest.fixture
def shared(agent: Agent) -> Iterator[str]:
    """One change of a mount and a file, on a tmpfs whose mounts pass on, as ``/`` does where systemd runs."""
    place = f"{TOP}/sh"
    agent.world.sh(
        f"mkdir -p {place}; mount -t tmpfs shared {place}; mount --make-shared {place}; mkdir {place}/m {place}/copy"
    )
    agent.file("sh/conf")
    agent.declare(f'[mount."{place}/m"]\ntype = "absent"\n')
    text = f'[file."{place}/conf"]\ncontent = "drifted\\n"\n' + mount(f"{place}/m", "tmpfs", source="over")
    agent.world.path(f"{TOP}/both.toml").write_text(text)
    agent.pact("apply", f"{TOP}/both.toml")
    agent.world.sh(f"echo x > {place}/m/used")
    assert len(agent.drifted(f"mount:{place}/m")["resources"]) == 2
    yield place
    agent.world.sh(f"umount -R {place}", check=False)
    agent.world.sh(f"umount -l {place}", check=False)


def nothing_touched(agent: Agent, shared: str) -> None:
    assert agent.world.path(f"{shared}/conf").read_text() == "drifted\n"
    assert mounted(agent, f"{shared}/m") == ["tmpfs over"]


JOBS = {
    "cwd": "cd {m}; echo ready; exec sleep 999",
    "fd": "exec 9<{m}/used; echo ready; exec sleep 999",
    "exe": "cp /bin/sleep {m}/prog; echo ready; exec {m}/prog 999",
    "root": "mkdir -p {m}/bin; cp /usr/bin/busybox {m}/bin/ 2>/dev/null; exec python3 -c \"import os,time; os.chroot('{m}');"
    " print('ready', flush=True); time.sleep(999)\"",
}


def job(agent: Agent, propagation: str, script: str) -> subprocess.Popen[Any]:
    process = agent.world.popen(
        ["unshare", "--mount", "--propagation", propagation, "sh", "-c", script], stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.invariant("F5")
@pytest.mark.parametrize("propagation", ["slave", "shared", "private"])
@pytest.mark.parametrize("how", sorted(JOBS))
def test_a_job_in_another_mount_namespace_is_named_and_nothing_is_touched(
    agent: Agent, shared: str, propagation: str, how: str
) -> None:
    process = job(agent, propagation, JOBS[how].format(m=f"{shared}/m"))
    holders = refused(agent, f"mount:{shared}/m")
    assert (process.pid, how) in {(h["pid"], h["how"]) for h in holders}, holders
    nothing_touched(agent, shared)
    agent.world.end(process)
    agent.pact("rollback", "--all")
    assert mounted(agent, f"{shared}/m") == []
    assert agent.world.path(f"{shared}/conf").read_text() == "declared\n"


@pytest.mark.invariant("F5")
def test_a_namespace_that_follows_and_uses_nothing_is_in_nobodys_way(agent: Agent, shared: str) -> None:
    process = job(agent, "slave", "cd /; echo ready; exec sleep 999")
    agent.pact("rollback", "--all")
    assert mounted(agent, f"{shared}/m") == []
    table = agent.world.sh(f"cat /proc/{process.pid}/mountinfo").out
    assert " over " not in table, "it has left there too"
    agent.world.end(process)


@pytest.mark.invariant("F5")
def test_a_follower_of_a_follower_is_named(agent: Agent, shared: str) -> None:
    inner = (
        f"mount --make-rshared {shared}; exec unshare --mount --propagation slave "
        f"sh -c 'cd {shared}/m; echo ready; exec sleep 999'"
    )
    process = job(agent, "slave", inner)
    assert process.pid in {h["pid"] for h in refused(agent, f"mount:{shared}/m")}
    nothing_touched(agent, shared)
    agent.world.end(process)
    agent.pact("rollback", "--all")


@pytest.mark.invariant("F5")
def test_what_a_job_mounted_inside_its_copy_holds_it(agent: Agent, shared: str) -> None:
    process = job(agent, "slave", f"mkdir {shared}/m/in; mount -t tmpfs mine {shared}/m/in; echo ready; exec sleep 999")
    assert {"mount"} <= {h["how"] for h in refused(agent, f"mount:{shared}/m")}
    nothing_touched(agent, shared)
    agent.world.end(process)
    agent.pact("rollback", "--all")


@pytest.mark.invariant("F5")
def test_a_user_of_a_bind_mount_elsewhere_is_in_nobodys_way(agent: Agent, shared: str) -> None:
    """That mount stays, and its users with it."""
    agent.world.sh(f"mount --bind {shared}/m {shared}/copy")
    process = agent.world.popen(["sh", "-c", f"cd {shared}/copy; echo ready; exec sleep 999"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    agent.pact("rollback", "--all")
    assert mounted(agent, f"{shared}/m") == [] and mounted(agent, f"{shared}/copy") == ["tmpfs over"]
    agent.world.end(process)


@pytest.mark.invariant("F5")
def test_a_user_of_a_copy_that_goes_with_it_in_the_same_namespace_is_named(agent: Agent, shared: str) -> None:
    """The place is mounted twice: what is unmounted in one goes in the other."""
    agent.world.sh(
        f"mkdir -p {TOP}/twin; mount --bind {shared} {TOP}/twin; umount {shared}/m; mount -t tmpfs over {shared}/m"
    )
    process = agent.world.popen(["sh", "-c", f"cd {TOP}/twin/m; echo ready; exec sleep 999"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    try:
        assert process.pid in {h["pid"] for h in refused(agent, f"mount:{shared}/m")}
        assert agent.world.path(f"{shared}/conf").read_text() == "drifted\n"
    finally:
        agent.world.end(process)
    agent.pact("rollback", "--all")
    agent.world.sh(f"umount {TOP}/twin")


# -- options --------------------------------------------------------------------------------------------------------

PRINTED_OTHERWISE = [
    ("tmpfs", ["size=50%"]),
    ("tmpfs", ["size=25%", "noexec"]),
    ("tmpfs", ["size=10000000"]),
    ("tmpfs", ["strictatime"]),
    ("tmpfs", ["huge=never"]),
    ("tmpfs", ["nr_blocks=100"]),
    ("tmpfs", ["size=1m", "mode=01777"]),
    ("tmpfs", ["nr_inodes=1k", "mpol=default"]),
    ("proc", ["hidepid=2"]),
    ("proc", ["hidepid=invisible"]),
    ("proc", ["hidepid=0"]),
    ("hugetlbfs", ["pagesize=1G"]),
    ("hugetlbfs", ["pagesize=2M"]),
    ("devpts", ["gid=5", "ptmxmode=0666"]),
    ("ramfs", ["mode=0755"]),
    ("tmpfs", ["user"]),
    ("tmpfs", ["nofail", "X-mount.mkdir", "x-systemd.requires=a.service", "_netdev"]),
    ("tmpfs", ["lazytime", "dirsync"]),
    ("tmpfs", ["size=1g", "silent"]),
    ("tmpfs", ["size=1g", "shared"]),
    ("tmpfs", ["size=1g", "iversion"]),
    ("proc", ["subset=pid", "gid=0"]),
]


@pytest.mark.parametrize(
    ("fstype", "wanted"), PRINTED_OTHERWISE, ids=lambda v: v if isinstance(v, str) else ",".join(v)
)
def test_what_is_mounted_as_declared_conforms_however_the_kernel_prints_it(
    agent: Agent, point: str, fstype: str, wanted: list[str]
) -> None:
    text = mount(point, fstype, *wanted)
    agent.declare(text)
    assert agent.status()["state"] == "committed"
    agent.restart()
    assert agent.status()["state"] == "committed"
    agent.world.sh(f"umount {point}; mount -t {fstype} -o {','.join(o for o in wanted)} {fstype} {point}")
    agent.file("beside")
    assert agent.status()["state"] == "committed", "as somebody else mounts it"
    agent.declare(text)
    assert len(mounted(agent, point)) == 1


@pytest.mark.parametrize(
    ("fstype", "wanted", "moved"),
    [
        ("tmpfs", ["size=50%"], "size=1m"),
        ("tmpfs", ["size=10000000"], "size=20000000"),
        ("tmpfs", ["size=1m"], "size=50%"),
        ("tmpfs", ["size=25%"], "size=26%"),
        ("tmpfs", ["strictatime"], "noatime"),
        ("tmpfs", ["strictatime"], "relatime"),
        ("tmpfs", ["huge=never"], "huge=always"),
        ("proc", ["hidepid=2"], "hidepid=0"),
        ("proc", ["hidepid=0"], "hidepid=2"),
        ("tmpfs", ["noexec", "size=50%"], "exec"),
        ("tmpfs", ["nosuid"], "suid"),
        ("tmpfs", ["nodev"], "dev"),
        ("tmpfs", ["ro"], "rw"),
        ("tmpfs", ["user"], "exec"),
        ("tmpfs", ["nr_inodes=1000"], "nr_inodes=2000"),
    ],
)
def test_a_real_change_of_such_an_option_is_drift_and_is_undone(
    agent: Agent, point: str, fstype: str, wanted: list[str], moved: str
) -> None:
    agent.declare(mount(point, fstype, *wanted))
    before = options(agent, point)
    agent.world.sh(f"mount -o remount,{moved} {fstype} {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    assert options(agent, point) == before
    assert agent.status()["state"] == "committed"


def test_options_that_the_kernel_does_not_take_are_refused_before_anything_is_touched(agent: Agent, point: str) -> None:
    path = agent.file("beside")
    text = mount(point, "tmpfs", "size=1m", "nosuch=1") + f'[file."{path}"]\ncontent = "new"\n'
    done = agent.declare(text, check=1)
    assert "tmpfs does not take the options nosuch=1, size=1m" in done.err
    assert agent.world.path(path).read_text() == "declared\n" and mounted(agent, point) == []


# -- as fstab means it ------------------------------------------------------------------------------------------------


def test_a_bind_of_a_file_comes_back_as_a_file(agent: Agent, point: str) -> None:
    agent.world.sh(f"echo one > {TOP}/one")
    text = mount(f"{TOP}/new/dir/two", "none", "bind", source=f"{TOP}/one")
    agent.declare(text)
    assert agent.world.sh(f"cat {TOP}/new/dir/two").out == "one\n"
    agent.world.sh(f"umount {TOP}/new/dir/two; rm -r {TOP}/new")
    agent.drifted(f"mount:{TOP}/new/dir/two")
    agent.pact("rollback", "--all")
    assert agent.world.sh(f"cat {TOP}/new/dir/two").out == "one\n"
    agent.world.sh(f"umount {TOP}/new/dir/two")


@pytest.fixture
def image(agent: Agent) -> str:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    path = f"{TOP}/image"
    agent.world.sh(f"truncate -s 2M {path}; mkfs.ext4 -q -F -O ^has_journal {path}")
    if agent.world.sh("losetup -f", check=False).code:
        pytest.skip("no loop devices here")
    return path


@pytest.mark.parametrize("wanted", [["loop", "ro"], ["noatime"], ["loop", "user"]], ids=",".join)
def test_an_image_mounted_through_a_loop_device_conforms(
    agent: Agent, point: str, image: str, wanted: list[str]
) -> None:
    agent.declare(mount(point, "ext4", *wanted, source=image))
    assert agent.status()["state"] == "committed"
    agent.world.sh(f"umount {point}")
    agent.drifted(f"mount:{point}")
    agent.pact("rollback", "--all")
    agent.world.sh(f"mount -o remount,nodev,{'suid' if 'user' in wanted else 'relatime'},ro {point}")
    agent.pact("rollback", "--all")
    assert agent.status()["state"] == "committed"
    agent.declare(agent.pact("export").out)


def test_an_adopted_image_comes_back_whatever_number_its_loop_device_has(agent: Agent, point: str, image: str) -> None:
    agent.world.sh(f"mount -o loop {image} {point}")
    agent.adopt(f"mount:{point}")
    text = agent.pact("export").out
    assert image in text
    agent.world.sh(f"umount {point}; truncate -s 1M {TOP}/other; losetup -f {TOP}/other")
    try:
        agent.drifted(f"mount:{point}")
        agent.pact("rollback", "--all")
        assert agent.status()["state"] == "committed"
        agent.declare(text)
    finally:
        agent.world.sh(f"losetup -j {TOP}/other | cut -d: -f1 | xargs losetup -d")


@pytest.mark.invariant("F5")
def test_a_loop_device_on_a_declared_image_is_named(agent: Agent, image: str) -> None:
    agent.declare(f'[file."{image}"]\ncontent = "small"\n')
    agent.world.sh(f"truncate -s 1M {image}")
    agent.drifted(f"file:{image}")
    device = agent.world.sh(f"losetup -f --show {image}").out.strip()
    try:
        holders = refused(agent, f"file:{image}")
        assert ("loop", device) in {(h["how"], h["path"]) for h in holders}
        assert agent.world.path(image).stat().st_size == 1 << 20
    finally:
        agent.world.sh(f"losetup -d {device}")
    agent.pact("rollback", "--all")


@pytest.mark.needs("mkfs.ext4")
def test_an_option_of_a_disk_that_it_showed_before_is_drift_when_it_goes(agent: Agent, point: str, image: str) -> None:
    disk = f"{TOP}/disk"
    agent.world.sh(f"truncate -s 16M {disk}; mkfs.ext4 -q -F {disk}")
    wanted = ("loop", "commit=30", "errors=continue", "user_xattr", "acl", "data=ordered")
    agent.declare(mount(point, "ext4", *wanted, source=disk))
    assert agent.status()["state"] == "committed"
    agent.restart()
    agent.world.sh(f"mount -o remount,commit=5 {point}")
    agent.drifted(f"mount:{point}")
    agent.restart()
    assert agent.change_of(f"mount:{point}")
    agent.pact("rollback", "--all")
    assert "commit=30" in options(agent, point)


def test_a_process_in_a_mount_that_another_covers_is_named_before_either_is_taken_off(agent: Agent, point: str) -> None:
    agent.world.sh(f"mount -t tmpfs -o size=1m declared {point}")
    agent.adopt(f"mount:{point}")
    agent.world.sh(f"mount -t ramfs first {point}")
    user = agent.world.python("os.chdir(sys.argv[1])\nready()", point)
    agent.world.sh(f"mount -t ramfs second {point}")
    agent.drifted(f"mount:{point}")
    assert {h["pid"] for h in refused(agent, f"mount:{point}")} == {user.pid}
    assert mounted(agent, point) == ["tmpfs declared", "ramfs first", "ramfs second"]
    agent.world.end(user)
    agent.pact("rollback", "--all")
    assert mounted(agent, point) == ["tmpfs declared"]
