"""The agent's one event source: a native reader behind one file descriptor, and the tree of declared paths.

At the start each ability of the kernel is probed separately: fanotify with names and writers, else inotify, else only
the rescan; the same for sysctls; mountinfo always. Every missing ability is reported in ``health`` or ``notes``. It
reads no content and decides nothing: it reports which declared path to observe, and who wrote.
"""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from pact._fast.reader import (
    KIND_CONNECTOR,
    KIND_FID,
    KIND_INOTIFY,
    KIND_LOST,
    KIND_MNTNS,
    KIND_MOUNTS,
    KIND_PROC,
    Reader,
    connector,
    inotify_init,
)
from pact.model import Writer
from pact.observe import marks
from pact.observe.attribution import BEGUN, command_text, in_other_network, writer_from
from pact.observe.base import Event, Lost, MountsChanged, Restored, Touched
from pact.observe.mountinfo import mount_table
from pact.observe.tree import Tree, check_path, watch_many

#: The names of files that pact writes beside a restored file are not reported.
TEMPORARY: Final = b".pact-"
SYSCTL_ROOT: Final = b"/proc/sys/"
ANY_SYSCTL: Final = b"*"  # wanted besides the declared names: a write to an undeclared sysctl may move a declared one
NETWORK: Final = "network file system"
OWNER_OF_KIND: Final = {
    KIND_FID: "files",
    KIND_INOTIFY: "files",
    KIND_PROC: "sysctl",
    KIND_MOUNTS: "mountinfo",
    KIND_MNTNS: "mountinfo",
    KIND_CONNECTOR: "attribution",
}


def open_observers(
    *,
    fanotify: bool = True,
    inotify: bool = True,
    realtime: bool = True,
    proc_connector: bool = True,
    cpus: Iterable[int] = (),
) -> Observers:
    """Probe, open and start everything that this kernel permits. Raises nothing for what it does not permit."""
    return Observers(fanotify, inotify, realtime, proc_connector, tuple(cpus))


class Observers:
    def __init__(
        self, fanotify: bool, inotify: bool, realtime: bool, proc_connector: bool, cpus: tuple[int, ...]
    ) -> None:
        self.notes: list[str] = []
        self._reader = Reader(realtime and fanotify, cpus)
        self._fds: list[tuple[int, int]] = []
        self._why: dict[str, str] = {}
        self._events: deque[Event] = deque()
        self._touched: OrderedDict[bytes, Touched] = OrderedDict()
        self._lost: dict[str, str] = {}
        self._dead: dict[str, str] = {}
        self._sysctl: set[bytes] = set()
        self._sysctl_keys: dict[bytes, bytes] = {}  # inotify: key -> path
        self._closed = False
        self.taken = 0  # number of the kernel's events, of any kind
        self._self_pid = os.getpid()

        fan_fd = self._open(KIND_FID, "fanotify", partial(marks.open_names_group, self.notes)) if fanotify else -1
        in_fd = self._open(KIND_INOTIFY, "inotify", inotify_init) if inotify else -1
        self._proc_fd = self._open(KIND_PROC, "sysctl by fanotify", marks.open_proc_group) if fanotify else -1
        mnt_fd = self._open(KIND_MNTNS, "mounts by fanotify", marks.open_mounts_group) if fanotify else -1
        self._in_fd = in_fd
        try:
            self._mounts_fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            # A separate descriptor for the thread: reading changes what the kernel takes as seen.
            self._fds.append((KIND_MOUNTS, os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)))
        except OSError as e:
            self._mounts_fd = -1
            self._dead["mountinfo"] = f"{e.strerror}: mounts are polled"
        if proc_connector and fan_fd >= 0:
            self._open_connector()

        files = "fanotify" if fan_fd >= 0 else "inotify" if in_fd >= 0 else "poll"
        self.names = {
            "files": files,
            "sysctl": "fanotify" if self._proc_fd >= 0 else "inotify" if in_fd >= 0 else "poll",
            "mounts": "poll" if self._mounts_fd < 0 else "mountinfo+fanotify" if mnt_fd >= 0 else "mountinfo",
        }
        self._files = files
        self._attributes = fan_fd >= 0
        self._tree = Tree(self._reader, marks.Marker(fan_fd, in_fd))
        for kind, fd in self._fds:
            self._reader.add_source(kind, fd)
        self._tree.on_mounts(self._read_mounts(), lambda path: None)
        self._mark_proc_instances()
        self._reader.start()
        BEGUN.follow(self._reader.begun)
        for what, number in (("real-time priority", "fifo_errno"), ("pinning to the configured cpus", "pin_errno")):
            if why := self._reader.stats()[number]:
                self.notes.append(f"no {what}: {os.strerror(why)}")

    def _open(self, kind: int, what: str, opener: Callable[[], int]) -> int:
        try:
            fd = opener()
        except OSError as e:
            self._why[what] = e.strerror or str(e)
            self.notes.append(f"no {what}: {e.strerror}")
            return -1
        self._fds.append((kind, fd))
        return fd

    def _open_connector(self) -> None:
        try:
            self._fds.append((KIND_CONNECTOR, connector()))
        except OSError as e:
            why = {
                errno.ECONNREFUSED: "not in the initial network namespace",
                errno.ETIMEDOUT: "not in the initial pid or user namespace",
            }.get(e.errno or 0, e.strerror)
            self.notes.append(f"no proc connector ({why}): some short-lived writers stay unattributed")

    # ---- what is declared

    def watch(self, path: bytes) -> None:
        """Watch a path; calling it twice counts once. Watch first, then observe. Raises ValueError for a path that is
        not plain."""
        if not path.startswith(SYSCTL_ROOT):
            self._tree.watch(path)
            return
        check_path(path)
        if path in self._sysctl:
            return
        if self._proc_fd >= 0 and not self._sysctl:
            self._reader.want(KIND_PROC, b"", ANY_SYSCTL)
        self._sysctl.add(path)
        if self._proc_fd >= 0:
            self._reader.want(KIND_PROC, b"", path[len(SYSCTL_ROOT) :])
        elif self._in_fd >= 0:
            self._watch_sysctl_file(path)

    def watch_many(self, paths: Iterable[bytes]) -> None:
        files: list[bytes] = []
        for path in paths:
            if path.startswith(SYSCTL_ROOT):
                self.watch(path)
            else:
                files.append(path)
        watch_many(self._tree, files)

    def unwatch(self, path: bytes) -> None:
        if not path.startswith(SYSCTL_ROOT):
            self._tree.unwatch(path)
        elif path in self._sysctl:
            self._sysctl.discard(path)
            if self._proc_fd >= 0:
                self._reader.unwant(KIND_PROC, b"", path[len(SYSCTL_ROOT) :])
                if not self._sysctl:
                    self._reader.unwant(KIND_PROC, b"", ANY_SYSCTL)
            for key in [k for k, p in self._sysctl_keys.items() if p == path]:
                self._drop_sysctl_key(key)

    def track(self, directory: bytes) -> bool:
        """Report every name that comes or goes in this directory, too. Returns False if only listing it finds them."""
        return self._tree.track(directory)

    def untrack(self, directory: bytes) -> None:
        self._tree.untrack(directory)

    def remark(self) -> None:
        """Resolve every directory again; declared paths below changed ones are touched."""
        self.remark_some(0, 1)

    def remark_some(self, number: int, slices: int) -> None:
        """One slice of ``remark``. The first one reads the mount table and checks everything that is not numerous."""
        touch = partial(self._touch, writer=None, own=False, t_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        if number == 0 and self._mounts_fd >= 0:
            self._tree.on_mounts(self._read_mounts(), touch)
        self._tree.remark_some(number, slices, touch)
        if number == 0:
            self._remark_sysctls()
        if self._touched:
            self._reader.poke()

    def _remark_sysctls(self) -> None:
        if self._proc_fd < 0 and self._in_fd >= 0:
            for path in self._sysctl:
                self._watch_sysctl_file(path)
        self._mark_proc_instances()

    def _watch_sysctl_file(self, path: bytes) -> None:
        try:
            kind, key, _ = marks.Marker(-1, self._in_fd).mark(path, full=True, leaf=True)
        except OSError:
            return  # absent, or out of watches: the rescan observes it
        if key not in self._sysctl_keys:
            self._sysctl_keys[key] = path
            self._reader.want(kind, key, b".")

    def _drop_sysctl_key(self, key: bytes) -> None:
        del self._sysctl_keys[key]
        self._reader.unwant(KIND_INOTIFY, key, b".")
        marks.Marker(-1, self._in_fd).unmark(KIND_INOTIFY, key, b"/")

    def _mark_proc_instances(self) -> None:
        # Each instance of procfs has its own marks; a write through any of them sets the same sysctl.
        if self._proc_fd < 0:
            return
        for point, stack in self._tree.mounts.items():
            if stack[-1][2] == b"proc" and point != b"/proc":
                try:
                    marks.mark_proc(self._proc_fd, point)
                except OSError:
                    continue  # hidden below another mount, or this process may not mark it

    # ---- what happened

    def fileno(self) -> int:
        return self._reader.fileno()

    def drain(self, limit: int) -> list[Event]:
        """At most ``limit`` events, without blocking. If more are left, ``fileno`` becomes readable again."""
        assert limit > 0
        mounts: MountsChanged | None = None
        for kind, mask, pid, t_ns, key, name, snap in self._reader.take(limit):
            self.taken += 1
            own = pid == self._self_pid
            writer = None if snap is None else writer_from(pid, snap)
            if kind == KIND_LOST:
                self._on_lost(mask, pid)
            elif kind in (KIND_MOUNTS, KIND_MNTNS):
                mounts = MountsChanged(t_ns, writer or (mounts.writer if mounts else None))
            elif kind == KIND_PROC:
                if writer is not None and not own and name.startswith(b"net/"):
                    elsewhere = in_other_network(writer)
                    if elsewhere:
                        continue  # the same name, but another sysctl
                    if elsewhere is None and writer.uid != 0:
                        writer = None
                self._touch(SYSCTL_ROOT + name, writer, own, t_ns)
            elif key in self._sysctl_keys:
                self._touch(self._sysctl_keys[key], None, False, t_ns)
            elif not (own and name.startswith(TEMPORARY)):
                self._tree.on_event(key, name, mask, partial(self._touch, writer=writer, own=own, t_ns=t_ns))
        if mounts is not None:
            self._on_mounts(mounts)
        return self._give(limit)

    def _on_mounts(self, event: MountsChanged) -> None:
        table = self._read_mounts()
        self._tree.on_mounts(table, partial(self._touch, writer=event.writer, own=False, t_ns=event.t_ns))
        self._mark_proc_instances()
        self._events.append(event)

    def _on_lost(self, kind: int, number: int) -> None:
        observer = OWNER_OF_KIND[kind]
        if observer == "files":
            observer = self._files
        if kind in (KIND_CONNECTOR, KIND_MNTNS):
            self.notes.append(f"{observer}: {os.strerror(number) if number else 'overflow'}")
            return
        why = os.strerror(number) if number else "event queue overflow"
        if number == errno.EIO:
            self._dead[observer] = f"{why}: polled"
        self._lost[observer] = why
        if observer == self._files:
            self._tree.remark(None)
        self._events.append(Lost(observer, why))

    def _touch(self, path: bytes, writer: Writer | None, own: bool, t_ns: int) -> None:
        old = self._touched.get(path)
        if old is not None:
            if own and not old.own:
                return
            if writer is None and not old.own:
                writer = old.writer
        self._touched[path] = Touched(path, writer, own, t_ns)

    def _give(self, limit: int) -> list[Event]:
        out: list[Event] = []
        while self._events and len(out) < limit:
            out.append(self._events.popleft())
        while self._touched and len(out) < limit:
            out.append(self._touched.popitem(last=False)[1])
        if self._events or self._touched:
            self._reader.poke()
        return out

    def remembered(self, pid: int) -> Writer | None:
        """The process that had this pid when it began a program, shortly ago; it may be gone. ``None``: not known."""
        snap = self._reader.remembered(pid)
        return None if snap is None else writer_from(pid, snap)

    def recovered(self, observer: str) -> None:
        """Everything that ``observer`` watches was observed again since its ``Lost``."""
        if self._lost.pop(observer, None) is not None and observer not in self._dead:
            self._events.append(Restored(observer))
            self._reader.poke()

    def _read_mounts(self) -> dict[bytes, tuple[tuple[bytes, bytes, bytes], ...]]:
        if self._mounts_fd < 0:
            return {}
        chunks: list[bytes] = []
        os.lseek(self._mounts_fd, 0, os.SEEK_SET)
        while chunk := os.read(self._mounts_fd, 65536):
            chunks.append(chunk)
        return mount_table(b"".join(chunks))

    # ---- for people

    def health(self) -> dict[str, str]:
        """Each observer: ``ok``, or what it does not see."""
        out = {self._files: self._file_health(), "sysctl": "ok", "mountinfo": "ok", "attribution": "ok"}
        if self.names["sysctl"] == "poll":
            out["sysctl"] = f"polled: {self._why.get('sysctl by fanotify', 'switched off')}"
        if not self._attributes:
            out["attribution"] = f"off: {self._why.get('fanotify', 'switched off')}"
        return out | self._lost | self._dead

    def _file_health(self) -> str:
        if self._files == "poll":
            return f"polled: {self._why.get('inotify') or self._why.get('fanotify', 'switched off')}"
        parts = [
            f"{count} polled ({NETWORK if number == -1 else os.strerror(number)})"
            for number, count in sorted(self._tree.problems().items())
        ]
        return f"directories: {', '.join(parts)}" if parts else "ok"

    def polled(self) -> list[bytes]:
        """Directories without a mark: only the rescan sees changes in them."""
        return sorted(self._tree.polled)

    def stats(self) -> dict[str, int]:
        """Counters of the reader thread, and how many directories are marked."""
        return {**self._reader.stats(), "directories": len(self._tree.by_path)}

    def follow(self, session: int) -> None:
        """Remember the programs that are started in this audit session, as far as exec events tell."""
        self._reader.follow(session)

    def unfollow(self, session: int) -> tuple[list[tuple[int, str]], int]:
        """The first programs of a session, each with its uid, and how many there were."""
        programs, seen = self._reader.unfollow(session) or ([], 0)
        return [(uid, command_text(command)) for uid, command in programs], seen

    def close(self) -> None:
        """Stop and join the thread, close everything. Calling it twice counts once."""
        if self._closed:
            return
        self._closed = True
        BEGUN.follow(None)
        self._reader.close()
        if self._mounts_fd >= 0:
            os.close(self._mounts_fd)
