"""GPUs, as NVML shows them: persistence mode, power limit, compute mode, ECC, MIG, application clocks, driver.

A GPU is named by its place on the PCI bus (``0000:3b:00.0``, as ``lspci -D`` writes it): equal nodes have equal names,
and a card that was exchanged has the settings of its slot. Only attributes that are declared are compared. ``ecc`` and
``mig`` are the modes that hold after the next reset, because that is what can be set; the present ones are shown below
``now``. A lost GPU is absent: no rollback can mend that, and none tries. When it is there again, its settings are
brought back like those after a reboot.

The agent itself does not load NVML: see ``gpu_nvml``. NVML's own events would keep it loaded, and the device open, so
that the driver could never be exchanged. Instead the kernel says when a device or a driver comes or goes, and the
rescan finds the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Declared, Holder, Observation, Unreadable
from pact.resources.base import (
    HALF_N,
    WHOLE_N,
    Blobs,
    Drained,
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
from pact.resources.support.gpu_ask import NoAnswer, ask, attrs_of, forget, gpus, users

NAME: Final = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])\Z")
#: Other ways to name a GPU, which only the machine itself understands.
ALIAS: Final = re.compile(r"(?:[0-9]{1,3}|GPU-[0-9a-fA-F-]{1,64})\Z")
COMPUTE_MODES: Final = ("default", "exclusive_thread", "prohibited", "exclusive_process")
#: In the order in which they are set: MIG mode resets others.
SETTABLE: Final = ("mig", "persistence", "ecc", "compute_mode", "application_clocks", "power_limit_mw")
BOOLEANS: Final = ("persistence", "ecc", "mig")
CLOCKS: Final = ("graphics", "memory")
NUMBER_MAX: Final = 1 << 31
#: Who uses the GPU does not notice a change of these.
UNNOTICED: Final = frozenset({"persistence", "driver", "now"})


class Gpu(Kind):
    name = "gpu"
    dimension, severity = "gpu", 0.5
    volatile = comes_back = True
    removable = False
    off_loop = True
    follows = ("module",)
    spelling = "a place on the PCI bus, as 0000:3b:00.0"

    def canonical(self, name: str) -> str:
        found = NAME.match(name)
        if not found:
            hint = f": pact adopt gpu:{name} finds out which one it is" if ALIAS.match(name) else ""
            raise ValueError(f"{name!r} is no place on the PCI bus, as 0000:3b:00.0{hint}")
        domain, bus, device, function = found.groups()
        return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function}".lower()

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        self.canonical(name)
        if value == "present":
            value = {}
        if not isinstance(value, dict):
            raise ValueError('a GPU is "present", or a table as {persistence = true, power_limit_mw = 300000}')
        refuse_unknown(value, frozenset({*SETTABLE, "driver"}))
        attrs: Attrs = {}
        for key in BOOLEANS:
            if key in value:
                if not isinstance(value[key], bool):
                    raise ValueError(f"{key} is true or false")
                attrs[key] = value[key]
        if "power_limit_mw" in value:
            attrs["power_limit_mw"] = _number("power_limit_mw", value["power_limit_mw"])
        if "compute_mode" in value:
            if value["compute_mode"] not in COMPUTE_MODES:
                raise ValueError(f"compute_mode is one of {', '.join(COMPUTE_MODES)}")
            attrs["compute_mode"] = value["compute_mode"]
        if "application_clocks" in value:
            clocks = value["application_clocks"]
            if not isinstance(clocks, dict) or set(clocks) != set(CLOCKS):
                raise ValueError("application_clocks is a table with graphics and memory, both in MHz")
            attrs["application_clocks"] = {key: _number(key, clocks[key]) for key in CLOCKS}
        if "driver" in value:
            if not isinstance(value["driver"], str) or not value["driver"].isprintable() or len(value["driver"]) > 80:
                raise ValueError('driver is its version, as "550.54.15"')
            attrs["driver"] = value["driver"]
        return Entry(Declared(attrs, **common(value)))

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        return {**{k: v for k, v in (declared.attrs or {}).items() if k != "now"}, **export_common(declared)}

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        try:
            said = gpus((name,), fresh=keep is not None)
            return attrs_of(said[name])
        except NoAnswer as exc:
            return Unreadable(f"gpu: {exc}")
        except (KeyError, TypeError):
            return Unreadable("gpu: NVML gives no answer that can be read")

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if declared is None or actual is None:
            return 0 if declared == actual else WHOLE_N
        wrong = _wrong(declared, actual)
        return WHOLE_N if "driver" in wrong else HALF_N if wrong else 0

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        if step.target is None or step.actual is None:
            raise RestoreError(self._why_gone(name))
        wrong = _wrong(step.target, step.actual)
        wanted = {key: step.target[key] for key in SETTABLE if key in wrong}
        try:
            failed = ask("set", name=name, set=wanted).get("failed") if wanted else ""
        except NoAnswer as exc:
            raise RestoreError(str(exc)) from None
        finally:
            forget()
        if failed:
            raise RestoreError(str(failed)[:200])

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        """Whether the GPU is there, has what is to be set, and would take the power limit."""
        save = {"attrs": step.actual}
        if step.target is None:
            return Saved("" if step.actual is None else f"{step.id}: a GPU cannot be removed", save)
        if step.actual is None:
            return Saved(f"{step.id}: {self._why_gone(name)}", save)
        wrong = _wrong(step.target, step.actual)
        if "driver" in wrong:
            why = f"its driver is {step.actual.get('driver')}, and not {step.target['driver']}: a person must mend it"
            return Saved(f"{step.id}: {why}", save)
        if unknown := [key for key in wrong if key not in step.actual]:
            return Saved(f"{step.id}: this card or driver has no {', '.join(unknown)}", save)
        if "power_limit_mw" in wrong and (why := _beyond(name, step.target["power_limit_mw"])):
            return Saved(f"{step.id}: {why}", save)
        later = [key for key in ("ecc", "mig") if key in wrong]
        note = f"{step.id}: {' and '.join(later)} may take a reset of the GPU" if later else ""
        return Saved("", save, note)

    def _why_gone(self, name: str) -> str:
        try:
            how = gpus((name,)).get(name, {}).get("gone")
        except NoAnswer as exc:
            return str(exc)
        what = "has lost its connection to the bus" if how == "lost" else "is not there"
        return f"the GPU {what}: no rollback can mend that"

    # -- who uses it ----------------------------------------------------------------------------------------------

    def disturbs(self, step: Step) -> bool:
        return step.target is None or not _wrong(step.target, step.actual or {}) <= UNNOTICED

    def in_use(self, name: str, step: Step) -> bool | None:
        if step.actual is None or not self.disturbs(step):
            return False
        forget()  # a decision asks anew
        return None

    def holders(self, name: str, step: Step, resource: str) -> list[Holder]:
        """The processes on the device. If NVML cannot say, it counts as in use."""
        try:
            return [Holder(resource, pid, how) for pid, how in users(name) if pid > 0]
        except NoAnswer as exc:
            return [Holder(resource, 0, "unknown", str(exc))]

    # -- adopt ----------------------------------------------------------------------------------------------------

    def discover(self, pattern: str) -> Found:
        passed: dict[str, int] = {}
        if NAME.match(pattern):
            return Found(iter([self.canonical(pattern)]), passed, exact=True)
        if ALIAS.match(pattern):
            return Found(self._aliased(pattern), passed, exact=True)
        return Found(self._names(pattern.lower(), passed), passed)

    def _aliased(self, alias: str) -> Iterator[str]:
        try:
            found = gpus(fresh=True)
        except NoAnswer as exc:
            raise ValueError(f"gpu:{alias}: {exc}") from None
        names = [n for n, said in found.items() if alias in (str(said.get("index")), said.get("uuid"))]
        if not names:
            raise ValueError(f"gpu:{alias}: there is no such GPU here")
        yield names[0]

    def _names(self, pattern: str, passed: dict[str, int]) -> Iterator[str]:
        try:
            found = gpus(fresh=True)
        except NoAnswer as exc:
            passed[f"GPUs: {exc}"] = 0 if exc.missing else 1
            return
        for name in sorted(found):
            if "attrs" in found[name] and fnmatchcase(name, pattern.replace("**", "*")):
                yield name

    def newcomers(self, pattern: str) -> set[str]:
        return set(self._names(pattern.lower(), {}))

    def source(self) -> Source | None:
        return Hotplug()


class Hotplug(Source):
    """The kernel's announcements of PCI devices, and of the driver: it comes, goes, or takes a device."""

    def __init__(self) -> None:
        from pact.resources.support.uevents import Uevents

        self._uevents = Uevents()
        self._names: set[str] = set()

    def fileno(self) -> int:
        return self._uevents.fileno()

    def drain(self) -> Drained:
        devices, lost = self._uevents.drain()
        touched: set[str] = set()
        for _, device in devices:
            leaf = os.path.basename(device)
            if leaf in self._names:
                touched.add(leaf)
            elif device.startswith("/module/nvidia"):
                touched |= self._names
        return Drained([(name, 0) for name in sorted(touched)], "events of devices were lost" if lost else "")

    def want(self, name: str) -> None:
        self._names.add(name)

    def unwant(self, name: str) -> None:
        self._names.discard(name)

    def health(self) -> str:
        return "ok"

    def close(self) -> None:
        self._uevents.close()


def _wrong(declared: Mapping[str, Any], actual: Mapping[str, Any]) -> set[str]:
    """The declared attributes that are not so."""
    return {key for key, value in declared.items() if key != "now" and actual.get(key) != value}


def _beyond(name: str, limit_mw: int) -> str:
    """Why the card would not take this power limit; ``""`` if it would, or does not say."""
    try:
        limits = ask("limits", name=name).get("limits")
    except NoAnswer as exc:
        return str(exc)
    if not limits or limits[0] <= limit_mw <= limits[1]:
        return ""
    return f"it takes a power limit of {limits[0]} to {limits[1]} mW, and not {limit_mw}"


def _number(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < NUMBER_MAX:
        raise ValueError(f"{key} is a whole number above 0")
    return value


KIND: Final = Gpu()
