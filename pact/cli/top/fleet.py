"""What is known of the fleet. The root folds the records of all nodes (``pact.core.root.sight``) and tells what it
tells the web page; here that is kept. Pure.

Work is proportional to what is not as it should be: of the other nodes only the number is kept up to date.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

RECORDS_MAX: Final = 200
ROOT: Final = "_root"  # in records


class Told(NamedTuple):
    """A node, as the root tells it."""

    rack: str
    state: str
    held: str = ""
    changes: tuple[Any, ...] = ()
    more: int = 0
    sessions: tuple[Any, ...] = ()

    @property
    def busy(self) -> bool:
        return bool(self.held or self.changes or self.sessions)


class Said(NamedTuple):
    """A record, as the root tells it. ``ms``: the node's clock."""

    gseq: int
    ms: int
    node: str
    type: str
    user: str
    text: str


def told(raw: Any) -> Told:
    """Raises TypeError, ValueError or LookupError for what is none."""
    beyond: tuple[Any, ...] = ("", (), 0, ())
    rack, state = raw[:2]
    rest = tuple(raw[2:])
    held, changes, more, sessions = (*rest, *beyond[len(rest) :])
    for _, _, _, ends_ms, count, _, _, _ in changes:
        if not isinstance(ends_ms, int | None) or not isinstance(count, int):
            raise TypeError("no change")
    if any(len(s) != 3 for s in sessions):
        raise TypeError("no session")
    return Told(str(rack), str(state), str(held), tuple(changes), int(more), tuple(sessions))


class Fleet:
    """``take`` messages of the root in their order. ``version`` grows when something may look different."""

    def __init__(self, wanted: Collection[str] | None = None, cluster: str = "") -> None:
        """``wanted``: the nodes that are shown; ``None``: all."""
        self.wanted = wanted
        self.filter: Callable[[str], bool] | None = None
        self.filter_text = ""
        self.about: dict[str, Any] = {"cluster": cluster}
        self.you: dict[str, Any] = {}
        self.groups: list[Mapping[str, Any]] = []
        self.holds: list[Mapping[str, Any]] = []
        self.nodes: dict[str, Told] = {}
        self.busy: dict[str, Told] = {}
        self.counts: Counter[str] = Counter()
        self.records: deque[Said] = deque(maxlen=RECORDS_MAX)
        self.offset_ms = 0  # the root's clock minus ours
        self.known = False
        self.trouble = ""
        self.since_s = 0.0
        self.version = 0
        self.touched: set[str] = set()  # nodes that have changed since somebody last cleared it
        self._n = -1
        self._whole = True  # nothing that was said makes no sense

    # -- what comes -------------------------------------------------------------------------------------------------

    def take(self, message: Mapping[str, Any], now_ms: int) -> bool:
        """Take one in. False: one before it is missing, so that it was not taken. Raises TypeError, ValueError,
        LookupError or AttributeError for nonsense: then a part of it may be taken in, and what is known is not all,
        until everything is told anew."""
        try:
            return self._take(message, now_ms)
        except Exception:
            self._whole = False
            raise

    def _take(self, message: Mapping[str, Any], now_ms: int) -> bool:
        kind, n = message["kind"], message["n"]
        self.version += 1
        if kind == "you":
            self.you = {"user": str(message["user"]), "role": str(message["role"])}
            return True
        if kind == "whole":
            self._begin()
            self._n, self._whole = n, True
        elif kind == "news":
            if n != self._n + 1:
                return False
            self._n = n
        elif n != self._n:
            return False
        if "now" in message:
            self.offset_ms = message["now"] - now_ms
        self.about.update(message.get("about") or {})
        self.groups = list(message.get("groups", self.groups))
        self.holds = list(message.get("holds", self.holds))
        for rack, states in (message.get("plain") or {}).items():
            for state, names in states.items():
                row = Told(str(rack), str(state))
                for name in names:
                    self._put(name, row)
        for name, raw in (message.get("set") or {}).items():
            self._put(name, told(raw))
        for name in message.get("gone") or ():
            self._drop(name)
        for record in message.get("records") or ():
            gseq, ms, node, type_, user, text = record
            if self.wanted is None or node in self.wanted or node == ROOT:
                self.records.appendleft(Said(int(gseq), int(ms), str(node), str(type_), str(user), str(text)))
                self.touched.add(node)
        self.known = True
        if self._whole:
            self.trouble = ""
        return True

    def _begin(self) -> None:
        self.touched.update(self.nodes)
        self.nodes, self.busy = {}, {}
        self.counts.clear()
        self.records.clear()

    def _put(self, name: str, row: Told) -> None:
        if self.wanted is not None and name not in self.wanted:
            return
        self._drop(name)
        self.nodes[name] = row
        self.counts[row.state] += 1
        if row.busy:
            self.busy[name] = row

    def _drop(self, name: str) -> None:
        before = self.nodes.pop(name, None)
        self.touched.add(name)
        if before is not None:
            self.busy.pop(name, None)
            self.counts[before.state] -= 1
            if not self.counts[before.state]:
                del self.counts[before.state]

    def lost(self, why: str, now_s: float) -> None:
        self.version += 1
        if not self.trouble:
            self.since_s = now_s
        self.trouble = why

    def narrow(self, text: str, test: Callable[[str], bool] | None) -> None:
        """Show only these nodes; ``None``: all."""
        self.filter_text, self.filter = text, test
        self.version += 1

    # -- what is known ----------------------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        return str(self.you.get("role", ""))

    @property
    def user(self) -> str:
        return str(self.you.get("user", ""))

    @property
    def missing(self) -> list[str]:
        """Nodes that were asked for and that the root does not know."""
        return sorted(n for n in self.wanted if n not in self.nodes) if self.wanted is not None and self.known else []

    def shown_busy(self) -> Iterable[tuple[str, Told]]:
        test = self.filter
        return self.busy.items() if test is None else ((n, t) for n, t in self.busy.items() if test(n))

    def shown_counts(self) -> Counter[str]:
        if self.filter is None:
            return self.counts
        return Counter(t.state for n, t in self.nodes.items() if self.filter(n))

    def group(self, name: str) -> Mapping[str, Any] | None:
        return next((g for g in self.groups if g.get("id") == name), None)
