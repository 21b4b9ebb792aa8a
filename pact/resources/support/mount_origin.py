"""The origin of a mount: whether two mounts have the same file system, and the same place within it."""

from __future__ import annotations

import os

from pact.errors import RestoreError
from pact.model import Attrs, decode_name, encode_name
from pact.observe.mountinfo import read_mounts
from pact.resources.support.fstab import BIND, NFS_TYPES, device_of, normal_option, same_type
from pact.resources.support.mount_table import under
from pact.resources.support.way import hangs


def is_bind(attrs: Attrs) -> bool:
    return not BIND.isdisjoint(attrs["options"])


def same_origin(declared: Attrs, actual: Attrs) -> bool:
    """Whether both have the same file system, and the same place within it if the declaration names one."""
    if is_bind(declared):
        origin = _origin(decode_name(declared["source"]))
        return origin == (actual["source"], actual["fstype"], actual.get("root", "/"))
    if not same_type(declared["fstype"], actual["fstype"]):
        return False
    if declared.get("root", actual.get("root")) != actual.get("root"):
        return False
    subvolumes = [normal_option(o).partition("=")[2] for o in declared["options"] if o.startswith("subvol=")]
    if subvolumes and actual.get("root", "/") != subvolumes[-1]:
        return False
    return _same_source(declared, actual)


def _same_image(wanted: str, have: str) -> bool:
    return wanted == have or (wanted.startswith("/") and os.path.realpath(decode_name(wanted)) == decode_name(have))


def _same_source(declared: Attrs, actual: Attrs) -> bool:
    wanted, have = device_of(str(declared["source"])), str(actual["source"])
    if "backing" in actual and _same_image(str(declared.get("backing", wanted)), str(actual["backing"])):
        return True
    if "backing" in declared:
        return False
    if actual["fstype"] in NFS_TYPES and ":" in wanted:
        return wanted == have or wanted.rstrip("/") == have.rstrip("/")
    if wanted == have or actual.get("root") == wanted:
        return True
    if declared["fstype"] in ("tmpfs", "ramfs", "none"):
        return wanted in ("tmpfs", "none") and have in ("tmpfs", "none")
    if wanted.startswith("/"):
        try:
            return os.path.realpath(wanted) == os.path.realpath(have)
        except OSError:
            return False
    return False


def _origin(path: bytes) -> tuple[str, str, str] | None:
    """Source, type, and path within its file system, of what a bind mount of ``path`` shows."""
    path = path if hangs(path) else os.path.realpath(path)
    holding = [m for m in read_mounts() if under(path, m.mount_point)]
    if not holding:
        return None
    longest = max(len(m.mount_point) for m in holding)
    entry = [m for m in holding if len(m.mount_point) == longest][-1]
    within = os.path.join(entry.root, os.path.relpath(path, entry.mount_point))
    return encode_name(entry.source), entry.fstype, encode_name(os.path.normpath(within))


def inside_of(target: Attrs) -> bytes:
    """A path that shows ``root`` of the target's file system. Raises RestoreError if it is not mounted elsewhere."""
    root = decode_name(target["root"])
    for entry in read_mounts():
        if (encode_name(entry.source), entry.fstype) == (target["source"], target["fstype"]) and under(
            root, entry.root
        ):
            path = os.path.normpath(os.path.join(entry.mount_point, os.path.relpath(root, entry.root)))
            wanted = (target["source"], target["fstype"], target["root"])
            if os.path.exists(path) and _origin(path) == wanted:
                return path
    raise RestoreError(f"{target['root']} of {target['source']} can be reached nowhere; mount its file system first")
