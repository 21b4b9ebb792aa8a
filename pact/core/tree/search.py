"""Which parent a member tries next, and when: in the order that it prefers, round after round, with growing pauses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from pact.core.tree.parents import Parent
from pact.model import NS_PER_S

PATIENCE_NS: Final = 3 * NS_PER_S // 2
PATIENCE_MAX_NS: Final = 12 * NS_PER_S
MOVE_JITTER_NS: Final = NS_PER_S // 2
ROUND_NS: Final = NS_PER_S
ROUND_MAX_NS: Final = 30 * NS_PER_S
DOUBLED_MAX: Final = 8  # how often patience and pauses double


class Random(Protocol):
    def uniform(self, a: float, b: float) -> float: ...


class Search:
    """A round tries each parent of ``order`` once, except those that are to be avoided for some time."""

    def __init__(self, order: Sequence[Parent], rng: Random) -> None:
        self.order = order
        self.next_ns = 0  # not before then
        self._rng = rng
        self._avoid: dict[str, int] = {}
        self._round = 0
        self._left = [p.url for p in order]  # parents that are still to be tried in this round

    @property
    def patience_ns(self) -> int:
        """How long a parent may take to answer a hello: longer in each round."""
        return min(PATIENCE_NS << min(self._round, DOUBLED_MAX), PATIENCE_MAX_NS)

    def avoid(self, url: str, until_ns: int) -> None:
        self._avoid[url] = until_ns

    def next(self, t_ns: int) -> Parent | None:
        """The parent to try now; ``None`` if the round has ended."""
        known = {p.url: p for p in self.order}
        while self._left:
            url = self._left.pop(0)
            if self._avoid.get(url, 0) <= t_ns:
                return known[url]
        self._end_round(t_ns)
        return None

    def failed(self, t_ns: int) -> None:
        """The parent that was tried did not welcome this child: try the next one soon."""
        if self._left:
            self.next_ns = t_ns + int(self._rng.uniform(0, NS_PER_S // 10))
        else:
            self._end_round(t_ns)

    def _end_round(self, t_ns: int) -> None:
        """No parent has welcomed this child: try all again after a pause, which grows."""
        self._left = [p.url for p in self.order]
        pause_ns = min(ROUND_NS << min(self._round, DOUBLED_MAX), ROUND_MAX_NS)
        self._round += 1
        self.next_ns = t_ns + int(pause_ns * self._rng.uniform(0.5, 1.0))
        soonest = min(self._avoid.get(url, 0) for url in self._left)
        self.next_ns = max(self.next_ns, soonest)

    def found(self) -> None:
        """A parent has welcomed this child: the next search begins anew."""
        self._round, self._left = 0, [p.url for p in self.order]

    def lost(self, url: str, t_ns: int) -> None:
        """The parent that was found is lost: try the others after a random time."""
        self._round = 0
        self._left = [p.url for p in self.order if p.url != url] or [url]
        self.next_ns = t_ns + int(self._rng.uniform(0, MOVE_JITTER_NS))

    def better(self, url: str, t_ns: int) -> Parent | None:
        """The first parent that comes before this one and need not be avoided."""
        self._round = 0
        for parent in self.order:
            if parent.url == url:
                break
            if self._avoid.get(parent.url, 0) <= t_ns:
                return parent
        return None
