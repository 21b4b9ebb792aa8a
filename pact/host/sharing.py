"""The interpreter's lock, shared by a thread that computes for long.

A thread that waits for the lock gets it when its holder waits for the kernel, or after an interval: by default 5 ms.
The loop of an agent takes and gives it several times for one answer: beside a worker that only computes, each costs as
much. In an agent the interval is 1 ms; only while a plan is carried out, which waits for the kernel at each step, it is
the default one again, because each change of hands costs both (a tenth of the plan's time).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

EVERY: Final = 64
OFTEN_S: Final = 0.001
SELDOM_S: Final = 0.005

_lock = threading.Lock()
_plans = 0


def often() -> None:
    """From now on a thread that waits for the interpreter's lock gets it after 1 ms."""
    sys.setswitchinterval(OFTEN_S)


@contextmanager
def seldom() -> Iterator[None]:
    """Meanwhile only after 5 ms. Any number of threads may use it at once."""
    global _plans
    with _lock:
        _plans += 1
        sys.setswitchinterval(SELDOM_S)
    try:
        yield
    finally:
        with _lock:
            _plans -= 1
            if not _plans:
                sys.setswitchinterval(OFTEN_S)


def sharing(items: Iterable[T]) -> Iterator[T]:
    """The same items; after every 64th of them other threads have their turn, if they wait for one."""
    for n, item in enumerate(items, 1):
        yield item
        if not n % EVERY:
            time.sleep(0)
