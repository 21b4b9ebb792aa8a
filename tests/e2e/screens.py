"""A picture of what a program paints on its terminal."""

from __future__ import annotations

import termios
import time

import pyte
from terminals import Terminal


class Painted:
    """A terminal with a screen."""

    def __init__(self, terminal: Terminal, rows: int = 24, columns: int = 80) -> None:
        self.terminal = terminal
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._fed = 0

    def look(self, wait_s: float = 0.05) -> list[str]:
        """Its lines now."""
        self.terminal.read(wait_s)
        data = self.terminal.raw[self._fed :]
        self._fed += len(data)
        self._stream.feed(data)
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.look())

    def shows(self, *texts: str, seconds: float = 30.0) -> str:
        """Wait until all of it is seen."""
        end = time.monotonic() + seconds
        while True:
            text = self.text
            if all(t in text for t in texts):
                return text
            assert self.terminal.process.poll() is None, f"it has ended: {self.terminal.raw[-2000:]!r}"
            assert time.monotonic() < end, f"{texts} not seen:\n{text}"

    def rests(self, *texts: str, quiet_s: float = 2.5) -> str:
        """Wait until all of it is seen and nothing changes any more."""
        before, since = "", time.monotonic()
        while time.monotonic() < since + quiet_s:
            text = self.shows(*texts)
            if text != before:
                before, since = text, time.monotonic()
        return before

    def hides(self, text: str, seconds: float = 30.0) -> str:
        """Wait until it is not seen any more."""
        end = time.monotonic() + seconds
        while text in (now := self.text):
            assert time.monotonic() < end, f"{text!r} stays:\n{now}"
        return now

    def row_of(self, text: str) -> int:
        return next(i for i, line in enumerate(self.look()) if text in line)

    def type(self, text: str) -> None:
        self.terminal.type(text)

    def click(self, row: int, column: int = 2, button: int = 0) -> None:
        place = f"{button};{column + 1};{row + 1}"
        self.type(f"\x1b[<{place}M\x1b[<{place}m")

    def resize(self, rows: int, columns: int) -> None:
        self.look()
        self.screen.resize(rows, columns)
        self.terminal.resize(rows, columns)


def modes(terminal: Terminal) -> list[object]:
    """How the terminal reads and echoes: to be the same afterwards as before."""

    return termios.tcgetattr(terminal.master)[:4]
