"""Notices when the package database has changed, and gives the names that differ, when the package manager is done.

One inotify descriptor watches the database's directory and the lock files, which are opened when a package manager
begins, and closed when it ends. While a lock is held, nothing is read. Whoever holds it is the writer, and is looked at
while it runs, because it is usually gone when its result is read. A thread of a moment reads the result.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import Final

from pact._fast.reader import inotify_add, inotify_init
from pact.host.clock import boottime_ns
from pact.model import Unreadable, Writer
from pact.observe.attribution import resolve
from pact.observe.managers import manager_of, process
from pact.resources.shapes import Drained, Source
from pact.resources.support import locks
from pact.resources.support.package_database import Database, at_work
from pact.resources.support.package_reading import Reading
from pact.resources.support.package_service import PREFIX

IN_MODIFY, IN_CLOSE_WRITE, IN_CLOSE_NOWRITE, IN_OPEN, IN_ONESHOT = 0x2, 0x8, 0x10, 0x20, 1 << 31
IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = 0x80, 0x100, 0x200, 0x400, 0x800
#: Of a directory: files that come, are renamed, or were written. A database that is open is written to thousands of
#: times in one transaction, so writes themselves are not asked for.
DIRECTORY: Final = IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF
LOCK: Final = IN_OPEN | IN_CLOSE_WRITE | IN_CLOSE_NOWRITE
#: Of a database that stays open: its first write tells that somebody is at work, and who.
FIRST_WRITE: Final = IN_MODIFY | IN_ONESHOT
NS_PER_S: Final = 1_000_000_000
EVENTS_BYTES: Final = 64 << 10
DRAIN_MAX: Final = 64
#: Anybody may open rpm's lock file, which is an event: after so many in a second that meant nothing, none is taken for
#: a while.
IDLE_MAX: Final = 50
PAUSE_NS: Final = NS_PER_S
#: A lock that is held longer is told of: nothing is seen meanwhile.
LONG_NS: Final = 600 * NS_PER_S


class PackageSource(Source):
    """For one ``Database``. Raises OSError where the kernel has no inotify."""

    def __init__(self, database: Database, own: int | None = None) -> None:
        """``own``: the process whose package managers are nobody's drift; by default this one."""
        self._database, self._own = database, os.getpid() if own is None else own
        self._names: set[str] = set()
        self._inotify = inotify_init()
        self._done = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._inotify, select.EPOLLIN)
        self._epoll.register(self._done, select.EPOLLIN)
        self._idle, self._idle_since_ns, self._paused_ns = 0, 0, 0
        self._pidfds: dict[int, int] = {}  # pid of a holder -> descriptor
        self._writer: Writer | None = None
        self._since_ns = 0
        self._thread: threading.Thread | None = None
        self._told: Reading | None = None  # the reading that has been told of
        self._read: Reading | Unreadable | None = None
        self._watch()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def want(self, name: str) -> None:
        if self._told is None:
            current = self._database.current()
            self._told = current if isinstance(current, Reading) else None
        self._names.add(name)

    def unwant(self, name: str) -> None:
        self._names.discard(name)

    def _watch(self) -> None:
        """Watch what exists now: databases and lock files may come later, and files are replaced."""
        for manager in (self._database.dpkg, self._database.rpm):
            for directory in manager.watched:
                self._add(directory, DIRECTORY)
            for lock in manager.locks:
                self._add(lock, LOCK)
            for path in () if self._since_ns else manager.written:
                self._add(path, FIRST_WRITE)

    def _add(self, path: str, mask: int) -> None:
        with contextlib.suppress(OSError):
            inotify_add(self._inotify, path.encode(), mask, mask == DIRECTORY)

    def drain(self) -> Drained:
        changed: set[str] | None = set()
        moved = told = False
        for fd, _ in self._epoll.poll(0):
            if fd == self._inotify:
                self._take_events()
                told = True
            elif fd == self._done:
                os.eventfd_read(self._done)
                changed, moved = self._finished()
            else:
                self._over(fd)
        self._look()
        if told:
            self._count()
        if changed is None:
            return Drained(lost="the database could not be compared with what it was", news=True)
        writer = self._writer
        if moved:
            self._writer = None
        return Drained([(name, writer or 0) for name in sorted(changed)], news=moved, by=writer or 0)

    def _take_events(self) -> None:
        """Whatever has happened, the locks and the database's status are looked at: no event is interpreted."""
        for _ in range(DRAIN_MAX):
            try:
                if len(os.read(self._inotify, EVENTS_BYTES)) < EVENTS_BYTES // 2:
                    break
            except BlockingIOError:
                break
        self._watch()

    def _count(self) -> None:
        """Events that mean nothing cost little: of very many, none is taken until ``health`` is asked again."""
        now_ns = boottime_ns()
        if self._since_ns or self._thread is not None or now_ns - self._idle_since_ns > NS_PER_S:
            self._idle, self._idle_since_ns = 0, now_ns
        self._idle += 1
        if self._idle > IDLE_MAX:
            self._paused_ns = now_ns
            self._epoll.modify(self._inotify, 0)

    def _look(self) -> None:
        """Whether a package manager is at work, or has ended and left a changed database."""
        manager = self._database.manager()
        if manager is None:
            self._database.settling = False
            return
        try:
            held = locks.holding(manager.locks)
        except OSError:
            held = []
        for fd in () if held else self._pidfds.values():
            self._epoll.unregister(fd)
            os.close(fd)
        if not held:
            self._pidfds.clear()
        if held:
            self._begun([int(pid) for _, pid in held if pid.isdigit() and pid != "0"])
            return
        self._since_ns = 0
        if self._thread is None:
            if self._database.changed():
                self._start()
            else:
                self._database.settling = False

    def _begun(self, pids: list[int]) -> None:
        self._database.settling = True
        if not self._since_ns:
            self._since_ns = boottime_ns()
            self._writer = None
        for pid in pids:
            self._writer = self._writer or self._writer_of(pid)
            if pid in self._pidfds:
                continue
            with contextlib.suppress(OSError):  # its end is seen by its lock file as well
                fd = os.pidfd_open(pid)
                self._pidfds[pid] = fd
                self._epoll.register(fd, select.EPOLLIN)

    def _over(self, pidfd: int) -> None:
        """A process that held a lock has ended; another one may hold it still."""
        self._epoll.unregister(pidfd)
        os.close(pidfd)
        self._pidfds = {pid: fd for pid, fd in self._pidfds.items() if fd != pidfd}

    def _writer_of(self, pid: int) -> Writer | None:
        """The topmost package manager above the holder of a lock. What the agent itself has started is no writer: the
        core knows whose it is."""
        above, seen = pid, process(pid)
        while seen is not None and seen.parent > 1 and above != self._own:
            above, seen = seen.parent, process(seen.parent)
        if above == self._own:
            return None
        top = manager_of(pid)
        writer = resolve(pid if top is None else top.pid)
        return None if writer is None or writer.unit.startswith(PREFIX) else writer

    def _start(self) -> None:
        self._database.settling = True
        self._thread = threading.Thread(target=self._read_anew, name="pact-packages", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads are possible: the next event comes here again
            self._thread = None

    def _read_anew(self) -> None:
        try:
            self._read = self._database.now()
        except Exception as exc:
            self._read = Unreadable(f"package: {type(exc).__name__}: {exc}"[:300])
        with contextlib.suppress(OSError):  # closed meanwhile
            os.eventfd_write(self._done, 1)

    def _finished(self) -> tuple[set[str] | None, bool]:
        """The wanted names that differ, ``None`` if all may; and whether anything does."""
        self._thread = None
        self._database.settling = False
        read, before = self._read, self._told
        if not isinstance(read, Reading):
            self._told = None
            return None, True
        self._told = read
        if before is None:
            return None, True
        differing = read.differing(before)
        return {n for n in self._names if n in differing or read.plain(n) in differing}, bool(differing)

    def health(self) -> str:
        if self._paused_ns and boottime_ns() - self._paused_ns >= PAUSE_NS:
            self._paused_ns = 0
            self._epoll.modify(self._inotify, select.EPOLLIN)
        if self._since_ns:
            self._look()  # in case no event has told of the end
        held_ns = boottime_ns() - self._since_ns if self._since_ns else 0
        if held_ns < LONG_NS:
            return "ok"
        manager = self._database.manager()
        who = at_work(manager) if manager is not None else ""
        return f"for {held_ns // (60 * NS_PER_S)} minutes {who}: what it changes is seen when it ends"

    def close(self) -> None:
        self._database.settling = False
        for fd in self._pidfds.values():
            os.close(fd)
        self._epoll.close()
        os.close(self._inotify)
        if self._thread is not None:
            self._thread.join(1.0)
        os.close(self._done)
