"""What a plan needs at its worst moment, and what old files give back."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import Any

import pytest

from pact.core.plan import Step
from pact.resources.support import room
from pact.resources.support.room import FIEMAP_EXTENT, FIEMAP_HEAD, FileSystem, shares_blocks


def replaced(name: str, size: int) -> Step:
    old = {"type": "file", "sha256": "old", "size": size}
    return Step(f"file:{name}", {"type": "file", "sha256": "new", "size": size}, old)


@pytest.mark.invariant("F93")
def test_sizes_are_rounded_up_to_blocks() -> None:
    steps = [Step(f"file:/{n}", {"type": "file", "sha256": "x", "size": 1}, None) for n in range(3)]
    assert not list(FileSystem(0, 4096, 3 * 4096, 3, steps).lacks(0))
    assert "the plan needs 12288" in "".join(FileSystem(0, 4096, 3 * 4096 - 1, 3, steps).lacks(0))
    assert "the plan makes 3" in "".join(FileSystem(0, 4096, 3 * 4096, 2, steps).lacks(0))


@pytest.mark.invariant("F93")
def test_what_a_step_gives_back_counts_for_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"file:/a": 0, "file:/b": 8192, "file:/c": 0}
    monkeypatch.setattr(room.GiveBack, "of", lambda _, step: given[step.id])
    steps = [replaced(f"/{n}", 8192) for n in "abc"]
    assert not list(FileSystem(0, 4096, 16384, 9, steps).lacks(0)), "a and b, then b's old one goes, then c"
    assert "needs 16384" in "".join(FileSystem(0, 4096, 16383, 9, steps).lacks(0))
    assert "needs 20480" in "".join(FileSystem(0, 4096, 16384, 9, steps).lacks(4096)), "what is stored stays"


@pytest.mark.invariant("F93")
def test_a_copy_by_reference_gives_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    with open(path, "rb") as f:
        with contextlib.suppress(OSError):  # a file system that does not say it, as tmpfs
            assert not shares_blocks(f.fileno())

        def said(flags: list[int]) -> Any:
            def ioctl(_fd: int, _what: int, asked: Any, _mutate: bool) -> int:
                FIEMAP_HEAD.pack_into(asked, 0, 0, 0, 0, len(flags), len(flags), 0)
                for n, each in enumerate(flags):
                    at = FIEMAP_HEAD.size + n * FIEMAP_EXTENT.size
                    FIEMAP_EXTENT.pack_into(asked, at, 0, 0, 0, 0, 0, each, 0, 0, 0)
                return 0

            return ioctl

        for flags, shares in (([], False), ([1], False), ([0, 0x2001], True), ([0x2000, 1], True), ([0, 0], True)):
            monkeypatch.setattr(fcntl, "ioctl", said(flags))
            assert shares_blocks(f.fileno()) is shares
