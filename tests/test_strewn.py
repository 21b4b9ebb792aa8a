"""A directory becomes immutable in the middle of a plan, on a real file system: what stays there is on record, and goes
when it can."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from test_ahead import COUNT, plan

from pact.agent import acting
from pact.agent.acting import act
from pact.core.plan import Step
from pact.resources.support import ahead, replace, strewn
from pact.resources.support.flags import set_flags
from pact.resources.support.loose import LOOSE, LooseEnds
from pact.resources.support.sweep import sweep

pytestmark = [pytest.mark.root, pytest.mark.invariant("R4", "R11")]
TEMPORARY = ".pact-*"


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LooseEnds]:
    """The agent's record, as at a start."""
    ends = LooseEnds()
    ends.keep_in(str(tmp_path / "loose"), "boot")
    monkeypatch.setattr(strewn, "LOOSE", ends)
    yield ends


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 not installed")
    image, top = tmp_path / "image", tmp_path / "disk"
    top.mkdir()
    with image.open("wb") as f:
        f.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, top], check=False).returncode:
        pytest.skip("no loop device")
    yield top
    for directory in top.glob("d*"):
        chattr(directory, "")
    subprocess.run(["umount", top], check=True)


def chattr(directory: Path, letters: str) -> None:
    fd = os.open(directory, os.O_RDONLY)
    set_flags(fd, letters)
    os.close(fd)


@pytest.mark.parametrize("at", [0, 7, 15])
def test_what_a_plan_cannot_remove_is_on_record_and_goes_when_it_can(
    top: Path, tmp_path: Path, ends: LooseEnds, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(acting, "FILES_MAX", 10)
    monkeypatch.setattr(ahead, "FILES_MAX", 10)
    steps, blobs = plan(top, 2)
    restored, exchanged = [0], replace._put_in_place

    def sealed_meanwhile(*args: object) -> None:
        if restored[0] == at:
            chattr(top / "d000", "i")
        restored[0] += 1
        exchanged(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(replace, "_put_in_place", sealed_meanwhile)
    results = act(steps, blobs)
    assert len(results) == COUNT and any(results.values())
    strays = list((top / "d000").glob(TEMPORARY))
    assert strays, "nobody can remove them"
    assert not list((top / "d001").glob(TEMPORARY))
    ((_, about),) = ends.of(strewn.STREWN)
    assert about["path"] == str(top / "d000")

    assert list(strewn.clear(blobs)) == [] and ends.of(strewn.STREWN), "it is immutable"
    again = LooseEnds()
    assert again.keep_in(str(tmp_path / "loose"), "another boot") == []
    assert list(strewn.clear(blobs, again)) == [] and again.of(strewn.STREWN), "after a restart, too"
    chattr(top / "d000", "")
    strewn.PLANS.begin()
    assert list(strewn.clear(blobs, again)) == [] and again.of(strewn.STREWN), "not while a plan is under way"
    strewn.PLANS.end()
    (top / "d000" / ".pact-0123456789abcdef").write_text("in no store\n")
    said, and_gone = strewn.clear(blobs, again)
    assert "kept.pact-0123456789abcdef" in said and "any more" in and_gone
    assert not list((top / "d000").glob(TEMPORARY)) and not again.of(strewn.STREWN)
    assert (top / "d000" / "kept.pact-0123456789abcdef").read_text() == "in no store\n"


def test_another_directory_with_that_name_is_left_alone(top: Path, ends: LooseEnds) -> None:
    there = top / "d000"
    there.mkdir()
    fd = os.open(there, os.O_RDONLY)
    strewn.note(fd, 1)
    strewn.note(fd, 1)
    os.close(fd)
    assert len(ends.of(strewn.STREWN)) == 1
    there.rename(top / "d001")
    shutil.copytree(top / "d001", there)
    (there / ".pact-0123456789abcdef").touch()
    assert len(list(strewn.clear(lambda _: b"", ends))) == 1
    assert list(there.glob(TEMPORARY)) and not ends.of(strewn.STREWN)
    assert not LOOSE.of(strewn.STREWN)


def test_a_file_system_that_is_mounted_again_has_been_on_record_meanwhile(top: Path, ends: LooseEnds) -> None:
    """As whoever repairs one that has become read-only does it."""
    there = top / "d000"
    there.mkdir()
    (there / ".pact-0123456789abcdef").write_text("declared\n")
    fd = os.open(there, os.O_RDONLY)
    strewn.note(fd, 30)
    os.close(fd)
    subprocess.run(["umount", top], check=True)
    assert list(strewn.clear(lambda _: b"", ends)) == [] and ends.of(strewn.STREWN), "its directory is not there"
    there.mkdir()
    assert list(strewn.clear(lambda _: b"", ends)) == [] and ends.of(strewn.STREWN), "another one is"
    there.rmdir()
    subprocess.run(["mount", "-o", "loop", top.parent / "image", top], check=True)
    (said,) = strewn.clear(lambda _: b"", ends)
    assert "any more" in said and not list(there.iterdir()) and not ends.of(strewn.STREWN)


@pytest.mark.parametrize("removed", [False, True])
def test_an_old_file_that_cannot_be_removed_is_on_record(
    top: Path, ends: LooseEnds, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    """Its directory becomes immutable after the new one has its name."""
    ((step, *_), blobs), discard = plan(top, 1), replace._discard
    if removed:
        step = dataclasses.replace(step, target=None)

    def sealed_meanwhile(*args: object, **more: object) -> None:
        chattr(top / "d000", "i")
        discard(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(replace, "_discard", sealed_meanwhile)
    path = Path(step.id.partition(":")[2])
    with pytest.raises(PermissionError):
        replace.restore_file(bytes(path), step, blobs)
    ((_, about),) = ends.of(strewn.STREWN)
    assert about["path"] == str(path.parent) and list(path.parent.glob(TEMPORARY))
    chattr(top / "d000", "")
    assert len(list(strewn.clear(lambda _: b"", ends))) == 1
    assert not list(path.parent.glob(TEMPORARY))


@pytest.mark.parametrize("end", [{"what": []}, 5, {"what": "strewn"}, {"what": "strewn", "path": [], "inode": 1}])
def test_a_record_that_makes_no_sense_stops_no_start_and_no_other_record(
    top: Path, tmp_path: Path, ends: LooseEnds, end: object
) -> None:
    whole = {"what": "strewn", "path": str(top), "inode": top.stat().st_ino}
    path = tmp_path / "damaged"
    path.write_bytes(orjson.dumps({"boot": "boot", "ends": [end, whole]}))
    again = LooseEnds()
    again.keep_in(str(path), "boot")
    assert any(f"is in {top} any more" in said for said in strewn.clear(lambda _: b"", again))
    path.write_bytes(orjson.dumps({"boot": "boot", "ends": 5}))
    LooseEnds().keep_in(str(path), "boot")


def test_one_that_cannot_be_removed_does_not_keep_the_others(top: Path, ends: LooseEnds) -> None:
    """Whoever owns the directory may arrange that, and may not hide what was kept there."""
    there = top / "d000"
    there.mkdir()
    fd = os.open(there, os.O_RDONLY)
    strewn.note(fd, 1)
    os.close(fd)
    for at in range(8):
        (there / f".pact-{at:016x}").write_text("in no store\n")
    for at in range(1, 7):
        (there / f"kept.pact-{at:016x}").touch()
    (said,) = strewn.clear(lambda _: None, ends)
    assert f"kept.pact-{0:016x}" in said and f"kept.pact-{7:016x}" in said and ends.of(strewn.STREWN)
    step = Step(f"file:{there}/own", None, None)
    assert sweep([step], lambda _: b"") == {} and not list(there.glob(TEMPORARY))
    assert len(list(strewn.clear(lambda _: None, ends))) == 1 and not ends.of(strewn.STREWN)
