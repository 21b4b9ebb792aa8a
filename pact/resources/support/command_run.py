"""Running one declared command as root: what may be run, with which environment, how long, and how much it may say.

What a command names must belong to root, and so must the way to it: another account could put its own program there.
The output goes to files in memory that cannot grow, so that a command which prints a gibibyte costs 64 KiB. A command
has a session of its own, which is killed when its time is up; a process that left the session is found by a mark in its
environment. A command that answers a question is not allowed to leave processes behind; one that restores something
may start a daemon, and runs apart from the agent's unit for that (``apart``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pact.host import owned
from pact.model import NS_PER_S
from pact.resources.support import apart

OUTPUT_MAX: Final = 64 << 10
PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
SHELL: Final = "/bin/sh"
MARK: Final = "PACT_COMMAND"
PREFIX: Final = "pact-command-"
#: What a command has started stays when it has ended itself.
STAYS: Final = ("KillMode=process",)
KILLED_S: Final = 10.0
SAID_MAX: Final = 200
#: How often the processes of a command that ran too long are looked for: one may be making others meanwhile.
SWEEPS_MAX: Final = 20
ENVIRON_MAX: Final = 256 << 10
#: A word of a shell's script that may be the name of a file.
WORD: Final = re.compile(r"[^\s;|&<>()$`'\"\\=]*/[^\s;|&<>()$`'\"\\=]*")


_running: set[subprocess.Popen[bytes]] = set()  # those that answer questions


class Failed(Exception):
    """The command cannot be run, or it has not done what it should; the text is for people."""


@dataclass(frozen=True, slots=True)
class Order:
    """One command: a list of words, or a script of a shell. ``secret``: nothing of what it says is told to people."""

    words: tuple[str, ...]
    shell: bool
    timeout_ns: int
    secret: bool = False

    @property
    def arguments(self) -> list[str]:
        return [SHELL, "-c", self.words[0]] if self.shell else list(self.words)


def require_ours(order: Order) -> str:
    """The program's path. Raises Failed if others could have written it, or a file that is named beside it."""
    program = SHELL if order.shell else _program(order.words[0])
    words = WORD.findall(order.words[0]) if order.shell else order.words[1:]
    try:
        owned.require(program, "command")
        for word in words:
            path = os.path.join("/", word)
            if "\0" not in path and os.path.isfile(path):
                owned.require(path, "a file of the command")
    except owned.NotOurs as exc:
        raise Failed(f"it is not run: {exc.message}") from None
    return program


def _program(word: str) -> str:
    if "/" in word:
        if not word.startswith("/"):
            raise Failed(f"{word!r} is no absolute path: it is not run")
        found: str | None = word
    else:
        found = shutil.which(word, path=PATH)
    if found is None or not os.path.exists(found):
        raise Failed(f"there is no program {word!r} here")
    return found


def run(order: Order, *, may_stay: bool = False) -> str:
    """What it printed. ``may_stay``: processes that it leaves behind are not killed. Raises Failed."""
    program: str | None = require_ours(order)
    mark = secrets.token_hex(16)
    env = {"PATH": PATH, "LC_ALL": "C", "HOME": "/", MARK: mark}
    arguments, unit = order.arguments, ""
    if may_stay and apart.available():
        unit = apart.unit_name(PREFIX)
        words = [str(program), *arguments[1:]]
        arguments, program = apart.command(unit, words, env, "a command, on behalf of pact", STAYS), None
    with _paper("stdout") as out, _paper("stderr") as err:
        try:
            process = subprocess.Popen(
                arguments,
                executable=program,
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                umask=0o022,
            )
        except (OSError, ValueError) as exc:
            why = os.strerror(exc.errno or 0).lower() if isinstance(exc, OSError) else str(exc)
            raise Failed(f"it cannot be run: {why}") from None
        if not may_stay:
            _running.add(process)
        in_time = _wait(process, order.timeout_ns)
        _running.discard(process)
        if not in_time or not may_stay:
            _end_session(process)
        if not in_time:
            _end_unit(unit)
            _sweep(mark)
        elif not may_stay:
            _sweep(mark, process.pid)
        code = process.wait() if in_time or _wait(process, NS_PER_S) else None
        if not in_time:
            raise Failed(f"it did not end within {order.timeout_ns / NS_PER_S:g} s, and was killed")
        printed, said = _written(out), _written(err)
        if len(printed) >= OUTPUT_MAX:
            raise Failed(f"it printed more than {OUTPUT_MAX} bytes")
        if code != 0:
            first = said.decode("utf-8", "backslashreplace").strip().partition("\n")[0][:SAID_MAX]
            how = f"ended by signal {-code}" if code is not None and code < 0 else f"ended with {code}"
            told = ("what it said is secret" if order.secret else first) if first else ""
            raise Failed(f"it {how}" + (f": {told}" if told else ""))
    return printed.decode("utf-8", "backslashreplace").strip()


class _paper:
    """A file in memory with room for ``OUTPUT_MAX`` bytes: what is written beyond them is an error of the writer."""

    def __init__(self, name: str) -> None:
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, OUTPUT_MAX)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _written(fd: int) -> bytes:
    """The writer shares the position: it says how much is written."""
    return os.pread(fd, min(os.lseek(fd, 0, os.SEEK_CUR), OUTPUT_MAX), 0)


def _wait(process: subprocess.Popen[bytes], limit_ns: int) -> bool:
    """Whether it ended in time. It is not reaped yet, so that its number is nobody else's."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(1, limit_ns // 1_000_000)))
    finally:
        os.close(fd)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group. The kernel does that at once for all of it, so that nothing can fork away."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def _end_unit(unit: str) -> None:
    """Kill all processes of a service, if there is one."""
    if unit:
        command = ["systemctl", "kill", "--signal=KILL", unit]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, env={"PATH": PATH}, cwd="/", capture_output=True, timeout=KILLED_S, check=False)


def end_all() -> None:
    """Kill the commands that answer questions: this process ends, and nobody would limit them any more."""
    for process in list(_running):
        _end_session(process)


def _sweep(mark: str, after: int = 0) -> None:
    """Kill processes that have left the session, by the mark in their environment: those that are younger than the
    process ``after``."""
    wanted = f"{MARK}={mark}".encode()
    for _ in range(SWEEPS_MAX):
        found, oldest = 0, after if after <= _newest_pid() else 0  # the numbers have begun anew
        for pid in (int(p) for p in os.listdir("/proc") if p.isdigit()):
            found += pid > oldest and _kill_marked(pid, wanted)
        if not found:
            return


def _newest_pid() -> int:
    """The number of the youngest process; 0 if that is not known."""
    try:
        with open("/proc/loadavg") as f:
            return int(f.read().split()[-1])
    except (OSError, ValueError, IndexError):
        return 0


def _kill_marked(pid: int, wanted: bytes) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            if wanted not in f.read(ENVIRON_MAX).split(b"\0"):
                return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def words_of(value: object, shell: bool, what: str) -> tuple[str, ...]:
    """The words of a command in TOML. Raises ValueError."""
    if isinstance(value, str):
        if not shell:
            raise ValueError(f'{what} is a list of words (["uname", "-r"]); a text needs shell = true')
        value = [value]
    elif shell:
        raise ValueError(f"{what} is a text, because of shell = true")
    if not isinstance(value, Sequence) or not value or not all(isinstance(w, str) and "\0" not in w for w in value):
        raise ValueError(f"{what} is a list of words")
    if not value[0].strip() or sum(map(len, value)) > 8192:
        raise ValueError(f"{what} names no program, or has more than 8192 characters")
    return tuple(value)
