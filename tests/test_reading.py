"""How much is read of a file that somebody else can make as large as he likes, and for how long."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pact.model import Unreadable
from pact.resources import KINDS
from pact.resources.base import Keep
from pact.resources.kinds.file import LEASED
from pact.resources.support import reading
from pact.resources.support.dress import dress
from pact.resources.support.reading import CHANGING, CHUNK, Allowance, read_whole

ANN, BOB = 1234, 1235
FILE = KINDS["file"]
pytestmark = pytest.mark.invariant("S6")


class Clock:
    """Reading takes as long as it is said to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chunk_s: float) -> None:
        self.now_s, self.chunk_s, self.reads = 1000.0, chunk_s, 0
        monkeypatch.setattr(reading, "ALLOWANCE", Allowance())
        monkeypatch.setattr(reading.time, "monotonic", lambda: self.now_s)
        read = os.read

        def slow(fd: int, size: int) -> bytes:
            self.now_s += self.chunk_s
            self.reads += 1
            return read(fd, size)

        monkeypatch.setattr(reading.os, "read", slow)


def owned(path: Path, size: int, uid: int) -> Path:
    path.touch()
    os.truncate(path, size)
    os.chown(path, uid, uid)
    return path


def read(path: Path, keep: int = 0) -> tuple[bytes | None, str, int] | str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_whole(fd, os.fstat(fd), keep)
    finally:
        os.close(fd)


@pytest.fixture
def huge(tmp_path: Path) -> Iterator[Path]:
    """Nobody can read it to its end."""
    path = tmp_path / "huge"
    for size in (1 << 60, 1 << 43):
        try:
            yield owned(path, size, ANN)
            return
        except OSError:
            continue  # larger than files may be here


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
@pytest.mark.parametrize("keep", [0, CHUNK, 8 * CHUNK])
def test_a_whole_file_is_read(tmp_path: Path, size: int, keep: int) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    assert read(tmp_path / "f", keep) == (data if size <= keep else None, hashlib.sha256(data).hexdigest(), size)


def test_what_grows_while_it_is_read_is_changing_and_not_followed(tmp_path: Path) -> None:
    path = owned(tmp_path / "f", 2 * CHUNK, 0)
    fd = os.open(path, os.O_RDONLY)
    before = os.fstat(fd)
    os.truncate(path, 1 << 40)
    assert read_whole(fd, before, 0) == CHANGING
    os.close(fd)


def test_procfs_has_no_sizes_and_is_read(tmp_path: Path) -> None:
    found = read(Path("/proc/self/mountinfo"))
    assert not isinstance(found, str) and found[2] > 0


@pytest.mark.root
def test_who_makes_an_endless_file_spends_his_own_time_and_nobody_else_s(
    huge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 1.0)
    assert "too long to read" in str(read(huge)) and clock.reads <= reading.READING_EACH_S + 2
    reads = clock.reads
    assert "too long to read" in str(read(huge)) and clock.reads - reads <= 3, "nothing is left to him"
    for uid in (BOB, 0):
        assert not isinstance(read(owned(tmp_path / f"of{uid}", 5 * CHUNK, uid)), str)
    assert not isinstance(read(owned(tmp_path / "small", 100, ANN)), str), "what is small costs nothing"
    clock.now_s += reading.READING_PERIOD_S
    assert not isinstance(read(owned(tmp_path / "later", 5 * CHUNK, ANN)), str)


@pytest.mark.root
def test_many_users_together_have_less_than_each_for_himself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 1.0)
    began_s = clock.now_s
    for uid in range(2000, 2020):
        read(owned(tmp_path / str(uid), 1 << 40, uid))
    assert clock.now_s - began_s < 2 * reading.READING_ALL_S
    assert not isinstance(read(owned(tmp_path / "root", 50 * CHUNK, 0)), str)


@pytest.mark.root
def test_it_is_unreadable_with_its_reason_and_no_drift(huge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, 1.0)
    seen = FILE.observe(str(huge), Keep(1 << 20))
    assert isinstance(seen, Unreadable) and "too long to read" in seen.why


def test_the_list_of_users_does_not_grow_without_end() -> None:
    allowance = Allowance()
    for uid in range(1, 5 * reading.OWNERS_MAX):
        allowance._spent[uid] = 1.0, -1e6
    allowance.spend(7, 1.0)
    assert len(allowance._spent) <= 2


@pytest.mark.invariant("S6")
def test_a_hundred_megabytes_of_attributes_are_not_read() -> None:
    with TemporaryDirectory(dir="/dev/shm", prefix="attributes-") as top:
        path = Path(top, "loaded")
        path.touch()
        try:
            for i in range(40):
                os.setxattr(path, f"user.a{i}", b"x" * 60_000)
        except OSError as exc:
            pytest.skip(f"no such attributes on this kernel's tmpfs: {exc.strerror}")
        seen = FILE.observe(str(path))
        assert isinstance(seen, Unreadable) and "attributes" in seen.why
        # It is dressed all the same: what is there is taken off by name, one after the other.
        target = {"type": "file", "mode": "0640", "xattrs": {"user.one": "MQ=="}}
        with open(path, "rb") as f:
            dress(f.fileno(), target, os.fstat(f.fileno()))
        assert os.listxattr(path) == ["user.one"] and FILE.observe(str(path))["xattrs"] == target["xattrs"]  # type: ignore[index]


@pytest.mark.invariant("D1")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_lease_of_its_owner_holds_nobody_up_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "leased"
    path.write_text("x")
    tmp_path.chmod(0o755)
    os.chown(path, 2001, 2001)
    says, asks = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:  # only who owns a file may take a lease on it
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fd = os.open(path, os.O_RDWR)
        os.setgid(2001)
        os.setuid(2001)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.write(says[1], b"x")
        os.read(asks[0], 1)
        os._exit(0)
    try:
        assert os.read(says[0], 1) == b"x"
        assert FILE.observe(str(path)) == Unreadable(LEASED)
    finally:
        os.write(asks[1], b"x")
        os.waitpid(pid, 0)
        for fd in (*says, *asks):
            os.close(fd)
    seen = FILE.observe(str(path))
    assert isinstance(seen, dict) and seen["size"] == 1
