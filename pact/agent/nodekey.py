"""The key of this node: 32 random bytes in the state directory, made once, never sent, in no export.

It is used for the digests of contents that viewers may not see (``veil``), and for the salts of records. No decision of
the agent depends on it: the node's own journal has everything that is needed to compare and to restore. So a node that
lost its key makes another one and goes on; only the digests that viewers see differ from earlier ones.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from typing import Final

from pact.errors import UnreachableError

FILE_NAME: Final = "digest.key"
KEY_BYTES: Final = 32
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW


def node_key(state_dir: str, log: Callable[[str], None]) -> bytes:
    """The key. If there is no usable one, a new one is made, and ``log`` gets the reason. Raises UnreachableError.

    The state directory is locked, and everything in it was checked to belong to this account (``owned``).
    """
    path = os.path.join(state_dir, FILE_NAME)
    try:
        key, why = _read(path)
        if key is not None:
            return key
        key = _make(state_dir, path)
    except OSError as exc:
        raise UnreachableError(
            f"{path}: {os.strerror(exc.errno or 0)}", "free space or mend the disk, then start the agent again"
        ) from None
    if why:
        log(f"{path} {why}: a new key was made; keyed digests that others see differ from now on, nothing else does")
    return key


def _read(path: str) -> tuple[bytes | None, str]:
    """The key, or ``None`` and the fault of the present one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OPEN)
    except FileNotFoundError:
        return None, ""
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
        return None, "is a symbolic link"
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            return None, "is no file"
        if st.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return None, f"could be read by others (mode {stat.S_IMODE(st.st_mode):04o})"
        key = os.read(fd, KEY_BYTES + 1)
    finally:
        os.close(fd)
    return (key, "") if len(key) == KEY_BYTES else (None, f"has not {KEY_BYTES} bytes")


def _make(state_dir: str, path: str) -> bytes:
    """Make a key: it is complete and durable before it gets its name. Raises OSError."""
    new, key = path + ".new", secrets.token_bytes(KEY_BYTES)
    try:
        os.unlink(new)  # an earlier start was interrupted
    except FileNotFoundError:
        pass
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
    try:
        os.write(fd, key)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, path)
    above = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(above)
    finally:
        os.close(above)
    return key
