"""The keeper of sessions (``pact.session.keeper``), as the agent finds or starts it.

systemd's own socket comes first: what it starts is outside the agent's confinement. An agent that is not confined
starts a keeper itself, which outlives it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

import orjson

from pact.errors import PactError, UnreachableError

SYSTEMD: Final = "/run/pact-sessions.sock"
DEFAULT_DIRECTORY: Final = "/run/pact/sessions"
NAME: Final = "keeper.sock"
STOPPED: Final = "is it stopped? see ps"
HINT: Final = "systemctl enable --now pact-sessions.socket"
#: The child has the agent's modules, wherever they are installed.
PROGRAM: Final = (
    "import sys; sys.path[:] = sys.argv[3:]; from pact.session import keeper; "
    "sys.exit(keeper.main(sys.argv[1], int(sys.argv[2])))"
)


def confined() -> bool:
    """Whether what this process starts could never become another account's shell: ``sudo`` would not work in it."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as f:
            return any(line.split() == ["NoNewPrivs:", "1"] for line in f)
    except OSError:
        return False


class Keeper:
    """``directory``: of the sessions."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.child: subprocess.Popen[bytes] | None = None

    def ask(self, wish: Mapping[str, Any]) -> tuple[socket.socket, bytes]:
        """Wish for a session. Returns the connection on which it answers, which never waits, and what of the wish it
        has not taken yet. Raises UnreachableError."""
        sock, data = self.connect(), orjson.dumps(wish) + b"\n"
        try:
            return sock, data[sock.send(data) :]
        except BlockingIOError:
            return sock, data
        except OSError as exc:
            sock.close()
            raise UnreachableError(f"the keeper of sessions does not listen: {exc}") from None

    def connect(self) -> socket.socket:
        """A connection that becomes one session, and never waits. Raises PactError."""
        paths = [f"{self.directory}/{NAME}"]
        if self.directory == DEFAULT_DIRECTORY:
            paths.insert(0, SYSTEMD)
        for path in paths:
            sock = _connected(path)
            if sock is not None:
                return sock
        if confined():
            raise UnreachableError("nobody keeps sessions on this node", HINT)
        self._start(paths[-1])
        sock = _connected(paths[-1])
        if sock is None:
            raise UnreachableError("no keeper of sessions could be started", "see the agent's log")
        return sock

    def _start(self, path: str) -> None:
        """Start one. Its socket is made here: whoever connects meanwhile waits."""
        self.reap()
        try:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
                sock.bind(path)
                os.chmod(path, 0o600)
                sock.listen(64)
                self.child = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, path, str(sock.fileno()), *sys.path],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(sock.fileno(),),
                    cwd="/",
                    env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"},
                    start_new_session=True,
                )
        except OSError as exc:
            raise PactError(f"no keeper of sessions could be started: {os.strerror(exc.errno or 0)}") from None

    def reap(self) -> None:
        """Take note if the keeper that was started here has ended."""
        if self.child is not None and self.child.poll() is not None:
            self.child = None

    def close(self) -> None:
        """It goes on without this agent."""
        self.reap()
        if self.child is not None:
            self.child.returncode = 0  # nobody waits for it any more


def _connected(path: str) -> socket.socket | None:
    """``None``: nobody listens there. Raises UnreachableError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
        return sock
    except BlockingIOError:  # it is there, and takes nobody: another one would take its place
        sock.close()
        raise UnreachableError("the keeper of sessions takes nobody", STOPPED) from None
    except OSError:
        sock.close()
        return None


def not_ready(what: str, unread: bool) -> UnreachableError:
    """Why a session or a command did not begin in time. ``unread``: the keeper has not even read what was wanted."""
    if unread:
        return UnreachableError(
            f"the {what} did not begin: the keeper of sessions does not read", "is it stopped? see ps"
        )
    return UnreachableError(f"the {what} was not ready in time", "PAM may be waiting for something")
