"""Mounts within a whole plan, and as fstab writes them; each test in a mount namespace of its own."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import time
from pathlib import Path
from uuid import uuid4

import pytest
from test_kind_mount import actual, isolated, point, restore, sh, tmpfs

from pact.agent import worker
from pact.core.plan import Step, ordered
from pact.errors import RestoreError
from pact.model import Attrs
from pact.observe.mountinfo import read_mounts
from pact.resources.base import HALF_N, WHOLE_N
from pact.resources.kinds import mount
from pact.resources.kinds.mount import KIND
from pact.resources.rules import nature
from pact.resources.support.fstab import device_of

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


# -- a whole plan -----------------------------------------------------------------------------------------------------


@pytest.mark.invariant("R1", "R5", "F6")
@isolated
def test_nothing_is_written_below_a_mount_that_failed(top: Path) -> None:
    data = b"belongs into the mount"
    digest = hashlib.sha256(data).hexdigest()
    path, name = point(top)
    (path / "in").mkdir()
    steps = ordered(
        [
            Step(f"mount:{name}", {"source": "nosuch", "fstype": "nosuchfs", "options": []}, None),
            Step(f"file:{name}/in/conf", {"type": "file", "sha256": digest, "size": len(data)}, None),
            Step(f"mount:{name}/in", tmpfs("size=1m"), None),
            Step(f"file:{top}/beside", {"type": "file", "sha256": digest, "size": len(data)}, None),
        ],
        nature,
    )
    results = worker.act(steps, {digest: data}.get)
    assert "nosuch" in results.pop(f"mount:{name}")
    assert results == {
        f"file:{name}/in/conf": f"needs mount:{name}/in, which failed",
        f"mount:{name}/in": f"needs mount:{name}, which failed",
        f"file:{top}/beside": "",
    }
    assert os.listdir(path / "in") == []


@pytest.mark.invariant("R6")
@isolated
def test_a_kill_between_unmounting_and_mounting_is_gone_on_with(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "ramfs", "drifted", path)
    was = actual(name)
    step = Step(f"mount:{name}", tmpfs("size=1m"), was)
    sh("mount", "-o", "remount,bind,ro", path)  # as it is right before it is taken off
    assert worker.act((step,), {}.get) == {step.id: worker.MOVED}
    assert worker.act((step,), {}.get, resumed=True) == {step.id: ""}
    sh("umount", path)
    assert worker.act((step,), {}.get) == {step.id: worker.MOVED}
    assert worker.act((step,), {}.get, resumed=True) == {step.id: ""}
    assert KIND.distance_n(step.target, actual(name)) == 0


def runs(pid: str) -> bool:
    """Not ended, though perhaps nobody has asked for how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.invariant("F14")
@isolated
def test_a_mount_command_that_hangs_is_killed(top: Path) -> None:
    assert mount.MOUNT_TIMEOUT_S == 60
    mount.MOUNT_TIMEOUT_S = 0.5  # type: ignore[misc]  # of this child
    _, name = point(top)
    upper, _ = point(top, "upper")
    work, _ = point(top, "work")
    (upper / "mount.slow").write_text(f"#!/bin/sh\necho $PPID $$ > {top}/pid\nexec sleep 30\n")
    (upper / "mount.slow").chmod(0o755)
    sbin = os.path.realpath("/sbin")
    sh("mount", "-t", "overlay", "-o", f"lowerdir={sbin},upperdir={upper},workdir={work}", "overlay", sbin)
    before = time.monotonic()
    with pytest.raises(RestoreError, match=r"mount did not end within 0.5 s"):
        restore(name, {"source": "x", "fstype": "slow", "options": []})
    assert time.monotonic() - before < 5
    pid, helper = (top / "pid").read_text().split()
    assert not os.path.exists(f"/proc/{pid}"), "mount(8) is gone"
    ends = time.monotonic() + 5
    while runs(helper) and time.monotonic() < ends:
        time.sleep(0.02)  # it was killed, and is reaped when the machine comes to it
    assert not runs(helper), "and so is its helper"
    assert KIND.stack(name) == []


@pytest.mark.invariant("R2")
@isolated
def test_a_mount_that_moves_while_earlier_steps_run_is_left_as_it_is(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "ramfs", "drifted", path)
    data = b"x"
    digest = hashlib.sha256(data).hexdigest()
    first = Step(f"file:{top}/a", {"type": "file", "sha256": digest, "size": 1}, None)
    second = Step(f"mount:{name}", None, actual(name))

    def blobs(wanted: str) -> bytes | None:  # asked for while the first step runs
        sh("mount", "-o", "remount,noatime", path)
        return {digest: data}.get(wanted)

    assert worker.act((first, second), blobs) == {first.id: "", second.id: worker.MOVED}
    assert os.path.ismount(path)


@pytest.mark.invariant("R4")
@isolated
def test_nobody_writes_between_the_last_look_and_the_unmounting(top: Path) -> None:
    path, name = point(top)
    sh("mount", "-t", "tmpfs", "-o", "nosuid", "tmpfs", path)
    (path / "saved").write_bytes(b"saved")
    told = []

    def blobs(_: str) -> bytes | None:  # asked for while everything in it is looked at
        try:
            (path / "late").write_bytes(b"late")
        except OSError as exc:
            told.append(exc.errno)
        return blob

    blob: bytes | None = None
    before = actual(name)
    with pytest.raises(RestoreError, match="only in memory"):
        KIND.restore(name, Step(f"mount:{name}", None, before), blobs)
    assert told == [errno.EROFS]
    assert actual(name) == before, "it is written again, as it was"
    (path / "free").write_bytes(b"")
    with open(path / "open", "w"), pytest.raises(RestoreError, match="busy"):
        blob = b""
        KIND.restore(name, Step(f"mount:{name}", None, before), blobs)
    assert told == [errno.EROFS], "who has it open for writing keeps it"
    KIND.restore(name, Step(f"mount:{name}", None, before), blobs)
    assert not os.path.ismount(path)


# -- as fstab writes it ---------------------------------------------------------------------------------------------

NFS: Attrs = {
    "source": "srv:/x",
    "fstype": "nfs4",
    "options": ["hard", "proto=tcp", "relatime", "rw", "sec=sys", "timeo=600", "vers=4.2"],
}


@pytest.mark.parametrize(
    ("source", "fstype", "options", "distance"),
    [
        ("srv:/x", "nfs", [], 0),
        ("srv:/x", "nfs4", [], 0),
        ("srv:/x/", "nfs", [], 0),
        ("srv:/x", "auto", [], 0),
        ("srv:/y", "nfs", [], WHOLE_N),
        ("srv:/x", "ext4", [], WHOLE_N),
        ("srv:/x", "nfs", ["vers=4"], 0),
        ("srv:/x", "nfs", ["vers=4.2"], 0),
        ("srv:/x", "nfs", ["nfsvers=4"], 0),
        ("srv:/x", "nfs", ["vers=4.1"], HALF_N),
        ("srv:/x", "nfs", ["vers=3"], HALF_N),
        ("srv:/x", "nfs", ["vers="], HALF_N),
        ("srv:/x", "nfs", ["tcp"], 0),
        ("srv:/x", "nfs", ["rdma"], HALF_N),
        ("srv:/x", "nfs", ["soft"], HALF_N),
        (
            "srv:/x",
            "nfs",
            [
                "bg",
                "fg",
                "retry=5",
                "_netdev",
                "noauto",
                "nofail",
                "x-systemd.automount",
                "user",
                "users",
                "auto",
                "defaults",
                "comment=x",
                "intr",
            ],
            0,
        ),
    ],
)
def test_a_network_mount_as_fstab_writes_it_conforms(
    source: str, fstype: str, options: list[str], distance: int
) -> None:
    assert KIND.distance_n({"source": source, "fstype": fstype, "options": options}, NFS) == distance


def test_the_links_of_udev_have_their_names_encoded() -> None:
    assert device_of("LABEL=a b/c\\ü") == "/dev/disk/by-label/a\\x20b\\x2fc\\x5cü"
    assert device_of('PARTUUID="12-34"') == "/dev/disk/by-partuuid/12-34"
    assert device_of("/dev/x=y") == "/dev/x=y"


def loop_device(top: Path) -> tuple[Path, str]:
    """A device with an ext4 on it, and its UUID; in a ``/dev`` of this namespace's own. Detached with its last user."""
    image, own = top / "image", top / "dev"
    with open(image, "wb") as f:
        f.truncate(8 << 20)
    uuid = str(uuid4())
    sh("mkfs.ext4", "-q", "-U", uuid, image)
    try:
        device = subprocess.run(
            ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True
        ).stdout
    except subprocess.CalledProcessError:
        pytest.skip("no loop devices here")
    own.mkdir()
    node = own / Path(device.strip()).name
    os.mknod(node, 0o600 | stat.S_IFBLK, os.stat(device.strip()).st_rdev)
    for name in ("null", "urandom"):
        sh("cp", "-a", f"/dev/{name}", own / name)
    sh("mount", "--bind", own, "/dev")
    return Path("/dev") / node.name, uuid


@isolated
@pytest.mark.needs("mkfs.ext4")
def test_a_device_named_by_its_uuid_is_mounted_once_and_conforms(top: Path) -> None:
    device, uuid = loop_device(top)
    try:
        Path("/dev/disk/by-uuid").mkdir(parents=True)
        Path("/dev/disk/by-uuid", uuid).symlink_to(device)
        path, name = point(top)
        target = {"source": f"UUID={uuid}", "fstype": "ext4", "options": ["noatime", "nofail"]}
        restore(name, target)
        first = KIND.top(name)
        restore(name, target)
        assert KIND.top(name) == first is not None
        sh("umount", path)
    finally:
        sh("losetup", "-d", device)


@isolated
@pytest.mark.needs("mkfs.ext4")
def test_what_was_mounted_and_does_not_conform_stays_and_is_said(top: Path) -> None:
    """Nobody's mount is taken off eight times in the hope that the ninth is better: no link says whose UUID it is."""
    device, uuid = loop_device(top)
    _, name = point(top)
    target = {"source": f"UUID={uuid}", "fstype": "ext4", "options": []}
    try:
        before = mount_ids()
        with pytest.raises(RestoreError, match=r"does not conform: /dev/loop\d+ \(ext4\) is mounted, not UUID="):
            KIND.restore(name, Step(f"mount:{name}", target, None), lambda _: None)
        assert mount_ids() - before == {KIND.stack(name)[-1].mount_id}
        assert times_mounted(uuid) == 1
        sh("umount", top / "m")
    finally:
        sh("losetup", "-d", device)


def times_mounted(uuid: str) -> int:
    """As the kernel's log says."""
    said = subprocess.run(["dmesg"], check=True, capture_output=True, text=True).stdout
    return said.count(f"): mounted filesystem {uuid}")


def mount_ids() -> set[int]:
    return {m.mount_id for m in read_mounts()}
