"""What systemd is asked to do with units, each with a limit.

Jobs that belong together are queued together: systemd orders them as ``After=``, ``Before=``, ``Requires=`` and
``Conflicts=`` say, which nobody knows better. A job that waits until this daemon's own unit is up (or gone) cannot be
waited for by this daemon: it stays queued, and what comes of it is seen as anything else on the node is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pact.resources.support import systemd_bus as bus_
from pact.resources.support.systemd import (
    IS_SERVICE,
    RELOAD_S,
    Unit,
    daemon_reload,
    get_property,
    look,
    subscribe,
    value_of,
)
from pact.resources.support.systemd_bus import SYSTEMD, Bus, Call, Refused, unit_path

IS_JOB: Final = SYSTEMD + ".Job"
#: All jobs of one plan together: systemd's own limit for one is 90 s, and a worker counts as hung after that.
JOBS_S: Final = 75.0
#: A unit that was started must stay up for so long.
STAY_S: Final = 3.0
#: Of a job that waits for others which wait for others, so many are followed.
FOLLOWED_MAX: Final = 1000
#: How often it is asked whether a job that is not done waits for this daemon.
BEHIND_S: Final = 0.5
#: A result of our own: its job stands in systemd's queue, and begins after our own unit's.
QUEUED: Final = "queued"
UNMET: Final = "its conditions are not met (Condition... in its unit file)"


@dataclass(slots=True)
class Job:
    """One job that was asked for: its path, and its result when it has ended (``done``, ``failed``, ``timeout``...)."""

    unit: str
    method: str
    path: str = ""
    result: str = ""
    why: str = field(default="")


def run_jobs(bus: Bus, wanted: Mapping[str, str], *, limit_s: float = JOBS_S, stay_s: float = STAY_S) -> dict[str, str]:
    """Have systemd do all of these at once: by unit ``StartUnit``, ``StopUnit``, ``RestartUnit``, ``ReloadUnit``,
    ``ReloadOrRestartUnit`` or ``TryRestartUnit``, queued in this order (see ``systemd_order``). Waits for the results,
    and then watches that what was started stays up. Returns why not, by unit; ``""`` where it is done, and where it is
    queued behind this daemon's own unit. Raises BusError."""
    if not wanted:
        return {}
    subscribe(bus)
    jobs = [Job(unit, method) for unit, method in wanted.items()]
    asked = [j for j in jobs if j.method in ("StartUnit", "RestartUnit")]
    bus.each([Call("ResetFailedUnit", "s", (j.unit,)) for j in asked])  # a start limit that was hit is no reason now
    answers = bus.each([Call(j.method, "ss", (j.unit, "replace")) for j in jobs])
    for job, answer in zip(jobs, answers, strict=True):
        if isinstance(answer, Refused):
            job.why = str(answer)
        else:
            job.path = str(answer[0])
    _wait(bus, jobs, time.monotonic() + limit_s)
    _explain(bus, jobs, limit_s)
    _stay(bus, [j for j in jobs if j.result == "done" and j.method not in ("StopUnit", "ReloadUnit")], stay_s)
    return {j.unit: j.why for j in jobs}


def _behind_own(bus: Bus, jobs: Iterable[str], limit_s: float) -> set[str]:
    """Of these jobs, by path, those that wait until this process's own unit is up, or down, be it by way of others.
    Raises BusError, and TimeoutError where systemd is busy for longer than ``limit_s``."""
    own = _own_job(bus, limit_s)
    if not own:
        return set()
    waits_for: dict[str, set[str]] = {}
    todo = list(jobs)
    while todo and len(waits_for) < FOLLOWED_MAX:
        answers = bus.each([Call("GetBefore", path=path, interface=IS_JOB) for path in todo], limit_s=limit_s)
        for path, answer in zip(todo, answers, strict=True):  # one that has ended has no such object any more
            rows = [] if isinstance(answer, Refused) or not answer else answer[0]
            waits_for[path] = {str(row[4]) for row in rows}
        todo = sorted(set().union(*waits_for.values()) - waits_for.keys() - {own})
    behind: set[str] = {own}
    while more := {path for path, before in waits_for.items() if path not in behind and before & behind}:
        behind |= more
    return behind


def _own_job(bus: Bus, limit_s: float) -> str:
    """The path of the job that this process's own unit has now; ``""`` without one."""
    (unit,) = bus.each([Call("GetUnitByPID", "u", (os.getpid(),))], limit_s=limit_s)
    if isinstance(unit, Refused) or not unit:
        return ""
    (job,) = bus.each([get_property(str(unit[0]), "Job")], limit_s=limit_s)
    number, path = value_of(job, (0, "/"))
    return str(path) if number else ""


def _wait(bus: Bus, jobs: Sequence[Job], end: float) -> None:
    """Take in the results until all have ended or wait for this daemon's own unit, or until ``end``.

    Which wait is asked again and again: a restart is first a stop, which waits for nobody, and then a start.
    """
    open_ = {j.path: j for j in jobs if j.path and not j.result}
    look_s = 0.0
    while open_:
        if time.monotonic() >= look_s:
            left_s = min(bus_.ANSWER_S, max(BEHIND_S, end - time.monotonic()))
            try:
                behind = _behind_own(bus, open_, left_s)
            except TimeoutError:  # it is busy (it reads its unit files again): the jobs go on all the same
                behind = set()
            for path in open_.keys() & behind:
                open_.pop(path).result = QUEUED
            look_s = time.monotonic() + BEHIND_S
            if not open_:
                return
        signals = bus.signals(min(end, look_s))
        if not signals and time.monotonic() >= end:
            return
        for signal in signals:
            if signal.member == "JobRemoved" and signal.interface == bus_.IS_MANAGER:
                body = signal.body()
                job = open_.pop(str(body[1]), None) if len(body) == 4 else None
                if job is not None:
                    job.result = str(body[3])


def _explain(bus: Bus, jobs: Sequence[Job], limit_s: float) -> None:
    """Say why jobs have not ended well, and drop those that wait: what nobody expects any more must not begin later."""
    late = [j for j in jobs if j.path and not j.result]
    bus.each([Call("Cancel", path=j.path, interface=IS_JOB) for j in late])
    for job in late:
        verb = {"StopUnit": "stop", "StartUnit": "start"}.get(job.method, "do it")
        job.why = f"it did not {verb} within {limit_s:g} s"
    for job in jobs:
        if job.result not in ("", "done", QUEUED):
            job.why = job.why or _why(bus, job)


def _why(bus: Bus, job: Job) -> str:
    said = {
        "timeout": "its job ran into its limit",
        "canceled": "its job was canceled by another",
        "dependency": "a unit that it needs could not be started",
        "skipped": "its job does not apply to it",
        "assert": "its asserts are not met",
        "unsupported": "it is not supported here",
        "once": "it has run already, and runs once only",
    }
    return said.get(job.result) or _failure(bus, job.unit)


def _failure(bus: Bus, unit: str) -> str:
    """How a service ended, as systemd tells."""
    result, code, status = bus.each(
        [get_property(unit, n, IS_SERVICE) for n in ("Result", "ExecMainCode", "ExecMainStatus")]
    )
    why, how, number = value_of(result, ""), value_of(code, 0), value_of(status, 0)
    if how == 1 and number:
        return f"it ended with exit code {number}"
    if how in (2, 3):
        return f"it was ended by signal {number}"
    return f"it failed ({why})" if why not in ("", "success") else "it failed"


def _stay(bus: Bus, jobs: Sequence[Job], stay_s: float) -> None:
    """Watch all units at once: each must be up, and stay so."""
    watched = {j.unit: j for j in jobs}
    if not watched:
        return
    before = {unit: look(bus, unit) for unit in watched}
    end = time.monotonic() + stay_s
    while True:
        for unit, job in watched.items():
            if not job.why:
                job.why = _down(bus, unit, before[unit])
        if all(j.why for j in jobs) or time.monotonic() >= end or all(u.sub == "exited" for u in before.values()):
            return
        _next_move(bus, frozenset(map(unit_path, watched)), end)


def _next_move(bus: Bus, paths: frozenset[str], end: float) -> None:
    """Return when one of these units may have moved, and at ``end``."""
    while time.monotonic() < end:
        if any(s.path in paths for s in bus.signals(end)):
            return


def _down(bus: Bus, unit: str, before: Unit) -> str:
    now = look(bus, unit)
    if now.active in ("active", "reloading", "refreshing") and (now.restarts, now.up_us) == (
        before.restarts,
        before.up_us,
    ):
        return ""
    if now.active == "inactive" and before.active == "inactive" and (why := _never_up(bus, unit)):
        return why
    return f"it was started but does not stay up: {_failure(bus, unit)}"


def _never_up(bus: Bus, unit: str) -> str:
    """Why it is not up although nothing has failed; ``""`` if something has. A unit that is down may be forgotten by
    systemd at once, and with it whether its conditions were met."""
    result, kind = bus.each([get_property(unit, name, IS_SERVICE) for name in ("Result", "Type")])
    named = ("Conditions", "ConditionResult", "ConditionTimestampMonotonic")
    conditions, met, looked = bus.each([get_property(unit, name) for name in named])
    if not value_of(conditions, []):
        or_not = ""
    elif not value_of(looked, 0):
        or_not = f", or {UNMET}"
    elif not value_of(met, True):
        return UNMET
    else:
        or_not = ""
    if value_of(result, "") not in ("", "success"):
        return ""
    if value_of(kind, "") == "oneshot":
        return f"it has run and ended (a oneshot without RemainAfterExit): it cannot be running{or_not}"
    return f"it does not stay up: it ended by itself, without an error{or_not}"


def reload_unit(bus: Bus, unit: str, limit_s: float = JOBS_S) -> str:
    """Have a service read its configuration again. Returns why not."""
    return run_jobs(bus, {unit: "ReloadUnit"}, limit_s=limit_s)[unit]


def restart_unit(bus: Bus, unit: str, limit_s: float = JOBS_S) -> str:
    """Restart a service, and see that it stays up. Returns why not."""
    return run_jobs(bus, {unit: "RestartUnit"}, limit_s=limit_s)[unit]


def set_files(bus: Bus, wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Enable, disable, mask and unmask: by unit the words in the order in which they are done, and one reload after
    all. Returns why not, by unit. Raises BusError."""
    out: dict[str, str] = {}
    touched = False
    for unit, words in wanted.items():
        out[unit] = ""
        for word in words:
            calls = _FILES[word]
            for answer in bus.each([Call(m, s, ([unit], *more)) for m, s, more in calls], limit_s=RELOAD_S):
                if isinstance(answer, Refused):
                    out[unit] = f"it cannot be {word}d: {answer}".replace("maskd", "masked")
                elif word == "enable" and answer and answer[0] is False:
                    out[unit] = "it cannot be enabled: its unit file has no [Install] section"
            touched = True
            if out[unit]:
                break
            if word == "unmask":  # only then the unit's own file is what counts
                daemon_reload(bus)
    if touched:
        daemon_reload(bus)
    return out


#: What is at boot and what is until the next boot are two sets of links.
_FILES: Final[Mapping[str, Sequence[tuple[str, str, tuple[bool, ...]]]]] = {
    "enable": [("EnableUnitFiles", "asbb", (False, False))],
    "disable": [("DisableUnitFiles", "asb", (False,)), ("DisableUnitFiles", "asb", (True,))],
    "mask": [("MaskUnitFiles", "asbb", (False, False))],
    "unmask": [("UnmaskUnitFiles", "asb", (False,)), ("UnmaskUnitFiles", "asb", (True,))],
}
