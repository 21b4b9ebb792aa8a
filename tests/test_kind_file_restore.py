"""Putting files back on a real file system: whole or not at all, and nothing that somebody just wrote is lost."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_kind_file_common import content, litter, name_of, restore, seen, snapshot

from pact._fast import syscalls
from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Unreadable
from pact.resources.base import Keep
from pact.resources.kinds.file import KIND, leased
from pact.resources.support import dress, replace

root = pytest.mark.root
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.mark.invariant("R5")
class TestRestoring:
    def test_content_comes_back_with_mode_and_owner_under_a_new_inode(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"declared")
        path.chmod(0o4750)
        if os.geteuid() == 0:
            os.chown(path, 12345, 54321)
            path.chmod(0o4750)
        attrs, blobs = snapshot(path)
        path.write_bytes(b"drifted")
        path.chmod(0o600)
        inode = path.stat().st_ino
        restore(path, attrs, blobs)
        assert seen(path) == attrs
        assert stat.S_IMODE(path.stat().st_mode) == 0o4750
        assert path.stat().st_ino != inode
        assert litter(tmp_path) == []

    def test_metadata_alone_is_mended_in_place(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"same")
        attrs, blobs = snapshot(path)
        path.chmod(0o777)
        inode = path.stat().st_ino
        restore(path, attrs, blobs)
        assert seen(path) == attrs
        assert path.stat().st_ino == inode

    def test_what_is_not_declared_stays_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"x")
        path.chmod(0o6711)
        attrs, blobs = content(b"declared")
        restore(path, attrs, blobs)
        assert path.read_bytes() == b"declared"
        assert stat.S_IMODE(path.stat().st_mode) == 0o6711

    def test_a_deleted_file_comes_back(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"x")
        attrs, blobs = snapshot(path)
        path.unlink()
        restore(path, attrs, blobs)
        assert seen(path) == attrs

    def test_a_file_that_must_be_absent_leaves(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"x")
        restore(path, None, {})
        restore(path, None, {})
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("now", ["file", "directory", "symlink", "absent"])
    @pytest.mark.parametrize("then", ["file", "directory", "symlink", "absent"])
    def test_any_type_turns_into_any_other_and_twice_is_the_same(self, now: str, then: str, tmp_path: Path) -> None:
        path = tmp_path / "x"
        file, blobs = content(b"content")
        targets: dict[str, Attrs | None] = {
            "file": {**file, "mode": "0640"},
            "directory": {"type": "directory", "mode": "0750"},
            "symlink": {"type": "symlink", "target": "some/where"},
            "absent": None,
        }
        before, target = targets[now], targets[then]
        if now == "file":
            path.write_bytes(b"other")
        elif now == "directory":
            path.mkdir(0o700)
        elif now == "symlink":
            path.symlink_to("else/where")
        del before
        for _ in range(2):
            restore(path, target, blobs)
            actual = KIND.observe(name_of(path))
            assert not isinstance(actual, Unreadable)
            assert KIND.distance_n(target, actual) == 0
        assert litter(tmp_path) == []

    def test_a_directory_that_is_not_empty_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "d"
        path.mkdir()
        (path / "precious").write_text("x")
        attrs, blobs = content(b"x")
        for target in (None, attrs, {"type": "symlink", "target": "a"}):
            with pytest.raises(RestoreError, match="not empty"):
                restore(path, target, blobs)
            step = Step(f"file:{name_of(path)}", target, seen(path))
            assert "not empty" in KIND.preflight(name_of(path), step, Keep(100)).refusal
        assert (path / "precious").read_text() == "x"
        assert litter(tmp_path) == []

    @root
    @needs_root
    def test_a_missing_parent_is_made(self, tmp_path: Path) -> None:
        attrs, blobs = content(b"x")
        restore(tmp_path / "gone" / "f", attrs, blobs)
        assert (tmp_path / "gone" / "f").read_bytes() == b"x"
        restore(tmp_path / "never" / "f", None, blobs)
        assert not (tmp_path / "never").exists()

    def test_a_parent_that_is_a_symbolic_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        attrs, blobs = content(b"x")
        with pytest.raises(RestoreError, match="symbolic link"):
            restore(tmp_path / "link" / "f", attrs, blobs)
        assert os.listdir(tmp_path / "real") == []

    def test_a_link_at_the_path_itself_is_replaced_not_followed(self, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        (tmp_path / "f").symlink_to("victim")
        attrs, blobs = content(b"declared")
        restore(tmp_path / "f", attrs, blobs)
        assert victim.read_text() == "precious"
        assert (tmp_path / "f").read_bytes() == b"declared"

    def test_content_that_was_not_kept_is_said(self, tmp_path: Path) -> None:
        attrs, _ = content(b"x")
        with pytest.raises(RestoreError, match="its content is not kept"):
            restore(tmp_path / "f", attrs, {})
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
    def test_an_unknown_owner_is_named_and_nothing_is_left(self, kind: str, tmp_path: Path) -> None:
        file, blobs = content(b"x")
        target = {"file": file, "directory": {"type": "directory"}, "symlink": {"type": "symlink", "target": "a"}}[kind]
        with pytest.raises(RestoreError, match=r"no such user or group here: .*nobody-at-all"):
            restore(tmp_path / "f", {**target, "owner": "nobody-at-all"}, blobs)
        assert litter(tmp_path) == []
        with pytest.raises(RestoreError, match="no such user or group"):
            restore(tmp_path / "f", {**target, "group": "nobody-at-all"}, blobs)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("present", ["file", "directory", "symlink"])
    @pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
    def test_what_cannot_be_made_does_not_take_away_what_is_there(
        self, kind: str, present: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "f"
        {"file": path.touch, "directory": path.mkdir, "symlink": lambda: path.symlink_to("b")}[present]()
        before = seen(path)
        file, blobs = content(b"x")
        target = {"file": file, "directory": {"type": "directory"}, "symlink": {"type": "symlink", "target": "a"}}[kind]
        with pytest.raises(RestoreError, match="no such user or group"):
            restore(path, {**target, "owner": "nobody-at-all"}, blobs)
        assert seen(path) == before
        assert os.listdir(tmp_path) == ["f"]
        restore(path, target, blobs)
        assert seen(path)["type"] == kind
        assert os.listdir(tmp_path) == ["f"]

    def test_a_directory_has_its_mode_and_owner_when_it_gets_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*args: Any, **kwargs: Any) -> None:
            raise OSError(95, "no such thing here")

        monkeypatch.setattr(dress, "_set_xattrs", fails)
        with pytest.raises(OSError, match="no such thing"):
            restore(tmp_path / "d", {"type": "directory", "mode": "0755"}, {})
        assert os.listdir(tmp_path) == []

    def test_other_names_of_the_same_file_keep_what_they_have(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        one.write_bytes(b"declared")
        attrs, blobs = snapshot(one)
        one.write_bytes(b"drifted")
        two.hardlink_to(one)
        restore(one, attrs, blobs)
        assert one.read_bytes() == b"declared"
        assert two.read_bytes() == b"drifted"

    def test_a_sparse_file_is_read_and_put_back_by_its_content(self, tmp_path: Path) -> None:
        path = tmp_path / "sparse"
        with path.open("wb") as f:
            f.truncate(300_000)
            f.seek(200_000)
            f.write(b"data")
        attrs, blobs = snapshot(path)
        assert attrs["size"] == 300_000
        path.write_bytes(b"")
        restore(path, attrs, blobs)
        assert seen(path) == attrs

    @pytest.mark.invariant("F20")
    @root
    @needs_root
    def test_a_file_that_something_is_mounted_on_is_refused_with_the_reason(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("below")
        (tmp_path / "b").write_text("above")
        subprocess.run(["mount", "--bind", tmp_path / "b", tmp_path / "a"], check=True)
        try:
            attrs, blobs = content(b"declared")
            for target in (attrs, None, {"type": "symlink", "target": "x"}):
                with pytest.raises(RestoreError, match="mounted on it"):
                    restore(tmp_path / "a", target, blobs)
            assert (tmp_path / "a").read_text() == "above"
            assert litter(tmp_path) == []
        finally:
            subprocess.run(["umount", tmp_path / "a"], check=True)

    @root
    @needs_root
    @pytest.mark.needs("chattr")
    def test_an_immutable_file_is_left_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_text("immutable")
        if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
            pytest.skip("this file system has no immutable files")
        try:
            attrs, blobs = content(b"declared")
            for target in (attrs, None, {"type": "symlink", "target": "x"}):
                with pytest.raises(PermissionError, match="immutable"):
                    restore(path, target, blobs)
            assert path.read_text() == "immutable"
            assert litter(tmp_path) == []
        finally:
            subprocess.run(["chattr", "-i", path], check=True)

    @root
    @needs_root
    def test_file_capabilities_come_back(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_text("x")
        capability = bytes.fromhex("0100000200200000000000000000000000000000")
        os.setxattr(path, "security.capability", capability)
        attrs, blobs = snapshot(path)
        path.write_text("y")
        os.chown(path, 12345, 0)
        restore(path, attrs, blobs)
        assert os.getxattr(path, "security.capability") == capability
        assert seen(path) == attrs


@pytest.mark.invariant("F5", "F8")
class TestLastMoment:
    def test_a_file_that_somebody_has_open_is_left(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"in use")
        attrs, blobs = content(b"declared")
        with path.open("rb"):
            for target in (attrs, None, {"type": "symlink", "target": "x"}):
                with pytest.raises(RestoreError, match="opened by somebody at the last moment"):
                    restore(path, target, blobs)
        assert path.read_bytes() == b"in use"
        assert litter(tmp_path) == []
        restore(path, attrs, blobs)
        assert path.read_bytes() == b"declared"

    def test_the_lease_knows_users_of_every_way(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"x" * 5000)
        raw = os.fsencode(path)
        assert leased(raw) is False
        fd = os.open(path, os.O_RDONLY)
        assert leased(raw) is True
        import mmap

        with mmap.mmap(fd, 0, prot=mmap.PROT_READ):
            os.close(fd)
            assert leased(raw) is True
        assert leased(raw) is False
        assert leased(raw + b"gone") is None

    def test_what_a_writer_wrote_between_is_not_lost(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thread rewrites the file after pact looked and before it exchanges."""
        path = tmp_path / "f"
        path.write_bytes(b"drifted")
        attrs, blobs = content(b"declared")
        exchange = replace._rename

        def slow(dirfd: int, old: bytes, new: bytes, flags: int) -> None:
            if new == b"f" and flags == syscalls.RENAME_EXCHANGE and not wrote:
                writer = threading.Thread(target=path.write_bytes, args=(b"new work",))
                writer.start()
                writer.join()
                wrote.append(True)
            exchange(dirfd, old, new, flags)

        wrote: list[bool] = []
        monkeypatch.setattr(replace, "_rename", slow)
        with pytest.raises(RestoreError, match="changed again at the last moment"):
            restore(path, attrs, blobs)
        assert wrote
        assert path.read_bytes() == b"new work"
        assert litter(tmp_path) == []

    def test_who_opens_it_at_the_very_last_moment_keeps_the_file_and_what_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"drifted")
        attrs, blobs = content(b"declared")
        exchange = replace._rename
        opened: list[Any] = []

        def slow(dirfd: int, old: bytes, new: bytes, flags: int) -> None:
            if not opened:
                opened.append(path.open("r+b"))  # after the lease was asked for
            exchange(dirfd, old, new, flags)

        monkeypatch.setattr(replace, "_rename", slow)
        with pytest.raises(RestoreError, match="opened by somebody at the last moment"):
            restore(path, attrs, blobs)
        opened[0].write(b"written")
        opened[0].close()
        assert path.read_bytes() == b"written"
        assert litter(tmp_path) == []

    def test_what_was_not_looked_at_is_not_removed_whatever_its_times_say(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"drifted")
        actual = seen(path)
        path.write_bytes(b"newwork")  # in the meantime; same size
        attrs, blobs = content(b"declared")
        for target in (attrs, None):
            with pytest.raises(RestoreError, match="changed again at the last moment"):
                restore(path, target, blobs, actual)
            assert path.read_bytes() == b"newwork"
        assert litter(tmp_path) == []

    def test_a_file_that_appears_between_is_not_overwritten(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "f"
        attrs, blobs = content(b"declared")
        exchange = replace._rename

        def slow(dirfd: int, old: bytes, new: bytes, flags: int) -> None:
            path.write_bytes(b"new work")
            exchange(dirfd, old, new, flags)

        monkeypatch.setattr(replace, "_rename", slow)
        with pytest.raises(RestoreError, match="appeared at the last moment"):
            restore(path, attrs, blobs)
        assert path.read_bytes() == b"new work"
        assert litter(tmp_path) == []


@pytest.mark.invariant("R4")
class TestPreflight:
    def saved(self, path: Path, target: Attrs | None, limit: int = 1000) -> tuple[str, dict[str, Any], Keep]:
        keep = Keep(limit)
        result = KIND.preflight(name_of(path), Step(f"file:{name_of(path)}", target, seen(path)), keep)
        return result.refusal, dict(result.save), keep

    def test_content_that_goes_is_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"precious")
        refusal, save, keep = self.saved(path, content(b"declared")[0])
        assert refusal == ""
        assert keep.blobs[save["sha256"]] == b"precious"
        assert save["attrs"] == seen(path)

    def test_content_that_stays_is_not_kept_again(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"same")
        _, save, keep = self.saved(path, {**content(b"same")[0], "mode": "0600"})
        assert "sha256" not in save
        assert not keep.blobs

    @pytest.mark.invariant("F19")
    def test_content_too_large_to_keep_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"x" * 2000)
        refusal, _, _ = self.saved(path, None)
        assert "2000 bytes are more than the 1000 that are kept; move it aside" in refusal

    def test_what_changes_while_it_is_read_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"one")
        step = Step(f"file:{name_of(path)}", None, seen(path))
        path.write_bytes(b"two")
        assert "changes while it is read" in KIND.preflight(name_of(path), step, Keep(100)).refusal

    def test_a_fifo_is_not_replaced(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "f")
        refusal, _, _ = self.saved(tmp_path / "f", None)
        assert "is a fifo now" in refusal


def restore_forever(path: str, target: Attrs, content: bytes, drifted: bytes) -> None:
    """For a child: drift and restore until it is killed."""
    file = Path(path)
    while True:
        with open(f"{path}.new", "wb") as f:
            f.write(drifted)
        os.rename(f"{path}.new", path)
        restore(file, target, {target["sha256"]: content})


@pytest.mark.invariant("R5", "R6")
def test_a_kill_at_any_moment_leaves_one_content_or_the_other_whole(tmp_path: Path) -> None:
    seed = int(os.environ.get("PACT_SEED", "1"))
    rng = random.Random(seed)
    path = tmp_path / "f"
    new, old = b"declared" * 20_000, b"drifted" * 30_000
    target = content(new)[0]
    context = multiprocessing.get_context("fork")
    for round_ in range(25):
        child = context.Process(target=restore_forever, args=(str(path), target, new, old))
        child.start()
        deadline = time.monotonic() + 5
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL, "the child itself failed"
        assert path.read_bytes() in (new, old), f"seed {seed}, round {round_}"
    restore(path, target, {target["sha256"]: new})
    assert path.read_bytes() == new


@pytest.mark.invariant("F5")
def test_the_agent_s_own_look_at_a_file_is_nobody_s_use_of_it(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    ours = path.open("rb")
    threading.Timer(0.05, ours.close).start()
    assert leased(os.fsencode(path)) is False, "it was waited for"
    with path.open("rb") as f:
        process = subprocess.Popen(["sleep", "60"], stdin=f)
    with process:
        assert leased(os.fsencode(path)) is True
        process.kill()


@pytest.mark.invariant("F5")
def test_who_opens_a_file_while_its_lease_stands_does_not_kill_the_agent(tmp_path: Path) -> None:
    """The kernel tells a leaseholder of an opener with a signal, whose default ends the process."""
    path = tmp_path / "f"
    path.write_bytes(b"declared")
    asking = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import os, sys\n"
                "from pact.resources.support import replace\n"
                "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
                "print('asks', flush=True)\n"
                "while not os.path.exists(sys.argv[1] + '.done'):\n"
                "    replace.somebody_has_open(fd)\n"
            ),
            str(path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert asking.stdout is not None and asking.stdout.readline() == "asks\n"
    met, until = 0, time.monotonic() + 60
    while met < 5 and time.monotonic() < until and asking.poll() is None:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        except BlockingIOError:  # it breaks the lease, and with it tells its holder
            met += 1
    (tmp_path / "f.done").touch()
    asking.communicate(timeout=30)
    assert (asking.returncode, met) == (0, 5)
