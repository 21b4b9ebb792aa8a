"""The names of a path elsewhere: mount points, bind mounts, other mount namespaces. Both backends use this.

A root (a path whose users are wanted) becomes a place: a file system and a path inside it. Each mount namespace then
shows that place under names of its own, the *patterns* with which the text of a link in /proc is compared. So a scan
compares text and, for hard links, inode numbers from fdinfo and maps; it never touches a file system that may hang.
Remote ones (``REMOTE``) are not even examined to learn what a root is.

Known limit: a handle on a mount that was detached lazily (``umount -l``) has a text that leads nowhere and is not
found, except through its mappings.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

LINKS_MAX: Final = 40
#: So many mounts of users' own namespaces are looked at in one scan, and of each namespace: any user can make a hundred
#: thousand mounts in each of many. What their processes use beyond that is not known.  # S6
OTHERS_MOUNTS_MAX: Final = 200_000
EACH_MOUNTS_MAX: Final = 20_000
BYTES_EACH: Final = 512  # a longer line counts as several
ESCAPE: Final = re.compile(rb"\\([0-3][0-7]{2})")
DELETED: Final = b" (deleted)"
REMOTE: Final = frozenset(
    (
        b"9p",
        b"afs",
        b"autofs",
        b"beegfs",
        b"ceph",
        b"cifs",
        b"coda",
        b"cvmfs",
        b"davfs",
        b"glusterfs",
        b"gpfs",
        b"lustre",
        b"ncpfs",
        b"nfs",
        b"nfs4",
        b"ocfs2",
        b"orangefs",
        b"panfs",
        b"pvfs2",
        b"smb3",
        b"smbfs",
        b"virtiofs",
        b"wekafs",
    )
)


class Holder(NamedTuple):
    """One handle of one process on one root.

    ``how``: fd, map, cwd, root or exe. ``root``: index into the requested roots. ``path``: the link's text as the
    kernel gives it. ``detail``: the descriptor's number for fd, else -1.
    """

    pid: int
    how: str
    root: int
    path: bytes
    detail: int


class Mount(NamedTuple):
    """One line of mountinfo: ``root`` is the path inside the file system that is visible at ``point``."""

    id: int
    device: int
    root: bytes
    point: bytes
    fstype: bytes

    @property
    def remote(self) -> bool:
        return self.fstype in REMOTE or self.fstype.startswith(b"fuse")


class Pattern(NamedTuple):
    """A name of root number ``root`` in one namespace; paths below it count too unless ``exact``."""

    text: bytes
    root: int
    exact: bool

    def matches(self, link: bytes) -> bool:
        """Whether a link's text means this name. A deleted file is never the file that has its name now."""
        if self.exact:
            return link == self.text
        name = link.removesuffix(DELETED) if link == self.text + DELETED else link
        return is_under(name, self.text)


def is_under(path: bytes, top: bytes) -> bool:
    """Whether ``path`` is ``top`` or below it."""
    return path == top or path.startswith(top if top.endswith(b"/") else top + b"/")


def is_deleted(link: bytes) -> bool:
    return link.endswith(DELETED)


def device(major: int, minor: int) -> int:
    return major << 32 | minor


def moved(path: bytes, old: bytes, new: bytes) -> bytes:
    """``path``, which is under ``old``, with ``new`` in place of ``old``."""
    if path == old:
        return new
    return new.rstrip(b"/") + path[len(old.rstrip(b"/")) :]


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def decode_octal(field: bytes) -> bytes:
    """Undo mountinfo's escapes (space, tab, newline and backslash as three octal digits)."""
    return ESCAPE.sub(lambda m: bytes((int(m[1], 8),)), field) if b"\\" in field else field


def parse_mountinfo(text: bytes, below: bytes = b"/") -> list[Mount]:
    """The mounts of /proc/PID/mountinfo in its order; ``below`` is the root directory of that process, which the file
    does not show. A name can contain any byte that is not escaped, even one that ends lines elsewhere (CR). ValueError:
    text that the kernel would not write.
    """
    found = []
    for line in text.split(b"\n"):
        if not line:
            continue
        fields = line.split(b" ")
        if b"-" not in fields[6:-2]:
            raise ValueError(f"mountinfo: {line!r} is no mount")
        major, minor = fields[2].split(b":")
        point = moved(decode_octal(fields[4]), b"/", below)
        fstype = fields[fields.index(b"-", 6) + 1]
        number = device(int(major), int(minor))
        found.append(Mount(int(fields[0]), number, decode_octal(fields[3]), point, fstype))
    return found


class Others:
    """The mounts of other namespaces, as far as one scan looks at them."""

    def __init__(self, proc: bytes) -> None:
        self._proc = proc
        self._left = OTHERS_MOUNTS_MAX

    def read(self, base: bytes) -> bytes:
        """The mountinfo of a process (``base``: its directory). OSError: it cannot be read, or a user made the
        namespace and it has too many mounts."""
        with open(base + b"/mountinfo", "rb") as file:
            if os.readlink(base + b"/ns/user") == os.readlink(self._proc + b"/self/ns/user"):
                return file.read()  # only root makes mounts there
            most = min(EACH_MOUNTS_MAX, self._left)
            text = file.read(most * BYTES_EACH) if most else b""
        spent = max(text.count(b"\n"), len(text) // BYTES_EACH, 1)
        self._left = max(self._left - spent, 0)
        if spent >= most:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        return text


@lru_cache(maxsize=1024)
def _same(device: int, fstype: bytes) -> Mount:
    """One for all mounts of a file system."""
    return Mount(-1, device, b"", b"", fstype)


class Space:
    """One mount namespace: its mounts, and the roots' names in it."""

    def __init__(self, mounts: Iterable[Mount]) -> None:
        self.mounts = list(mounts)
        self.by_point = {mount.point: mount for mount in self.mounts}  # the last one on a point hides the others
        self.by_id = {mount.id: mount for mount in self.mounts}
        self.patterns: list[Pattern] = []

    def forget(self) -> None:
        """The roots have their names here; of a mount, only its number and file system are asked for from now on."""
        self.by_id = {m.id: _same(m.device, m.fstype) for m in self.mounts}
        self.mounts, self.by_point = [], {}

    def owner(self, path: bytes) -> Mount | None:
        """The mount to which ``path`` leads."""
        while path not in self.by_point:
            if path == b"/":
                return None
            path = path[: path.rfind(b"/")] or b"/"
        return self.by_point[path]

    def is_remote(self, path: bytes) -> bool:
        mount = self.owner(path)
        return mount is not None and mount.remote


class Place(NamedTuple):
    """A path inside a file system. ``whole``: it is the root of a mount, so mounts of directories above do not
    count."""

    root: int
    path: bytes
    exact: bool
    whole: bool


#: An absolute path; or an absolute path with the device and inode that it must have.
Root = bytes | tuple[bytes, tuple[int, int]]


class Targets:
    """The analysed roots: their places and, for files, inodes.

    ``devices``: device -> roots whose whole file system counts. ``inodes``: (device, inode) -> roots. ``hard_links``:
    some root has another name, so every descriptor's inode must be checked.

    A root that is given with its device and inode counts only while it has these.

    TypeError: a root is not bytes. ValueError: it is not absolute. OSError: this process' own mounts cannot be read.
    """

    def __init__(self, roots: Sequence[Root], proc: bytes) -> None:
        self.proc = proc
        self.namespace = os.readlink(proc + b"/self/ns/mnt")
        self.others = Others(proc)
        with open(proc + b"/self/mountinfo", "rb") as file:
            self.own = Space(parse_mountinfo(file.read()))
        self.places: dict[int, list[Place]] = {}
        self.devices: dict[int, list[int]] = {}
        self.inodes: dict[tuple[int, int], list[int]] = {}
        self.hard_links = False
        self._directories: dict[bytes, bytes] = {}
        meant = [root if isinstance(root, tuple) else (root, None) for root in roots]
        named = [self._understand(i, path, inode) for i, (path, inode) in enumerate(meant)]
        self._name(self.own, [pattern for pattern in named if pattern is not None])

    def space(self, mountinfo: bytes, below: bytes) -> Space:
        """Another namespace, as seen by a process whose root directory is ``below``."""
        space = Space(parse_mountinfo(mountinfo, below))
        self._name(space, [])
        space.forget()
        return space

    def roots_of(self, info: bytes, space: Space, link: bytes, text: bytes) -> list[int]:
        """The roots that an open file matches, by inode: ``info`` is its fdinfo, ``link`` the path to stat on kernels
        (before 5.14) whose fdinfo has no inode, ``text`` the link's. An unknown mount counts: better one too many."""
        fields = dict(line.split(b":", 1) for line in info.split(b"\n") if b":" in line)
        mount = space.by_id.get(int(fields.get(b"mnt_id", b"-1")))
        if b"ino" in fields:
            inode = int(fields[b"ino"])
        elif mount is None or mount.remote:
            return []
        else:
            inode = os.stat(link).st_ino
        devices = [device for device, number in self.inodes if number == inode]
        return [
            root for device in devices if mount is None or mount.device == device for root in self.inodes[device, inode]
        ]

    def _understand(self, root: int, raw: bytes, inode: tuple[int, int] | None) -> Pattern | None:
        """Note the root's places and inodes; returns its name here, None if it is another file by now."""
        if not isinstance(raw, bytes):
            raise TypeError(f"a root must be bytes, not {type(raw).__name__}")
        if not raw.startswith(b"/") or b"\0" in raw:
            raise ValueError(f"{raw!r} is no absolute path")
        path = self._resolve(raw)
        if inode is not None and not self._is(path, inode):
            return None
        mounted = [mount for mount in self.own.mounts if mount.point == path]
        for mount in mounted:
            self.places.setdefault(mount.device, []).append(Place(root, mount.root, False, True))
            if mount.root == b"/":
                self.devices.setdefault(mount.device, []).append(root)
        owner = self.own.owner(path)
        if owner is None or owner.remote:
            mode = 0
        else:
            try:
                st = os.lstat(path)
                mode = st.st_mode
            except OSError:
                mode = 0
        if owner and mode and not stat.S_ISDIR(mode):
            for number in {owner.device, device(os.major(st.st_dev), os.minor(st.st_dev))}:
                self.inodes.setdefault((number, st.st_ino), []).append(root)
            self.hard_links = self.hard_links or st.st_nlink > 1
        exact = not mounted and mode != 0 and not stat.S_ISDIR(mode)
        if owner and not mounted:
            inside = moved(path, owner.point, owner.root)
            self.places.setdefault(owner.device, []).append(Place(root, inside, exact, False))
        return Pattern(path, root, exact)

    def _is(self, path: bytes, inode: tuple[int, int]) -> bool:
        if self.own.is_remote(path):
            return False
        try:
            st = os.lstat(path)
        except OSError:
            return False
        return (st.st_dev, st.st_ino) == inode

    def _resolve(self, raw: bytes) -> bytes:
        """The path without symlinks in the directories, as the kernel writes it; the last part stays as it is."""
        parts = _parts(raw)
        if not parts or parts[-1] == b"..":
            return self._follow(parts) or b"/"
        above = b"/".join(parts[:-1])
        if above not in self._directories:
            self._directories[above] = self._follow(parts[:-1])
        return self._directories[above] + b"/" + parts[-1]

    def _follow(self, parts: list[bytes]) -> bytes:
        """The real path of a directory, ``b""`` for the root; remote ones are not examined."""
        todo = parts[::-1]
        done = b""
        links = 0
        while todo:
            part = todo.pop()
            here = done + b"/" + part
            if part == b"..":
                done = done[: max(done.rfind(b"/"), 0)]
                continue
            target = b""
            if links < LINKS_MAX and not self.own.is_remote(here):
                try:
                    target = os.readlink(here)
                except OSError:
                    pass  # not a link, or nothing there: use the text itself
            if target:
                links += 1
                done = b"" if target.startswith(b"/") else done
                todo += _parts(target)[::-1]
            else:
                done = here
        return done

    def _name(self, space: Space, known: Iterable[Pattern]) -> None:
        """Fill in the names of the roots in ``space``, besides the names that are known already."""
        names = set(known)
        for mount in space.mounts:
            for place in self.places.get(mount.device, ()):
                if is_under(mount.root, place.path):
                    names.add(Pattern(mount.point, place.root, place.exact))
                elif not place.whole and is_under(place.path, mount.root):
                    name = moved(place.path, mount.root, mount.point)
                    if space.owner(name) is mount:
                        names.add(Pattern(name, place.root, place.exact))
        space.patterns = sorted(names)
