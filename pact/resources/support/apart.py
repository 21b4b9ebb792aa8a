"""Programs that run apart from the agent's own unit, as a transient service, where systemd runs the machine.

The agent's unit takes rights away that other programs need, bounds its memory, and everything in it ends with it: a
package manager must not be killed in the middle because the agent is restarted, and a daemon that was started for a
rollback must not end with the agent, nor live under its limits.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Final

RUNNING: Final = "/run/systemd/system"


def available() -> bool:
    """Whether systemd runs this machine and can be asked for a service."""
    return os.path.isdir(RUNNING) and shutil.which("systemd-run") is not None


def unit_name(prefix: str) -> str:
    """A name that no other unit has."""
    return f"{prefix}{os.getpid()}-{os.urandom(4).hex()}.service"


def command(
    unit: str, words: Sequence[str], env: Mapping[str, str], description: str, properties: Sequence[str] = ()
) -> list[str]:
    """The command that runs these words in the service ``unit``, with its own standard streams, waits for the end, and
    ends with the same exit code. systemd reads ``$NAME`` in words as a variable: it gets each ``$`` twice."""
    options = ["--quiet", "--wait", "--collect", "--pipe", "--service-type=exec", f"--unit={unit}"]
    return [
        *("systemd-run", *options, f"--description={description}"),
        *(f"--setenv={name}={value}" for name, value in env.items()),
        *(f"--property={each}" for each in properties),
        *("--", words[0], *(word.replace("$", "$$") for word in words[1:])),
    ]
