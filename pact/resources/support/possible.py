"""Whether a plan's steps could be done, as far as that can be known before anything is touched.

Used for rollbacks, declarations and applications alike, including dry runs: does the user exist, is there room, can the
file system be written, does the kernel know this type of mount, does its source exist. Paths that may hang are not
examined, and what the plan itself creates does not count as missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from pact.core.plan import Step, below
from pact.host.sharing import sharing
from pact.model import Attrs, decode_name, encode_name, split_id
from pact.resources.base import errno_text
from pact.resources.support.accounts import group_id, user_id
from pact.resources.support.fstab import BIND, device_of
from pact.resources.support.room import NO_STORE, Store, lacking
from pact.resources.support.way import hangs

MODPROBE_S: Final = 10.0
HELPERS: Final = ("/sbin", "/usr/sbin", "/usr/local/sbin")


def impossible(steps: Sequence[Step], store: Store = NO_STORE) -> list[str]:
    """Why steps of this plan, in the order in which they run, cannot be done: one line for each reason. ``store`` takes
    what they overwrite."""
    mounts = [split_id(s.id)[1] for s in steps if s.id.startswith("mount:")]
    out: list[str] = []
    files = []
    for step in sharing(steps):
        kind, name = split_id(step.id)
        if kind == "file":
            out += [f"{step.id}: {why}" for why in _people(step.target)]
            if name != "/" and not any(below(name, m) for m in mounts):
                files.append(step)
        elif kind == "mount" and step.target is not None and _comes(step):
            out += [f"{step.id}: {why}" for why in _mount(step.target, steps)]
        elif kind == "link" and step.target is not None:
            out += [f"{step.id}: {why}" for why in _link(step.target, step.actual, steps)]
        elif kind == "service" and _masks(step):
            out += [f"{step.id}: {why}" for why in _in_the_way(name, steps)]
    return out + _places(files, store)


def _link(target: Attrs, actual: Attrs | None, steps: Sequence[Step]) -> list[str]:
    from pact.resources.support.link_checks import why_not_under

    of_plan = [(split_id(s.id)[1], s.target) for s in steps if s.id.startswith("link:")]
    return why_not_under(target, actual, dict(of_plan))


def _masks(step: Step) -> bool:
    return bool((step.target or {}).get("masked")) and not (step.actual or {}).get("masked")


def _in_the_way(name: str, steps: Sequence[Step]) -> list[str]:
    """Masking makes a link where an administrator's own unit file may lie; systemd never replaces that."""
    from pact.resources.support.unit_files import own_file

    path = own_file(name)
    if not os.path.lexists(path) or any(s.id == f"file:{path}" for s in steps):  # the file may be that link
        return []
    return [f"it cannot be masked: {path} is there; take that away first"]


def _people(target: Attrs | None) -> Iterator[str]:
    for key, known in (("owner", user_id), ("group", group_id)):
        if target is not None and key in target and known(target[key]) is None:
            yield f"there is no such {'user' if key == 'owner' else 'group'} here: {target[key]}"


def _places(steps: Iterable[Step], store: Store) -> list[str]:
    """File systems that cannot be written, or have no room for what the plan makes."""
    out: list[str] = []
    written: list[tuple[Step, int, os.statvfs_result]] = []
    places: dict[bytes, tuple[os.statvfs_result, int] | None] = {}
    for step in sharing(steps):
        path = os.path.dirname(decode_name(split_id(step.id)[1]))
        try:
            place = places[path] if path in places else places.setdefault(path, _place(path))
        except OSError as exc:
            out.append(f"{step.id}: {errno_text('its directory', exc)}")
            continue
        if place is None:
            continue
        found, device = place
        if found.f_flag & os.ST_RDONLY:
            out.append(f"{step.id}: its file system is read-only")
            continue
        written.append((step, device, found))
    return out + lacking(written, store)


# -- mounts ---------------------------------------------------------------------------------------------------------


def _comes(step: Step) -> bool:
    """Whether it is mounted anew, not only changed."""
    target, actual = step.target, step.actual
    assert target is not None
    return actual is None or (target["source"], target["fstype"]) != (actual["source"], actual["fstype"])


def _mount(target: Attrs, steps: Sequence[Step]) -> Iterator[str]:
    fstype, source = target["fstype"], decode_name(device_of(target["source"]))
    bind = not BIND.isdisjoint(target["options"])
    known = filesystems()
    needs_device = not bind and known.get(fstype, False)
    if not bind and fstype not in ("auto", "none") and fstype not in known and not _helped(fstype):
        yield f"the kernel knows no file system {fstype!r}"
        return
    if "root" in target and not bind:
        return  # a place within a file system that is mounted elsewhere: found when it is mounted
    if (bind or needs_device) and source.startswith(b"/") and not _brought(source, steps):
        try:
            if not hangs(source):
                os.stat(source)
        except OSError as exc:
            yield f"its source {encode_name(source)}: {os.strerror(exc.errno or 0).lower()}"
    elif needs_device and not source.startswith(b"/") and b"=" not in source:
        yield f"its source {encode_name(source)} is no device"


def _place(path: bytes) -> tuple[os.statvfs_result, int] | None:
    """The file system in which this directory is or will be, and its device; ``None`` if it may hang. Raises
    OSError."""
    if hangs(path):
        return None
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return os.statvfs(path), os.stat(path).st_dev


def _brought(source: bytes, steps: Iterable[Step]) -> bool:
    """Whether the same plan makes it, or mounts the file system that contains it."""
    path = encode_name(source)
    makers = (split_id(s.id)[1] for s in steps if s.id.startswith(("file:", "mount:")) and s.target is not None)
    return any(path == m or below(path, m) for m in makers)


def filesystems() -> Mapping[str, bool]:
    """The types that the kernel has now, and whether each needs a device."""
    try:
        with open("/proc/filesystems", encoding="ascii", errors="replace") as f:
            rows = [line.rstrip("\n").split("\t") for line in f]
    except OSError:
        return {}
    return {row[-1]: row[0] != "nodev" for row in rows if row[-1]}


def _helped(fstype: str) -> bool:
    """Whether a helper mounts this type, or mounting loads a module for it."""
    if any(os.path.exists(f"{place}/mount.{fstype.partition('.')[0]}") for place in HELPERS):
        return True
    modprobe = shutil.which("modprobe", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if modprobe is None:
        return False
    try:
        done = subprocess.run(
            [modprobe, "--dry-run", "--quiet", f"fs-{fstype}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MODPROBE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
