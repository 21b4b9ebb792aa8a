"""The person's side of a session: this terminal becomes the session's, or this process's streams do.

Keys go as they are typed, except after Enter: ``~.`` leaves the session (it goes on, see ``pact shell --attach``),
``~?`` says so, and ``~~`` is a tilde.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import struct
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

from pact.errors import EXIT_FAILED
from pact.session import frames
from pact.session.frames import CREDIT, CREDIT_STEP, FrameError, credit, frame, said

READ: Final = 64 << 10
WRITE: Final = 4 << 10  # what a pipe that is said to be ready takes at once
LOST: Final = 255
HANG_UP_S: Final = 5.0  # how long a session that does not listen is told that nobody is here any more
LINES_MAX: Final = 64  # lines of the session for the person that wait to be shown
TICK_MS: Final = 100  # how often to look whether it was told
ESCAPE: Final = ord("~")
HELP: Final = b"\r\n~. leaves the session, which goes on: pact shell --attach comes back; ~~ is a tilde\r\n"
FORWARDED: Final = {signal.SIGINT: b"INT", signal.SIGQUIT: b"QUIT", signal.SIGTERM: b"TERM"}


class Ended(NamedTuple):
    """How it ended. ``left``: the session goes on without this client. ``told``: the person has read why."""

    code: int
    why: str = ""
    left: bool = False
    told: bool = False


TERMINAL_GONE: Final = Ended(128 + signal.SIGHUP, "", left=True)


class Way(Protocol):
    """What carries the frames: a socket, or a stream through the tree (``pact.cluster.streams``)."""

    def fileno(self) -> int: ...

    def setblocking(self, flag: bool, /) -> None: ...

    def recv(self, most: int, /) -> bytes: ...

    def send(self, data: bytearray, /) -> int: ...


class Sink:
    """Where output is shown: it is written to without ever waiting for whoever reads it, and without changing what
    other processes share."""

    def __init__(self, fd: int) -> None:
        self.fd, self._own, self._most = fd, -1, WRITE
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISFIFO(mode) or os.isatty(fd):
                self._own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                self.fd = self._own
            if self._own >= 0 or stat.S_ISREG(mode) or stat.S_ISCHR(mode):
                self._most = READ
        except OSError:
            pass  # it is another person's, or closed

    def write(self, data: bytes) -> int:
        return os.write(self.fd, data[: self._most])

    def close(self) -> None:
        if self._own >= 0:
            os.close(self._own)


def heeded(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those that this program obeys: ``nohup``, and a script that starts it in the background, have some ignored."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def size_here(fd: int = 1) -> frames.Size:
    """The size of this terminal."""
    try:
        rows, columns, x, y = struct.unpack("4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        return frames.SIZE_DEFAULT
    return frames.clamped(rows, columns, x, y)


@contextmanager
def raw(fd: int) -> Iterator[Callable[[], None]]:
    """The terminal passes every key on; afterwards it is as it was. Yields what makes it so again."""
    before = termios.tcgetattr(fd)

    def again() -> None:
        tty.setraw(fd, termios.TCSANOW)

    again()
    try:
        yield again
    finally:
        try:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        except termios.error:
            pass  # the terminal has gone


def printable(text: str) -> str:
    """Text of another machine, without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


class Escapes:
    """Finds ``~.`` at the beginning of a line among what is typed."""

    def __init__(self) -> None:
        self._fresh, self._tilde = True, False
        self.leave = self.help = False

    def pass_on(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            if self._tilde:
                self._tilde = False
                if byte == ord("."):
                    self.leave = True
                    return bytes(out)
                if byte == ord("?"):
                    self.help, self._fresh = True, True
                    continue
                if byte != ESCAPE:
                    out.append(ESCAPE)
            elif self._fresh and byte == ESCAPE:
                self._tilde = True
                continue
            out.append(byte)
            self._fresh = byte in b"\r\n"
        return bytes(out)


def _polled(wanted: dict[int, int], wait_ms: int | None) -> dict[int, int]:
    poll = select.poll()
    for fd, mask in wanted.items():
        poll.register(fd, mask)
    return dict(poll.poll(wait_ms))


class Client:
    """One attachment. ``run`` returns how it ended. ``pending`` says that there may be something to receive although
    the descriptor does not; every ``tick_ms`` it is looked after ``sock`` even if nothing happens. ``unsent`` says that
    ``sock`` keeps something that it has taken."""

    def __init__(
        self,
        sock: Way,
        *,
        terminal: bool,
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
        pending: Callable[[], bool] = lambda: False,
        unsent: Callable[[], bool] = lambda: False,
        tick_ms: int | None = None,
    ) -> None:
        self.sock, self.terminal = sock, terminal
        self._pending, self._unsent, self._tick_ms = pending, unsent, tick_ms
        self.stdin, self.sinks = stdin, {b"O": Sink(stdout), b"E": Sink(stderr)}
        self.sinks[b"N"] = self.sinks[b"E"]  # what is no output: nobody asked for credit for it
        self.attached: dict[str, Any] = {}
        self.received = 0  # bytes of ``O``: where to go on after a cut
        self._reader = frames.Reader()
        self._escapes = Escapes()
        self._out = bytearray()
        self._may = CREDIT
        self._consumed = 0
        self._waiting: list[tuple[bytes, bytes]] = []
        self._ended: Ended | None = None
        self._hangs_until_s = 0.0  # until then the session is told that nobody is here any more
        self._input_open = True
        self._interrupted = 0
        self._told = ""  # the last line that the session had for the person

    def run(self) -> Ended:
        """Until the session ends, or this client leaves it."""
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        numbers = [signal.SIGWINCH, signal.SIGCONT, *heeded(signal.SIGHUP, *FORWARDED)]
        before = {n: signal.signal(n, lambda *_: None) for n in numbers}
        wakeup = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        self.sock.setblocking(False)
        try:
            if not self.terminal:
                return self._loop(read_fd, lambda: None)
            with raw(self.stdin) as again:
                self._resize()
                return self._loop(read_fd, again)
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(read_fd)
            os.close(write_fd)
            for kind in (b"O", b"E"):
                self.sinks[kind].close()

    def _loop(self, signals: int, again: Callable[[], None]) -> Ended:
        link = self.sock.fileno()
        # Asked once in each turn: a turn that begins with an answer and goes on with another would wait for nothing.
        while (hangs_up := self._hangs_up) or self._ended is None or self._waiting:
            wanted = {signals: select.POLLIN}
            pending, sink = False, -1
            if self._ended is None or hangs_up:
                wanted[link] = select.POLLIN | (select.POLLOUT if self._out else 0)
                pending = self._pending()
                if self._ended is None and self._input_open and self._may > 0 and len(self._out) < READ:
                    wanted[self.stdin] = select.POLLIN
            if self._waiting:
                sink = self.sinks[self._waiting[0][0]].fd
                wanted[sink] = wanted.get(sink, 0) | select.POLLOUT
            ready = _polled(wanted, 0 if pending else TICK_MS if hangs_up else self._tick_ms)
            if signals in ready:
                left = self._signalled(os.read(signals, 64), again)
                if left is not None:
                    return left
            if sink >= 0 and ready.get(sink, 0) & ~select.POLLIN:
                self._show()
            typed = self._ended is None and bool(ready.get(self.stdin, 0) & ~select.POLLOUT)
            if typed and (left := self._typed()) is not None:
                self._flush()
                return left
            if (self._ended is None or hangs_up) and (pending or not ready or link in ready):
                self._from_session()
            self._flush()
        # It goes on, because it could not be told.
        return self._ended._replace(left=True) if self._hangs_until_s and self._untold else self._ended

    @property
    def _untold(self) -> bool:
        return bool(self._out) or self._unsent()

    @property
    def _hangs_up(self) -> bool:
        return self._untold and time.monotonic() < self._hangs_until_s

    # -- this side's input and output --------------------------------------------------------------------------------

    def _typed(self) -> Ended | None:
        """Pass on what was typed. Returns how it ends here, if the person leaves."""
        try:
            data = os.read(self.stdin, min(READ, self._may))
        except BlockingIOError:
            return None
        except OSError as exc:
            data = b""
            # What cannot be read to its end must not pass for all of it.
            if exc.errno != errno.EBADF and not os.isatty(self.stdin):
                self._hang_up(Ended(EXIT_FAILED, f"standard input: {os.strerror(exc.errno or 0)}"))
                return None
        if not data:
            self._input_open = False
            if self.terminal:  # which passes every key on: it has gone
                return TERMINAL_GONE
            self._out += frame(b"D")
            return None
        if self.terminal:
            data = self._escapes.pass_on(data)
            if self._escapes.help:
                self._escapes.help = False
                self._waiting.append((b"N", HELP))
        if data:
            self._may -= len(data)
            self._out += frame(b"I", data)
        return Ended(0, "", left=True) if self._escapes.leave else None

    def _hang_up(self, ended: Ended) -> None:
        """Nobody is here any more who could go on with it."""
        self._waiting.clear()
        if self._ended is None:
            self._out += frame(b"S", b"HUP")
            self._hangs_until_s = time.monotonic() + HANG_UP_S
        self._ended = ended

    def _show(self) -> None:
        kind, data = self._waiting[0]
        try:
            wrote = self.sinks[kind].write(data)
        except BlockingIOError:
            return
        except OSError as exc:
            self._unshown(exc.errno or 0)
            return
        if wrote == len(data):
            del self._waiting[0]
        else:
            self._waiting[0] = kind, data[wrote:]
        self._consumed += wrote if kind != b"N" else 0
        if self._consumed >= CREDIT_STEP or (self._consumed and not self._waiting):
            self._out += credit(self._consumed)
            self._consumed = 0

    def _unshown(self, number: int) -> None:
        """This side's output takes nothing any more."""
        if self.terminal and number == errno.EIO:
            self._waiting.clear()
            self._ended = self._ended or TERMINAL_GONE
        elif number != errno.EPIPE:  # its disk is full
            self._hang_up(Ended(EXIT_FAILED, f"output: {os.strerror(number)}"))
        elif self._ended is None:  # whoever reads it has what he wanted
            self._hang_up(Ended(128 + signal.SIGPIPE))
        else:
            self._waiting.clear()

    def _resize(self) -> None:
        self._out += said(b"W", list(size_here(self.stdin)))

    def _signalled(self, numbers: bytes, again: Callable[[], None]) -> Ended | None:
        for number in numbers:
            if number in (signal.SIGWINCH, signal.SIGCONT) and self.terminal:
                if number == signal.SIGCONT:
                    again()  # whoever ran meanwhile had its own settings
                self._resize()
            elif number == signal.SIGHUP or (self.terminal and number in FORWARDED):
                return Ended(128 + number, "", left=True)
            elif number in FORWARDED:
                self._interrupted += 1
                if self._interrupted > 2:
                    return Ended(128 + number, "", left=True)
                self._out += frame(b"S", FORWARDED[signal.Signals(number)])
        return None

    # -- the session's -----------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        while self._out and (self._ended is None or self._hangs_until_s):
            try:
                sent = self.sock.send(self._out)
            except BlockingIOError:
                return
            except OSError:
                return  # what it sent before is read first
            del self._out[:sent]

    def _from_session(self) -> None:
        try:
            data = self.sock.recv(4 * READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if self._ended is not None:  # nobody is here any more who would hear it
            if not data:
                self._hangs_until_s = time.monotonic()
            elif any(kind == b"X" for kind, _ in self._reader.feed(data)):
                self._hangs_until_s = 0.0
            return
        if not data:
            self._ended = Ended(LOST, "the connection to the session was lost", left=True)
            return
        try:
            for kind, payload in self._reader.feed(data):
                self._hear(kind, payload)
        except FrameError as exc:
            self._ended = Ended(LOST, f"what the session sends makes no sense: {exc}", left=True)

    def _hear(self, kind: bytes, payload: bytes) -> None:
        if kind in (b"O", b"E"):
            self._waiting.append((kind, payload))
            self.received += len(payload) if kind == b"O" else 0
        elif kind == b"C":
            self._may += frames.credit_of(payload)
        elif kind == b"A":
            self.attached = frames.object_of(payload)
            if (lost := self.attached.get("lost")) and isinstance(lost, int):
                self._waiting.append((b"N", f"pact: {lost} bytes of output are lost\r\n".encode()))
        elif kind == b"N":
            if sum(waits == b"N" for waits, _ in self._waiting) >= LINES_MAX:
                return  # whoever reads this stands still
            self._told = text = printable(payload.decode("utf-8", "replace"))
            end = "\r\n" if self.terminal else "\n"
            self._waiting.append((b"N", f"{end if self.terminal else ''}pact: {text}{end}".encode()))
        elif kind == b"X":
            code, why = frames.ended(payload)
            end_ = frames.object_of(payload)
            taken = code == LOST and str(end_.get("why", "")).startswith("taken over")
            why = printable(why or str(end_.get("why", "")))
            self._ended = Ended(code, why, left=taken, told=why == self._told)
