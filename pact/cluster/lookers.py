"""People who are told of the whole fleet over the tree (``pact top``): the same as the live page, at most once a
second.

A thread folds and encodes; the root's loop hands it the facts and takes what is to be sent. Without lookers the thread
waits and nothing is made. Each message is a JSON object with ``kind`` and ``n``:

``you``    first of all: who the looker is to the root: ``user`` and ``role``
``whole``  everything (``Live.snapshot``); what is more than one message carries follows as ``more``
``news``   what is new (``Live.turn``); its ``n`` is one higher than the last message's
``more``   belongs to the ``whole`` or ``news`` before it, and has its ``n``

A looker that finds a number missing asks again. One that does not read is cut off by the socket like any other.  # V7
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

import orjson

from pact.cluster.live import Live
from pact.cluster.watcher import Watcher
from pact.core import strict
from pact.core.root.envelope import Asker
from pact.host.notify import log
from pact.model import Json

EVERY_S: Final = 1.0
PIECE_ROWS: Final = 4000  # of nodes in one message: far below what a frame carries
CLOSE_S: Final = 5.0
TEXT_MAX: Final = 500

Key = tuple[str, int]


class Lookers:
    """The loop calls ``keep``, ``give`` and ``take``; ``fd`` is readable when there is something to take."""

    def __init__(self, watcher: Watcher) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.messages = 0
        self._live = Live(watcher, _pair)
        self._wake = threading.Condition()
        self._facts: Mapping[str, Any] | None = None
        self._told: dict[Key, bool] = {}  # whether it has the whole
        self._out: deque[tuple[Key, bytes]] = deque()
        self._news = self._closing = False
        self._turned_s = -1e9
        self._n = 0
        self._why = ""
        self._thread = threading.Thread(target=self._run, name="pact-lookers", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        return self.fd

    # -- the loop ---------------------------------------------------------------------------------------------------

    def keep(self, lookers: Mapping[Key, Asker]) -> None:
        """These are told from now on, and no others."""
        if lookers.keys() == self._told.keys():
            return
        with self._wake:
            for key in [k for k in self._told if k not in lookers]:
                del self._told[key]
            for key, asker in lookers.items():
                if key not in self._told:
                    self._told[key] = False
                    you = {"kind": "you", "n": 0, "user": asker.user, "role": asker.role}
                    self._out.append((key, orjson.dumps(you)))
                    self._ring()
            self._wake.notify()

    def give(self, facts: Mapping[str, Any]) -> None:
        """What the loop knows now."""
        with self._wake:
            self._facts, self._news = facts, True
            self._wake.notify()

    def changed(self) -> None:
        """There may be news. Any thread may call it."""
        if self._told and not self._news:
            with self._wake:
                self._news = True
                self._wake.notify()

    def take(self) -> Iterator[tuple[Key, bytes]]:
        """What is to be sent to whom."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass
        while self._out:
            key, body = self._out.popleft()
            if key in self._told:
                self.messages += 1
                yield key, body

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            os.close(self.fd)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._closing and (wait_s := self._wait_s()) != 0:
                    self._wake.wait(wait_s)
                if self._closing:
                    return
                facts, self._news = self._facts, False
                keys = dict(self._told)
            assert facts is not None
            try:
                self._turn(facts, keys)
            except Exception as exc:  # an error in one fact must not end it: all begin anew
                self._failed(f"what is known of the fleet cannot be told: {type(exc).__name__}: {exc}"[:TEXT_MAX])

    def _failed(self, why: str) -> None:
        """They are told so: else they would take what they have for what is."""
        if why != self._why:
            self._why = why
            log(why, 3)
        self._live.forget()
        self._n += 1
        self._send([k for k, whole in self._told.copy().items() if whole], {"kind": "news", "about": {"trouble": why}})
        with self._wake:
            self._told = dict.fromkeys(self._told, False)
            self._turned_s = time.monotonic()

    def _wait_s(self) -> float | None:
        """How long there is nothing to do; ``None``: until it is woken."""
        if not self._told or self._facts is None:
            return None
        if self._news or not all(self._told.values()):
            return max(0.0, self._turned_s + EVERY_S - time.monotonic())
        return None

    def _turn(self, facts: Mapping[str, Any], keys: Mapping[Key, bool]) -> None:
        self._turned_s = time.monotonic()
        news = self._live.turn(facts)
        if news:
            self._n += 1
            self._send([k for k, whole in keys.items() if whole], strict.own(news))
        fresh = [k for k, whole in keys.items() if not whole]
        if fresh:
            self._send(fresh, strict.own(self._live.snapshot()))
        self._why = ""

    def _send(self, keys: list[Key], data: Json) -> None:
        if not keys:
            return
        bodies = [orjson.dumps(piece) for piece in pieces(data, self._n)]
        with self._wake:
            for key in keys:
                if key in self._told:
                    self._told[key] = True
                    self._out.extend((key, body) for body in bodies)
        self._ring()

    def _ring(self) -> None:
        os.eventfd_write(self.fd, 1)


def _pair(kind: str, data: Json) -> bytes:
    return orjson.dumps({"kind": kind, **data})


def pieces(data: Json, n: int) -> Iterator[Json]:
    """The message, cut where it has more nodes than one may have."""
    rows, plain = data.get("set") or {}, data.get("plain") or {}
    count = sum(len(names) for states in plain.values() for names in states.values())
    if len(rows) <= PIECE_ROWS and count <= 4 * PIECE_ROWS:
        yield {**data, "n": n}
        return
    yield {**{k: v for k, v in data.items() if k not in ("set", "plain")}, "n": n}
    items = iter(rows.items())
    while piece := dict(islice(items, PIECE_ROWS)):
        yield {"kind": "more", "n": n, "set": piece}
    for rack, states in plain.items():
        for state, names in states.items():
            for at in range(0, len(names), 4 * PIECE_ROWS):
                yield {"kind": "more", "n": n, "plain": {rack: {state: names[at : at + 4 * PIECE_ROWS]}}}
