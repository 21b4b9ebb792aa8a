"""Commit windows: the formula, and the notice that is given before they become shorter.  # A3

One ``W`` is in force for the whole node. A window opened at ``t0`` ends at the first moment ``t >= t0 + extensions +
Weff(t)``, where ``Weff(t)`` is the largest ``W`` in force during the last ``floor``. So more drift shortens every
window, but only ``floor`` later, and settling drift lengthens them at once.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Final

from pact._fast import window_ns
from pact.core.settings import BILLION
from pact.model import Json

#: ``weight_n * deviation_n**2`` sums are in units of 1e-27.
SUM_SCALE: Final = BILLION**3

#: How many steps are remembered within one ``floor``. Beyond that, neighbours merge and the larger ``W`` lasts longer:
#: more notice.
HISTORY_MAX: Final = 4096


def square(weight_n: int, deviation_n: int) -> int:
    """One term of the norm's sum, exactly: ``weight * deviation**2`` in units of 1e-27."""
    return weight_n * deviation_n * deviation_n


def magnitude(sum_n: int) -> float:
    """``sqrt`` of an exact sum of ``square`` terms. The sum is an integer, so order and history do not matter.  # A2"""
    assert sum_n >= 0
    return math.sqrt(sum_n / SUM_SCALE)


def window(sum_n: int, base_ns: int, sensitivity_n: int) -> int:
    """``base / (1 + magnitude * sensitivity)`` in nanoseconds.  # A3"""
    return window_ns(magnitude(sum_n), base_ns, sensitivity_n / BILLION)


class Windows:
    """The ``W`` in force, and the larger ones that still give notice.

    ``past`` holds ``(W, until_ns)`` with strictly falling ``W`` and rising ``until_ns``: a smaller, older ``W`` can
    never again be the largest of a sliding interval. An intermediate ``W`` between several records of one moment was
    never in force: it neither gives notice nor takes any away.
    """

    __slots__ = ("_ended", "_since_ns", "floor_ns", "now_w", "past")

    def __init__(self, floor_ns: int, w_ns: int) -> None:
        self.floor_ns = floor_ns
        self.now_w = w_ns
        self._since_ns = -1
        self.past: list[tuple[int, int]] = []
        # The last answer of ``end``, with what was asked: every step asks for the first window that ends.
        self._ended: tuple[int, int, int] | None = None

    def note(self, now_ns: int, w_ns: int) -> None:
        """``w_ns`` is in force from ``now_ns`` on."""
        past, over = self.past, 0
        while over < len(past) and past[over][1] <= now_ns - self.floor_ns:
            over += 1
        if over:
            del past[:over]
            self._ended = None
        if w_ns == self.now_w:
            return
        self._ended = None
        if now_ns > self._since_ns:
            while self.past and self.past[-1][0] <= self.now_w:
                self.past.pop()
            self.past.append((self.now_w, now_ns))
            if len(self.past) > HISTORY_MAX:
                self.past[:2] = [(self.past[0][0], self.past[1][1])]
            self._since_ns = now_ns
        self.now_w = w_ns

    def before(self, now_ns: int) -> int:
        """The ``W`` that was in force until this moment: whatever comes now, it counts for ``floor`` longer.  # W2"""
        past = self.past
        return past[-1][0] if past and past[-1][1] == now_ns else self.now_w

    def effective(self, now_ns: int) -> int:
        """The largest ``W`` in force during the last ``floor``.  # W2"""
        for w_ns, until_ns in self.past:
            if until_ns > now_ns - self.floor_ns:
                return max(w_ns, self.now_w)
        return self.now_w

    def end(self, opening_ns: int) -> int:
        """When a window with this opening time (extensions included) ends if nothing else happens.  # W1

        Each larger ``W`` counts until ``floor`` after it was in force. They fall and their ends rise, so the first one
        under which the window would end before it stops to count is found by bisection.
        """
        past, known = self.past, self._ended
        if not past:
            return opening_ns + self.now_w
        if known is not None and known[0] == opening_ns and known[1] == self.floor_ns:
            return known[2]
        larger = bisect_left(past, -self.now_w, key=lambda p: -p[0])
        at = bisect_left(past, True, 0, larger, key=lambda p: opening_ns + p[0] < p[1] + self.floor_ns)
        ends_ns = opening_ns + (past[at][0] if at < larger else self.now_w)
        if at:
            ends_ns = max(past[at - 1][1] + self.floor_ns, ends_ns)
        self._ended = opening_ns, self.floor_ns, ends_ns
        return ends_ns

    def to_json(self) -> Json:
        return {"now": self.now_w, "since_ns": self._since_ns, "past": [list(p) for p in self.past]}

    def load(self, data: Json) -> None:
        self.now_w, self._since_ns, self._ended = data["now"], data["since_ns"], None
        self.past = [(w, until) for w, until in data["past"]]
