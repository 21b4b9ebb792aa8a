"""The person's process: a terminal or pipes, the audit login, the account's rights, and its shell or one command."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pwd
import shlex
import signal
import struct
import termios
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NoReturn

from pact.host import processes
from pact.session.frames import Size

UNSET: Final = 0xFFFFFFFF
TTY_MODE: Final = 0o620
TTY_GROUP: Final = 5
PR_SET_CHILD_SUBREAPER: Final = 36
ROUNDS: Final = 40
LOOK_S: Final = 0.001
PR_SET_PDEATHSIG: Final = 1
UMASK: Final = 0o022
OOM: Final = "/proc/self/oom_score_adj"


def set_login(uid: int) -> None:
    """Make this process a login of ``uid``: the kernel gives it a session of its own, and what it starts inherits both.
    So what the session changes is the person's, also behind ``sudo``. Raises OSError where the kernel has no audit."""
    with open("/proc/self/loginuid", "w", encoding="ascii") as f:
        f.write(str(uid))


def login() -> tuple[int | None, int | None]:
    """The login uid and the audit session of this process; ``None``: the kernel knows none."""
    found: list[int | None] = []
    for name in ("loginuid", "sessionid"):
        try:
            with open(f"/proc/self/{name}", encoding="ascii") as f:
                number = int(f.read())
        except (OSError, ValueError):
            number = UNSET
        found.append(None if number == UNSET else number)
    return found[0], found[1]


def adopt_orphans() -> None:
    """What a descendant leaves behind becomes a child of this process, and can be found."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def left_behind() -> list[int]:
    """The living processes below this one, which waits for no child any more."""
    for _ in range(ROUNDS):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return []
        if found := _below(os.getpid()):
            return found
        time.sleep(LOOK_S)  # one was handed on by its parent, which ended, between two lines of the list
    return []


def reap_orphans(but: int) -> None:
    """Orphans that were adopted and have ended do not count any more among the processes that a session may have.
    ``but``: another waits for this one."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == but:
            return
        os.waitpid(found.si_pid, os.WNOHANG)


def end_descendants() -> None:
    """Kill every process below this one, also those that are born meanwhile."""
    for _ in range(ROUNDS):
        found = _below(os.getpid())
        if not found:
            return
        kill(found)
        time.sleep(0.005)


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass


def _below(pid: int) -> list[int]:
    """The living descendants of a process."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = processes.stat_of(name)
            if processes.lives(fields):
                parents.setdefault(int(fields[processes.PARENT]), []).append(int(name))
    found: list[int] = []
    todo = [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def set_size(fd: int, size: Size) -> None:
    """Rows, columns and pixels of a terminal. The kernel tells its foreground processes."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", *size))


def open_terminal(uid: int, size: Size) -> tuple[int, int, str]:
    """A new terminal that belongs to ``uid``: both ends, and its name (``pts/4``). Raises OSError."""
    master, slave = os.openpty()
    os.fchown(slave, uid, TTY_GROUP)
    os.fchmod(slave, TTY_MODE)
    set_size(master, size)
    attributes = termios.tcgetattr(slave)
    attributes[0] |= termios.IUTF8 if hasattr(termios, "IUTF8") else 0x4000
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    os.set_blocking(master, False)
    return master, slave, os.ttyname(slave).removeprefix("/dev/")


def line(entry: pwd.struct_passwd, shell: str, command: Sequence[str]) -> list[str]:
    """The argument list of the shell: a login shell, or one that runs a command. One word is a line for the shell, as
    ssh takes it; several are exactly these words."""
    name = os.path.basename(shell)
    if not command:
        return [f"-{name}"]
    text = command[0] if len(command) == 1 else shlex.join(command)
    return [name, "-c", f" {text}" if text.startswith(("-", "+")) else text]  # else the shell takes it for an option


class Plan:
    """What a process is started with. ``fds``: its three standard streams; ``terminal``: they are its terminal."""

    def __init__(
        self,
        entry: pwd.struct_passwd,
        shell: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        fds: tuple[int, int, int],
        terminal: bool,
    ) -> None:
        self.entry, self.shell, self.argv, self.env = entry, shell, list(argv), dict(env)
        self.fds, self.terminal = fds, terminal


def start(plan: Plan) -> int:
    """Start the process in a session of its own. Returns its pid. Raises OSError if no process can be made."""
    host = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _become(plan, host)
        except BaseException as exc:
            _end(f"pact: {exc}\r\n")
    return pid


def _become(plan: Plan, host: int) -> NoReturn:
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    if plan.terminal:
        fcntl.ioctl(plan.fds[0], termios.TIOCSCTTY, 0)
    # The originals may themselves be 0, 1 or 2: they go out of the way first.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in plan.fds]
    for fd, copy in enumerate(moved):
        os.dup2(copy, fd)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    try:
        with open(OOM, "w", encoding="ascii") as f:
            f.write("0")
    except OSError:
        pass
    os.umask(UMASK)
    entry = plan.entry
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    if not plan.terminal:  # a terminal's end tells its processes; pipes tell nobody
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != host:  # it died before it could be asked to tell
            os._exit(126)
    try:
        os.chdir(entry.pw_dir or "/")
    except OSError as exc:
        os.write(2, f"pact: {entry.pw_dir}: {os.strerror(exc.errno or 0)}: starting in /\r\n".encode())
        os.chdir("/")
    try:
        os.execve(plan.shell, plan.argv, plan.env)
    except OSError as exc:
        _end(f"pact: {plan.shell}: {os.strerror(exc.errno or 0)}\r\n", 126 if exc.errno == errno.EACCES else 127)


def _end(text: str, code: int = 126) -> NoReturn:
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass
    os._exit(code)
