"""Mounts. Attributes: ``source``, ``fstype``, ``options`` (sorted; only those that are declared are compared).

Restoring uses mount(8), which knows every file system's helper; unmounting asks the kernel plainly and never lazily.
What is mounted over a declared mount and is not declared is taken off first, if nobody uses it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

from pact._fast import syscalls
from pact.core.plan import Step, below
from pact.errors import RestoreError
from pact.model import Attrs, Declared, Holder, Observation, Unreadable, decode_name, encode_name
from pact.observe.mountinfo import MountEntry, is_remote, parse_mountinfo
from pact.resources.base import (
    HALF_N,
    WHOLE_N,
    Blobs,
    Entry,
    Found,
    Keep,
    Kind,
    Saved,
    common,
    errno_text,
    export_common,
    path_of,
    refuse_unknown,
    run_tool,
)
from pact.resources.fstab import BIND, NFS_TYPES, OPPOSITE, conforms, device_of, in_userland, same_type
from pact.resources.loops import loop_files
from pact.resources.memory import MEMORY_TYPES, keep_contents, require_kept
from pact.resources.patterns import WILD, compile_pattern
from pact.resources.way import hangs

MOUNT_TIMEOUT_S: Final = 60
STACK_MAX: Final = 16
#: File systems whose files all lie on the device that mountinfo shows: another number is another file system.
ONE_DEVICE: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "vfat", "tmpfs", "ramfs"})

#: Of containers, automounters and the kernel itself: never adopted by a pattern.
FOREIGN_TYPES: Final = frozenset({
    "autofs", "overlay", "nsfs", "fuse.lxcfs", "fuse.portal", "fuse.gvfsd-fuse", "squashfs", "binfmt_misc",
})  # fmt: skip
KERNEL_TYPES: Final = frozenset({
    "proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "securityfs", "pstore", "bpf", "tracefs", "debugfs",
    "configfs", "mqueue", "hugetlbfs", "efivarfs", "selinuxfs", "fusectl", "rpc_pipefs", "ramfs",
})  # fmt: skip
PASSED_PATHS: Final = ("/run", "/proc", "/sys", "/dev", "/var/lib/docker", "/var/lib/containers", "/var/lib/kubelet")

#: Of a mount of a directory that is mounted elsewhere only these are its own, the others its file system's.
OWN_FLAGS: Final = frozenset({
    "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "atime", "nodiratime", "diratime",
    "relatime", "strictatime", "nosymfollow",
})  # fmt: skip
#: What the kernel leaves unsaid, and what it says instead: named, so that it is seen when it goes.
UNSAID: Final = {"dev": "nodev", "exec": "noexec", "suid": "nosuid"}
KEYS: Final = frozenset({"source", "fstype", "options", "type", "root"})


def read_mounts(pid: str = "self") -> list[MountEntry]:
    """The mount table of a process's namespace, in mount order. Raises OSError."""
    with open(f"/proc/{pid}/mountinfo", "rb") as f:
        return parse_mountinfo(f.read())


def attrs_of(entry: MountEntry) -> Attrs:
    named = {encode_name(o) for o in [*entry.options, *entry.super_options]} - {"rw"}
    options = sorted(named | _rw(entry) | {plain for plain, other in UNSAID.items() if other not in named})
    attrs: Attrs = {"source": encode_name(entry.source), "fstype": entry.fstype, "options": options}
    if entry.root != b"/":
        attrs["root"] = encode_name(entry.root)
    return attrs


def _rw(entry: MountEntry) -> set[str]:
    """A mount is read-write only if both the mount and its file system are."""
    return set() if b"ro" in entry.options or b"ro" in entry.super_options else {"rw"}


class Mount(Kind):
    name = "mount"

    def canonical(self, name: str) -> str:
        return encode_name(path_of(name))

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        path_of(name)
        if not isinstance(value, dict):
            raise ValueError("a mount is a table: source, fstype, options")
        refuse_unknown(value, KEYS)
        if value.get("type") == "absent":
            return Entry(Declared(None, **common(value)))
        if "type" in value:
            raise ValueError('type may only be "absent" for a mount')
        for key in ("source", "fstype"):
            if not isinstance(value.get(key), str) or not value[key]:
                raise ValueError(f"{key} is missing or not a string")
        options = value.get("options", [])
        if isinstance(options, str):
            options = [o for o in options.split(",") if o]
        if not isinstance(options, list) or not all(isinstance(o, str) and o and "," not in o for o in options):
            raise ValueError("options must be a list of strings without commas")
        if b"\0" in decode_name(value["source"]) or "\0" in value["fstype"] + "".join(options):
            raise ValueError("nothing about a mount has a NUL in it")
        attrs = {"source": encode_name(decode_name(value["source"])), "fstype": value["fstype"],
                 "options": sorted(set(options))}  # fmt: skip
        if "root" in value:
            if not isinstance(value["root"], str) or not value["root"].startswith("/"):
                raise ValueError("root must be the path within the file system that is mounted here")
            attrs["root"] = encode_name(decode_name(value["root"]))
        return Entry(Declared(attrs, **common(value)))

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        if declared.attrs is None:
            return {"type": "absent", **export_common(declared)}
        keep = {k: declared.attrs[k] for k in ("source", "root", "fstype", "options") if k in declared.attrs}
        return {**keep, **export_common(declared)}

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        return MountTable().observe(name)

    def stack(self, name: str) -> list[MountEntry]:
        """The mounts at this very point, the visible one last."""
        path = decode_name(name)
        return [m for m in read_mounts() if m.mount_point == path]

    def top(self, name: str) -> MountEntry | None:
        stack = self.stack(name)
        return stack[-1] if stack else None

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if declared is None or actual is None:
            return 0 if declared == actual else WHOLE_N
        if not _same_origin(declared, actual):
            return WHOLE_N
        return 0 if conforms(declared["options"], actual["options"], actual["fstype"]) else HALF_N

    # -- restoring ----------------------------------------------------------------------------------------------

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        stack = self.stack(name)
        leaves = len(stack) > 1 or step.target is None or (
            bool(stack) and not _same_origin(step.target, attrs_of(stack[-1]))
        )  # fmt: skip
        files, lost = keep_contents(stack[-1], read_mounts(), keep) if stack and leaves else ({}, "")
        return Saved(f"{step.id}: {lost}" if lost else "", {"attrs": step.actual, "files": files})

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        target, mounted = step.target, False
        for _ in range(STACK_MAX):
            stack = self.stack(name)
            actual = attrs_of(stack[-1]) if stack else None
            if self.distance_n(target, actual) == 0:
                return
            if mounted:  # somebody may use it by now, and the next one would be no better
                assert target is not None
                raise RestoreError(f"it was mounted as declared, but that does not conform: {_unlike(target, actual)}")
            if actual is None:
                assert target is not None
                self._mount(name, target)
                mounted = True
            elif target is not None and len(stack) == 1 and _same_origin(target, actual):
                self._remount(name, target, actual)
                return
            else:
                self._unmount(name, blobs)
        raise RestoreError("more mounts on top of each other than can be taken off")

    def _unmount(self, name: str, blobs: Blobs) -> None:
        entry, path = self.top(name), decode_name(name)
        frozen = entry is not None and _freeze(entry)
        try:
            if entry is not None:
                require_kept(entry, read_mounts(), blobs)
            syscalls.umount2(path, syscalls.UMOUNT_NOFOLLOW)
        except (OSError, RestoreError) as exc:
            if frozen:
                syscalls.mount_read_only(path, False)
            if isinstance(exc, RestoreError):
                raise
            raise RestoreError(f"umount: {os.strerror(exc.errno or 0).lower()}") from None

    def _mount(self, name: str, target: Attrs) -> None:
        path = decode_name(name)
        if os.path.realpath(path) != path:
            raise RestoreError("the mount point lies behind a symbolic link; it is not followed")
        if not os.path.exists(path):
            os.makedirs(path)
        source, fstype, options = decode_name(target["source"]), target["fstype"], _kernel_options(target)
        if "root" in target and not any(o.startswith("subvol") for o in options):
            source, fstype, options = _inside_of(target), "none", ["bind", *(o for o in options if o in OWN_FLAGS)]
        command = [b"mount", b"-n", b"-t", fstype.encode()]
        if options:
            command += [b"-o", ",".join(options).encode()]
        run_tool("mount", MOUNT_TIMEOUT_S, [*command, b"--", source, path])

    def _remount(self, name: str, target: Attrs, actual: Attrs) -> None:
        declared = [o for o in _kernel_options(target) if o not in BIND]
        gone = set[str]().union(*(OPPOSITE.get(o, set()) for o in declared))
        keys = {o.partition("=")[0] for o in declared if "=" in o}
        kept = [o for o in actual["options"] if o not in gone and o.partition("=")[0] not in keys and o not in declared]
        words = [*kept, *declared]
        if "root" in actual or _is_bind(target):  # its file system, which others use too, is left alone
            words = ["bind", *(o for o in words if o in OWN_FLAGS)]
        options = ",".join(["remount", *words])
        run_tool("mount", MOUNT_TIMEOUT_S, [b"mount", b"-n", b"-o", options.encode(), b"--", decode_name(name)])

    # -- consumers ----------------------------------------------------------------------------------------------

    def in_use(self, name: str, step: Step) -> bool | None:
        """Ask the kernel with MNT_EXPIRE; not for network mounts, which may hang, nor where mounts lie inside.  # F5"""
        if step.actual is None:
            return False
        entry = self.top(name)
        if entry is None:
            return False
        if is_remote(entry.fstype) or inside(entry):
            return None
        return expire_says_busy(entry.mount_point)

    def roots(self, name: str, step: Step) -> list[bytes]:
        return [decode_name(name)] if step.actual is not None else []

    def holders(self, name: str, step: Step, resource: str) -> list[Holder]:
        entry = self.top(name)
        return [] if entry is None else kernel_holders(entry, resource)

    # -- adopt --------------------------------------------------------------------------------------------------

    def discover(self, pattern: str) -> Found:
        passed: dict[str, int] = {}
        return Found(self._names(pattern, passed), passed)

    def _names(self, pattern: str, passed: dict[str, int]) -> Iterator[str]:
        raw = pattern.encode("utf-8", "surrogateescape")
        if not WILD.search(raw):
            yield self.canonical(pattern)
            return
        matcher, seen = compile_pattern(raw), set()
        for entry in read_mounts():
            if not matcher.match(entry.mount_point) or entry.mount_point in seen:
                continue
            seen.add(entry.mount_point)
            text = encode_name(entry.mount_point)
            if entry.fstype in FOREIGN_TYPES or entry.fstype in KERNEL_TYPES:
                passed["the kernel's, a container's or an automounter's"] = (
                    passed.get("the kernel's, a container's or an automounter's", 0) + 1
                )
            elif any(text == p or below(text, p) for p in PASSED_PATHS):
                passed["volatile place"] = passed.get("volatile place", 0) + 1
            else:
                yield text


def _kernel_options(target: Attrs) -> list[str]:
    return [o for o in target["options"] if not in_userland(o) and o != "bg"]  # in the background nobody sees it fail


def _unlike(target: Attrs, actual: Attrs | None) -> str:
    """What a mount has that is not as declared, for people."""
    if actual is None:
        return "nothing is mounted"
    if not _same_origin(target, actual):
        return f"{actual['source']} ({actual['fstype']}) is mounted, not {target['source']} ({target['fstype']})"
    missing = [o for o in target["options"] if not conforms([o], actual["options"], actual["fstype"])]
    return "the kernel does not show the options " + ", ".join(missing)


def _freeze(entry: MountEntry) -> bool:
    """Where it could be written between the last look and its unmounting, nobody writes any more. False where that
    cannot be, or is so already: then the look right before is all there is, and who has it open is told by umount."""
    if entry.fstype not in MEMORY_TYPES or b"ro" in entry.options:
        return False
    try:
        syscalls.mount_read_only(entry.mount_point, True)
    except OSError:
        return False
    return True


def _is_bind(attrs: Attrs) -> bool:
    return not BIND.isdisjoint(attrs["options"])


def _same_origin(declared: Attrs, actual: Attrs) -> bool:
    """The same file system, and the same place within it where the declaration says one."""
    if _is_bind(declared):
        origin = _origin(decode_name(declared["source"]))
        return origin == (actual["source"], actual["fstype"], actual.get("root", "/"))
    if not same_type(declared["fstype"], actual["fstype"]):
        return False
    if declared.get("root", actual.get("root")) != actual.get("root"):
        return False
    return _same_source(declared, actual)


def _same_source(declared: Attrs, actual: Attrs) -> bool:
    wanted, have = device_of(str(declared["source"])), str(actual["source"])
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
    holding = [m for m in read_mounts() if _under(path, m.mount_point)]
    if not holding:
        return None
    longest = max(len(m.mount_point) for m in holding)
    entry = [m for m in holding if len(m.mount_point) == longest][-1]
    within = os.path.join(entry.root, os.path.relpath(path, entry.mount_point))
    return encode_name(entry.source), entry.fstype, encode_name(os.path.normpath(within))


def _inside_of(target: Attrs) -> bytes:
    """A path that shows ``root`` of the target's file system. Raises RestoreError if it is mounted nowhere else."""
    root = decode_name(target["root"])
    for entry in read_mounts():
        if (encode_name(entry.source), entry.fstype) == (target["source"], target["fstype"]) and _under(
            root, entry.root
        ):
            path = os.path.normpath(os.path.join(entry.mount_point, os.path.relpath(root, entry.root)))
            wanted = (target["source"], target["fstype"], target["root"])
            if os.path.exists(path) and _origin(path) == wanted:
                return path
    raise RestoreError(f"{target['root']} of {target['source']} can be reached nowhere; mount its file system first")


def inside(entry: MountEntry) -> list[MountEntry]:
    """Mounts whose parent is this one."""
    return [m for m in read_mounts() if m.parent_id == entry.mount_id]


def expire_says_busy(path: bytes) -> bool | None:
    """MNT_EXPIRE marks an idle mount and answers EAGAIN; the mark is taken off again by touching the mount.

    Never called twice in a row: the second call on a marked mount would unmount it.
    """
    try:
        syscalls.umount2(path, syscalls.MNT_EXPIRE | syscalls.UMOUNT_NOFOLLOW)
    except BlockingIOError:
        try:
            os.close(os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW))
        except OSError:
            return None
        return False
    except OSError as exc:
        import errno

        return True if exc.errno == errno.EBUSY else None
    return None


def kernel_holders(entry: MountEntry, resource: str) -> list[Holder]:
    """What holds a mount without an open handle in /proc: mounts inside, loop devices, swap, sockets, namespaces."""
    out = [Holder(resource, 0, "mount", encode_name(m.mount_point)) for m in inside(entry)]
    point = entry.mount_point
    for backing, device in loop_files():
        elsewhere = entry.fstype in ONE_DEVICE and device not in (None, (entry.major, entry.minor))
        if _under(backing, point) and not elsewhere:
            out.append(Holder(resource, 0, "loop", encode_name(backing)))
    for path in _first_column("/proc/swaps")[1:]:
        if _under(path, point):
            out.append(Holder(resource, 0, "unknown", encode_name(path) + " (swap)"))
    out += [Holder(resource, 0, "socket", encode_name(p)) for p in _socket_paths() if _under(p, point)]
    out += _other_namespaces(entry, resource)
    return out


def _under(path: bytes, root: bytes) -> bool:
    return path == root or path.startswith(root.rstrip(b"/") + b"/")


def _first_column(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as f:
            return [line.split()[0] for line in f if line.split()]
    except OSError:
        return []


def _socket_paths() -> list[bytes]:
    """Bound AF_UNIX sockets of this network namespace."""
    try:
        with open("/proc/net/unix", "rb") as f:
            rows = [line.rstrip(b"\n").split(None, 7) for line in f][1:]
    except OSError:
        return []
    return [row[7] for row in rows if len(row) == 8 and row[7].startswith(b"/")]


def _other_namespaces(entry: MountEntry, resource: str) -> list[Holder]:
    """The same file system mounted elsewhere, where our unmounting does not reach."""
    try:
        own = os.readlink("/proc/self/ns/mnt")
    except OSError:
        return []
    ours = {o for o in entry.optional if o.startswith(b"shared:")}
    group = {o.partition(b":")[2] for o in ours}
    out, seen = [], {own}
    for pid in (p for p in os.listdir("/proc") if p.isdigit()):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            table = read_mounts(pid)
        except (OSError, ValueError):
            continue
        for other in table:
            if (other.major, other.minor) != (entry.major, entry.minor) or not _under(other.root, entry.root):
                continue
            theirs = [o.partition(b":") for o in other.optional]
            reached = any(tag in (b"master", b"shared") and number in group for tag, _, number in theirs)
            if not reached and entry.fstype not in KERNEL_TYPES:
                out.append(Holder(resource, int(pid), "mount", encode_name(other.mount_point)))
                break
    return out


class MountTable:
    """The mount table read once, to observe many mounts from."""

    def __init__(self) -> None:
        self._why = ""
        self._top: dict[bytes, MountEntry] = {}
        try:
            self._top = {m.mount_point: m for m in read_mounts()}  # the last one mounted on a point is visible
        except OSError as exc:
            self._why = errno_text("mount", exc)
        except ValueError as exc:
            self._why = f"mount: {exc}"

    def observe(self, name: str) -> Observation:
        if self._why:
            return Unreadable(self._why)
        try:
            entry = self._top.get(decode_name(name))
        except ValueError as exc:
            return Unreadable(f"mount: {exc}")
        return None if entry is None else attrs_of(entry)


KIND: Final = Mount()
