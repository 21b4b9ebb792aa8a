"""How people write mounts, and how the kernel shows them: sources by tag, types, options. Pure.

Options that only say how or when to mount are not attributes of the mount.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

#: Types of containers, automounters and the kernel itself: never adopted by a pattern.
FOREIGN_TYPES: Final = frozenset(
    {
        "autofs",
        "overlay",
        "nsfs",
        "fuse.lxcfs",
        "fuse.portal",
        "fuse.gvfsd-fuse",
        "squashfs",
        "binfmt_misc",
    }
)

#: Options that never reach the kernel, and those that equal the kernel's default.
USERLAND: Final = frozenset(
    {
        "defaults",
        "auto",
        "noauto",
        "nofail",
        "_netdev",
        "user",
        "users",
        "nouser",
        "nousers",
        "owner",
        "noowner",
        "group",
        "nogroup",
        "loop",
        "offset",
        "sizelimit",
        "encryption",
        "helper",
        "uhelper",
    }
)
#: Options of helpers: how they try, not what is mounted.
HELPERS: Final = frozenset({"bg", "fg", "intr", "nointr", "retry"})
#: Flags that mount(8) passes to the kernel, and that no mount shows.
UNSEEN: Final = frozenset(
    {
        "silent",
        "loud",
        "iversion",
        "noiversion",
        "norelatime",
        "nostrictatime",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "unbindable",
        "runbindable",
    }
)
#: Options that say who may mount it, and what they imply for mount(8), unless a later option says otherwise.
IMPLYING: Final = {
    "user": ("noexec", "nosuid", "nodev"),
    "users": ("noexec", "nosuid", "nodev"),
    "owner": ("nosuid", "nodev"),
    "group": ("nosuid", "nodev"),
}
#: Tags of block devices in fstab, and the directories of udev's links for them.
TAGS: Final = {"UUID": "by-uuid", "LABEL": "by-label", "PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel"}
TAG_LINKS: Final = "/dev/disk"
UDEV_PLAIN: Final = frozenset("#+-.:=@_")
NFS_TYPES: Final = frozenset({"nfs", "nfs4"})
#: Values that a tmpfs does not show, by key; other defaults are asked from the kernel.
TMPFS_DEFAULTS: Final = {
    "mode": {"mode=1777"},
    "uid": {"uid=0"},
    "gid": {"gid=0"},
    "size": {"size=50%"},
    "nr_inodes": set[str](),
    "nr_blocks": set[str](),
    "huge": {"huge=never"},
}
DEFAULTS: Final = frozenset(
    {
        "rw",
        "exec",
        "suid",
        "dev",
        "async",
        "mand",
        "nomand",
        "relatime",
        "atime",
        "diratime",
        "strictatime",
        "nolazytime",
        "symfollow",
    }
)
OPPOSITE: Final = {
    "rw": {"ro"},
    "ro": {"rw"},
    "exec": {"noexec"},
    "noexec": {"exec"},
    "suid": {"nosuid"},
    "nosuid": {"suid"},
    "dev": {"nodev"},
    "nodev": {"dev"},
    "async": {"sync"},
    "sync": {"async"},
    "relatime": {"noatime", "strictatime"},
    "noatime": {"relatime", "strictatime", "atime"},
    "strictatime": {"noatime", "relatime"},
    "atime": {"noatime"},
    "diratime": {"nodiratime"},
    "nodiratime": {"diratime"},
    "lazytime": {"nolazytime"},
    "nolazytime": {"lazytime"},
    "symfollow": {"nosymfollow"},
    "nosymfollow": {"symfollow"},
    "soft": {"hard"},
    "hard": {"soft"},
    **{quota: {"noquota"} for quota in ("quota", "uquota", "usrquota", "gquota", "grpquota", "pquota", "prjquota")},
}
#: Options that every mount shows while they are in force, whatever its file system: if not shown, they are off.
SHOWN: Final = frozenset(
    {
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
        "nodiratime",
        "nosymfollow",
        "sync",
        "dirsync",
        "lazytime",
    }
)
FLAGS: Final = DEFAULTS | SHOWN
#: Options of which a server may grant less.
GRANTED: Final = frozenset({"rsize", "wsize", "bsize"})
BIND: Final = frozenset({"bind", "rbind"})
SIZES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60}
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def in_order(options: Iterable[str]) -> list[str]:
    """Options as mount(8) takes them, from left to right: with those that ``user`` and similar ones imply, and of two
    that exclude each other only the later one. Sorted, because from here on their order has no meaning."""
    out: list[str] = []
    for option in options:
        for word in (option, *IMPLYING.get(option, ())):
            out = [o for o in out if o != word and (word not in FLAGS or o not in OPPOSITE.get(word, ()))]
            out.append(word)
    return sorted(out)


def to_write(options: Iterable[str]) -> list[str]:
    """Options in an order that ``in_order`` reads back: those that imply others come first."""
    return sorted(options, key=lambda o: (o not in IMPLYING, o))


def strict(options: Iterable[str]) -> list[str]:
    """The options to mount with: with those that were implied before ``in_order`` wrote them down."""
    out = list(options)
    for option in options:
        out += [w for w in IMPLYING.get(option, ()) if w not in out and OPPOSITE[w].isdisjoint(out)]
    return out


def normal_option(option: str) -> str:
    """The canonical form of an option: sizes in bytes, octal modes without leading zeros."""
    key, sep, value = option.partition("=")
    if not sep:
        return key
    if key in ("size", "nr_blocks", "nr_inodes", "pagesize", "min_size"):
        match = re.fullmatch(r"(\d+)([kmgtpe]?)", value.lower())
        if match:
            number = int(match[1]) * SIZES[match[2]]
            return f"{key}={-(-number // PAGE) * PAGE if key == 'size' else number}"
    if key in ("mode", "umask", "fmask", "dmask") and value.isdigit():
        return f"{key}={value.lstrip('0') or '0'}"
    if key == "subvol":
        return f"{key}=/{value.strip('/')}"
    return option


def conforms(
    declared: Sequence[str],
    actual: Sequence[str],
    fstype: str,
    was: Sequence[str] = (),
    meant: Mapping[str, Sequence[str]] | None = None,
) -> bool:
    """Whether every declared option is in force; order, and undeclared options, do not matter.

    ``meant``: what the kernel shows for a declared option, by key, if it could be asked. ``was``: what this mount has
    shown before. An option about which the kernel shows nothing else cannot be verified, and is not drift.
    """
    have = {normal_option(o) for o in actual}
    said = _by_key(have)
    before = {normal_option(o) for o in was}
    for option in map(normal_option, declared):
        key = option.partition("=")[0]
        if in_userland(option) or option in BIND or option in UNSEEN or key in HELPERS:
            continue
        if option in FLAGS:
            if option not in have and (option in SHOWN or have & OPPOSITE.get(option, set())):
                return False
        elif meant is not None and key in meant:
            if said.get(key, set()) != {normal_option(o) for o in meant[key]}:
                return False
        elif option not in have and (option in before or not _may_be(option, fstype, have, said)):
            return False
    return meant is None or all(
        said.get(key, set()) == {normal_option(o) for o in shown} for key, shown in meant.items() if key not in FLAGS
    )


def _may_be(option: str, fstype: str, have: set[str], said: Mapping[str, set[str]]) -> bool:
    """Whether nothing that the kernel shows contradicts an option that it does not show literally."""
    key, _, value = option.partition("=")
    if fstype in NFS_TYPES and key in ("vers", "nfsvers", "tcp", "udp", "rdma"):
        return _nfs_has(option, have)
    if key in GRANTED and value.isdigit():
        return all(0 < int(h.partition("=")[2] or 0) <= int(value) for h in said.get(key, ()))
    # A tmpfs shows only values that are not defaults.
    if fstype == "tmpfs" and key in TMPFS_DEFAULTS and key not in said:
        return option in TMPFS_DEFAULTS[key]
    against = {f"no{key}", *([key[2:]] if key.startswith("no") else []), *OPPOSITE.get(option, ())}
    return key not in said and against.isdisjoint(said)


def _by_key(options: Iterable[str]) -> dict[str, set[str]]:
    out: dict[str, set[str]] = {}
    for option in options:
        out.setdefault(option.partition("=")[0], set()).add(option)
    return out


def in_userland(option: str) -> bool:
    return option.partition("=")[0] in USERLAND or option.lower().startswith(("x-", "comment=", "verity."))


def _nfs_has(option: str, have: set[str]) -> bool:
    """Whether an NFS option is in force: the kernel shows the negotiated version, with its minor number, and other
    words for some options."""
    key, _, value = option.partition("=")
    if key in ("vers", "nfsvers"):
        return any(h == f"vers={value}" or h.startswith(f"vers={value}.") for h in have)
    return key in ("tcp", "udp", "rdma") and f"proto={key}" in have


def same_type(declared: str, actual: str) -> bool:
    return declared in (actual, "auto") or {declared, actual} == NFS_TYPES


def device_of(source: str) -> str:
    """``UUID=...`` and similar tags as udev's link to the device; any other source as it is."""
    key, sep, value = source.partition("=")
    if not sep or key not in TAGS:
        return source
    value = value.strip('"')
    coded = "".join(c if c.isalnum() or c in UDEV_PLAIN or not c.isascii() else f"\\x{ord(c):02x}" for c in value)
    return f"{TAG_LINKS}/{TAGS[key]}/{coded}"
