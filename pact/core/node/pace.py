"""How fast what is new below tracked patterns is recorded: for each owner at a pace that slackens.  # U3"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pact.model import NS_PER_S, Attrs, Owner

#: Enforced things that are drift at the same time; beyond it they are only reported.
ENFORCED_MAX: Final = 1_000
#: Names in one record, and of one owner at one time.
AT_ONCE_MAX: Final = 1_000
AT_LAST_MAX: Final = 100  # where it goes on and on
#: One owner's next record comes at the soonest so long after his last one, and later and later while it goes on.
PAUSE_NS: Final = NS_PER_S // 2
PAUSE_LONG_NS: Final = 8 * NS_PER_S
PAUSE_MAX_NS: Final = 30 * NS_PER_S
PACES_MAX: Final = 1_000
#: So many things of one owner become drift for being new, one more after each of these times.
ENFORCED_EACH_NS: Final = 3 * NS_PER_S
#: What waits for room to be enforced is weighed again so often.
CROWDED_NS: Final = 15 * NS_PER_S
#: The key under which departures are paced: nobody's.
GONE: Final = ""


@dataclass(slots=True)
class Untracked:
    """One untracked thing: who made it, when it was first seen, and what it is, in short."""

    owner: Owner
    seen: str
    actual: Attrs


@dataclass(slots=True)
class Pace:
    """What waits to be recorded, and until when. Ephemeral: a restart finds it again by looking."""

    waiting: dict[str, Untracked] = field(default_factory=dict)
    whose: dict[str, dict[str, None]] = field(default_factory=dict)  # owner -> what waits of his
    leaving: dict[str, None] = field(default_factory=dict)
    last: dict[str, tuple[int, int]] = field(default_factory=dict)  # owner -> (recorded at, pause after it)
    beyond: dict[str, int] = field(default_factory=dict)  # not kept one by one -> how many in a directory
    folded: tuple[Any, list[Any]] = ((), [])  # the places that were told last, and what they were made of
    spent: dict[str, int] = field(default_factory=dict)  # owner -> when all of his enforced things are paid for
    weighed_ns: int = 0
    crowded: bool = False  # something is to be enforced, and waits until there is room

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
        """How many names of this owner's may be recorded at one time."""
        return AT_ONCE_MAX if self.last.get(key, (0, 0))[1] < PAUSE_LONG_NS else AT_LAST_MAX

    def due_ns(self, key: str) -> int:
        return sum(self.last.get(key, (0, 0)))

    def next_ns(self) -> int | None:
        dues = [*map(self.due_ns, self.keys()), *([self.weighed_ns + CROWDED_NS] if self.crowded else [])]
        return min(dues, default=None)

    def affords(self, key: str, now_ns: int) -> int:
        """How many more of this owner's things may become drift now."""
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
