"""What people and programs see of the state: status, diff, log. Nothing here changes anything.

What is not for the caller's eyes is left out here and nowhere else.  # S2
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import orjson

from pact._fast import syscalls
from pact.agent.textdiff import unified
from pact.core import change as life
from pact.core import strict, tracked
from pact.core.change import Change, Member
from pact.core.events import Caller
from pact.core.node import Node
from pact.core.places import places
from pact.core.records import rfc3339
from pact.core.settings import BILLION
from pact.core.windows import magnitude
from pact.errors import UsageError
from pact.model import Attrs, decode_name, split_id
from pact.resources import KINDS
from pact.resources.base import Blobs
from pact.resources.consumers import started_at
from pact.resources.mount_secrets import shown as without_passwords
from pact.resources.way import hangs

DIFF_MAX: Final = 64 << 10
HIDDEN: Final = "(hidden)"
#: Untracked things that status and diff name.
UNTRACKED_SHOWN: Final = 200
UNTRACKED_MAX: Final = 2_000


def overall(node: Node, unrecorded: Collection[str]) -> str:
    """The state in a word: without a journal too, what is seen to have drifted has drifted.  # J4"""
    state = node.state.overall()
    return "drifted" if unrecorded and state in ("committed", "unconfigured") else state


def status(node: Node, caller: Caller, *, now_ns: int, wall_ns: int, observers: Mapping[str, str],
           journal: Mapping[str, Any], unrecorded: Collection[str] = ()) -> dict[str, Any]:  # fmt: skip
    """The document of ``pact --json status``."""
    state = node.state
    sums = state.sums()
    total = sum(sums.values())
    drifted = sum(len(c.members) for c in state.changes.values())
    emergency = state.emergency
    out: dict[str, Any] = {
        "v": 1, "node": node.name, "state": overall(node, unrecorded),
        "mode": "enforce" if state.settings.enforce else "observe",
        "magnitude": round(magnitude(total), 6),
        "dimensions": {d: round(magnitude(s), 6) for d, s in sums.items()},
        "declared": state.declared_count, "drifted": drifted, "unreadable": len(node.unreadable),
        "observers": dict(observers),
        "changes": [change_json(node, c, caller, now_ns, wall_ns) for c in state.changes.values() if c.members],
        "emergency": None if emergency is None else {
            "reason": emergency.reason, "by": emergency.by, "started": emergency.started,
            "ends": _wall(emergency.ends_ns, now_ns, wall_ns), "stale": emergency.stale,
        },
        "holds": [
            {"id": h.id, "change": h.change, "owner": h.owner["user"], "reason": h.reason, "placed": h.placed,
             "ends": _wall(h.ends_ns, now_ns, wall_ns)} for h in state.holds.values()
        ],
        "journal": dict(journal), "window_s": round(state.windows.now_w / 1e9, 3),
        "trials": [
            {"resource": r, "by": t.owner["user"], "ends": _wall(t.expires_ns, now_ns, wall_ns)}
            for r, t in sorted(state.ttls.items())
        ],
        "unreadable_resources": dict(list(node.unreadable.items())[:20]),
        "untracked": tracked.count(node), "untracked_resources": untracked(node, caller, UNTRACKED_SHOWN),
        "untracked_places": [
            {"place": place, "user": user or "nobody in particular", "count": count}
            for place, user, count, first in places(node) if _may_see(caller, first)
        ],
        "untracked_beyond": dict(node.pace.beyond) if caller.actor.role == "admin" else {},
    }  # fmt: skip
    pending = list(unrecorded)
    if pending:
        out["unrecorded"] = {"count": len(pending), "resources": pending[:20]}
    return out


def untracked(node: Node, caller: Caller, most: int, wanted: Collection[str] | None = None) -> list[dict[str, Any]]:
    """What is untracked and who made it."""
    return list(islice(each_untracked(node, caller, wanted), most))


def each_untracked(node: Node, caller: Caller, wanted: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """One by one; what comes or goes meanwhile is not among it."""
    for resource, found in list(tracked.listed(node)):
        if wanted is not None and resource not in wanted:
            continue
        if not _may_see(caller, resource):
            continue
        kind, owner = split_id(resource)[0], found.owner
        actual = dict(found.actual) if caller.actor.role == "admin" else without_passwords(found.actual)
        yield {
            "resource": resource, "kind": kind, "seen": found.seen, "actual": actual,
            "owner": {"user": owner["user"], "uid": owner["uid"], "session": owner["session"],
                      "command": command_for(caller, owner["uid"], owner["command"])},
        }  # fmt: skip


def _may_see(caller: Caller, resource: str) -> bool:
    """Names in closed directories are for admins alone.  # S2"""
    kind, name = split_id(resource)
    return caller.actor.role == "admin" or KINDS[kind].reachable(name)


def _wall(t_ns: int, now_ns: int, wall_ns: int) -> str:
    return rfc3339(wall_ns + t_ns - now_ns)


def change_json(node: Node, change: Change, caller: Caller, now_ns: int, wall_ns: int) -> dict[str, Any]:
    """One change as ``status`` shows it."""
    deadline_ns = node.state.deadline_ns(change)
    group = node.state.groups.get(change.group)
    if group is not None and change.state == life.OPEN:  # the root's window
        deadline_ns = group.ends_ns
    owner = change.owner
    return {
        "id": change.id, "state": change.state,
        "owner": {"user": owner.user, "uid": owner.uid, "session": owner.session,
                  "command": command_for(caller, owner.uid, owner.command)},
        "also": also_of(caller, change.members.values()),
        "resources": sorted(change.members), "opened": _wall(change.opened_ns, now_ns, wall_ns),
        "deadline": None if deadline_ns is None else _wall(deadline_ns, now_ns, wall_ns),
        "remaining_s": None if deadline_ns is None else round(max(0, deadline_ns - now_ns) / 1e9, 3),
        "consumers": [_holder(h, caller) for h in change.holders], "reason": change.reason, "message": change.message,
        "magnitude": round(magnitude(change.sum_n), 6),
        "holds": [h.id for h in node.state.held_by(change.id)], "group": change.group or None,
    }  # fmt: skip


def also_of(caller: Caller, members: Iterable[Member]) -> list[dict[str, Any]]:
    """Who else wrote these since they last conformed.  # C9"""
    others = {o["key"]: o for m in members for o in m.also}
    return [{"user": o["user"], "uid": o["uid"], "command": command_for(caller, o["uid"], o["command"])}
            for o in others.values()]  # fmt: skip


def command_for(caller: Caller, uid: int | None, command: str) -> str:
    """Of other people's command lines, viewers see the program's name."""
    if caller.actor.role != "viewer" or (uid is not None and uid == caller.owner.uid):
        return command
    return command.split(" ", maxsplit=1)[0].rpartition("/")[2]


def _holder(holder: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    uid = holder.get("uid")
    shown = {**holder, "command": command_for(caller, uid, str(holder.get("command", "")))}
    if holder.get("pid") and _has_ended(holder):
        shown["gone"] = True
    if caller.actor.role == "viewer" and uid != caller.owner.uid:
        shown["path"] = ""  # the names of other people's open files are theirs
    return shown


def _has_ended(holder: Mapping[str, Any]) -> bool:
    """Since it was recorded; who has its number now is somebody else."""
    start = started_at(holder["pid"])
    return start is None or start != holder.get("start", start)


def holders_for(caller: Caller, holders: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [_holder(h, caller) for h in holders]


# -- diff -----------------------------------------------------------------------------------------------------------


def diff_ids(node: Node, targets: Collection[str]) -> list[str]:
    """What a diff shows. Raises UsageError for a target that is neither change nor declared."""
    state = node.state
    if not targets:
        return list(state.member_of)
    wanted: dict[str, None] = {}
    for target in targets:
        if target in state.changes:
            wanted.update(dict.fromkeys(state.changes[target].members))
        elif target in state:
            if target in state.member_of:
                wanted[target] = None
        elif tracked.known(node, target) is None:
            raise UsageError(f"{target} is neither a change nor a declared resource", "pact status lists the changes")
    return list(wanted)


@dataclass(frozen=True, slots=True)
class Differing:
    """One entry of a diff but for its text, and what that is made of."""

    entry: dict[str, Any]
    declared: Attrs | None
    actual: Attrs | None

    def written(self, blobs: Blobs) -> bytes:
        """The entry as JSON, with its text: work for a thread that is not the loop's."""
        shown = self.entry
        if "hidden" not in shown:
            text = text_diff(shown["id"], self.declared, self.actual, blobs, split_id(shown["id"])[1])
            shown = {**shown, "diff": text}
        return orjson.dumps(shown)


def differing(node: Node, caller: Caller, resource: str) -> Differing | None:
    """``None`` if it has drifted no more."""
    state = node.state
    change, declared = state.change_of(resource), state.declared(resource)
    if change is None or declared is None:
        return None
    member = change.members[resource]
    kind_name, _ = split_id(resource)
    hide = caller.actor.role != "admin" and (
        is_secret(resource, declared.attrs) or KINDS[kind_name].secret(member.actual))  # fmt: skip
    owner = change.owner
    return Differing({
        "id": resource, "kind": kind_name, "declared": visible(declared.attrs, caller, hide),
        "actual": visible(member.actual, caller, hide), "deviation": member.deviation_n / BILLION,
        "change": change.id,
        "owner": {"user": owner.user, "uid": owner.uid, "session": owner.session,
                  "command": command_for(caller, owner.uid, member.command)},
        "also": also_of(caller, [member]), "moved_with": member.moved_with or None, "seen": member.seen,
        "diff": None, **({"hidden": True} if hide else {}),
    }, declared.attrs, member.actual)  # fmt: skip


def is_secret(resource: str, attrs: Attrs | None) -> bool:
    """Its content is not for everybody: by its own mode, or because a directory on the way is closed.  # S2"""
    kind, name = split_id(resource)
    return KINDS[kind].secret(attrs) or not KINDS[kind].reachable(name)


def save_is_secret(resource: str, save: Mapping[str, Any]) -> bool:
    """Whether kept content is for admins alone: by what was found when it was taken (a record that does not say is
    none for everybody), or by what the path is now.  # S2"""
    return bool(save.get("secret", True)) or is_secret(resource, save.get("attrs"))


def visible(attrs: Attrs | None, caller: Caller, hide: bool) -> Attrs | None:
    """Attributes without what only admins may see (a secret's value and extended attributes; digests may be seen)."""
    if attrs is None or caller.actor.role == "admin":
        return attrs
    out = {k: HIDDEN if hide and k in ("value", "reads", "target") else v for k, v in attrs.items()}
    if "xattrs" in attrs:
        out["xattrs"] = masked_xattrs(attrs["xattrs"], readable=not hide and _world_readable(attrs))
    return without_passwords(out)


def _world_readable(attrs: Attrs) -> bool:
    return bool(int(attrs.get("mode", "0644"), 8) & 0o004)


def masked_xattrs(xattrs: Mapping[str, str], *, readable: bool) -> dict[str, str]:
    """The kernel shows ``user.*`` to who may read the file, ``trusted.*`` to root alone; the others to everybody."""
    closed = ("trusted.",) if readable else ("user.", "trusted.")
    return {k: HIDDEN if k.startswith(closed) else v for k, v in xattrs.items()}


def text_diff(resource: str, declared: Attrs | None, actual: Attrs | None, blobs: Blobs, name: str) -> str | None:
    """A unified diff of text content, ``None`` where there is none. The live content is read now."""
    if not resource.startswith("file:"):
        return None
    kind = KINDS["file"]
    if declared is not None and declared.get("size", 0) > DIFF_MAX:
        return None
    before = kind.text(declared, blobs)
    after = None
    if actual is not None and actual.get("size", DIFF_MAX + 1) <= DIFF_MAX:
        after = kind.text(actual, lambda digest: _live(name, digest))
    if before is None and declared is not None and declared.get("type") == "file":
        return None
    if after is None and actual is not None and actual.get("type") == "file":
        return None
    if before is None and after is None:
        return None
    return unified(before or "", after or "", name)[:DIFF_MAX] or None


def _live(name: str, digest: str) -> bytes | None:
    """The content on disk, if it still is the one that was recorded. No symbolic link is followed on the way."""
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


def exported(resource: str, attrs: Attrs) -> Attrs:
    """What ``export`` writes for who is no admin: extended attributes that are not for them are left out."""
    shown = masked_xattrs(attrs["xattrs"], readable=_world_readable(attrs) and not is_secret(resource, attrs))
    kept = {k: v for k, v in shown.items() if v != HIDDEN}
    return attrs if kept == shown else {**{k: v for k, v in attrs.items() if k != "xattrs"},
                                        **({"xattrs": kept} if kept else {})}  # fmt: skip


# -- log ------------------------------------------------------------------------------------------------------------


def record_line(body: bytes, hash_: str, caller: Caller) -> bytes:
    """One record as a line of ``pact --json log``. Admins get the very bytes that were hashed, and the hash."""
    if caller.actor.role == "admin":
        return body[:-1] + b',"hash":"' + hash_.encode() + b'"}'
    try:
        return orjson.dumps({**masked(strict.own(body), caller), "hash": hash_}, option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONEncodeError, RecursionError):
        return without_data(body, hash_)


def without_data(body: bytes, hash_: str) -> bytes:
    """A record that cannot be written again (nested too deeply: an older version let it in), or that no frame holds:
    everything but its data, so that its number is not missing.  # S5"""
    record = strict.own(body)
    actor = {k: v for k, v in record["actor"].items() if isinstance(v, str)}
    return orjson.dumps({**record, "actor": actor, "data": {"omitted": len(body)}, "hash": hash_},
                        option=orjson.OPT_SORT_KEYS)  # fmt: skip


def masked(value: Any, caller: Caller) -> Any:
    """A record without secret values and, for viewers, without other people's command lines.

    A record does not say whether the directories above a file were closed, so the values of ``user.*`` attributes and
    the targets of symbolic links are left out of every one.
    """
    if isinstance(value, dict):
        secret = bool(value.get("secret"))
        out: dict[str, Any] = {}
        for key, item in value.items():
            if (key in ("value", "reads") and secret) or (key == "target" and value.get("type") == "symlink"):
                out[key] = HIDDEN
            elif key == "command" and isinstance(item, str):
                out[key] = command_for(caller, value.get("uid"), item)
            elif key == "xattrs" and isinstance(item, dict):
                out[key] = masked_xattrs(item, readable=False)
            elif key in ("options", "source"):
                out[key] = without_passwords({key: item})[key]
            elif key == "closed" and isinstance(item, list):
                out[key] = [HIDDEN] * len(item)
            elif key == "resources" and isinstance(item, dict) and any(map(_in_closed, item.values())):
                names = (f"{HIDDEN} {n}" if _in_closed(v) else k for n, (k, v) in enumerate(item.items()))
                out[key] = {k: masked(v, caller) for k, v in zip(names, item.values(), strict=True)}
            elif key == "path" and "how" in value and "pid" in value:
                out[key] = _holder(value, caller)["path"]
            else:
                out[key] = masked(item, caller)
        return out
    if isinstance(value, list):
        return [masked(item, caller) for item in value]
    return value


def _in_closed(row: Any) -> bool:
    """One row of ``untracked_seen``: its name is for admins alone.  # S2"""
    return isinstance(row, dict) and "by" in row and bool(row.get("secret"))


def check_line(node: Node, unrecorded: Collection[str], journal_error: str) -> tuple[str, int]:
    """One line for a health check, and 0 or 11: a node for which nothing is declared is not as it should be."""
    state = node.state
    drifted = sum(len(c.members) for c in state.changes.values())
    parts = [f"{drifted} of {state.declared_count} drifted" if drifted else f"{state.declared_count} declared"]
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
    bad = drifted or unrecorded or not state.declared_count
    return f"{overall(node, unrecorded)}: {'; '.join(parts)}", 11 if bad else 0
