"""What a node may lie on: XFS (Enterprise Linux), btrfs, ext4, and an overlay (a node without a disk of its own)."""

from __future__ import annotations

import base64
import json
import os
import shutil

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
def files(request: pytest.FixtureRequest) -> str:
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
def test_a_declaration_of_before_has_acls_under_both_names(agent: Agent, files: str) -> None:
    """It is no drift that the second name is not looked at any more; and no other name of that sort is declared."""
    path = f"{TOP}/twice.conf"
    agent.world.sh(f"echo twice > {path}; setfacl -m u:2345:rwx {path}")
    real = agent.world.path(path)
    stored = base64.b64encode(b"\0" * 8).decode()
    if files == "xfs":
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
