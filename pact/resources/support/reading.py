"""How much of a file is read, and for how long: its owner controls both.

At most as many bytes are read as it had when it was opened: a file that grows meanwhile is ``changing``. All files of
one user together may take ``READING_EACH_S`` seconds of reading, which are given back within ``READING_PERIOD_S``
seconds: a file of eight exbibytes, or a thousand of them, delays no other user's files.  # S6
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from typing import Final

from pact.limits import READING_ALL_S, READING_EACH_S, READING_PERIOD_S

CHUNK: Final = 1 << 20
SMALL: Final = 64 << 10
#: Files of procfs have no size.
UNSIZED_MAX: Final = 64 << 20
OWNERS_MAX: Final = 1024
CHANGING: Final = "file: changing while it is read"


class Allowance:
    """Seconds of reading for each user who is not root. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spent: dict[int, tuple[float, float]] = {}  # user -> (seconds, as of when); -1 for all users together

    def left_s(self, uid: int) -> float:
        if uid == 0:
            return float("inf")
        now_s = time.monotonic()
        with self._lock:
            own_s = READING_EACH_S - self._spent_s(uid, now_s, READING_EACH_S)
            return min(own_s, READING_ALL_S - self._spent_s(-1, now_s, READING_ALL_S))

    def spend(self, uid: int, seconds: float) -> None:
        if uid == 0:
            return
        now_s = time.monotonic()
        with self._lock:
            for who, most in ((uid, READING_EACH_S), (-1, READING_ALL_S)):
                self._spent[who] = self._spent_s(who, now_s, most) + seconds, now_s
            if len(self._spent) > OWNERS_MAX:
                self._spent = {w: (s, t) for w, (s, t) in self._spent.items() if now_s - t < READING_PERIOD_S}

    def _spent_s(self, who: int, now_s: float, most: float) -> float:
        seconds, then_s = self._spent.get(who, (0.0, now_s))
        return max(0.0, seconds - (now_s - then_s) * most / READING_PERIOD_S)


ALLOWANCE: Final = Allowance()


def read_whole(fd: int, st: os.stat_result, keep_limit: int) -> tuple[bytes | None, str, int] | str:
    """Content (if it is at most ``keep_limit`` long), SHA-256 and size of an open regular file with the status ``st``;
    or a text that says why not. Raises OSError."""
    left_s = ALLOWANCE.left_s(st.st_uid) if st.st_size > CHUNK else float("inf")
    began_s = time.monotonic()
    most = max(st.st_size or UNSIZED_MAX, CHUNK)
    piece = CHUNK if st.st_size > SMALL else SMALL  # a large buffer is mapped and unmapped for each read
    first = os.read(fd, piece)
    sha, size = hashlib.sha256(first), len(first)
    pieces: list[bytes] | None = [first] if size <= keep_limit else None
    try:
        while chunk := os.read(fd, piece):
            size += len(chunk)
            if size > most:
                return CHANGING
            if time.monotonic() - began_s > left_s:
                return _too_long(st)
            sha.update(chunk)
            if size > keep_limit:
                pieces = None
            elif pieces is not None:
                pieces.append(chunk)
    finally:
        if size > CHUNK:
            ALLOWANCE.spend(st.st_uid, time.monotonic() - began_s)
    content = None if pieces is None else first if len(pieces) == 1 else b"".join(pieces)
    return content, sha.hexdigest(), size


def _too_long(st: os.stat_result) -> str:
    assert stat.S_ISREG(st.st_mode)
    return (
        f"file: {st.st_size} bytes take too long to read: files of one user may take {READING_EACH_S:g} s, "
        f"of all users {READING_ALL_S:g} s, in {READING_PERIOD_S:g} s"
    )
