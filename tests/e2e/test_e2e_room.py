"""Room for a plan: what cannot be finished is refused before anything is touched, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from harness import TOP, Agent

MIB = 1 << 20
DISK = f"{TOP}/disk"


@pytest.fixture
def disk(agent: Agent) -> Iterator[str]:
    """A file system of six mebibytes."""
    agent.world.sh(f"mkdir -p {DISK}; mount -t tmpfs -o size=6m tmpfs {DISK}")
    yield DISK
    agent.clear()
    agent.world.sh(f"umount {DISK}")


def files(agent: Agent, letter: str, count: int = 4, size: int = MIB, place: str = DISK) -> list[str]:
    """Files of this size, written in place."""
    paths = [f"{place}/{n}" for n in range(count)]
    for n, path in enumerate(paths):
        agent.world.path(path).write_bytes(f"{letter}{n}".encode() * (size // 2))
    return paths


def drifted(agent: Agent, paths: list[str]) -> None:
    for path in paths:
        agent.drifted(f"file:{path}")


@pytest.mark.invariant("F93")
def test_files_that_give_way_one_by_one_need_room_for_one(agent: Agent, disk: str) -> None:
    """Two mebibytes are free, and four files of one are replaced: each old one goes before the next new one comes."""
    paths = files(agent, "a")
    agent.adopt(f"file:{disk}/*")
    files(agent, "b")
    drifted(agent, paths)
    agent.pact("rollback", "--all", "--dry-run")
    agent.pact("rollback", "--all")
    assert [agent.world.path(p).read_bytes()[:2] for p in paths] == [b"a0", b"a1", b"a2", b"a3"]


@pytest.mark.invariant("F93")
@pytest.mark.parametrize("kept", ["by another name", "by nobody"])
def test_what_gives_no_room_back_is_not_counted(agent: Agent, disk: str, kept: str) -> None:
    """Other names keep the old contents: then the third new one has no room. It is known before the first is
    touched."""
    paths = files(agent, "a")
    agent.adopt(f"file:{disk}/?")
    files(agent, "b")
    if kept == "by another name":
        for path in paths:
            agent.world.sh(f"ln {path} {path}.too")
    drifted(agent, paths)
    code = agent.pact("rollback", "--all", check=None)
    now = [agent.world.path(p).read_bytes()[:1] for p in paths]
    if kept == "by another name":
        assert code.code == 1 and "and the plan needs 4194304" in code.err + code.out
        assert now == [b"b"] * 4
    else:
        assert code.code == 0 and now == [b"a"] * 4


@pytest.mark.invariant("F93")
def test_what_is_kept_on_the_same_disk_counts(another: Callable[..., Agent]) -> None:
    """The store is where the files are: what is overwritten is kept before the first step, and takes its room."""
    probe = another()
    world = probe.world
    probe.stop()
    world.sh(f"mkdir -p {DISK}; mount -t tmpfs -o size=12m tmpfs {DISK}; mkdir -p {DISK}/files; chmod 755 {DISK}")
    agent = another(state={"dir": f"{DISK}/state"})
    try:
        paths = files(agent, "a", 2, MIB, f"{DISK}/files")
        agent.adopt(f"file:{DISK}/files/*")
        files(agent, "b", 2, MIB, f"{DISK}/files")
        drifted(agent, paths)
        room = int(world.sh(f"stat -f -c '%f' {DISK}").out) * int(world.sh(f"stat -f -c '%S' {DISK}").out)
        world.sh(f"head -c {room - 2 * MIB - MIB // 2} /dev/zero > {DISK}/filler")
        said = agent.pact("rollback", "--all", check=1)
        assert "its file system has room for" in said.err + said.out
        assert not agent.records("rollback_started")
        assert [agent.world.path(p).read_bytes()[:1] for p in paths] == [b"b"] * 2
        world.sh(f"rm {DISK}/filler")
        agent.pact("rollback", "--all")
        assert [agent.world.path(p).read_bytes()[:1] for p in paths] == [b"a"] * 2
    finally:
        agent.close()
        world.sh(f"umount {DISK}")


@pytest.mark.invariant("F93")
@pytest.mark.parametrize("fstype", ["ramfs", "tmpfs -o size=0"])
def test_a_file_system_that_does_not_say_how_large_it_is_has_room(agent: Agent, fstype: str) -> None:
    agent.world.sh(f"mkdir -p {DISK}; mount -t {fstype} none {DISK}")
    path = f"{DISK}/file"
    try:
        agent.world.path(path).write_text("declared\n")
        agent.adopt(f"file:{path}")
        agent.drift(path)
        agent.pact("rollback", "--all")
        assert agent.world.path(path).read_text() == "declared\n"
    finally:
        agent.clear()
        agent.world.sh(f"umount {DISK}")
