"""Files that are written before their turn: every one is durable before it gets its name, or is not said to be."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pact._fast import syscalls
from pact.agent import acting
from pact.agent.acting import MOVED, act
from pact.core.plan import Step
from pact.model import Attrs, Unreadable, encode_name
from pact.resources.base import Keep
from pact.resources.kinds.file import KIND
from pact.resources.support.ahead import DIRECTORIES_MAX, Ahead
from pact.resources.support.replace import CHANGED

COUNT = 40
pytestmark = pytest.mark.root


def plan(top: Path, directories: int, size: int = 0) -> tuple[tuple[Step, ...], Callable[[str], bytes | None]]:
    """Files that were declared so, and have drifted since, over so many directories."""
    keep, targets, paths = Keep(1 << 20), list[Attrs](), list[Path]()
    for n in range(COUNT):
        path = top / f"d{n % directories:03}" / f"f{n:03}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"declared {n}\n".ljust(size))
        seen = KIND.observe(encode_name(bytes(path)), keep)
        assert isinstance(seen, dict)
        targets.append(seen)
        paths.append(path)
    steps = []
    for path, target in zip(paths, targets, strict=True):
        path.write_text("drifted\n".ljust(size))
        actual = KIND.observe(encode_name(bytes(path)))
        assert not isinstance(actual, Unreadable)
        steps.append(Step(f"file:{encode_name(bytes(path))}", target, actual))
    steps.sort(key=lambda s: s.id)
    return tuple(steps), keep.blobs.get


def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of ten files each."""
    monkeypatch.setattr(acting, "FILES_MAX", 10)
    monkeypatch.setattr("pact.resources.support.ahead.FILES_MAX", 10)


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, os.stat_result], bool]) -> set[int]:
    """The inodes that fsync has made durable; it fails for those of which ``fails`` says so."""
    real, durable, calls = os.fsync, set[int](), [0]

    def fsync(fd: int) -> None:
        st = os.fstat(fd)
        calls[0] += 1
        if fails(calls[0], st):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)
        durable.add(st.st_ino)

    def make_durable(dirfd: int, names: tuple[bytes, ...]) -> list[int]:
        """As the kernel, but by the fsync above."""
        codes = []
        for name in names:
            fd = os.open(name, os.O_RDONLY, dir_fd=dirfd)
            try:
                fsync(fd)
            except OSError as exc:
                codes.append(exc.errno or 0)
            else:
                codes.append(0)
            finally:
                os.close(fd)
        return codes

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(syscalls, "make_durable", make_durable)
    return durable


@pytest.mark.invariant("R5")
@pytest.mark.parametrize("at", [1, 3, COUNT])
def test_a_file_whose_sync_failed_is_written_again_and_no_other_goes_without(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, blobs = plan(tmp_path, 1)
    durable = failing(monkeypatch, lambda call, _: call == at)
    assert act(steps, blobs) == {s.id: "" for s in steps}
    for path in tmp_path.glob("d*/f*"):
        assert path.read_text().startswith("declared") and path.stat().st_ino in durable, path
    assert not list(tmp_path.glob("d*/.pact-*"))


@pytest.mark.invariant("R5")
def test_a_disk_that_makes_no_file_durable_restores_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, blobs = plan(tmp_path, 2)
    failing(monkeypatch, lambda _, st: stat.S_ISREG(st.st_mode))
    results = act(steps, blobs)
    assert set(results.values()) == {"input/output error"}
    assert {p.read_text() for p in tmp_path.glob("d*/f*")} == {"drifted\n"} and not list(tmp_path.glob("d*/.pact-*"))


@pytest.mark.invariant("R5")
def test_what_lies_in_a_directory_that_is_not_durable_is_not_said_to_be_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, blobs = plan(tmp_path, 20)
    bad = (tmp_path / "d004").stat().st_ino
    failing(monkeypatch, lambda _, st: st.st_ino == bad)
    results = act(steps, blobs)
    wrong = {s.rpartition("/")[0].rpartition("/")[2] for s, why in results.items() if why}
    assert wrong == {"d004"} and all("durable" in why for why in results.values() if why)


@pytest.mark.invariant("R5")
def test_few_directories_are_open_at_once_whatever_becomes_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes one of the files in the middle: what was written for it is given up, and holds nothing up."""
    steps, blobs = plan(tmp_path, COUNT)
    real, most, done = acting._restore, [0], [0]

    def restore(step: Step, *args: object, **more: object) -> str:
        if done[0] == 2:
            Path(steps[4].id.removeprefix("file:")).write_text("new work\n")
        done[0] += 1
        out = real(step, *args, **more)  # type: ignore[arg-type]
        most[0] = max(most[0], len(os.listdir("/proc/self/fd")))
        return out

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(acting, "_restore", restore)
    results = act(steps, blobs)
    assert results[steps[4].id] == MOVED and list(results.values()).count("") == COUNT - 1
    most_open = 3 * DIRECTORIES_MAX + 4
    assert most[0] - before <= most_open, "of the row under way, of those that come, and of what is not durable"
    assert len(os.listdir("/proc/self/fd")) == before and not list(tmp_path.glob("d*/.pact-*"))


@pytest.mark.invariant("R5")
def test_one_place_under_two_paths_is_written_ahead_once_for_the_first_of_them(tmp_path: Path) -> None:
    """As below a bind mount: the second path names the same directory. Here both steps name one path."""
    (first, second, *_), blobs = plan(tmp_path, 1)
    path = tmp_path / "d000" / "f000"
    assert first.target is not None and isinstance(second.target, dict)
    ahead = Ahead()
    dirfd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ahead.begin([first, Step(first.id, second.target, first.actual)], blobs)
        assert ahead.turn() == 2
        fresh = ahead.take(dirfd, b"f000", path.stat())
        assert fresh is not None
        assert (path.parent / os.fsdecode(fresh)).read_text() == "declared 0\n"
        os.unlink(fresh, dir_fd=dirfd)
        ahead.finish()
        assert len(os.listdir(path.parent)) == COUNT, "no second new file is left beside it"
    finally:
        os.close(dirfd)


@pytest.mark.invariant("R5")
@pytest.mark.parametrize("written", [1, 12, 25])
def test_a_row_that_is_written_while_the_one_before_is_put_in_place_holds_no_surprise(
    written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes a file of the row under way, of the one that comes, and of one that nobody has begun."""
    short_rows(monkeypatch)
    steps, blobs = plan(tmp_path, 3)
    assert len(steps) > 30
    durable = failing(monkeypatch, lambda call, _: False)
    real, done, busy = acting._restore, [0], list[int]()

    def restore(step: Step, *args: object, **more: object) -> str:
        done[0] += 1
        busy.append(sum(t.name == "pact-ahead" for t in threading.enumerate()))
        if done[0] == 1:
            Path(steps[written].id.removeprefix("file:")).write_text("new work\n")
        return real(step, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(acting, "_restore", restore)
    results = act(steps, blobs)
    assert results[steps[written].id] == MOVED and list(results.values()).count("") == len(steps) - 1
    assert max(busy) <= 2, "one makes new files durable, one removes old ones"
    for step in steps:
        path = Path(step.id.removeprefix("file:"))
        assert path.read_text() == "new work\n" if step is steps[written] else path.stat().st_ino in durable
    assert not list(tmp_path.glob("d*/.pact-*")) and not [t for t in threading.enumerate() if t.name == "pact-ahead"]


def test_without_a_thread_all_is_done_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there can be no more of them (``TasksMax``)."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    steps, blobs = plan(tmp_path, 2)
    durable = failing(monkeypatch, lambda *_: False)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert act(steps, blobs) == {s.id: "" for s in steps}
    assert all(p.stat().st_ino in durable for p in tmp_path.glob("d*/f*")) and not list(tmp_path.glob("d*/.pact-*"))


@pytest.mark.parametrize("in_restore", [True, False])
def test_what_nobody_expected_leaves_nothing_behind(
    in_restore: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one step it costs that step; between steps it ends the plan, and what was written ahead goes with it."""
    steps, blobs = plan(tmp_path, 2)
    before = len(os.listdir("/proc/self/fd"))
    real = KIND.restore_among

    def restore(name: str, step: Step, *args: object) -> None:
        if step is steps[3]:
            raise ZeroDivisionError("nobody expected it")
        real(name, step, *args)  # type: ignore[arg-type]

    if in_restore:
        monkeypatch.setattr(KIND, "restore_among", restore)
        results = act(steps, blobs)
        assert [s for s, why in results.items() if why] == [steps[3].id]
    else:
        monkeypatch.setattr(acting, "needs", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            act(steps, blobs)
    assert len(os.listdir("/proc/self/fd")) == before and not list(tmp_path.glob("d*/.pact-*"))


def writing(monkeypatch: pytest.MonkeyPatch, at: Step) -> None:
    """Somebody writes the old file of this step after it was set aside: as a client of an NFS server does, which needs
    no name and no open file here."""
    real = Ahead.removes

    def removes(self: Ahead, dirfd: int, aside: bytes, leaf: bytes, st: os.stat_result, resource: str) -> bool:
        taken = real(self, dirfd, aside, leaf, st, resource)
        assert taken
        if resource == at.id:
            fd = os.open(aside, os.O_WRONLY | os.O_TRUNC, dir_fd=dirfd)
            os.write(fd, b"new work\n")
            os.close(fd)
        return taken

    monkeypatch.setattr(Ahead, "removes", removes)


@pytest.mark.invariant("R4")
@pytest.mark.parametrize("at", [0, 7, 25, COUNT - 1])
def test_an_old_file_that_is_written_before_it_is_removed_gets_its_name_back(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_rows(monkeypatch)
    steps, blobs = plan(tmp_path, 3)
    before = len(os.listdir("/proc/self/fd"))
    writing(monkeypatch, steps[at])
    touched = set[str]()
    results = act(steps, blobs, touched=touched)
    assert results == {s.id: CHANGED if s is steps[at] else "" for s in steps}
    assert touched == {s.id for s in steps}, "it is not as it was"
    for step in steps:
        path = Path(step.id.removeprefix("file:"))
        assert path.read_text() == "new work\n" if step is steps[at] else path.read_text().startswith("declared")
    assert not list(tmp_path.glob("d*/.pact-*")) and len(os.listdir("/proc/self/fd")) == before


@pytest.mark.invariant("R4")
@pytest.mark.parametrize("how", ["written", "replaced"])
def test_who_works_on_the_new_file_keeps_his_work_when_the_old_one_comes_back(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file has had its name for a while when it is noticed that the old one has changed."""
    steps, blobs = plan(tmp_path, 1)
    path = Path(steps[7].id.removeprefix("file:"))
    writing(monkeypatch, steps[7])
    writes = Ahead.removes

    def removes(self: Ahead, dirfd: int, aside: bytes, leaf: bytes, st: os.stat_result, resource: str) -> bool:
        taken = writes(self, dirfd, aside, leaf, st, resource)
        if resource == steps[7].id:
            if how == "replaced":
                path.unlink()
            path.write_text("his work\n")
        return taken

    monkeypatch.setattr(Ahead, "removes", removes)
    results = act(steps, blobs)
    assert [s for s, why in results.items() if why] == [steps[7].id]
    kept = list(path.parent.glob(f"{path.name}.kept*"))
    assert path.read_text() == "his work\n" and [p.read_text() for p in kept] == ["new work\n"]
    assert kept[0].name in results[steps[7].id]


@pytest.mark.invariant("R1")
def test_what_needs_a_file_waits_until_its_old_one_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, blobs = plan(tmp_path, 1)
    last = replace(steps[-1], requires=(steps[3].id,))
    writing(monkeypatch, steps[3])
    results = act((*steps[:-1], last), blobs)
    assert results[last.id] == f"needs {steps[3].id}, which failed"
    assert [s for s, why in results.items() if why] == [steps[3].id, last.id]


@pytest.mark.invariant("R4")
def test_two_names_of_one_file_are_both_restored_and_neither_counts_as_changed(tmp_path: Path) -> None:
    """Taking the one away moves the status of the other."""
    steps, blobs = plan(tmp_path, 1)
    paths = [Path(s.id.removeprefix("file:")) for s in steps]
    for n in range(0, COUNT, 4):
        paths[n + 1].unlink()
        paths[n + 1].hardlink_to(paths[n])
    assert act(steps, blobs) == {s.id: "" for s in steps}
    assert all(p.read_text().startswith("declared") for p in paths) and not list(tmp_path.glob("d*/.pact-*"))


@pytest.mark.invariant("R5")
def test_old_files_that_take_much_room_are_removed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may have no room for the next new ones otherwise."""
    monkeypatch.setattr("pact.resources.support.ahead.BYTES_MAX", 5 * len("drifted\n"))
    steps, blobs = plan(tmp_path, 1)
    real, took = Ahead.removes, list[bool]()

    def removes(self: Ahead, *args: object) -> bool:
        took.append(real(self, *args))  # type: ignore[arg-type]
        return took[-1]

    monkeypatch.setattr(Ahead, "removes", removes)
    assert act(steps, blobs) == {s.id: "" for s in steps}
    assert len(took) == COUNT and took[0] and not all(took)
    assert not list(tmp_path.glob("d*/.pact-*"))


@pytest.mark.invariant("R5")
@pytest.mark.parametrize("free_kib", [96, 512, 704, 1536])
def test_a_disk_with_room_for_one_new_file_has_room_for_the_plan(
    free_kib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written ahead, and what waits to be removed, gives its room to the step whose turn it is."""
    short_rows(monkeypatch)
    size_kib = COUNT * 64 + free_kib
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", tmp_path], check=True)
    try:
        steps, blobs = plan(tmp_path, 1, 64 << 10)
        assert act(steps, blobs) == {s.id: "" for s in steps}
        assert all(p.read_text().startswith("declared") for p in tmp_path.glob("d*/f*"))
        assert not list(tmp_path.glob("d*/.pact-*"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.invariant("R5")
def test_a_disk_with_little_room_has_one_row_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others on the node need its room, too: where there is plenty, all rows of a plan are begun at once."""
    short_rows(monkeypatch)
    real = acting._restore
    for size, most in (("8m", 20), ("1g", COUNT)):
        top = tmp_path / size
        top.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", top], check=True)
        try:
            steps, blobs = plan(top, 1)
            seen = list[int]()

            def restore(step: Step, *args: object, top: Path = top, seen: list[int] = seen, **more: object) -> str:
                seen.append(len(list(top.glob("d*/.pact-*"))))
                return real(step, *args, **more)  # type: ignore[arg-type]

            monkeypatch.setattr(acting, "_restore", restore)
            assert act(steps, blobs) == {s.id: "" for s in steps}
            assert most // 2 < seen[0] <= most, (size, seen)
        finally:
            subprocess.run(["umount", top], check=True)


@pytest.mark.parametrize("call", ["make_durable", "unlink_unchanged"])
def test_what_nobody_expected_in_a_thread_holds_nothing_up(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """New files are written again; of old ones it is said that they are still there."""
    short_rows(monkeypatch)
    steps, blobs = plan(tmp_path, 2)
    real, calls = getattr(syscalls, call), [0]

    def breaks(*args: object) -> object:
        calls[0] += 1
        if calls[0] == 1:
            raise ZeroDivisionError("nobody expected it")
        return real(*args)

    monkeypatch.setattr(syscalls, call, breaks)
    results = act(steps, blobs)
    failed = {s for s, why in results.items() if why}
    left = list(tmp_path.glob("d*/.pact-*"))
    assert len(failed) == len(left) and bool(failed) == (call == "unlink_unchanged")
    assert all("input/output" in results[s] for s in failed)
    assert all(p.read_text().startswith("declared") for p in tmp_path.glob("d*/f*"))
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.invariant("R5")
@pytest.mark.parametrize("at", [3, 25])
def test_attributes_that_came_after_it_was_written_are_not_lost(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody declared them: the new file has those that the old one has when its turn comes."""
    short_rows(monkeypatch)
    steps, blobs = plan(tmp_path, 1)
    bare = {k: v for k, v in (steps[at].target or {}).items() if k != "xattrs"}
    steps = tuple(replace(s, target=bare) if s is steps[at] else s for s in steps)
    path = steps[at].id.removeprefix("file:")
    real = acting._restore

    def restore(step: Step, *args: object, **more: object) -> str:
        if step is steps[0]:
            os.setxattr(path, "user.note", b"for the night shift")
            step_now = KIND.observe(path)
            assert isinstance(step_now, dict) and step_now["xattrs"]
        if step is steps[at]:  # it was decided about as it is now
            step = replace(step, actual=KIND.observe(path))  # type: ignore[arg-type]
        return real(step, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(acting, "_restore", restore)
    assert act(steps, blobs) == {s.id: "" for s in steps}
    assert os.getxattr(path, "user.note") == b"for the night shift"


def test_a_directory_that_is_moved_away_keeps_nothing_that_was_written_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, blobs = plan(tmp_path, 2)
    real = acting._restore

    def restore(step: Step, *args: object, **more: object) -> str:
        if step is steps[0]:
            (tmp_path / "d001").rename(tmp_path / "elsewhere")
        return real(step, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(acting, "_restore", restore)
    results = act(steps, blobs)
    assert [s.id for s in steps if results[s.id]] == [s.id for s in steps if "/d001/" in s.id]
    assert not list(tmp_path.rglob(".pact-*"))


def test_a_row_that_could_not_be_begun_ends_the_plan_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, blobs = plan(tmp_path, 2)
    monkeypatch.setattr(Ahead, "_begin", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        act(steps, blobs)
    assert not [t for t in threading.enumerate() if t.name == "pact-ahead"]


@pytest.mark.parametrize("directories", [1, 3, COUNT])
def test_rows_are_as_long_as_they_may_be(directories: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are begun at once, and whether they share directories: a row of few files costs as much as one of
    many."""
    short_rows(monkeypatch)
    rows, real = list[int](), Ahead.turn
    monkeypatch.setattr(Ahead, "turn", lambda self: rows.append(real(self)) or rows[-1])
    steps, blobs = plan(tmp_path, directories)
    assert act(steps, blobs) == {s.id: "" for s in steps}
    full = 10 if directories < DIRECTORIES_MAX else DIRECTORIES_MAX
    assert [n for n in rows if n] == [full] * (COUNT // full)
