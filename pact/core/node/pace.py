"""How fast new things below tracked patterns are recorded: for each owner, at a pace that slows down.  # U3"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pact.model import NS_PER_S, Attrs, Owner

#: How many enforced things may be drift at the same time; further ones are only reported.
ENFORCED_MAX: Final = 1_000
#: How many names one record may have, and one owner may have recorded at one time.
AT_ONCE_MAX: Final = 1_000
AT_LAST_MAX: Final = 100  # the same for an owner whose new things keep coming
#: The shortest pause between two records of one owner. The pause grows while new things keep coming.
PAUSE_NS: Final = NS_PER_S // 2
PAUSE_LONG_NS: Final = 8 * NS_PER_S
PAUSE_MAX_NS: Final = 30 * NS_PER_S
PACES_MAX: Final = 1_000
#: One owner may have ``ENFORCED_MAX`` new things turned into drift, and one more after each of these times.
ENFORCED_EACH_NS: Final = 3 * NS_PER_S
#: How often things that wait for room to be enforced are considered again.
CROWDED_NS: Final = 15 * NS_PER_S
#: The key for the pace of departures, which have no owner.
GONE: Final = ""


@dataclass(slots=True)
class Untracked:
    """One untracked thing: its owner, when it was first seen, and a short description."""

    owner: Owner
    seen: str
    actual: Attrs


@dataclass(slots=True)
class Pace:
    """What waits to be recorded, and until when. Ephemeral: after a restart the agent finds it again by observing."""

    waiting: dict[str, Untracked] = field(default_factory=dict)
    whose: dict[str, dict[str, None]] = field(default_factory=dict)  # owner -> things of this owner that wait
    leaving: dict[str, None] = field(default_factory=dict)
    last: dict[str, tuple[int, int]] = field(default_factory=dict)  # owner -> (recorded at, pause after it)
    beyond: dict[str, int] = field(default_factory=dict)  # directory -> how many things in it are not kept one by one
    # Cache: the last reported places, and the key from which they were computed.
    folded: tuple[Any, list[Any]] = ((), [])
    # Owner -> when the allowance for all enforced things is restored.
    spent: dict[str, int] = field(default_factory=dict)
    weighed_ns: int = 0
    crowded: bool = False  # a thing is to be enforced, and waits for room

    def __bool__(self) -> bool:
        return bool(self.waiting or self.leaving or self.crowded)

    def put(self, resource: str, untracked: Untracked) -> None:
        self.drop(resource)
        self.waiting[resource] = untracked
        self.whose.setdefault(untracked.owner.key, {})[resource] = None

    def drop(self, resource: str) -> None:
        before = self.waiting.pop(resource, None)
        if before is not None:
            key = before.owner.key
            del self.whose[key][resource]
            if not self.whose[key]:
                del self.whose[key]

    def keys(self) -> list[str]:
        return [*self.whose, *([GONE] if self.leaving else [])]

    def most(self, key: str) -> int:
        """How many names of this owner may be recorded at one time."""
        return AT_ONCE_MAX if self.last.get(key, (0, 0))[1] < PAUSE_LONG_NS else AT_LAST_MAX

    def due_ns(self, key: str) -> int:
        return sum(self.last.get(key, (0, 0)))

    def next_ns(self) -> int | None:
        dues = [*map(self.due_ns, self.keys()), *([self.weighed_ns + CROWDED_NS] if self.crowded else [])]
        return min(dues, default=None)

    def affords(self, key: str, now_ns: int) -> int:
        """How many more things of this owner may become drift now."""
        return (ENFORCED_MAX * ENFORCED_EACH_NS - max(0, self.spent.get(key, 0) - now_ns)) // ENFORCED_EACH_NS

    def spend(self, key: str, count: int, now_ns: int) -> None:
        self.spent[key] = max(self.spent.get(key, 0), now_ns) + count * ENFORCED_EACH_NS
        if len(self.spent) > PACES_MAX:
            self.spent = {k: t for k, t in self.spent.items() if t > now_ns}

    def recorded(self, key: str, now_ns: int) -> None:
        last_ns, pause_ns = self.last.get(key, (0, 0))
        goes_on = pause_ns and now_ns - last_ns < 4 * pause_ns
        self.last[key] = (now_ns, min(2 * pause_ns, PAUSE_MAX_NS) if goes_on else PAUSE_NS)
        if len(self.last) > PACES_MAX:
            self.last = {k: (t, p) for k, (t, p) in self.last.items() if now_ns - t < 4 * p}
