"""Lines in the service's log about records."""

from __future__ import annotations

from pact.core.records import Record
from pact.host.notify import log


def say(record: Record) -> None:
    """What the service's log should tell of it, if anything."""
    data = record.data
    if record.type == "rolled_back":
        why = {"expired": ", whose window has ended", "retry": ", whose consumers have left"}.get(data["cause"], "")
        few = ", ".join(sorted(data["results"])[:5])
        log(f"rolled back {data['change']} of {data['owner']['user']}{why}: {few}")
    elif record.type == "commit_expired":
        log(f"a commit of {data['owner']['user']} for a time has ended: {', '.join(sorted(data['resources'])[:5])}")
    elif record.type in ("rollback_blocked", "rollback_failed"):
        log(f"{record.type.replace('_', ' ')}: {data['change']}: {data['reason']}", 4)
    elif record.type in ("emergency_started", "emergency_stale", "emergency_ended", "observer_blind"):
        log(record.type.replace("_", " ") + ": " + str(data.get("reason") or data.get("why") or data.get("how")), 4)
