"""Answers that a member keeps, for calls that come again because their answer was lost.  # T6"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")


class Kept(Generic[K]):
    """At most ``most`` answers, with at most ``bytes_max`` bytes in all. Where there is no room, whoever has most of it
    loses his oldest: no person pushes another one's answers out. Of "", who are many, the newest stays in any case.
    # S8
    """

    def __init__(self, most: int, bytes_max: int) -> None:
        self._most, self._bytes_max = most, bytes_max
        self._answers: OrderedDict[K, tuple[bytes, str]] = OrderedDict()
        self._count: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def put(self, call: K, answer: bytes, who: str = "") -> None:
        """``who``: whose call it was."""
        self._drop(call)
        self._answers[call] = answer, who
        self._count[who] += 1
        self._bytes[who] += len(answer)
        while len(self) > self._most or (self._bytes.total() > self._bytes_max and (who or len(self) > 1)):
            of = self._count if len(self) > self._most else self._bytes
            most = max(of.values())
            self._drop(next(k for k, (_, whose) in self._answers.items() if of[whose] == most))

    def _drop(self, call: K) -> None:
        if call in self._answers:
            answer, who = self._answers.pop(call)
            self._count[who] -= 1
            self._bytes[who] -= len(answer)
            if not self._count[who]:
                del self._count[who], self._bytes[who]

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[bytes]:
        return (answer for answer, _ in self._answers.values())

    def get(self, call: K) -> bytes | None:
        found = self._answers.get(call)
        return None if found is None else found[0]
