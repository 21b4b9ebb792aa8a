"""The state in the form for people and programs: status, diff, log. Nothing here changes anything.

``veil`` leaves out what the caller may not see.  # S2
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from pact._fast import syscalls
from pact.agent.textdiff import unified
from pact.agent.veil import Veil, command_for, holder_for, is_secret
from pact.core.node import change as life
from pact.core.node import tracked
from pact.core.node.batch import wanted_by_jobs
from pact.core.node.change import Change, Member
from pact.core.node.events import Caller
from pact.core.node.places import folding
from pact.core.node.step import Node
from pact.core.node.windows import magnitude
from pact.core.records import rfc3339
from pact.core.settings import BILLION
from pact.errors import UsageError
from pact.model import Attrs, Holder, Json, Owner, decode_name, split_id
from pact.resources import KINDS
from pact.resources.base import Blobs
from pact.resources.support.way import hangs

DIFF_MAX: Final = 64 << 10
#: How many untracked things status and diff name.
UNTRACKED_SHOWN: Final = 200
UNTRACKED_MAX: Final = 2_000


def overall(node: Node, unrecorded: Collection[str]) -> str:
    """The state in a word. Drift that is observed while there is no journal counts too.  # J4"""
    state = node.state.overall()
    return "drifted" if unrecorded and state in ("committed", "unconfigured") else state


@dataclass(slots=True)
class New:
    """What a status says of untracked things."""

    listed: list[dict[str, Any]]
    places: list[dict[str, Any]]


def gather_new(node: Node, caller: Caller, veil: Veil, new: New) -> Iterator[None]:
    """Step by step; each step is short, however many there are."""
    for entry in each_untracked(node, caller, veil):
        if entry is not None:
            new.listed.append(entry)
            if len(new.listed) == UNTRACKED_SHOWN:
                break
        yield
    yield from folding(node)
    for place, user, count, first in node.pace.folded[1]:
        if _may_see(caller, first):
            new.places.append({"place": place, "user": user or "nobody in particular", "count": count})
        yield


def status(
    node: Node,
    caller: Caller,
    new: New,
    *,
    now_ns: int,
    wall_ns: int,
    observers: Mapping[str, str],
    journal: Mapping[str, Any],
    unrecorded: Collection[str] = (),
) -> dict[str, Any]:
    """The document of ``pact --json status``."""
    state = node.state
    sums = state.sums()
    total = sum(sums.values())
    drifted = sum(len(c.members) for c in state.changes.values())
    emergency = state.emergency
    out: dict[str, Any] = {
        "v": 1,
        "node": node.name,
        "state": overall(node, unrecorded),
        "mode": "enforce" if state.settings.enforce else "observe",
        "magnitude": round(magnitude(total), 6),
        "dimensions": {d: round(magnitude(s), 6) for d, s in sums.items()},
        "declared": state.declared_count,
        "drifted": drifted,
        "unreadable": len(node.unreadable),
        "observers": dict(observers),
        "changes": [change_json(node, c, caller, now_ns, wall_ns) for c in state.changes.values() if c.members],
        "emergency": None
        if emergency is None
        else {
            "reason": emergency.reason,
            "by": emergency.by,
            "started": emergency.started,
            "ends": _wall(emergency.ends_ns, now_ns, wall_ns),
            "stale": emergency.stale,
        },
        "holds": [
            {
                "id": h.id,
                "change": h.change,
                "owner": h.owner.user,
                "reason": h.reason,
                "placed": h.placed,
                "ends": _wall(h.ends_ns, now_ns, wall_ns),
            }
            for h in state.holds.values()
        ],
        "journal": dict(journal),
        "window_s": round(state.windows.now_w / 1e9, 3),
        "trials": [
            {"resource": r, "by": t.owner.user, "ends": _wall(t.expires_ns, now_ns, wall_ns)}
            for r, t in sorted(state.ttls.items())
        ],
        "unreadable_resources": dict(list(node.unreadable.items())[:20]),
        "untracked": tracked.count(node),
        "untracked_resources": [u for u in new.listed if tracked.shown(node, u["resource"]) is not None],
        "untracked_places": new.places,
        "untracked_beyond": dict(node.pace.beyond) if caller.actor.role == "admin" else {},
    }
    pending = list(unrecorded)
    if pending:
        out["unrecorded"] = {"count": len(pending), "resources": pending[:20]}
    return out


def each_untracked(
    node: Node, caller: Caller, veil: Veil, wanted: Collection[str] | None = None
) -> Iterator[dict[str, Any] | None]:
    """Yields one at a time, ``None`` for one that is left out: each takes a look at the way to it. Things that come or
    go meanwhile are left out."""
    for resource in sorted(tracked.names(node) if wanted is None else wanted):
        found = tracked.shown(node, resource)
        if found is None or not _may_see(caller, resource):
            yield None
            continue
        kind, owner = split_id(resource)[0], found.owner
        actual: Attrs | None = dict(found.actual)
        if caller.actor.role != "admin":
            actual = veil.attrs(resource, actual, secret=KINDS[kind].secret(actual))
        yield {
            "resource": resource,
            "kind": kind,
            "seen": found.seen,
            "actual": actual,
            "owner": owner_json(owner, caller, owner.command),
        }


def owner_json(owner: Owner, caller: Caller, command: str) -> Json:
    """An owner as this caller may see it; ``run`` names the tool, if its work is a change of its own.  # O5"""
    tool = owner.run.partition("#")[0]
    return {
        "user": owner.user,
        "uid": owner.uid,
        "session": owner.session,
        "command": command_for(caller, owner.uid, command),
        **({"run": tool} if tool else {}),
    }


def _may_see(caller: Caller, resource: str) -> bool:
    """Names in closed directories are only for admins.  # S2"""
    kind, name = split_id(resource)
    return caller.actor.role == "admin" or KINDS[kind].reachable(name)


def _wall(t_ns: int, now_ns: int, wall_ns: int) -> str:
    return rfc3339(wall_ns + t_ns - now_ns)


def change_json(node: Node, change: Change, caller: Caller, now_ns: int, wall_ns: int) -> dict[str, Any]:
    """One change as ``status`` shows it."""
    deadline_ns = node.state.deadline_ns(change)
    group = node.state.groups.get(change.group)
    if group is not None and change.state == life.OPEN:  # the root keeps its window
        deadline_ns = group.ends_ns
    owner = change.owner
    return {
        "id": change.id,
        "state": change.state,
        "owner": owner_json(owner, caller, owner.command),
        "also": also_of(caller, change.members.values()),
        "resources": sorted(change.members),
        "opened": _wall(change.opened_ns, now_ns, wall_ns),
        "seen": max((m.seen for m in change.members.values()), default=""),
        "deadline": None if deadline_ns is None else _wall(deadline_ns, now_ns, wall_ns),
        "remaining_s": None if deadline_ns is None else round(max(0, deadline_ns - now_ns) / 1e9, 3),
        "consumers": holders_for(caller, change.holders),
        "reason": change.reason,
        "message": change.message,
        "magnitude": round(magnitude(change.sum_n), 6),
        "holds": [h.id for h in node.state.held_by(change.id)],
        "group": change.group or None,
    }


def also_of(caller: Caller, members: Iterable[Member]) -> list[dict[str, Any]]:
    """The other owners who have written these since they last conformed.  # C9"""
    others = {o.key: o for m in members for o in m.also}
    return [{"user": o.user, "uid": o.uid, "command": command_for(caller, o.uid, o.command)} for o in others.values()]


def holders_for(caller: Caller, holders: Iterable[Holder]) -> list[dict[str, Any]]:
    return [holder_for(caller, h.to_json()) for h in holders]


# -- diff -----------------------------------------------------------------------------------------------------------


def diff_ids(node: Node, caller: Caller, targets: Collection[str]) -> list[str]:
    """The resources of a diff. Raises UsageError for a target that is neither a change nor declared, or whose name the
    caller may not know."""
    state, admin = node.state, caller.actor.role == "admin"
    if not targets:
        return list(state.member_of)
    wanted: dict[str, None] = {}
    for target in dict.fromkeys(targets):  # a change that is named a thousand times is gone through once
        if target in state.changes:
            wanted.update(dict.fromkeys(state.changes[target].members))
        elif target in state and (admin or target not in state.closed):
            if target in state.member_of:
                wanted[target] = None
        elif (new := tracked.known(node, target)) is None or not (admin or not new.actual.get("secret")):
            raise UsageError(f"{target} is neither a change nor a declared resource", "pact status lists the changes")
    return list(wanted)


@dataclass(frozen=True, slots=True)
class Differing:
    """One entry of a diff without its text, and the data from which the text is made."""

    entry: dict[str, Any]
    declared: Attrs | None
    actual: Attrs | None

    def written(self, blobs: Blobs) -> bytes:
        """The entry as JSON, with its text: not for the loop's thread."""
        shown = self.entry
        if "hidden" not in shown:
            text = text_diff(shown["id"], self.declared, self.actual, blobs, split_id(shown["id"])[1])
            shown = {**shown, "diff": text}
        return orjson.dumps(shown)


def differing(node: Node, caller: Caller, veil: Veil, resource: str) -> Differing | None:
    """``None`` if the resource no longer has drift."""
    state = node.state
    change, declared = state.change_of(resource), state.declared(resource)
    if change is None or declared is None:
        return None
    member = change.members[resource]
    kind_name, _ = split_id(resource)
    admin = caller.actor.role == "admin"
    secret = is_secret(resource, declared.attrs) or KINDS[kind_name].secret(member.actual)
    hide = not admin and (secret or resource in state.closed)

    def shown(attrs: Attrs | None) -> Attrs | None:
        return attrs if admin else veil.attrs(resource, attrs, secret=hide)

    owner = change.owner
    entry = {
        "id": resource,
        "kind": kind_name,
        "declared": shown(declared.attrs),
        "actual": shown(member.actual),
        "deviation": member.deviation_n / BILLION,
        "change": change.id,
        "owner": owner_json(owner, caller, member.command),
        "also": also_of(caller, [member]),
        "moved_with": member.moved_with or None,
        "seen": member.seen,
        "diff": None,
        **({"hidden": True} if hide else {}),
    }
    entry = entry if admin else veil.unnamed(entry, node.closed_names())
    return Differing(entry, declared.attrs, member.actual)


def text_diff(resource: str, declared: Attrs | None, actual: Attrs | None, blobs: Blobs, name: str) -> str | None:
    """A unified diff of text content, ``None`` if there is none. The present content is read now."""
    kind = KINDS[split_id(resource)[0]]
    if not kind.reads_path:
        return None
    if declared is not None and declared.get("size", 0) > DIFF_MAX:
        return None
    before = kind.text(declared, blobs)
    after = None
    if actual is not None and actual.get("size", DIFF_MAX + 1) <= DIFF_MAX:
        after = kind.text(actual, lambda digest: _live(name, digest))
    if before is None and declared is not None and kind.has_content(declared):
        return None
    if after is None and actual is not None and kind.has_content(actual):
        return None
    if before is None and after is None:
        return None
    return unified(before or "", after or "", name)[:DIFF_MAX] or None


def _live(name: str, digest: str) -> bytes | None:
    """The content on disk, if it still is the recorded one. No symbolic link is followed on the way."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        if hangs(decode_name(name)):
            return None
        fd = syscalls.openat2(syscalls.AT_FDCWD, decode_name(name), flags, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        content = os.read(fd, DIFF_MAX + 1)
    except OSError:
        return None
    finally:
        os.close(fd)
    return content if hashlib.sha256(content).hexdigest() == digest else None


def check_line(node: Node, unrecorded: Collection[str], journal_error: str, apart: bool = False) -> tuple[str, int]:
    """One line for a health check, and 0 or 11: a node without declared resources is not in order; one on which jobs
    have what their prologs set is. ``apart``: the root has another journal of this node; that harms no job, and is only
    said."""
    state = node.state
    for_jobs = wanted_by_jobs(state)
    drifted = sum(len(c.members) for c in state.changes.values() if c.id not in for_jobs)
    parts = [f"{drifted} of {state.declared_count} drifted" if drifted else f"{state.declared_count} declared"]
    if for_jobs:
        parts.append(f"{sum(len(state.changes[c].members) for c in for_jobs)} set for jobs")
    blocked = [c.id for c in state.changes.values() if c.state in (life.BLOCKED, life.FAILED)]
    if blocked:
        parts.append("needs a decision: " + ", ".join(blocked[:5]))
    if state.emergency is not None:
        parts.append(f"emergency by {state.emergency.by}" + (" is stale" if state.emergency.stale else ""))
    if unrecorded:
        parts.append(f"{len(unrecorded)} drifted but not recorded")
    if new := tracked.count(node):
        parts.append(f"{new} untracked")
    if journal_error:
        parts.append(journal_error)
    if apart:
        parts.append("the root has another journal of this node, and takes no more of this one")
    bad = drifted or unrecorded or not state.declared_count
    return f"{overall(node, unrecorded)}: {'; '.join(parts)}", 11 if bad else 0
