"""Events that the core has not got because nothing could be recorded, and that nobody would repeat.  # J9"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pact.core.node.events import ContactChanged, Covered, Denied, Event, FleetTold, JobsEnded, Reconfigured
from pact.core.node.suspend import older
from pact.host.notify import log

#: Events that are passed later if they cannot be recorded now.
OWED: Final = (Covered, Denied, FleetTold, ContactChanged, Reconfigured, JobsEnded)
OWED_MAX: Final = 1000
DENIED_MAX: Final = 20


class Owed:
    """Events in order. If only the newest of a type counts, only that is kept. Refusals come last, and only few are
    kept of each person: nobody's refusals keep the drift of others from being recorded.
    """

    def __init__(self, note_denied: Callable[[int | None], None]) -> None:
        """``note_denied`` is called with the user of each refusal."""
        self._events: list[Event] = []
        self._denied: list[Denied] = []
        self._beyond: dict[int | None, int] = {}  # user -> refusals that are only counted
        self._note_denied = note_denied

    def __bool__(self) -> bool:
        """Whether something besides refusals is owed."""
        return bool(self._events)

    def add(self, event: Event) -> None:
        if isinstance(event, FleetTold) and any(isinstance(e, FleetTold) and older(event, e) for e in self._events):
            return  # a delayed message of the root
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
        """Take the next event out. A hold of the fleet comes before anything else."""
        self._events.sort(key=lambda e: isinstance(e, Covered))
        return self._events.pop(0) if self._events else None

    def next_denied(self) -> Denied | None:
        """Take the next refusal out. The last one of a person with many says how many."""
        if not self._denied:
            return None
        event = self._denied.pop(0)
        uid = event.caller.actor.uid
        beyond = 0 if any(e.caller.actor.uid == uid for e in self._denied) else self._beyond.pop(uid, 0)
        why = f"{event.why}; and {beyond} more like it while nothing could be recorded" if beyond else event.why
        return replace(event, why=why)
