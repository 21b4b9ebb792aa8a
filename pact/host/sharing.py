"""The interpreter's lock, shared by a thread that computes for long.

A thread that waits for the lock gets it when its holder waits for the kernel, or after 5 ms. The loop of an agent takes
and gives it several times for one answer: beside a worker that only computes, each costs 5 ms.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

EVERY = 64


def sharing(items: Iterable[T]) -> Iterator[T]:
    """The same items; after every 64th of them other threads have their turn, if they wait for one."""
    for n, item in enumerate(items, 1):
        yield item
        if not n % EVERY:
            time.sleep(0)
