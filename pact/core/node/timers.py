"""A timer wheel over names instead of dense integers."""

from __future__ import annotations

from functools import cached_property
from typing import Generic, TypeVar

from pact._fast import TimerWheel

T = TypeVar("T")


class NamedTimers(Generic[T]):
    """A ``TimerWheel`` whose keys are hashable values. Numbers are reused, so they stay small and dense. The first
    ``schedule`` creates the wheel: a node without drift does not need its 80 KiB.
    """

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns
        self._number: dict[T, int] = {}
        self._name: list[T | None] = []
        self._free: list[int] = []

    @cached_property
    def _wheel(self) -> TimerWheel:
        return TimerWheel(self._now_ns)

    def __len__(self) -> int:
        return len(self._number)

    def __bool__(self) -> bool:
        return bool(self._number)

    def __contains__(self, name: T) -> bool:
        return name in self._number

    def names(self) -> list[T]:
        return list(self._number)

    def schedule(self, name: T, deadline_ns: int) -> None:
        """Insert or move a name."""
        number = self._number.get(name)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._name[number] = name
            else:
                number = len(self._name)
                self._name.append(name)
            self._number[name] = number
        self._wheel.schedule(number, deadline_ns)

    def cancel(self, name: T) -> bool:
        number = self._number.pop(name, None)
        if number is None:
            return False
        self._wheel.cancel(number)
        self._name[number] = None
        self._free.append(number)
        return True

    def advance(self, now_ns: int) -> list[T]:
        """Every name that is due at ``now_ns``, in deadline order. They are removed from the wheel."""
        out: list[T] = []
        if not self._number:
            self._now_ns = now_ns
            return out
        for number in self._wheel.advance(now_ns):
            name = self._name[number]
            assert name is not None
            out.append(name)
            del self._number[name]
            self._name[number] = None
            self._free.append(number)
        return out

    def next_deadline(self) -> int | None:
        return self._wheel.next_deadline() if self._number else None

    def deadline(self, name: T) -> int | None:
        number = self._number.get(name)
        return None if number is None else self._wheel.deadline(number)
