"""A caller from the cluster, in the form of a client of the agent: one question, one answer."""

from __future__ import annotations

import pwd
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from pact.agent.client import Client
from pact.core.node.events import Caller
from pact.core.tree.member import ANSWER_MAX, Key, caller_of, refusal
from pact.errors import EXIT_FAILED

ROWS_MAX: Final = 1_000
ROWS_BYTES_MAX: Final = ANSWER_MAX - (1 << 10)
UID_FOR_S: Final = 300.0
UIDS_MAX: Final = 64


class Remote(Client):
    """The caller of one request from the cluster. Has no socket; its answer is one JSON object."""

    remote = True

    def __init__(self, answered: Callable[[bytes], None], caller: Caller, key: Key = (0, "")) -> None:
        self.caller = caller
        self.key = key  # of the call
        self.fd = -1
        self.tokens: set[int] = set()
        self.watching = self.closing = self.half_closed = self.gone = False
        self.events = 0
        self.lines: deque[bytes] = deque()
        self.open = True
        self._answered = answered
        self._parts: list[bytes] = []  # of an answer that comes in parts
        self._size = 0

    def send(self, value: Any) -> None:
        """Give the answer, once."""
        if self.open:
            self.open = False
            self._answered(value if isinstance(value, bytes) else orjson.dumps(value))

    def stream(self, source: Iterator[bytes]) -> None:
        """Give rows, the newest first, as one bounded answer, which says whether older ones are left out."""
        rows: list[bytes] = []
        size, truncated = 0, b"false"
        for line in source:
            if line == b'{"end":true}':
                break
            size += len(line) + 1
            if size > ROWS_BYTES_MAX or len(rows) >= ROWS_MAX:
                truncated = b"true"
                break
            rows.append(line)
        self.send(
            b'{"ok":true,"exit":0,"message":"","hint":"","result":{"truncated":'
            + truncated
            + b',"rows":['
            + b",".join(rows)
            + b"]}}"
        )

    def take(self, written: Sequence[bytes]) -> None:
        """Take a complete answer: one line, or rows."""
        if len(written) == 1 and written[0].startswith(b'{"ok":'):
            self.send(written[0])
        else:
            self.stream(iter(written))

    def send_part(self, part: bytes, *, last: bool) -> None:
        """Keep the parts of an answer until the last; no more of them than an answer may have."""
        self._parts.append(part)
        self._size += len(part)
        if last or self._size > ANSWER_MAX:
            self.send(b"".join(self._parts))
            self._parts.clear()

    def when_taken(self, more: Callable[[], None]) -> None:
        more()

    def break_off(self) -> None:
        """Nothing of the answer was sent: whoever asked is told, and the call ends."""
        self._parts.clear()
        self.send(refusal(EXIT_FAILED, "the answer could not be written to its end", "see the journal of the service"))

    def wants_write(self) -> bool:
        return False

    def write(self) -> bool:
        return True


class Callers:
    """The accounts of the root's callers on this machine."""

    def __init__(self) -> None:
        self._uids: dict[str, tuple[float, int | None]] = {}

    def of(self, said: Mapping[str, Any], key: Key) -> Caller:
        """The operator, whom the root has authenticated."""
        return Caller(*caller_of(said, key, None if said["role"] == "agent" else self._uid(said["user"])))

    def _uid(self, user: str) -> int | None:
        now_s = time.monotonic()
        known = self._uids.get(user)
        if known is not None and now_s < known[0]:
            return known[1]
        try:
            uid: int | None = pwd.getpwnam(user).pw_uid
        except (KeyError, ValueError):
            uid = None
        if len(self._uids) > UIDS_MAX:
            self._uids.clear()
        self._uids[user] = (now_s + UID_FOR_S, uid)
        return uid
