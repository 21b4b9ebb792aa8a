"""The batch system of this node, behind one protocol: which jobs run here, which have ended, and taking the node out of
service or back.

What runs is found on the node itself: no controller is asked, ten thousand agents would be a load on it. All of it runs
off the loop, with time limits; what cannot be said is never taken for "nothing runs".  # O7
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from pact.core.node.writers import JOB_NAME
from pact.errors import PactError
from pact.host import owned

TOOL_S: Final = 20.0
OUTPUT_MAX: Final = 1 << 20
SAID_MAX: Final = 200
JOBS_MAX: Final = 65_536
PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
#: What tools of batch systems need of the agent's own environment: where their configuration is.
PASSED_ON: Final = ("SLURM_CONF", "PBS_CONF_FILE", "PBS_HOME", "PBS_EXEC")
#: How every reason begins that pact gives: what begins otherwise is somebody else's, and is left alone.
MARK: Final = "pact:"


class SchedulerError(PactError):
    """The batch system does not answer, or not as it should."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The jobs of which something runs on this node. ``why``: why others may run, too; empty if none can."""

    jobs: frozenset[str]
    why: str = ""


class Outcome(NamedTuple):
    """What became of a wish to drain: ``reason`` is pact's reason that stands now; ``left``: why the node was left as
    it is. ``later``: a drain of pact's may stand behind that, so it is worth another try."""

    reason: str
    left: str = ""
    later: bool = False


class Scheduler(Protocol):
    """All methods may take as long as a tool's time limit, and raise SchedulerError."""

    def running(self) -> Seen:
        """The jobs of this node, found on it alone."""

    def ended(self, jobs: Collection[str]) -> frozenset[str]:
        """Those of the jobs, of which nothing is here, that have certainly ended."""

    def settle(self, wanted: str, mine: Collection[str], *, was_set: bool) -> Outcome:
        """Drain the node with the reason ``wanted``, or put it back into service if that is empty. ``mine``: reasons
        that pact may have set; without any, those that begin with ``MARK`` are pact's. ``was_set``: this one was, so if
        it does not stand any more, a person has put the node back into service."""


class Said(NamedTuple):
    """How a tool ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def first(self) -> str:
        """The first line of its errors, or else of its output, for people."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return "".join(c for c in lines[0] if c.isprintable())[:SAID_MAX] if lines else f"it ended with {self.code}"


def tool(name: str, directory: str = "") -> str:
    """The path of a batch system's tool. Raises SchedulerError if there is none, or if others could have written it."""
    path = shutil.which(name, path=f"{directory}:{PATH}" if directory else PATH)
    if path is None:
        where = f"{directory} nor in {PATH}" if directory else PATH
        raise SchedulerError(f"{name} is not in {where}", "set [scheduler] bin to where it is")
    owned.require(path, name)
    return path


def ran(command: Sequence[str], timeout_s: float = TOOL_S) -> Said:
    """Run a tool with limits for its time and its output, in a clean environment. Raises SchedulerError."""
    name = os.path.basename(command[0])
    env = {"PATH": PATH, "LC_ALL": "C", **{key: os.environ[key] for key in PASSED_ON if key in os.environ}}
    try:
        process = subprocess.Popen(
            command,
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            umask=0o022,
        )
    except OSError as exc:
        raise SchedulerError(f"{name}: {os.strerror(exc.errno or 0).lower()}") from None
    try:
        out, err = _read(process, name, time.monotonic() + timeout_s, timeout_s)
        return Said(process.wait(), out.decode(errors="replace"), err.decode(errors="replace"))
    finally:
        _end(process)


def _read(process: subprocess.Popen[bytes], name: str, ends_s: float, timeout_s: float) -> tuple[bytes, bytes]:
    """Everything that it prints until it has ended."""
    assert process.stdout is not None and process.stderr is not None
    pidfd = os.pidfd_open(process.pid)
    got = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    out, err = got.values()
    poll = select.poll()
    for fd in (pidfd, *got):
        poll.register(fd, select.POLLIN)
    gone = False
    try:
        while True:
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                raise SchedulerError(f"{name} did not end within {timeout_s:g} s")
            ready = [fd for fd, _ in poll.poll(0 if gone else left_s * 1000)]
            for fd in ready:
                if fd in got and (chunk := os.read(fd, 65536)):
                    got[fd] += chunk
                elif fd in got:
                    poll.unregister(fd)
            if len(out) + len(err) > OUTPUT_MAX:
                raise SchedulerError(f"{name} printed more than {OUTPUT_MAX >> 20} MiB")
            if gone and not ready:  # a process that it left behind may keep its output open
                return bytes(out), bytes(err)
            if pidfd in ready:
                gone = True
                poll.unregister(pidfd)
    finally:
        os.close(pidfd)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of it, so that nothing happens later that nobody expects."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            pass  # it hangs in the kernel, and cannot be ended
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def names(lines: Sequence[str], who: str) -> frozenset[str]:
    """The jobs that a program has printed, one a line. Raises SchedulerError for anything else."""
    found = set()
    for line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not JOB_NAME.fullmatch(text):
            raise SchedulerError(f"{who} printed {text[:40]!a}, which is no name of a job")
        found.add(text)
        if len(found) > JOBS_MAX:
            raise SchedulerError(f"{who} printed more than {JOBS_MAX} jobs")
    return frozenset(found)


def is_mine(reason: str, mine: Collection[str]) -> bool:
    """Whether pact has given this reason."""
    return reason.startswith(MARK) and (not mine or reason in mine)


BACK: Final = "a person has put it back into service"


def tidy(text: str) -> str:
    """A word of somebody else in a reason: letters and digits only, so that no tool reads it as anything else."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:32]
