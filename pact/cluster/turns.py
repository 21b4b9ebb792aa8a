"""Whose requests the root's loop handles now: a person who is no administrator has a share of its time.

The form of a request says little of what it costs: a node set of a few characters may mean a hundred thousand names.
Who has used up the share waits, and nobody waits for him.  # S8
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pact.core.tree.wire import Message
from pact.host.budget import Budget

#: Requests of one person that wait. Of more, those that come are dropped: whoever asks is told that no answer came.
WAITING_EACH_MAX: Final = 64


class Turns:
    """``take`` each message; handle those for which it returns True, and those of ``due``, within ``spending``."""

    def __init__(self) -> None:
        self._budget = Budget()
        self._waiting: deque[Message] = deque()
        self._of: Counter[str] = Counter()

    def take(self, message: Message) -> bool:
        """Whether it is handled now. Otherwise it waits."""
        if message.kind == "cancel":
            for each in [m for m in self._waiting if _asked(m) == _asked(message)]:
                self._forget(each)
        who = _who(message)
        if not who or (not self._of[who] and self._budget.wait_s(who) <= 0):
            return True
        if self._of[who] < WAITING_EACH_MAX:
            self._waiting.append(message)
            self._of[who] += 1
        return False

    @contextmanager
    def spending(self, message: Message) -> Iterator[None]:
        """Counts what the message takes."""
        who, began_s = _who(message), time.monotonic()
        yield
        if who:
            self._budget.spend(who, time.monotonic() - began_s)

    def due(self) -> Iterator[Message]:
        """Those whose turn has come; each is to be handled before the next is asked for. Meanwhile others may come, and
        some be cancelled."""
        for message in list(self._waiting):
            if message in self._waiting and self._budget.wait_s(_who(message)) <= 0:
                self._forget(message)
                yield message

    def wait_s(self) -> float | None:
        """In how many seconds one is due; None if none waits."""
        return min((self._budget.wait_s(who) for who, many in self._of.items() if many), default=None)

    def _forget(self, message: Message) -> None:
        self._waiting.remove(message)
        self._of -= Counter([_who(message)])


def _who(message: Message) -> str:
    """Whose share a message costs; ``""`` for none."""
    if message.kind != "request" or message.head["caller"]["role"] == "admin":
        return ""
    return str(message.head["caller"]["user"])


def _asked(message: Message) -> tuple[str, int]:
    return message.head["client"], message.head["id"]
