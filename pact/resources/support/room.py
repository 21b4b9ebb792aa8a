"""Whether the file systems have room for a plan, step by step in the order in which it runs.

A file is replaced by a new one that is written beside it; then the old one goes. So the moment counts at which most is
needed, not the sum. What a removed file really gives back is only counted where that is sure: it has no other name,
nobody has it open, and its blocks are its own.
"""

from __future__ import annotations

import array
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from pact.core.plan import Step
from pact.host.sharing import sharing
from pact.model import decode_name, split_id
from pact.observe.mountinfo import read_mounts
from pact.resources.support.replace import somebody_has_open
from pact.resources.support.way import open_parent, open_regular

#: File systems on which no two files share blocks.
UNSHARED: Final = frozenset({"ext2", "ext3", "ext4", "tmpfs", "vfat"})
#: And where the kernel says whether they do.
TELLING: Final = frozenset({"xfs"})
BLOCK: Final = 512  # of ``st_blocks``
#: How long SQLite's log of the store may grow before it is written over from its beginning.
LOG_BYTES: Final = 6 << 20

FS_IOC_FIEMAP: Final = 0xC020660B
FIEMAP_FLAG_SYNC: Final = 1
FIEMAP_EXTENT_LAST: Final = 1
FIEMAP_EXTENT_SHARED: Final = 0x2000
FIEMAP_HEAD: Final = struct.Struct("=QQIIII")
FIEMAP_EXTENT: Final = struct.Struct("=QQQQQIIII")
EXTENTS_MAX: Final = 256


class Store(NamedTuple):
    """The store in which what a plan overwrites is kept before its first step."""

    path: str = ""
    bytes: int = 0  #: what is still to be kept


NO_STORE: Final = Store()


@dataclass(slots=True)
class FileSystem:
    """One on which steps of a plan write. ``block``: what a file takes is rounded up to it."""

    device: int
    block: int
    room: int
    files: int
    steps: list[Step]

    def lacks(self, kept: int) -> Iterator[str]:
        """Why it has not enough room; ``kept`` bytes are stored on it first."""
        sizes, files = sum(map(self._size, sharing(self.steps))), sum(map(makes, sharing(self.steps)))
        if kept + sizes <= self.room and files <= self.files:
            return  # even if nothing were given back
        size, count, worst, most = kept, 0, kept, 0
        give_back = GiveBack(self.device)
        for step in self.steps:
            size, count = size + self._size(step), count + makes(step)
            worst, most = max(worst, size), max(most, count)
            freed = give_back.of(step)
            size, count = size - freed, count - bool(freed)
        if worst > self.room:
            yield f"{self.steps[0].id}: its file system has room for {self.room} bytes, and the plan needs {worst}"
        elif most > self.files:
            yield f"{self.steps[0].id}: its file system has room for {self.files} files, and the plan makes {most}"

    def _size(self, step: Step) -> int:
        size = int((step.target or {}).get("size", 0)) if makes(step) else 0
        return -(-size // self.block) * self.block


def lacking(steps: Iterable[tuple[Step, int, os.statvfs_result]], store: Store) -> list[str]:
    """What is lacking for these steps, each with the device of its directory."""
    found: dict[int, FileSystem] = {}
    for step, device, said in steps:
        if not said.f_blocks:
            continue  # it does not say how large it is: ramfs, or tmpfs without a limit
        if device not in found:
            files = said.f_ffree if said.f_files else 1 << 62
            found[device] = FileSystem(device, said.f_frsize, said.f_bfree * said.f_frsize, files, [])
        found[device].steps.append(step)
    device, size = _stored(store)
    return [why for fs in found.values() for why in fs.lacks(size if fs.device == device else 0)]


def _stored(store: Store) -> tuple[int, int]:
    """The device of the store, and how much it will grow: each content goes through SQLite's log first."""
    try:
        device = os.stat(store.path).st_dev
        log = os.stat(store.path + "-wal").st_size
    except OSError:
        return -1, 0
    return device, store.bytes + max(0, min(store.bytes, LOG_BYTES) - log)


def makes(step: Step) -> int:
    """The number of new files that exist at the same time as the old ones."""
    target, actual = step.target, step.actual
    if target is None or (actual is not None and actual.get("type") == "directory" == target["type"]):
        return 0
    kept = ("type", "sha256", "target")
    return 0 if actual is not None and all(target.get(k, actual.get(k)) == actual.get(k) for k in kept) else 1


class GiveBack:
    """What the removal of old files gives back to a file system."""

    def __init__(self, device: int) -> None:
        self._device = device
        number = os.major(device), os.minor(device)
        types = {m.fstype for m in read_mounts() if (m.major, m.minor) == number}
        self._unshared = bool(types) and types <= UNSHARED | TELLING
        self._told = not types.isdisjoint(TELLING)

    def of(self, step: Step) -> int:
        """Bytes that are free when this step is done; 0 where that is not sure."""
        actual = step.actual
        if not self._unshared or actual is None or actual.get("type") != "file":
            return 0
        if step.target is not None and not makes(step):
            return 0
        try:
            dirfd, leaf, _ = open_parent(decode_name(split_id(step.id)[1]))
            try:
                fd = open_regular(dirfd, leaf)
            finally:
                os.close(dirfd)
        except (OSError, ValueError):
            return 0
        try:
            st = os.fstat(fd)
            own = stat.S_ISREG(st.st_mode) and st.st_dev == self._device and st.st_nlink == 1
            if not own or somebody_has_open(fd) is not False or (self._told and shares_blocks(fd)):
                return 0
            return st.st_blocks * BLOCK
        except OSError:
            return 0
        finally:
            os.close(fd)


def shares_blocks(fd: int) -> bool:
    """Whether other files may have blocks of this one (a copy by reference). A file in very many pieces counts as one
    that does. Raises OSError."""
    asked = array.array("B", FIEMAP_HEAD.pack(0, (1 << 64) - 1, FIEMAP_FLAG_SYNC, 0, EXTENTS_MAX, 0))
    asked.frombytes(bytes(EXTENTS_MAX * FIEMAP_EXTENT.size))
    fcntl.ioctl(fd, FS_IOC_FIEMAP, asked, True)
    count = FIEMAP_HEAD.unpack_from(asked)[3]
    flags = [FIEMAP_EXTENT.unpack_from(asked, FIEMAP_HEAD.size + n * FIEMAP_EXTENT.size)[5] for n in range(count)]
    return any(f & FIEMAP_EXTENT_SHARED for f in flags) or (bool(flags) and not flags[-1] & FIEMAP_EXTENT_LAST)
