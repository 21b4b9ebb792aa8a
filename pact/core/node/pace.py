"""How fast new things below tracked patterns are recorded: for each owner, at a pace that slows down; and for all
owners but root together, because one person may have thousands of user ids.  # U3, S3"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pact.core.node.refusals import Bucket
from pact.limits import TRACKED_AT_ONCE, TRACKED_EACH_S
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
#: All owners but root may have ``ENFORCED_MAX`` together, and one more after each of these times.
ENFORCED_OTHERS_NS: Final = NS_PER_S
#: Beside that, so many of one who has had fewer of late, and of so many owners.
RESERVE: Final = 10
RESERVED_MAX: Final = 64
#: The key of them all, among owners' keys.
OTHERS: Final = "*"
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
    others: Bucket = field(default_factory=lambda: Bucket(TRACKED_AT_ONCE, int(TRACKED_EACH_S * NS_PER_S)))

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
        """When something of this owner may be recorded, as far as only this owner matters."""
        return sum(self.last.get(key, (0, 0)))

    def is_others(self, key: str) -> bool:
        """Whether what waits for this owner is not root's."""
        return key != GONE and self.waiting[next(iter(self.whose[key]))].owner.uid != 0

    def next_ns(self) -> int | None:
        dues = [
            max(self.due_ns(key), self.others.next_ns) if self.is_others(key) else self.due_ns(key)
            for key in self.keys()
        ]
        return min([*dues, *([self.weighed_ns + CROWDED_NS] if self.crowded else [])], default=None)

    def _left(self, key: str, each_ns: int, now_ns: int) -> int:
        return (ENFORCED_MAX * each_ns - max(0, self.spent.get(key, 0) - now_ns)) // each_ns

    def affords(self, owner: Owner, now_ns: int) -> int:
        """How many more things of this owner may become drift now."""
        own = self._left(owner.key, ENFORCED_EACH_NS, now_ns)
        if owner.uid == 0:
            return own
        reserve = RESERVE - (ENFORCED_MAX - own) if len(self.spent) <= RESERVED_MAX else 0
        return min(own, max(self._left(OTHERS, ENFORCED_OTHERS_NS, now_ns), reserve))

    def spend(self, owner: Owner, now_ns: int) -> None:
        """One more thing of this owner has become drift."""
        keys = {owner.key: ENFORCED_EACH_NS, **({} if owner.uid == 0 else {OTHERS: ENFORCED_OTHERS_NS})}
        for key, each_ns in keys.items():
            self.spent[key] = max(self.spent.get(key, 0), now_ns) + each_ns
        if len(self.spent) > RESERVED_MAX:
            self.spent = {k: t for k, t in self.spent.items() if t > now_ns}

    def recorded(self, key: str, now_ns: int) -> None:
        last_ns, pause_ns = self.last.get(key, (0, 0))
        goes_on = pause_ns and now_ns - last_ns < 4 * pause_ns
        self.last[key] = (now_ns, min(2 * pause_ns, PAUSE_MAX_NS) if goes_on else PAUSE_NS)
        if len(self.last) > PACES_MAX:
            self.last = {k: (t, p) for k, (t, p) in self.last.items() if now_ns - t < 4 * p}
