"""Many declared paths in one directory, watched a piece at a time, as a long adoption records them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_observe_common import quiet, touched

from pact.observe import Observers, open_observers, tree

PIECE = 10
FILES = 400


@pytest.fixture
def obs() -> Iterator[Observers]:
    observers = open_observers()
    yield observers
    observers.close()


def test_pieces_do_not_list_the_whole_directory_each(
    obs: Observers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each did: adopting 100,000 files in one directory listed it two hundred times."""
    paths = [os.fsencode(tmp_path / f"f{n}") for n in range(FILES)]
    for path in paths:
        Path(os.fsdecode(path)).touch()
    (tmp_path / "sub").mkdir()
    read, real = 0, os.scandir

    class Counted:
        def __init__(self, path: Any) -> None:
            self._entries = real(path)

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *_: object) -> None:
            self._entries.close()

        def __iter__(self) -> Counted:
            return self

        def __next__(self) -> os.DirEntry[bytes]:
            nonlocal read
            read += 1
            return next(self._entries)

    monkeypatch.setattr(os, "scandir", Counted)
    sub = os.fsencode(tmp_path / "sub")
    for at in range(0, FILES, PIECE):
        obs.watch_many([*paths[at : at + PIECE], *([sub] if at == 0 else [])])
    assert 0 < read <= 2 * tree.LISTED_TIMES * FILES, "each name is read a few times, and not once for each piece"
    monkeypatch.undo()
    quiet(obs)
    os.chmod(sub, 0o700)
    assert sub in touched(obs, sub), "a declared directory among them is watched itself"
