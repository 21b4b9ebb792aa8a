"""Declared paths are seen whatever happens to them and above them, by fanotify and by inotify alike."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_observe_common import in_namespaces, quiet, settled, sh, touched

from pact.observe import Observers, open_observers
from pact.observe.tree import check_path

pytestmark = pytest.mark.root


@pytest.fixture(params=["fanotify", "inotify"])
def obs(request: pytest.FixtureRequest) -> Iterator[Observers]:
    made = open_observers(fanotify=request.param == "fanotify")
    assert made.names["files"] == request.param
    yield made
    made.close()


@pytest.fixture
def top(tmp_path: Path, obs: Observers) -> bytes:
    path = os.fsencode(tmp_path)
    obs.watch(path + b"/sentinel")
    return path


def write(path: bytes, data: bytes = b"x") -> None:
    with open(path, "wb") as f:
        f.write(data)


def test_creating_changing_and_deleting_a_file_is_seen(obs: Observers, top: bytes) -> None:
    path = top + b"/f"
    obs.watch(path)
    for step in (lambda: write(path), lambda: write(path, b"more"), lambda: os.unlink(path)):
        step()
        assert path in touched(obs, path)
        quiet(obs)


def test_attributes_and_xattrs_are_seen(obs: Observers, top: bytes) -> None:
    path = top + b"/f"
    write(path)
    obs.watch(path)
    for step in (
        lambda: os.chmod(path, 0o600),
        lambda: os.chown(path, 1, 1),
        lambda: os.setxattr(path, b"user.a", b"1"),
        lambda: os.truncate(path, 0),
    ):
        step()
        assert path in touched(obs, path)
        quiet(obs)


def test_attributes_of_a_declared_directory_are_seen(obs: Observers, top: bytes) -> None:
    path = top + b"/dir"
    os.mkdir(path)
    obs.watch(path)
    os.chmod(path, 0o700)
    assert path in touched(obs, path)
    os.rmdir(path)
    touched(obs, path)
    os.mkdir(path)
    touched(obs, path)
    quiet(obs)
    os.chmod(path, 0o711)
    assert path in touched(obs, path)


def test_replacing_a_file_by_rename_is_seen(obs: Observers, top: bytes) -> None:
    path = top + b"/f"
    write(path)
    obs.watch(path)
    write(top + b"/f.new", b"new")
    os.rename(top + b"/f.new", path)
    assert path in touched(obs, path)
    quiet(obs)
    write(path, b"after")
    assert path in touched(obs, path)


def test_a_repointed_symlink_is_seen_as_declared_path_and_as_component(obs: Observers, top: bytes) -> None:
    link, below = top + b"/link", top + b"/link/f"
    for name in (b"/one", b"/two"):
        os.mkdir(top + name)
        write(top + name + b"/f")
    os.symlink(b"one", link)
    obs.watch_many([link, below])
    write(top + b"/one/f", b"through")
    assert below in touched(obs, below)
    os.symlink(b"two", top + b"/tmp")
    os.rename(top + b"/tmp", link)
    touched(obs, link, below)
    quiet(obs)
    write(top + b"/one/f", b"no longer below")
    assert settled(obs, top + b"/sentinel") == set()
    write(top + b"/two/f", b"now below")
    assert below in touched(obs, below)


def test_a_parent_removed_and_created_again_is_watched_again(obs: Observers, top: bytes) -> None:
    path = top + b"/a/b/f"
    os.makedirs(top + b"/a/b")
    obs.watch(path)
    for _ in range(3):
        shutil.rmtree(top + b"/a")
        touched(obs, path)
        os.makedirs(top + b"/a/b")
        write(path)
        touched(obs, path)
        quiet(obs)
        write(path, b"again")
        assert path in touched(obs, path)


def test_a_parent_moved_away_and_replaced_is_watched_at_its_path(obs: Observers, top: bytes) -> None:
    path = top + b"/a/f"
    os.mkdir(top + b"/a")
    write(path)
    obs.watch(path)
    os.rename(top + b"/a", top + b"/old")
    touched(obs, path)
    quiet(obs)
    write(top + b"/old/f", b"not declared here")
    assert settled(obs, top + b"/sentinel") == set()
    os.mkdir(top + b"/a")
    write(path)
    assert path in touched(obs, path)


def test_a_directory_that_was_away_and_is_the_same_again_is_looked_at_below(obs: Observers, top: bytes) -> None:
    """Who looked while it was away found nothing there; no file below has changed since."""
    deep, path = top + b"/d/e/f", top + b"/d/g"
    os.makedirs(top + b"/d/e")
    write(deep)
    write(path)
    obs.watch(deep)
    obs.watch(path)
    quiet(obs)
    os.rename(top + b"/d", top + b"/away")
    os.rename(top + b"/away", top + b"/d")
    assert {deep, path} <= set(touched(obs, deep, path))
    quiet(obs)
    os.rename(top + b"/d", top + b"/away")
    os.symlink(top + b"/away", top + b"/d")
    assert {deep, path} <= set(touched(obs, deep, path))
    quiet(obs)


def test_deep_missing_ancestors_are_followed_down(obs: Observers, top: bytes) -> None:
    path = top + b"/" + b"/".join(b"d%d" % i for i in range(60)) + b"/f"
    obs.watch(path)
    os.makedirs(os.path.dirname(path))
    write(path)
    touched(obs, path)
    quiet(obs)
    os.chmod(path, 0o600)
    assert path in touched(obs, path)


def test_a_file_where_a_parent_should_be_does_no_harm(obs: Observers, top: bytes) -> None:
    write(top + b"/a")
    obs.watch(top + b"/a/f")
    os.unlink(top + b"/a")
    os.mkdir(top + b"/a")
    write(top + b"/a/f")
    assert top + b"/a/f" in touched(obs, top + b"/a/f")


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe", b" ", b"...", b"\x01", b"a" * 255, "ü".encode(), b"*?["])
def test_names_of_any_bytes_are_seen(obs: Observers, top: bytes, name: bytes) -> None:
    obs.watch_many([top + b"/" + name, top + b"/d" + name[:200] + b"/" + name])
    write(top + b"/" + name)
    os.mkdir(top + b"/d" + name[:200])
    write(top + b"/d" + name[:200] + b"/" + name)
    touched(obs, top + b"/" + name, top + b"/d" + name[:200] + b"/" + name)


def test_what_is_not_declared_is_not_reported(obs: Observers, top: bytes) -> None:
    obs.watch(top + b"/f")
    for i in range(100):
        write(top + b"/g%d" % i)
    assert settled(obs, top + b"/sentinel") == set()


def test_unwatched_paths_are_silent_and_others_in_the_directory_stay(obs: Observers, top: bytes) -> None:
    obs.watch_many([top + b"/a", top + b"/b", top + b"/deep/er/c"])
    obs.watch(top + b"/a")
    before = obs.stats()["directories"]
    obs.unwatch(top + b"/a")
    obs.unwatch(top + b"/deep/er/c")
    obs.unwatch(top + b"/never")
    assert obs.stats()["directories"] == before - 2
    write(top + b"/a")
    os.makedirs(top + b"/deep/er")
    write(top + b"/deep/er/c")
    write(top + b"/b")
    touched(obs, top + b"/b")
    assert settled(obs, top + b"/sentinel") <= {top + b"/b"}
    obs.watch(top + b"/a")
    write(top + b"/a")
    assert top + b"/a" in touched(obs, top + b"/a")


def test_a_path_touched_often_is_reported_once_in_a_drain(obs: Observers, top: bytes) -> None:
    obs.watch(top + b"/f")
    for _ in range(50):
        write(top + b"/f")
    with open(top + b"/sentinel", "wb") as f:
        f.write(b"x")
    seen = touched(obs, top + b"/sentinel")
    assert top + b"/f" in seen
    assert obs.stats()["coalesced"] > 0


def test_a_small_limit_delivers_everything_in_the_end(obs: Observers, top: bytes) -> None:
    paths = {top + b"/many/%d" % i for i in range(300)}
    obs.watch_many(paths)
    os.mkdir(top + b"/many")
    for path in paths:
        write(path)
    seen: set[bytes] = set()
    while not paths <= seen:
        seen |= touched(obs).keys() | {e.path for e in obs.drain(7)}  # type: ignore[union-attr]


def test_remark_without_changes_reports_nothing(obs: Observers, top: bytes) -> None:
    obs.watch_many([top + b"/f", top + b"/missing/g", b"/"])
    quiet(obs)
    obs.remark()
    assert settled(obs, top + b"/sentinel") == set()


def test_a_symlink_chain_repointed_further_up_is_found_by_remark(obs: Observers, top: bytes) -> None:
    for name in (b"/x", b"/y"):
        os.mkdir(top + name)
    os.mkdir(top + b"/far")
    os.symlink(top + b"/x", top + b"/far/hop")
    os.symlink(top + b"/far/hop", top + b"/link")
    obs.watch(top + b"/link/f")
    os.unlink(top + b"/far/hop")
    os.symlink(top + b"/y", top + b"/far/hop")
    obs.remark()
    touched(obs, top + b"/link/f")
    quiet(obs)
    write(top + b"/y/f")
    assert top + b"/link/f" in touched(obs, top + b"/link/f")


@pytest.mark.parametrize("path", [b"relative", b"", b"/a/", b"//a", b"/a/../b", b"/a/./b", b"/a\0b"])
def test_paths_that_are_not_plain_are_refused(path: bytes) -> None:
    with pytest.raises(ValueError, match="normalised"):
        check_path(path)


@pytest.mark.parametrize("mechanism", ["fanotify", "inotify"])
def test_mounting_over_a_parent_is_seen_and_followed(tmp_path: Path, mechanism: str) -> None:
    (tmp_path / "p" / "q").mkdir(parents=True)
    (tmp_path / "bound").write_text("x")
    in_namespaces(
        "-m --propagation private",
        f"""
        from pact.observe.base import MountsChanged
        top = os.fsencode({str(tmp_path)!r})
        obs = open_observers(fanotify={mechanism == "fanotify"})
        f, point, bound = top + b"/p/q/f", top + b"/p/q", top + b"/bound"
        obs.watch_many([f, point, bound])
        sh(f"mount -t tmpfs none {{os.fsdecode(point)}}")
        touched(obs, f, point)
        quiet(obs)
        open(f, "w").close()
        touched(obs, f)
        quiet(obs)
        os.chmod(point, 0o700)          # the root of the mounted file system
        touched(obs, point)
        quiet(obs)
        sh(f"mount -o remount,ro {{os.fsdecode(point)}}")
        assert any(isinstance(e, MountsChanged) for e in of_type(obs, MountsChanged))
        sh(f"umount {{os.fsdecode(point)}}")
        touched(obs, f, point)
        quiet(obs)
        open(f, "w").close()
        touched(obs, f)
        open(top + b"/elsewhere", "w").close()
        sh(f"mount --bind {{os.fsdecode(top)}}/elsewhere {{os.fsdecode(bound)}}")
        touched(obs, bound)
        quiet(obs)
        open(top + b"/elsewhere", "w").write("through its other name")
        touched(obs, bound)
        obs.close()
        """,
    )


def test_nothing_below_a_network_file_system_is_touched_and_health_says_so(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    out = in_namespaces(
        "-m --propagation private",
        f"""
        from pact.observe.tree import Tree
        top = os.fsencode({str(tmp_path)!r})
        obs = open_observers()
        obs.watch(top + b"/net/dir/f")
        table = dict(obs._tree.mounts)
        table[top + b"/net"] = ((b"1", b"0:99", b"nfs4"),)   # no server at hand: the table alone decides
        obs._tree.on_mounts(table, lambda path: None)
        print(obs.health()["fanotify"])
        print(obs.polled() == [top + b"/net", top + b"/net/dir"])
        """,
    )
    assert out == "directories: 2 polled (network file system)\nTrue\n"


@pytest.mark.alone  # the limit of the machine is lowered
def test_watches_run_out_and_the_rest_is_polled_aloud(tmp_path: Path) -> None:
    limit = Path("/proc/sys/fs/inotify/max_user_watches")
    before = limit.read_text()
    obs = open_observers(fanotify=False)
    try:
        used = sum(p.read_text().count("inotify wd:") for p in Path("/proc").glob("[0-9]*/fdinfo/*") if _readable(p))
        limit.write_text(str(used + 20))
        for i in range(60):
            (tmp_path / f"d{i}").mkdir()
            obs.watch(os.fsencode(tmp_path / f"d{i}" / "f"))
        assert 0 < len(obs.polled()) < 60
        assert f"{len(obs.polled())} polled (No space left on device)" in obs.health()["inotify"]
    finally:
        limit.write_text(before)
        obs.close()


def _readable(path: Path) -> bool:
    try:
        path.read_text()
    except OSError:
        return False
    return True


def test_without_any_mechanism_everything_is_polled_and_said(tmp_path: Path) -> None:
    obs = open_observers(fanotify=False, inotify=False)
    try:
        obs.watch(os.fsencode(tmp_path / "f"))
        obs.watch(b"/proc/sys/vm/swappiness")
        assert obs.names["files"] == obs.names["sysctl"] == "poll"
        assert obs.health()["poll"].startswith("polled") and obs.health()["sysctl"].startswith("polled")
        assert obs.health()["mountinfo"] == "ok"
        sh("true")
        assert obs.drain(10) == []
    finally:
        obs.close()


def test_every_name_in_a_tracked_directory_is_told_and_its_contents_are_not(obs: Observers, top: bytes) -> None:
    assert obs.track(top)
    write(top + b"/any")
    assert top + b"/any" in touched(obs, top + b"/any")
    quiet(obs)
    with open(top + b"/any", "ab") as f:
        f.write(b"more")
    os.chmod(top + b"/any", 0o600)
    quiet(obs)
    before = obs.stats()["kept"]
    os.rename(top + b"/any", top + b"/other")
    assert {top + b"/any", top + b"/other"} <= set(touched(obs, top + b"/any", top + b"/other"))
    assert obs.stats()["kept"] > before
    for n in range(20):  # names are not merged with one another
        write(top + b"/n%d" % n)
    touched(obs, *(top + b"/n%d" % n for n in range(20)))
    obs.untrack(top)
    settled(obs, top + b"/sentinel")
    write(top + b"/late")
    quiet(obs)


def test_tracking_is_not_recursive_and_survives_what_is_declared_there(obs: Observers, top: bytes) -> None:
    os.mkdir(top + b"/d")
    obs.track(top)
    write(top + b"/d/x")
    quiet(obs)
    obs.watch(top + b"/d/x")
    obs.unwatch(top + b"/d/x")
    obs.unwatch(top + b"/sentinel")
    write(top + b"/seen")
    touched(obs, top + b"/seen")


def test_a_tracked_directory_that_comes_later_or_is_replaced_is_told_itself(obs: Observers, top: bytes) -> None:
    obs.track(top + b"/d")
    os.mkdir(top + b"/d")
    touched(obs, top + b"/d")
    write(top + b"/d/x")
    touched(obs, top + b"/d/x")
    os.rename(top + b"/d", top + b"/away")
    os.mkdir(top + b"/d")
    touched(obs, top + b"/d")
    write(top + b"/d/y")
    touched(obs, top + b"/d/y")
    settled(obs, top + b"/sentinel")
    write(top + b"/away/z")
    quiet(obs)
