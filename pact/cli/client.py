"""Talking to the agent: one request, one answer; or lines until they end. Nothing here waits for ever.

A working agent sends a sign every two seconds to clients that want it, and the client goes on waiting; a silent agent
is given up, and the client reports what it can find out about it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from pact.core import strict
from pact.core.units import format_duration
from pact.errors import BY_EXIT_CODE, PactError, UnreachableError
from pact.values import DEFAULT_SOCKET, NS_PER_S

ANSWER_S: Final = 10.0  # of silence, if no timeout is given
BUSY_MAX_S: Final = 60.0  # how long a loop that uses the processor without an answer counts as working
AGAIN_S: Final = 0.05
CHUNK: Final = 1 << 18
SPENT_MAX_S: Final = 5.0  # an older process was not started for this command alone
STARTING_S: Final = 20.0  # an older agent that does not listen here listens elsewhere
PROCESSES_MAX: Final = 100_000
#: Requests that look for consumers.
SEARCHES: Final = frozenset({"consumers", "rollback", "emergency_end"})
STOPPED: Final = "Tt"
GONE: Final = "ZX"
NOT_STARTED: Final = "start it (systemctl start pact-agent), or name another with --socket"


class Connection:
    """One connection to the control socket. ``timeout_s``: the whole time; without it, a working agent gets more time.
    Raises UnreachableError with the next step.
    """

    def __init__(self, path: str, timeout_s: float | None = None, spent_s: float = 0.0) -> None:
        self._path, self._fixed = path, timeout_s is not None
        self._timeout_s = ANSWER_S if timeout_s is None else timeout_s
        self._began_s = time.monotonic() - (min(spent_s, self._timeout_s / 2) if self._fixed else 0.0)
        self._ends_s = self._began_s + self._timeout_s
        self._at_work = self._endless = self._asked = False
        self._input = bytearray()
        self.wants_socket = False
        self.handed: list[socket.socket] = []
        self._sock = self._connected()
        self._poll = select.poll()
        self._poll.register(self._sock, 0)
        self._pid = struct.unpack("3i", self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self._cpu = _loop_ticks(self._pid)

    def _connected(self) -> socket.socket:
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                sock.connect(self._path)
                return sock
            except OSError as exc:
                sock.close()
                late = time.monotonic() >= self._ends_s
                if isinstance(exc, BlockingIOError):  # its queue is full: it accepts no connection
                    if late:
                        raise self._silent("has taken no connection") from None
                elif late or not isinstance(exc, FileNotFoundError | ConnectionRefusedError) or not _one_is_starting():
                    reason = os.strerror(exc.errno or 0).lower() if exc.errno else str(exc)
                    raise UnreachableError(f"no agent answers at {self._path}: {reason}", NOT_STARTED) from None
            time.sleep(AGAIN_S)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.close()

    def send(self, op: str, args: dict[str, Any], *, stays: bool = True) -> None:
        """``stays``: without the client nobody wants the answer, so a request whose client has gone is dropped."""
        asked = {"v": 1, "op": op, "args": args, **({"alive": True} if stays else {})}
        left = memoryview(strict.text_of(asked) + b"\n")
        while left:
            self._wait(select.POLLOUT)
            try:
                left = left[self._sock.send(left[:CHUNK]) :]
            except BlockingIOError:
                continue
            except OSError as exc:
                raise UnreachableError(f"the agent closed the connection: {exc}") from None
            self._renew()
        self._asked = True

    def line(self) -> dict[str, Any]:
        """The next line that is not a sign of life."""
        while True:
            try:
                answer = strict.loads_object(self._raw_line(), strict.LINE_MAX)
            except strict.NotStrictError as exc:
                raise UnreachableError(f"what answers on the socket makes no sense ({exc})") from None
            if not answer.get("working"):
                return answer
            self._at_work = True
            self._renew()

    def _raw_line(self) -> bytes:
        seen = 0
        while (end := self._input.find(b"\n", seen)) < 0:
            seen = len(self._input)
            self._wait(select.POLLIN)
            try:
                chunk = self._received()
            except BlockingIOError:
                continue
            except OSError as exc:
                raise UnreachableError(f"the connection to the agent broke: {exc}") from None
            if not chunk:
                raise UnreachableError("the agent ended before it answered", "look at pact log when it is back")
            self._input += chunk
            self._renew()
        raw = bytes(self._input[:end])
        del self._input[: end + 1]
        return raw

    def _received(self) -> bytes:
        """The next bytes; a descriptor that comes with them is kept."""
        if not self.wants_socket:
            return self._sock.recv(CHUNK)
        chunk, fds, _, _ = socket.recv_fds(self._sock, CHUNK, 1, socket.MSG_CMSG_CLOEXEC)
        self.handed += [socket.socket(fileno=fd) for fd in fds]
        return chunk

    def next_line(self, endless: bool) -> None:
        """The answer begins: each line has its own time limit, or (``endless``) none."""
        self._endless = endless
        self._ends_s = time.monotonic() + self._timeout_s

    # -- patience -----------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        """The agent has read or sent something: the time limit starts again."""
        if not self._fixed:
            self._began_s = time.monotonic()
            self._ends_s = self._began_s + self._timeout_s
            self._cpu = _loop_ticks(self._pid)

    def _wait(self, event: int) -> None:
        self._poll.modify(self._sock, event)
        while True:
            left_s = self._ends_s - time.monotonic()
            if self._poll.poll(None if self._endless else max(0.0, left_s) * 1000):
                return
            if not self._computes():
                raise self._silent(self._how())
            self._ends_s = time.monotonic() + 1.0

    def _computes(self) -> bool:
        """Whether the agent's loop has used the processor since its last message: it works on something long, and does
        not hang."""
        if self._fixed or time.monotonic() - self._began_s >= BUSY_MAX_S:
            return False
        before, self._cpu = self._cpu, _loop_ticks(self._pid)
        return self._cpu is not None and before is not None and self._cpu > before

    def _how(self) -> str:
        if self._fixed and self._at_work:
            return "is at work on it and has not ended"
        state = _state(self._pid)
        if state is not None and state in STOPPED:
            return "is stopped and has not answered"
        return "has ended and has not answered" if state is not None and state in GONE else "has not answered"

    def _silent(self, how: str) -> UnreachableError:
        pid = getattr(self, "_pid", 0)
        waited_ns = round((time.monotonic() - self._began_s) * 10) * NS_PER_S // 10
        text = f"the agent{f' (pid {pid})' if pid else ''} {how} for {format_duration(waited_ns)}"
        if self._at_work and self._fixed:
            return UnreachableError(text, "it goes on: see pact status, or ask with a longer --timeout")
        try:
            since = datetime.fromtimestamp(os.stat(self._path).st_mtime, UTC)
            text += f"; its last sign of life was at {since:%Y-%m-%dT%H:%M:%SZ}"
        except (OSError, ValueError, OverflowError):
            pass
        hint = "somebody stopped it: kill -CONT and its pid lets it go on" if "is stopped" in how else "see its log"
        hint += "; what it had begun it goes on with: look before you repeat it" if self._asked else ""
        return UnreachableError(text, hint)


def _stat(pid: int | str, task: str = "") -> list[str]:
    """The fields of a process's ``stat`` after its name, the state first; none if that cannot be read."""
    try:
        with open(f"/proc/{pid}/{task}stat", "rb") as f:
            return f.read(4096).rpartition(b")")[2].decode("ascii").split()
    except (OSError, ValueError):
        return []


def _state(pid: int) -> str | None:
    fields = _stat(pid) if pid > 0 else []
    return fields[0] if fields else None


def _loop_ticks(pid: int) -> int | None:
    """Processor time of the agent's loop; ``None`` if it is stopped, or not known."""
    fields = _stat(pid, f"task/{pid}/") if pid > 0 else []
    return int(fields[11]) + int(fields[12]) if len(fields) > 12 and fields[0] not in STOPPED + GONE else None


def _one_is_starting() -> bool:
    """Whether a process was started as ``pact agent`` moments ago in this mount namespace: it will listen soon."""
    try:
        with open("/proc/uptime", encoding="ascii") as f:
            now_s = float(f.read().split()[0])
        pids = [p for p in os.listdir("/proc") if p.isdigit()][:PROCESSES_MAX]
    except (OSError, ValueError):
        return False
    tick = os.sysconf("SC_CLK_TCK")
    for pid in pids:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                argv = f.read(8192).split(b"\0")
        except OSError:
            continue
        if b"agent" not in argv or b"--wait" in argv:
            continue
        words = argv[: argv.index(b"agent")]
        ours = any(w == b"pact.cli.main" or w.rpartition(b"/")[2] == b"pact" for w in words)
        fields = _stat(int(pid)) if ours else []
        young = len(fields) > 19 and fields[0] not in GONE and now_s - int(fields[19]) / tick < STARTING_S
        if young and _mounts_of(pid) in ("", _mounts_of("self")):
            return True
    return False


def _mounts_of(pid: str) -> str:
    """The mount namespace of a process; "" if this process may not read it."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


class Answer:
    """An answer: ``result`` is the document; a refusal raises an error unless it has a result worth showing."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.ok: bool = raw["ok"]
        self.exit: int = raw["exit"]
        self.message: str = raw.get("message", "")
        self.hint: str = raw.get("hint", "")
        self.result: dict[str, Any] = raw.get("result", {})

    def accepted(self) -> Answer:
        """Raises the agent's error, unless it came with a result worth showing."""
        if not self.ok and not self.result:
            raise self.error()
        return self

    def error(self) -> PactError:
        kind = BY_EXIT_CODE.get(self.exit, PactError)
        return kind(self.message, self.hint)


class Local:
    """The agent of this machine, by its control socket. ``timeout_s``: ``None`` is the default patience; ``spent_s`` of
    it has passed already.
    """

    def __init__(self, path: str, timeout_s: float | None = None, spent_s: float = 0.0) -> None:
        self.path, self.timeout_s, self.spent_s = path, timeout_s, spent_s

    def ask(self, op: str, fields: dict[str, Any]) -> Answer:
        if op in SEARCHES:  # otherwise this process itself would use a mount, and block its rollback
            os.chdir("/")
        with Connection(self.path, self.timeout_s, self.spent_s) as connection:
            connection.send(op, fields)
            return Answer(connection.line())

    def tell(self, op: str, fields: dict[str, Any]) -> Answer:
        """The same for what counts though nobody waits for the answer any more."""
        with Connection(self.path, self.timeout_s, self.spent_s) as connection:
            connection.send(op, fields, stays=False)
            return Answer(connection.line())

    def ask_for_socket(self, op: str, fields: dict[str, Any]) -> tuple[Answer, socket.socket]:
        """An answer that comes with a connected socket. Raises PactError."""
        with Connection(self.path, self.timeout_s, self.spent_s) as connection:
            connection.wants_socket = True
            connection.send(op, fields)
            answer = Answer(connection.line()).accepted()
            if not connection.handed:
                raise UnreachableError("the agent gave no connection to the session")
            return answer, connection.handed[0]

    def lines(self, op: str, fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Lines until the agent marks the last one. ``watch`` and ``follow`` have no end; after they have begun, events
        may be far apart."""
        endless = op == "watch" or bool(fields.get("follow"))
        with Connection(self.path, self.timeout_s, self.spent_s) as connection:
            connection.send(op, fields)
            while True:
                line = connection.line()
                if line.get("end"):
                    return
                if "ok" in line and not line["ok"]:
                    raise Answer(line).error()
                connection.next_line(endless)
                if not line.get("begun"):
                    yield line


def local(path: str | None, patience_ns: int | None) -> Local:
    """``path``: of its socket, if it is not the default."""
    timeout_s = None if patience_ns is None else patience_ns / NS_PER_S
    return Local(path or DEFAULT_SOCKET, timeout_s, _spent_s())


def _spent_s() -> float:
    """How much time this process used before it could ask, including the start of the interpreter."""
    fields = _stat("self")
    try:
        spent_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (ValueError, IndexError):
        return 0.0
    return spent_s if 0 < spent_s < SPENT_MAX_S else 0.0
