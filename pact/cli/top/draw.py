"""The terminal: urwid draws, reads keys and the mouse, and gives the terminal back. It is imported only for this.

It is painted when a key is pressed, and otherwise at most once a second: when something has come, or while a clock is
seen. Whatever ends the program, the terminal is as it was before.  # Y1
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import termios
import time
from collections.abc import Hashable
from types import FrameType
from typing import Any, Final

import urwid
from rich.cells import cell_len
from urwid.display.escape import MOUSE_TRACKING_OFF
from urwid.display.raw import Screen

from pact.cli.top.desk import Desk
from pact.cli.top.feed import Feed
from pact.cli.top.layout import Spot
from pact.cli.top.text import Line
from pact.errors import EXIT_DONE, EXIT_FAILED

EVERY_S: Final = 1.0
COLUMNS_MAX: Final = 500
ROWS_MAX: Final = 200
STANDARD: Final = (80, 24)  # of a terminal that does not know its size
GRACE_S: Final = 2
GONE: Final = frozenset({errno.EIO, errno.ENXIO, errno.EPIPE, errno.EBADF})
#: What takes a terminal out of the picture: a sequence that was cut off ends, and the mouse, pasting, colours, the
#: other screen and the cursor are as before.
CALM: Final = f"\x18{MOUSE_TRACKING_OFF}\x1b[?2004l\x1b[0m\x0f\x1b[?1049l\x1b[?25h".encode()
#: Each style in colours, and without.
PALETTE: Final = (
    ("title", "bold", "", "bold"),
    ("heading", "bold", "", "bold"),
    ("bold", "bold", "", "bold"),
    ("dim", "dark gray", "", ""),
    ("good", "dark green", "", ""),
    ("warn", "brown", "", ""),
    ("bad", "light red", "", "bold"),
    ("alarm", "light magenta,bold", "", "bold,standout"),
    ("soon", "light red,bold", "", "bold,underline"),
    ("selected", "standout", "", "standout"),
)


class Picture(urwid.Widget):
    """All of the screen."""

    _sizing = frozenset([urwid.BOX])
    _selectable = True
    ignore_focus = True

    def __init__(self, desk: Desk, feed: Feed, utf8: bool) -> None:
        super().__init__()
        self.desk, self.feed, self.utf8 = desk, feed, utf8
        self.ticks = self.pasting = False
        self.painted_s = 0.0
        self.spots: list[Spot | None] = []

    def render(self, size: Any, focus: bool = False) -> urwid.Canvas:
        columns, rows = size
        frame = self.desk.frame(columns, rows, time.monotonic(), time.time_ns() // 1_000_000)
        self.ticks, self.painted_s, self.spots = frame.ticks, time.monotonic(), frame.spots
        texts, styles = [], []
        for line in frame.lines:
            text, style = self._encoded(line)
            texts.append(text)
            styles.append(style)
        return urwid.TextCanvas(texts, styles, cursor=frame.cursor, maxcol=columns, check_width=False)

    def _encoded(self, line: Line) -> tuple[bytes, list[tuple[Hashable, int]]]:
        parts = [(text.encode("utf-8", "replace") if self.utf8 else _ascii(text), style) for text, style in line]
        return b"".join(text for text, _ in parts), [(style or None, len(text)) for text, style in parts]

    def keypress(self, size: Any, key: str) -> str | None:
        if key in ("begin paste", "end paste"):
            self.pasting = key == "begin paste"
        elif key == "ctrl l":
            return key
        elif self.pasting and not (self.desk.typing and len(key) == 1):
            return None  # what is pasted is text, and never a command  # Y3
        else:
            self._done(self.desk.key(key))
        return None

    def mouse_event(self, size: Any, event: str, button: int, col: int, row: int, focus: bool) -> bool:
        if event == "mouse press":
            self._done(self.desk.click(row, button))
        return True

    def _done(self, asks: list[Any]) -> None:
        self.feed.ask(asks)
        self.follow()
        self._invalidate()
        if self.desk.over:
            raise urwid.ExitMainLoop

    def follow(self) -> None:
        """Have the node asked that is looked at."""
        self.feed.look_at(self.desk.where)

    def repaint(self) -> None:
        self._invalidate()


def _ascii(text: str) -> bytes:
    """For terminals of another encoding: as wide as before."""
    plain = {"█": "#", "░": ".", "…": ".", "↑": "^", "↓": "v"}
    return "".join(c if c.isascii() else plain.get(c, "?" * cell_len(c)) for c in text).encode("ascii", "replace")


class Terminal(Screen):
    """A terminal whose size is bounded, and never nothing."""

    def get_cols_rows(self) -> tuple[int, int]:
        columns, rows = super().get_cols_rows()
        if columns <= 0 or rows <= 0:
            return STANDARD
        return min(columns, COLUMNS_MAX), min(rows, ROWS_MAX)


class Display:
    """``run`` until the person leaves."""

    def __init__(self, desk: Desk, feed: Feed, *, colours: bool, mouse: bool) -> None:
        self.desk, self.feed = desk, feed
        self.screen = Terminal(bracketed_paste_mode=True, focus_reporting=False)
        if not colours:
            self.screen.set_terminal_properties(colors=1)
        self.picture = Picture(desk, feed, urwid.util.get_encoding() == "utf-8")
        self.loop = urwid.MainLoop(
            self.picture, PALETTE, self.screen, handle_mouse=mouse, unhandled_input=self._unhandled
        )
        self._signal = 0
        self._continued = False
        self._tick: Any = None

    def run(self) -> int:
        """Returns the exit code."""
        before = {n: signal.signal(n, self._ended) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
        before[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._goes_on)
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._late)
        try:
            self.loop.watch_file(self.feed.fd, self._heard)
            self.picture.follow()
            self.feed.start()
            self.loop.run()
        except (OSError, urwid.InputClosedError) as exc:
            if isinstance(exc, OSError) and exc.errno not in GONE:
                raise
            return self._gone()
        finally:
            signal.alarm(0)
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._signal in (0, signal.SIGINT):
            return EXIT_DONE
        return 128 + self._signal

    def _gone(self) -> int:
        """The terminal has gone, and nobody is there to be told."""
        for fd in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        return 128 + self._signal if self._signal else EXIT_FAILED

    # -- signals: only what is safe at any time ---------------------------------------------------------------------

    def _ended(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self.feed.ring()
        signal.alarm(GRACE_S)

    def _late(self, number: int, frame: FrameType | None) -> None:
        """It was to end, and waits for a terminal that takes nothing (Ctrl-S)."""
        fd, before = sys.stdin.fileno(), self.screen._old_termios_settings
        with contextlib.suppress(OSError, termios.error):
            termios.tcflow(fd, termios.TCOON)
            termios.tcflush(fd, termios.TCOFLUSH)
            if before is not None:
                termios.tcsetattr(fd, termios.TCSANOW, before)
                # Opened anew: it must not wait, and the shell's own descriptor must go on to wait.
                os.write(os.open(os.ttyname(fd), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY), CALM)
        os._exit(128 + self._signal)

    def _goes_on(self, number: int, frame: FrameType | None) -> None:
        self._continued = True
        self.feed.ring()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _heard(self) -> None:
        if self._signal:
            raise urwid.ExitMainLoop
        if self._continued:
            self._restart()
        now_s, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        asks = []
        awaited = self.desk.question is not None or not self.desk.known
        for item in self.feed.take():
            asks += self.desk.heard(item, now_s, now_ms)
            self._stir(item)
        self.feed.ask(asks)
        self.picture.follow()
        if self.desk.dirty and (awaited or now_s - self.picture.painted_s >= EVERY_S):
            self.picture.repaint()
        self._arm()

    def _stir(self, item: Any) -> None:
        """Records of the node that is looked at: it is asked what it says now."""
        fleet, where = self.desk.fleet, self.desk.where
        if fleet is not None:
            if where is not None and where in fleet.touched:
                self.feed.stir()
            fleet.touched.clear()

    def _arm(self) -> None:
        if self._tick is None:
            wait_s = max(0.0, self.picture.painted_s + EVERY_S - time.monotonic())
            self._tick = self.loop.set_alarm_in(wait_s, self._ticked)

    def _ticked(self, *_: Any) -> None:
        self._tick = None
        if self.picture.ticks or self.desk.dirty:
            self.picture.repaint()
            self._tick = self.loop.set_alarm_in(EVERY_S, self._ticked)

    def _unhandled(self, key: Any) -> bool:
        if key == "ctrl l":
            self.screen.clear()
            self.picture.repaint()
        return True

    def _restart(self) -> None:
        """The shell had the terminal: take it again, and paint all of it."""
        self._continued = False
        with self.loop.paused():
            pass
        self.picture.repaint()


def show(desk: Desk, feed: Feed, *, colours: bool, mouse: bool) -> int:
    sys.stdout.flush()
    code = Display(desk, feed, colours=colours, mouse=mouse).run()
    for title in desk.unanswered:  # the person leaves before the answer has come
        print(f"pact: {title}: it was asked, and not answered yet; pact log shows whether it was done", file=sys.stderr)
    return code
