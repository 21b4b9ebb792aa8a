"""What the core has not heard because nothing could be recorded: nobody would say it again.  # J9"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pact.core.node.events import ContactChanged, Covered, Denied, Event, FleetTold, Reconfigured
from pact.core.node.suspend import older
from pact.host.notify import log

#: Events that are heard later if they cannot be recorded now.
OWED: Final = (Covered, Denied, FleetTold, ContactChanged, Reconfigured)
OWED_MAX: Final = 1000
DENIED_MAX: Final = 20


class Owed:
    """Kept in order; of what the newest alone counts, the newest. Refusals come last, and are few of one person: nobody
    keeps others' drift from being recorded with his.
    """

    def __init__(self, note_denied: Callable[[int | None], None]) -> None:
        """``note_denied`` is called with the user of each refusal."""
        self._events: list[Event] = []
        self._denied: list[Denied] = []
        self._beyond: dict[int | None, int] = {}  # user -> refusals that are only counted
        self._note_denied = note_denied

    def __bool__(self) -> bool:
        """Something beside refusals is owed."""
        return bool(self._events)

    def add(self, event: Event) -> None:
        if isinstance(event, FleetTold) and any(isinstance(e, FleetTold) and older(event, e) for e in self._events):
            return  # a word of the root that was late
        if isinstance(event, FleetTold | ContactChanged | Reconfigured):
            self._events = [e for e in self._events if type(e) is not type(event)]
        if isinstance(event, Denied):
            self._add_denied(event)
        elif len(self._events) < OWED_MAX:
            self._events.append(event)
        else:
            log("more was mounted over declared paths than is remembered while nothing can be recorded", 4)

    def _add_denied(self, event: Denied) -> None:
        uid = event.caller.actor.uid
        self._note_denied(uid)
        mine = [e for e in self._denied if e.caller.actor.uid == uid]
        self._beyond[uid] = self._beyond.get(uid, 0) + (len(mine) >= DENIED_MAX)
        if len(mine) < DENIED_MAX and len(self._denied) < OWED_MAX:
            self._denied.append(event)

    def next(self) -> Event | None:
        """What is to be heard next; it is owed no more. A stop of the fleet is heard before anything else."""
        self._events.sort(key=lambda e: isinstance(e, Covered))
        return self._events.pop(0) if self._events else None

    def next_denied(self) -> Denied | None:
        """The next refusal. Of one person's many the last says how many."""
        if not self._denied:
            return None
        event = self._denied.pop(0)
        uid = event.caller.actor.uid
        beyond = 0 if any(e.caller.actor.uid == uid for e in self._denied) else self._beyond.pop(uid, 0)
        why = f"{event.why}; and {beyond} more like it while nothing could be recorded" if beyond else event.why
        return replace(event, why=why)
