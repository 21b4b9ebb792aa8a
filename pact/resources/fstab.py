"""How people write mounts, and how the kernel shows them: sources by tag, types, options. Pure.

Options that only say how or when to mount are no part of what is mounted.
"""

from __future__ import annotations

import re
from typing import Final

#: Options that never reach the kernel, and those that say the kernel's default.
USERLAND: Final = frozenset({
    "defaults", "auto", "noauto", "nofail", "_netdev", "user", "users", "nouser", "owner", "noowner", "group",
    "nogroup",
})  # fmt: skip
#: Options of helpers: how they try, not what is mounted.
HELPERS: Final = frozenset({"bg", "fg", "intr", "nointr", "retry"})
#: How fstab names a block device, and where udev keeps the links.
TAGS: Final = {"UUID": "by-uuid", "LABEL": "by-label", "PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel"}
TAG_LINKS: Final = "/dev/disk"
UDEV_PLAIN: Final = frozenset("#+-.:=@_")
NFS_TYPES: Final = frozenset({"nfs", "nfs4"})
DEFAULTS: Final = frozenset({"rw", "exec", "suid", "dev", "async", "mand", "nomand", "relatime", "atime", "diratime"})
OPPOSITE: Final = {
    "rw": {"ro"}, "ro": {"rw"}, "exec": {"noexec"}, "noexec": {"exec"}, "suid": {"nosuid"}, "nosuid": {"suid"},
    "dev": {"nodev"}, "nodev": {"dev"}, "async": {"sync"}, "sync": {"async"},
    "relatime": {"noatime", "strictatime"}, "noatime": {"relatime", "strictatime", "atime"},
    "strictatime": {"noatime", "relatime"}, "atime": {"noatime"}, "diratime": {"nodiratime"},
    "nodiratime": {"diratime"},
}  # fmt: skip
BIND: Final = frozenset({"bind", "rbind"})
SIZES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def normal_option(option: str) -> str:
    """One spelling for each option: sizes in bytes, octal modes without leading zeros."""
    key, sep, value = option.partition("=")
    if not sep:
        return key
    if key in ("size", "nr_blocks", "nr_inodes"):
        match = re.fullmatch(r"(\d+)([kmgt]?)", value.lower())
        if match:
            return f"{key}={int(match[1]) * SIZES[match[2]]}"
    if key in ("mode", "umask", "fmask", "dmask") and value.isdigit():
        return f"{key}={value.lstrip('0') or '0'}"
    return option


def conforms(declared: list[str], actual: list[str], fstype: str) -> bool:
    """Every declared option is in force; order, and options that nobody declared, do not matter."""
    have = {normal_option(o) for o in actual}
    for option in map(normal_option, declared):
        if in_userland(option) or option in BIND or option in have or option.partition("=")[0] in HELPERS:
            continue
        if fstype in NFS_TYPES and _nfs_has(option, have):
            continue
        if option in DEFAULTS and not have & OPPOSITE.get(option, set()):
            continue
        if fstype == "tmpfs" and option in ("mode=1777", "uid=0", "gid=0") and not any(
            h.startswith(option.partition("=")[0] + "=") for h in have
        ):
            continue
        return False
    return True


def in_userland(option: str) -> bool:
    return option in USERLAND or option.startswith(("x-", "comment="))


def _nfs_has(option: str, have: set[str]) -> bool:
    """The kernel writes the version as it was agreed on, to the minor number, and other words for some options."""
    key, _, value = option.partition("=")
    if key in ("vers", "nfsvers"):
        return any(h == f"vers={value}" or h.startswith(f"vers={value}.") for h in have)
    return key in ("tcp", "udp", "rdma") and f"proto={key}" in have


def same_type(declared: str, actual: str) -> bool:
    return declared in (actual, "auto") or {declared, actual} == NFS_TYPES


def device_of(source: str) -> str:
    """``UUID=...`` and its like as the link that udev keeps to the device; anything else as it is."""
    key, sep, value = source.partition("=")
    if not sep or key not in TAGS:
        return source
    value = value.strip('"')
    coded = "".join(c if c.isalnum() or c in UDEV_PLAIN or not c.isascii() else f"\\x{ord(c):02x}" for c in value)
    return f"{TAG_LINKS}/{TAGS[key]}/{coded}"
