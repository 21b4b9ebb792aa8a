"""Whose session it is: the account, what PAM says about it, and the environment that its shell gets.

PAM is the machine's libpam, by ctypes: account and session only, since the person was authenticated by the agent (by
the socket's peer, or by a key). The service is ``pact`` if the machine has a file for it, else ``sshd``, ``login``,
``other``. Where there is no libpam, the shadow file alone says whether an account is locked or has expired.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import stat
import time
from collections.abc import Mapping
from typing import Any, Final

SERVICES: Final = ("pact", "sshd", "login", "other")
SERVICE_DIRS: Final = ("/etc/pam.d", "/usr/lib/pam.d", "/usr/share/pam.d")
SHADOW: Final = "/etc/shadow"
PATH: Final = "/usr/local/bin:/usr/bin:/bin"
PATH_ROOT: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DAY_S: Final = 86400
SAID_MAX: Final = 16
TEXT_MAX: Final = 1024
#: What a client may bring from its own environment.
BROUGHT: Final = re.compile(r"(?:LANG|LC_[A-Z]{1,20}|TZ)\Z")
VALUE: Final = re.compile(r"[A-Za-z0-9_.,:@/+-]{1,100}\Z")
TERM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}\Z")
NAME_MAX: Final = 256
NAME_NEVER: Final = frozenset("/:,")

PAM_SUCCESS: Final = 0
PAM_NEW_AUTHTOK_REQD: Final = 12
PAM_CONV_ERR: Final = 19
PAM_TTY, PAM_RHOST, PAM_RUSER = 3, 4, 8
PAM_ERROR_MSG, PAM_TEXT_INFO = 3, 4
PAM_ESTABLISH_CRED, PAM_DELETE_CRED = 0x2, 0x4
MESSAGES_MAX: Final = 32


class Refused(Exception):
    """This account gets no session; the text says why."""


def is_name(name: str) -> bool:
    r"""Whether an account may be called so: also ``DOMAIN\ann`` and what is not ASCII, as directories have it."""
    if not 0 < len(name) <= NAME_MAX or name != name.strip() or name.startswith("-"):
        return False
    return name.isprintable() and NAME_NEVER.isdisjoint(name)


def looked_up(name: str) -> pwd.struct_passwd:
    """The account. Raises Refused."""
    if not is_name(name):
        raise Refused("this is no name of an account")
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise Refused(f"this machine has no account {name}") from None
    except OSError as exc:
        raise Refused(f"the account {name} cannot be looked up: {os.strerror(exc.errno or 0)}") from None


def shell_of(entry: pwd.struct_passwd) -> str:
    """The login shell, which must be a program that can be run. Raises Refused."""
    path = entry.pw_shell or "/bin/sh"
    try:
        info = os.stat(path)
    except OSError as exc:
        raise Refused(f"the shell {path!r} of {entry.pw_name}: {os.strerror(exc.errno or 0).lower()}") from None
    if not path.startswith("/") or not stat.S_ISREG(info.st_mode) or not info.st_mode & 0o111:
        raise Refused(f"the shell {path!r} of {entry.pw_name} is no program")
    return path


def require_unlocked(name: str, path: str = SHADOW) -> None:
    """Refuse an account whose password somebody locked, and one that has expired. An account that never had a password
    (``!``, ``*``) is not locked: its person comes with a key. Raises Refused."""
    try:
        with open(path, "rb") as f:
            row = next((line for line in f if line.startswith(name.encode() + b":")), None)
    except OSError:
        return  # no shadow file: PAM alone says
    fields = row.decode("utf-8", "replace").rstrip("\n").split(":") if row else []
    if len(fields) < 8:
        return  # of another directory: PAM alone says
    if re.match(r"!+[^!*]", fields[1]):
        raise Refused(f"the account {name} is locked")
    if fields[7].isdigit() and time.time() >= int(fields[7]) * DAY_S:
        raise Refused(f"the account {name} has expired")


def environment(entry: pwd.struct_passwd, shell: str, term: str, brought: Mapping[str, Any]) -> dict[str, str]:
    """A clean environment: nothing of this process's, and of the client's only its language, time zone and ``TERM``."""
    env = {
        "HOME": entry.pw_dir or "/",
        "SHELL": shell,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "PATH": PATH if entry.pw_uid else PATH_ROOT,
    }
    if term:
        env["TERM"] = term if TERM.match(term) else "dumb"
    return env | {
        key: value
        for key, value in brought.items()
        if BROUGHT.match(key) and isinstance(value, str) and VALUE.match(value) and ".." not in value
    }


class _Message(ctypes.Structure):
    _fields_ = (("style", ctypes.c_int), ("text", ctypes.c_char_p))


class _Response(ctypes.Structure):
    _fields_ = (("text", ctypes.c_void_p), ("code", ctypes.c_int))


_TALK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_int,
    ctypes.POINTER(ctypes.POINTER(_Message)),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)


class _Conversation(ctypes.Structure):
    _fields_ = (("talk", _TALK), ("data", ctypes.c_void_p))


_libraries: list[tuple[Any, Any]] = []


def libraries() -> tuple[Any, Any] | None:
    """libpam and libc, loaded once; ``None`` where there is no libpam."""
    if not _libraries:
        try:
            pam = ctypes.CDLL("libpam.so.0", use_errno=True)
        except OSError:
            return None
        libc = ctypes.CDLL(None)
        libc.calloc.restype = ctypes.c_void_p
        libc.calloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
        handle, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
        pam.pam_start.argtypes = (text, text, ctypes.POINTER(_Conversation), ctypes.POINTER(handle))
        pam.pam_set_item.argtypes = (handle, number, ctypes.c_void_p)
        pam.pam_putenv.argtypes = (handle, text)
        pam.pam_getenvlist.argtypes = (handle,)
        pam.pam_getenvlist.restype = ctypes.POINTER(text)
        pam.pam_strerror.argtypes = (handle, number)
        pam.pam_strerror.restype = text
        for name in ("pam_acct_mgmt", "pam_setcred", "pam_open_session", "pam_close_session", "pam_end"):
            getattr(pam, name).argtypes = (handle, number)
        _libraries.append((pam, libc))
    return _libraries[0]


def has_pam() -> bool:
    """Whether this machine has libpam."""
    return libraries() is not None


def service() -> str:
    """The first of ``SERVICES`` for which this machine has a file."""
    found = (s for s in SERVICES if any(os.path.exists(f"{d}/{s}") for d in SERVICE_DIRS))
    return next(found, SERVICES[-1])


class Pam:
    """One account and session of PAM. ``said``: what the modules have to tell the person."""

    def __init__(self, user: str, *, tty: str = "", rhost: str = "", ruser: str = "") -> None:
        """Raises Refused."""
        found = libraries()
        assert found is not None
        self._pam, self._libc = found
        self.said: list[str] = []
        self._opened = self._credited = False
        self._handle = ctypes.c_void_p()
        self._talk = _TALK(self._answer)  # kept: libpam calls it as long as the handle lives
        self._conversation = _Conversation(self._talk, None)
        code = self._pam.pam_start(
            service().encode(), user.encode(), ctypes.byref(self._conversation), ctypes.byref(self._handle)
        )
        if code != PAM_SUCCESS:
            raise Refused(f"PAM cannot be used: error {code}")
        for item, text in ((PAM_TTY, tty), (PAM_RHOST, rhost), (PAM_RUSER, ruser)):
            if text:
                self._pam.pam_set_item(self._handle, item, ctypes.c_char_p(text.encode()))

    def _answer(self, count: int, messages: Any, responses: Any, data: Any) -> int:
        """PAM talks: texts are kept for the person; nobody can answer a question."""
        if not 0 < count <= MESSAGES_MAX:
            return PAM_CONV_ERR
        for at in range(count):
            one = messages[at].contents
            if one.style not in (PAM_ERROR_MSG, PAM_TEXT_INFO):
                return PAM_CONV_ERR
            if one.text and len(self.said) < SAID_MAX:
                self.said.append(one.text.decode("utf-8", "replace")[:TEXT_MAX])
        responses[0] = self._libc.calloc(count, ctypes.sizeof(_Response))
        return PAM_SUCCESS if responses[0] else PAM_CONV_ERR

    def _require(self, code: int, what: str) -> None:
        if code != PAM_SUCCESS:
            raw = self._pam.pam_strerror(self._handle, code)
            text = raw.decode("utf-8", "replace") if raw else f"error {code}"
            more = f" ({'; '.join(self.said)})" if self.said else ""
            raise Refused(f"PAM refuses {what}: {text}{more}")

    def require_account(self, user: str) -> None:
        """Raises Refused if the account is locked, has expired, or may not log in now."""
        code = self._pam.pam_acct_mgmt(self._handle, 0)
        if code == PAM_NEW_AUTHTOK_REQD:
            raise Refused(f"the password of {user} has expired: change it first, with a login that asks for it")
        self._require(code, f"the account {user}")

    def open_session(self) -> dict[str, str]:
        """Returns the environment that the modules give. Raises Refused."""
        self._require(self._pam.pam_setcred(self._handle, PAM_ESTABLISH_CRED), "the account's rights")
        self._credited = True
        self._require(self._pam.pam_open_session(self._handle, 0), "the session")
        self._opened = True
        return self._environment()

    def _environment(self) -> dict[str, str]:
        env: dict[str, str] = {}
        rows = self._pam.pam_getenvlist(self._handle)
        at = 0
        while rows and rows[at]:
            key, equals, value = rows[at].partition(b"=")
            if equals and key:
                env[os.fsdecode(key)] = os.fsdecode(value)
            at += 1
        return env  # the list is this process's own, once in its life

    def close(self) -> None:
        """Close the session, if it was opened. Never raises."""
        if not self._handle:
            return
        if self._opened:
            self._pam.pam_close_session(self._handle, 0)
        if self._credited:
            self._pam.pam_setcred(self._handle, PAM_DELETE_CRED)
        self._pam.pam_end(self._handle, PAM_SUCCESS)
        self._handle = ctypes.c_void_p()
