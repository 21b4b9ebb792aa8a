"""Anybody may mount a file system of his own process, again and again: each costs what it concerns.  # F13"""

from __future__ import annotations

from pathlib import Path

import pytest

from pact._fast import FileTable
from pact.agent import placing
from pact.agent.placing import Above, Placing
from pact.observe.places import RemotePlaces, leads_away


def placed(paths: list[Path]) -> tuple[Placing, dict[str, int]]:
    key_of = {f"file:{path}": key for key, path in enumerate(paths)}
    known = Placing(FileTable(), key_of, ())
    for resource, key in key_of.items():
        known.add(resource, key, resource.removeprefix("file:").encode(), {})
    return known, key_of


def there(known: Placing) -> list[int]:
    return [key for key in range(len(known._placed)) if key in known.table]


def test_what_lies_below_a_directory_is_known_until_the_last_is_gone() -> None:
    above = Above()
    for path in (b"/a/b/c", b"/a/b/d", b"/a/b/d", b"/a", b"//x//y"):
        above.add(path)
    assert all(d in above for d in (b"/", b"/a", b"/a/", b"/a/b"))
    assert not any(d in above for d in (b"/a/b/c", b"/a/b/d", b"/b", b"/a/bb"))
    above.drop(b"/a/b/c")
    above.drop(b"/a/b/d")
    assert b"/a/b" in above
    above.drop(b"/a/b/d")
    assert b"/a/b" not in above and b"/a" not in above and b"/" in above
    above.drop(b"/a")
    above.drop(b"//x//y")
    assert b"/" not in above


@pytest.mark.invariant("F13")
def test_a_users_mounts_cost_nothing_for_what_they_do_not_concern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"d{n}" / "f" for n in range(300)]
    known, _ = placed(paths)
    looked: list[bytes] = []

    def leads(directory: bytes, places: RemotePlaces) -> bool:
        looked.append(directory)
        return leads_away(directory, places)

    monkeypatch.setattr(placing, "leads_away", leads)
    for n in range(20):
        assert known.change(RemotePlaces([(bytes(tmp_path / "home" / f"{n}"), "fuse.x")])) == []
    assert looked == []
    assert known.change(RemotePlaces([(bytes(tmp_path / "d7"), "fuse.x")])) == [f"file:{paths[7]}"]
    assert len(looked) <= 1 and there(known) == [n for n in range(300) if n != 7]
    assert known.change(RemotePlaces()) == [f"file:{paths[7]}"] and there(known) == list(range(300))


@pytest.mark.invariant("F13")
def test_what_a_link_leads_to_a_mount_is_placed_before_the_next_look(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to("home")
    known, _ = placed([tmp_path / "link" / "f", tmp_path / "other" / "f"])
    assert known.late([0, 1]) == []
    assert known.change(RemotePlaces([(bytes(tmp_path / "home"), "nfs4")])) == []
    assert known.late([0, 1]) == [0, 1]
    names = [f"file:{tmp_path}/{d}/f" for d in ("link", "other")]
    assert known.again(names) == names[:1] and there(known) == [1] and known.late([0, 1]) == []
    assert known.change(RemotePlaces([(bytes(tmp_path / "home"), "nfs4"), (b"/elsewhere", "ext4")])) == []
    assert known.late([0, 1]) == [], "this is no other place that may hang"
    known.change(RemotePlaces())
    assert known.again(names) == names[:1] and there(known) == [0, 1]


def test_a_mount_hides_what_is_declared_at_it_and_below(tmp_path: Path) -> None:
    known, key_of = placed([tmp_path / "a" / "f"])
    key_of["mount:/m"] = 1
    known.add("mount:/m", 1, None, {})
    hiding = [p for p in (tmp_path, tmp_path / "a", tmp_path / "a" / "f", tmp_path / "b") if known.hides(bytes(p))]
    assert hiding == [tmp_path, tmp_path / "a", tmp_path / "a" / "f"]
    assert not known.hides(b"/m"), "what is mounted there is the mount that is declared"
    known.drop("mount:/m", key_of.pop("mount:/m"))
    known.drop(f"file:{tmp_path}/a/f", key_of.pop(f"file:{tmp_path}/a/f"))
    assert not known.hides(bytes(tmp_path)) and there(known) == []
