"""What people and programs see of the state: status, diff, log. Nothing here changes anything.

What is not for the caller's eyes is left out here and nowhere else.  # S2
"""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from pact._fast import syscalls
from pact.core import change as life
from pact.core.change import Change
from pact.core.events import Caller
from pact.core.node import Node
from pact.core.records import rfc3339
from pact.core.settings import BILLION
from pact.core.windows import magnitude
from pact.errors import UsageError
from pact.model import Attrs, decode_name, split_id
from pact.resources import KINDS
from pact.resources.base import Blobs

DIFF_MAX: Final = 64 << 10
HIDDEN: Final = "(hidden)"


def status(node: Node, caller: Caller, *, now_ns: int, wall_ns: int, observers: Mapping[str, str],
           journal: Mapping[str, Any], unrecorded: Iterable[str] = ()) -> dict[str, Any]:  # fmt: skip
    """The document of ``pact --json status``."""
    state = node.state
    sums = state.sums()
    total = sum(sums.values())
    drifted = sum(len(c.members) for c in state.changes.values())
    emergency = state.emergency
    out: dict[str, Any] = {
        "v": 1, "node": node.name, "state": state.overall(), "mode": "enforce" if state.settings.enforce else "observe",
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
        "unreadable_resources": dict(list(node.unreadable.items())[:20]),
    }  # fmt: skip
    pending = list(unrecorded)
    if pending:
        out["unrecorded"] = {"count": len(pending), "resources": pending[:20]}
    return out


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
        "resources": sorted(change.members), "opened": _wall(change.opened_ns, now_ns, wall_ns),
        "deadline": None if deadline_ns is None else _wall(deadline_ns, now_ns, wall_ns),
        "remaining_s": None if deadline_ns is None else round(max(0, deadline_ns - now_ns) / 1e9, 3),
        "consumers": [_holder(h, caller) for h in change.holders], "reason": change.reason, "message": change.message,
        "magnitude": round(magnitude(change.sum_n), 6),
        "holds": [h.id for h in node.state.held_by(change.id)], "group": change.group or None,
    }  # fmt: skip


def command_for(caller: Caller, uid: int | None, command: str) -> str:
    """Of other people's command lines, viewers see the program's name."""
    if caller.actor.role != "viewer" or (uid is not None and uid == caller.owner.uid):
        return command
    return command.split(" ", maxsplit=1)[0].rpartition("/")[2]


def _holder(holder: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    uid = holder.get("uid")
    shown = {**holder, "command": command_for(caller, uid, str(holder.get("command", "")))}
    if caller.actor.role == "viewer" and uid != caller.owner.uid:
        shown["path"] = ""  # the names of other people's open files are theirs
    return shown


def holders_for(caller: Caller, holders: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [_holder(h, caller) for h in holders]


# -- diff -----------------------------------------------------------------------------------------------------------


def diff(node: Node, caller: Caller, targets: Iterable[str], declared_blobs: Blobs) -> dict[str, Any]:
    """The document of ``pact --json diff``. Raises UsageError for a target that is neither change nor declared."""
    state = node.state
    wanted: list[str] = []
    for target in targets:
        if target in state.changes:
            wanted += state.changes[target].members
        elif target in state:
            if target in state.member_of:
                wanted.append(target)
        else:
            raise UsageError(f"{target} is neither a change nor a declared resource", "pact status lists the changes")
    if not list(targets):
        wanted = list(state.member_of)
    return {"v": 1, "resources": [_diff_one(node, caller, r, declared_blobs) for r in sorted(set(wanted))]}


def _diff_one(node: Node, caller: Caller, resource: str, blobs: Blobs) -> dict[str, Any]:
    state = node.state
    change, declared = state.change_of(resource), state.declared(resource)
    assert change is not None and declared is not None
    member = change.members[resource]
    kind_name, name = split_id(resource)
    kind = KINDS[kind_name]
    secret = is_secret(resource, declared.attrs) or kind.secret(member.actual)
    hide = secret and caller.actor.role != "admin"
    owner = change.owner
    return {
        "id": resource, "kind": kind_name, "declared": visible(resource, declared.attrs, hide),
        "actual": visible(resource, member.actual, hide), "deviation": member.deviation_n / BILLION,
        "change": change.id,
        "owner": {"user": owner.user, "uid": owner.uid, "session": owner.session,
                  "command": command_for(caller, owner.uid, member.command)},
        "seen": member.seen,
        "diff": None if hide else text_diff(resource, declared.attrs, member.actual, blobs, name),
        **({"hidden": True} if hide else {}),
    }  # fmt: skip


def is_secret(resource: str, attrs: Attrs | None) -> bool:
    """Its content is not for everybody: by its own mode, or because a directory on the way is closed.  # S2"""
    kind, name = split_id(resource)
    return KINDS[kind].secret(attrs) or not KINDS[kind].reachable(name)


def visible(resource: str, attrs: Attrs | None, hide: bool) -> Attrs | None:
    """Attributes without what only admins may see (a secret sysctl's value; digests may be seen)."""
    if not hide or attrs is None or "value" not in attrs:
        return attrs
    return {**attrs, "value": HIDDEN}


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
    lines = difflib.unified_diff(
        (before or "").splitlines(keepends=True), (after or "").splitlines(keepends=True), f"declared {name}",
        f"actual {name}",
    )  # fmt: skip
    out = "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)
    return out[:DIFF_MAX] or None


def _live(name: str, digest: str) -> bytes | None:
    """The content on disk, if it still is the one that was recorded. No symbolic link is followed on the way."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
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


# -- log ------------------------------------------------------------------------------------------------------------


def record_line(body: bytes, hash_: str, caller: Caller) -> bytes:
    """One record as a line of ``pact --json log``. Admins get the very bytes that were hashed, and the hash."""
    if caller.actor.role == "admin":
        return body[:-1] + b',"hash":"' + hash_.encode() + b'"}'
    return orjson.dumps({**masked(orjson.loads(body), caller), "hash": hash_}, option=orjson.OPT_SORT_KEYS)


def masked(value: Any, caller: Caller) -> Any:
    """A record without secret values and, for viewers, without other people's command lines."""
    if isinstance(value, dict):
        secret = bool(value.get("secret"))
        out = {}
        for key, item in value.items():
            if key == "value" and secret:
                out[key] = HIDDEN
            elif key == "command" and isinstance(item, str):
                out[key] = command_for(caller, value.get("uid"), item)
            elif key == "path" and "how" in value and "pid" in value:
                out[key] = _holder(value, caller)["path"]
            else:
                out[key] = masked(item, caller)
        return out
    if isinstance(value, list):
        return [masked(item, caller) for item in value]
    return value


def check_line(node: Node, unrecorded: int, journal_error: str) -> tuple[str, int]:
    """One line for a health check, and 0 or 11."""
    state = node.state
    drifted = sum(len(c.members) for c in state.changes.values())
    overall = state.overall()
    parts = [f"{drifted} of {state.declared_count} drifted" if drifted else f"{state.declared_count} declared"]
    blocked = [c.id for c in state.changes.values() if c.state in (life.BLOCKED, life.FAILED)]
    if blocked:
        parts.append("needs a decision: " + ", ".join(blocked[:5]))
    if state.emergency is not None:
        parts.append(f"emergency by {state.emergency.by}" + (" is stale" if state.emergency.stale else ""))
    if unrecorded:
        parts.append(f"{unrecorded} drifted but not recorded")
    if journal_error:
        parts.append(journal_error)
    return f"{overall}: {'; '.join(parts)}", 11 if drifted or unrecorded else 0
