"""Emergency mode and holds: when auto-rollback is suspended, by whom, and until when.

Precedence: observe mode over emergency over hold over window.  # P1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pact.core import ops
from pact.core.node import access, bonds, commit, payloads, rollback
from pact.core.node import change as life
from pact.core.node.desk import Desk
from pact.core.node.events import Asked, Caller, FleetTold
from pact.core.node.jobs import Committing
from pact.core.node.select import require_shared, select_one
from pact.core.node.state import Emergency, Hold
from pact.errors import ConflictError, DeniedError, UsageError
from pact.model import NS_PER_S, Json, Owner

FOR_MAX_NS: Final = 30 * 24 * 3600 * NS_PER_S


def _reason(event: Asked[ops.EmergencyStart] | Asked[ops.HoldPlace]) -> str:
    reason = event.request.reason.strip()
    if not reason:
        raise UsageError("--reason must say why")
    return reason


def _for_ns(event: Asked[ops.EmergencyStart] | Asked[ops.HoldPlace], default_ns: int) -> int:
    given = event.request.for_ns
    for_ns = default_ns if given is None else given
    if not 0 < for_ns <= FOR_MAX_NS:
        raise UsageError("--for must lie between nothing and 30d")
    return for_ns


# -- emergency ------------------------------------------------------------------------------------------------------


def asked_emergency_start(node: Desk, event: Asked[ops.EmergencyStart]) -> None:
    """Suspend all windows of the node.  # E1"""
    access.require(event.caller, "ops", "emergency")
    state = node.state
    reason, for_ns = _reason(event), _for_ns(event, state.settings.emergency_ns)
    if state.emergency is not None:
        raise ConflictError(
            f"already in emergency mode since {state.emergency.started}, by {state.emergency.by}", "pact emergency end"
        )
    ends = node.wall_of(node.t_ns + for_ns)
    node.record(
        payloads.EmergencyStarted(
            reason=reason,
            by=event.caller.owner.user,
            key=event.caller.owner.key,
            ends_ns=node.t_ns + for_ns,
            ends=ends,
        ),
        event.caller.actor,
    )
    node.reply(event.token, {"reason": reason, "ends": ends})


def asked_emergency_end(node: Desk, event: Asked[ops.EmergencyEnd]) -> None:
    """End the emergency. Settle the caller's own changes and those made during the emergency, as far as the caller may
    settle them; with ``all``, settle every change that the caller may. The rest start new windows. ``dry_run`` reports
    what would happen.  # E3
    """
    access.require(event.caller, "ops", "emergency")
    state, how = node.state, event.request.how
    emergency = state.emergency
    if emergency is None:
        raise ConflictError("the node is not in emergency mode")
    if how not in ("commit", "rollback"):
        raise UsageError("say how it ends: --commit -m TEXT, or --rollback")
    mine_to_end = emergency.key == event.caller.owner.key or emergency.by == event.caller.owner.user
    if not mine_to_end and not event.request.force:
        raise DeniedError(f"the emergency was started by {emergency.by}", "use --force if you must")
    picked = _to_settle(node, event, emergency)
    if event.request.dry_run:
        node.reply(
            event.token,
            {
                "how": how,
                "would": _described(node, picked),
                "left": [
                    {"change": c.id, "owner": c.owner.user}
                    for c in state.changes.values()
                    if c.members and c.id not in picked
                ],
            },
        )
        return
    require_shared(node, event.caller, picked, "emergency end", event.request.shared)
    mine = {cid: list(ids) for cid, ids in picked.items()}
    if how == "commit":
        _end_with_commit(node, event, mine)
    else:
        _end_with_rollback(node, event, mine)


def _to_settle(node: Desk, event: Asked[ops.EmergencyEnd], emergency: Emergency) -> dict[str, list[str]]:
    picked: dict[str, list[str]] = {}
    for change in node.state.changes.values():
        mine = access.may_settle(event.caller, change)
        if not mine or change.state == life.ROLLING or change.intents or change.group:
            continue
        ids = list(change.members)
        if not event.request.all and not event.caller.owns(change.owner):
            ids = [r for r, m in change.members.items() if m.opened_ns >= emergency.started_ns]
        if ids:
            picked[change.id] = change.bound_together(ids)
    return picked


def _described(node: Desk, picked: Mapping[str, Sequence[str]]) -> list[Json]:
    return [
        {"change": cid, "owner": node.state.changes[cid].owner.user, "resources": sorted(ids)}
        for cid, ids in picked.items()
    ]


def _end_with_commit(node: Desk, event: Asked[ops.EmergencyEnd], mine: dict[str, list[str]]) -> None:
    message = event.request.message.strip()
    if not message:
        raise UsageError("a commit needs a message", "pact emergency end --commit -m 'why'")
    ids = [r for members in mine.values() for r in members]
    if ids:
        commit.begin_commit(node, event, ids, Committing(message, end_emergency=True))
        return
    node.record(payloads.EmergencyEnded(how="commit", message=message), event.caller.actor)
    node.reply(event.token, {"committed": [], "left": []})


def _end_with_rollback(node: Desk, event: Asked[ops.EmergencyEnd], mine: dict[str, list[str]]) -> None:
    force = event.request.force
    rollback.refuse_in_observe_mode(node, dry=False)
    for cid in mine:
        rollback.refuse_held_or_busy(node, cid, force)
    node.record(payloads.EmergencyEnded(how="rollback"), event.caller.actor)
    rollback.rollback_many(node, event, mine, dry=False, force=force)


def stale(node: Desk) -> None:
    """The emergency's planned end has come: warn more strongly, and stay suspended. pact never starts a rollback by
    itself out of an emergency.  # E2"""
    emergency = node.state.emergency
    if emergency is not None and not emergency.stale:
        node.record(payloads.EmergencyStale(reason=emergency.reason, by=emergency.by))


# -- holds ----------------------------------------------------------------------------------------------------------


def asked_hold_place(node: Desk, event: Asked[ops.HoldPlace]) -> None:
    """Stop the clock of one change or of the whole node.  # H1"""
    access.require(event.caller, "ops", "hold")
    state, cid = node.state, event.request.change
    reason, for_ns = _reason(event), _for_ns(event, 0)
    if cid is not None:
        cid = select_one(node, event.caller, cid, "hold")
    hold = f"h{state.hold_n + 1}"
    ends = node.wall_of(node.t_ns + for_ns)
    node.record(
        payloads.HoldPlaced(
            hold=hold,
            change=cid,
            owner=event.caller.owner,
            reason=reason,
            ends_ns=node.t_ns + for_ns,
            ends=ends,
        ),
        event.caller.actor,
    )
    node.reply(event.token, {"hold": hold, "change": cid, "ends": ends})


def asked_hold_release(node: Desk, event: Asked[ops.HoldRelease]) -> None:
    """Release one hold by its name or by its change, or all holds of the caller."""
    access.require(event.caller, "ops", "hold")
    state, name = node.state, event.request.name
    mine = [h for h in state.holds.values() if _is_mine(event.caller, h)]
    picked = mine if name is None else [h for h in state.holds.values() if name in (h.id, h.change)]
    if not picked:
        if name is None and state.holds:
            raise DeniedError("none of the holds is yours", "name it: pact hold release HOLD")
        raise ConflictError(f"there is no hold {name}" if name else "there is no hold", "pact status lists them")
    if any(h.id.startswith("f") for h in picked) and name is not None:
        raise ConflictError(
            f"{name} stops the whole fleet: it is released at the root", f"pact hold release {name} --all"
        )
    picked = [h for h in picked if not h.id.startswith("f")]
    for hold in picked:
        if not _is_mine(event.caller, hold):
            access.require(event.caller, "admin", f"releasing the hold of {hold.owner.user}")
    for hold in picked:
        node.record(payloads.HoldReleased(hold=hold.id, change=hold.change, cause="released"), event.caller.actor)
    node.reply(event.token, {"released": [h.id for h in picked]})


def _is_mine(caller: Caller, hold: Hold) -> bool:
    own = caller.owner
    return hold.owner.key == own.key or (own.uid is not None and hold.owner.uid == own.uid)


def expire_hold(node: Desk, name: str) -> None:
    hold = node.state.holds.get(name)
    if hold is not None:
        node.record(payloads.HoldReleased(hold=hold.id, change=hold.change, cause="expired"))


# -- the fleet's stop -----------------------------------------------------------------------------------------------


def asked_fleet_seen(node: Desk, event: Asked[ops.FleetSeen]) -> None:
    """Take in the root's message about holds, and whether the root was heard."""
    request = event.request
    bonds.check_fence(node.state, request.fence)
    told(node, FleetTold(event.t_ns, event.wall_ns, request.fence, request.seq, request.holds))
    here = all(h["hold"] in node.state.holds for h in request.holds if h["left_ns"] > 0)
    seen = here and max(node.state.fleet_seq, node.fleet_seq) >= request.seq
    node.reply(event.token, {"seen": seen})


def older(event: FleetTold, than: FleetTold) -> bool:
    """Whether this message is older: from an earlier root, or an earlier one of the same root. Messages may arrive out
    of order, so code that keeps one for later keeps the newest.  # G8"""
    return (event.fence, event.seq) < (than.fence, than.seq)


def told(node: Desk, event: FleetTold) -> None:
    """Take in the root's holds for all nodes. An older message changes nothing.  # G8"""
    state = node.state
    newest = max(state.fence, node.fleet_fence)
    known = node.fleet_seq if event.fence == node.fleet_fence else max(state.fleet_seq, node.fleet_seq)
    if event.fence < newest or (event.fence == newest and event.seq < known):
        return
    # A hold that has ended here since is not placed again.
    again = (event.fence, event.seq) == (node.fleet_fence, node.fleet_seq)
    node.fleet_fence, node.fleet_seq = event.fence, event.seq
    wanted = {h["hold"]: h for h in event.holds}
    for name in [n for n in state.holds if n.startswith("f") and n not in wanted]:
        node.record(
            payloads.HoldReleased(hold=name, change=None, cause="released", fence=event.fence, fleet_seq=event.seq)
        )
    for name, hold in wanted.items():
        if name in state.holds or hold["left_ns"] <= 0 or again:
            continue
        owner = Owner("cluster:" + hold["owner"], hold["owner"])
        node.record(
            payloads.HoldPlaced(
                hold=name,
                change=None,
                owner=owner,
                reason=hold["reason"],
                fence=event.fence,
                ends_ns=node.t_ns + hold["left_ns"],
                ends=node.wall_of(node.t_ns + hold["left_ns"]),
                fleet_seq=event.seq,
            )
        )
