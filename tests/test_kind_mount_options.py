"""Options of mounts: what they imply, what the kernel makes of them, and what it cannot tell."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_kind_mount import actual, isolated, point, restore, sh, tmpfs

from pact._fast import syscalls
from pact.core.plan import Step
from pact.model import Attrs, encode_name
from pact.observe.mountinfo import read_mounts
from pact.resources.base import HALF_N, WHOLE_N
from pact.resources.kinds.mount import KIND
from pact.resources.support.fstab import conforms, in_order, strict, to_write
from pact.resources.support.mount_look import attrs_of
from pact.resources.support.mount_options import MEMORY, Memory, kernel_makes, refused
from pact.resources.support.mount_table import Stacks
from pact.resources.support.mount_users import expire_says_busy

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("user", "nodev noexec nosuid user"),
        ("users", "nodev noexec nosuid users"),
        ("owner", "nodev nosuid owner"),
        ("group", "group nodev nosuid"),
        ("user,exec", "exec nodev nosuid user"),
        ("exec,user", "nodev noexec nosuid user"),
        ("user,suid,dev", "dev noexec suid user"),
        ("ro,rw", "rw"),
        ("rw,ro", "ro"),
        ("noatime,relatime", "relatime"),
        ("nouser", "nouser"),
        ("user,nouser", "nodev noexec nosuid nouser user"),
        ("noexec,defaults", "defaults noexec"),
        ("owner,user", "nodev noexec nosuid owner user"),
    ],
)
def test_options_mean_what_mount_takes_them_to_mean(written: str, means: str) -> None:
    assert in_order(written.split(",")) == means.split()
    assert in_order(to_write(means.split())) == means.split(), "and are read back as they were written"
    entry = KIND.parse("/m", {"source": "a", "fstype": "tmpfs", "options": written}, "/")
    again = KIND.parse("/m", KIND.export("/m", entry.declared, lambda _: None), "/")
    assert again == entry


@isolated
def test_nothing_is_mounted_less_strictly_than_mount_does(top: Path) -> None:
    path, name = point(top)
    for written in (
        "user",
        "users",
        "owner",
        "group",
        "user,exec",
        "exec,user",
        "user,suid",
        "dev,owner",
        "group,dev",
        "users,exec,ro",
        "ro,rw",
        "noexec,exec",
        "user,noauto,exec,nofail",
        "user,nouser",
    ):
        sh("mount", "-t", "tmpfs", "-o", written, "tmpfs", path)
        by_mount = actual(name)
        sh("umount", path)
        restore(name, KIND.parse(name, {"source": "tmpfs", "fstype": "tmpfs", "options": written}, "/").declared.attrs)
        assert actual(name) == by_mount, written
        sh("umount", path)


def test_what_was_declared_before_options_implied_others_is_mounted_as_strictly() -> None:
    assert strict(["user"]) == ["user", "noexec", "nosuid", "nodev"]
    assert strict(["exec", "user"]) == ["exec", "user", "nosuid", "nodev"]


@pytest.mark.parametrize(
    ("fstype", "declared", "have", "agree"),
    [
        ("xfs", "uquota", "rw,attr2,inode64,usrquota", True),
        ("xfs", "uquota", "rw,attr2,inode64,noquota", False),
        ("xfs", "noatime,inode64", "rw,noatime,inode64", True),
        ("ext4", "errors=remount-ro", "rw", True),
        ("ext4", "errors=remount-ro", "rw,errors=panic", False),
        ("ext4", "commit=30", "rw,commit=60", False),
        ("ext4", "discard", "rw,nodiscard", False),
        ("ext4", "nobarrier", "rw,barrier", False),
        ("ext4", "acl", "rw,noacl", False),
        ("nfs", "actimeo=60", "rw,acregmin=60,acregmax=60,acdirmin=60,acdirmax=60", True),
        ("nfs", "soft", "rw,hard", False),
        ("nfs", "rsize=1048576", "rw,rsize=524288", True),
        ("nfs", "rsize=1000000", "rw,rsize=999424", True),
        ("nfs", "rsize=4096", "rw,rsize=8192", False),
        ("nfs", "nconnect=4", "rw,nconnect=2", False),
        ("cifs", "credentials=/etc/x,uid=5", "rw,uid=5,forceuid", True),
        ("cifs", "uid=5", "rw,uid=6", False),
        ("cifs", "credentials=/etc/x,nosuid", "rw", False),
        ("lustre", "flock,user_xattr", "rw,flock,lazystatfs", True),
        ("btrfs", "subvol=@home", "rw,subvolid=256,subvol=/@home", True),
        ("btrfs", "subvol=@home", "rw,subvol=/@", False),
        ("ext4", "noexec", "rw", False),
        ("ext4", "ro", "rw", False),
        ("ext4", "nosymfollow", "rw", False),
        ("ext4", "sync", "rw", False),
        ("ext4", "lazytime", "rw", False),
        ("ext4", "strictatime", "rw", True),
        ("ext4", "strictatime", "rw,relatime", False),
        ("ext4", "X-mount.mkdir,x-a=b,loop,offset=512", "rw", True),
    ],
)
def test_what_the_kernel_does_not_show_cannot_be_verified_and_is_no_drift(
    fstype: str, declared: str, have: str, agree: bool
) -> None:
    assert conforms(declared.split(","), have.split(","), fstype) is agree


def test_what_a_mount_has_shown_before_is_missed_when_it_goes() -> None:
    assert conforms(["commit=30"], ["rw"], "ext4")
    assert not conforms(["commit=30"], ["rw"], "ext4", was=["commit=30"])
    assert conforms(["commit=5"], ["rw"], "ext4", was=["commit=30"])


def test_the_kernel_is_asked_what_it_makes_of_options() -> None:
    assert kernel_makes("tmpfs", ["size=10000000", "noexec", "user", "bg"]) == {"size": ("size=9768k",)}
    assert kernel_makes("tmpfs", ["huge=never"]) == {"huge": ()}
    assert kernel_makes("tmpfs", ["nosuchoption"]) is None
    assert kernel_makes("tmpfs", ["noexec"]) == {}
    assert kernel_makes("ext4", ["commit=30"]) is None
    assert refused("tmpfs", ["nosuchoption", "ro"]) and not refused("ext4", ["nosuchoption"])
    assert not refused("tmpfs", ["size=1m", "silent", "iversion", "shared", "x-a=b", "user", "nofail", "loop", "ro"])
    assert kernel_makes("proc", ["hidepid=2"]) in (
        {"hidepid": ("hidepid=invisible",)},
        {"hidepid": ("hidepid=2",)},
        None,
    )


@pytest.mark.alone
def test_asking_leaves_nothing_mounted_and_no_process() -> None:
    before, others = {m.mount_id for m in read_mounts()}, {child.pid for child in psutil.Process().children()}
    for number in range(20):
        assert kernel_makes("tmpfs", [f"size={number + 1}m"]) == {"size": (f"size={(number + 1) * 1024}k",)}
    assert {m.mount_id for m in read_mounts()} == before
    assert {child.pid for child in psutil.Process().children()} <= others


@isolated
def test_what_a_mount_showed_that_was_made_with_these_very_options_conforms(top: Path) -> None:
    """Of a file system that is not asked: the kernel's own spelling of a value is learnt, another value is drift."""
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    stack = KIND.stack(name)
    seen: Attrs = {"source": "srv:/x", "fstype": "odd", "options": ["level=9", "rw"]}
    declared: Attrs = {"source": "srv:/x", "fstype": "odd", "options": ["level=nine"]}
    assert KIND.distance_n(declared, seen) == HALF_N
    MEMORY.took(stack[-1], declared["options"], seen)
    known = MEMORY.add_to(seen, stack)
    assert known["took"] == {"level=nine": ["level=9"]}
    assert KIND.distance_n(declared, known) == 0
    assert KIND.distance_n(declared, {**known, "options": ["level=8", "rw"]}) == HALF_N
    assert KIND.distance_n({**declared, "options": ["level=ten"]}, known) == HALF_N


def test_what_is_remembered_survives_a_restart_and_a_reboot_but_for_the_numbers_of_mounts(tmp_path: Path) -> None:
    root = [m for m in read_mounts() if m.mount_point == b"/"][-1:]
    seen: Attrs = {"source": "s", "fstype": root[0].fstype, "options": ["commit=30", "rw"]}
    later: Attrs = {**seen, "options": ["rw"]}
    path = str(tmp_path / "seen")
    found: list[Any] = []
    for boot in ("one", "one", "two"):
        memory = Memory()
        memory.keep_in(path, boot)
        known = memory.add_to(later if found else seen, root)
        found.append((known.get("was"), known.get("base")))
        memory.add_to(seen, [*root, *root])
    assert found == [(None, None), (["commit=30"], True), (["commit=30"], None)]
    for broken in (b'{"boot": "one", "mounts": []}', b"[", b"[]", b'{"boot": 1, "kernel": 2, "mounts": {"a": 3}}'):
        (tmp_path / "seen").write_bytes(broken)
        Memory().keep_in(path, "one")


@isolated
def test_the_visible_mount_is_the_one_on_top_whatever_the_order_of_the_table(top: Path) -> None:
    path, name = point(top)
    sh("mount", "--make-private", top)
    other, _ = point(top, "other")
    sh("mount", "-t", "tmpfs", "first", other)
    sh("mount", "-t", "tmpfs", "second", path)
    sh("mount", "--move", other, path)
    assert [m.source for m in KIND.stack(name)] == [b"second", b"first"]
    seen = actual(name)
    assert seen is not None and seen["source"] == "first"


@isolated
def test_a_mount_that_another_one_hides_is_not_there(top: Path) -> None:
    path, _ = point(top)
    (path / "in").mkdir()
    name = encode_name(os.fsencode(path / "in"))
    sh("mount", "-t", "tmpfs", "inner", path / "in")
    sh("mount", "-t", "tmpfs", "over", path)
    assert KIND.stack(name) == [] and actual(name) is None
    (path / "in").mkdir()
    restore(name, tmpfs("size=1m"))
    assert len(Stacks(read_mounts()).at(os.fsencode(path / "in"))) == 1


@isolated
def test_asking_and_restoring_touch_the_mount_that_leaves_alone(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "below", path)
    (path / "kept").write_text("x")
    sh("mount", "-t", "tmpfs", "-o", "size=1m", "declared", path)
    target = {**tmpfs("size=1m"), "source": "declared"}
    assert actual(name) is not None
    sh("umount", path)
    step = Step(f"mount:{name}", target, actual(name))
    with open(path / "kept"):
        assert KIND.in_use(name, step) is False, "what is mounted over it disturbs nobody"
        restore(name, target)
    assert [m.source for m in KIND.stack(name)] == [b"below", b"declared"]


@isolated
def test_binds_of_files_of_binds_and_of_trees(top: Path) -> None:
    (top / "data" / "sub").mkdir(parents=True)
    (top / "data" / "sub" / "f").write_text("x")
    sh("mount", "-t", "tmpfs", "inner", top / "data" / "sub")
    (top / "data" / "sub" / "g").write_text("y")
    for number, (source, options) in enumerate(
        [
            ("data", ["bind", "ro"]),
            ("data", ["rbind"]),
            ("data/sub/g", ["bind", "ro", "noexec"]),
            ("m0", ["bind"]),
            ("data/", ["bind", "user"]),
        ]
    ):
        name = encode_name(os.fsencode(top / f"m{number}"))
        value = {"source": f"{top}/{source}", "fstype": "none", "options": options}
        target = KIND.parse(name, value, "/").declared.attrs
        assert target is not None
        restore(name, target)
        seen = actual(name)
        assert seen is not None
        assert set(target["options"]) - {"bind", "rbind", "user"} <= set(seen["options"])
        assert (top / f"m{number}").is_file() == source.endswith("/g")
    assert (top / "m1" / "sub" / "g").read_text() == "y"
    assert not (top / "m0" / "sub" / "g").exists()


def test_another_subvolume_is_another_mount() -> None:
    have: Attrs = {
        "source": "/dev/sda1",
        "fstype": "btrfs",
        "options": ["rw", "subvol=/@", "subvolid=256"],
        "root": "/@",
    }
    declared: Attrs = {"source": "/dev/sda1", "fstype": "btrfs", "options": ["subvol=@"]}
    assert KIND.distance_n(declared, have) == 0
    assert KIND.distance_n({**declared, "options": ["subvol=/@home"]}, have) == WHOLE_N


def test_a_trigger_is_no_mount_and_a_declared_trigger_may_have_one_on_it() -> None:
    trigger: Attrs = {"source": "systemd-1", "fstype": "autofs", "options": ["rw"]}
    over: Attrs = {"source": "srv:/x", "fstype": "nfs4", "options": ["rw"], "trigger": "systemd-1"}
    declared: Attrs = {"source": "srv:/x", "fstype": "nfs", "options": ["x-systemd.automount"]}
    assert KIND.distance_n(None, trigger) == KIND.distance_n(declared, trigger) == KIND.distance_n(declared, over) == 0
    assert KIND.distance_n({**declared, "options": []}, trigger) == WHOLE_N
    assert KIND.distance_n(trigger, over) == KIND.distance_n(trigger, trigger) == 0
    assert KIND.distance_n(trigger, {**over, "trigger": "other"}) == KIND.distance_n(trigger, None) == WHOLE_N
    assert KIND.distance_n(None, over) == WHOLE_N


@isolated
def test_an_access_time_that_is_always_written_is_seen(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "-o", "strictatime", "tmpfs", path)
    seen = attrs_of(KIND.stack(name)[-1])
    assert "strictatime" in seen["options"]
    sh("mount", "-o", "remount,relatime", path)
    assert KIND.distance_n(seen, actual(name)) == HALF_N
    restore(name, seen)


@isolated
def test_a_remount_reaches_every_flag_from_every_other(top: Path) -> None:
    """mount(8) merges what is mounted with what is asked for, so that an old noatime would win over a new relatime."""
    _, name = point(top)
    ways = [
        ["noatime"],
        ["relatime"],
        ["strictatime"],
        ["noatime", "nodiratime"],
        ["relatime", "diratime"],
        ["ro", "nosuid", "nodev", "noexec"],
        ["rw", "suid", "dev", "exec"],
        ["size=2m"],
        ["sync"],
        ["async"],
    ]
    restore(name, tmpfs("size=1m"))
    for before in ways:
        for after in ways:
            restore(name, tmpfs(*before))
            restore(name, tmpfs(*after))
            seen = KIND.observe(name)
            assert KIND.distance_n({"source": "tmpfs", "fstype": "tmpfs", "options": sorted(after)}, seen) == 0, (
                before,
                after,
                seen,
            )
    assert len(KIND.stack(name)) == 1


@isolated
def test_a_question_never_unmounts_what_somebody_else_has_marked(top: Path) -> None:
    """An agent that was killed between its question and taking the mark off left it; so may another program."""
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    (path / "only copy").write_text("x")
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            syscalls.umount2(os.fsencode(path), syscalls.MNT_EXPIRE | syscalls.UMOUNT_NOFOLLOW)
        assert expire_says_busy(os.fsencode(path)) is False
        assert (path / "only copy").read_text() == "x"
        assert len(KIND.stack(name)) == 1


@isolated
def test_many_questions_at_once_unmount_nothing(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "tmpfs", path)
    ends = time.monotonic() + 1.0

    def ask() -> None:
        while time.monotonic() < ends:
            expire_says_busy(os.fsencode(path))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(KIND.stack(name)) == 1
