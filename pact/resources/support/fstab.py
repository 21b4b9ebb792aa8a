"""How people write mounts, and how the kernel shows them: sources by tag, types, options. Pure.

Options that only say how or when to mount are no part of what is mounted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

#: Of containers, automounters and the kernel itself: never adopted by a pattern.
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

#: Options that never reach the kernel, and those that say the kernel's default.
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
#: Flags that mount(8) gives the kernel, and that no option of a mount shows.
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
#: Who may mount it, and what mount(8) takes that to say, unless a later option says otherwise.
IMPLYING: Final = {
    "user": ("noexec", "nosuid", "nodev"),
    "users": ("noexec", "nosuid", "nodev"),
    "owner": ("nosuid", "nodev"),
    "group": ("nosuid", "nodev"),
}
#: How fstab names a block device, and where udev keeps the links.
TAGS: Final = {"UUID": "by-uuid", "LABEL": "by-label", "PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel"}
TAG_LINKS: Final = "/dev/disk"
UDEV_PLAIN: Final = frozenset("#+-.:=@_")
NFS_TYPES: Final = frozenset({"nfs", "nfs4"})
#: What a tmpfs does not show, by key: elsewhere than here it is asked of the kernel.
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
#: What every mount shows while it is in force, whatever its file system: unseen, it is not there.
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
#: What a server may grant less of.
GRANTED: Final = frozenset({"rsize", "wsize", "bsize"})
BIND: Final = frozenset({"bind", "rbind"})
SIZES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60}
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def in_order(options: Iterable[str]) -> list[str]:
    """Options as mount(8) takes them, from left to right: what ``user`` and its like imply, and of two that exclude
    each other the later one. Sorted, for from here on their order says nothing."""
    out: list[str] = []
    for option in options:
        for word in (option, *IMPLYING.get(option, ())):
            out = [o for o in out if o != word and (word not in FLAGS or o not in OPPOSITE.get(word, ()))]
            out.append(word)
    return sorted(out)


def to_write(options: Iterable[str]) -> list[str]:
    """Options so that ``in_order`` reads them back: who may mount it first, for what it implies is said after it."""
    return sorted(options, key=lambda o: (o not in IMPLYING, o))


def strict(options: Iterable[str]) -> list[str]:
    """What is to be mounted: with what was implied before ``in_order`` wrote it down."""
    out = list(options)
    for option in options:
        out += [w for w in IMPLYING.get(option, ()) if w not in out and OPPOSITE[w].isdisjoint(out)]
    return out


def normal_option(option: str) -> str:
    """One spelling for each option: sizes in bytes, octal modes without leading zeros."""
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
    """Every declared option is in force; order, and options that nobody declared, do not matter.

    ``meant``: what the kernel shows for a declared option, by key, where it could be asked. ``was``: what this mount
    has shown before. Beyond these, an option of which the kernel shows nothing cannot be verified, and is no drift.
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
    """Nothing that the kernel shows speaks against an option that it does not show as it is written."""
    key, _, value = option.partition("=")
    if fstype in NFS_TYPES and key in ("vers", "nfsvers", "tcp", "udp", "rdma"):
        return _nfs_has(option, have)
    if key in GRANTED and value.isdigit():
        return all(0 < int(h.partition("=")[2] or 0) <= int(value) for h in said.get(key, ()))
    if fstype == "tmpfs" and key in TMPFS_DEFAULTS and key not in said:  # it shows what is no default
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
