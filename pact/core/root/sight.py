"""What the root's log says of each node now: a fold of the public records, for people who look. Pure.

It decides nothing. It takes records as they come, also from the middle of a node's journal and from nodes that write
nonsense: what cannot be followed is left out, never an error. Memory has limits with names; what is beyond them is
counted.  # V6
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from sys import intern
from typing import Final, NamedTuple

from pact.core import strict
from pact.core.node.windows import Windows, square, window
from pact.core.root.chunks import Chunk
from pact.core.root.log import ROOT
from pact.core.root.nodeview import BLOCKED, FAILED, HELD, NONE, OPEN, ROLLING, Change, Node, Pace, Session
from pact.core.root.words import TEXT_MAX, holder, number, owner_of, plain, said, wall_of
from pact.model import JsonRead

MEMBERS_EACH_MAX: Final = 256  # resources of one node's changes
MEMBERS_MAX: Final = 200_000  # of all nodes
CHANGES_EACH_MAX: Final = 32  # changes of one node
CHANGES_MAX: Final = 50_000  # of all nodes
NODES_MAX: Final = 100_000
HOLDS_EACH_MAX: Final = 1024  # of one node: many jobs may hold one change each
HOLDS_MAX: Final = 50_000  # of all nodes
SESSIONS_EACH_MAX: Final = 32
SESSIONS_MAX: Final = 50_000  # of all nodes
HOLDERS_MAX: Final = 8  # consumers that are named, of one change
NEWEST_MAX: Final = 100


class Newest(NamedTuple):
    """One record, in a few words. ``wall_ns`` is the node's clock."""

    gseq: int
    wall_ns: int
    node: str
    type: str
    user: str
    text: str


def _part(data: JsonRead) -> tuple[int, int]:
    """Which record of how many this is, of one decision. Raises ValueError or TypeError for what is none."""
    at, of = data.get("part") or (1, 1)
    return number(at), number(of)


class Sight:
    """``take`` chunks in the order of the log. ``touched``: nodes that may look different since it was last cleared."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.touched: set[str] = set()
        self.newest: deque[Newest] = deque(maxlen=NEWEST_MAX)
        self.first = self.gseq = -1  # the first and the last record that was taken
        self.left_out = 0  # records that make no sense, and what is beyond the limits
        self._paces: dict[Pace, Pace] = {}
        self._members = self._changes = self._holds = self._sessions = 0

    def take(self, chunk: Chunk, heard_ns: int = 0) -> None:
        """``heard_ns``: any clock, to compare with when nodes were asked."""
        if self.first < 0:
            self.first = chunk.first
        gseq, shown_from = chunk.first, chunk.first + chunk.count - NEWEST_MAX
        for batch in chunk.batches:
            node = None if batch.node == ROOT else self._node(batch.node)
            if node is not None:
                node.rack, node.heard_ns = batch.rack or node.rack, heard_ns
                self.touched.add(batch.node)
            for line in batch.lines:
                try:
                    record = strict.own(line)
                    if gseq >= shown_from:
                        self.newest.append(newest(gseq, batch.node, record))
                    if node is not None:
                        self._record(node, record)
                    elif record["type"] == "node_forgotten" and batch.node == ROOT:
                        self._forget(record["data"]["nodes"])
                except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
                    self.left_out += 1
                gseq += 1
        self.gseq = gseq - 1

    def _forget(self, names: Sequence[str]) -> None:
        """Nodes that were taken out of service."""
        for name in names:
            node = self.nodes.pop(name, None)
            if node is not None:
                for cid in list(node.changes):
                    self._drop(node, cid)
                self._hold_only(node, {})
                self._inside_only(node, {})
                self.touched.add(name)

    def _node(self, name: str) -> Node | None:
        node = self.nodes.get(name)
        if node is None:
            if len(self.nodes) >= NODES_MAX:
                self.left_out += 1
                return None
            node = self.nodes[name] = Node()
        return node

    def _record(self, node: Node, record: JsonRead) -> None:
        handler = _HANDLERS.get(record["type"])
        if handler is None and node.windows is None:
            return
        node.t_ns = max(node.t_ns, number(record["t_ns"]))
        node.offset_ns = wall_of(record["time"]) - node.t_ns
        if handler is not None:
            handler(self, node, record["data"], record)
        if node.changes or node.windows is not None:
            self._note(node)

    def _note(self, node: Node) -> None:
        """The ``W`` in force, as the node computes it."""
        if not node.changes:
            node.windows = None
            return
        pace = node.pace
        total = sum(m[1] for c in node.changes.values() if c.state == OPEN for m in c.members.values())
        w_ns = max(min(pace.floor_ns, pace.base_ns), window(total, pace.base_ns, pace.sensitivity_n))
        if node.windows is None:
            node.windows = Windows(pace.floor_ns, pace.base_ns)
        node.windows.note(node.t_ns, w_ns)

    # -- changes ------------------------------------------------------------------------------------------------

    def _change(self, node: Node, cid: object, owner: object, time: str) -> Change:
        """The change; a new one if it is not known. Raises ValueError if there are too many."""
        cid = plain(cid, 40)
        found: Change | None = node.changes.get(cid)
        if found is not None:
            return found
        if len(node.changes) >= CHANGES_EACH_MAX or self._changes >= CHANGES_MAX:
            raise ValueError("too many changes")
        user, program = owner_of(owner)
        change = Change(cid, intern(user), intern(program), time)
        if any(h[0] in ("", cid) for h in node.holds.values()):
            change.state, change.held_since_ns = HELD, node.t_ns
        if not isinstance(node.changes, dict):
            node.changes = {}
        node.changes[cid] = change
        self._changes += 1
        return change

    def _drop(self, node: Node, cid: str) -> None:
        if isinstance(node.changes, dict):
            change = node.changes.pop(cid, None)
            if change is not None:
                self._changes -= 1
                self._members -= len(change.members)
                if node.holds:
                    self._hold_only(node, {h: row for h, row in node.holds.items() if row[0] != cid})
            if not node.changes:
                node.changes = NONE

    def _put(self, node: Node, change: Change, resource: str, member: list[int]) -> None:
        if resource not in change.members:
            if sum(len(c.members) for c in node.changes.values()) >= MEMBERS_EACH_MAX or self._members >= MEMBERS_MAX:
                change.more += 1
                return
            self._members += 1
        change.members[intern(resource)] = member

    def _leave(self, node: Node, resource: object, settle: bool = True, only: Change | None = None) -> list[int] | None:
        """Remove a resource from its change, and the change if it was its last one."""
        for change in [only] if only is not None else list(node.changes.values()):
            member: list[int] | None = change.members.pop(plain(resource), None)
            if member is not None:
                self._members -= 1
                if settle:
                    self._settle(node, change)
                return member
        if only is not None and only.more:  # one of those that are only counted
            only.more -= 1
            if settle:
                self._settle(node, only)
        return None

    def _settle(self, node: Node, change: Change) -> None:
        if not change.count and not change.intents and change.state != ROLLING:
            self._drop(node, change.id)

    # -- one for each type --------------------------------------------------------------------------------------

    def _started(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        s = data["settings"]
        pace = Pace(number(s["base_ns"]), number(s["sensitivity_n"]), number(s["floor_ns"]), s["enforce"] is True)
        was, node.pace = node.pace, self._paces.setdefault(pace, pace) if len(self._paces) < 1000 else pace
        node.blind = ()
        node.not_before_ns = number(data.get("not_before_ns", 0))
        if node.windows is not None:
            node.windows.floor_ns = pace.floor_ns
        if pace.enforce and not was.enforce:
            for change in node.changes.values():
                change.reopen(node.t_ns)

    def _applied(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        change = self._change(node, data["change"], data["owner"], record["time"])
        change.message, change.group = plain(data["message"], TEXT_MAX), plain(data.get("group", ""), 40)
        if _part(data)[0] == 1:  # of a long one, the first record names as many as are kept
            change.intents = set(map(plain, list(data["resources"])[:MEMBERS_EACH_MAX]))

    def _drifted(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        change = self._change(node, data["change"], data["owner"], record["time"])
        resource = plain(data["resource"])
        change.intents = change.intents - {resource} if change.intents else change.intents
        size = square(number(data["weight_n"]), number(data["deviation_n"]))
        before = change.members.get(resource) or self._leave(node, resource)
        self._put(node, change, resource, [number(data["opened_ns"]), size, before[2] if before is not None else 0])

    def _cleared(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        self._leave(node, data["resource"], only=node.changes.get(data.get("change", "")))

    def _opened(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        change = node.changes.get(data["change"])
        if change is None:
            return
        change.intents = frozenset()
        if data.get("reopened") is True:
            change.reopen(node.t_ns)
        self._settle(node, change)

    def _extended(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        change = node.changes.get(data["change"])
        if change is None:
            return
        if change.state in (BLOCKED, FAILED):
            self._go_on(node, change)
            change.reopen(node.t_ns)
        change.extension_ns = number(change.extension_ns + number(data["by_ns"]))

    def _committed(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        for resource in data["resources"]:
            self._leave(node, resource, only=node.changes.get(data.get("change") or ""))

    def _declared(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        for resource in (*(data.get("forgotten") or ()), *(data.get("taken") or ())):
            self._leave(node, resource)
        for resource, deviation_n in (data.get("members") or {}).items():
            if not deviation_n:
                self._leave(node, resource)

    def _trial_over(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        for resource, value in data["resources"].items():
            if value is None:
                self._leave(node, resource)

    def _split(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        old = node.changes.get(data["change"])
        if old is None:
            return
        new = self._change(node, data["into"], {"user": old.owner, "command": old.program}, old.opened)
        new.message, new.extension_ns, new.group = old.message, old.extension_ns, plain(data.get("group", ""), 40)
        new.split = True
        new.held_since_ns = old.held_since_ns
        for resource in data["resources"]:
            member = self._leave(node, resource, settle=False, only=old)
            if member is not None:
                self._put(node, new, plain(resource), member)
        self._settle(node, old)
        self._settle(node, new)

    def _rolling(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        change = node.changes.get(data["change"])
        if change is not None:
            change.state, change.why, change.holders = ROLLING, "", ()

    def _rolled_back(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        change, (at, of) = node.changes.get(data["change"]), _part(data)
        if at == of:
            self._drop(node, data["change"])
        elif change is not None:
            for resource in data["results"]:
                self._leave(node, resource, settle=False, only=change)

    def _blocked(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        change = node.changes.get(data["change"])
        if change is not None:
            self._stop(change, data["reason"], data["holders"])

    def _failed(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        change = node.changes.get(data["change"])
        if change is None:
            return
        change.state, change.why, change.holders = FAILED, plain(data["reason"], TEXT_MAX), ()
        for resource in data["restored"]:
            if resource in change.members:
                self._leave(node, resource, only=change)

    # -- members of groups --------------------------------------------------------------------------------------

    def _voted(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        change = self._of_group(node, data["group"])
        if change is None:
            return
        if data["vote"] == "yes":
            change.prepared = True
            self._stop(change, f"undecided: {change.group} is being settled by the root", ())
        elif data["action"] == "rollback":
            self._stop(change, data["why"], data["holders"])

    def _decided(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        change = self._of_group(node, data["group"])
        if change is None or data["decision"] != "abort":
            return
        was, change.prepared = change.prepared, False
        if data["action"] == "rollback":
            if was or change.state != BLOCKED:
                self._stop(change, data["why"], ())
        elif was and change.state == BLOCKED:
            self._go_on(node, change)

    def _finished(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        for change in node.changes.values():
            if change.group == data["group"]:
                change.group, change.prepared = "", False
                if change.state == BLOCKED:
                    self._go_on(node, change)

    @staticmethod
    def _of_group(node: Node, group: object) -> Change | None:
        return next((c for c in node.changes.values() if group and c.group == group and not c.split), None)

    @staticmethod
    def _stop(change: Change, why: object, holders: Sequence[object]) -> None:
        change.state, change.why = BLOCKED, plain(why, TEXT_MAX)
        change.holders = tuple(holder(h) for h in holders[:HOLDERS_MAX])

    @staticmethod
    def _go_on(node: Node, change: Change) -> None:
        change.state, change.why, change.holders = OPEN, "", ()
        if any(h[0] in ("", change.id) for h in node.holds.values()):
            change.state, change.held_since_ns = HELD, node.t_ns

    # -- suspending ---------------------------------------------------------------------------------------------

    def _emergency(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        node.emergency = (plain(data["by"], 80), plain(data["reason"], TEXT_MAX), plain(data["ends"], 40))

    def _emergency_over(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        node.emergency = None
        for change in node.changes.values():
            if change.state in (OPEN, HELD):
                change.reopen(node.t_ns)

    def _hold(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        on = plain(data.get("change") or "", 40)
        hold = plain(data["hold"], 40)
        if hold not in node.holds and (len(node.holds) >= HOLDS_EACH_MAX or self._holds >= HOLDS_MAX):
            raise ValueError("too many holds")
        row = (on, owner_of(data["owner"])[0], plain(data["reason"], TEXT_MAX), plain(data["ends"], 40))
        self._hold_only(node, {**node.holds, hold: row})
        for change in node.changes.values():
            if change.state == OPEN and on in ("", change.id):
                change.state, change.held_since_ns = HELD, node.t_ns

    def _hold_only(self, node: Node, holds: dict[str, tuple[str, str, str, str]]) -> None:
        self._holds += len(holds) - len(node.holds)
        node.holds = holds or NONE

    def _released(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        self._hold_only(node, {h: row for h, row in node.holds.items() if h != data["hold"]})
        for change in node.changes.values():
            if change.state == HELD and not any(h[0] in ("", change.id) for h in node.holds.values()):
                change.state = OPEN
                for member in change.members.values():
                    member[2] += max(0, node.t_ns - max(member[0] + member[2], change.held_since_ns))

    def _entered(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        if len(node.sessions) >= SESSIONS_EACH_MAX or self._sessions >= SESSIONS_MAX:
            raise ValueError("too many sessions")
        session = Session(owner_of(data["owner"])[0], wall_of(record["time"]))
        self._inside_only(node, {**node.sessions, plain(data["session"], 40): session})

    def _went(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        self._inside_only(node, {s: row for s, row in node.sessions.items() if s != data["session"]})

    def _inside_only(self, node: Node, sessions: dict[str, Session]) -> None:
        self._sessions += len(sessions) - len(node.sessions)
        node.sessions = sessions or NONE

    def _blind(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        node.blind = (*(b for b in node.blind if b != data["observer"]), plain(data["observer"], 40))[-8:]

    def _sees(self, node: Node, data: JsonRead, record: JsonRead) -> None:
        node.blind = tuple(b for b in node.blind if b != data["observer"])


def newest(gseq: int, node: str, record: JsonRead) -> Newest:
    user = plain(record["actor"].get("user"), 80)
    return Newest(gseq, wall_of(record["time"]), node, record["type"], user, said(record["type"], record["data"]))


Handler = Callable[[Sight, Node, JsonRead, JsonRead], None]
_HANDLERS: Final[Mapping[str, Handler]] = {
    "agent_started": Sight._started,
    "applied": Sight._applied,
    "drift_detected": Sight._drifted,
    "drift_cleared": Sight._cleared,
    "window_opened": Sight._opened,
    "window_extended": Sight._extended,
    "committed": Sight._committed,
    "declared": Sight._declared,
    "adopted": Sight._declared,
    "commit_expired": Sight._trial_over,
    "change_split": Sight._split,
    "rollback_started": Sight._rolling,
    "rolled_back": Sight._rolled_back,
    "rollback_blocked": Sight._blocked,
    "rollback_failed": Sight._failed,
    "group_prepared": Sight._voted,
    "group_decided": Sight._decided,
    "group_finished": Sight._finished,
    "emergency_started": Sight._emergency,
    "emergency_ended": Sight._emergency_over,
    "hold_placed": Sight._hold,
    "hold_released": Sight._released,
    "session_opened": Sight._entered,
    "session_closed": Sight._went,
    "observer_blind": Sight._blind,
    "observer_restored": Sight._sees,
}
