"""How the demonstrations speak, and how they get namespaces of their own."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

PLACES = ("/srv", "/mnt", "/media", "/opt")  # where a demonstration's tmpfs is mounted
PATIENCE_S = 15.0
AS_ROOT = ["unshare", "--mount", "--net", "--propagation", "private"]
AS_USER = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
TTY = sys.stdout.isatty()


class DemoError(Exception):
    """A step did not do what it should have done."""


def enter(script: str) -> NoReturn:
    """Start ``script`` again inside namespaces of our own; say so and fail where that is not possible."""
    place = next((p for p in PLACES if os.path.isdir(p)), None)
    ways = [AS_ROOT, AS_USER] if os.geteuid() == 0 else [AS_USER]
    for way in ways:
        if place is not None and _works([*way, "mount", "-t", "tmpfs", "tmpfs", place]):
            os.execvp(way[0], [*way, sys.executable, os.path.abspath(script), "--inside", place])
    print(
        "demo: this machine lets us have no mount and network namespaces of our own.\n"
        "      Run it as root (with CAP_SYS_ADMIN), or allow user namespaces:\n"
        "      sysctl user.max_user_namespaces=10000; sysctl kernel.unprivileged_userns_clone=1 (Debian);\n"
        "      sysctl kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)",
        file=sys.stderr,
    )
    sys.exit(1)


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return False


def paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if TTY else text


def title(number: int, text: str) -> None:
    print("\n" + paint(f"{number}. {text}", "1;36"), flush=True)


def tell(text: str) -> None:
    print(paint(text, "2"), flush=True)


def good(text: str) -> None:
    print(paint("   ✓ ", "32") + text, flush=True)


def check(truth: object, text: str) -> None:
    """One verified fact; the end of the demonstration if it is none."""
    if not truth:
        raise DemoError(text)
    good(text)


def wait_until(condition: Callable[[], Any], text: str, seconds: float = PATIENCE_S) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise DemoError(f"not within {seconds:g} s: {text}")
        time.sleep(0.02)
    return value


def all_of_root() -> bool:
    """Whether root here is root of the machine, and not of a user namespace."""
    with open("/proc/self/uid_map", encoding="ascii") as f:
        return f.read().split() == ["0", "0", "4294967295"]


class Typed:
    """A command on a terminal of its own. ``text`` is what it has shown."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(self._master, (24, 100))
        self._process = subprocess.Popen(
            argv, env={**env, "TERM": "dumb"}, stdin=slave, stdout=slave, stderr=slave, cwd="/", start_new_session=True
        )
        os.close(slave)
        self.text, self._seen = "", 0

    def _read(self) -> bool:
        """False when nothing comes any more."""
        if not select.select([self._master], [], [], 0.1)[0]:
            return self._process.poll() is None
        try:
            self.text += os.read(self._master, 1 << 16).decode("utf-8", "replace")
        except OSError:
            return False
        return True

    def until(self, part: str) -> bool:
        """Wait until it shows this, after what was waited for before. False if it ends first."""
        end = time.monotonic() + 2 * PATIENCE_S
        while (at := self.text.find(part, self._seen)) < 0:
            if not self._read() or time.monotonic() > end:
                return False
        self._seen = at + len(part)
        return True

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        while self._read():
            pass
        return self._process.wait(PATIENCE_S)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)
