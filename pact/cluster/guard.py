"""Ends subscribers that subscribe without end, from a thread of its own.

libzmq reads the subscriptions of a connection for as long as they come, in whatever call the publishing thread made,
and each byte of a topic costs it dozens; so that thread cannot look after it. (A receive high-water mark would not
change that, and must not be set: see ``pact.net.floods``.)  # V4
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import zmq

from pact.host.notify import log
from pact.limits import TOPICS_BYTES_MAX
from pact.net.floods import connection, received_bytes, travelled
from pact.net.places import Silent
from pact.net.unended import LOOK_S, Accepted, Unended

#: Of one connection during one turn: more than it may subscribe to at all.
EACH_BYTES_MAX: Final = 2 * TOPICS_BYTES_MAX
#: Of all together, not heard yet; beyond it those end that have sent most, if more than a subscriber usually does.
TOGETHER_BYTES_MAX: Final = 16 << 20
USUAL_BYTES: Final = 32 << 10
STUCK_S: Final = 0.002  # how long a call of libzmq's may last before connections are looked at, and how often then
FRESH_S: Final = 5.0  # of a connection this young all bytes count
JOIN_S: Final = 5.0
COMMAND_BYTES: Final = 9  # how much longer a subscription may be than what libzmq makes of it
PAUSE_S: Final = 1.0  # after an error
#: Of one connection while everything is read: more than its subscriptions, as far as they are not read from the kernel.
ONE_BYTES_MAX: Final = 256 << 10


class Guard:
    """``cut(fd)`` ends a connection; it is called in the guard's thread.

    ``begins`` and ``ends`` enclose each turn of the thread that is guarded, which counts ``moved`` up whenever libzmq
    has returned; ``follow`` gives its socket. ``unended`` wants to know what is read.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        name: str,
        cut: Callable[[int], object],
        too_silent: Callable[[int], object] = lambda fd: None,
    ) -> None:
        """``too_silent(fd)`` ends a connection, too."""
        self._cut, self._too_silent = cut, too_silent
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._asleep = True
        self._closing = False
        self._turn = 0  # odd: under way
        self.moved = 0
        self._accepted = Accepted(context)
        self.unended = Unended(EACH_BYTES_MAX, ONE_BYTES_MAX)
        self._silent = Silent()
        self._look_due_s = 0.0
        self._known: dict[tuple[int, int], tuple[int, float]] = {}  # bytes before this turn, and when it was accepted
        self._read: dict[int, int] = {}  # of each, by descriptor: what that was on its way
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Call it when the socket is closed."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)
        if not self._thread.is_alive():
            os.close(self._wake)
            self._accepted.close()

    def follow(self, sock: zmq.Socket[Any]) -> None:
        """Call it before the socket is bound, in its thread. Raises ZMQError."""
        self._accepted.follow(sock)

    def heard(self, fd: int, size: int) -> None:
        """A subscription or a cancellation of this connection was read, of so many bytes."""
        self._read[fd] = self._read.get(fd, 0) + travelled(size + COMMAND_BYTES)
        self.unended.heard((fd,))
        self._silent.heard(connection(fd))

    def begins(self) -> None:
        self._turn += 1
        if self._asleep:
            os.eventfd_write(self._wake, 1)

    def ends(self) -> None:
        self._turn += 1

    def _run(self) -> None:
        while not self._closing:
            try:
                self._guard_turn()
            except Exception as exc:  # no error ends the guard
                log(f"the guard of subscribers: {type(exc).__name__}: {exc}", 4)
                if isinstance(exc, zmq.ContextTerminated):
                    return
                time.sleep(PAUSE_S)

    def _guard_turn(self) -> None:
        self._asleep = True
        if self._turn % 2 == 0:
            self._wait()
        self._asleep = False
        self._take_accepted()
        self._look_for_unended()
        turn, first = self._turn, True
        while turn % 2 and not self._closing:
            moved = self.moved
            time.sleep(STUCK_S)
            if self._turn != turn:
                break
            if self.moved == moved:  # libzmq has not come back
                self._take_accepted()
                self._look(first)
                first = False

    def _wait(self) -> None:
        """Until a turn begins, a connection was accepted, or it is time to look."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if (fd := self._accepted.fileno()) >= 0:
            poller.register(fd, select.POLLIN)
        poller.poll(LOOK_S * 1000)
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

    def _take_accepted(self) -> None:
        new = list(self._accepted.take())
        self._known.update(dict.fromkeys(new, (0, time.monotonic())))
        for fd, _ in new:
            self._read.pop(fd, None)
        self.unended.accepted(new)
        self._silent.accepted(new)

    def _look_for_unended(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._look_due_s:
            self._look_due_s = now_s + LOOK_S
            for fd in self.unended.look():
                self._cut(fd)
            for fd in self._silent.look():
                self._too_silent(fd)

    def _look(self, first: bool) -> None:
        """Cut off who has sent too much since the turn began."""
        now_s, sent = time.monotonic(), {}
        for which, (before, accepted_s) in list(self._known.items()):
            fd = which[0]
            got = received_bytes(fd) if connection(fd) == which else None
            if got is None:
                del self._known[which]
            elif first and now_s - accepted_s > FRESH_S:
                self._known[which] = got, accepted_s
            else:
                sent[fd] = got - max(before, self._read.get(fd, 0))
        together = sum(sent.values())
        for fd, count in sorted(sent.items(), key=lambda each: -each[1]):
            # After a restart all come at once, each with what it may have: those for whom there is no room now come
            # again in a moment, when the others are heard.
            if count > EACH_BYTES_MAX or (together > TOGETHER_BYTES_MAX and count > USUAL_BYTES):
                together -= count
                self._known.pop(connection(fd) or (fd, 0), None)
                self._cut(fd)
