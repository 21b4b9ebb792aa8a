"""The key of a node: made once, whole or not at all, readable to its owner alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pact.agent.nodekey import FILE_NAME, KEY_BYTES, node_key
from pact.errors import UnreachableError

pytestmark = pytest.mark.invariant("S2")


def key_of(state: Path) -> tuple[bytes, list[str]]:
    said: list[str] = []
    return node_key(str(state), said.append), said


def test_it_is_made_once(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        key, said = key_of(tmp_path)
    finally:
        os.umask(old)
    assert len(key) == KEY_BYTES and said == []
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert key_of(tmp_path) == (key, [])
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_no_two_nodes_have_the_same(tmp_path: Path) -> None:
    places = [tmp_path / str(n) for n in range(3)]
    for place in places:
        place.mkdir()
    assert len({key_of(place)[0] for place in places}) == 3


def test_a_start_that_was_cut_off_leaves_none_behind(tmp_path: Path) -> None:
    (tmp_path / f"{FILE_NAME}.new").write_bytes(b"half of a k")
    key, said = key_of(tmp_path)
    assert len(key) == KEY_BYTES and said == [] and os.listdir(tmp_path) == [FILE_NAME]


@pytest.mark.parametrize("how", ["short", "long", "empty", "open", "link", "pipe"])
def test_one_that_cannot_be_used_is_replaced_and_said_to_be(tmp_path: Path, how: str) -> None:
    path = tmp_path / FILE_NAME
    content = {"short": b"k" * 31, "long": b"k" * 33, "empty": b"", "open": b"k" * 32}.get(how)
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o640 if how == "open" else 0o600)
    elif how == "link":
        (tmp_path / "elsewhere").write_bytes(b"k" * 32)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    key, said = key_of(tmp_path)
    assert key != b"k" * 32 and len(said) == 1 and "a new key was made" in said[0]
    assert key_of(tmp_path) == (key, []) and path.stat().st_mode & 0o777 == 0o600


def test_where_none_can_be_made_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    (tmp_path / FILE_NAME / "full").touch()
    with pytest.raises(UnreachableError, match="Is a directory"):
        key_of(tmp_path)
