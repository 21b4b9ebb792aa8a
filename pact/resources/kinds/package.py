"""Packages of the distribution: dpkg's or rpm's. Attributes: ``version`` (rpm: with release, and epoch if there is
one); ``native`` (true: a version without a release); ``also`` (further versions installed beside it); ``status`` (of a
package that is not simply installed).

Absent is ``None``. The database is read when it has changed, and never while a package manager works on it. A plan is
carried out as one transaction of the package manager.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import Attrs, Declared, Observation, Unreadable, encode_name, split_id
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
from pact.resources.support.package_database import Database, at_work
from pact.resources.support.package_files import Files, is_running_kernel
from pact.resources.support.package_offers import Offers
from pact.resources.support.package_plans import Plans, move_of
from pact.resources.support.package_reading import ANY, Reading, is_version, require_name, same_version

#: The environment variable that names another root for the databases, for tests: the package managers' own
#: configuration there (``etc/apt/apt.conf``, ``etc/dnf/dnf.conf``) must say so, too.
ROOT_VARIABLE: Final = "PACT_PACKAGE_ROOT"
FREE_S: Final = 30.0
ALSO_MAX: Final = 32
SIDE_BY_SIDE: Final = "several versions are installed side by side: a person decides which go"


class Package(Kind):
    """``root``: where the databases are; ``""`` is the machine's own."""

    name = "package"
    dimension, severity = "packages", 0.2
    volatile = False
    one_line = True
    at_once = orders = True
    spelling = "a package's name; of another architecture as its package manager writes it (libc6:i386, glibc.i686)"
    ignored = ("pact",)

    def __init__(self, root: str = "", tools: Mapping[str, str] | None = None) -> None:
        self.database = Database(root, (tools or {}).get("rpm", "rpm"))
        self.plans = Plans(self.database, tools or {})
        self.files = Files(self.database)
        self.offers = Offers(self.database, self.plans)

    @property
    def off_loop(self) -> bool:  # type: ignore[override]
        """Reading the database takes long; looking into what was read does not."""
        return self.database.current() is None

    # -- TOML -----------------------------------------------------------------------------------------------------

    def canonical(self, name: str) -> str:
        return require_name(name)

    def parse(self, name: str, value: Any, base_dir: str) -> Entry:
        self.canonical(name)
        if isinstance(value, str):
            value = {"version": value}
        if not isinstance(value, dict):
            raise ValueError('a package is a version, "installed", "absent" or a table with version')
        refuse_unknown(value, frozenset({"version", "native", "also"}))
        version, native, also = value.get("version", "installed"), value.get("native", False), value.get("also", [])
        if version in ("installed", "absent"):
            if native or also:
                raise ValueError(f"{version!r} has neither native nor also")
            return Entry(Declared(None if version == "absent" else {"version": ANY}, **common(value)))
        if not is_version(version):
            raise ValueError(f'version {version!r} is neither a version nor one of "installed", "absent"')
        if not isinstance(native, bool):
            raise ValueError("native is true or false")
        if not isinstance(also, list) or len(also) > ALSO_MAX or not all(map(is_version, also)):
            raise ValueError("also is a list of versions")
        attrs: Attrs = {"version": version, **({"native": True} if native else {}), **({"also": also} if also else {})}
        return Entry(Declared(attrs, **common(value)))

    def export(self, name: str, declared: Declared, blobs: Blobs) -> Any:
        attrs, more = declared.attrs, export_common(declared)
        version = "absent" if attrs is None else "installed" if attrs["version"] == ANY else attrs["version"]
        if attrs is not None:
            more |= {key: attrs[key] for key in ("native", "also") if key in attrs}
        return {"version": version, **more} if more else version

    # -- looking --------------------------------------------------------------------------------------------------

    def observe(self, name: str, keep: Keep | None = None) -> Observation:
        reading = self.database.now()
        if isinstance(reading, Unreadable):
            return reading
        seen = reading.attrs(name)
        if keep is not None and seen is not None and (why := self.offers.lacking(name, seen["version"], reading)):
            keep.unkept[f"{self.name}:{name}"] = why
        return seen

    def first_look(self, name: str, keep: Keep, signed: dict[str, bytes] | None) -> Observation:
        return self.observe(name)

    def many(self) -> Callable[[str], Observation]:
        reading = self.database.current()
        if reading is None:
            return self.observe
        return lambda name: reading if isinstance(reading, Unreadable) else reading.attrs(name)

    def source(self) -> Source | None:
        from pact.resources.support.package_source import PackageSource

        return PackageSource(self.database)

    def distance_n(self, declared: Attrs | None, actual: Attrs | None) -> int:
        if declared is None or actual is None:
            return 0 if declared == actual else WHOLE_N
        if actual.get("status", "") != declared.get("status", ""):
            return HALF_N
        native, wanted = bool(declared.get("native")), declared["version"]
        if "also" in declared:
            same = sorted([wanted, *declared["also"]]) == sorted([actual["version"], *actual.get("also", ())])
        else:
            there = (actual["version"], *actual.get("also", ()))
            same = any(same_version(wanted, version, native=native) for version in there)
        return 0 if same else HALF_N

    def undeclarable(self, attrs: Attrs | None) -> str:
        return f"a package that is {attrs['status']}" if attrs is not None and "status" in attrs else ""

    # -- adopt ----------------------------------------------------------------------------------------------------

    def discover(self, pattern: str) -> Found:
        if not any(c in pattern for c in "*?["):
            return Found(iter([self.canonical(pattern)]), {}, exact=True)
        reading = self.database.now()
        if isinstance(reading, Unreadable):
            return Found(iter(()), {f"nothing of {self.name}:{pattern} was looked at: {reading.why}": 1})
        matching = [name for name in sorted(reading.versions) if self.means(pattern, name)]
        passed = dict[str, int]()
        for name in matching:
            if name in reading.states:
                why = f"{reading.states[name]}: the package manager has to finish first"
                passed[why] = passed.get(why, 0) + 1
        if reading.left and pattern.strip("*") == "":
            passed["removed, with configuration files left"] = reading.left
        return Found(self._names(matching, reading), passed)

    @staticmethod
    def _names(matching: Sequence[str], reading: Reading) -> Iterator[str]:
        return (name for name in matching if name not in reading.states)

    def means(self, pattern: str, name: str) -> bool:
        return fnmatchcase(name, pattern.replace("**", "*"))

    def newcomers(self, pattern: str) -> set[str]:
        reading = self.database.now()
        if isinstance(reading, Unreadable):
            raise ValueError(reading.why)
        wild = any(c in pattern for c in "*?[")
        return {n for n in reading.versions if self.means(pattern, n) and n not in reading.states} if wild else set()

    def misnamed(self, name: str) -> str:
        reading = self.database.now()
        plain = name if isinstance(reading, Unreadable) else reading.plain(name)
        return "" if plain == name else f"is called {self.name}:{plain} here"

    # -- a plan ---------------------------------------------------------------------------------------------------

    def rank(self, name: str) -> int:
        """Packages come first: they bring files."""
        return -1

    def half_done(self, step: Step, seen: Attrs | None) -> bool:
        return super().half_done(step, seen) or (seen is not None and "status" in seen)

    def preflight(self, name: str, step: Step, keep: Keep) -> Saved:
        return self.preflight_all([step], keep)[step.id]

    def preflight_all(self, steps: Sequence[Step], keep: Keep) -> Mapping[str, Saved]:
        """The plan as a whole is simulated; what concerns it as a whole is said with its first package."""
        reading = self.database.now()
        whole, each = self._refused(steps, reading)
        out = {}
        for at, step in enumerate(steps):
            name = split_id(step.id)[1]
            why = [f"{step.id}: {each[name]}"] if name in each else []
            out[step.id] = Saved("; ".join([*why, *([whole] if whole and at == 0 else [])]), {"attrs": step.actual})
        return out

    def _refused(self, steps: Sequence[Step], reading: Reading | Unreadable) -> tuple[str, Mapping[str, str]]:
        if isinstance(reading, Unreadable):
            return reading.why, {}
        manager = self.database.manager()
        if self.database.root and manager is not None and (busy := at_work(manager)):
            return busy, {}  # of the machine's own locks every plan is told
        each = {}
        self.files.ahead([split_id(s.id)[1] for s in steps if self.disturbs(s)], reading)
        for step in steps:
            name = split_id(step.id)[1]
            if (step.target or {}).get("also") != (step.actual or {}).get("also"):
                each[name] = SIDE_BY_SIDE
            elif step.target is None and self._runs(name, reading):
                each[name] = "it is the kernel that runs"
        if each:
            return "", each
        judged = self.plans.judge([move_of(split_id(s.id)[1], s.target, s.actual) for s in steps], reading)
        return judged.whole, judged.each

    def _runs(self, name: str, reading: Reading) -> bool:
        return is_running_kernel(self.files.of(name, reading, again=True), os.uname().release)

    def restore(self, name: str, step: Step, blobs: Blobs) -> None:
        if why := self.restore_all([step], blobs)[step.id]:
            raise RestoreError(why)

    def restore_all(self, steps: Sequence[Step], blobs: Blobs) -> Mapping[str, str]:
        reading = self.database.now()
        why = reading.why if isinstance(reading, Unreadable) else ""
        if isinstance(reading, Reading):
            try:
                self.plans.carry_out([move_of(split_id(s.id)[1], s.target, s.actual) for s in steps], reading)
            except RestoreError as exc:
                why = exc.message
        busy = self.database.free(FREE_S)  # what it left can be read only when nobody works on it
        out = {}
        for step in steps:
            seen = self.observe(split_id(step.id)[1])
            reached = not isinstance(seen, Unreadable) and self.distance_n(step.target, seen) == 0
            out[step.id] = "" if reached else why or busy or "the package manager left it as it was"
        return out

    def brought(self, steps: Sequence[Step]) -> Callable[[str], bool]:
        """The files of these packages, as they are now."""
        reading = self.database.now()
        if isinstance(reading, Unreadable):
            return lambda resource: False
        names = [split_id(s.id)[1] for s in steps if s.target is not None]
        self.files.ahead(names, reading)
        root = os.fsencode(self.database.root)
        paths = {"file:" + encode_name(root + path) for name in names for path in self.files.of(name, reading)}
        return paths.__contains__

    # -- who uses it ----------------------------------------------------------------------------------------------

    def disturbs(self, step: Step) -> bool:
        """Not if it is only configured."""
        return step.actual is not None and (step.target is None or step.target["version"] != step.actual["version"])

    def roots(self, name: str, step: Step) -> list[bytes]:
        if not self.disturbs(step):
            return []
        reading = self.database.now()
        return [] if isinstance(reading, Unreadable) else self.files.used(name, reading)


KIND: Final = Package(os.environ.get(ROOT_VARIABLE, "").rstrip("/"))
