"""The process from which sessions are forked: warm, so that one begins in milliseconds, and shared, so that it costs
little.

``python -m pact.session.keeper PATH`` listens on a socket that only root can use. For each connection it forks one
session (``host``), which reads what is wanted from there. It holds nothing itself: kill it, and every session goes
on. systemd starts it when somebody connects (``pact-sessions.socket``), outside the agent's confinement; where there
is no systemd, the agent starts it. It ends when it has had no session for a minute.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import Final, NoReturn

from pact.core import strict
from pact.session import account
from pact.session.prepare import Prepared, become_native, prepare

DEFAULT: Final = "/run/pact-sessions.sock"
IDLE_S: Final = 60.0
LISTEN_FD: Final = 3
SESSIONS_MAX: Final = 4096
GO_S: Final = 30.0
WISH_MAX: Final = 256 << 10


def listening(path: str, fd: int = -1) -> socket.socket:
    """The socket that was passed, by systemd or by the agent, or a new one. Raises OSError."""
    if fd >= 0:
        os.set_inheritable(fd, False)
        return socket.socket(fileno=fd)
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        return socket.socket(fileno=LISTEN_FD)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    sock.bind(path)
    os.umask(before)
    sock.listen(64)
    return sock


def main(path: str, fd: int = -1) -> int:
    """Serve until nobody needs it."""
    sock = listening(path, fd)
    sock.setblocking(False)
    children: set[int] = set()
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    account.libraries()
    gc.collect()
    gc.disable()
    gc.freeze()  # the pages of what is there now stay shared with the sessions
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(read_fd, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll(None if children else int(IDLE_S * 1000))]
        if read_fd in ready:
            os.read(read_fd, 4096)
            _reap(children)
        if sock.fileno() in ready:
            _fork(sock, children, (read_fd, write_fd))
        if not ready and not children:
            return 0


def _reap(children: set[int]) -> None:
    while children:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        children.discard(pid)


def _fork(sock: socket.socket, children: set[int], fds: tuple[int, int]) -> None:
    try:
        conn, _ = sock.accept()
    except OSError:
        return
    uid = struct.unpack("3i", conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    if uid not in (0, os.geteuid()) or len(children) >= SESSIONS_MAX:
        conn.close()
        return
    try:
        pid = os.fork()
    except OSError:
        conn.close()
        return
    if pid == 0:
        _become(sock, conn, fds)
    children.add(pid)
    conn.close()


def _become(sock: socket.socket, conn: socket.socket, fds: tuple[int, int]) -> NoReturn:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    sock.close()
    for fd in fds:
        os.close(fd)
    try:
        os.setsid()
    except OSError:
        pass
    _serve(conn)


def _serve(conn: socket.socket) -> NoReturn:
    """A process that the keeper has forked: read what is wanted, prepare it, and be it."""
    made: Prepared | None = None
    try:
        conn.settimeout(GO_S)
        request = strict.loads_object(_line(conn, WISH_MAX), WISH_MAX)
        try:
            made = prepare(request)
            if not request.get("twin"):
                become_native(made, conn)
        except account.Refused as exc:
            conn.sendall(json.dumps({"refused": str(exc)}).encode() + b"\n")
            os._exit(1)
        except OSError as exc:
            conn.sendall(json.dumps({"failed": f"{exc.strerror}: {exc.filename or ''}"}).encode() + b"\n")
            os._exit(1)
        from pact.session import hosting

        os._exit(hosting.serve(made, conn))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        os.write(2, f"pact: a session could not be prepared: {exc!r}\n".encode())
    finally:
        os._exit(1)


def _line(conn: socket.socket, most: int) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        piece = conn.recv(most)
        if not piece and not data:
            os._exit(0)  # somebody only looked whether it listens
        if not piece or len(data) > most:
            raise OSError("no request")
        data += piece
    return data


if __name__ == "__main__":
    os.environ["PATH"] = account.PATH_ROOT
    sys.exit(main(sys.argv[1]))
