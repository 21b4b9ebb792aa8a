"""Flags that are taken off for other steps are on record, and never in the way of anything else.  # R11"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pact.resources.support import loose, unsealed
from pact.resources.support.loose import MADE, LooseEnds


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LooseEnds]:
    ends = LooseEnds()
    ends.keep_in(str(tmp_path / "ends"), "boot")
    monkeypatch.setattr(unsealed, "LOOSE", ends)
    yield ends
    os.close(ends._fd)


@pytest.mark.invariant("R11")
def test_many_open_directories_leave_room_for_what_else_is_under_way(ends: LooseEnds, tmp_path: Path) -> None:
    """A plan over some two hundred of them filled the record: then nothing else could be begun, and the plan failed."""
    begun = []
    with pytest.raises(OSError, match="too much is under way"):
        for n in range(1000):
            begun.append(unsealed.begin(bytes(tmp_path), f"i{n}"))
    assert len(begun) > 20
    number = ends.begin(MADE, paths=[str(tmp_path / ("d" * 20))])
    ends.end(number)
    for number in begun:
        ends.end(number)
    unsealed.begin(bytes(tmp_path), "i")


@pytest.mark.invariant("R11")
def test_the_end_of_it_outlives_a_power_cut(ends: LooseEnds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next start the flags would be set again on what was rolled back to have none."""
    written: list[bytes] = []
    sync = os.fdatasync

    def kept(fd: int) -> None:
        sync(fd)
        written.append(os.pread(fd, loose.BYTES_MAX, 0))

    monkeypatch.setattr(os, "fdatasync", kept)
    number = unsealed.begin(bytes(tmp_path), "i")
    assert b"unsealed" in written[-1]
    ends.end(number)
    assert b"unsealed" not in written[-1]
