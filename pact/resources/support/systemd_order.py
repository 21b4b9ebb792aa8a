"""The order in which units start, as systemd has it, and in which jobs must be queued for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pact.resources.support.systemd import get_property, value_of
from pact.resources.support.systemd_bus import Bus


def order(bus: Bus, names: Iterable[str]) -> dict[str, set[str]]:
    """By unit, those of these units that are started before it: ``After=``, and ``Before=`` of others, as systemd has
    them loaded."""
    wanted = list(names)
    answers = bus.each([get_property(unit, "After") for unit in wanted])
    return {u: (set(value_of(after, [])) & set(wanted)) - {u} for u, after in zip(wanted, answers, strict=True)}


def in_turn(bus: Bus, wanted: Mapping[str, str]) -> list[str]:
    """The order in which jobs are queued: a job waits for those that are there already, and not for those to come. What
    is stopped comes first, the last started of it first."""
    if len(wanted) < 2:
        return list(wanted)
    from graphlib import CycleError, TopologicalSorter

    try:
        started = list(TopologicalSorter(order(bus, wanted)).static_order())
    except CycleError:
        started = list(wanted)  # systemd breaks circles itself
    stopped = [unit for unit in reversed(started) if wanted[unit] == "StopUnit"]
    return stopped + [unit for unit in started if wanted[unit] != "StopUnit"]
