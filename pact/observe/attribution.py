"""From a process to a person: login, session, unit, command.

The kernel gives a pid; the audit login and the cgroup show whose process it is, even behind ``sudo``. What cannot be
known stays ``None``: this module never guesses an owner, and reads nothing but /proc and the password database.
"""

from __future__ import annotations

import os
import pwd
import re
import signal
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pact._fast.reader import snapshot
from pact.model import UNATTRIBUTED, Owner, Writer

if TYPE_CHECKING:
    from pact._fast.reader import Snapshot

UNSET: Final = 4294967295
COMMAND_MAX: Final = 256
NAMES_MAX: Final = 4096
#: People's sessions run below it: what they change is no service's.  # X6
SESSIONS: Final = "pact-sessions.service"
RETRY_UNKNOWN_NS: Final = 60_000_000_000

_SESSION_SCOPE = re.compile(r"/user\.slice/user-\d+\.slice/session-([0-9A-Za-z_]+)\.scope(?:/|\Z)")
_names: dict[int, tuple[str, int]] = {}


def printable(raw: bytes) -> str:
    """One line of text: bytes that are not UTF-8 or not printable are escaped."""
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def command_text(raw: bytes) -> str:
    """A command line (NUL-separated) for people, at most 256 characters."""
    return printable(raw.rstrip(b"\0").replace(b"\0", b" "))[:COMMAND_MAX]


def session_of(cgroup: str) -> str | None:
    """The logind session of a cgroup path, as this host's systemd makes them: below ``user.slice`` and the user's own
    slice. A container's cgroup with such a name does not count."""
    m = _SESSION_SCOPE.match(cgroup)
    return m[1] if m else None


def unit_of(cgroup: str) -> str:
    """The system service of a cgroup path; ``""`` for none.

    It is the unit of this host's systemd, which makes slices and, in a slice, units: the first name that is not a
    slice. A scope is not a service, and cgroups below a unit, or below a group that systemd has not made
    (``/docker/...``), are named by the processes in it: ``/system.slice/docker-1.scope/system.slice/sshd.service`` is
    not ``sshd.service``.

    Services of a user's manager belong to the user. The path is relative to this process's namespace, not to the
    other's: a path outside it begins with ``/..`` and has no unit.
    """
    parts = cgroup.split("/")
    if len(parts) < 3 or parts[0] or not parts[1].endswith(".slice") or parts[1] == "user.slice":
        return ""
    first = next((p for p in parts[1:] if not p.endswith(".slice")), "")
    name = first.removeprefix("_")  # systemd puts this before a name that the kernel's own files may have (cpu.service)
    return name if name.endswith(".service") and name not in (".service", SESSIONS) else ""


def tty_name(number: int) -> str:
    """The terminal's name from ``tty_nr`` in /proc/PID/stat, ``""`` for none."""
    major, minor = (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
    if 136 <= major <= 143:
        return f"pts/{(major - 136) * 256 + minor}"
    if major == 4:
        return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
    if (major, minor) == (5, 1):
        return "console"
    return f"{major}:{minor}" if number else ""


@lru_cache(maxsize=64)
def writer_from(pid: int, snap: Snapshot) -> Writer:
    """The writer in a snapshot. ``uid`` is the real one: the user who started it, not the one of a set-uid bit."""
    uid, _euid, loginuid, sessionid, tty, command, cgroup_raw, parent, start = snap
    cgroup = printable(cgroup_raw)
    login = None if loginuid == UNSET else loginuid
    session = session_of(cgroup)
    if session is None and sessionid != UNSET:
        session = str(sessionid)
    where = tty_name(tty), unit_of(cgroup), cgroup
    return Writer(pid, uid, login, session, *where, command_text(command), parent, start)


def resolve(pid: int, pidfd: int | None = None) -> Writer | None:
    """The writer with this pid; None if it is gone. With ``pidfd``, None too if another process has the pid by now."""
    snap = snapshot(pid) if pid > 0 else None
    if snap is None:
        return None
    if pidfd is not None:
        try:
            signal.pidfd_send_signal(pidfd, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
    return writer_from(pid, snap)


class Begun:
    """The programs that have begun just now, as the observers of this process have seen them; without observers none.
    The kernel reports that to the first network and process namespace only."""

    def __init__(self) -> None:
        self._look: Callable[[bytes], list[tuple[int, Snapshot]]] | None = None

    def follow(self, look: Callable[[bytes], list[tuple[int, Snapshot]]] | None) -> None:
        self._look = look

    def of(self, program: str) -> list[tuple[Writer, tuple[str, ...], bool]]:
        """The processes that have begun a program within two seconds, oldest first, gone or not: the writer, its
        arguments as far as they are known (256 bytes), and whether it is wholly root's. Which program it was is what
        its first argument says."""
        found = self._look(os.fsencode(program)) if self._look is not None else []
        return [(writer_from(pid, snap), _words(snap[5]), snap[:2] == (0, 0)) for pid, snap in found]


def _words(command: bytes) -> tuple[str, ...]:
    """What follows the program in a command line; the last word may be cut off, and does not count then."""
    words = command.split(b"\0")[1:]
    return tuple(w.decode("utf-8", "replace") for w in words[:-1])


BEGUN: Final = Begun()


def writer_of_peer(pid: int, uid: int) -> Writer:
    """The process at the other end of a control socket; only ``uid``, from the kernel, is certain."""
    snap = snapshot(pid) if pid > 0 else None
    if snap is None or uid not in snap[:2]:
        return Writer(pid, uid)
    return writer_from(pid, snap)


def believable(writer: Writer) -> bool:
    """Whether its login is more than its own claim: a process without a login may write any number there.  # S1

    Root may have become it by ``sudo``; a user gains nothing with the user's own number; and only root moves a process
    into another user's slice.
    """
    if writer.loginuid is None:
        return False
    slice_ = f"/user.slice/user-{writer.loginuid}.slice/"
    return writer.uid in (0, writer.loginuid) or writer.cgroup.startswith(slice_)


def in_other_network(writer: Writer) -> bool | None:
    """Whether its ``/proc/sys/net`` differs from this process's: any user may write in a network namespace of the
    user's own. This can be examined while the process lives; ``None`` if it is gone."""
    try:
        there, here = os.stat(f"/proc/{writer.pid}/ns/net"), os.stat("/proc/self/ns/net")
    except OSError:
        return None
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def owner_of(writer: Writer | None) -> Owner:
    """The owner who is responsible for this writer's changes."""
    if writer is None:
        return UNATTRIBUTED
    if writer.loginuid is not None and believable(writer):
        key = f"login:{writer.loginuid}:{writer.session or ''}"
        return Owner(key, user_name(writer.loginuid), writer.loginuid, writer.session, writer.command)
    if writer.unit:
        return Owner(f"unit:{writer.unit}", writer.unit, writer.uid, None, writer.command)
    return Owner(f"uid:{writer.uid}", user_name(writer.uid), writer.uid, writer.session, writer.command)


def user_name(uid: int) -> str:
    """The login name, or the number if there is none (looked up again after a minute)."""
    name, until_ns = _names.get(uid, ("", 0))
    if name and (until_ns == 0 or time.monotonic_ns() < until_ns):
        return name
    if len(_names) >= NAMES_MAX:
        _names.clear()
    try:
        _names[uid] = pwd.getpwuid(uid).pw_name, 0
    except (KeyError, OverflowError):
        _names[uid] = str(uid), time.monotonic_ns() + RETRY_UNKNOWN_NS
    return _names[uid][0]
