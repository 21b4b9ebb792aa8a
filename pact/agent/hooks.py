"""Executables in ``hooks.d`` run on events: JSON on stdin, time-limited, never blocking the agent.

A file runs only if nobody but root (or the agent's own user) can have written it or put it there (``owned``); this is
checked when the agent starts, when an event is queued for a hook, and when the hook is run. Hooks get no terminal, a
clean environment, and a process group of their own, which is killed when their time is up.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pact.host import owned

RUNNING_MAX: Final = 4
QUEUE_MAX: Final = 1000
ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
WARNED_MAX: Final = 1000


@dataclass(slots=True)
class Running:
    process: subprocess.Popen[bytes]
    path: str
    pidfd: int
    ends_ns: int


class Hooks:
    """A bounded queue of events and a bounded number of processes."""

    def __init__(self, directory: str, timeout_ns: int, log: Callable[[str], None]) -> None:
        self.directory = directory
        self.timeout_ns = timeout_ns
        self.log = log
        self.dropped = 0
        self._warned: set[tuple[str, str]] = set()
        self.running: dict[int, Running] = {}
        self._queue: deque[tuple[str, bytes]] = deque()

    def paths(self) -> list[str]:
        """The hooks that may run, in order of name."""
        return [p for p in _executables(self.directory) if self._trusted(p)]

    def _trusted(self, path: str) -> bool:
        try:
            owned.require(self.directory, "hooks")
            owned.require(path, "hook")
        except owned.NotOurs as exc:
            if (path, exc.message) not in self._warned and len(self._warned) < WARNED_MAX:
                self._warned.add((path, exc.message))
                self.log(f"hook {path} is not run: others could have written it: {exc.message}; {exc.hint}")
            return False
        return True

    def events(self, bodies: Sequence[bytes]) -> None:
        """Queue events for every hook. If the hooks are too slow, the oldest events are dropped and counted."""
        paths = self.paths()
        for body in bodies if paths else ():
            for path in paths:
                if len(self._queue) >= QUEUE_MAX:
                    self._queue.popleft()
                    self.dropped += 1
                self._queue.append((path, body))

    def start_due(self, now_ns: int) -> list[int]:
        """Start the hooks that may run now. Returns new pidfds, to be watched for reading."""
        fds = []
        while self._queue and len(self.running) < RUNNING_MAX:
            path, body = self._queue.popleft()
            if not self._trusted(path):  # it may have been replaced since the check at queueing
                continue
            try:
                with open(os.memfd_create("pact-event"), "w+b") as stdin:
                    stdin.write(body + b"\n")
                    stdin.seek(0)
                    process = subprocess.Popen(
                        [path],
                        stdin=stdin,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        cwd="/",
                        start_new_session=True,
                        umask=0o022,
                        env=ENVIRONMENT,
                    )
                pidfd = os.pidfd_open(process.pid)
            except OSError as exc:
                self.log(f"hook {path}: {exc}")
                continue
            self.running[pidfd] = Running(process, path, pidfd, now_ns + self.timeout_ns)
            fds.append(pidfd)
        return fds

    def reap(self, pidfd: int) -> None:
        """One hook has ended."""
        hook = self.running.pop(pidfd)
        code = hook.process.wait()
        if code:
            self.log(f"hook {hook.path} ended with {code}")
        os.close(pidfd)

    def next_end_ns(self) -> int | None:
        return min((h.ends_ns for h in self.running.values()), default=None)

    def kill_overdue(self, now_ns: int) -> None:
        for hook in self.running.values():
            if hook.ends_ns <= now_ns:
                self.log(f"hook {hook.path} was killed after {self.timeout_ns / 1e9:g} s")
                self._kill(hook)
                hook.ends_ns = now_ns + self.timeout_ns

    def close(self) -> None:
        self._queue.clear()
        for hook in list(self.running.values()):
            self._kill(hook)
            self.reap(hook.pidfd)

    @staticmethod
    def _kill(hook: Running) -> None:
        try:
            os.killpg(hook.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def require_trusted(directory: str) -> None:
    """Check the directory, if it exists, and every hook in it. Raises NotOurs."""
    owned.require(directory, "hooks", missing_ok=True)
    for path in _executables(directory):
        owned.require(path, "hook")


def _executables(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [path for n in names if not n.startswith(".") for path in [f"{directory}/{n}"] if _executable(path)]


def _executable(path: str) -> bool:
    try:
        st = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(st.st_mode) and bool(st.st_mode & 0o100)
