"""The users of a mount: what the kernel says, what holds it without an open handle, and where else it is mounted.  # F5

Unmounting propagates like mounting: with ``/`` shared, as systemd has it, into every namespace that follows this one. A
process that uses such a copy makes the unmounting fail, and one that uses a copy which the unmounting does not reach
keeps the file system. The kernel's answer (``MNT_EXPIRE``) is about one copy only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from pact._fast import syscalls
from pact._fast.mounts import Others
from pact.model import Holder, encode_name
from pact.observe.mountinfo import MountEntry, parse_mountinfo, read_mounts
from pact.resources.support.loops import loops
from pact.resources.support.loose import LOOSE, MARKED, mounted, touch
from pact.resources.support.mount_table import Stacks, under
from pact.resources.support.peers import bound_sockets

#: File systems whose files all lie on the device that mountinfo shows: another number is another file system.
ONE_DEVICE: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "vfat", "tmpfs", "ramfs"})
#: The kernel's own types, of which every namespace has a copy.
KERNEL_TYPES: Final = frozenset(
    {
        "proc",
        "sysfs",
        "devtmpfs",
        "devpts",
        "cgroup",
        "cgroup2",
        "securityfs",
        "pstore",
        "bpf",
        "tracefs",
        "debugfs",
        "configfs",
        "mqueue",
        "hugetlbfs",
        "efivarfs",
        "selinuxfs",
        "fusectl",
        "rpc_pipefs",
        "ramfs",
    }
)
TAGS: Final = (b"shared", b"master")

_asking = threading.Lock()


def expire_says_busy(path: bytes) -> bool | None:
    """MNT_EXPIRE marks an idle mount and answers EAGAIN; touching the mount removes the mark again.

    On a mount that is marked already the same call unmounts. So it is used only for mounts that are about to be
    unmounted anyway, never for a mere question; only one process in this mount namespace uses it at a time; a mark of
    another process is removed before; and a mark that a kill leaves is on record, and removed at the next start.
    """
    with _alone("/proc/self/ns/mnt") as alone:
        there = [m for m in read_mounts() if m.mount_point == path] if alone else []
        if not there or not touch(path):
            return None
        try:
            with LOOSE.during(MARKED, **mounted(there[-1])):
                return _ask(path)
        except OSError:
            return None  # it could not be put on record


def _ask(path: bytes) -> bool | None:
    if not touch(path):
        return None
    try:
        syscalls.umount2(path, syscalls.MNT_EXPIRE | syscalls.UMOUNT_NOFOLLOW)
    except BlockingIOError:
        return False if touch(path) else None
    except OSError as exc:
        return True if exc.errno == errno.EBUSY else None
    return None


@contextmanager
def _alone(namespace: str) -> Iterator[int]:
    """A descriptor of a mount namespace, locked, so that no other process asks there. 0 if another process has the
    lock, or there is no such namespace; it does not wait, because any process may take the lock."""
    with _asking:
        try:
            space = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield 0
            return
        try:
            fcntl.flock(space, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield 0
        else:
            yield space
        finally:
            os.close(space)


def _busy_in(pid: int, namespace: str, path: bytes) -> bool | None:
    """The same question in the mount namespace of another process."""
    with _alone(f"/proc/{pid}/ns/mnt") as space:
        try:
            if not space or os.readlink(f"/proc/self/fd/{space}") != namespace:
                return None  # the pid belongs to another process by now
            return {0: False, 1: True}.get(syscalls.expire_in(space, path))
        except OSError:
            return None


def inside(entry: MountEntry) -> list[MountEntry]:
    """Mounts whose parent is this one."""
    return [m for m in read_mounts() if m.parent_id == entry.mount_id]


def kernel_holders(entry: MountEntry, resource: str) -> list[Holder]:
    """Holders of a mount without an open handle in /proc: mounts inside, loop devices, swap, sockets, namespaces."""
    out = [Holder(resource, 0, "mount", encode_name(m.mount_point)) for m in inside(entry)]
    point = entry.mount_point
    for loop in loops():
        elsewhere = entry.fstype in ONE_DEVICE and loop.device not in (None, (entry.major, entry.minor))
        if under(loop.file, point) and not elsewhere:
            out.append(Holder(resource, 0, "loop", encode_name(loop.file)))
    for path in _first_column("/proc/swaps")[1:]:
        if under(path, point):
            out.append(Holder(resource, 0, "unknown", encode_name(path) + " (swap)"))
    device = (entry.major, entry.minor)
    found = [p for p, there in _sockets() if under(p, point) and there in (None, device)]
    out += [Holder(resource, 0, "socket", encode_name(p)) for p in found]
    return out + Copies(entry).left_behind(resource)


def _first_column(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as f:
            return [line.split()[0] for line in f if line.split()]
    except OSError:
        return []


def _sockets() -> Sequence[tuple[bytes, tuple[int, int] | None]]:
    """Bound AF_UNIX sockets of this network namespace, and the device of the file system that has each. The text of a
    name proves nothing: any account can bind one of any name, on a mount of its own."""
    try:
        return bound_sockets()
    except OSError:
        pass
    try:
        with open("/proc/net/unix", "rb") as f:
            rows = [line.rstrip(b"\n").split(None, 7) for line in f][1:]
    except OSError:
        return []
    return [(row[7], None) for row in rows if len(row) == 8 and row[7].startswith(b"/")]


# -- copies ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Space:
    """A mount namespace as a process in it sees it; mount points are named as the kernel names them for this
    process."""

    namespace: str
    pid: int
    root: bytes
    mounts: Sequence[MountEntry]


@dataclass(frozen=True, slots=True)
class Copy:
    """The same file system (or a part of it) mounted elsewhere; ``goes``: this unmounting takes it off too."""

    space: Space
    entry: MountEntry
    goes: bool


def namespaces() -> list[Space]:
    """This namespace first, then each other one of a process. Raises OSError if this one cannot be read."""
    own = os.readlink("/proc/self/ns/mnt")
    out, seen = [Space(own, os.getpid(), b"/", read_mounts())], {(own, b"/")}
    others = Others(b"/proc")
    for pid in (p for p in os.listdir("/proc") if p.isdigit()):
        try:
            namespace, root = os.readlink(f"/proc/{pid}/ns/mnt"), os.readlink(b"/proc/%b/root" % pid.encode())
            if namespace == own or (namespace, root) in seen:
                continue
            seen.add((namespace, root))
            mounts = parse_mountinfo(others.read(b"/proc/%b" % pid.encode()))
        except (OSError, ValueError):
            continue  # the process has ended; the scan reports processes that may not be read
        if root != b"/":
            mounts = [replace(m, mount_point=os.path.normpath(root + b"/" + m.mount_point)) for m in mounts]
        out.append(Space(namespace, int(pid), root, mounts))
    return out


class Copies:
    """Where else a mount's file system is mounted, in this namespace and in others."""

    def __init__(self, entry: MountEntry) -> None:
        spaces = namespaces()
        self.own = spaces[0].namespace
        self.entry = entry
        parent = next((m for m in spaces[0].mounts if m.mount_id == entry.parent_id), None)
        followers = _followers(spaces, parent)
        self.found: list[Copy] = []
        for space in spaces:
            by_id = {m.mount_id: m for m in space.mounts}
            for other in space.mounts:
                if (other.major, other.minor) != (entry.major, entry.minor) or not under(other.root, entry.root):
                    continue
                if space.namespace == self.own and other.mount_id == entry.mount_id:
                    continue
                above = by_id.get(other.parent_id)
                goes = (
                    parent is not None
                    and above is not None
                    and other.root == entry.root
                    and not _groups(above).isdisjoint(followers)
                    and (above.major, above.minor) == (parent.major, parent.minor)
                    and _place(above, other) == _place(parent, entry)
                )
                self.found.append(Copy(space, other, goes))
        self._stays_here = any(c.space.namespace == self.own and not c.goes for c in self.found)

    def _counts(self, copy: Copy) -> bool:
        """Whether the copy matters. Not if the file system also stays mounted in this namespace: then other namespaces
        keep their copies, except copies of this mount itself."""
        same = (copy.entry.mount_point, copy.entry.root) == (self.entry.mount_point, self.entry.root)
        if copy.goes or self.entry.fstype in KERNEL_TYPES or copy.space.namespace == self.own:
            return copy.goes
        return same or not self._stays_here

    def busy(self) -> bool | None:
        """What the kernel says of all copies that this unmounting takes off, because each can make it fail; ``None``
        also if another namespace keeps the file system."""
        answers = [self._ask(copy) if copy.goes else None for copy in self.found if self._counts(copy)]
        return True if True in answers else None if None in answers else False

    def _ask(self, copy: Copy) -> bool | None:
        point = copy.entry.mount_point
        if Stacks(copy.space.mounts).at(point)[-1:] != [copy.entry] and copy.space.root == b"/":
            return None  # it lies below another mount, and the kernel would answer for that one
        if copy.space.namespace == self.own:
            return expire_says_busy(point)
        return _busy_in(copy.space.pid, copy.space.namespace, point)

    def left_behind(self, resource: str) -> list[Holder]:
        """One holder for each other namespace that keeps the file system: the unmounting does not reach it, or cannot
        take it off because of a mount inside."""
        out: dict[str, Holder] = {}
        for copy in self.found:
            if copy.space.namespace in (self.own, *out) or not self._counts(copy):
                continue
            within = [m for m in copy.space.mounts if m.parent_id == copy.entry.mount_id and not _tags(m)]
            if not copy.goes or within:
                shown = within[0] if copy.goes else copy.entry
                out[copy.space.namespace] = Holder(resource, copy.space.pid, "mount", encode_name(shown.mount_point))
        return list(out.values())

    def concerns(self, pid: int, text: bytes) -> bool:
        """Whether a process has something open, according to its link in /proc, through this mount or a copy that
        matters: not through another mount in this namespace, which stays. False for a process that has ended."""
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError:
            return os.path.exists(f"/proc/{pid}")
        near = [(c.entry.mount_point, self._counts(c)) for c in self.found if c.space.namespace == namespace]
        if namespace == self.own:
            near.append((self.entry.mount_point, True))
        return max(((len(point), counts) for point, counts in near if under(text, point)), default=(0, True))[1]


def _followers(spaces: Iterable[Space], parent: MountEntry | None) -> set[bytes]:
    """The peer groups that an event in ``parent`` reaches: its own, and all that follow them, directly or not."""
    reached = {number for tag, number in _tags(parent) if tag == b"shared"} if parent is not None else set()
    links = (
        {
            (master, shared)
            for space in spaces
            for m in space.mounts
            for tag, master in _tags(m)
            if tag == b"master"
            for other, shared in _tags(m)
            if other == b"shared"
        }
        if reached
        else set()
    )
    while True:
        more = {shared for master, shared in links if master in reached} - reached
        if not more:
            return reached
        reached |= more


def _tags(entry: MountEntry) -> list[tuple[bytes, bytes]]:
    tags = [o.partition(b":") for o in entry.optional]
    return [(tag, number) for tag, _, number in tags if tag in TAGS]


def _groups(entry: MountEntry) -> set[bytes]:
    return {number for _, number in _tags(entry)}


def _place(parent: MountEntry, entry: MountEntry) -> bytes:
    """The place of a mount in its parent's file system."""
    return os.path.normpath(os.path.join(parent.root, os.path.relpath(entry.mount_point, parent.mount_point)))
