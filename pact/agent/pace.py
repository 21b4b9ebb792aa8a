"""When a resource that was touched is looked at, and so recorded, if it keeps moving.

A resource whose drift was just recorded is observed again half a second later at the soonest, and later and later while
it keeps moving. Beside that, what others than root may move has one account for all of them together: so many records
at once, then a few a second. What has no place in it waits for its turn; its last state is always recorded. Root alone
moves what is his whenever he likes.  # S3, F18
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pact.core.node.refusals import Bucket
from pact.core.node.state import State
from pact.limits import (
    MOVING_AT_ONCE,
    MOVING_BYTES,
    MOVING_EACH,
    MOVING_EACH_S,
    MOVING_OWNERS_MAX,
    MOVING_PER_S,
    MOVING_S,
)
from pact.model import NS_PER_S, Attrs, Owner

AGAIN_NS: Final = NS_PER_S // 2
AGAIN_MAX_NS: Final = 30 * NS_PER_S
RECORDED_MAX: Final = 10_000
EACH_NS: Final = NS_PER_S // MOVING_PER_S
AT_ONCE_NS: Final = MOVING_AT_ONCE * EACH_NS
LATEST_NS: Final = int(MOVING_S * NS_PER_S)


def is_others(attrs: Attrs | None, owner: Owner | None = None, before: str = "") -> bool:
    """Whether somebody beside root may move it as it is now. If it is not there: ``owner`` has removed it, and
    ``before`` it was in these hands. Who uses sudo is root with another's name."""
    return (owner is None or owner.uid != 0) and bool(before) if attrs is None else bool(hands(attrs))


def hands(attrs: Attrs | None) -> str:
    """Who beside root may move what is so; ``""``: nobody. What has no owner (a sysctl, a mount) root alone moves."""
    owner, mode = (attrs or {}).get("owner", ""), (attrs or {}).get("mode", "")
    writable = isinstance(mode, str) and mode.isdigit() and bool(int(mode, 8) & 0o022)
    return str(owner) if owner not in ("root", "0") else "anybody" if writable else ""


def whose(state: State, resource: str) -> str:
    """Who beside root may move a resource as it is declared, or as it was seen last; ``""``: nobody."""
    declared, change = state.declared(resource), state.change_of(resource)
    seen = change.members[resource].actual if change is not None else None
    return hands(seen) or hands(declared.attrs if declared is not None else None)


def length(attrs: Attrs | None) -> int:
    """About how long the attributes are in a record."""
    values = [v for each in (attrs or {}).values() for v in (each.values() if isinstance(each, dict) else (each,))]
    return sum(len(v) for v in values if isinstance(v, str))


class Pace:
    """``whose`` says whose hands a resource is in, as it is declared or was seen last; ``""``: root alone moves it."""

    def __init__(self, whose: Callable[[str], str] = lambda _: "?") -> None:
        self.whose = whose
        self._recorded: dict[str, tuple[int, int]] = {}  # resource -> (recorded at, pause after it)
        self._others: dict[str, int] = {}  # those that others have moved -> for how many records each counts
        self._spent_ns = 0  # the account: until when the records that were made are too many
        self._turns: dict[str, int] = {}  # those that wait for their turn
        self._turn_ns = 0  # the last one's
        self._own: dict[str, Bucket] = {}  # by person: a few records beside the account
        self._tidied_ns = 0

    def recorded(self, resource: str, now_ns: int, size: int = 0, *, theirs: bool = True) -> None:
        """It was just journaled. ``size``: of what was recorded; what is long counts as several. ``theirs``: others
        than root may have moved it."""
        last_ns, pause_ns = self._recorded.get(resource, (0, 0))
        soon = pause_ns and now_ns - last_ns < 4 * pause_ns
        self._recorded[resource] = now_ns, min(2 * pause_ns, AGAIN_MAX_NS) if soon else AGAIN_NS
        self._others.pop(resource, None)
        if theirs:
            self._others[resource] = weight = 1 + size // MOVING_BYTES
            self._spend(weight, now_ns)
        if now_ns >= self._tidied_ns and len(self._recorded) > RECORDED_MAX:
            self._tidied_ns = now_ns + NS_PER_S
            self._recorded = {r: (t, p) for r, (t, p) in self._recorded.items() if now_ns - t < 4 * p}

    def cleared(self, resource: str, now_ns: int) -> None:
        """It was journaled that it conforms again."""
        if resource in self._others or self.whose(resource):
            self._spend(1, now_ns)

    def _spend(self, weight: int, now_ns: int) -> None:
        spent_ns = max(self._spent_ns, now_ns) + weight * EACH_NS
        self._spent_ns = min(spent_ns, now_ns + AT_ONCE_NS + LATEST_NS)

    def has_room(self, now_ns: int) -> bool:
        """Whether the account has a place for one more record."""
        return self._spent_ns <= now_ns + AT_ONCE_NS

    def due_ns(self, resource: str, owner: Owner | None, now_ns: int) -> int:
        """When to look at it. It was touched now, or its turn has come."""
        again_ns = sum(self._recorded.get(resource, (0, 0)))
        if owner is not None and owner.uid == 0:  # what root does waits for nobody
            self.forget(resource)
            return again_ns
        turn_ns = self._turns.get(resource, 0)
        if turn_ns:
            if turn_ns <= now_ns:
                self.forget(resource)
            return max(again_ns, turn_ns)
        if again_ns > now_ns or self.has_room(now_ns):
            return again_ns
        whose = self.whose(resource)
        if (resource not in self._others and not whose) or self._has_own(owner, whose, now_ns):
            return again_ns
        # The turns come as often as the account allows.
        first_ns = max(self._turn_ns, self._spent_ns - AT_ONCE_NS, now_ns)
        self._turn_ns = min(first_ns + self._others.get(resource, 1) * EACH_NS, now_ns + LATEST_NS)
        self._turns[resource] = self._turn_ns
        return self._turn_ns

    def overtakes(self, resource: str, owner: Owner | None) -> bool:
        """Whether root has written what waits for its turn among what others move: that waits no longer."""
        return owner is not None and owner.uid == 0 and resource in self._turns

    def forget(self, resource: str) -> None:
        """It is looked at now."""
        self._turns.pop(resource, None)
        if not self._turns:
            self._turn_ns = 0

    def drop(self, resource: str) -> None:
        """It is declared no more."""
        self.forget(resource)
        self._others.pop(resource, None)

    def _has_own(self, owner: Owner | None, whose: str, now_ns: int) -> bool:
        """Whether this person has moved little of late: nobody waits for what others keep in motion."""
        key = whose if owner is None or owner.uid is None else f"uid:{owner.uid}"
        if key not in self._own:
            if len(self._own) >= MOVING_OWNERS_MAX:
                whole_ns = MOVING_EACH * int(MOVING_EACH_S * NS_PER_S)
                self._own = {k: b for k, b in self._own.items() if b.next_ns > now_ns - whole_ns}
            if len(self._own) >= MOVING_OWNERS_MAX:
                return False
            self._own[key] = Bucket(MOVING_EACH, int(MOVING_EACH_S * NS_PER_S))
        return self._own[key].admit(now_ns)
