"""Makes the control socket at its path: nobody but root can have put something else in its place."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Final

from pact.errors import PactError
from pact.host import owned

SOCKET_DIR: Final = "directory of the control socket"


def listen(path: str) -> socket.socket:
    """The socket, open to every account: who is there, the kernel says. Raises PactError."""
    if len(os.fsencode(path)) > 107:
        raise PactError(f"the socket path {path} is longer than 107 bytes", "set a shorter [control] socket")
    try:
        directory = os.path.dirname(path) or "."
        owned.make_directory(directory, SOCKET_DIR, 0o755)
        # From here on no other account can replace the socket's name.
        owned.require(directory, SOCKET_DIR, sticky_ok=True)
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        except FileNotFoundError:
            pass
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        sock.bind(path)
        _open_to_all(path)
        sock.listen(128)
    except OSError as exc:
        raise PactError(f"control socket {path}: {os.strerror(exc.errno or 0)}") from None
    return sock


def _open_to_all(path: str) -> None:
    """Set mode 0666 on the socket that was bound, whatever the umask. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISSOCK(info.st_mode) or info.st_uid != os.geteuid():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        os.chmod(f"/proc/self/fd/{fd}", 0o666)
    finally:
        os.close(fd)
