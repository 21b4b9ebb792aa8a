"""A transaction of a package manager as a service of systemd's, where systemd runs the machine.

The agent's own unit takes rights away that scripts of packages need, and everything in it ends with it: a package
manager must neither be short of rights nor be killed in the middle because the agent is restarted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pact.errors import RestoreError
from pact.resources.support.package_tool import ENV, Ended, run

RUNNING: Final = "/run/systemd/system"
ASK_S: Final = 10.0
PREFIX: Final = "pact-packages-"


def transact(
    tool: str,
    command: Sequence[str],
    timeout_s: float,
    root: str,
    *,
    env: Mapping[str, str] | None = None,
    given: bytes = b"",
) -> Ended:
    """Run a transaction to its end, apart from the agent's unit; as the agent's child where there is no systemd, or
    where the packages are of another root. Raises RestoreError if it cannot be started."""
    if root or not os.path.isdir(RUNNING) or shutil.which("systemd-run") is None:
        return run(tool, command, timeout_s, env=env, given=given, transaction=True)
    unit = f"{PREFIX}{os.getpid()}-{os.urandom(4).hex()}.service"
    service = service_command(unit, command, env or {})
    return run(tool, service, timeout_s, given=given, transaction=True, main=_main_of(unit))


def service_command(unit: str, command: Sequence[str], env: Mapping[str, str]) -> list[str]:
    variables = [f"--setenv={name}={value}" for name, value in {**ENV, **env}.items()]
    options = ["--quiet", "--wait", "--collect", "--pipe", "--service-type=exec", f"--unit={unit}"]
    return ["systemd-run", *options, "--description=packages, on behalf of pact", *variables, "--", *command]


def _main_of(unit: str) -> Callable[[], int]:
    def ask() -> int:
        try:
            said = run("systemctl", ["systemctl", "show", "--property=MainPID", "--value", unit], ASK_S)
        except RestoreError:
            return 0
        text = said.out.strip()
        return int(text) if text.isdigit() else 0

    return ask
