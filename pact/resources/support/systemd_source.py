"""Where events about units come from: systemd's signals, and times at which a unit must be looked at again.

The loop never waits here. A connection is made by a thread of its own, which ends with it; while there is none, the
source is blind and says so, and when there is one again, every unit is looked at. Signals race with properties, so they
only say that a unit must be looked at. Looking at a unit that systemd has not loaded makes it load and forget the unit:
that it came or went by itself is no event, or each look would cause the next.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from pact.model import Writer
from pact.resources.shapes import Drained, Source
from pact.resources.support import systemd, systemd_bus
from pact.resources.support.daemons import DAEMONS
from pact.resources.support.systemd_bus import Bus, BusError, Message
from pact.resources.support.systemd_callers import Command, caller, commands

#: As many bytes of signals are taken in one turn of the loop.
TURN_BYTES: Final = 1 << 20
AGAIN_S: Final = 0.1
AGAIN_MAX_S: Final = 30.0
LATER_MAX: Final = 10_000
CONNECTING: Final = "connecting"
#: Whose job it is, is remembered for so long; and for a moment after its end.
JOB_S: Final = 600.0
AFTER_S: Final = 1.0
HELD_MAX: Final = 4096
#: /proc is read so often in a second to find who has asked: some milliseconds each.
LOOKS_MAX: Final = 10

#: A unit on its way is looked at after so long, if it has not arrived before.
SOON_S: Final = 0.05
#: Of the properties of any unit, and not of its type; and its state among them, as it stands in a message.
OF_UNIT: Final = b"\0org.freedesktop.systemd1.Unit\0"
ON_ITS_WAY: Final = re.compile(rb"\0ActiveState\0\x01s\0+[^\0]\0{3}(?:de)?(?:activating|reloading|refreshing)\0")

#: By name, who has done it.
Changed = dict[str, int | Writer]


class Later:
    """Names that must be looked at again at a time, and other names of units: what looks find out for the source.
    Looks are made by other threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at: dict[str, float] = {}
        self._alias: dict[str, str] = {}
        self._stale: set[str] = set()
        self._wake: Callable[[], None] = lambda: None

    def attach(self, wake: Callable[[], None]) -> None:
        with self._lock:
            self._wake = wake

    def at(self, name: str, when_s: float) -> None:
        """``when_s``: seconds of the monotonic clock; 0: no longer."""
        with self._lock:
            if not when_s:
                self._at.pop(name, None)
                return
            if len(self._at) < LATER_MAX:
                self._at[name] = when_s
            wake = self._wake
        wake()

    def alias(self, unit: str, name: str) -> None:
        """What systemd says of this unit concerns this name."""
        with self._lock:
            if len(self._alias) < LATER_MAX:
                self._alias[unit] = name

    def alias_of(self, unit: str) -> str:
        return self._alias.get(unit, "")

    def next(self) -> float:
        """When the next one is due; 0: none."""
        with self._lock:
            return min(self._at.values(), default=0.0)

    def needs_reload(self, name: str, so: bool) -> None:
        """systemd has not read its unit file again since it was changed."""
        with self._lock:
            (self._stale.add if so and len(self._stale) < LATER_MAX else self._stale.discard)(name)

    def stale(self) -> list[str]:
        with self._lock:
            return sorted(self._stale)

    def forget(self, name: str) -> None:
        with self._lock:
            self._at.pop(name, None)
            self._stale.discard(name)

    def due(self, now_s: float) -> list[str]:
        with self._lock:
            out = [name for name, at in self._at.items() if at <= now_s]
            for name in out:
                del self._at[name]
        return out


LATER: Final = Later()


class Units(Source):
    """``name_of`` turns a unit into the name of a resource, and ``unit_of`` turns it back."""

    def __init__(self, name_of: Callable[[str], str], unit_of: Callable[[str], str]) -> None:
        self._name_of, self._unit_of = name_of, unit_of
        self._names: set[str] = set()
        self._stirred: set[str] = set()  # names that have moved since systemd has last forgotten them
        self._epoll = select.epoll()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._event, select.EPOLLIN)
        self._bus: Bus | None = None
        self._stream = systemd_bus.Stream()
        self._why = CONNECTING
        self._made: tuple[Bus | None, str] = (None, CONNECTING)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._timer: int = _timer()
        self._epoll.register(self._timer, select.EPOLLIN)
        self._callers: dict[str, tuple[Writer, str, float]] = {}  # name -> who has asked, for which job, until when
        self._alive: dict[int, tuple[str, int]] = {}  # pidfd -> the daemon's name, and the process
        self._jobs: dict[str, str] = {}  # name -> the job that it has
        self._soon: dict[str, float] = {}  # name -> when to look at it, if nothing else comes
        self._there: list[Command] | None = None  # commands that were seen in this turn
        self._looks: list[float] = []
        self._connecting = False
        LATER.attach(self._wake)
        DAEMONS.attach(self._wake)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def _wake(self) -> None:
        try:
            os.eventfd_write(self._event, 1)
        except OSError:
            pass  # closed meanwhile

    # -- the connection -------------------------------------------------------------------------------------------

    def _connect_later(self) -> None:
        self._connecting = True
        threading.Thread(target=self._connect, name="pact-systemd", daemon=True).start()

    def _connect(self) -> None:
        """Until there is a connection that has subscribed. Without one it tries less and less often."""
        pause = AGAIN_S
        while not self._closing.is_set():
            made: Bus | None = None
            try:
                made = systemd_bus.connect()
                systemd.subscribe(made)
                made.socket.setblocking(False)
                self._hand_over(made, "ok")
                return
            except BusError as exc:
                why = str(exc)
            except Exception as exc:  # the next try may do
                why = f"{type(exc).__name__}: {exc}"
            if made is not None:
                made.close()
            self._hand_over(None, why)
            self._closing.wait(pause)
            pause = min(2 * pause, AGAIN_MAX_S)

    def _hand_over(self, bus: Bus | None, why: str) -> None:
        with self._lock:
            if self._closing.is_set() and bus is not None:
                bus.close()
                return
            self._made = (bus, why)
        self._wake()

    def _take_over(self) -> str:
        """Use what the thread has made. Returns why all must be looked at."""
        with self._lock:
            (made, why), self._made = self._made, (None, "")
        if why and self._bus is None:
            self._why = why
        if made is None:
            return ""
        self._bus, self._stream = made, systemd_bus.Stream()
        self._jobs.clear()  # of those that ended meanwhile nobody will tell
        self._epoll.register(made.socket, select.EPOLLIN)
        return "systemd's signals come again"

    def _lose(self, why: str) -> str:
        assert self._bus is not None
        self._epoll.unregister(self._bus.socket)
        self._bus.close()
        self._bus, self._why = None, why
        self._connect_later()
        return why

    # -- events ---------------------------------------------------------------------------------------------------

    def drain(self) -> Drained:
        changed: Changed = {}
        self._there = None
        systemd.let_go()
        ready = [fd for fd, _ in self._epoll.poll(0)]
        if not ready:
            return Drained()
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            pass
        lost = self._take_over()
        if self._bus is not None:
            lost = self._read(changed) or lost
        _disarm(self._timer)
        now_s = time.monotonic()
        for name in [*LATER.due(now_s), *(n for n, at in self._soon.items() if at <= now_s)]:
            if name in self._names:
                changed.setdefault(name, self._caller_of(name))
        self._soon = {n: at for n, at in self._soon.items() if at > now_s and n not in changed}
        _arm(self._timer, min(filter(None, (LATER.next(), *self._soon.values())), default=0.0))
        for fd in ready:
            if fd in self._alive:
                name, pid = self._alive[fd]
                changed[name] = 0
                DAEMONS.gone(name, pid)
                self._forget(fd)
        self._hold(changed)
        return Drained(list(changed.items()), lost)

    def _hold(self, changed: Changed) -> None:
        """Hold the processes that looks have found of daemons without systemd, to see them end."""
        wanted = {(name, pid) for name, pids in DAEMONS.all_found().items() for pid in pids if name in self._names}
        for fd, held in list(self._alive.items()):
            if held not in wanted:
                self._forget(fd)
        for name, pid in sorted(wanted - set(self._alive.values()))[: HELD_MAX - len(self._alive)]:
            try:
                fd = os.pidfd_open(pid)
            except OSError:  # it has ended since it was found
                changed[name] = 0
                DAEMONS.gone(name, pid)
                continue
            self._alive[fd] = name, pid
            self._epoll.register(fd, select.EPOLLIN)

    def _forget(self, fd: int) -> None:
        del self._alive[fd]
        self._epoll.unregister(fd)
        os.close(fd)

    def _read(self, changed: Changed) -> str:
        """Take in what has come. Returns why all must be looked at. Whatever is wrong costs the connection."""
        assert self._bus is not None
        left = TURN_BYTES
        try:
            for early in self._bus.early():
                self._signal(early, changed)
            while left > 0:
                try:
                    data = self._bus.socket.recv(systemd_bus.READ_BYTES)
                except BlockingIOError:
                    break
                if not data:
                    return self._lose("systemd hung up")
                left -= len(data)
                for message in self._stream.feed(data):
                    if self._bus.trusts(message):
                        self._signal(message, changed)
        except BusError as exc:
            return self._lose(str(exc))
        except Exception as exc:  # another connection may do; a source that raises is given up
            return self._lose(f"{type(exc).__name__}: {exc}")
        return ""

    def _signal(self, message: Message, changed: Changed) -> None:
        if message.member == "PropertiesChanged":
            if OF_UNIT in message.data:  # the same comes once more for the interface of its type
                self._moved(
                    systemd_bus.unit_of_path(message.path), changed, soon=ON_ITS_WAY.search(message.data) is not None
                )
        elif message.interface == systemd_bus.DBUS and message.member == "NameOwnerChanged":
            if message.body()[0] == systemd_bus.SYSTEMD:
                raise BusError("systemd has begun anew")
        elif message.interface != systemd_bus.IS_MANAGER:
            pass
        elif message.member == "JobNew":
            body = message.body()
            self._asked(str(body[2]) if len(body) == 3 else "", str(body[1]))
        elif message.member == "JobRemoved":
            body = message.body()
            if len(body) == 4:
                self._done(str(body[2]), str(body[1]))
                self._moved(str(body[2]), changed)
        elif message.member == "UnitRemoved":
            body = message.body()
            name = self._known(str(body[0]) if body else "")
            if name in self._stirred:
                self._stirred.discard(name)
                changed[name] = 0
        elif message.member == "UnitFilesChanged":
            for name in self._names:
                self._asked(self._unit_of(name), "")
                changed[name] = self._caller_of(name)
        elif message.member == "Reloading" and message.body() == (False,):
            systemd.unit_files_read()
            changed.update((name, self._caller_of(name)) for name in self._names)

    def _known(self, unit: str) -> str:
        """The declared name of a unit, ``""`` if it is not declared."""
        name = self._name_of(unit) if unit else ""
        return name if name in self._names else LATER.alias_of(unit)

    def _moved(self, unit: str, changed: Changed, soon: bool = False) -> None:
        """``soon``: it is on its way. It will have arrived in a moment, mostly, and that is another event."""
        name = self._known(unit)
        if name not in self._names:
            return
        self._stirred.add(name)
        if soon or (name in self._jobs and name not in changed):
            self._soon.setdefault(name, time.monotonic() + SOON_S)
        else:
            self._soon.pop(name, None)
            if not self._caller_of(name):
                self._asked(unit, "")  # a unit may say that it has a job before the job is announced
            changed[name] = self._caller_of(name)

    # -- who has asked --------------------------------------------------------------------------------------------

    def _asked(self, unit: str, job: str) -> None:
        """A job begins: whoever has asked is there now, and may be gone when it ends."""
        name = self._known(unit)
        if name not in self._names:
            return
        if job:
            self._jobs[name] = job
            systemd.warm()
        writer = caller(unit, self._commands(), partial(_movers, unit) if job else None)
        if writer is None and not job:
            return
        if writer is None:
            self._callers.pop(name, None)
        else:
            self._callers[name] = writer, job, time.monotonic() + (JOB_S if job else AFTER_S)

    def _commands(self) -> list[Command]:
        """Who is there: looked for once in a turn of the loop, and not often when many jobs run."""
        if self._there is None:
            now_s = time.monotonic()
            self._looks = [t for t in self._looks if t > now_s - 1.0]
            if len(self._looks) >= LOOKS_MAX:
                return []
            self._looks.append(now_s)
            self._there = commands()
        return self._there

    def _done(self, unit: str, job: str) -> None:
        """What follows a job's end at once is still its work."""
        name = self._known(unit)
        if self._jobs.get(name) == job:
            del self._jobs[name]
        if name in self._callers and self._callers[name][1] == job:
            self._callers[name] = self._callers[name][0], job, time.monotonic() + AFTER_S

    def _caller_of(self, name: str) -> int | Writer:
        writer, _, until = self._callers.get(name, (None, "", 0.0))
        if writer is None or time.monotonic() > until:
            self._callers.pop(name, None)
            return 0
        return writer

    # -- what is wanted -------------------------------------------------------------------------------------------

    def want(self, name: str) -> None:
        self._names.add(name)
        if DAEMONS.definition(name) is not None:
            self._wake()  # its processes may have been found already
        elif not self._connecting:
            self._connect_later()

    def unwant(self, name: str) -> None:
        self._names.discard(name)
        self._stirred.discard(name)
        for each in (self._callers, self._jobs, self._soon):
            each.pop(name, None)
        LATER.forget(name)

    def health(self) -> str:
        if self._bus is not None or self._why in ("ok", CONNECTING):
            return "ok"
        return f"blind: {self._why}"

    def close(self) -> None:
        self._closing.set()
        LATER.attach(lambda: None)
        with self._lock:
            made, self._made = self._made[0], (None, "")
        for bus in (made, self._bus):
            if bus is not None:
                bus.close()
        self._bus = None
        for fd in list(self._alive):
            self._forget(fd)
        os.close(self._event)
        os.close(self._timer)
        self._epoll.close()


def _movers(unit: str, stops: bool) -> set[str]:
    return systemd.movers(unit, stops=stops)


def _timer() -> int:
    """A timer of the kernel as a descriptor: Python 3.11 has none."""
    import ctypes

    fd = int(ctypes.CDLL(None, use_errno=True).timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    return fd


def _arm(fd: int, at_s: float) -> None:
    """Make it readable at ``at_s`` of the monotonic clock; 0: never."""
    import ctypes

    ns = max(1, int(at_s * 1e9)) if at_s else 0
    when = (ctypes.c_long * 4)(0, 0, ns // 1_000_000_000, ns % 1_000_000_000)
    ctypes.CDLL(None, use_errno=True).timerfd_settime(fd, 1, ctypes.byref(when), None)


def _disarm(fd: int) -> None:
    try:
        os.read(fd, 8)
    except BlockingIOError:
        pass


__all__ = ["LATER", "Later", "Units"]
