"""A timer wheel over names instead of dense integers."""

from __future__ import annotations

from typing import TypeVar

from pact._fast import TimerWheel

T = TypeVar("T")


class NamedTimers(dict[T, int]):
    """A ``TimerWheel`` whose keys are hashable values: the dictionary has the number of each name that waits. It is one
    because every step asks whether any waits. Numbers are reused, so they stay small and dense. The first ``schedule``
    creates the wheel: a node without drift does not need its 80 KiB.
    """

    def __init__(self, now_ns: int = 0) -> None:
        super().__init__()
        self._now_ns = now_ns
        self._name: list[T | None] = []
        self._free: list[int] = []
        self._wheel: TimerWheel | None = None

    def names(self) -> list[T]:
        return list(self)

    def schedule(self, name: T, deadline_ns: int) -> None:
        """Insert or move a name."""
        wheel = self._wheel
        if wheel is None:
            wheel = self._wheel = TimerWheel(self._now_ns)
        number = self.get(name)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._name[number] = name
            else:
                number = len(self._name)
                self._name.append(name)
            self[name] = number
        wheel.schedule(number, deadline_ns)

    def cancel(self, name: T) -> bool:
        number = self.pop(name, None)
        if number is None or self._wheel is None:
            return False
        self._wheel.cancel(number)
        self._name[number] = None
        self._free.append(number)
        return True

    def advance(self, now_ns: int) -> list[T]:
        """Every name that is due at ``now_ns``, in deadline order. They are removed from the wheel."""
        out: list[T] = []
        if not self or self._wheel is None:
            self._now_ns = now_ns
            return out
        for number in self._wheel.advance(now_ns):
            name = self._name[number]
            assert name is not None
            out.append(name)
            del self[name]
            self._name[number] = None
            self._free.append(number)
        return out

    def next_deadline(self) -> int | None:
        return self._wheel.next_deadline() if self and self._wheel is not None else None

    def deadline(self, name: T) -> int | None:
        number = self.get(name)
        return None if number is None or self._wheel is None else self._wheel.deadline(number)
