"""Services on images without systemd: daemons that are started, stopped and looked for by command, pid file or program.

What is run belongs to root, and each run has a limit. A pid file that others could have written, or one that is left
over, names whatever process it likes: with ``executable`` beside it, only a process that runs that program is meant;
without, only a pid file that root alone can write is believed. The processes that were found are watched by pidfd, so
that a death is seen at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pact.errors import RestoreError
from pact.host import owned, processes
from pact.model import NS_PER_S, Attrs, Observation, Unreadable
from pact.resources.support.way import hangs

if TYPE_CHECKING:
    from pact.resources.support.command_run import Order

BACKEND: Final = "process"
TIMEOUT_NS: Final = 10 * NS_PER_S
TIMEOUT_MAX_NS: Final = 60 * NS_PER_S
#: A daemon that was started must stay up for so long.
STAY_S: Final = 3.0
LOOK_S: Final = 0.05
PID_BYTES: Final = 32
#: How an init script's ``status`` says that it does not run; 0 says that it does.
NOT_RUNNING: Final = frozenset({1, 2, 3})
COMMANDS: Final = ("start", "stop", "status")
PLACES: Final = ("pidfile", "executable")
KEYS: Final = frozenset({"backend", "timeout", *COMMANDS, *PLACES})
PIDS_MAX: Final = 1000
COMMAND_MAX: Final = 8192
THREADS_MAX: Final = 16
DEFINED_MAX: Final = 10_000
NO_START: Final = "there is no command that starts it: a person must"


def parsed(value: Mapping[str, Any]) -> Attrs:
    """The definition in TOML as attributes. Raises ValueError."""
    if value["backend"] != BACKEND:
        raise ValueError(f'backend {value["backend"]!r} is not "process"; without a backend it is systemd')
    for key in ("enabled", "masked"):
        if key in value:
            raise ValueError(f"{key} is systemd's: backend = {BACKEND!r} has none")
    out: Attrs = {"backend": BACKEND}
    for key in COMMANDS:
        if key in value:
            out[key] = _words(key, value[key])
    for key in PLACES:
        if key in value:
            path = value[key]
            if not isinstance(path, str) or not path.startswith("/") or not path.isprintable() or len(path) > 4095:
                raise ValueError(f"{key} must be an absolute path")
            out[key] = path
    if not out.keys() & {"status", *PLACES}:
        raise ValueError("nothing says whether it runs: status, pidfile or executable is missing")
    if "timeout" in value:
        out["timeout_ns"] = _timeout(value["timeout"])
    return out


def _words(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(w, str) and "\0" not in w for w in value):
        raise ValueError(f'{key} is a list of words, such as ["/usr/sbin/munged"]; there is no shell')
    if not value[0].startswith("/") or sum(map(len, value)) > COMMAND_MAX:
        raise ValueError(f"{key} begins with an absolute path, and has at most {COMMAND_MAX} characters")
    return list(value)


def _timeout(value: Any) -> int:
    from pact.core.units import parse_duration

    if not isinstance(value, str):
        raise ValueError('timeout is a duration such as "10s"')
    ns = parse_duration(value)
    if not 0 < ns <= TIMEOUT_MAX_NS:
        raise ValueError(f"timeout must be above 0 and at most {TIMEOUT_MAX_NS // NS_PER_S} s")
    return ns


def exported(attrs: Attrs) -> dict[str, Any]:
    """The inverse of ``parsed``."""
    out: dict[str, Any] = {key: attrs[key] for key in ("backend", *COMMANDS, *PLACES) if key in attrs}
    if "timeout_ns" in attrs:
        whole, part = divmod(attrs["timeout_ns"], NS_PER_S)
        out["timeout"] = f"{whole}.{part:09d}".rstrip("0").rstrip(".") + "s"
    return out


def definition_of(attrs: Attrs | None) -> Attrs | None:
    """The part of declared attributes that says how to look; ``None`` if it is systemd's."""
    if attrs is None or attrs.get("backend") != BACKEND:
        return None
    return {k: v for k, v in attrs.items() if k != "state"}


class Daemons:
    """Those that are declared, by name, and the processes that looks have found of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._declared: set[str] = set()  # of systemd's, too
        self._defined: dict[str, Attrs] = {}
        self._found: dict[str, frozenset[int]] = {}
        self._wake: Callable[[], None] = lambda: None

    def attach(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def learn(self, name: str, attrs: Attrs | None) -> None:
        """This is declared of it from now on, or nothing."""
        definition = definition_of(attrs)
        with self._lock:
            (self._declared.discard if attrs is None else self._declared.add)(name)
            if definition is None:
                self._defined.pop(name, None)
                self._found.pop(name, None)
            else:
                self._defined[name] = definition

    def propose(self, name: str, definition: Attrs | None) -> bool:
        """Whether it can be looked at in this way before that is declared: if it is looked at so already, or if nothing
        else is declared of it, so that nobody else's answer depends on it."""
        with self._lock:
            if self._defined.get(name) == definition:
                return True
            if name in self._declared:
                return False
            if definition is None:
                self._defined.pop(name, None)
            elif len(self._defined) < DEFINED_MAX:
                self._defined[name] = definition
            return True

    def definition(self, name: str) -> Attrs | None:
        return self._defined.get(name)

    def found(self, name: str, pids: frozenset[int]) -> None:
        with self._lock:
            if name not in self._defined or self._found.get(name) == pids:
                return
            self._found[name] = pids
        self._wake()

    def gone(self, name: str, pid: int) -> None:
        """This process has ended."""
        with self._lock:
            if name in self._found:
                self._found[name] -= {pid}

    def all_found(self) -> dict[str, frozenset[int]]:
        with self._lock:
            return dict(self._found)


DAEMONS: Final = Daemons()


class CannotSay(Exception):
    """Nobody can say whether it runs; the text is for people."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Whether it runs, and the processes that are known."""

    running: bool
    pids: frozenset[int] = frozenset()


def observe(name: str, definition: Attrs) -> Observation:
    """Its definition, and its state."""
    try:
        alive = look(definition)
    except CannotSay as exc:
        return Unreadable(f"service: {exc}")
    DAEMONS.found(name, alive.pids)
    return {**definition, "state": "running" if alive.running else "stopped"}


def look(definition: Attrs) -> Alive:
    """Raises CannotSay."""
    pids = frozenset[int]()
    if "pidfile" in definition:
        pids = _by_file(definition["pidfile"], definition.get("executable", ""))
    elif "executable" in definition:
        pids = _by_program(definition["executable"])
    if "status" not in definition:
        return Alive(bool(pids), pids)
    code = _status(_order(definition, "status"))
    if code != 0 and code not in NOT_RUNNING:
        raise CannotSay(f"its status command ended with {code}")
    return Alive(code == 0, pids)


def _order(definition: Attrs, key: str) -> Order:
    from pact.resources.support.command_run import Order

    return Order(tuple(definition[key]), False, definition.get("timeout_ns", TIMEOUT_NS))


def _by_file(path: str, program: str) -> frozenset[int]:
    """The process of a pid file, if there is one."""
    try:
        if hangs(os.fsencode(path)):
            raise CannotSay("its pid file lies where an access may hang")
        text = owned.read_regular(path, PID_BYTES)
        if not program:
            owned.require(path, "pid file")
    except FileNotFoundError:
        return frozenset()
    except owned.NotOurs as exc:
        raise CannotSay(f"{exc.message}: name its executable, too") from None
    except OSError as exc:
        raise CannotSay(f"pid file: {(exc.strerror or '').lower()}") from None
    pid = int(text) if text.strip().isdigit() else 0
    if pid <= 1 or pid == os.getpid() or not _lives(pid):
        return frozenset()
    return frozenset({pid}) if not program or _runs(pid, program) else frozenset()


def _by_program(path: str) -> frozenset[int]:
    """The processes that run a program. A script's program is its interpreter: it needs a pid file. What runs in a
    container has its own files, of the same names: it is not meant, and would be told to end."""
    own = os.getpid()
    found = (p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if p != own and _runs(p, path))
    return frozenset(pid for pid in list(found)[:PIDS_MAX] if _lives(pid) and not _in_container(pid))


def _runs(pid: int, path: str) -> bool:
    """Whether it runs this program. In a user namespace of its own, where any user mounts another program over it,
    another file of that name does not count."""
    if _program(pid) != path:
        return False
    try:
        if os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user"):
            return True
        there, here = os.stat(f"/proc/{pid}/exe"), os.stat(path)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _program(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return ""


def _in_container(pid: int) -> bool:
    """Whether it has another pid namespace than this process."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:
        return False


def _lives(pid: int) -> bool:
    """Whether it is there and no zombie."""
    return processes.lives(processes.stat_of(pid))


def _status(order: Order) -> int:
    """The exit code of a command that says nothing else. Raises CannotSay."""
    import subprocess

    from pact.resources.support.command_run import PATH, Failed, require_ours

    try:
        program = require_ours(order)
        process = subprocess.Popen(
            order.arguments,
            executable=program,
            env={"PATH": PATH, "LC_ALL": "C", "HOME": "/"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            umask=0o022,
        )
    except (OSError, ValueError, Failed) as exc:
        raise CannotSay(f"its status command cannot be run: {exc}") from None
    try:
        return process.wait(order.timeout_ns / NS_PER_S)
    except subprocess.TimeoutExpired:
        raise CannotSay(f"its status command did not end within {order.timeout_ns / NS_PER_S:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)


# -- acting -------------------------------------------------------------------------------------------------------


def bring(wanted: Sequence[tuple[str, Attrs]]) -> dict[str, str]:
    """Bring all of these to their states, side by side: each has limits of its own. Returns why not, by name."""
    out: dict[str, str] = {}

    def one(name: str, target: Attrs) -> None:
        try:
            (start if target["state"] == "running" else stop)(target)
            out[name] = ""
        except (RestoreError, CannotSay) as exc:
            out[name] = str(exc)
        except Exception as exc:
            out[name] = f"{type(exc).__name__}: {exc}"

    for at in range(0, len(wanted), THREADS_MAX):
        threads = [threading.Thread(target=one, args=each, daemon=True) for each in wanted[at : at + THREADS_MAX]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return out


def _run(definition: Attrs, key: str) -> None:
    """Raises RestoreError."""
    from pact.resources.support.command_run import Failed, run

    try:
        run(_order(definition, key), may_stay=True)
    except Failed as exc:
        raise RestoreError(f"its {key} command: {exc}") from None


def start(definition: Attrs) -> None:
    """Raises RestoreError if it does not run afterwards, and stay up."""
    if "start" not in definition:
        raise RestoreError(NO_START)
    try:
        _run(definition, "start")
        _until(definition, True, "start")
        end = time.monotonic() + STAY_S
        while time.monotonic() < end:
            alive = look(definition)
            if not alive.running:
                raise RestoreError("it was started but does not stay up")
            _rest(alive.pids, end - time.monotonic())
    except CannotSay as exc:
        raise RestoreError(f"it was started, but {exc}") from None


def stop(definition: Attrs) -> None:
    """By its command, or else by SIGTERM. Raises RestoreError if it still runs at the limit: it is never killed."""
    try:
        if "stop" in definition:
            _run(definition, "stop")
        else:
            _ask_to_end(definition)
        _until(definition, False, "stop")
    except CannotSay as exc:
        raise RestoreError(str(exc)) from None


def _ask_to_end(definition: Attrs) -> None:
    """SIGTERM by pidfd: the processes are held before it is looked once more whether they are the ones."""
    held: dict[int, int] = {}
    try:
        for pid in look(definition).pids:
            with contextlib.suppress(OSError):
                held[pid] = os.pidfd_open(pid)
        for pid in look(definition).pids & held.keys():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(held[pid], signal.SIGTERM)
    finally:
        for fd in held.values():
            os.close(fd)


def _until(definition: Attrs, running: bool, verb: str) -> None:
    limit_ns = definition.get("timeout_ns", TIMEOUT_NS)
    end = time.monotonic() + limit_ns / NS_PER_S
    while True:
        alive = look(definition)
        if alive.running == running:
            return
        if time.monotonic() >= end:
            raise RestoreError(f"it did not {verb} within {limit_ns / NS_PER_S:g} s")
        _rest(alive.pids if not running else frozenset(), min(LOOK_S, end - time.monotonic()))


def _rest(pids: frozenset[int], seconds: float) -> None:
    """Wait until one of the processes ends, or for this time."""
    poll, fds = select.poll(), list[int]()
    try:
        for pid in pids:
            with contextlib.suppress(OSError):
                fds.append(os.pidfd_open(pid))
                poll.register(fds[-1], select.POLLIN)
        poll.poll(max(1, int((seconds if fds else min(seconds, LOOK_S * 10)) * 1000)))
    finally:
        for fd in fds:
            os.close(fd)
