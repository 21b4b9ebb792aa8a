"""Mounts, in a mount namespace of each test's own: real file systems, real holders, nothing lazy."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pact.agent.consumers import find_holders
from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, encode_name
from pact.observe.mountinfo import read_mounts
from pact.resources.base import HALF_N, WHOLE_N, Keep
from pact.resources.kinds.mount import KIND
from pact.resources.support.fstab import conforms, normal_option
from pact.resources.support.mount_users import expire_says_busy, kernel_holders

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
CLONE_NEWNS = 0x20000


def sh(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def isolated(test: Callable[..., None]) -> Callable[..., None]:
    """Run the test in a child that has a private mount namespace; what it raises is shown here."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        top = Path(tempfile.mkdtemp())
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
                    raise OSError(ctypes.get_errno(), "unshare")
                sh("mount", "--make-rprivate", "/")
                sh("mount", "-t", "tmpfs", "tmpfs", top)
                test(*args, top=top, **kwargs)
                code = 0
            except pytest.skip.Exception as exc:
                os.write(write, str(exc).encode())
                code = 2
            except BaseException:
                os.write(write, traceback.format_exc().encode())
            finally:
                os._exit(code)
        os.close(write)
        with os.fdopen(read, "rb") as f:
            said = f.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        top.rmdir()
        if status == 2:
            pytest.skip(said)
        assert status == 0, said

    del run.__wrapped__  # type: ignore[attr-defined]  # pytest would ask for a fixture named top
    return run


def point(top: Path, name: str = "m") -> tuple[Path, str]:
    path = top / name
    path.mkdir(exist_ok=True)
    return path, encode_name(os.fsencode(path))


def tmpfs(*options: str) -> Attrs:
    return {"source": "tmpfs", "fstype": "tmpfs", "options": sorted(options)}


def actual(name: str) -> Attrs | None:
    seen = KIND.observe(name)
    assert seen is None or isinstance(seen, dict)
    return seen


def restore(name: str, target: Attrs | None) -> None:
    KIND.restore(name, Step(f"mount:{name}", target, actual(name)), lambda _: None)
    assert KIND.distance_n(target, actual(name)) == 0


def leave(name: str) -> Step:
    return Step(f"mount:{name}", None, actual(name))


# -- pure -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("tmpfs", "a mount is a table"),
        ({"source": "a"}, "fstype is missing"),
        ({"fstype": "tmpfs"}, "source is missing"),
        ({"source": "", "fstype": "tmpfs"}, "source is missing"),
        ({"source": "a", "fstype": 5}, "fstype is missing or not a string"),
        ({"source": "a", "fstype": "tmpfs", "option": []}, "did you mean 'options'"),
        ({"source": "a", "fstype": "tmpfs", "options": ["a,b"]}, "without commas"),
        ({"source": "a", "fstype": "tmpfs", "options": [1]}, "options must be a list"),
        ({"source": "a", "fstype": "tmpfs", "options": {}}, "options must be a list"),
        ({"type": "file"}, 'may only be "absent"'),
        ({"source": "a\0", "fstype": "tmpfs"}, "NUL"),
        ({"source": "a", "fstype": "tmp\0fs"}, "NUL"),
        ({"source": "50%", "fstype": "nfs"}, "percent-escape"),
        ({"source": "a", "fstype": "ext4", "root": "b"}, "root must be the path"),
    ],
)
def test_a_wrong_entry_is_refused_with_what_is_wrong(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        KIND.parse("/m", value, "/")


def test_options_may_be_written_as_in_fstab_and_their_order_does_not_matter() -> None:
    one = KIND.parse("/m", {"source": "a", "fstype": "nfs", "options": "ro,hard,noatime"}, "/")
    two = KIND.parse("/m", {"source": "a", "fstype": "nfs", "options": ["noatime", "ro", "hard", "ro"]}, "/")
    assert one == two
    assert KIND.parse("/m", {"type": "absent"}, "/").declared.attrs is None


@pytest.mark.parametrize(
    ("option", "normal"),
    [
        ("size=64m", "size=67108864"),
        ("size=65536k", "size=67108864"),
        ("size=1G", "size=1073741824"),
        ("ro", "ro"),
        ("mode=0755", "mode=755"),
        ("mode=0", "mode=0"),
        ("nr_inodes=1k", "nr_inodes=1024"),
        ("size=50%", "size=50%"),
    ],
)
def test_each_option_has_one_spelling(option: str, normal: str) -> None:
    assert normal_option(option) == normal


@pytest.mark.parametrize(
    ("declared", "have", "agree"),
    [
        ([], ["ro", "nosuid"], True),
        (["ro"], ["ro"], True),
        (["ro"], ["rw"], False),
        (["rw"], ["rw", "relatime"], True),
        (["rw"], ["ro"], False),
        (["noatime"], ["rw", "relatime"], False),
        (["relatime"], ["rw", "noatime"], False),
        (["relatime"], ["rw"], True),
        (["defaults", "nofail", "_netdev", "x-systemd.automount", "comment=a"], ["rw"], True),
        (["exec"], ["rw", "noexec"], False),
        (["exec", "suid", "dev", "async"], ["rw"], True),
        (["nosuid"], ["rw"], False),
        (["size=64m"], ["rw", "size=65536k"], True),
        (["size=64m"], ["rw", "size=1024k"], False),
        (["mode=1777"], ["rw"], True),
        (["mode=1777"], ["rw", "mode=755"], False),
        (["mode=0755"], ["rw", "mode=755"], True),
        (["uid=0"], ["rw"], True),
        (["uid=5"], ["rw"], False),
        (["bind"], ["rw"], True),
    ],
)
def test_declared_options_must_be_in_force_and_others_do_not_matter(
    declared: list[str], have: list[str], agree: bool
) -> None:
    assert conforms(declared, have, "tmpfs") is agree


def test_another_type_or_source_is_another_mount() -> None:
    have = {"source": "/dev/sda1", "fstype": "ext4", "options": ["rw"]}
    assert KIND.distance_n({**have, "options": []}, have) == 0
    assert KIND.distance_n({**have, "fstype": "xfs"}, have) == WHOLE_N
    assert KIND.distance_n({**have, "source": "/dev/sdb1"}, have) == WHOLE_N
    assert KIND.distance_n({**have, "options": ["ro"]}, have) == HALF_N
    assert KIND.distance_n({**have, "root": "/sub"}, have) == WHOLE_N
    assert KIND.distance_n(None, have) == KIND.distance_n(have, None) == WHOLE_N


# -- restoring ------------------------------------------------------------------------------------------------------


@isolated
def test_a_missing_mount_is_mounted_with_what_was_declared(top: Path) -> None:
    _, name = point(top)
    assert actual(name) is None
    restore(name, tmpfs("size=64m", "noatime", "nofail"))
    seen = actual(name)
    assert seen is not None
    assert {"noatime", "size=65536k"} <= set(seen["options"])
    restore(name, tmpfs("size=64m", "noatime", "nofail"))
    assert len(KIND.stack(name)) == 1


@isolated
def test_a_missing_mount_point_is_made(top: Path) -> None:
    name = encode_name(os.fsencode(top / "deep" / "new"))
    restore(name, tmpfs())


@isolated
def test_names_of_any_bytes_can_be_mount_points(top: Path) -> None:
    raw = os.fsencode(top) + b"/a b\n\\\xff%41"
    os.mkdir(raw)
    name = encode_name(raw)
    restore(name, tmpfs())
    assert read_mounts()[-1].mount_point == raw
    restore(name, None)


@isolated
def test_a_mount_of_another_type_is_replaced(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "ramfs", "ramfs", path)
    restore(name, tmpfs("size=1m"))
    assert [m.fstype for m in KIND.stack(name)] == ["tmpfs"]


@isolated
def test_what_is_stacked_on_a_declared_mount_is_taken_off(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path)
    (path / "kept").write_text("x")
    sh("mount", "-t", "ramfs", "ramfs", path)
    sh("mount", "-t", "ramfs", "ramfs", path)
    restore(name, tmpfs("size=1m"))
    assert (path / "kept").read_text() == "x"


@isolated
def test_options_are_mended_in_place_and_the_others_are_kept(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "-o", "size=1m,nosuid,ro", "tmpfs", path)
    number = read_mounts()[-1].mount_id
    restore(name, tmpfs("rw", "noatime", "size=2m"))
    seen = actual(name)
    assert seen is not None
    assert {"rw", "noatime", "size=2048k", "nosuid"} <= set(seen["options"])
    assert read_mounts()[-1].mount_id == number


@isolated
def test_a_mount_that_must_be_absent_is_unmounted(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    restore(name, None)
    assert KIND.stack(name) == []


@isolated
@pytest.mark.invariant("R4", "F30")
def test_a_mount_in_memory_is_taken_off_only_when_what_it_holds_is_kept(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    (path / "empty").mkdir()
    step = Step(f"mount:{name}", None, actual(name))
    assert KIND.preflight(name, step, Keep(0)).refusal == ""
    (path / "empty" / "thesis").write_text("x")
    assert "only in memory" in KIND.preflight(name, step, Keep(0)).refusal
    with pytest.raises(RestoreError, match="only in memory"):
        KIND.restore(name, step, lambda _: None)
    keep = Keep(1000)
    saved = KIND.preflight(name, step, keep)
    assert saved.refusal == "" and list(saved.inside) == [f"file:{name}/empty/thesis"]
    (path / "later").write_text("written after it was decided")
    with pytest.raises(RestoreError, match="only in memory"):
        KIND.restore(name, step, keep.blobs.get)
    other, other_name = point(top, "other")
    sh("mount", "--bind", path, other)
    assert KIND.preflight(name, step, Keep(0)).refusal == "", "it is mounted elsewhere too: nothing is lost"
    restore(name, None)
    assert (other / "empty" / "thesis").exists()
    KIND.restore(
        other_name,
        Step(f"mount:{other_name}", None, actual(other_name)),
        {**keep.blobs, hashlib.sha256(b"written after it was decided").hexdigest(): b""}.get,
    )


@isolated
def test_a_busy_mount_is_refused_and_never_detached_lazily(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "ramfs", "ramfs", path)
    with (path / "open").open("w"):
        (path / "open").unlink()
        for target in (None, tmpfs()):
            with pytest.raises(RestoreError, match="umount: device or resource busy"):
                KIND.restore(name, Step(f"mount:{name}", target, actual(name)), lambda _: None)
            assert [m.fstype for m in KIND.stack(name)] == ["ramfs"]
    restore(name, tmpfs())


@isolated
def test_what_mount_says_is_the_reason(top: Path) -> None:
    _, name = point(top)
    with pytest.raises(RestoreError, match="special device /nonexistent does not exist"):
        restore(name, {"source": "/nonexistent", "fstype": "ext4", "options": []})
    with pytest.raises(RestoreError, match="wrong fs type, bad option"):
        restore(name, tmpfs("nosuchoption"))
    assert KIND.stack(name) == []


@isolated
def test_a_mount_point_behind_a_symbolic_link_is_not_followed(top: Path) -> None:
    (top / "real").mkdir()
    (top / "link").symlink_to("real")
    with pytest.raises(RestoreError, match="symbolic link"):
        restore(encode_name(os.fsencode(top / "link")), tmpfs())
    with pytest.raises(RestoreError, match="symbolic link"):
        restore(encode_name(os.fsencode(top / "link" / "below")), tmpfs())
    assert os.listdir(top / "real") == []


@isolated
def test_a_bind_mount_comes_back_with_what_it_showed(top: Path) -> None:
    """As adopted: the file system's source and the path within it."""
    path, name = point(top)
    (top / "data" / "sub").mkdir(parents=True)
    (top / "data" / "sub" / "inside").write_text("x")
    sh("mount", "--bind", top / "data" / "sub", path)
    attrs = actual(name)
    assert attrs is not None
    assert attrs["root"] == "/data/sub"
    declared = KIND.parse(name, KIND.export(name, KIND.parse(name, {**attrs}, "/").declared, lambda _: None), "/")
    assert declared.declared.attrs == attrs
    sh("umount", path)
    restore(name, attrs)
    assert (path / "inside").read_text() == "x"
    assert actual(name) == attrs
    sh("umount", path)
    sh("mount", "-t", "tmpfs", "tmpfs", path)  # the same source and type, another root
    assert KIND.distance_n(attrs, actual(name)) == WHOLE_N
    restore(name, attrs)
    assert (path / "inside").read_text() == "x"


@isolated
def test_a_bind_mount_declared_as_in_fstab_conforms(top: Path) -> None:
    path, name = point(top)
    (top / "data").mkdir()
    (top / "data" / "inside").write_text("x")
    target = {"source": encode_name(os.fsencode(top / "data")), "fstype": "none", "options": ["bind", "nodev"]}
    restore(name, target)
    assert (path / "inside").read_text() == "x"
    sh("mount", "-o", "remount,bind,dev", path)
    assert KIND.distance_n(target, actual(name)) == HALF_N
    restore(name, target)
    sh("umount", path)
    (top / "other").mkdir()
    sh("mount", "--bind", top / "other", path)
    assert KIND.distance_n(target, actual(name)) == WHOLE_N
    restore(name, target)
    assert (path / "inside").read_text() == "x"


@isolated
def test_remounting_a_bind_mount_leaves_its_file_system_alone(top: Path) -> None:
    path, name = point(top)
    (top / "data").mkdir()
    sh("mount", "--bind", top / "data", path)
    attrs = actual(name)
    assert attrs is not None
    restore(name, {**attrs, "options": ["ro"]})
    (top / "data" / "still").write_text("writable")


# -- consumers ------------------------------------------------------------------------------------------------------


@isolated
def test_asking_the_kernel_a_hundred_times_never_unmounts(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    for _ in range(100):
        assert expire_says_busy(os.fsencode(path)) is False
    for _ in range(10):
        assert KIND.in_use(name, leave(name)) is False
    assert len(KIND.stack(name)) == 1
    with (path / "f").open("w"):
        assert [expire_says_busy(os.fsencode(path)) for _ in range(100)] == [True] * 100
    assert expire_says_busy(os.fsencode(top / "nothing-here")) is None
    assert len(KIND.stack(name)) == 1


@isolated
def test_every_way_of_holding_a_mount_is_found(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    assert find_holders([leave(name)]) == []
    shutil.copy("/bin/sleep", path / "sleep")
    holding = {
        "cwd": lambda: subprocess.Popen(["sleep", "60"], cwd=path),
        "exe": lambda: subprocess.Popen([path / "sleep", "60"]),
        "fd": lambda: subprocess.Popen(["sleep", "60"], stdout=(path / "out").open("w")),
    }
    for how, start in holding.items():
        process = start()
        try:
            found = find_holders([leave(name)])
            assert (process.pid, how) in {(h.pid, h.how) for h in found}, how
            assert {h.user for h in found if h.pid == process.pid} == {"root"}
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


@isolated
def test_mounts_inside_hold_a_mount_unless_they_leave_with_it(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    (path / "in").mkdir()
    sh("mount", "-t", "tmpfs", "tmpfs", path / "in")
    (holder,) = find_holders([leave(name)])
    assert (holder.how, holder.pid, holder.path) == ("mount", 0, f"{name}/in")
    left = find_holders([leave(f"{name}/in"), leave(name)])
    assert [h for h in left if h.path != "some processes could not be read"] == []


@isolated
def test_a_bound_socket_holds_its_mount(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path / "s"))
        assert ("socket", f"{name}/s") in {(h.how, h.path) for h in find_holders([leave(name)])}


@isolated
def test_a_loop_device_holds_the_mount_of_its_file(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    (path / "image").write_bytes(bytes(1 << 20))
    made = subprocess.run(["losetup", "--find", "--show", path / "image"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("no loop devices here")
    try:
        assert ("loop", f"{name}/image") in {(h.how, h.path) for h in find_holders([leave(name)])}
    finally:
        sh("losetup", "-d", made.stdout.strip())


def elsewhere(propagation: str, ready: Path) -> subprocess.Popen[bytes]:
    """A process in another mount namespace, there already."""
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", propagation, "sh", "-c", f"touch {ready}; exec sleep 60"]
    )
    while not ready.exists():
        pass
    return process


@isolated
def test_another_namespace_where_our_unmounting_does_not_reach_is_a_holder(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    process = elsewhere("private", top / "ready")
    try:
        (holder,) = kernel_holders(read_mounts()[-1], f"mount:{name}")
        assert (holder.how, holder.pid, holder.path) == ("mount", process.pid, name)
    finally:
        process.kill()
        process.wait()


@isolated
def test_a_namespace_that_follows_ours_is_no_holder(top: Path) -> None:
    path, name = point(top)
    sh("mount", "--make-shared", top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    process = elsewhere("slave", top / "ready")
    try:
        assert kernel_holders(read_mounts()[-1], f"mount:{name}") == []
    finally:
        process.kill()
        process.wait()


@isolated
def test_adopting_passes_over_what_is_the_kernels_or_a_containers(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    (path / "k").mkdir()
    sh("mount", "-t", "proc", "proc", path / "k")
    found = KIND.discover(f"{name}**")
    assert list(found.names) == [name]
    assert found.passed == {"the kernel's, a container's or an automounter's": 1}
    assert list(KIND.discover("/proc").names) == ["/proc"]


@isolated
def test_preflight_keeps_what_was_mounted(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    saved = KIND.preflight(name, leave(name), Keep(0))
    assert saved.refusal == ""
    assert saved.save["attrs"] == actual(name)
