"""Where a session is found: its socket, and the file that it keeps beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from pact.host import processes

#: Why a session has ended that the agent never let run: it was killed meanwhile.
NEVER_BEGAN: Final = "it never began"


def state_path(directory: str, name: str) -> str:
    return f"{directory}/{name}.json"


def socket_path(directory: str, name: str) -> str:
    return f"{directory}/{name}.sock"


def write_state(path: str, state: Mapping[str, Any]) -> None:
    """Replace the file at once. The directory is root's alone."""
    fresh = f"{path}.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as f:
        f.write(json.dumps(state).encode())
    os.replace(fresh, path)


def started_at(pid: int) -> int:
    """When a process began, in the kernel's ticks since boot; 0: it is gone."""
    fields = processes.stat_of(pid)
    return int(fields[processes.STARTED]) if fields else 0
