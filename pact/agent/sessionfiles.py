"""What the agent knows of one session: the file that the session keeps, whose its changes are, and its last record."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pact._fast.reader import snapshot
from pact.agent.client import Client
from pact.core import strict
from pact.core.node.payloads import SessionClosed
from pact.model import Owner
from pact.observe.attribution import printable, tty_name
from pact.session import cgroups
from pact.session.places import started_at

STATE_MAX: Final = 1 << 20
COMMAND_SHOWN: Final = 256


@dataclass(slots=True)
class Known:
    """A session that runs. ``state``: what its file said when it began."""

    id: str
    state: dict[str, Any]
    owner: Owner
    person: str
    pidfd: int
    commands: list[tuple[int, str]] = field(default_factory=list)
    seen: int = 0


def owner_of_session(state: Mapping[str, Any], before: Owner) -> Owner:
    """Who the session's changes will belong to, as the kernel will say it of its processes."""
    login, audit = state["login"], state["audit"]
    if login is None:
        return Owner(f"uid:{state['uid']}", before.user, state["uid"])
    session = None if audit is None else str(audit)
    return Owner(f"login:{login}:{session or ''}", before.user, login, session)


def own_audit(state: Mapping[str, Any]) -> int | None:
    """The audit session of what was opened; ``None``: it has none of its own. Where no login could be made for it (in
    most containers), it is in that of its keeper, with the agent and all that whoever started them has started."""
    audit: int | None = state["audit"]
    return audit if audit != state.get("keepers_audit", audit) else None


def named(owner: Owner, login: str) -> Owner:
    return Owner(owner.key, login, owner.uid, owner.session, owner.command)


def shown(command: list[str]) -> str:
    text = command[0] if len(command) == 1 else shlex.join(command)
    return printable(os.fsencode(text[: 4 * COMMAND_SHOWN]))[:COMMAND_SHOWN]


def cgroup_of(pid: int) -> str:
    found = snapshot(pid)
    return "" if found is None else printable(found[6])


def where_sits(client: Client) -> str:
    """Where a caller sits: the terminal of the process at the other end of the socket."""
    if client.remote:
        return "the cluster"
    try:
        pid = struct.unpack("3i", client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except OSError:
        return "this machine"
    found = snapshot(pid) if pid > 0 else None
    tty = "" if found is None else tty_name(found[4])
    return f"this machine, {tty}" if tty else "this machine"


def read_state(path: str) -> dict[str, Any] | None:
    """The file that a session keeps; ``None`` if there is none, or it makes no sense."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as f:
            state = strict.loads_object(f.read(STATE_MAX), STATE_MAX)
        ints = all(type(state[k]) is int for k in ("pid", "start", "uid", "began"))
        texts = all(isinstance(state[k], str) for k in ("account", "person", "tty"))
        optional = all(state[k] is None or type(state[k]) is int for k in ("login", "audit"))
        good = ints and texts and optional and isinstance(state["command"], list)
        return state if good and isinstance(state.get("about", {}), dict) else None
    except (OSError, KeyError, strict.NotStrictError):
        return None


def end_host(state: Mapping[str, Any]) -> None:
    """Kill the process that has a command's pipes, if it lives: what it has started is left."""
    if started_at(state["pid"]) == state["start"] != 0:
        try:
            os.kill(state["pid"], signal.SIGKILL)
        except OSError:
            pass


def end_what_is_left(state: Mapping[str, Any]) -> None:
    """Its process was killed: the terminal's end has told the shell, which may not listen."""
    pid, start = state.get("shell", 0), state.get("shell_start", 0)
    if pid and start and started_at(pid) == start:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    made = [path for path in state.get("cgroups", ()) if isinstance(path, str) and cgroups.PREFIX in path]
    cgroups.end_all(made)
    cgroups.remove(made)


def closed_record(known: Known, state: Mapping[str, Any], transcript: dict[str, Any] | None) -> SessionClosed:
    end = state.get("end")
    lost = end is None
    end = end or {}
    code, name, why = end.get("exit"), end.get("signal", ""), end.get("why", "")
    return SessionClosed(
        session=known.id,
        owner=known.owner,
        account=state["account"],
        exit=code if type(code) is int else None,
        signal=name if isinstance(name, str) else "",
        why="its process was killed" if lost else why if isinstance(why, str) else "",
        uid=known.owner.uid,
        duration_ns=end.get("ns"),
        in_bytes=end.get("in"),
        out_bytes=end.get("out"),
        commands=[{"command": text, "uid": uid} for uid, text in known.commands],
        beyond=max(0, known.seen - len(known.commands)),
        transcript=transcript,
    )
