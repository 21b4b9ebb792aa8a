"""Services are told that what they read was restored: reload, restart, or systemd reads its unit files again.  # R14

A service that does not run is told nothing: it reads its files when it starts, and whether it runs is its own
declaration's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pact.errors import RestoreError
from pact.model import Attrs
from pact.resources.support import daemons, systemd, systemd_jobs
from pact.resources.support.systemd_order import order

DAEMON_RELOAD: Final = "daemon-reload"
#: Verb -> what systemd is asked for. None of them starts a service that does not run.
METHODS: Final = {
    "reload": "ReloadUnit",
    "restart": "TryRestartUnit",
    "reload-or-restart": "ReloadOrTryRestartUnit",
}
VERBS: Final = (*METHODS, DAEMON_RELOAD)
#: Those that stop it for a moment.
STOPPING: Final = ("restart", "reload-or-restart")


def tell(unit: str, verb: str, declared: Attrs | None) -> None:
    """Raises RestoreError. ``declared``: the service's own declaration, if there is one."""
    definition = daemons.definition_of(declared)
    if definition is not None:
        _tell_daemon(definition, verb)
        return
    try:
        with systemd.connected() as bus:
            if verb == DAEMON_RELOAD:
                systemd.daemon_reload(bus)
                return
            seen = systemd.look(bus, unit)
            if seen.gone:
                raise RestoreError("there is no such unit")
            if seen.active in ("inactive", "failed") and not seen.job:
                return
            if seen.reload:  # its own unit file was restored, too
                systemd.daemon_reload(bus)
            why = systemd_jobs.run_jobs(bus, {unit: METHODS[verb]})[unit]
    except systemd.BusError as exc:
        raise RestoreError(str(exc)) from None
    if why:
        raise RestoreError(why)


def _tell_daemon(definition: Attrs, verb: str) -> None:
    if verb != "restart":
        raise RestoreError("a daemon without systemd can only be restarted")
    for state in ("stopped", "running"):
        if why := daemons.bring([("", {**definition, "state": state})])[""]:
            raise RestoreError(why)


def in_order(told: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Units and verbs: unit files are read first, then services are told in the order in which they start."""
    first = [each for each in told if each[1] == DAEMON_RELOAD][:1]  # once is enough for all
    rest = [each for each in told if each[1] != DAEMON_RELOAD]
    if len({unit for unit, _ in rest}) > 1:
        from graphlib import CycleError, TopologicalSorter

        try:
            with systemd.connected() as bus:
                turn = list(TopologicalSorter(order(bus, {unit for unit, _ in rest})).static_order())
            rest.sort(key=lambda each: turn.index(each[0]))
        except (systemd.BusError, CycleError):
            pass  # in the order of the plan, then
    same = [each for each in told if each[1] == DAEMON_RELOAD][1:]
    return [*first, *same, *rest]
