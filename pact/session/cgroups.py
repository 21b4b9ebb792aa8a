"""A cgroup for each session below the one that its keeper was given, with a bound on how many processes it may have,
and for a command a weight: jobs of the node go before it.

systemd delegates the subtree to the keeper's unit (``Delegate=``); where nothing was delegated, or the kernel has no
such controller, a session simply has none. PAM's own module may move a session on into a scope of the login manager.

The keeper itself is in the cgroup above. Where that has controllers of version 2, the kernel takes processes below it
only in *threaded* cgroups: so a session's becomes one. It has all that is used here, but not ``cgroup.procs``.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Collection
from typing import Final

V2_TOPS: Final = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
V1_TOPS: Final = {"pids": "/sys/fs/cgroup/pids", "cpu": "/sys/fs/cgroup/cpu"}
V2: Final = "2"
#: Of a command, beside the usual 100 (1024 in version 1) of everything else.
COMMAND_WEIGHT: Final = 25
USUAL_WEIGHT: Final = 100
USUAL_SHARES: Final = 1024
PREFIX: Final = "pact-session-"
ROUNDS: Final = 20


def _own() -> list[tuple[str, str]]:
    """The directories of this process's cgroups in which a session's can be made; each with ``V2``, or its controller
    of version 1."""
    found: list[tuple[str, str]] = []
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as f:
            rows = [row.rstrip("\n").split(":", 2) for row in f]
    except OSError:
        return found
    for number, controllers, path in rows:
        if path.startswith("/.."):
            continue
        if number == "0":
            top = next((t for t in V2_TOPS if os.path.exists(f"{t}/cgroup.procs")), None)
            if top is not None:
                found.append((top + path.rstrip("/"), V2))
        else:
            mine = [c for c in V1_TOPS if c in controllers.split(",")]
            found += [(V1_TOPS[c] + path.rstrip("/"), c) for c in mine]
    return found


def _put(path: str, text: str) -> bool:
    try:
        with open(path, "w", encoding="ascii") as f:
            f.write(text)
        return True
    except OSError:
        return False


def enter(name: str, tasks: int, weight: int = 0) -> list[str]:
    """Put this process into a cgroup of its own with at most ``tasks`` processes. ``weight``: of its CPU time, where
    the others have ``USUAL_WEIGHT``; 0: the same. Returns the directories made."""
    made: list[str] = []
    for above, kind in _own():
        if kind == "cpu" and not weight:
            continue
        if kind == V2:
            for controller in V1_TOPS:
                _put(f"{above}/cgroup.subtree_control", f"+{controller}")
        _remove_old(above)
        path = f"{above}/{PREFIX}{name}"
        try:
            os.mkdir(path, 0o755)
        except OSError:
            continue
        if _move_into(path):
            made.append(path)
            _limit(path, kind, tasks, weight)
        else:
            remove([path])
    return made


def places() -> list[str]:
    """The cgroups of this process that count here."""
    return [path for path, _ in _own()]


def moved_on(before: Collection[str], tasks: int, weight: int = 0) -> None:
    """A module of PAM may have moved this process on, into a scope of the login manager: give that the same bounds.
    ``before``: ``places`` until then. A cgroup in which somebody else is, such as that of a job, is left as it is. The
    login manager may set its own bounds again, and ends and removes its scope itself."""
    for path, kind in _own():
        if path not in before and processes(path) == {os.getpid()}:
            _limit(path, kind, tasks, weight if kind != "pids" else 0)


def _limit(path: str, kind: str, tasks: int, weight: int) -> None:
    if kind != "cpu":
        _put(f"{path}/pids.max", str(tasks))
    if weight and kind == V2:
        _put(f"{path}/cpu.weight", str(weight))
    elif weight:
        _put(f"{path}/cpu.shares", str(weight * USUAL_SHARES // USUAL_WEIGHT))


def _move_into(path: str) -> bool:
    pid = str(os.getpid())
    if _put(f"{path}/cgroup.procs", pid):
        return True
    return _put(f"{path}/cgroup.type", "threaded") and _put(f"{path}/cgroup.threads", pid)


def members(path: str) -> list[int]:
    """The processes in a cgroup; of a threaded one also some of their threads. Raises OSError, ValueError."""
    try:
        with open(f"{path}/cgroup.procs", encoding="ascii") as f:
            return [int(line) for line in f]
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
    with open(f"{path}/cgroup.threads", encoding="ascii") as f:
        return [int(line) for line in f]


def processes(path: str) -> set[int]:
    """The living processes in a cgroup."""
    try:
        return {pid for pid in map(living, members(path)) if pid}
    except (OSError, ValueError):
        return set()


def living(task: int) -> int:
    """The process to which a task belongs; 0: none that lives. One whose first thread has ended lives on in the others,
    and looks like one that waits to be reaped."""
    try:
        with open(f"/proc/{task}/status", encoding="ascii", errors="replace") as f:
            fields = dict(line.split(":\t", 1) for line in f if line.startswith(("State:", "Tgid:", "Threads:")))
        ended = fields["State"][0] in "ZX" and int(fields["Threads"]) <= 1
        return 0 if ended else int(fields["Tgid"])
    except (OSError, ValueError, KeyError, IndexError):
        return 0


def _remove_old(above: str) -> None:
    """Remove what sessions have left whose processes outlived them. A name ends with the pid of its session."""
    try:
        names = [n for n in os.listdir(above) if n.startswith(PREFIX)]
    except OSError:
        return
    remove([f"{above}/{n}" for n in names if not os.path.exists(f"/proc/{n.rpartition('-')[2]}")])


def remove(paths: list[str]) -> bool:
    """Remove those that nobody is in. Returns whether none is left."""
    left = False
    for path in paths:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError:
            left = True
    return not left


def end_all(paths: list[str], *, but: int = 0) -> None:
    """Kill everything in these cgroups, except one process."""
    for path in paths:
        if not but and _put(f"{path}/cgroup.kill", "1"):
            continue
        for _ in range(ROUNDS):
            try:
                pids = members(path)
            except (OSError, ValueError):
                break
            pids = [p for p in pids if p not in (0, but, os.getpid())]  # 0: one of another pid namespace
            if not pids:
                break
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
