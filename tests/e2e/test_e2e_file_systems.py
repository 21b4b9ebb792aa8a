"""What a node may lie on: XFS (Enterprise Linux), btrfs, ext4, and an overlay (a node without a disk of its own)."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import TOP, Agent, wait_until
from newcomers import untracked
from test_e2e_consumers import refused

pytestmark = pytest.mark.needs("setfacl", "setfattr")
#: Python's own mmap keeps a descriptor.
MAPS = (
    "import ctypes; f = os.open(sys.argv[1], os.O_RDWR); c = ctypes.c_long; m = ctypes.CDLL(None).mmap\n"
    "assert m(c(0), c(4096), {}, 1, f, c(0)) != -1; os.close(f)\nready()"
)


@pytest.fixture(scope="module", params=["xfs", "btrfs", "ext4", "overlay"])
def file_system(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    with open("/proc/filesystems") as known:
        if kind not in known.read().split():
            pytest.skip(f"this kernel has no {kind}")
    if kind != "overlay" and shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} not installed")
    return kind


@pytest.mark.invariant("R5")
def test_the_acls_of_a_directory_come_back_and_are_declared_once(agent: Agent) -> None:
    """XFS shows each of them a second time, as it stores them; they go both when one is removed."""
    place = f"{TOP}/shared"
    agent.world.sh(f"mkdir {place}; setfacl -m u:2345:rwx -d -m u:2345:rwx -d -m g:3456:rx {place}")
    agent.adopt(f"file:{place}")
    before = agent.world.sh(f"getfacl -n {place}").out
    assert before.count("default:") > 4
    for drift in ("setfacl -b", "setfacl -k", "setfacl -d -m u:9:r", "setfacl -m u:9:r"):
        agent.world.sh(f"{drift} {place}")
        agent.drifted(f"file:{place}")
        agent.pact("rollback", "--all")
        assert agent.world.sh(f"getfacl -n {place}").out == before, drift
    exported = agent.pact("export").out
    assert "system.posix_acl_default" in exported and "trusted." not in exported


@pytest.mark.invariant("R5")
def test_a_declaration_of_before_has_acls_under_both_names(agent: Agent, file_system: str) -> None:
    """It is no drift that the second name is not looked at any more; and no other name of that sort is declared."""
    path = f"{TOP}/twice.conf"
    agent.world.sh(f"echo twice > {path}; setfacl -m u:2345:rwx {path}")
    real = agent.world.path(path)
    stored = base64.b64encode(b"\0" * 8).decode()
    if file_system == "xfs":
        stored = base64.b64encode(os.getxattr(real, "trusted.SGI_ACL_FILE")).decode()
    shown = base64.b64encode(os.getxattr(real, "system.posix_acl_access")).decode()
    table = f'[file."{path}"]\ncontent = {json.dumps(real.read_text())}\n[file."{path}".xattrs]\n'
    both = f'"system.posix_acl_access" = "{shown}"\n"trusted.SGI_ACL_FILE" = "{stored}"\n'
    agent.pact("declare", "-", input=(table + both).encode())
    assert agent.status()["drifted"] == 0 and agent.change_of(f"file:{path}") is None
    assert "SGI" not in agent.pact("export").out
    done = agent.pact("declare", "-", input=(table + f'"security.ima" = "{stored}"\n').encode(), check=2)
    assert "security.ima belongs to the kernel or the file system" in done.err


@pytest.mark.invariant("F5")
@pytest.mark.parametrize("access", [1, 3], ids=["to read", "to write"])
def test_who_has_it_mapped_alone_stops_its_rollback(agent: Agent, access: int) -> None:
    """The kernel gives a lease on an overlay's file although the file below is mapped."""
    path = agent.file("mapped")
    agent.drift(path)
    holder = agent.world.python(MAPS.format(access), path)
    (found,) = refused(agent, f"file:{path}")
    assert (found["pid"], found["how"]) == (holder.pid, "map")
    agent.world.end(holder)
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"


@pytest.mark.invariant("R6")
def test_what_is_new_is_found_where_the_pattern_begins(agent: Agent) -> None:
    """A node without a disk lies on an overlay, as containers do; so do its bind mounts."""
    agent.world.sh(f"mkdir -p {TOP}/etc/conf.d {TOP}/elsewhere; echo a > {TOP}/etc/a; touch {TOP}/elsewhere/z")
    said = agent.pact("adopt", f"file:{TOP}/etc/**").out
    assert "adopted 3" in said, said
    agent.pact("track", f"file:{TOP}/etc/**", "report")
    agent.world.sh(f"echo b > {TOP}/etc/b; mkdir {TOP}/etc/d; echo c > {TOP}/etc/d/c")
    agent.world.sh(f"mkdir {TOP}/etc/bound; mount --bind {TOP}/elsewhere {TOP}/etc/bound")

    def new() -> set[str]:
        return {resource.removeprefix(f"file:{TOP}/etc/") for resource in untracked(agent)}

    wait_until(lambda: new() >= {"b", "d", "d/c", "bound", "bound/z"}, f"all are found: {new()}")
    agent.world.sh(f"umount {TOP}/etc/bound; rm -r {TOP}/etc/d")
    wait_until(lambda: new() == {"b", "bound"}, f"what is gone is gone: {new()}")


@pytest.mark.invariant("R5", "R4")
def test_seven_hundred_files_are_brought_back_with_all_they_had(agent: Agent) -> None:
    agent.world.sh(
        f"mkdir {TOP}/many; cd {TOP}/many; for i in $(seq 700); do echo $i > f$i; done; chmod 640 f*; chown 1:2 f?0;"
        "setfacl -m u:2345:r f*5; setfattr -n user.note -v kept f*7"
    )
    look = f"cd {TOP}/many; getfacl -n f* | md5sum; getfattr -d f* | md5sum; cat f* | md5sum"
    agent.pact("adopt", f"file:{TOP}/many/**")
    before = agent.world.sh(look).out
    agent.world.sh(f"cd {TOP}/many; for i in f*; do echo x >> $i; done; setfacl -b f*; chmod 600 f*; rm f1?")
    wait_until(lambda: agent.status()["drifted"] >= 690, "they have drifted")
    agent.pact("rollback", "--all")
    assert agent.world.sh(look).out == before
    assert agent.world.sh(f"ls -A {TOP}/many | wc -l").out == "700\n", "and nothing else"


@pytest.mark.invariant("J5")
def test_what_moves_while_nobody_looks_is_found_by_the_next_start(agent: Agent) -> None:
    path, still = agent.file("asleep"), agent.file("still")
    agent.stop()
    agent.world.sh(f"sed -i s/declared/moved/ {path}")
    agent.start()
    agent.drifted(f"file:{path}")
    assert agent.change_of(f"file:{still}") is None
    agent.pact("rollback", "--all")
    assert agent.world.path(path).read_text() == "declared\n"


LAYERED = f"{TOP}/node"


@pytest.fixture
def layered(agent: Agent) -> Iterator[Agent]:
    """A stateless node: what its image brings lies below, on this file system, and what changes in memory above."""
    low, above = f"{TOP}/image", f"{TOP}/memory"
    agent.world.sh(
        f"mkdir -p {low}/etc/d {above} {LAYERED}; cd {low}/etc; for i in 1 2 3 4 5 6 7 8; do echo image $i > f$i; done;"
        "echo inner > d/inner; ln -s f1 link; setfacl -m u:2345:r f2; setfattr -n user.note -v kept f3; setfattr -n trusted.linkage -v kept f3; ln f4 hard;"
        f"chown 1:2 f5; chmod 600 f6; mount -t tmpfs -o mode=755 m {above}; mkdir {above}/upper {above}/work;"
        f"mount -t overlay -o lowerdir={low},upperdir={above}/upper,workdir={above}/work o {LAYERED}"
    )
    yield agent
    agent.pact("rollback", "--all", check=None)
    agent.world.sh(f"umount {LAYERED}; umount {above}; rm -rf {low} {above} {LAYERED}")


@pytest.mark.invariant("R5", "R4")
def test_what_an_image_brought_comes_back(layered: Agent) -> None:
    """The first write to such a file copies it up: another inode, often of another device, under the same name."""
    world, place = layered.world, f"{LAYERED}/etc"
    look = f"cd {place}; getfacl -nR . ; getfattr -m - -dR . | grep -v SGI ; find . -type f | sort | xargs md5sum; readlink link"
    layered.pact("adopt", f"file:{place}/**")
    before = world.sh(look).out
    drifts = [
        "echo x >> f1; echo x > f2; echo x > f3; echo x > f6",
        "chmod 777 f1 f2 d; chown 7:7 f3 d/inner; setfacl -b f2; setfattr -x user.note f3; setfattr -x trusted.linkage f3",
        "rm -r d; rm f1 f2 f5 link; mkdir f7.d; mv f7 f7.d/f7",
        "mv f1 f1.new; cp f2 f1; mv f1.new f3; ln -sf f2 link; echo y >> hard",
    ]
    for drift in drifts:
        world.sh(f"cd {place}; {drift}")
        wait_until(lambda: layered.status()["drifted"] >= 3, f"it is seen: {drift}")
        layered.pact("rollback", "--all")
        world.sh(f"rm -rf {place}/f7.d {place}/f1.new")
        assert world.sh(look).out == before, drift
        assert layered.status()["drifted"] == 0


@pytest.mark.invariant("F5")
@pytest.mark.parametrize("how", ["open", "mapped", "runs"])
def test_who_uses_what_an_image_brought_stops_its_rollback(layered: Agent, how: str) -> None:
    path = f"{LAYERED}/etc/f1"
    if how == "runs":
        layered.world.sh(f"cp $(command -v sleep) {path}; chmod 755 {path}")
    layered.adopt(f"file:{path}")
    layered.world.sh(f"chmod 700 {path}" if how == "runs" else f"echo x >> {path}")
    layered.drifted(f"file:{path}")
    if how == "runs":
        holder = layered.world.popen([path, "1000"])
        wait_until(lambda: b"f1" in Path(f"/proc/{holder.pid}/cmdline").read_bytes(), "it runs")
    else:
        holder = layered.world.python(MAPS.format(1) if how == "mapped" else "f = open(sys.argv[1])\nready()", path)
    assert {h["pid"] for h in refused(layered, f"file:{path}")} == {holder.pid}
    layered.world.end(holder)
    layered.pact("rollback", "--all")
