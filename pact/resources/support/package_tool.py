"""Running package managers: with time limits, without questions, with bounded output, and never killed in the middle if
that can be avoided.

What hangs in a transaction is nearly always a package's script. So after the limit the scripts are ended, and not the
package manager: it then notes that the script failed, and ends in order. Only if it does not end either, it is killed.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pact.errors import RestoreError
from pact.host import processes
from pact.resources.support.passwords import shown_text

#: Of what a tool prints, at most this much is read. More than ``FLOOD_BYTES`` of a script's output is dropped while it
#: runs: it is kept in memory.
OUT_MAX: Final = 64 << 20
FLOOD_BYTES: Final = 4 << 20
TURN_S: Final = 0.5
#: How long a package manager may take to end after its hanging scripts were ended, and how often that is done.
ENDING_S: Final = 20.0
ENDING_TIMES: Final = 3
KILLED_S: Final = 5.0
LINE_MAX: Final = 300
ENV: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "LANGUAGE": "C",
    "HOME": "/root",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
    "APT_LISTCHANGES_FRONTEND": "none",
    "NEEDRESTART_SUSPEND": "1",
}
#: Programs that must end by themselves: what they leave half done is the machine's state.
#: A line that names the fault begins so; if it ends with a colon, the next one goes on.
FAULTS: Final = ("E: ", "dpkg: error", "error:", "Error:", "Problem:")
KEPT: Final = frozenset({"apt-get", "apt", "dpkg", "dpkg-deb", "dnf", "yum", "zypper", "rpm"})


@dataclass(frozen=True, slots=True)
class Ended:
    """``late``: it did not end within its limit."""

    code: int
    out: str
    err: str
    late: bool = False

    def why(self, tool: str) -> str:
        """The reason of a failure, in one line."""
        if self.late:
            return f"{tool} did not end in time: what hung was ended"
        lines = [line.strip() for line in (self.err + "\n" + self.out).splitlines() if line.strip()]
        first = next((at for at, line in enumerate(lines) if line.startswith(FAULTS)), 0)
        line = lines[first] if lines else f"{tool} ended with {self.code}"
        if line.endswith(":") and len(lines) > first + 1:
            line += " " + lines[first + 1]
        return "".join(c if c.isprintable() else "?" for c in shown_text(line.removeprefix("E: ")))[:LINE_MAX]


def run(
    tool: str,
    command: Sequence[str],
    timeout_s: float,
    *,
    env: Mapping[str, str] | None = None,
    given: bytes = b"",
    transaction: bool = False,
    main: Callable[[], int] | None = None,
) -> Ended:
    """Run it to its end. ``transaction``: it may be changing the machine, so it is ended as carefully as possible, and
    lives on if the agent dies. ``main``: the pid of the package manager, if it is not the process that is started, and
    0 if that is not known. Raises RestoreError if it cannot be started."""
    with contextlib.ExitStack() as files:
        out, err, stdin = (files.enter_context(_memory(name)) for name in ("out", "err", "in"))
        os.write(stdin.fileno(), given)
        os.lseek(stdin.fileno(), 0, os.SEEK_SET)
        try:
            process = subprocess.Popen(
                command,
                env={**ENV, **(env or {})},
                stdin=stdin,
                stdout=out,
                stderr=err,
                start_new_session=True,
                umask=0o022,
                cwd="/",
            )
        except OSError as exc:
            raise RestoreError(f"{tool}: {os.strerror(exc.errno or 0).lower()}") from None
        late = False
        try:
            late = not _wait(process, timeout_s, (out.fileno(), err.fileno()), cut=transaction)
            if late:
                _end(process, main or (lambda: process.pid), gently=transaction)
        finally:
            if process.poll() is None and not transaction:
                _kill(process)
        return Ended(process.poll() or 0, _read(out.fileno()), _read(err.fileno()), late)


def _memory(name: str) -> io.FileIO:
    import fcntl

    file = io.FileIO(os.memfd_create(name), "r+")
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND | os.O_RDWR)  # what is cut off leaves no hole
    return file


def _wait(process: subprocess.Popen[bytes], timeout_s: float, outputs: Sequence[int], *, cut: bool) -> bool:
    """Whether it ended in time. Output beyond what is read is dropped; of a question it means that it goes wrong."""
    end = time.monotonic() + timeout_s
    pidfd = os.pidfd_open(process.pid)
    try:
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return False
            if waiting.poll(min(left, TURN_S) * 1000):
                process.wait()
                return True
            for fd in outputs:
                size = os.fstat(fd).st_size
                if cut and size > FLOOD_BYTES:
                    os.ftruncate(fd, 0)
                elif size > OUT_MAX:
                    return False
    finally:
        os.close(pidfd)


def _end(process: subprocess.Popen[bytes], main: Callable[[], int], *, gently: bool) -> None:
    for _ in range(ENDING_TIMES if gently else 0):
        top = main()
        scripts = [pid for pid in _descendants(top) if _program(pid) not in KEPT] if top else []
        for pid in scripts:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not scripts and top:
            with contextlib.suppress(OSError):
                os.kill(top, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_S)
            return
    with contextlib.suppress(OSError):
        if (top := main()) not in (0, process.pid):
            os.kill(top, signal.SIGKILL)
    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process that hangs in the kernel cannot be ended
        process.wait(KILLED_S)


def _descendants(top: int) -> list[int]:
    """All processes below this one, the deepest last."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = processes.stat_of(name)
            if fields:
                children.setdefault(int(fields[processes.PARENT]), []).append(int(name))
    out, todo = list[int](), [top]
    while todo:
        todo = [child for pid in todo for child in children.get(pid, ())]
        out += todo
    return out


def _program(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
    except OSError:
        return ""


def _read(fd: int) -> str:
    """What was printed: the first bytes, and if that is too much the last."""
    size = os.fstat(fd).st_size
    return os.pread(fd, OUT_MAX, max(0, size - OUT_MAX)).decode("utf-8", "replace")
