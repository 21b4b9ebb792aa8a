"""A cgroup for each session below the one that its keeper was given, with a bound on how many processes it may have.

systemd delegates the subtree to the keeper's unit (``Delegate=yes``); where nothing was delegated, or the kernel has no
such controller, a session simply has none. PAM's own module may move a session on into a scope of the login manager.
"""

from __future__ import annotations

import os
import signal
from typing import Final

V2_TOPS: Final = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
V1_PIDS: Final = "/sys/fs/cgroup/pids"
PREFIX: Final = "pact-session-"
ROUNDS: Final = 20


def _own() -> list[tuple[str, bool]]:
    """The directories of this process's cgroups in which a session's can be made, and whether each is of version 2."""
    found: list[tuple[str, bool]] = []
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
                found.append((top + path.rstrip("/"), True))
        elif "pids" in controllers.split(","):
            found.append((V1_PIDS + path.rstrip("/"), False))
    return found


def _put(path: str, text: str) -> bool:
    try:
        with open(path, "w", encoding="ascii") as f:
            f.write(text)
        return True
    except OSError:
        return False


def enter(name: str, tasks: int) -> list[str]:
    """Put this process into a cgroup of its own with at most ``tasks`` processes. Returns the directories made."""
    made: list[str] = []
    for above, second in _own():
        if second:
            _put(f"{above}/cgroup.subtree_control", "+pids")
        _remove_old(above)
        path = f"{above}/{PREFIX}{name}"
        try:
            os.mkdir(path, 0o755)
        except OSError:
            continue
        made.append(path)
        _put(f"{path}/pids.max", str(tasks))
        _put(f"{path}/cgroup.procs", str(os.getpid()))
    return made


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
                with open(f"{path}/cgroup.procs", encoding="ascii") as f:
                    pids = [int(line) for line in f]
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
