"""Which paths lie on remote file systems: by their names and by links, without touching what is remote."""

from __future__ import annotations

from pathlib import Path

import pytest

from pact.observe.places import RemotePlaces, leads_away, may_hang


def raw(path: Path) -> bytes:
    return bytes(path)


def test_the_deepest_mount_above_a_path_decides() -> None:
    places = RemotePlaces(
        [
            (b"/", "nfs"),
            (b"/n", "nfs4"),
            (b"/n/scratch", "ext4"),
            (b"/n/scratch/f", b"fuse.sshfs"),
            (b"/o", "ext4"),
            (b"/p", "fuse.any"),
            (b"/p", "ext4"),
        ]
    )
    away = [
        p
        for p in (
            b"/",
            b"/x",
            b"/n",
            b"/n/a/b",
            b"/nn",
            b"/n/scratch",
            b"/n/scratch/a",
            b"/n/scratch/f/a",
            b"/o/a",
            b"/p/a",
        )
        if p in places
    ]
    assert away == [b"/n", b"/n/a/b", b"/n/scratch/f/a"]
    assert not RemotePlaces([(b"/o", "ext4")])
    nfs = RemotePlaces([(b"/n", "nfs")])
    assert RemotePlaces([(b"/n", "nfs"), (b"/o", "ext4")]).differing(nfs) == [], "mounts elsewhere are nothing"
    more = RemotePlaces([(b"/n", "nfs"), (b"/n/s", "ext4"), (b"/p", "nfs")])
    assert sorted(more.differing(nfs)) == sorted(nfs.differing(more)) == [b"/n/s", b"/p"]
    assert sorted(RemotePlaces([(b"/n", "ext4"), (b"/p", "nfs")]).differing(nfs)) == [b"/n", b"/p"]


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a", "{top}/far/x"),
        ("a", "far"),
        ("a", "./b/../far"),
        ("a", "/..{top}/far"),
        ("a", "c"),
    ],
)
def test_a_link_that_leads_there_is_seen(tmp_path: Path, link: str, target: str) -> None:
    places = RemotePlaces([(raw(tmp_path / "far"), "nfs")])
    (tmp_path / "c").symlink_to("far/y")
    (tmp_path / "b").mkdir()
    (tmp_path / link).symlink_to(target.format(top=tmp_path))
    assert leads_away(raw(tmp_path / link), places)
    assert leads_away(raw(tmp_path / link / "deep" / "er"), places)
    assert may_hang(raw(tmp_path / link / "file"), places)
    assert not may_hang(raw(tmp_path / link), places), "the link itself lies here"
    assert not leads_away(raw(tmp_path / "b" / "file"), places)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    places = RemotePlaces([(raw(tmp_path / "far"), "nfs")])
    (tmp_path / "loop").symlink_to("loop/x")
    assert not leads_away(raw(tmp_path / "loop"), places)
