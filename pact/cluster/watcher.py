"""The thread that folds the root's durable chunks into ``Sight``, for people who look. The root's loop only hands them
on.

What it could not take (too much at once, a new term) it reads from the log, slowly: nobody is asked, and the loop never
waits.  # V6
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from pact.core.root.chunks import Chunk, read_chunk
from pact.core.root.sight import Sight
from pact.errors import JournalError

#: How many of the newest events a new term reads: an older change is known by its node's state only.
HISTORY_EVENTS: Final = 200_000
WAITING_BYTES_MAX: Final = 16 << 20
#: While it reads the log it rests this many times as long as it works.
REST: Final = 4
RETRY_S: Final = 1.0
TRIES: Final = 5
CLOSE_S: Final = 5.0


class Watcher:
    """``lead``, ``give`` and ``depose`` return at once. Read ``sight`` while you hold ``lock``."""

    def __init__(self, read: Callable[[int], Iterator[bytes]], changed: Callable[[], None] = lambda: None) -> None:
        """``read``: chunks of the log from a number on; may wait and raise JournalError. ``changed`` is called in the
        thread after each chunk."""
        self.sight = Sight()
        self.lock = threading.Lock()
        self.changed = changed
        self._followers: list[set[str]] = []
        self.catching_up = False
        self.cpu_s = 0.0
        self._read = read
        self._wake = threading.Condition()
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._bytes = 0
        self._head = -1  # the newest event of the log at the election
        self._term = self._term_seen = 0
        self._missed = self._closing = False
        self._thread = threading.Thread(target=self._run, name="pact-sight", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def follow(self) -> set[str]:
        """A set to which the nodes are added that may look different. Whoever has it empties it, holding ``lock``."""
        mine: set[str] = set()
        with self.lock:
            self._followers.append(mine)
        return mine

    def lead(self, gseq: int) -> None:
        """A term begins, with ``gseq`` as the newest event of the log."""
        with self._wake:
            self._waiting.clear()
            self._bytes = 0
            self._head = gseq
            self._term += 1
            self._missed = False
            self._wake.notify()

    def depose(self) -> None:
        self.lead(-1)

    def give(self, chunk: bytes) -> None:
        """A durable chunk. What is too much is read from the log later."""
        with self._wake:
            if self._bytes + len(chunk) > WAITING_BYTES_MAX and self._waiting:
                self._missed = True
            if not self._missed:
                self._waiting.append((chunk, time.monotonic_ns()))
                self._bytes += len(chunk)
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            with self._wake:
                while not (self._closing or self._waiting or self._missed or self._term != self._term_seen):
                    self._wake.wait()
                anew, self._term_seen = self._term != self._term_seen, self._term
                head, missed = self._head, self._missed and not self._waiting
                raw, heard_ns = self._waiting.popleft() if self._waiting and not anew else (b"", 0)
                self._bytes -= len(raw)
                if missed:
                    self._missed = False
            if anew:
                with self.lock:
                    self.sight = Sight()
                self._catch_up(max(0, head + 1 - HISTORY_EVENTS), head)
            elif raw:
                chunk = read_chunk(raw)
                if self.sight.gseq + 1 < chunk.first and self.sight.gseq >= 0:
                    self._catch_up(self.sight.gseq + 1, chunk.first - 1)
                self._take(chunk, heard_ns)
            elif missed:
                self._catch_up(self.sight.gseq + 1, 1 << 62)
            self.changed()

    def _take(self, chunk: Chunk, heard_ns: int) -> None:
        if chunk.first > self.sight.gseq:
            with self.lock:
                self.sight.take(chunk, heard_ns)
                for follower in self._followers:
                    follower |= self.sight.touched
                self.sight.touched = set()

    def _catch_up(self, start: int, upto: int) -> None:
        """Read the log from ``start`` to ``upto``, or to its end. What cannot be read is left out."""
        if upto < start:
            return
        self.catching_up = True
        tries = 0
        while tries < TRIES and not self._closing and self._term == self._term_seen:
            try:
                if self._read_from(max(start, self.sight.gseq + 1), upto):
                    break
            except (JournalError, ValueError):
                tries += 1
                time.sleep(RETRY_S)
        self.catching_up = False

    def _read_from(self, start: int, upto: int) -> bool:
        began = time.thread_time()
        for raw in self._read(start):
            if self._closing or self._term != self._term_seen:
                return True
            try:
                chunk = read_chunk(raw)
            except ValueError:
                continue  # damaged: what comes after it is not left out with it
            self._take(chunk, 0)
            took_s, began = time.thread_time() - began, time.thread_time()
            if took_s > 0.001:
                self.changed()
                time.sleep(min(1.0, took_s * REST))
            if self.sight.gseq >= upto:
                return True
        return True
