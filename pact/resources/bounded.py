"""Calls into code that is not pact's own, with a limit of time, and with an eye on what they leave behind.

On the main thread (the agent's loop, a command) a timer interrupts the call. On a worker's thread the call runs on a
helper's thread, which is given up if it does not come back. A call that hangs inside the kernel or in native code keeps
its thread; nobody waits for it. What would end this process or a thread of it (``sys.exit``) is an error of the call; a
copy of this process that the code has made (``os.fork``) ends where its call ends; a standard descriptor that it closes
is opened again, because the next file that is opened would get its number.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")
#: What the loop, a worker, and a worker's longest jobs (restoring, telling, discovering) wait for.
LOOP_S: Final = 2.0
LOOK_S: Final = 10.0
WORK_S: Final = 60.0
#: A call that catches the interruption is interrupted again after this time.
AGAIN_S: Final = 0.1
DESCRIPTORS_MAX: Final = 64
THREADS_MAX: Final = 16
MEMORY_MAX: Final = 64 << 20
STANDARD: Final = (0, 1, 2)
#: Copies of these have higher numbers than programs expect to be free.
COPIES_FROM: Final = 64
#: How a copy of this process ends that came back from a call.
COPY_ENDS: Final = 70


class Hung(BaseException):
    """A call did not end in its time. No ordinary ``except`` of the called code holds it up."""


class Escaped(Exception):
    """A call did what would have ended or changed this process; the text is for people."""


def within(limit_s: float, method: Callable[..., T], *args: Any, **more: Any) -> T:
    """The method's result. Raises the exceptions that it raises, Escaped, and Hung after the limit."""
    held = partial(_held, method)
    if threading.current_thread() is threading.main_thread():
        return _interrupted(min(limit_s, LOOP_S), held, args, more)
    return _aside(limit_s, held, args, more)


def _held(method: Callable[..., T], *args: Any, **more: Any) -> T:
    """The call itself, on the thread that makes it."""
    own, before = os.getpid(), _STANDARD.present()
    try:
        return method(*args, **more)
    except (Exception, Hung):
        raise
    except BaseException as exc:
        if _is_a_persons(exc):
            raise
        raise Escaped(f"it raised {type(exc).__name__}, which ends a program: {exc}") from None
    finally:
        if os.getpid() != own:
            os._exit(COPY_ENDS)
        _STANDARD.mend(before)


def _is_a_persons(exc: BaseException) -> bool:
    """Ctrl-C at a command. The agent takes SIGINT in another way."""
    return (
        isinstance(exc, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


class _Standard:
    """The standard descriptors of this process, and copies of them to put back in their places."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[tuple[int, int], int]] = {}  # by descriptor: what it was, and its copy

    def present(self) -> tuple[tuple[int, int] | None, ...]:
        """Which files they are; a copy is made of each that is new."""
        found = tuple(map(_identity, STANDARD))
        for fd, what in zip(STANDARD, found, strict=True):
            known = self._copies.get(fd)
            if what is not None and (known is None or known[0] != what):
                copy = what, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, COPIES_FROM)
                old = self._copies.pop(fd, None)  # at once: another thread may be here, and its number is closed once
                self._copies[fd] = copy
                if old is not None:
                    os.close(old[1])
        return found

    def mend(self, before: tuple[tuple[int, int] | None, ...]) -> None:
        """Raises Escaped if one that was there is closed."""
        closed = [fd for fd, was in zip(STANDARD, before, strict=True) if was is not None and _identity(fd) is None]
        for fd in closed:
            os.dup2(self._copies[fd][1], fd)
        if closed:
            raise Escaped(f"it closed the descriptor {closed[0]} of the agent")


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        st = os.fstat(fd)
    except OSError:
        return None
    return st.st_dev, st.st_ino


def _raise_hung(number: int, frame: object) -> None:
    raise Hung


def _interrupted(limit_s: float, method: Callable[..., T], args: tuple[Any, ...], more: dict[str, Any]) -> T:
    before, began = signal.signal(signal.SIGALRM, _raise_hung), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, limit_s, AGAIN_S)
    try:
        try:
            return method(*args, **more)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # the signal may come right before the timer ends: then it would come again and again, in the loop
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # another timer of this process ran
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - began)), interval)


class _Helper:
    """A thread that makes calls for one other thread."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="pact-bounded", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over:
            self._calls.get()()

    def call(self, limit_s: float, method: Callable[[], T]) -> T:
        answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def made() -> None:
            try:
                answer.put((method(), None))
            except BaseException as exc:
                answer.put((None, exc))

        self._calls.put(made)
        try:
            result, error = answer.get(timeout=limit_s)
        except queue.Empty:
            self._give_up()
            raise Hung from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _give_up(self) -> None:
        """End a loop that runs in Python; what hangs elsewhere keeps its thread."""
        self._over = True
        assert self._thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit))


_helpers = threading.local()


def _aside(limit_s: float, method: Callable[..., T], args: tuple[Any, ...], more: dict[str, Any]) -> T:
    helper: _Helper | None = getattr(_helpers, "helper", None)
    if helper is None:
        helper = _helpers.helper = _Helper()
    try:
        return helper.call(limit_s, lambda: method(*args, **more))
    except Hung:
        _helpers.helper = None
        raise


_STANDARD: Final = _Standard()


class Left:
    """What calls leave behind: descriptors, threads and memory that are more after them than before. Other threads of
    the process open and close theirs meanwhile, so that only a sum over many calls, which the whole process shows too,
    says anything.
    """

    def __init__(self) -> None:
        self._first: tuple[int, int, int] | None = None
        self._sums = [0, 0, 0]

    def around(self, call: Callable[[], T]) -> T:
        before = _present()
        self._first = self._first or before
        try:
            return call()
        finally:
            for n, (was, now) in enumerate(zip(before, _present(), strict=True)):
                self._sums[n] += now - was

    def too_much(self) -> str:
        """What it keeps, for people; ``""`` if that is bearable."""
        if self._first is None:
            return ""
        limits = (DESCRIPTORS_MAX, "descriptors"), (THREADS_MAX, "threads"), (MEMORY_MAX, "bytes of memory")
        now = _present()
        for n, (most, what) in enumerate(limits):
            if min(self._sums[n], now[n] - self._first[n]) > most:
                return f"its code keeps more than {most} {what}"
        return ""


def _present() -> tuple[int, int, int]:
    """Descriptors, threads and resident bytes of this process."""
    with open("/proc/self/statm", "rb") as f:
        pages = int(f.read().split()[1])
    return len(os.listdir("/proc/self/fd")), threading.active_count(), pages * os.sysconf("SC_PAGE_SIZE")
