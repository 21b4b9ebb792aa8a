"""Answers that a member keeps, for calls that come again because their answer was lost.  # T6"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")


class Kept(Generic[K]):
    """The newest ``most`` answers, with at most ``bytes_max`` bytes in all; the newest one in any case."""

    def __init__(self, most: int, bytes_max: int) -> None:
        self._most, self._bytes_max = most, bytes_max
        self._answers: OrderedDict[K, bytes] = OrderedDict()
        self._bytes = 0

    def put(self, call: K, answer: bytes) -> None:
        self._bytes += len(answer) - len(self._answers.pop(call, b""))
        self._answers[call] = answer
        while len(self._answers) > self._most or (self._bytes > self._bytes_max and len(self._answers) > 1):
            self._bytes -= len(self._answers.popitem(last=False)[1])

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._answers.values())

    def get(self, call: K) -> bytes | None:
        return self._answers.get(call)
