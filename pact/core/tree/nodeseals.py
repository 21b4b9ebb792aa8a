"""Seals on the node's side: which words of a root count here, and for how long.  # T14"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pact.core.tree.checks import BY_TIME, HOLDS_BY_TIME
from pact.core.tree.seals import (
    HASH_CHARS,
    SEAL_CHARS,
    STEP_NS,
    Key,
    age_bytes,
    bound_to,
    dated,
    fits,
    for_each,
    of_ack,
    of_answer,
    of_call,
    of_events,
    of_fleet,
    of_hello,
    seal,
    start_bytes,
    text,
)
from pact.core.tree.wire import Head
from pact.model import NS_PER_S

if TYPE_CHECKING:
    from pact.core.tree.outbox import Up

TERMS_MAX: Final = 64
SEEN_MAX: Final = 8_000  # fewer than the once-only calls that an agent remembers
SEEN_NS: Final = 3_660 * NS_PER_S  # longer than any question stays open
#: So often a node says hello again, under a new session: what was sealed for an earlier one no longer counts after
#: ``GRACE_NS``, in which the root hears of the new one. What is held back longer than both together is refused.
RENEW_NS: Final = 600 * NS_PER_S
GRACE_NS: Final = 300 * NS_PER_S
SPOKEN_MAX: Final = 64
LATE_STEPS: Final = 3  # older than so many steps, and the one that has begun: nobody waits for it, it is not done
AHEAD_STEPS: Final = 12  # a paused machine's clock stands still
#: A word that fits none of the likely steps is compared with all that there may be, so often in a second: each costs a
#: hash, and whoever carries words may send any number that fit nothing.
SEARCHES_PER_S: Final = 20
STEPS_MAX: Final = (RENEW_NS + GRACE_NS) // STEP_NS + 1
#: A root that has just begun knows no hello's time, only its own: for so long the node's sessions of before count as
#: they are, and it says hello anew.
NEW_ROOT_NS: Final = 60 * NS_PER_S
#: Not all nodes at once: within so long.
SPREAD_NS: Final = 20 * NS_PER_S
#: After a word that was late, or seemed so, the node says hello anew, so often at most.
HASTE_NS: Final = 60 * NS_PER_S


class Word(NamedTuple):
    """What the root has sealed for this node. ``late_s``: it was held back for at least so long; 0: it was
    not."""

    key: Key
    late_s: int


class NodeSeals:
    """``keys``: for each root that may lead, its key's id and the key shared with it. ``required``: messages without a
    seal do not count. ``session``: any of this start of the agent. The owner keeps ``t_ns`` up to date.
    """

    def __init__(self, keys: Mapping[str, Key], session: int, *, required: bool) -> None:
        self.keys = dict(keys)
        self.required = required
        self._start = start_bytes(session)
        self._spoken: deque[tuple[int, int]] = deque(maxlen=SPOKEN_MAX)  # each session, and when its hello was made
        self._by_session = False  # the present root seals for sessions: what is sealed for the start alone is old
        self.t_ns = 0
        self._term: tuple[int, str] = (-1, "")  # fence and term of the latest root
        self._key: Key = b""  # shared with that root
        self._past: dict[tuple[int, str], None] = {}
        self._seen: dict[str, int] = {}  # calls of this term -> when each first came
        self._floor = 0  # calls of this term up to this number were forgotten
        self._followed_ns = -NEW_ROOT_NS  # since when the present root is followed, if it is not the first
        self._hello_ns: int | None = None  # when the next hello is due, if that is sooner
        self._searched = (0, 0)  # a second, and how often a word was compared with each step in it

    def spoke(self, session: int) -> None:
        """A hello is made, now. The sessions before it end after a while."""
        self._spoken.append((session, self.t_ns))
        self._hello_ns = None

    def renew_ns(self) -> int | None:
        """When the next hello is due, if there was any."""
        if not self._spoken:
            return None
        due_ns = self._spoken[-1][1] + RENEW_NS
        return due_ns if self._hello_ns is None else min(due_ns, self._hello_ns)

    def _sessions(self) -> Iterator[tuple[int, int]]:
        """The sessions that count now, and when each hello was made, the newest first."""
        following_ns = self.t_ns
        for session, spoken_ns in reversed(self._spoken):
            if following_ns + GRACE_NS < self.t_ns:
                break
            yield session, spoken_ns
            following_ns = spoken_ns

    def _bounds(self, term: tuple[int, str]) -> Iterator[bytes]:
        """What a seal for this node may be bound to now, the newest session first."""
        yield from (bound_to(session) for session, _ in self._sessions())
        if not self._by_session or term != self._term:
            yield self._start

    def _steps(self, spoken_ns: int) -> Iterator[int]:
        """Each time that a dated word of this session may be sealed with, the likeliest first."""
        now = (self.t_ns - spoken_ns) // STEP_NS
        yield now
        yield now + 1
        yield from range(now - 1, max(-1, now - LATE_STEPS - 1), -1)
        if not self._may_search():
            return
        yield from range(now + 2, now + AHEAD_STEPS + 1)
        yield from range(now - LATE_STEPS - 1, max(-1, now - STEPS_MAX), -1)

    def _may_search(self) -> bool:
        second = self.t_ns // NS_PER_S
        if second != self._searched[0]:
            self._searched = second, 0
        self._searched = second, self._searched[1] + 1
        return self._searched[1] <= SEARCHES_PER_S

    def _late_s(self, spoken_ns: int, step: int) -> int:
        """For how many seconds a word was held back that was sealed at this time."""
        now = (self.t_ns - spoken_ns) // STEP_NS
        if now - step <= LATE_STEPS or (spoken_ns < self._followed_ns and self.t_ns < self._followed_ns + NEW_ROOT_NS):
            return 0
        return (now - step) * STEP_NS // NS_PER_S

    def proof(self, session: int, incarnation: str, seq: int, wall_ns: int) -> str:
        """For a hello: proves that it is the node's own word, for this connection."""
        return for_each(self.keys, of_hello(session, incarnation, seq, wall_ns))

    def events(self, row: Sequence[Any], lines: bytes) -> str:
        """For a batch of records. Whichever root leads when it arrives can check it."""
        return for_each(self.keys, of_events(row, lines))

    def answer(self, key: Key, term: str, call: str, body: bytes) -> str:
        return text(seal(key, of_answer(term, call, body)))

    def caller(self, head: Head, said: str, body: bytes | memoryview, t_ns: int) -> Word | None:
        """The root that sealed this call for this session of this node; else None. A root repeats a call for an hour at
        most; an older call does not count.
        """
        self.t_ns = max(self.t_ns, t_ns)
        what, fence, term = of_call(head, body), head["fence"], head["term"]
        word = self._dated(BY_TIME, what, fence, term, said) if dated(head) else None
        if word is None:
            word = self._for_me(what, fence, term, said)
        return word if word is not None and self._fresh(head["call"], t_ns) else None

    def _dated(self, by: int, what: bytes, fence: int, term: str, said: str) -> Word | None:
        """A person's word or a table of holds (``by``: the bit of sessions for which it is dated), and how old it is.
        Roots of the last version seal it without a time."""
        for session, spoken_ns in self._sessions() if len(said) == SEAL_CHARS else ():
            if not session & by:
                continue
            bound = what + bound_to(session)
            for step in self._steps(spoken_ns):
                key = self._of(bound + age_bytes(step), fence, term, said)
                if key is not None:
                    self._by_session = True
                    late_s = self._late_s(spoken_ns, step)
                    if late_s:
                        self._hello_ns = max(self.t_ns, self._spoken[-1][1] + HASTE_NS)
                    return Word(key, late_s)
        return None

    def _fresh(self, call: str, t_ns: int) -> bool:
        seen = self._seen
        while seen and (len(seen) > SEEN_MAX or seen[next(iter(seen))] + SEEN_NS < t_ns):
            oldest = next(iter(seen))
            self._floor = max(self._floor, _count(oldest))
            del seen[oldest]
        if call in seen:
            return True
        if _count(call) <= self._floor:
            return False
        seen[call] = t_ns
        return True

    def sealed(self, up: Up) -> Up:
        """Records on their way up, sealed for every root that they may reach."""
        if up.kind != "events":
            return up
        return up._replace(head={**up.head, "seals": [self.events(up.head["batches"][0], up.body)]})

    def acked(self, fence: int, term: str, cursor: Sequence[Any], said: str) -> bool:
        """Whether the root that leads, as far as this node knows, sealed this acknowledgement."""
        return self._of(of_ack(fence, term, cursor), fence, term, said) is not None

    def hashed(self, fence: int, term: str, cursor: Sequence[Any], said: str) -> str:
        """The hash that the root has sealed with this acknowledgement; "" if it has not."""
        hash_ = said[:HASH_CHARS]
        what = of_ack(fence, term, [*cursor, hash_])
        return hash_ if self._of(what, fence, term, said[HASH_CHARS:]) is not None else ""

    def told(self, fleet: Head, term: str, said: str) -> Word | None:
        """The root's table of holds, if it was sealed for a session of this node."""
        what, fence = of_fleet(term, fleet), fleet["fence"]
        return self._dated(HOLDS_BY_TIME, what, fence, term, said) or self._for_me(what, fence, term, said)

    def _for_me(self, what: bytes, fence: int, term: str, said: str) -> Word | None:
        for bound in self._bounds((fence, term)):
            key = self._of(what + bound, fence, term, said)
            if key is not None:
                self._by_session |= bound != self._start
                return Word(key, 0)
        return None

    def _of(self, what: bytes, fence: int, term: str, said: str) -> Key | None:
        """The key with which ``what`` was sealed. Nothing that a replaced root sends counts."""
        this = (fence, term)
        if len(said) != SEAL_CHARS or this in self._past:
            return None
        if this == self._term:
            return self._key if fits(self._key, what, said) else None
        for key in self.keys.values():
            if fits(key, what, said):
                if fence < self._term[0]:
                    return None
                self._follow(this, key)
                return key
        return None

    def _follow(self, term: tuple[int, str], key: Key) -> None:
        if self._term[0] >= 0:
            self._followed_ns = self.t_ns
            self._hello_ns = self.t_ns + int.from_bytes(self._start, "big") % SPREAD_NS  # a start is a random number
            self._past[self._term] = None
            if len(self._past) > TERMS_MAX:
                del self._past[next(iter(self._past))]
        self._term, self._key = term, key
        self._seen, self._floor = {}, 0
        self._by_session = False


def _count(call: str) -> int:
    """The number of a call in its term; call ids have the form ``FENCE.N``."""
    digits = call.rpartition(".")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else 0
