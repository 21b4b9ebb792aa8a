"""One line on the terminals of whoever is concerned: before a change ends, at its end, when somebody takes it over,
tightens or extends it.

Who is told is decided from durable records alone. A person's terminals are those that belong to his uid; one who said
``mesg n`` is left alone, and nobody gets more than a line in ten seconds. Nothing waits for a terminal that is stopped.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pact.core.node import change as life
from pact.core.records import Record
from pact.core.units import format_duration
from pact.model import NS_PER_S
from pact.observe.attribution import printable

if TYPE_CHECKING:
    from pact.core.node.step import Node

PACE_NS: Final = 10 * NS_PER_S
#: A deadline that comes nearer by less than this is nobody's news.
TIGHTER_NS: Final = 60 * NS_PER_S
TERMINALS_MAX: Final = 8
LINE_MAX: Final = 400
NAMED_MAX: Final = 3
#: More changes than this are told of by ``pact status`` alone when they are tightened.
CHANGES_MAX: Final = 100
TTYS: Final = ("/dev/pts", "/dev")
AUTOMATIC: Final = ("expired", "retry")


@dataclass(slots=True)
class _Pending:
    """What one person is to be told next, and when he may be."""

    line: str = ""
    more: int = 0
    not_before_ns: int = 0


@dataclass(slots=True)
class Notices:
    """``write`` puts a line on the terminals of a uid; ``enabled`` is ``[notify] terminals``."""

    enabled: bool
    write: Callable[[int, str], None] = field(default_factory=lambda: on_terminals)
    _people: dict[int, _Pending] = field(default_factory=dict)
    _ends: dict[str, int] = field(default_factory=dict)  # change -> its end as it was last told or seen

    def take(self, records: Iterable[Record], node: Node, now_ns: int, clock: Callable[[int], str]) -> None:
        """Durable records just came. ``clock`` shows a node time as a clock on the wall does."""
        if not self.enabled:
            return
        drifted_by: set[Any] = set()
        for record in records:
            for uid, line in said_of(record, node):
                self._tell(uid, line)
            if record.type in ("drift_detected", "applied"):
                drifted_by.add(record.data["owner"]["uid"])
        if drifted_by:
            self._tightened(node, drifted_by, clock)
        self.flush(now_ns)

    def _tightened(self, node: Node, by: set[Any], clock: Callable[[int], str]) -> None:
        """More drift of others has brought somebody's end nearer."""
        if len(node.state.changes) > CHANGES_MAX:
            return
        ends = {c.id: end for c in node.state.changes.values() if (end := node.state.deadline_ns(c)) is not None}
        for cid, end_ns in ends.items():
            change = node.state.changes[cid]
            nearer_ns = self._ends.get(cid, end_ns) - end_ns
            uid = _person(change.owner.to_json())
            if nearer_ns >= TIGHTER_NS and uid is not None and by != {uid}:
                sooner = format_duration(nearer_ns // NS_PER_S * NS_PER_S)
                text = f"more drift on {node.name}: {cid} ends at {clock(end_ns)}, {sooner} sooner"
                self._tell(uid, text)
        self._ends = ends

    def _tell(self, uid: int, line: str) -> None:
        person = self._people.setdefault(uid, _Pending())
        person.more += bool(person.line)
        person.line = line

    def flush(self, now_ns: int) -> None:
        """Write what may be written now."""
        for uid, person in list(self._people.items()):
            if person.not_before_ns > now_ns:
                continue
            if not person.line:
                del self._people[uid]
                continue
            more = f" (and {person.more} more: pact log)" if person.more else ""
            self.write(uid, f"pact: {person.line}{more}")
            self._people[uid] = _Pending(not_before_ns=now_ns + PACE_NS)

    def next_ns(self) -> int | None:
        """When somebody who has to wait may be told."""
        return min((p.not_before_ns for p in self._people.values() if p.line), default=None)


def said_of(record: Record, node: Node) -> list[tuple[int, str]]:
    """Who is to be told what of a record: pairs of uid and line. Who did it himself is not told."""
    data = record.data
    out: list[tuple[int | None, str]] = []
    doer = record.actor.get("uid")
    where, cid = node.name, data.get("change", "")
    if record.type == "window_closing":
        names, at = _names(data["resources"], data["count"]), _clock(data["deadline"])
        text = f"{cid} on {where} ({names}) is rolled back soon, at {at}: pact commit -m WHY keeps it"
        out = [(_person(data["owner"]), f"{text}, pact extend 30m gives time")]
        doer = None
    elif record.type == "rolled_back":
        how = "its window had ended" if data["cause"] in AUTOMATIC else f"by {record.actor.get('user')}"
        out = [
            (uid, f"{cid} on {where} ({names}) was rolled back, {how}; to get it back: pact redo {cid}")
            for uid, names in _concerned(data, data["results"])
        ]
        doer = None if data["cause"] in AUTOMATIC else doer
    elif record.type == "committed":
        what, by = cid or "what you made", record.actor.get("user")  # what was untracked was in no change
        out = [
            (uid, f"{by} committed {what} on {where} ({names}): {data['message']}")
            for uid, names in _concerned(data, data["resources"])
        ]
    elif record.type in ("rollback_blocked", "rollback_failed"):
        change = node.state.changes.get(cid)
        if change is not None:
            what = "is blocked" if record.type == "rollback_blocked" else "failed"
            text = f"the rollback of {cid} on {where} {what}: {data['reason']}; see pact status"
            out = [(_person(change.owner.to_json()), text)]
            doer = None if data.get("cause") in AUTOMATIC else doer
    elif record.type == "drift_detected" and data.get("from") and data.get("also"):
        before = data["also"][-1]
        by = data["owner"]["user"]
        out = [(_person(before), f"{by} changed {data['resource']} on {where}, as you had: it is in {cid} now")]
        doer = data["owner"]["uid"]
    elif record.type == "window_extended":
        change = node.state.changes.get(cid)
        if change is not None and change.state == life.OPEN:
            out = [(_person(change.owner.to_json()), f"{record.actor.get('user')} gave {cid} on {where} more time")]
    return [(uid, line) for uid, line in dict.fromkeys(out) if type(uid) is int and uid != doer]


def _concerned(data: Mapping[str, Any], resources: Iterable[str]) -> list[tuple[Any, str]]:
    """The owner of a change, and who else had changed something of it; with names: of all of it, or of that, for names
    in closed directories are not for everybody."""
    names = sorted(resources)
    whose: dict[Any, list[str]] = {_person(data["owner"]): names}
    for resource in names:
        for uid in dict.fromkeys(map(_person, data.get("also", {}).get(resource, ()))):
            if whose.get(uid) is not names:
                whose.setdefault(uid, []).append(resource)
    return [(uid, _names(mine, len(mine))) for uid, mine in whose.items()]


def _person(owner: Mapping[str, Any]) -> int | None:
    """The uid of a person; a service's is nobody's who could read."""
    return None if str(owner["key"]).startswith("unit:") else owner["uid"]


def _names(resources: Iterable[str], count: int) -> str:
    named = list(resources)[:NAMED_MAX]
    more = f" and {count - len(named)} more" if count > len(named) else ""
    return ", ".join(named) + more


def _clock(text: str) -> str:
    from datetime import datetime

    return f"{datetime.fromisoformat(text).astimezone():%H:%M:%S}"


def on_terminals(uid: int, line: str) -> None:
    """Write a line to every terminal of this user that takes messages. Never waits, never fails."""
    text = printable(line.encode("utf-8", "surrogateescape"))[:LINE_MAX]
    for path in terminals(uid):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            st = os.fstat(fd)
            if stat.S_ISCHR(st.st_mode) and st.st_uid == uid and os.isatty(fd):
                os.write(fd, f"\r\n{text}\r\n".encode())
        except OSError:
            pass
        finally:
            os.close(fd)


def terminals(uid: int) -> list[str]:
    """The terminals that belong to this user and take messages (``mesg y``), the most recently used first."""
    found: list[tuple[float, str]] = []
    for top in TTYS:
        try:
            names = [n for n in os.listdir(top) if n.isdigit() or (n.startswith("tty") and n[3:].isdigit())]
        except OSError:
            continue
        for name in names:
            try:
                st = os.lstat(f"{top}/{name}")
            except OSError:
                continue
            if stat.S_ISCHR(st.st_mode) and st.st_uid == uid and st.st_mode & stat.S_IWGRP:
                found.append((-st.st_atime, f"{top}/{name}"))
    return [path for _, path in sorted(found)[:TERMINALS_MAX]]
