"""Services and other units of systemd. Attributes: ``state`` (``running``, ``stopped``, ``failed``, or what it is on
its way to), ``enabled``, ``masked``; ``overdue`` if it has been on its way for too long.

A name is a service's without ``.service``, or the full name of another unit (``cron.timer``). What is declared is
compared, and nothing else. A unit without a file is absent; unit files are files. Mounts have a kind of their own. With
``backend = "process"`` a service is a daemon without systemd (``support.daemons``), and how to look at it is declared.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pact.errors import RestoreError
from pact.model import Attrs, Declared, Holder, Observation, Unreadable, decode_name, encode_name, split_id
from pact.resources.base import (
    HALF_N,
    WHOLE_N,
    Blobs,
    Entry,
    Found,
    Keep,
    Kind,
    Saved,
    Source,
    common,
    export_common,
    refuse_unknown,
)
from pact.resources.support import daemons
from pact.resources.support.daemons import DAEMONS

if TYPE_CHECKING:
    from pact.core.plan import Step
    from pact.resources.support.systemd_bus import Bus

UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\-][A-Za-z0-9:_.\\@-]*\Z")
UNIT_MAX: Final = 255
SERVICE: Final = ".service"
#: Other units whose state is somebody's decision.
OTHERS: Final = (".timer", ".socket", ".path", ".target")
#: Units that come and go with what they stand for, or have a kind of their own.
NOT_OURS: Final = (".mount", ".automount", ".swap", ".device", ".slice", ".scope")
SETTLED: Final = frozenset({"running", "stopped", "failed"})
STATES: Final = ("running", "stopped", "absent")
KEYS: Final = frozenset({"state", "enabled", "masked"})
NOT_ON_RECORD: Final = "it is looked at when its declaration is on record"
GONE: Final = "there is no such unit: its unit file is a file, declare it as one"
REMOVED: Final = "a unit goes with its unit file"


class Service(Kind):
    name = "service"
    dimension, severity = "services", 0.3
    off_loop = at_once = True
    verbs = ("reload", "restart", "reload-or-restart", "daemon-reload")
    removable = False
    ignored = ("pact-agent", "pact-aggregator")  # an agent cannot stop or start itself
    spelling = "a service without '.service' (chronyd), or a whole unit (cron.timer)"
    #: Packages, files, mounts and the rest are there before what uses them.
    follows = ("module", "sysctl", "package", "file", "mount")

    # -- names and TOML -------------------------------------------------------------------------------------------

    def canonical(self, name: str) -> str:
        if decode_name(name) != name.encode() or not UNIT.match(name) or len(name) > UNIT_MAX - len(SERVICE):
            raise ValueError(f"{name!r} is no unit name: letters, digits and ':_.\\-@'")
        short = name.removesuffix(SERVICE)
        if not short or short.endswith((*OTHERS, *NOT_OURS)):
            short = name  # a service that is called like another unit keeps its suffix
        if short.endswith(NOT_OURS):
            kind = "declare it as mount:/path" if short.endswith((".mount", ".automount")) else "it is never declared"
            raise ValueError(f"{short!r} is no service: {kind}")
        if "@" in short and not short.removesuffix(_suffix(short)).partition("@")[2]:
            raise ValueError(f"{short!r} is a template: name an instance of it, such as {_instance(short)!r}")
        return short

    def entries(self, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """A bare ``[service.cron.timer]`` is read by TOML as a table in a table."""
        stack = [("", table)]
        while stack:
            prefix, inner = stack.pop()
            for key, value in inner.items():
                name = f"{prefix}.{key}" if prefix else key
                if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
                    stack.append((name, value))
                else:
                    yield name, value

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        self.canonical(name)
        if isinstance(value, str):
            value = {"state": value}
        if not isinstance(value, dict):
            raise ValueError('a service is "running", "stopped" or a table with state, enabled, masked')
        process = "backend" in value
        refuse_unknown(value, KEYS | daemons.KEYS if process else KEYS | {"backend"})
        attrs: Attrs = daemons.parsed(value) if process else {}
        state = value.get("state")
        if state is not None:
            if state not in STATES:
                raise ValueError(f'state {state!r} is none of "running", "stopped", "absent"')
            attrs["state"] = state
        for key in ("enabled", "masked"):
            if key in value:
                if not isinstance(value[key], bool):
                    raise ValueError(f"{key} must be true or false")
                attrs[key] = value[key]
        if process and state not in ("running", "stopped"):
            raise ValueError('state is "running" or "stopped"')
        if state == "absent":
            if len(attrs) > 1:
                raise ValueError("an absent unit is neither enabled nor masked")
            return Entry(Declared(None, **common(value)))
        if attrs.get("masked") and (attrs.get("enabled") or state == "running"):
            raise ValueError("a masked unit is neither running nor enabled")
        if not attrs:
            raise ValueError("state, enabled and masked are missing: say at least one of them")
        return Entry(Declared(attrs, **common(value)))

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        if declared.attrs is None:
            return {"state": "absent", **export_common(declared)}
        out = {k: v for k, v in declared.attrs.items() if k == "state" or (k in KEYS and isinstance(v, bool))}
        if "state" in out and out["state"] not in STATES:
            out["state"] = "stopped"  # it was accepted when it had failed
        return {**out, **daemons.exported(declared.attrs), **export_common(declared)}

    # -- looking --------------------------------------------------------------------------------------------------

    def learn(self, name: str, attrs: Attrs | None) -> None:
        DAEMONS.learn(name, attrs)

    def not_yet(self, name: str, target: Attrs | None) -> str:
        if target is None or DAEMONS.propose(name, daemons.definition_of(target)):
            return ""
        return NOT_ON_RECORD

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        definition = DAEMONS.definition(name)
        if definition is not None:
            return daemons.observe(name, definition)
        from pact.resources.support import systemd
        from pact.resources.support.systemd_source import LATER

        try:
            unit = _look(name)
        except systemd.BusError as exc:
            return Unreadable(f"service: {exc}")
        if unit.id != unit_of(name):
            LATER.alias(unit.id, name)
        if unit.gone:
            return None
        state, overdue, again_us = systemd.state_of(unit, systemd.now_us(), _waiting(name, unit))
        LATER.at(name, again_us / 1e6)
        LATER.needs_reload(name, unit.reload)
        out: Attrs = {"state": state, "masked": unit.file in systemd.MASKED}
        if overdue:
            out["overdue"] = True
        if not out["masked"]:
            out["enabled"] = {"enabled": True, "disabled": False}.get(unit.file, unit.file)
        if unit.reload:
            out["reload"] = True
        return out

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if declared is None or actual is None:
            return 0 if declared == actual else WHOLE_N
        if "state" in declared and _drifts(declared["state"], actual):
            return WHOLE_N
        if wants_unmasked(declared) and actual.get("masked"):
            return WHOLE_N
        if declared.get("masked") and not actual.get("masked"):
            return HALF_N
        if "enabled" in declared and not _same_enabled(declared["enabled"], actual.get("enabled")):
            return HALF_N
        return 0

    def alike(self, decided: Observation, seen: Observation) -> bool:
        """What it does on its way from one state to another, and whether a reload is needed, is nobody's new work."""
        if not isinstance(decided, dict) or not isinstance(seen, dict):
            return decided == seen
        return _essence(decided) == _essence(seen)

    def settled(self, seen: Attrs | None) -> bool:
        return seen is None or seen.get("state") in SETTLED

    def half_done(self, step: Step, seen: Attrs | None) -> bool:
        if seen is None or step.actual is None or step.target is None:
            return False
        then, aim = step.actual, step.target
        return all(seen.get(k) in (then.get(k), aim.get(k, then.get(k))) for k in ("enabled", "masked"))

    def discover(self, pattern: str) -> Found:
        if not any(c in pattern for c in "*?["):
            return Found(iter([self.canonical(pattern)]), {}, exact=True)
        passed: dict[str, int] = {}
        return Found(self._names(pattern, passed), passed)

    def _names(self, pattern: str, passed: dict[str, int]) -> Iterator[str]:
        """While these are taken one by one, what looks at them uses the same connection."""
        from pact.resources.support import systemd

        try:
            with systemd.connected() as bus:
                taken = self._taken(bus, pattern, passed)
                for at in range(0, len(taken), AHEAD):
                    piece = taken[at : at + AHEAD]
                    systemd.look_ahead(bus, [unit_of(n) for n in piece])
                    yield from piece
        except systemd.BusError as exc:
            passed[str(exc)] = 1

    def _taken(self, bus: Bus, pattern: str, passed: dict[str, int]) -> list[str]:
        from pact.resources.support import systemd

        files, loaded = systemd.unit_files(bus), systemd.units(bus)
        taken = []
        for unit in sorted({*files, *loaded}):
            name = short_of(unit)
            if not name or not self.means(pattern, name):
                continue
            file = files.get(unit) or files.get(_template(unit), "")
            why = _pass_over(unit, file, loaded.get(unit))
            if not why:
                taken.append(name)
            elif why != UNUSED:
                passed[why] = passed.get(why, 0) + 1
        return taken

    def misnamed(self, name: str) -> str:
        from pact.resources.support import systemd

        try:
            unit = _look(name)
        except systemd.BusError:
            return ""
        own = short_of(unit.id)
        return f"is another name of service:{own}" if own and own != name else ""

    def place(self, name: str) -> str:
        return "systemd"

    def all_in(self, place: str) -> str:
        return "**"

    def notes(self) -> Sequence[str]:
        from pact.resources.support.systemd_source import LATER

        stale = LATER.stale()
        if not stale:
            return ()
        more = f" and {len(stale) - STALE_SHOWN} more" if len(stale) > STALE_SHOWN else ""
        shown = ", ".join(map(encode_name, stale[:STALE_SHOWN]))
        return [f"{shown}{more}: the unit file has changed, a reload is needed (systemctl daemon-reload)"]

    def source(self) -> Source | None:
        from pact.resources.support.systemd_source import Units

        return Units(short_of, unit_of)

    def rank(self, name: str) -> int:
        """What may come at the same time comes before services: they stand together at the end, and go in one piece."""
        return 100

    # -- acting ---------------------------------------------------------------------------------------------------

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        save = {"attrs": step.actual}
        why = ""
        if step.target is not None and daemons.definition_of(step.target):
            if step.target["state"] == "running" and "start" not in step.target:
                why = daemons.NO_START
        elif step.target is None:
            why = REMOVED if step.actual is not None else ""
        elif step.actual is None:
            why = GONE
        elif step.target.get("enabled") is True and step.actual.get("enabled") in NO_LINKS:
            why = f"it cannot be enabled: it is {step.actual['enabled']}"
        return Saved(f"{step.id}: {why}" if why else "", save)

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        why = self.restore_all([step], blobs)[step.id]
        if why:
            raise RestoreError(why)

    def restore_all(self, steps: Sequence[Step], blobs: Blobs) -> dict[str, str]:
        """One reload, and one transaction of systemd, which orders its jobs as the units say."""
        named = [(split_id(s.id)[1], s) for s in steps]
        why = self._together(named)
        return {s.id: why[name] for name, s in named}

    @staticmethod
    def _together(steps: Sequence[tuple[str, Step]]) -> dict[str, str]:
        """By name, ``""`` or why it was not restored."""
        from pact.resources.support import systemd, systemd_jobs
        from pact.resources.support.systemd_order import in_turn
        from pact.resources.support.systemd_users import left_over

        out = {name: _impossible(step) for name, step in steps}
        own = [(n, s) for n, s in steps if daemons.definition_of(s.target)]
        out.update(daemons.bring([(n, s.target or {}) for n, s in own]))
        todo = [(n, s) for n, s in steps if not out[n] and (n, s) not in own]
        if not todo:
            return out
        try:
            with systemd.connected() as bus:
                words = {unit_of(n): w for n, s in todo if (w := _words(s))}
                failed = systemd_jobs.set_files(bus, words)
                jobs = {unit_of(n): m for n, s in todo if not failed.get(unit_of(n)) and (m := _method(s))}
                jobs = {u: jobs[u] for u in in_turn(bus, jobs)}
                failed |= {u: why or left_over(bus, u, jobs[u]) for u, why in systemd_jobs.run_jobs(bus, jobs).items()}
        except systemd.BusError as exc:
            return {**out, **{name: str(exc) for name, _ in todo}}
        return {name: out[name] or failed.get(unit_of(name), "") for name, _ in steps}

    # -- who is notified  # R14 -----------------------------------------------------------------------------------

    def tell(self, name: str, verb: str, declared: Attrs | None) -> None:
        from pact.resources.support.systemd_tell import tell

        tell(unit_of(name), verb, declared)

    def told(self, resource: str, name: str, verb: str) -> Step | None:
        from pact.core.plan import Step as OneStep
        from pact.resources.support.systemd_tell import STOPPING

        return OneStep(resource, {"state": "stopped"}, {"state": "running"}) if verb in STOPPING else None

    def telling(self, told: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        from pact.resources.support.systemd_tell import in_order

        names = {unit_of(name): name for name, _ in told}
        return [(names[unit], verb) for unit, verb in in_order([(unit_of(n), v) for n, v in told])]

    # -- consumers ------------------------------------------------------------------------------------------------

    def disturbs(self, step: Step) -> bool:
        return _method(step) == "StopUnit"  # of a daemon without systemd, too: its state says it

    def in_use(self, name: str, step: Step) -> bool | None:
        return None if self.disturbs(step) else False

    def holders(self, name: str, step: Step, resource: str) -> list[Holder]:
        if not self.disturbs(step):
            return []
        from pact.resources.support.systemd_users import users, users_of

        definition = daemons.definition_of(step.target)
        return users(unit_of(name), resource) if definition is None else users_of(definition, resource)


#: Neither enabled nor in use: it is nobody's decision, and not counted.
UNUSED: Final = "unused"
NO_LINKS: Final = ("static", "generated", "transient")
#: What is known of jobs that wait: since when, by name, and which.
_jobs: dict[str, tuple[int, int]] = {}
JOBS_MAX: Final = 10_000
STALE_SHOWN: Final = 5
#: So many units are looked at in one go when all are adopted.
AHEAD: Final = 25


def _suffix(unit: str) -> str:
    return next((s for s in (SERVICE, *OTHERS, *NOT_OURS) if unit.endswith(s)), "")


def _instance(template: str) -> str:
    suffix = _suffix(template)
    return f"{template.removesuffix(suffix)}NAME{suffix}"


def _template(unit: str) -> str:
    """The template of an instance; ``""`` if it is none."""
    name, at, _ = unit.partition("@")
    return f"{name}@{_suffix(unit)}" if at else ""


def unit_of(name: str) -> str:
    """The unit of a resource's name."""
    return name if _suffix(name) else name + SERVICE


def short_of(unit: str) -> str:
    """The name of a unit as a resource; ``""`` if it is of another kind, a template, or no name."""
    try:
        return KIND.canonical(unit)
    except ValueError:
        return ""


def _look(name: str) -> Any:
    """The unit as ``systemd.look`` gives it, once more if the connection was an old one. Raises BusError."""
    from pact.resources.support import systemd

    try:
        with systemd.connected() as bus:
            return systemd.look(bus, unit_of(name))
    except systemd.Refused:
        raise
    except systemd.BusError:
        with systemd.connected(fresh=True) as bus:
            return systemd.look(bus, unit_of(name))


def _waiting(name: str, unit: Any) -> int:
    """Since when (microseconds) its job has waited, as far as this process has seen: systemd does not say."""
    from pact.resources.support import systemd

    if not unit.job:
        _jobs.pop(name, None)
        return 0
    if len(_jobs) > JOBS_MAX:
        _jobs.clear()
    known = _jobs.get(name)
    if known is None or known[0] != unit.job:
        known = _jobs[name] = (unit.job, time.monotonic_ns() // 1000)
    return known[1] if unit.active not in systemd.ON_ITS_WAY else 0


def _drifts(wanted: str, actual: Attrs) -> bool:
    """Whether this is not the wanted state, and not on its way to some state either."""
    state = actual.get("state")  # without one it is a declaration
    if state in SETTLED:
        return bool((state == "running") != (wanted == "running"))
    return bool(actual.get("overdue"))


def _same_enabled(wanted: Any, have: Any) -> bool:
    """What is not enabled in some other way (static, masked) is not enabled. Such a way is nobody's decision."""
    return not isinstance(wanted, bool) or (have is True) == wanted


def wants_unmasked(target: Attrs) -> bool:
    """A unit that shall run, or start at boot, cannot be masked."""
    if "masked" in target:
        return not target["masked"]
    return target.get("state") == "running" or target.get("enabled") is True


def _essence(attrs: Attrs) -> tuple[Any, ...]:
    return attrs.get("state") == "running", attrs.get("masked"), attrs.get("enabled")


def _words(step: Step) -> list[str]:
    """What to do with its unit file's links."""
    target, actual = step.target or {}, step.actual or {}
    out = []
    if wants_unmasked(target) and actual.get("masked"):
        out.append("unmask")
    if "enabled" in target and isinstance(target["enabled"], bool):
        if not _same_enabled(target["enabled"], actual.get("enabled")) and not target.get("masked"):
            out.append("enable" if target["enabled"] else "disable")
        elif out and target["enabled"]:
            out.append("enable")
    if target.get("masked") and not actual.get("masked"):
        out.append("mask")
    return out


def _method(step: Step) -> str:
    """What systemd must do with the unit itself; ``""`` for nothing."""
    wanted = "stopped" if step.target is None else step.target.get("state")  # a mere question has no target
    if wanted is None or step.actual is None:
        return ""
    if step.actual.get("state") in SETTLED and not _drifts(wanted, step.actual):
        return ""  # what is on its way to it is asked for again: then its job is waited for
    return "StartUnit" if wanted == "running" else "StopUnit"


def _impossible(step: Step) -> str:
    if step.target is None:
        return REMOVED
    if daemons.definition_of(step.target):
        return ""
    return GONE if step.actual is None else ""


def _pass_over(unit: str, file: str, loaded: Any) -> str:
    """Why a unit is not adopted by a pattern; ``""`` if it is."""
    active = loaded is not None and loaded.active not in ("inactive", "failed")
    if file in NO_LINKS or (not file and loaded is not None):
        return f"{file or 'transient'} unit" if active or file != "static" else UNUSED
    if loaded is not None and loaded.active == "failed" and file == "enabled":
        return "failed: mend it first, or name it"
    if file in ("alias", "linked", "linked-runtime", "bad", "enabled-runtime") and not active:
        return UNUSED
    if file == "enabled" or active:
        return ""
    return UNUSED


KIND: Final = Service()
