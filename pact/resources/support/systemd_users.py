"""Who uses a unit that would be stopped: processes of its cgroup that are not its own, and clients of its sockets.

Its own are the main and the control process, and what these have forked without running another program: the workers of
a daemon are the daemon. Everything else in its cgroup is somebody's: a job's step, a session's shell.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Final

from pact.host import processes
from pact.model import Attrs, Holder
from pact.resources.support import daemons, systemd_bus
from pact.resources.support.peers import clients
from pact.resources.support.systemd import IS_SERVICE, connected, get_property
from pact.resources.support.systemd_bus import Bus, Refused

#: The hierarchy of cgroups v2, of systemd's own in v1, and of both together.
CGROUPS: Final = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")
PROCESSES_MAX: Final = 100_000
GROUPS_MAX: Final = 10_000
FORKS_MAX: Final = 64


def users(unit: str, resource: str) -> list[Holder]:
    """Its consumers. If they cannot be looked for, that counts as one."""
    if not unit.endswith(".service"):
        return []  # a timer, a socket, a path: what it starts is another unit's
    try:
        main, control, group = _processes(unit)
    except systemd_bus.BusError as exc:
        return [Holder(resource, 0, "unknown", str(exc))]
    there = in_group(group) if group else []
    own = own_of(there, (main, control))
    out = [Holder(resource, pid, "cgroup", group) for pid in there if pid not in own]
    return out + [Holder(resource, pid, "socket", what) for pid, what in clients(own, there)]


def users_of(definition: Attrs, resource: str) -> list[Holder]:
    """The clients of a daemon without systemd: it has no cgroup of its own."""
    try:
        pids = set(daemons.look(definition).pids)
    except daemons.CannotSay as exc:
        return [Holder(resource, 0, "unknown", str(exc))]
    return [Holder(resource, pid, "socket", what) for pid, what in clients(pids, pids)]


def _processes(unit: str) -> tuple[int, int, str]:
    """Main and control process, and the cgroup."""
    with connected() as bus:
        answers = bus.each([get_property(unit, n, IS_SERVICE) for n in ("MainPID", "ControlPID", "ControlGroup")])
    values = [0 if isinstance(a, Refused) else a[0][1] for a in answers]
    return int(values[0] or 0), int(values[1] or 0), str(values[2] or "")


def left_over(bus: Bus, unit: str, method: str) -> str:
    """Whether processes have outlived a stop that was to end them all: systemd calls that a failure, and goes on."""
    if method != "StopUnit" or not unit.endswith(".service"):
        return ""
    result, kill, group = (
        "" if isinstance(a, Refused) else str(a[0][1])
        for a in bus.each([get_property(unit, n, IS_SERVICE) for n in ("Result", "KillMode", "ControlGroup")])
    )
    left = in_group(group) if result == "timeout" and kill in ("control-group", "mixed") and group else []
    return f"it did not stop: {len(left)} processes are left" if left else ""


def in_group(group: str) -> list[int]:
    """The processes of a cgroup, and of those below it. The path is one of systemd's own hierarchy."""
    if ".." in group.split("/"):
        return []
    found: set[int] = set()
    groups = 0
    for top in CGROUPS:
        for here, _, files in os.walk(top + group):
            groups += 1
            if "cgroup.procs" not in files or groups > GROUPS_MAX or len(found) > PROCESSES_MAX:
                continue
            try:
                with open(os.path.join(here, "cgroup.procs")) as f:
                    found.update(int(line) for line in f)
            except OSError:
                continue
        if found:
            break
    return sorted(found - {0})


def own_of(there: Iterable[int], chiefs: Iterable[int]) -> set[int]:
    """The main and the control process, and those of these processes that are their forks."""
    chiefs = [pid for pid in chiefs if pid > 0]
    programs = {program for pid in chiefs if (program := program_of(pid))}
    return {*chiefs, *(pid for pid in there if program_of(pid) in programs and _below(pid, chiefs))}


def _below(pid: int, chiefs: Collection[int]) -> bool:
    """Whether one of these is among its ancestors, or the one that it had is gone (a daemon that forked twice)."""
    for _ in range(FORKS_MAX):
        if pid in chiefs or pid == 1:
            return True
        fields = processes.stat_of(pid)
        if len(fields) < 2:
            return False
        pid = int(fields[1])
    return False


def program_of(pid: int) -> tuple[int, ...]:
    """What a running program has from the moment it began, and passes on to whom it forks: where the kernel has put its
    code, stack and arguments, anew for each. ``()`` if the process is gone or cannot be read."""
    fields = processes.stat_of(pid)
    if len(fields) < 50 or fields[25] == b"0":  # a kernel thread, or one that may not be read
        return ()
    # startcode, startstack, start_data, start_brk, arg_start, env_start: 26, 28, 45, 47, 48, 50 in proc(5).
    return tuple(int(fields[n - 3]) for n in (26, 28, 45, 47, 48, 50))
