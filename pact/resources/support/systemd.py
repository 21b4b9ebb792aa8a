"""What systemd says of units, each question with a limit. What it is asked to do is in ``systemd_jobs``.

A *unit* is its full name (``slurmd.service``). Files of units and their links are read from the disk by systemd at
each look; whether systemd itself has read them again is ``reload``.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from pact.resources.support import systemd_bus as bus_
from pact.resources.support.systemd_bus import SYSTEMD, Bus, BusError, Call, Refused, unit_path

IS_UNIT: Final = SYSTEMD + ".Unit"
IS_SERVICE: Final = SYSTEMD + ".Service"
#: systemd reads all its unit files again: a second on a large node, much more on a sick one.
RELOAD_S: Final = 60.0
#: What may be on its way for ever counts as settled after this.
ON_ITS_WAY_MAX_S: Final = 900
#: Without a limit of its own; systemd's default.
ON_ITS_WAY_S: Final = 90
SLACK_S: Final = 5
#: A unit that systemd has restarted is up when it has been up for so long; after so many restarts in a row it never is.
UP_AGAIN_S: Final = 5
RESTARTS_MAX: Final = 5
USEC: Final = 1_000_000
FOREVER: Final = 2**64 - 1

RUNNING, STOPPED, FAILED = "running", "stopped", "failed"
#: Neither running nor stopped, and soon one of them.
ON_ITS_WAY: Final = frozenset({"activating", "deactivating", "reloading", "refreshing", "maintenance"})
_JOBS: Final = {
    "start": "activating",
    "restart": "activating",
    "try-restart": "activating",
    "reload-or-start": "activating",
    "reload": "reloading",
    "stop": "deactivating",
}
#: Of a unit's file, and what can be done with it.
MASKED: Final = ("masked", "masked-runtime")
NO_INSTALL: Final = ("static", "generated", "transient")


@dataclass(frozen=True, slots=True)
class Unit:
    """What systemd said of a unit at one moment. Times are microseconds of the monotonic clock, 0 for never."""

    id: str
    load: str = "loaded"
    active: str = "inactive"
    sub: str = "dead"
    job: int = 0
    job_type: str = ""
    file: str = ""
    reload: bool = False
    changed_us: int = 0
    up_us: int = 0
    restarts: int = 0
    limit_us: int = 0

    @property
    def gone(self) -> bool:
        """Whether there is neither a file nor anything that runs."""
        return self.load == "not-found" and self.active in ("inactive", "failed") and not self.job


NO_SUCH_UNIT: Final = SYSTEMD + ".NoSuchUnit"
PROPERTIES: Final = (
    *("Id", "LoadState", "ActiveState", "SubState", "Job"),
    *("NeedDaemonReload", "StateChangeTimestampMonotonic", "ActiveEnterTimestampMonotonic"),
)

#: Its other names, and the units with which it is stopped, or started (or stopped because they are started).
OTHER_NAMES: Final = "Names"
STOPPED_WITH: Final = ("Requires", "Requisite", "BindsTo", "PartOf")
STARTED_WITH: Final = ("RequiredBy", "WantedBy", "BoundBy", "UpheldBy", "Conflicts", "ConflictedBy")
RELATED_MAX: Final = 64

#: A connection that was used just now is used again: systemd takes two milliseconds to make one.
KEPT_S: Final = 2.0
LOADED_MAX: Final = 10_000
#: What was looked at ahead counts for so long.
AHEAD_S: Final = 1.0
_here = threading.local()
_kept: list[tuple[Bus, float]] = []
_lock = threading.Lock()
_loaded: set[str] = set()  # units that were loaded when they were looked at last
_related: dict[str, tuple[frozenset[str], frozenset[str]]] = {}  # unit -> with which it is stopped, and started


@contextmanager
def connected(*, fresh: bool = False) -> Iterator[Bus]:
    """A connection for what this thread does now: the one that it has, or one that was used just now, or a new one.
    Raises BusError. Who has a source of events calls ``let_go`` now and then: nobody reads the signals that come to a
    connection at rest."""
    there: Bus | None = getattr(_here, "bus", None)
    if there is not None:
        yield there
        return
    made = (None if fresh else _kept_one()) or bus_.connect()
    _here.bus = made
    try:
        yield made
    except BaseException:
        made.close()
        raise
    finally:
        _here.bus = None
    made.early()
    with _lock:
        if not _kept and made.address == bus_.address():
            _kept.append((made, time.monotonic()))
            return
    made.close()


def warm() -> None:
    """Make a connection that will be needed in a moment, in a thread of its own."""

    def work() -> None:
        try:
            with connected():
                pass
        except BusError:
            pass  # whoever needs it says so

    if not _kept:
        threading.Thread(target=work, name="pact-systemd-warm", daemon=True).start()


def _kept_one() -> Bus | None:
    let_go()
    with _lock:
        return _kept.pop()[0] if _kept else None


def let_go() -> None:
    """Close a connection that has rested, or is dead."""
    with _lock:
        for each in [k for k in _kept if time.monotonic() - k[1] > KEPT_S or not k[0].alive()]:
            _kept.remove(each)
            each[0].close()


def get_property(path: str, name: str, interface: str = IS_UNIT) -> Call:
    """Ask for a property of a unit, by its object path or its name."""
    path = path if path.startswith("/") else unit_path(path)
    return Call("Get", "ss", (interface, name), path, bus_.PROPERTIES)


def value_of(answer: tuple[Any, ...] | Refused, otherwise: Any) -> Any:
    """A property's value, if it is of the type that is wanted."""
    if isinstance(answer, Refused) or not answer or not isinstance(answer[0], tuple) or len(answer[0]) != 2:
        return otherwise
    value = answer[0][1]
    return value if type(value) is type(otherwise) else otherwise


def look(bus: Bus, unit: str) -> Unit:
    """What is known of a unit. One that systemd has not loaded is not loaded for it: that would move others, and be an
    event itself. Raises BusError, Refused for a name that systemd does not accept."""
    ahead: Unit | None = getattr(_here, "ahead", {}).pop(unit, None)
    if ahead is not None and time.monotonic() - _here.ahead_s < AHEAD_S:
        return ahead
    return _read(bus, unit, bus.each(_calls(unit)))


def look_ahead(bus: Bus, units_: Sequence[str]) -> None:
    """Look at all of these in one go. The next ``look`` of this thread at one of them takes what was seen."""
    calls = [_calls(u) for u in units_]
    answers = iter(bus.each([c for each in calls for c in each]))
    _here.ahead, _here.ahead_s = {}, time.monotonic()
    for unit, each in zip(units_, calls, strict=True):
        own = [next(answers) for _ in each]
        if not isinstance(own[0], Refused) or own[0].name == NO_SUCH_UNIT:
            _here.ahead[unit] = _read(bus, unit, own)


def _calls(unit: str) -> list[Call]:
    """All in one go if it was loaded when it was looked at last."""
    rest = _of_loaded(unit_path(unit)) if unit in _loaded else []
    return [Call("GetUnit", "s", (unit,)), Call("GetUnitFileState", "s", (unit,)), *rest]


def _read(bus: Bus, unit: str, answers: Sequence[tuple[Any, ...] | Refused]) -> Unit:
    path, file, *values = answers
    file_state = "" if isinstance(file, Refused) else str(file[0])
    if isinstance(path, Refused):
        _loaded.discard(unit)
        if path.name != NO_SUCH_UNIT:
            raise path
        return Unit(unit, "loaded" if file_state else "not-found", file=file_state)
    here = str(path[0])
    if not values:
        values = bus.each(_of_loaded(here))
        if here == unit_path(unit) and len(_loaded) < LOADED_MAX:
            _loaded.add(unit)
    if unit not in _related:
        _relate(bus, unit, here)
    id_, load, active, sub, job, reload, changed, up, restarts = values
    number, job_path = value_of(job, (0, "/"))
    seen = Unit(
        value_of(id_, unit),
        load=value_of(load, ""),
        active=value_of(active, ""),
        sub=value_of(sub, ""),
        job=number,
        file=file_state,
        reload=value_of(reload, False),
        changed_us=value_of(changed, 0),
        up_us=value_of(up, 0),
        restarts=value_of(restarts, 0),
    )
    return _with_limit(bus, here, seen, job_path) if seen.active in ON_ITS_WAY or number else seen


def _relate(bus: Bus, unit: str, path: str) -> None:
    """Remember the units by which this one is moved: whoever moves them moves this one, too."""
    names = (OTHER_NAMES, *STOPPED_WITH, *STARTED_WITH)
    found = [value_of(a, [])[:RELATED_MAX] for a in bus.each([get_property(path, name) for name in names])]
    sets = [[sys.intern(str(u)) for u in each if not str(u).endswith(".slice")] for each in found]
    first = 1 + len(STOPPED_WITH)
    if len(_related) < LOADED_MAX:
        _related[unit] = frozenset().union(*sets[:first]) - {unit}, frozenset().union(sets[0], *sets[first:]) - {unit}


def movers(unit: str, *, stops: bool) -> set[str]:
    """The units of which it is known that stopping them (else: starting, which may stop others) moves this one. Asks
    nobody."""
    out, todo = set[str](), [unit]
    while todo and len(out) < LOADED_MAX:
        stopped, started = _related.get(todo.pop(), (frozenset[str](), frozenset[str]()))
        new = (stopped if stops else stopped | started) - out - {unit}
        out |= new
        todo += new
    return out


def unit_files_read() -> None:
    """systemd has read its unit files again: what was known of how units move each other may not be so any more."""
    _related.clear()


def _of_loaded(path: str) -> list[Call]:
    return [*(get_property(path, name) for name in PROPERTIES), get_property(path, "NRestarts", IS_SERVICE)]


def _with_limit(bus: Bus, here: str, unit: Unit, job_path: str) -> Unit:
    """The same with its job, and with its own limit for what it is doing now: asked only of units on their way."""
    job_type, start, stop, pause = bus.each(
        [
            Call("Get", "ss", (SYSTEMD + ".Job", "JobType"), job_path, bus_.PROPERTIES),
            get_property(here, "TimeoutStartUSec", IS_SERVICE),
            get_property(here, "TimeoutStopUSec", IS_SERVICE),
            get_property(here, "RestartUSec", IS_SERVICE),
        ]
    )
    job = value_of(job_type, "")
    stops = unit.active == "deactivating" or job == "stop"
    own = value_of(stop if stops else start, 0) or ON_ITS_WAY_S * USEC
    rest = value_of(pause, 0) if unit.sub.startswith("auto-restart") else 0
    limit = min(own + rest + SLACK_S * USEC, ON_ITS_WAY_MAX_S * USEC)
    return replace(unit, job=unit.job if job else 0, job_type=job, limit_us=limit)


def state_of(unit: Unit, now_us: int, waiting_us: int = 0) -> tuple[str, bool, int]:
    """Its state, whether it has been on its way for too long, and when to look again (0: systemd will say). Pure.
    ``waiting_us``: since when a job has waited, as far as this process knows."""
    doing = _JOBS.get(unit.job_type, "") if unit.job else ""
    if unit.active in ON_ITS_WAY or doing:
        state = unit.active if unit.active in ON_ITS_WAY else doing
        since = max(unit.changed_us, waiting_us)
        ends = since + (unit.limit_us or ON_ITS_WAY_S * USEC)
        overdue = now_us >= ends or (unit.sub.startswith("auto-restart") and unit.restarts >= RESTARTS_MAX)
        return state, overdue, 0 if overdue else ends
    if unit.active == "active":
        settles = unit.up_us + UP_AGAIN_S * USEC
        if unit.restarts and now_us < settles:
            return "activating", unit.restarts >= RESTARTS_MAX, settles
        return RUNNING, False, 0
    return (FAILED if unit.active == "failed" else STOPPED), False, 0


# -- what is there ------------------------------------------------------------------------------------------------


def unit_files(bus: Bus) -> dict[str, str]:
    """All unit files by name, with their state."""
    (rows,) = bus.call("ListUnitFiles", limit_s=RELOAD_S)
    return {str(path).rpartition("/")[2]: str(state) for path, state in rows}


def units(bus: Bus) -> dict[str, Unit]:
    """All units that systemd has loaded, as its list says."""
    (rows,) = bus.call("ListUnits", limit_s=RELOAD_S)
    _loaded.update(str(r[0]) for r in rows[:LOADED_MAX])
    return {str(r[0]): Unit(str(r[0]), str(r[2]), str(r[3]), str(r[4]), int(r[7]), str(r[8])) for r in rows}


def now_us() -> int:
    return time.monotonic_ns() // 1000


# -- what is asked ------------------------------------------------------------------------------------------------


def subscribe(bus: Bus) -> None:
    """Have systemd's signals come to this connection. Raises BusError."""
    if bus.bus:
        for rule in RULES:
            bus.ask(Call("AddMatch", "s", (rule,), bus_.BUS, bus_.DBUS, bus_.DBUS))
    bus.call("Subscribe")


RULES: Final = (
    f"type='signal',sender='{SYSTEMD}',interface='{bus_.IS_MANAGER}',path='{bus_.MANAGER}'",
    f"type='signal',sender='{bus_.DBUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'",
    f"type='signal',sender='{SYSTEMD}',member='PropertiesChanged',path_namespace='{bus_.UNITS[:-1]}'",
)


def daemon_reload(bus: Bus) -> None:
    """Have systemd read all unit files again. Raises BusError."""
    try:
        bus.call("Reload", limit_s=RELOAD_S)
    except Refused as exc:
        raise BusError(f"systemd does not read its unit files again: {exc}") from None


__all__ = ["BusError", "Refused", "Unit", "connected", "look", "state_of"]
