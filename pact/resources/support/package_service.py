"""A transaction of a package manager as a service of systemd's, where systemd runs the machine (``apart``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pact.errors import RestoreError
from pact.resources.support import apart
from pact.resources.support.package_tool import ENV, Ended, run

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
    if root or not apart.available():
        return run(tool, command, timeout_s, env=env, given=given, transaction=True)
    unit = apart.unit_name(PREFIX)
    service = apart.command(unit, command, {**ENV, **(env or {})}, "packages, on behalf of pact")
    return run(tool, service, timeout_s, given=given, transaction=True, main=_main_of(unit))


def _main_of(unit: str) -> Callable[[], int]:
    def ask() -> int:
        try:
            said = run("systemctl", ["systemctl", "show", "--property=MainPID", "--value", unit], ASK_S)
        except RestoreError:
            return 0
        text = said.out.strip()
        return int(text) if text.isdigit() else 0

    return ask
