"""Extend: a change gets more time."""

from __future__ import annotations

from typing import Final

from pact.core import ops
from pact.core.node import change as life
from pact.core.node import payloads
from pact.core.node.commit import TTL_MAX_NS
from pact.core.node.desk import Desk
from pact.core.node.events import Asked
from pact.core.node.select import select
from pact.errors import EXIT_DONE, UsageError

EXTEND_MAX_NS: Final = TTL_MAX_NS


def asked_extend(node: Desk, event: Asked[ops.Extend]) -> None:
    by_ns = event.request.by_ns
    picked = select(node, event.caller, "extend", event.request.targets)
    if not 0 < by_ns <= EXTEND_MAX_NS:
        raise UsageError("extend by more than nothing and at most 10d")
    for cid in picked:
        change = node.state.changes[cid]
        if change.state in (life.OPEN, life.HELD) and change.extension_ns + by_ns > EXTEND_MAX_NS:
            raise UsageError(f"{cid} would be extended by more than 10d in all", "commit it, for a time: --ttl D")
    out = []
    for cid in picked:
        was = node.state.changes[cid].state
        reopened = was in (life.BLOCKED, life.FAILED)
        node.record(payloads.WindowExtended(change=cid, by_ns=by_ns, reopened=reopened), event.caller.actor)
        deadline_ns = node.state.deadline_ns(node.state.changes[cid])
        out.append({"change": cid, "was": was, "deadline": None if deadline_ns is None else node.wall_of(deadline_ns)})
    node.reply(event.token, {"extended": out}, EXIT_DONE, "" if out else "nothing to extend")
