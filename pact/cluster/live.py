"""What those are told who look at the whole fleet: one snapshot, then differences. One encoding serves all of them.
Pages get server-sent events; for ``pact top`` see ``lookers``.

It belongs to one thread, the HTTP server's for pages. It asks no node: it knows what the loop shows (``facts``, as
``page`` describes them) and what the log says (``Watcher``).  # V6

``facts["fleet"]``: ``racks`` {connected node: rack}, ``away`` [node], ``said`` {node: state} (as nodes answered the
root's own question), ``asked_ns`` (when it was asked, monotonic).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final

import orjson

from pact.cluster.watcher import Watcher
from pact.core.root.nodeview import BLOCKED, FAILED, Node, details
from pact.core.root.sight import Newest, Sight
from pact.model import Json

SESSIONS_SHOWN: Final = 8  # of a node, in its row
CHANGES_SHOWN: Final = 3  # of a node, in its row
TEXT_SHOWN: Final = 120
PLAIN_MAX: Final = 50  # rows of a table, without script
UNKNOWN: Final = "unknown"
#: The plain facts that the page shows.
ABOUT: Final = (
    *("name", "cluster", "version", "root", "leading", "healthy", "trouble"),
    *("fence", "gseq", "oldest", "children", "connected", "buffered", "calls"),
)

Row = list[Any]
Encode = Callable[[str, Json], bytes]


def event(kind: str, data: Json) -> bytes:
    """JSON holds no line break, so that a name cannot begin a field or an event."""
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


class Live:
    """``turn``, then ``snapshot`` for pages that come; ``turn`` again returns what is new since."""

    def __init__(self, watcher: Watcher | None = None, encode: Encode = event, touched: set[str] | None = None) -> None:
        self.watcher, self._encode = watcher, encode
        self._touched = touched if touched is not None else watcher.follow() if watcher is not None else set()
        self.rows: dict[str, Row] = {}
        self._about: Json = {}
        self._groups: list[Any] = []
        self._holds: list[Any] = []
        self._record = -1
        self._sight: Sight | None = None
        self._racks: Mapping[str, str] = {}
        self._away: frozenset[str] = frozenset()
        self._said: Mapping[str, str] | None = None
        self._asked_ns = 0
        self._snapshot = b""
        self._plain: Json = {}

    def turn(self, facts: Mapping[str, Any]) -> bytes:
        """Take in what is new. Returns the message for pages that have the earlier state, ``b""`` if nothing is."""
        news: Json = {}
        self._plain = {}
        about = self._facts(facts)
        changed = {k: v for k, v in about.items() if self._about.get(k) != v}
        if changed:
            news["about"], self._about = changed, about
        for key, kept in (("groups", self._groups), ("holds", self._holds)):
            found = [self._stable(g) for g in facts.get(key) or ()]
            if found != kept:
                news[key] = kept[:] = found
        rows, gone = self._nodes(facts.get("fleet") or {})
        if rows:
            news["set"] = rows
        if gone:
            news["gone"] = gone
        records = self._records()
        if records:
            news["records"] = records
        if not news:
            return b""
        self._snapshot = b""
        return self._encode("news", {"now": _now_ms(), **news})

    def snapshot(self) -> bytes:
        """Everything, as of the last ``turn``. Nodes about which there is nothing to say stand by rack and state."""
        if not self._snapshot:
            plain: dict[str, dict[str, list[str]]] = {}
            rows = {}
            for name, row in self.rows.items():
                if len(row) == 2:
                    plain.setdefault(row[0], {}).setdefault(row[1], []).append(name)
                else:
                    rows[name] = row
            self._snapshot = self._encode(
                "whole",
                {
                    "now": _now_ms(),
                    "about": self._about,
                    "groups": self._groups,
                    "holds": self._holds,
                    "plain": plain,
                    "set": rows,
                    "records": self._records(everything=True),
                },
            )
        return self._snapshot

    def forget(self) -> None:
        """Begin anew with the next turn: after an error, nobody knows what was told."""
        self.__init__(self.watcher, self._encode, self._touched)  # type: ignore[misc]

    def beat(self) -> bytes:
        return self._encode("beat", {"now": _now_ms()})

    def plain(self) -> Json:
        """For the page without script: the first windows that end, what is stopped, and the newest records."""
        if not self._plain:
            now_ms = _now_ms()
            found = [(name, c) for name, row in self.rows.items() if len(row) > 2 for c in row[3]]
            ending = sorted(((c[3], name, c) for name, c in found if c[3] is not None), key=lambda row: row[:2])
            self._plain = {
                "windows": [[name, (ms - now_ms) / 1000, c[2], c[4], c[5]] for ms, name, c in ending[:PLAIN_MAX]],
                "stopped": [[name, c[1], c[2], c[5], c[6]] for name, c in found if c[1] in (BLOCKED, FAILED)][
                    :PLAIN_MAX
                ],
                "records": [row[2:] for row in self._records(everything=True)[: -PLAIN_MAX - 1 : -1]],
            }
        return self._plain

    def node(self, name: str) -> Json | None:
        """One node with all that is known of its changes; ``None`` for a node that nobody knows."""
        row = self.rows.get(name)
        if row is None:
            return None
        found: Json = {"name": name, "rack": row[0], "state": row[1], "records": []}
        if self.watcher is not None:
            with self.watcher.lock:
                sight = self.watcher.sight
                node = sight.nodes.get(name)
                if node is not None:
                    found.update(details(node))
                found["records"] = [shown(r) for r in sight.newest if r.node == name]
        return found

    # -- parts --------------------------------------------------------------------------------------------------

    def _facts(self, facts: Mapping[str, Any]) -> Json:
        about = {key: facts[key] for key in ABOUT if key in facts}
        about["refused"] = sum(v for v in dict(facts.get("refused", {})).values() if isinstance(v, int))
        untracked = facts.get("untracked")
        if untracked:
            about["untracked"] = untracked[1]
        if self.watcher is not None and about.get("leading"):
            about["since"], about["catching_up"] = self.watcher.sight.first, self.watcher.catching_up
        return about

    @staticmethod
    def _stable(row: Mapping[str, Any]) -> Json:
        """Without what changes by itself: pages count down to an end by themselves."""
        return {k: str(v)[:2000] if isinstance(v, str) else v for k, v in row.items() if k != "left_s"}

    def _nodes(self, fleet: Mapping[str, Any]) -> tuple[dict[str, Row], list[str]]:
        """The rows that differ from before, and the names that are no longer there."""
        racks, said = fleet.get("racks") or {}, fleet.get("said")
        away = frozenset(fleet.get("away") or ())
        asked_ns = fleet.get("asked_ns", 0)
        if self.watcher is None:
            return self._compare(Sight(), racks, away, said, asked_ns, None)
        with self.watcher.lock:
            sight = self.watcher.sight
            touched: set[str] | None = set(self._touched)
            if (
                sight is not self._sight
                or asked_ns != self._asked_ns
                or (racks, away, said) != (self._racks, self._away, self._said)
            ):
                touched = None
            found = self._compare(sight, racks, away, said, asked_ns, touched)
            self._touched.clear()
        self._sight, self._racks, self._away, self._said, self._asked_ns = sight, racks, away, said, asked_ns
        return found

    def _compare(
        self,
        sight: Sight,
        racks: Mapping[str, str],
        away: frozenset[str],
        said: Mapping[str, str] | None,
        asked_ns: int,
        touched: Iterable[str] | None,
    ) -> tuple[dict[str, Row], list[str]]:
        new, rows, nodes = {}, self.rows, sight.nodes
        for name in (*racks, *away) if touched is None else touched:
            if name not in racks and name not in away:
                continue
            row = row_of(name, nodes.get(name), racks.get(name), said, asked_ns)
            if rows.get(name) != row:
                new[name] = rows[name] = row
        gone = [] if touched is not None else [n for n in rows if n not in racks and n not in away]
        for name in gone:
            del rows[name]
        return new, gone

    def _records(self, everything: bool = False) -> list[Row]:
        """Records that pages do not have yet, the oldest first."""
        if self.watcher is None:
            return []
        with self.watcher.lock:
            if everything:
                return [shown(r) for r in self.watcher.sight.newest if r.gseq <= self._record]
            if self.watcher.sight.gseq < self._record:  # another log
                self._record = -1
            found: list[Row] = []
            for r in reversed(self.watcher.sight.newest):
                if r.gseq <= self._record:
                    break
                found.append(shown(r))
        found.reverse()
        if found:
            self._record = int(found[-1][0])
        return found


def shown(r: Newest) -> Row:
    return [r.gseq, r.wall_ns // 1_000_000, r.node, r.type, r.user, r.text]


def row_of(name: str, node: Node | None, rack: str | None, said: Mapping[str, str] | None, asked_ns: int) -> Row:
    """``[rack, state]``, and where there is something to say ``[rack, state, held, [change, ...], changes that are left
    out]``, with ``[[session, user, since], ...]`` where somebody is in a session. ``rack``: ``None`` for a node that is
    away.

    The log knows a state first; a node's answer counts if it was asked for after the newest record was taken, so that
    changes older than what was read of the log show, too.
    """
    if rack is None:
        state = "away"
    elif said is None:
        state = "connected"  # an aggregator that is no root carries records, and does not read them
    elif node is not None and (node.heard_ns > asked_ns or name not in said):
        state = node.state
        if state == "committed":
            state = "unconfigured" if said.get(name) == "unconfigured" else state
    else:
        state = said.get(name, UNKNOWN)
    where = rack if rack is not None else node.rack if node is not None else ""
    if node is None or not (node.changes or node.holds or node.emergency or node.sessions):
        return [where, state]
    changes = []
    for c in list(node.changes.values())[:CHANGES_SHOWN]:
        ends_ns = node.ends_ns(c)
        first = next(iter(c.members), "")[:TEXT_SHOWN]
        why = ("; ".join(c.holders) or c.why)[:TEXT_SHOWN] if c.state in (BLOCKED, FAILED) else ""
        changes.append(
            [c.id, c.state, c.owner, None if ends_ns is None else ends_ns // 1_000_000, c.count, first, why, c.group]
        )
    held = ""
    if node.emergency is not None:
        held = f"emergency by {node.emergency[0]}: {node.emergency[1]}"[:TEXT_SHOWN]
    elif node.holds:
        _, who, why, _ = next(iter(node.holds.values()))
        held = f"held by {who}: {why}"[:TEXT_SHOWN]
    row = [where, state, held, changes, max(0, len(node.changes) - CHANGES_SHOWN)]
    if node.sessions:
        sessions = islice(node.sessions.items(), SESSIONS_SHOWN)
        row.append([[s, x.user, x.since_ns // 1_000_000] for s, x in sessions])
    return row


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
