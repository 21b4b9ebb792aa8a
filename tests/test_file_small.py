"""A look at a small regular file in one turn sees the same as a look step by step, and opens nothing else."""

import os
import random
import signal
import stat
import time
from pathlib import Path

import pytest

from pact._fast import syscalls
from pact.model import Observation
from pact.resources.shapes import Keep
from pact.resources.support import file_look
from pact.resources.support.flags import set_flags
from pact.resources.support.reading import SMALL
from pact.resources.support.replace import somebody_has_open


def looked(top: Path, leaf: str, *, small: bool, keep: Keep | None = None) -> tuple[Observation, dict[str, bytes]]:
    dirfd, signed = os.open(top, os.O_PATH | os.O_DIRECTORY), dict[str, bytes]()
    try:
        with pytest.MonkeyPatch.context() as patch:
            if not small:
                patch.setattr(syscalls, "look_small", lambda *_: None)
            return file_look.look_at(leaf, dirfd, leaf.encode(), keep, signed), signed
    finally:
        os.close(dirfd)


def made(top: Path, rng: random.Random) -> list[str]:
    """Files of every type, size, owner, mode, attribute and flag that there may be."""
    leaves = []
    for n in range(200):
        path = top / f"f{n}"
        size = rng.choice([0, 1, 13, 4096, SMALL - 1, SMALL, SMALL + 1])
        path.write_bytes(rng.randbytes(size))
        path.chmod(rng.choice([0, 0o600, 0o644, 0o4755, 0o7777]))
        os.chown(path, rng.choice([0, 1, 54321]), rng.choice([0, 1, 54321]))
        for count in range(rng.choice([0, 0, 0, 1, 2, 8, 9])):
            os.setxattr(
                path, f"user.note{rng.randrange(100)}", rng.randbytes(rng.choice([0, 1, 200, 300]) // (count + 1))
            )
        if rng.random() < 0.1:
            os.setxattr(path, rng.choice(["user.\xe4", "security.selinux", "trusted.overlay.x"]), b"label\0")
        os.utime(path, ns=(rng.randrange(1 << 60), rng.randrange(1 << 60)))
        leaves.append(path.name)
    (top / "directory").mkdir()
    (top / "link").symlink_to("f0")
    os.mkfifo(top / "fifo")
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return [*leaves, "directory", "link", "fifo", "null"]


@pytest.mark.skipif(os.geteuid() != 0, reason="files of other users, and devices, are made by root")
def test_one_turn_sees_what_many_see(tmp_path: Path) -> None:
    for leaf in made(tmp_path, random.Random(7)):
        kept, alike = Keep(SMALL), Keep(SMALL)
        seen, signed = looked(tmp_path, leaf, small=True, keep=kept)
        assert (seen, signed) == looked(tmp_path, leaf, small=False, keep=alike), leaf
        assert (kept.blobs, kept.known, kept.unkept) == (alike.blobs, alike.known, alike.unkept), leaf


@pytest.mark.parametrize("first", [2047, 2048, 2049])
@pytest.mark.parametrize("second", [0, 1, 200])
def test_attributes_that_just_fill_their_room_are_seen_as_they_are(first: int, second: int, tmp_path: Path) -> None:
    """A file's owner chooses their lengths. Asked with no room left, the kernel says a length and writes nothing."""
    path = tmp_path / "f"
    path.write_bytes(b"declared")
    os.setxattr(path, "user.a", b"A" * first)
    os.setxattr(path, "user.b", b"B" * second)
    assert looked(tmp_path, "f", small=True) == looked(tmp_path, "f", small=False)


@pytest.mark.parametrize("last", [240, 241, 242, 243, 244, 245, 246, 247])
def test_names_that_just_fill_their_room_are_seen_as_they_are(last: int, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"declared")
    for name in ("user." + "a" * 250, "user." + "b" * last):
        os.setxattr(path, name, b"value")
    assert looked(tmp_path, "f", small=True) == looked(tmp_path, "f", small=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="root sets the flags of files")
@pytest.mark.parametrize("letters", ["i", "a", "ai"])
def test_flags_are_seen_in_one_turn(letters: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"declared")
    fd = os.open(path, os.O_RDONLY)
    try:
        set_flags(fd, letters)
        seen, _ = looked(tmp_path, "f", small=True)
        assert isinstance(seen, dict) and seen["flags"] == letters
    finally:
        set_flags(fd, "")
        os.close(fd)


def test_only_a_small_regular_file_is_read_in_one_turn(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").write_bytes(b"x" * 10)
    (tmp_path / "empty").touch()
    dirfd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    before = len(os.listdir("/proc/self/fd"))
    try:
        for leaf in (b"fifo", b"link", b"empty", b"absent", b"."):
            assert syscalls.look_small(dirfd, leaf, SMALL) is None
        assert syscalls.look_small(dirfd, b"file", 9) is None
        found = syscalls.look_small(dirfd, b"file", 10)
        assert found is not None and found[3] == b"x" * 10 and found[5] and found[7] == []
        os.setxattr(tmp_path / "file", "security.selinux", b"system_u:object_r:etc_t:s0\0")
        labelled = syscalls.look_small(dirfd, b"file", 10)
        assert labelled is not None and labelled[7] == [(b"security.selinux", b"system_u:object_r:etc_t:s0\0")]
        for leaf in (b"fifo", b"."):
            with pytest.raises(OSError, match="Invalid argument"):
                syscalls.open_regular(dirfd, leaf)
        with pytest.raises(OSError, match=r"Too many levels|Invalid argument"):
            syscalls.open_regular(dirfd, b"link")
        with pytest.raises(FileNotFoundError):
            syscalls.open_regular(dirfd, b"absent")
    finally:
        os.close(dirfd)
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_file_that_grows_while_it_is_read_is_looked_at_step_by_step(tmp_path: Path) -> None:
    """Its size is what it was when it was opened; more than that is never taken for its content."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100)
    child = os.fork()
    if child == 0:
        fd = os.open(path, os.O_WRONLY)
        while True:
            os.ftruncate(fd, 100)
            os.ftruncate(fd, 200)
    dirfd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        sizes = set()
        for _ in range(20_000):
            found = syscalls.look_small(dirfd, b"f", SMALL)
            if found is not None:
                content, status = found[3], found[6]
                assert len(content) <= status[2]
                sizes.add(len(content))
        assert sizes <= {100, 200}
        assert sizes
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(dirfd)


def test_an_open_file_is_told_from_one_that_nobody_has_open(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    child = os.fork()
    if child == 0:
        os.close(fd)
        os.open(path, os.O_RDONLY)
        (tmp_path / "opened").touch()
        signal.pause()
    try:
        while not (tmp_path / "opened").exists():
            time.sleep(0.001)
        assert somebody_has_open(fd) is True
        os.kill(child, 9)
        os.waitpid(child, 0)
        child = 0
        assert somebody_has_open(fd) is False
    finally:
        os.close(fd)
        if child:
            os.kill(child, 9)
            os.waitpid(child, 0)
