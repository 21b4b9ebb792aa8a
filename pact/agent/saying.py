"""Lines about records in the service's log."""

from __future__ import annotations

from typing import Final

from pact.core.node import payloads
from pact.core.records import Record, is_last
from pact.host.notify import log

WHY: Final = {
    "expired": ", whose window has ended",
    "retry": ", whose consumers have left",
    "restart": ", to tell who reads it, after a kill",
    "owed": ", to tell who reads it, as was still owed",
}


def say(record: Record) -> None:
    """Log a record, if the service's log should have it."""
    said = payloads.of(record)
    what = record.type.replace("_", " ")
    if isinstance(said, payloads.RolledBack | payloads.RollbackFailed) and not is_last(said.part):
        return  # the last one says it
    if isinstance(said, payloads.RolledBack):
        why = WHY.get(said.cause, "")
        few = ", ".join(sorted(said.results)[:5])
        log(f"rolled back {said.change} of {said.owner.user}{why}: {few}")
    elif isinstance(said, payloads.CommitExpired):
        log(f"a commit of {said.owner.user} for a time has ended: {', '.join(sorted(said.resources)[:5])}")
    elif isinstance(said, payloads.RollbackBlocked | payloads.RollbackFailed):
        log(f"{what}: {said.change}: {said.reason}", 4)
    elif isinstance(said, payloads.EmergencyStarted | payloads.EmergencyStale):
        log(f"{what}: {said.reason}", 4)
    elif isinstance(said, payloads.EmergencyEnded):
        log(f"{what}: {said.how}", 4)
    elif isinstance(said, payloads.ObserverBlind):
        log(f"{what}: {said.why}", 4)
