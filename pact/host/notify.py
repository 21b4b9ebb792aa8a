"""systemd's notification protocol (readiness, watchdog, status) and log. A dozen lines need no library."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

#: How much longer a start may take after each sign of life: more than a hanging mount command may take.
START_SIGN_USEC: Final = 90_000_000
START_SIGN_S: Final = 1.0


class Notifier:
    """Sends to ``$NOTIFY_SOCKET``; does nothing if systemd did not start the agent."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
        self._next_sign_s = 0.0
        self.watchdog_ns = int(usec) * 1000 if usec.isdigit() and pid == str(os.getpid()) else 0

    def starting(self, status: str) -> None:
        """The start goes on: if it was ended now, its work would begin again.  # B3"""
        if (now_s := time.monotonic()) >= self._next_sign_s:
            self._next_sign_s = now_s + START_SIGN_S
            self.send(f"EXTEND_TIMEOUT_USEC={START_SIGN_USEC}", f"STATUS={status}")

    def send(self, *lines: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
                s.connect(address)
                s.send("\n".join(lines).encode())
        except OSError:
            pass  # the manager has gone; nothing depends on it


class Few:
    """Lines that strangers cause, for the log: so many at once, then one in so many seconds, for all of them together.
    The next line says how many were left out.  # S3"""

    def __init__(self, note: Callable[[str], object], at_once: int, every_s: float) -> None:
        self._note, self._every_s = note, every_s
        self._whole_s = at_once * every_s
        self._spent_s = -self._whole_s
        self.left_out = 0

    def __call__(self, text: str) -> bool:
        """Whether it is said."""
        now_s = time.monotonic()
        if self._spent_s > now_s:
            self.left_out += 1
            return False
        self._spent_s = max(self._spent_s, now_s - self._whole_s) + self._every_s
        beyond, self.left_out = self.left_out, 0
        self._note(f"{text}, and {beyond} more that were not told" if beyond else text)
        return True


def log(text: str, level: int = 5) -> None:
    """One line for the service manager's log, whatever characters names and reasons contain."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    prefix = f"<{level}>" if os.environ.get("JOURNAL_STREAM") else ""
    try:
        print(f"{prefix}pact: {text}", file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody reads the log any more; the journal has everything
