"""Files that are written before their turn, where something has gone meanwhile: nothing waits for ever, nothing stays."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pact._fast import syscalls
from pact.agent import acting
from pact.agent.acting import MOVED, act
from pact.core.plan import Step, ordered
from pact.resources import KINDS
from pact.resources.base import Keep
from pact.resources.kinds.file import KIND
from pact.resources.support import ahead
from pact.resources.support.flags import set_flags
from pact.resources.support.replace import lstat
from tests.test_ahead import plan

pytestmark = pytest.mark.root


def test_a_thread_whose_disk_is_gone_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even when what puts things in order after that fails, too: whoever waited for it would wait for ever."""
    steps, blobs = plan(tmp_path, 2)
    results = dict[str, str]()

    def there(call: Callable[..., object], error: Exception) -> Callable[..., object]:
        """It breaks in the thread, and only there."""

        def said(*args: object) -> object:
            if threading.current_thread().name == "pact-ahead":
                raise error
            return call(*args)

        return said

    monkeypatch.setattr(ahead, "lstat", there(lstat, OSError(errno.EIO, os.strerror(errno.EIO))))
    monkeypatch.setattr(syscalls, "unlink_unchanged", there(syscalls.unlink_unchanged, ZeroDivisionError("nobody")))
    monkeypatch.setattr(acting, "FILES_MAX", 10)
    monkeypatch.setattr("pact.resources.support.ahead.FILES_MAX", 10)
    thread = threading.Thread(target=lambda: results.update(act(steps, blobs)), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert set(results.values()) == {"", "input/output error"}
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.invariant("R5")
def test_a_file_system_that_does_not_say_how_much_room_it_has_ends_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server of a mount has gone since its row was written: the others' files are restored all the same."""
    monkeypatch.setattr(acting, "FILES_MAX", 10)
    monkeypatch.setattr("pact.resources.support.ahead.FILES_MAX", 10)
    steps, blobs = plan(tmp_path, 2)

    def gone(_: int) -> os.statvfs_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "fstatvfs", gone)
    assert act(steps, blobs) == {s.id: "" for s in steps}
    assert not list(tmp_path.glob("d*/.pact-*"))


@pytest.mark.invariant("R5")
def test_nothing_that_was_written_ahead_stays_in_a_directory_that_is_sealed(tmp_path: Path) -> None:
    """One file was changed since, and keeps its content: the new one that was written for it goes before nobody, not
    even root, can remove it."""
    steps, blobs = plan(tmp_path, 1)
    top = tmp_path / "d000"
    seen = KIND.observe(str(top))
    assert isinstance(seen, dict)
    (top / "f039").write_text("somebody's work\n")
    try:
        results = act((Step(f"file:{top}", {**seen, "flags": "i"}, seen), *steps), blobs)
        assert [s for s, why in results.items() if why] == [steps[-1].id] and results[steps[-1].id] == MOVED
        assert KIND.observe(str(top)) == {**seen, "flags": "i"} and not list(top.glob(".pact-*"))
    finally:
        fd = os.open(top, os.O_RDONLY)
        set_flags(fd, "")
        os.close(fd)


@pytest.mark.invariant("R1", "R5")
def test_a_mount_below_which_a_file_was_just_removed_is_not_held(tmp_path: Path) -> None:
    """A plan takes things away from the inside out; the directory of a file stays open until its names are durable."""
    top = tmp_path / "mount"
    (top / "d").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", top], check=True)
    try:
        (top / "d").mkdir()
        path = top / "d" / "f"
        path.write_text("drifted\n")
        keep = Keep(1 << 20)
        seen, mounted = KIND.observe(str(path), keep), KINDS["mount"].observe(str(top))
        assert isinstance(seen, dict) and isinstance(mounted, dict)
        there = [Step(f"mount:{top}", None, mounted), Step(f"file:{path}", None, seen)]
        steps = ordered(there, lambda resource: KINDS[resource.partition(":")[0]])
        assert act(steps, keep.blobs.get) == {f"file:{path}": "", f"mount:{top}": ""}
        assert not top.is_mount()
    finally:
        subprocess.run(["umount", top], check=False, capture_output=True)
