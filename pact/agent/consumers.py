"""The consumers of a whole plan, found before anything is touched.  # F5

The kernel is asked first (a write lease, ``MNT_EXPIRE``, a reference count): this takes microseconds for an unused
resource. Only if the kernel says "busy" or cannot say, /proc is read, once for all resources together. A holder that
cannot be named counts as one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from pact._fast import open_handles_ex
from pact.core.plan import Step
from pact.host import processes
from pact.model import Holder, encode_name, split_id
from pact.observe.jobs import job_above, job_of
from pact.resources import KINDS

HOLDERS_MAX: Final = 200


def find_holders(steps: Iterable[Step], *, ask: bool = True) -> list[Holder]:
    """The consumers of every resource of the plan, named as far as possible. ``ask``: the kernel may be asked by means
    that have an effect of their own (a lease, a mark on a mount); a mere question must not use them, because it changes
    nothing.  # S4"""
    return find_all_holders(steps, ask=ask)[0]


def find_all_holders(steps: Iterable[Step], *, ask: bool = True) -> tuple[list[Holder], int]:
    """The same as ``find_holders``, and the number of consumers beyond those that are named."""
    steps = tuple(steps)
    names: dict[str, set[str]] = {}
    for step in steps:
        kind_name, name = split_id(step.id)
        names.setdefault(kind_name, set()).add(name)
    found: list[Holder] = []
    scan: list[tuple[Step, bytes]] = []
    answers: dict[str, bool | None] = {}
    for step in steps:
        kind_name, name = split_id(step.id)
        kind = KINDS[kind_name]
        rules = step.consumers or ("open",)
        if "open" in rules:
            said = answers[step.id] = kind.in_use(name, step) if ask else None
            if said is not False or kind.covers(name, step):
                scan += [(step, root) for root in kind.roots(name, step)]
            if said is not False or kind.asked_anyway:
                held = kind.holders(name, step, step.id)
                found += [h for h in held if not kind.leaves_with(h, names[kind_name])]
        found += _by_rule(step, rules)
    unread = False
    if scan:
        handles, unread = _scan(scan)
        found += handles
    named = {h.resource for h in found}
    for rid, said in answers.items():
        if said is False or rid in named:
            continue
        kind_name, name = split_id(rid)
        if said is True or (ask and unread and KINDS[kind_name].is_unsure(name, answers)):
            why = "the kernel says it is in use" if said is True else "some processes could not be read"
            found.append(Holder(rid, 0, "unknown", why))
    return [describe(h) for h in found[:HOLDERS_MAX]], max(0, len(found) - HOLDERS_MAX)


def _scan(wanted: Sequence[tuple[Step, bytes]]) -> tuple[list[Holder], bool]:
    handles, unread = open_handles_ex([root if step.inode is None else (root, step.inode) for step, root in wanted])
    own = os.getpid()
    out, seen = [], set()
    reached = [KINDS[split_id(step.id)[0]].reached(split_id(step.id)[1]) if handles else None for step, _ in wanted]
    for handle in handles:
        rid = wanted[handle.root][0].id
        key = (rid, handle.pid, handle.how)
        if handle.pid == own or key in seen:
            continue
        through = reached[handle.root]
        if through is not None and not through(handle.pid, handle.path):
            continue
        seen.add(key)
        out.append(Holder(rid, handle.pid, handle.how, encode_name(handle.path)))
    return out, bool(unread)


def _by_rule(step: Step, rules: Iterable[str]) -> list[Holder]:
    """``exec:NAME`` and ``cgroup:GLOB``: processes that use this resource according to the operator."""
    execs = {r[5:] for r in rules if r.startswith("exec:")}
    globs = [r[7:] for r in rules if r.startswith("cgroup:")]
    if not execs and not globs:
        return []
    out = []
    own = os.getpid()
    for pid in (int(p) for p in os.listdir("/proc") if p.isdigit()):
        if pid == own:
            continue
        if execs and _program(pid) & execs:
            out.append(Holder(step.id, pid, "exec", ", ".join(sorted(_program(pid) & execs))))
        elif globs:
            cgroup = cgroup_of(pid)
            if any(fnmatchcase(cgroup, g) for g in globs):
                out.append(Holder(step.id, pid, "cgroup", cgroup))
    return out


def _program(pid: int) -> set[str]:
    """The names of a process: its executable's and its own (15 characters)."""
    names = set()
    try:
        with open(f"/proc/{pid}/comm", "rb") as f:
            names.add(f.read().rstrip(b"\n").decode(errors="replace"))
        exe = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        names.add(os.path.basename(exe))
    except OSError:
        pass
    return names


def cgroup_of(pid: int) -> str:
    """The cgroup v2 path, or systemd's or a job's v1 path; ``""`` if unreadable."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="backslashreplace") as f:
            rows = [line.rstrip("\n").split(":", 2) for line in f]
    except OSError:
        return ""
    paths = [row[2] for row in rows if len(row) == 3]
    for path in paths:
        if job_of(path):
            return path
    for row in rows:
        if len(row) == 3 and (row[0] == "0" or row[1] == "name=systemd") and row[2] != "/":
            return row[2]
    return paths[-1] if paths else ""


def started_at(pid: int) -> int | None:
    """When a process began, in ticks since boot; ``None``: there is none, or it has ended and waits for its parent."""
    fields = processes.stat_of(pid)
    return int(fields[processes.STARTED]) if processes.lives(fields) else None


def describe(holder: Holder) -> Holder:
    """Fill in user, command, cgroup and job of a process."""
    if holder.pid == 0:
        return holder
    import psutil

    uid, user, command = None, "", ""
    try:
        process = psutil.Process(holder.pid)
        with process.oneshot():
            uid = process.uids().real
            user = process.username()
            command = encode_name(" ".join(process.cmdline()) or process.name())[:256]
    except psutil.Error:
        pass
    cgroup = encode_name(cgroup_of(holder.pid))
    filled: dict[str, Any] = {
        **holder.to_json(),
        "uid": uid,
        "user": user,
        "command": command,
        "cgroup": cgroup,
        "job": job_of(cgroup) or job_above(holder.pid),
        "start": started_at(holder.pid) or 0,
    }
    return Holder.from_json(filled)
