"""Whose requests the root's loop handles now: a person who is no administrator has a share of its time, and all of them
together have one, so that administrators and nodes find it free.

The form of a request says little of what it costs: a node set of a few characters may mean a hundred thousand names.
Who has used up the share waits, and nobody waits for him: of those who wait, the one who has used least is next.  # S8
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from pact.core.root.envelope import PACT, Asker
from pact.core.tree.wire import Message
from pact.host.budget import Budget
from pact.limits import LOOP_SHARE_ALL

#: Requests of one person that wait. Of more, those that come are dropped: whoever asks is told that no answer came.
WAITING_EACH_MAX: Final = 64
#: Roles whose requests cost nobody's share.
FREE: Final = ("admin", PACT.role)
ALL: Final = ""
#: What all together may have overdrawn when somebody is served who has used something himself of late, and when
#: somebody is who has not: he waits for others only where there are very many. An administrator waits for that at most.
AT_ONCE_S: Final = 0.1
FRESH_S: Final = 1.0


class Turns:
    """``take`` each message; handle those for which it returns True, and those of ``due``, within ``spending``."""

    def __init__(self) -> None:
        self._budget = Budget()
        self._all = Budget(LOOP_SHARE_ALL)
        self._waiting: dict[str, deque[Message]] = {}  # person -> requests
        self._whose: dict[tuple[str, int], str] = {}  # client and number of each of them -> person

    def take(self, message: Message) -> bool:
        """Whether it is handled now. Otherwise it waits."""
        if message.kind == "cancel":
            asked = _asked(message)
            who = self._whose.get(asked, "")
            for each in [m for m in self._waiting.get(who, ()) if _asked(m) == asked]:
                self._forget(who, each)
        who = _who(message)
        if not who or (who not in self._waiting and self._wait_s(who) <= 0):
            return True
        waiting = self._waiting.setdefault(who, deque())
        if len(waiting) < WAITING_EACH_MAX:
            waiting.append(message)
            self._whose[_asked(message)] = who
        return False

    def spending(self, message: Message) -> AbstractContextManager[None]:
        """Counts what the message takes."""
        return self._counting(_who(message))

    def charged(self, asker: Asker) -> AbstractContextManager[None]:
        """Counts what comes of an earlier request of this person: the answers of thousands of nodes, and the names of
        those that did not answer."""
        return self._counting("" if asker.role in FREE else asker.user)

    @contextmanager
    def _counting(self, who: str) -> Iterator[None]:
        began_s = time.monotonic()
        yield
        if who:
            took_s = time.monotonic() - began_s
            self._budget.spend(who, took_s)
            self._all.spend(ALL, took_s)

    def due(self) -> Iterator[Message]:
        """Those whose turn has come; each is to be handled before the next is asked for. Meanwhile others may come, and
        some be cancelled."""
        while who := min((w for w in self._waiting if self._wait_s(w) <= 0), key=self._budget.owed_s, default=""):
            message = self._waiting[who][0]
            self._waiting[who] = self._waiting.pop(who)  # of several who owe nothing, the others come first now
            self._forget(who, message)
            yield message

    def wait_s(self) -> float | None:
        """In how many seconds one is due; None if none waits."""
        return min(map(self._wait_s, self._waiting), default=None)

    def _wait_s(self, who: str) -> float:
        mine_s = self._budget.owed_s(who)
        all_s = self._all.owed_s(ALL) - (AT_ONCE_S if mine_s > 0 else FRESH_S)
        return max(self._budget.wait_s(who), all_s / LOOP_SHARE_ALL)

    def _forget(self, who: str, message: Message) -> None:
        self._waiting[who].remove(message)
        self._whose.pop(_asked(message), None)
        if not self._waiting[who]:
            del self._waiting[who]


def _who(message: Message) -> str:
    """Whose share a message costs; ``""`` for none."""
    if message.kind != "request" or message.head["caller"]["role"] in FREE:
        return ""
    return str(message.head["caller"]["user"])


def _asked(message: Message) -> tuple[str, int]:
    return message.head["client"], message.head["id"]
