"""Resources that moved although nobody wrote them, such as sysctls: a write to another one moved them, or a change of a
network link.

After any write to a sysctl all declared ones are compared with their last observation. That takes about 9 us each, so
it is done for at most a fifth of the time while writes keep coming, and at once for a request. A move is attributed to
the write whose name is most similar; a move by pact's own write or by a link has no owner.  # C8
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Callable, Iterable
from typing import Final

from pact._fast import FileTable
from pact.host.clock import boottime_ns
from pact.model import NS_PER_S, Owner, split_id
from pact.observe.links import LinkChanges
from pact.resources import KINDS
from pact.resources.base import LINKS

#: Links may come and go by the hundred (containers do that): the sysctls that they move are observed this often, and
#: for every request.
LINKS_NS: Final = NS_PER_S // 5
#: How long after a move was seen the event of the write that caused it may come.
LATELY_NS: Final = NS_PER_S // 2
#: Comparing may take one part in this many of the loop's time.
SHARE: Final = 5
#: After more writes than this at once everything is compared.
WRITTEN_MAX: Final = 16
#: Names have parts between dots, or between slashes.
SEPARATOR: Final = re.compile(r"[.:/]")

Write = tuple[str, Owner | None]


class Followers:
    """Finds moved resources. Calls ``touch`` for each: the resource, and the owner of the write that moved it."""

    def __init__(self, table: FileTable, touch: Callable[[str, Owner | None], None]) -> None:
        self._table = table
        self._touch = touch
        self.keys: dict[str, int] = {}  # the declared ones, with their keys in the table
        self._names: dict[int, str] = {}
        self._linked: dict[str, None] = {}  # those that network links move
        self.why_blind = ""
        self._links: LinkChanges | None = None
        self._epoll: select.epoll | None = None
        self._written: list[Write] = []
        self._itself = False  # this process has written one since then
        self._stirred = False  # any process has written one since all were compared
        self._written_due_ns = 0
        self._links_due_ns: int | None = None
        self._links_last_ns = 0
        self._lately: dict[str, int] = {}
        # Resource that is due because another write moved it -> the written resource.
        self._moved_with: dict[str, str] = {}

    def add(self, resource: str, key: int) -> None:
        self.keys[resource], self._names[key] = key, resource
        kind, name = split_id(resource)
        if not KINDS[kind].heeds(LINKS, name):
            return
        self._linked[resource] = None
        if self._links is not None:
            return
        try:
            self._links = LinkChanges()
        except OSError as exc:
            self.why_blind = f"{exc.strerror}: what a link moves is polled"
            return
        if self._epoll is not None:
            self._epoll.register(self._links.fileno(), select.EPOLLIN)

    def drop(self, resource: str) -> None:
        key = self.keys.pop(resource, None)
        if key is not None:
            del self._names[key]
            self._linked.pop(resource, None)
        self._moved_with.pop(resource, None)
        self._lately.pop(resource, None)

    def wake_with(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        if self._links is not None:
            epoll.register(self._links.fileno(), select.EPOLLIN)

    def close(self) -> None:
        if self._links is not None:
            self._links.close()

    # -- what happened ------------------------------------------------------------------------------------------

    def wrote(self, resource: str, owner: Owner | None) -> None:
        """Somebody wrote one that may move others, declared or not."""
        self._written.append((resource, owner))
        self._stirred = True
        self._moved_with.pop(resource, None)

    def wrote_itself(self) -> None:
        """This process wrote one."""
        self._stirred = self._itself = True

    def drain_links(self) -> bool:
        """Returns True if links came, went or moved."""
        moved = self._links is not None and self._links.drain()
        if moved and self._links_due_ns is None:
            self._links_due_ns = self._links_last_ns + LINKS_NS
        return moved

    def seen_moved(self, keys: list[int], wanted: list[Write]) -> None:
        """An observation found that these differ from the last one. It may have come between a write and its event."""
        if not self.keys:
            return
        now_ns = boottime_ns()
        named = {r for r, owner in wanted if owner is not None}
        self._lately.update({r: now_ns for k in keys if (r := self._names.get(k)) is not None and r not in named})

    def cause_of(self, resource: str) -> str:
        """The write that moved the resource, returned once; ``""`` if it was written itself, or the cause is not
        known."""
        return self._moved_with.pop(resource, "") if self._moved_with else ""

    # -- what is due --------------------------------------------------------------------------------------------

    def next_ns(self) -> int | None:
        dues = [self._links_due_ns, self._written_due_ns if self._stirred else None]
        return min((d for d in dues if d is not None), default=None)

    def find(self, now_ns: int, *, everything: bool) -> None:
        """Compare the resources that are due; with ``everything``, all of them."""
        if self._stirred and (everything or self._written_due_ns <= now_ns):
            began = time.monotonic_ns()
            written, self._written, self._stirred = self._written, [], False
            any_of_them, self._itself = self._itself or len(written) > WRITTEN_MAX, False
            self._find(written, self.keys if any_of_them else self._may_have_moved(written))
            self._written_due_ns = now_ns + SHARE * (time.monotonic_ns() - began)
        if self._links_due_ns is not None and (everything or self._links_due_ns <= now_ns):
            self._links_due_ns, self._links_last_ns = None, now_ns
            self._find([], self._linked)

    def _may_have_moved(self, written: list[Write]) -> list[str]:
        sources = [(KINDS[kind], name) for kind, name in {split_id(resource) for resource, _ in written}]
        found: dict[str, None] = {}
        for kind, name in sources:
            moves = kind.moves
            found.update(dict.fromkeys([r for r in self.keys if moves(name, r)]))
        return list(found)

    def _find(self, written: list[Write], concerned: Iterable[str]) -> None:
        keys = [key for resource in concerned if (key := self.keys[resource]) in self._table]
        found = [self._names[key] for key in self._table.scan(keys)] if keys else []
        lately, self._lately = self._lately, {}
        tops = {top_of(resource) for resource, _ in written}
        found += [r for r, t in lately.items() if top_of(r) in tops and boottime_ns() - t < LATELY_NS]
        named = {resource for resource, _ in written}
        for resource in found:
            if resource in named:
                continue
            cause, owner = max(written, key=lambda w: in_common(w[0], resource), default=("", None))
            if cause:
                self._moved_with[resource] = cause
            self._touch(resource, owner)


def top_of(resource: str) -> str:
    """The kind and the first part of a name."""
    return ":".join(SEPARATOR.split(resource, maxsplit=2)[:2])


def in_common(one: str, other: str) -> int:
    """How many leading parts two names share."""
    first, second = SEPARATOR.split(one), SEPARATOR.split(other)
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
