"""CURVE keys in files: made once, never overwritten, and never read from a file that others could read too."""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

from pact.errors import ConfigError, PactError, UsageError
from pact.host import owned

Z85: frozenset[str] = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#")

KEY_FILE_MAX: Final = 4096


class Key(NamedTuple):
    """A key pair, in Z85. Its text does not tell the secret."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"Key(public={self.public!r})"


def is_public(text: str) -> bool:
    """Whether this could be a key: 32 bytes in Z85, 40 characters."""
    return len(text) == 40 and set(text) <= Z85


def server_key(text: str, beside: str = "") -> str:
    """The public key ``text``, or the one in the file with this path. ``beside``: the directory of the configuration
    file, for a relative path; on the command line a path must contain a slash.

    A text that could be a key is one: no file, wherever it is, can replace the key that an operator has pinned. Raises
    UsageError.
    """
    if is_public(text):
        return text
    if not beside and "/" not in text:
        raise UsageError(
            f"the server's key {text!r} is not a key of 40 characters in Z85",
            "it is what NAME.key holds; write the path of that file with a slash: ./NAME.key",
        )
    path = os.path.join(beside, os.path.expanduser(text))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        with os.fdopen(fd, encoding="ascii", errors="replace") as f:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
            found = f.read(KEY_FILE_MAX).strip() if regular else ""
    except (OSError, ValueError) as exc:
        why = os.strerror(exc.errno or 0) if isinstance(exc, OSError) else "is no path"
        raise UsageError(f"the server's key: {path}: {why}", "the file that keygen has written: NAME.key") from None
    if not is_public(found):
        raise UsageError(f"{path} does not hold a key of 40 characters in Z85", "the server's NAME.key does")
    return found


def keygen(name: str, directory: str) -> tuple[str, str, str]:
    """Write ``NAME.key`` and ``NAME.secret`` (mode 0600). Returns their paths and the public key.

    Raises UsageError if either exists: peers that have its public half would be locked out.
    """
    import zmq

    public = "-"
    while public.startswith("-"):  # after --server-key it would look like another option
        public, secret = (k.decode() for k in zmq.curve_keypair())
    base = os.path.join(directory, name)
    paths = f"{base}.key", f"{base}.secret"
    made: list[str] = []
    try:
        for path in paths:
            if os.path.lexists(path):
                raise UsageError(f"{path} exists already", "nothing was written; choose another name or directory")
        for path, text, mode in ((paths[1], secret, 0o600), (paths[0], public, 0o644)):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            made.append(path)
            with os.fdopen(fd, "w") as f:
                f.write(text + "\n")
                f.flush()
                os.fsync(f.fileno())
    except (OSError, UsageError) as exc:
        for path in made:
            os.unlink(path)
        if isinstance(exc, FileExistsError):
            raise UsageError(f"{exc.filename} exists already", "nothing was written") from None
        if isinstance(exc, OSError):
            raise PactError(f"{exc.filename or base}: {os.strerror(exc.errno or 0)}") from None
        raise
    return (*paths, public)


def load(path: str) -> Key:
    """The key pair of a secret file. Raises ConfigError: unreadable, no key, or others may read it."""
    import zmq

    # A key that is given in place of a file must not appear in the message.
    if is_public(os.path.basename(path)) and not os.path.lexists(path):
        raise ConfigError("the name of a file is wanted, not the secret key itself", "pact keygen writes NAME.secret")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        with os.fdopen(fd, encoding="ascii", errors="replace") as f:
            info = os.fstat(f.fileno())
            text = f.read(KEY_FILE_MAX).strip()
    except OSError as exc:
        closed = isinstance(exc, PermissionError)
        hint = "it must belong to the account that uses it" if closed else "pact keygen makes a key"
        raise ConfigError(f"{path}: {os.strerror(exc.errno or 0)}", hint) from None
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError(f"{path} is no file")
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise ConfigError(
            f"{path} may be read by others (mode {stat.S_IMODE(info.st_mode):04o})",
            f"chmod 600 {path}; and make a new key if somebody may have read it",
        )
    if not is_public(text):
        raise ConfigError(f"{path} holds no secret key", "pact keygen writes NAME.secret: 40 characters, Z85")
    return Key(zmq.curve_public(text.encode()).decode(), text)


def load_own(path: str) -> Key:
    """A daemon's own key. Raises ConfigError also if another account could replace it."""
    key = load(path)
    owned.require(path, "key")
    return key
