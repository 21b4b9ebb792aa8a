"""A session before it runs: the account, its login, the terminal or the pipes, the cgroup and the socket.

Then the process becomes ``pact-session`` (``native/host.c``), which needs less than a mebibyte; where that was not
built, its twin in Python goes on (``host``).
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pact.session import account, cgroups, frames, spawn
from pact.session.frames import Size
from pact.session.places import socket_path, state_path

STATE_VERSION: Final = 1
NATIVE: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pact-session")
#: What the agent says about a session and wants to read again.
KEPT: Final = ("person", "who", "where", "command", "terminal", "about")


@dataclass(slots=True)
class Prepared:
    """Everything that a session needs. ``outputs``: its ends of the terminal, or of standard output and error;
    ``fds``: the person's ends. ``state``: what its file says of it for good."""

    request: Mapping[str, Any]
    id: str
    directory: str
    terminal: bool
    size: Size
    entry: pwd.struct_passwd
    shell: str
    argv: list[str]
    env: dict[str, str]
    late: dict[str, str]
    person: int
    input_fd: int = -1
    outputs: list[int] = field(default_factory=list)
    fds: tuple[int, int, int] = (-1, -1, -1)
    tty: str = ""
    cgroups: list[str] = field(default_factory=list)
    weight: int = 0
    listener: socket.socket | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def state_path(self) -> str:
        return state_path(self.directory, self.id)

    @property
    def socket_path(self) -> str:
        return socket_path(self.directory, self.id)

    def undo(self) -> None:
        """Nothing of a session that never ran stays."""
        cgroups.remove(self.cgroups)
        for path in (self.socket_path, self.state_path):
            try:
                os.unlink(path)
            except OSError:
                pass


def log_in(uid: int) -> None:
    try:
        spawn.set_login(uid)
    except OSError:
        pass  # a kernel without audit: what the session changes belongs to the account


def prepare(request: Mapping[str, Any]) -> Prepared:
    """Raises Refused, OSError."""
    entry = account.looked_up(request["account"])
    shell = account.shell_of(entry)
    account.require_unlocked(entry.pw_name)
    person = account.looked_up(request["person"])
    if entry.pw_uid == 0 and not request.get("root"):
        raise account.Refused(f"{request['person']} may not open a session of root")
    terminal = bool(request["terminal"])
    late = {"PACT_SESSION": str(request["id"])}
    if request.get("prompt"):
        late["PACT_PROMPT"] = request["prompt"]
    made = Prepared(
        request,
        request["id"],
        request["dir"],
        terminal,
        frames.clamped(request["rows"], request["cols"]),
        entry,
        shell,
        spawn.line(entry, shell, request["command"]),
        account.environment(entry, shell, request.get("term", "") if terminal else "", request["env"]),
        late,
        person.pw_uid,
    )
    made.weight = cgroups.COMMAND_WEIGHT if request.get("whole") else 0
    made.cgroups = cgroups.enter(f"{made.id}-{os.getpid()}", int(request["tasks"]), made.weight)
    keepers_audit = spawn.login()[1]
    try:
        log_in(person.pw_uid)
        _open(made)
        made.listener = _listening(made.socket_path)
    except OSError:
        made.undo()
        raise
    made.state = {
        "v": STATE_VERSION,
        "id": made.id,
        "account": entry.pw_name,
        "uid": entry.pw_uid,
        "gid": entry.pw_gid,
        "tty": made.tty,
        "rows": made.size[0],
        "cols": made.size[1],
        "cgroups": made.cgroups,
        "keepers_audit": keepers_audit,
        "began": time.time_ns(),
        **{key: request[key] for key in KEPT if key in request},
    }
    return made


def _open(made: Prepared) -> None:
    """The terminal, or three pipes."""
    if made.terminal:
        master, slave, made.tty = spawn.open_terminal(made.entry.pw_uid, made.size)
        made.fds, made.input_fd, made.outputs = (slave, slave, slave), master, [master]
        made.late["PACT_TTY"] = f"/dev/{made.tty}"
        return
    child_in, made.input_fd = os.pipe2(os.O_CLOEXEC)
    out, child_out = os.pipe2(os.O_CLOEXEC)
    err, child_err = os.pipe2(os.O_CLOEXEC)
    for fd in (child_in, child_out, child_err):  # /dev/stdout is opened by its path
        os.fchown(fd, made.entry.pw_uid, made.entry.pw_gid)
    for fd in (made.input_fd, out, err):
        os.set_blocking(fd, False)
    made.fds, made.outputs = (child_in, child_out, child_err), [out, err]


def _listening(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    sock.bind(path)
    os.chmod(path, 0o600)
    sock.listen(64)
    return sock


def _native(made: Prepared, conn: socket.socket) -> Iterator[tuple[str, str]]:
    """What the program is told."""
    request = made.request
    assert made.listener is not None
    yield from (("conn", str(conn.fileno())), ("listener", str(made.listener.fileno())))
    yield from (("terminal", str(int(made.terminal))), ("input", str(made.input_fd)))
    yield from zip(("out", "err"), map(str, made.outputs), strict=False)
    yield from ((f"child{n}", str(fd)) for n, fd in enumerate(made.fds))
    yield from (
        ("id", made.id),
        ("user", made.entry.pw_name),
        ("home", made.entry.pw_dir or "/"),
        ("shell", made.shell),
    )
    yield from (("uid", str(made.entry.pw_uid)), ("gid", str(made.entry.pw_gid)), ("person", str(made.person)))
    yield from (("rows", str(made.size[0])), ("cols", str(made.size[1])), ("since", str(made.state["began"])))
    yield from (("tasks", str(made.request["tasks"])), ("weight", str(made.weight)))
    yield from (("state", made.state_path), ("sock", made.socket_path), ("head", json.dumps(made.state)[:-1]))
    yield from (("tty", made.tty or "pact"), ("who", str(request.get("who", ""))))
    yield from (("rhost", str(request.get("rhost", ""))), ("ruser", str(request["person"])))
    yield from (("idle", str(_ms(request, "idle_s"))), ("detached", str(_ms(request, "detached_s"))))
    if account.has_pam():
        yield "service", account.service()
    if request.get("transcript"):
        yield from (("cast", request["transcript"]), ("half", str(max(int(request["transcript_max"]) // 2, 4096))))
    yield from (("cgroup", path) for path in made.cgroups)
    yield from (("arg", word) for word in made.argv)
    yield from (("env", f"{key}={value}") for key, value in made.env.items())
    yield from (("late", f"{key}={value}") for key, value in made.late.items())


def _ms(request: Mapping[str, Any], key: str) -> int:
    return int(float(request.get(key) or 0) * 1000)


def become_native(made: Prepared, conn: socket.socket) -> None:
    """Become the program. Returns only if it cannot be run. Raises OSError for what it cannot be told."""
    said = [word for pair in _native(made, conn) for word in pair]
    if any("\0" in word for word in said):
        raise OSError(22, "a text has a NUL")
    fd = os.memfd_create("pact-session", 0)
    with os.fdopen(os.dup(fd), "wb") as f:
        f.write("".join(f"{word}\0" for word in said).encode("utf-8", "surrogateescape"))
    os.lseek(fd, 0, os.SEEK_SET)
    assert made.listener is not None
    kept = {fd, conn.fileno(), made.listener.fileno(), made.input_fd, *made.outputs, *made.fds}
    for each in kept:
        os.set_inheritable(each, True)
    conn.setblocking(True)
    try:
        os.execve(NATIVE, ["pact-session", str(fd)], {"PATH": account.PATH_ROOT})
    except OSError:
        os.close(fd)
        for each in kept - {fd}:
            os.set_inheritable(each, False)
