"""One line on the terminals of the people concerned: before a change ends, at its end, and when another owner takes it
over, shortens its window, extends it or holds it. A session of ``pact shell`` has such a terminal, too.

The receivers are derived from durable records alone. A person's terminals are those that belong to the person's uid;
``mesg n`` switches the lines off, and each person gets at most one line in ten seconds. A stopped terminal blocks
nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pact.core.node import change as life
from pact.core.node import payloads
from pact.core.records import Record, is_last, is_later
from pact.core.units import format_duration
from pact.model import NS_PER_S, Owner
from pact.observe.attribution import printable

if TYPE_CHECKING:
    from pact.core.node.step import Node

PACE_NS: Final = 10 * NS_PER_S
#: A deadline that comes nearer by less than this is not reported.
TIGHTER_NS: Final = 60 * NS_PER_S
TERMINALS_MAX: Final = 8
LINE_MAX: Final = 400
NAMED_MAX: Final = 3
#: If more changes than this are tightened, only ``pact status`` shows it.
CHANGES_MAX: Final = 100
TTYS: Final = ("/dev/pts", "/dev")
AUTOMATIC: Final = ("expired", "retry")


@dataclass(slots=True)
class _Pending:
    """The next line for one person, and when it may be written."""

    line: str = ""
    more: int = 0
    not_before_ns: int = 0


@dataclass(slots=True)
class Notices:
    """``write`` puts a line on the terminals of a uid; ``enabled`` is ``[notify] terminals``."""

    enabled: bool
    write: Callable[[int, str], None] = field(default_factory=lambda: on_terminals)
    _people: dict[int, _Pending] = field(default_factory=dict)
    _ends: dict[str, int] = field(default_factory=dict)  # change -> its end as last reported or seen

    def take(self, records: Iterable[Record], node: Node, now_ns: int, clock: Callable[[int], str]) -> None:
        """Take new durable records. ``clock`` shows a node time as local time."""
        if not self.enabled:
            return
        drifted_by: set[int | None] = set()
        for record in records:
            for uid, line in said_of(record, node):
                self._tell(uid, line)
            said = payloads.of(record)
            if isinstance(said, payloads.DriftDetected | payloads.Applied):
                drifted_by.add(said.owner.uid)
        if drifted_by:
            self._tightened(node, drifted_by, clock)
        self.flush(now_ns)

    def _tightened(self, node: Node, by: set[int | None], clock: Callable[[int], str]) -> None:
        """Drift of other owners has brought the ends of changes nearer."""
        if len(node.state.changes) > CHANGES_MAX:
            return
        ends = {c.id: end for c in node.state.changes.values() if (end := node.state.deadline_ns(c)) is not None}
        for cid, end_ns in ends.items():
            change = node.state.changes[cid]
            nearer_ns = self._ends.get(cid, end_ns) - end_ns
            uid = _person(change.owner)
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
        """Write the lines that may be written now."""
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
        """When the next waiting line may be written."""
        return min((p.not_before_ns for p in self._people.values() if p.line), default=None)


def said_of(record: Record, node: Node) -> list[tuple[int, str]]:
    """The lines that a record causes: pairs of uid and line. The person who did it gets none."""
    said, where = payloads.of(record), node.name
    out: list[tuple[int | None, str]] = []
    doer, by = record.actor.get("uid"), record.actor.get("user")
    if isinstance(said, payloads.WindowClosing):
        names, at = _names(said.resources, said.count), _clock(said.deadline)
        text = f"{said.change} on {where} ({names}) is rolled back soon, at {at}: pact commit -m WHY keeps it"
        out = [(_person(said.owner), f"{text}, pact extend 30m gives time")]
        doer = None
    elif isinstance(said, payloads.RolledBack):
        how, cid = "its window had ended" if said.cause in AUTOMATIC else f"by {by}", said.change
        out = [
            (uid, f"{cid} on {where} ({names}) was rolled back, {how}; to get it back: pact redo {cid}")
            for uid, names in _concerned(said, said.results)
        ]
        doer = None if said.cause in AUTOMATIC else doer
    elif isinstance(said, payloads.Committed):
        what = said.change or "what you made"  # untracked things were in no change
        out = [
            (uid, f"{by} committed {what} on {where} ({names}): {said.message}")
            for uid, names in _concerned(said, said.resources)
        ]
    elif isinstance(said, payloads.RollbackFailed) and not is_last(said.part):
        pass  # the last one says it
    elif isinstance(said, payloads.RollbackBlocked | payloads.RollbackFailed):
        change = node.state.changes.get(said.change)
        if change is not None:
            what = "is blocked" if isinstance(said, payloads.RollbackBlocked) else "failed"
            text = f"the rollback of {said.change} on {where} {what}: {said.reason}; see pact status"
            out = [(_person(change.owner), text)]
            doer = None if said.cause in AUTOMATIC else doer
    elif isinstance(said, payloads.DriftDetected) and said.from_ and said.also:
        text = f"{said.owner.user} changed {said.resource} on {where}, as you had: it is in {said.change} now"
        out = [(_person(said.also[-1]), text)]
        doer = said.owner.uid
    elif isinstance(said, payloads.HoldPlaced):
        held = [node.state.changes.get(said.change)] if said.change else list(node.state.changes.values())
        text = f"{by} holds {said.change or 'this node'} on {where}, until {_clock(said.ends)}: {said.reason}"
        out = [(_person(c.owner), text) for c in held if c is not None and c.members][:CHANGES_MAX]
    elif isinstance(said, payloads.WindowExtended):
        change = node.state.changes.get(said.change)
        if change is not None and change.state == life.OPEN:
            out = [(_person(change.owner), f"{by} gave {said.change} on {where} more time")]
    return [(uid, line) for uid, line in dict.fromkeys(out) if type(uid) is int and uid != doer]


def _concerned(
    said: payloads.RolledBack | payloads.Committed, resources: Iterable[str]
) -> list[tuple[int | None, str]]:
    """The owner of a change, and the other people who had changed something of it. Each gets only the names of their
    own part, because names in closed directories are not for everybody. Where a decision has several records, the owner
    hears of the first."""
    names = sorted(resources)
    whose: dict[int | None, list[str]] = {_person(said.owner): names}
    for resource in names:
        for uid in dict.fromkeys(map(_person, said.also.get(resource, ()))):
            if whose.get(uid) is not names:
                whose.setdefault(uid, []).append(resource)
    if is_later(said.part):
        del whose[_person(said.owner)]
    more_follow = not is_last(said.part)
    return [
        (uid, _first(mine) if mine is names and more_follow else _names(mine, len(mine))) for uid, mine in whose.items()
    ]


def _person(owner: Owner) -> int | None:
    """The uid of a person; ``None`` for a service, because nobody would read the line."""
    return None if owner.key.startswith("unit:") else owner.uid


def _names(resources: Iterable[str], count: int) -> str:
    named = list(resources)[:NAMED_MAX]
    more = f" and {count - len(named)} more" if count > len(named) else ""
    return ", ".join(named) + more


def _first(resources: Sequence[str]) -> str:
    """The first names, where another record has more."""
    return ", ".join(resources[:NAMED_MAX]) + " and many more"


def _clock(text: str) -> str:
    from datetime import datetime

    return f"{datetime.fromisoformat(text).astimezone():%H:%M:%S}"


def on_terminals(uid: int, line: str) -> None:
    """Write a line to every terminal of this user that accepts messages. Never waits, never fails."""
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
    """The terminals that belong to this user and accept messages (``mesg y``), the most recently used first."""
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
