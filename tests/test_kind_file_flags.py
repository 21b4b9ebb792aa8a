"""Immutable and append-only files, hard links, and directories that are missing on the way: on real file systems."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pact.agent import acting, worker
from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Unreadable, encode_name
from pact.resources.base import Keep
from pact.resources.kinds.file import KIND
from pact.resources.support import replace, unsealed
from pact.resources.support.flags import get_flags, parse_flags, set_flags_at
from pact.resources.support.loose import LooseEnds
from pact.resources.support.replace import restore_file

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory; flags that a test leaves are cleared."""
    probe = tmp_path / "probe"
    probe.touch()
    try:
        chattr(probe, "i")
    except OSError:
        pytest.skip("this file system has no flags")
    yield tmp_path
    for path in [tmp_path, *tmp_path.rglob("*")]:
        if not path.is_symlink():
            chattr(path, "")


def chattr(path: Path, letters: str) -> None:
    set_flags_at(os.open("/", os.O_PATH), bytes(path), letters)


def lsattr(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return get_flags(fd)
    finally:
        os.close(fd)


def rid(path: Path) -> str:
    return f"file:{encode_name(bytes(path))}"


def seen(path: Path, keep: Keep | None = None) -> Attrs | None:
    found = worker.observe(rid(path), keep)
    assert not isinstance(found, Unreadable)
    return found


def probed(*steps: Step) -> tuple[list[str], list[str]]:
    _, _, refusals, _, notes = worker.probe(steps, Keep(1 << 20), consumers=False, force=False)
    return refusals, notes


def test_flags_are_attributes_where_they_are_set(place: Path) -> None:
    (place / "a").touch()
    assert "flags" not in (seen(place / "a") or {})
    for letters in ("i", "a", "ai"):
        chattr(place / "a", letters)
        assert (seen(place / "a") or {})["flags"] == letters
        chattr(place / "a", "")
    chattr(place, "a")
    assert (seen(place) or {})["flags"] == "a"


def test_flags_that_are_named_are_compared() -> None:
    base = {"type": "file", "mode": "0644"}
    assert KIND.distance_n({**base, "flags": "i"}, base)
    assert KIND.distance_n({**base, "flags": ""}, {**base, "flags": "i"})
    assert not KIND.distance_n(base, {**base, "flags": "i"})
    assert not KIND.distance_n({**base, "flags": ""}, base)


def test_flags_in_toml_are_letters_and_come_back_in_the_export() -> None:
    entry = KIND.parse("/x", {"content": "x", "flags": "ia"}, "/")
    assert entry.declared.attrs is not None
    assert entry.declared.attrs["flags"] == parse_flags("ai") == "ai"
    assert KIND.export("/x", entry.declared, entry.blobs.get)["flags"] == "ai"
    for wrong in ("x", "ii", 1, ["i"]):
        with pytest.raises(ValueError, match="flags must be"):
            KIND.parse("/x", {"content": "x", "flags": wrong}, "/")
    with pytest.raises(ValueError, match="no flags"):
        KIND.parse("/x", {"symlink": "y", "flags": "i"}, "/")


@pytest.mark.invariant("R5")
def test_a_file_with_declared_flags_is_restored_through_them_and_gets_them_again(place: Path) -> None:
    keep, path = Keep(1 << 20), place / "a"
    path.write_text("declared")
    chattr(path, "i")
    target = seen(path, keep)
    for now in ("", "i", "a"):
        chattr(path, "")
        path.write_text("drifted")
        path.chmod(0o600)
        chattr(path, now)
        step = Step(rid(path), target, seen(path, keep))
        assert probed(step) == ([], [])
        assert worker.act((step,), keep.blobs.get) == {step.id: ""}
        assert (path.read_text(), lsattr(path), stat.S_IMODE(path.stat().st_mode)) == ("declared", "i", 0o644)
    chattr(path, "")
    step = Step(rid(path), target, seen(path))
    assert worker.act((step,), keep.blobs.get) == {step.id: ""}
    assert lsattr(path) == "i"


@pytest.mark.invariant("R3")
def test_an_immutable_file_whose_declaration_says_nothing_of_flags_is_refused_and_called_that(place: Path) -> None:
    keep, path = Keep(1 << 20), place / "a"
    path.write_text("declared")
    target = seen(path, keep)
    path.write_text("drifted")
    chattr(path, "i")
    for wanted in (target, None):
        (refusal,), _ = probed(Step(rid(path), wanted, seen(path)))
        assert "immutable (chattr -i)" in refusal
        with pytest.raises(PermissionError, match="immutable"):
            restore_file(bytes(path), Step(rid(path), wanted, seen(path)), keep.blobs.get)
    assert path.read_text() == "drifted" and os.listdir(place).count("a") == 1
    assert not [n for n in os.listdir(place) if n.startswith(".pact-")]


@pytest.mark.invariant("R3")
def test_what_lies_in_an_immutable_directory_is_refused_beforehand(place: Path) -> None:
    keep, sub = Keep(1 << 20), place / "sub"
    sub.mkdir()
    (sub / "a").write_text("declared")
    target = seen(sub / "a", keep)
    (sub / "a").write_text("drifted")
    for letters, word in (("i", "immutable"), ("a", "append-only")):
        chattr(sub, letters)
        (refusal,), _ = probed(Step(rid(sub / "a"), target, seen(sub / "a")))
        assert f"its directory {sub} is {word}" in refusal
        chattr(sub, "")


def test_a_sealed_directory_is_opened_for_its_files_and_sealed_when_they_are_done(place: Path) -> None:
    keep, sub = Keep(1 << 20), place / "sub"
    sub.mkdir()
    (sub / "a").write_text("declared")
    chattr(sub, "i")
    targets = {p: seen(p, keep) for p in (sub, sub / "a")}
    chattr(sub, "")
    (sub / "a").unlink()
    sub.chmod(0o700)
    steps = tuple(Step(rid(p), t, seen(p)) for p, t in targets.items())
    assert probed(*steps)[0] == []
    assert worker.act(steps, keep.blobs.get) == {s.id: "" for s in steps}
    assert ((sub / "a").read_text(), lsattr(sub), stat.S_IMODE(sub.stat().st_mode)) == ("declared", "i", 0o755)


@pytest.mark.invariant("R6")
def test_a_kill_between_clearing_and_setting_flags_is_gone_on_from(place: Path) -> None:
    keep, path = Keep(1 << 20), place / "a"
    path.write_text("declared")
    chattr(path, "i")
    target = seen(path, keep)
    chattr(path, "")
    path.write_text("drifted")
    chattr(path, "i")
    step = Step(rid(path), target, seen(path, keep))
    for content in ("drifted", "declared"):  # before it was exchanged, and after
        chattr(path, "")
        path.write_text(content)
        assert worker.act((step,), keep.blobs.get, resumed=True) == {step.id: ""}
        assert (path.read_text(), lsattr(path)) == ("declared", "i")


@pytest.mark.invariant("R6")
def test_a_kill_while_a_sealed_directory_stands_open_is_gone_on_from(place: Path) -> None:
    keep, sub = Keep(1 << 20), place / "sub"
    sub.mkdir()
    (sub / "a").write_text("declared")
    chattr(sub, "i")
    directory, target = seen(sub), seen(sub / "a", keep)
    (sub / "a").write_text("drifted")
    steps = (Step(rid(sub), directory, None), Step(rid(sub / "a"), target, seen(sub / "a", keep)))
    chattr(sub, "")
    assert worker.act(steps, keep.blobs.get, resumed=True) == {s.id: "" for s in steps}
    assert ((sub / "a").read_text(), lsattr(sub)) == ("declared", "i")


def test_a_restore_that_fails_leaves_the_flags_as_they_were(place: Path) -> None:
    path = place / "a"
    path.write_text("drifted")
    chattr(path, "i")
    target = {**(seen(path) or {}), "sha256": "0" * 64, "flags": "a"}
    with pytest.raises(RestoreError, match="not kept"):
        restore_file(bytes(path), Step(rid(path), target, seen(path)), {}.get)
    assert lsattr(path) == "i"


def test_hard_links_are_told_beforehand(place: Path) -> None:
    keep, path = Keep(1 << 20), place / "a"
    path.write_text("declared")
    target = seen(path, keep)
    path.write_text("drifted")
    assert probed(Step(rid(path), target, None)) == ([], [])
    os.link(path, place / "b")
    assert "another name (a hard link)" in probed(Step(rid(path), target, None))[1][0]
    os.link(path, place / "c")
    assert "2 other names (hard links)" in probed(Step(rid(path), target, None))[1][0]
    path.write_text("declared")
    path.chmod(0o600)
    assert probed(Step(rid(path), target, None))[1] == [], "no content is replaced"


@pytest.mark.invariant("R5")
def test_missing_directories_on_the_way_are_made_and_told(place: Path) -> None:
    keep, path = Keep(1 << 20), place / "x" / "y" / "a"
    path.parent.mkdir(parents=True)
    path.write_text("declared")
    target = seen(path, keep)
    path.unlink()
    path.parent.rmdir()
    path.parent.parent.rmdir()
    step = Step(rid(path), target, None)
    refusals, notes = probed(step)
    assert refusals == [] and [n.split(" ")[0] for n in notes] == [str(place / "x"), str(place / "x" / "y")]
    old = os.umask(0o077)
    try:
        assert worker.act((step,), keep.blobs.get) == {step.id: ""}
    finally:
        os.umask(old)
    assert path.read_text() == "declared"
    for made in (path.parent, path.parent.parent):
        st = made.stat()
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 0, 0o755)


def test_directories_made_for_a_file_that_cannot_be_restored_are_taken_away_again(place: Path) -> None:
    target: Attrs = {"type": "file", "sha256": "0" * 64, "size": 1}
    with pytest.raises(RestoreError, match="not kept"):
        restore_file(bytes(place / "x" / "y" / "a"), Step("file:/x", target, None), {}.get)
    assert not (place / "x").exists()


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("what", ["link", "dangling", "file", "fifo"])
def test_what_stands_in_the_place_of_a_directory_on_the_way_is_refused_beforehand(place: Path, what: str) -> None:
    (place / "elsewhere").mkdir()
    if what == "file":
        (place / "x").touch()
    elif what == "fifo":
        os.mkfifo(place / "x")
    else:
        (place / "x").symlink_to(place / "elsewhere" if what == "link" else "nowhere")
    target: Attrs = {"type": "file", "sha256": "0" * 64, "size": 1}
    (refusal,), _ = probed(Step(rid(place / "x" / "y" / "a"), target, None))
    assert str(place / "x") in refusal and "not a directory" in refusal
    assert os.listdir(place / "elsewhere") == []


@pytest.mark.invariant("R11")
def test_a_directory_that_was_opened_is_closed_again_when_the_plan_breaks_off(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent goes on: what it took off for steps that are never done stayed off until its next start."""
    ends = LooseEnds()
    ends.keep_in(str(place / "ends"), "boot")
    for module in (unsealed, acting, replace):
        monkeypatch.setattr(module, "LOOSE", ends)
    closed = place / "closed"
    closed.mkdir()
    inside = closed / "one"
    inside.write_text("declared")
    keep = Keep(1 << 20)
    chattr(closed, "i")
    targets = {path: seen(path, keep) for path in (closed, inside)}
    chattr(closed, "")
    inside.write_text("drifted")
    chattr(closed, "i")
    steps = [Step(f"file:{encode_name(bytes(p))}", targets[p], seen(p)) for p in (closed, inside)]

    restore = acting._restore

    def breaks_off(step: Step, *more: Any, **options: Any) -> str:
        if step.id == steps[0].id:
            return restore(step, *more, **options)
        assert lsattr(closed) == "", "it is open for the step in it"
        raise RuntimeError("nobody expected this")

    monkeypatch.setattr(acting, "_restore", breaks_off)
    with pytest.raises(RuntimeError, match="nobody expected this"):
        acting.act(tuple(steps), keep.blobs.get)
    assert lsattr(closed) == "i"
    assert ends._ends == {}
    os.close(ends._fd)
