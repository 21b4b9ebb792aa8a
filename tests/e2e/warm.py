"""Commands and agents of pact, each in a process of its own, started by forking an interpreter that has read its modules
already.

``python -m pact.cli.main`` spends four fifths of its time on reading Python and modules, and the tests start it some
thousand times. Here one process a worker reads them once. What it forks for a command has that command's descriptors,
environment, namespaces and arguments. What a start costs, and what it loads, is looked at elsewhere, with real starts.

A forked process shares its parent's memory page by page, until one of them writes there. So nothing here writes
without need: garbage collection leaves alone what was read before, and a command that has ended its work leaves the
taking apart of its modules to the kernel.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
INPUT_MAX = 32 << 10  # what a pipe takes at once
READ = 1 << 16
DESCRIPTORS_MAX = 1 << 16
LIBC = ctypes.CDLL(None, use_errno=True)
#: What each kind has read beside the command line. An agent that has no cluster does without zmq.
KINDS = {
    "agents": ["pact.agent.loop", "tomllib"],
    "aggregators": ["pact.cluster.aggregator", "pact.cluster.rootpart", "tomllib", "nacl.bindings"],
    "commands": [
        "pact.agent.statedir",
        "pact.cli.declared",
        "pact.cli.groups",
        "pact.cli.journal",
        "pact.cli.outcome",
        "pact.cli.roots",
        "pact.cluster.client",
        "pact.declared.toml",
        "pact.journal.moving",
        "pact.journal.sqlite",
        "pact.resources.kinds",
        "tomllib",
    ],
}
KINDS["cluster"] = [name for names in KINDS.values() for name in names]
# Of the kernel's capability.h and prctl.h.
DAC_READ_SEARCH = 2
CAPABILITY_VERSION = 0x20080522
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 4, 8, 47, 2
#: Namespaces that a process may enter, by their names in /proc/PID/ns: those of a node, and all.
SPACES = ("net", "mnt")
ALL_SPACES = ("cgroup", "ipc", "uts", "net", "pid", "mnt")


@dataclass(frozen=True)
class User:
    """Who a command is run as. A checkout or an interpreter that only root may read is read all the same: the command
    keeps DAC_READ_SEARCH.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def setpriv(self) -> list[str]:
        """The command that runs another one so."""
        return [
            "setpriv",
            f"--reuid={self.uid}",
            f"--regid={self.gid}",
            "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search",
            f"--groups={','.join(map(str, self.groups))}" if self.groups else "--clear-groups",
            "--",
        ]


class Warm:
    """The process that forks. One for each process of tests."""

    def __init__(self, asked: socket.socket) -> None:
        self._socket = asked
        self._lock = threading.Lock()

    @classmethod
    def begin(cls, env: Mapping[str, str], kind: str) -> Warm:
        """``kind``: what it is to have read, one of ``KINDS``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, str(HERE), str(theirs.fileno()), kind],
                env=dict(env),
                cwd="/",
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        atexit.register(process.wait)
        atexit.register(ours.close)  # before that: it ends when nobody is left who sends
        return cls(ours)

    def fileno(self) -> int:
        """What another process makes a ``Warm`` of: each request is one message, so several may send them."""
        return self._socket.fileno()

    def call(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        namespaces: int,
        data: bytes,
        timeout: float,
        user: User | None = None,
        spaces: Sequence[str] = SPACES,
    ) -> tuple[int, bytes, bytes]:
        """Exit code, output and errors of ``pact WORDS`` in namespaces of a process (0: in this one's), by default as
        this process's user. Raises subprocess.TimeoutExpired.
        """
        stdin = _input(data)
        (out, stdout), (err, stderr), (status, told) = (os.pipe() for _ in range(3))
        try:
            with self._lock:
                asked = _asked(words, env, namespaces, user, spaces, short=True)
                socket.send_fds(self._socket, [asked], [stdin, stdout, stderr, told])
            for fd in (stdin, stdout, stderr, told):
                os.close(fd)
            return self._heard(words, out, err, status, timeout)
        finally:
            for fd in (out, err, status):
                os.close(fd)

    def start(self, words: Sequence[str], env: Mapping[str, str], namespaces: int, log: int) -> Started:
        """``pact WORDS`` in those namespaces, until it ends; what it says goes to the descriptor ``log``."""
        status, told = os.pipe()
        with open(os.devnull) as nothing, self._lock:
            socket.send_fds(self._socket, [_asked(words, env, namespaces)], [nothing.fileno(), log, log, told])
        os.close(told)
        return Started(words, status)

    @staticmethod
    def _heard(words: Sequence[str], out: int, err: int, status: int, timeout: float) -> tuple[int, bytes, bytes]:
        ends = time.monotonic() + timeout
        heard: dict[int, bytearray] = {out: bytearray(), err: bytearray(), status: bytearray()}
        with selectors.DefaultSelector() as selector:
            for fd in heard:
                selector.register(fd, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(max(0.0, ends - time.monotonic()))
                if not ready and time.monotonic() >= ends:
                    with contextlib.suppress(ValueError, ProcessLookupError):
                        os.kill(int(heard[status].split(b"\n")[0]), signal.SIGKILL)
                    raise subprocess.TimeoutExpired(list(words), timeout, bytes(heard[out]), bytes(heard[err]))
                for key, _ in ready:
                    piece = os.read(key.fd, READ)
                    heard[key.fd] += piece
                    if not piece:
                        selector.unregister(key.fd)
        return int(heard[status].split(b"\n")[1]), bytes(heard[out]), bytes(heard[err])


_warm: dict[tuple[str, frozenset[tuple[str, str]]], Warm] = {}


def warm(kind: str, env: Mapping[str, str]) -> Warm:
    """The process that forks such ones. One for each process of tests, and for each environment in which modules were
    read: some modules ask it while they are read.
    """
    key = kind, frozenset(env.items())
    if key not in _warm:
        _warm[key] = Warm.begin(env, kind)
    return _warm[key]


def _input(data: bytes) -> int:
    """A descriptor from which it is read: a pipe's, or a file's in memory where there is more than a pipe takes."""
    if len(data) > INPUT_MAX:
        fd = os.memfd_create("input")
        with open(fd, "wb", closefd=False) as f:
            f.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd
    fd, feed = os.pipe()
    os.write(feed, data)
    os.close(feed)
    return fd


def _asked(
    words: Sequence[str],
    env: Mapping[str, str],
    namespaces: int,
    user: User | None = None,
    spaces: Sequence[str] = SPACES,
    *,
    short: bool = False,
) -> bytes:
    """``short``: its modules are not taken apart when it ends."""
    asked = {"words": list(words), "env": dict(env), "namespaces": namespaces, "user": user and asdict(user)}
    return json.dumps({**asked, "spaces": list(spaces), "short": short}).encode()


class Started:
    """What tests do with ``subprocess.Popen``, for a process that another one has forked."""

    stdin = stdout = stderr = None

    def __init__(self, words: Sequence[str], status: int) -> None:
        self.args, self._status = list(words), status
        self.returncode: int | None = None
        first = b""
        while not first.endswith(b"\n"):
            piece = os.read(status, 1)
            assert piece, "it was not forked"
            first += piece
        self.pid = int(first)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(os.read(self._status, 64))
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


# -- in the process that forks --------------------------------------------------------------------------------------


def serve(sock: socket.socket) -> dict[str, Any]:
    """Fork for each message, and say of each process its number and how it ended, until there is nobody any more who
    sends some. Returns, in a forked process, what it is asked to be.
    """
    modules = _descriptors() - {sock.fileno()}  # what was opened by modules that were read
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _ended(*key.data)
                    continue
                message, fds, _, _ = socket.recv_fds(sock, 1 << 20, 4)
                if not message:
                    os._exit(0)
                pid = os.fork()
                if pid == 0:
                    return _begun(json.loads(message), fds, modules)
                *others, told = fds
                for fd in others:
                    os.close(fd)
                os.write(told, f"{pid}\n".encode())
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, told))


def _ended(pid: int, told: int) -> None:
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os.close(told)


def _descriptors() -> set[int]:
    """Those that are open, but for that of the look itself."""
    return {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}


def _begun(asked: dict[str, Any], fds: list[int], modules: set[int]) -> dict[str, Any]:
    """The descriptors, the environment, the namespaces and the user of a process that was forked. ``modules``: the
    descriptors of those that it has read, which they go on using.
    """
    for to, fd in enumerate(fds[:3]):
        os.dup2(fd, to)
    first = 3
    for kept in sorted(fd for fd in modules if fd >= first):
        os.closerange(first, kept)
        first = kept + 1
    os.closerange(first, DESCRIPTORS_MAX)  # those of its parent's other processes too
    spaces = (
        []
        if not asked["namespaces"]
        else [os.open(f"/proc/{asked['namespaces']}/ns/{name}", os.O_RDONLY) for name in asked["spaces"]]
    )
    for fd in spaces:
        if LIBC.setns(fd, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(fd)
    if spaces and "pid" in asked["spaces"]:
        _forked()
    os.chdir("/")
    os.environ.clear()
    os.environ.update(asked["env"])
    if asked["user"]:
        become(User(**asked["user"]))
    return asked


def _forked() -> None:
    """Go on in a child: only children are in a pid namespace that was entered. This process ends as the child does."""
    pid = os.fork()
    if pid == 0:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    for fd in range(3):  # who reads what the child says waits until nobody else has it
        os.close(fd)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def become(user: User) -> None:
    """What ``setpriv`` and a start make of a process (see ``User.setpriv``)."""
    bit = 1 << DAC_READ_SEARCH
    _prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    head = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    # Effective, permitted and inheritable ones, of the first 32 and of the others.
    if LIBC.capset(head, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "capset")
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, DAC_READ_SEARCH)
    _prctl(PR_SET_KEEPCAPS, 0)
    _prctl(PR_SET_DUMPABLE, 1)  # its files in /proc are its user's


def _prctl(option: int, *values: int) -> None:
    words = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if LIBC.prctl(option, *words):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def finish(code: int) -> None:
    """What an interpreter does when it ends, up to where it takes itself apart. Returns where it is to do all of it
    itself: what is left to say cannot be said.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit(code & 0xFF)


if __name__ == "__main__":
    # Everything that commands read when they are meant, and nothing that has begun anything.
    import pkgutil

    import pact.cli.client
    import pact.cli.commands
    import pact.cli.pager
    import pact.cli.render
    import pact.cli.running
    from pact.cli.main import entry

    for name in KINDS[sys.argv[2]]:
        __import__(name)
    for module in pkgutil.iter_modules(pact.cli.commands.__path__, "pact.cli.commands."):
        __import__(module.name)
    gc.collect()
    gc.freeze()
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv = ["pact", *asked["words"]]
    try:
        entry()
    except SystemExit as end:
        if asked["short"] and isinstance(end.code, int):
            finish(end.code)
        raise
