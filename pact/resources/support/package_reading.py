"""What a package database says, for the two families of them; names and versions, and how versions compare. Pure.

A name is the package's own; another architecture than the machine's is a part of it, as the package manager writes it:
``libc6:i386``, ``glibc.i686``. Versions are text: nothing here sorts them, the package managers do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pact.model import Attrs

#: A declared version that every installed one conforms to; no package can have it.
ANY: Final = "*"
NAME_MAX: Final = 256
VERSION_MAX: Final = 256
SHOWN_MAX: Final = 8
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+~^-]*(?::[a-z0-9][a-z0-9-]*)?\Z", re.ASCII)
VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~^:_-]*\Z", re.ASCII)
#: Packages that one database may hold: more is no machine's, and each costs memory.
PACKAGES_MAX: Final = 50_000


class ReadError(Exception):
    """The database cannot be read; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One database at one moment. ``versions``: by name; ``states``: those that are not simply installed
    (``half-configured``); ``others``: further installed versions of the same name, oldest first (kernels); ``left``:
    how many packages are removed with their configuration files left; ``native``: the machine's architecture."""

    manager: str
    native: str
    versions: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left: int = 0

    def plain(self, name: str) -> str:
        """The name without the machine's own architecture, if it ends with that."""
        return name.removesuffix((":" if self.manager == "dpkg" else ".") + self.native)

    def attrs(self, name: str) -> Attrs | None:
        """The package's attributes; ``None`` if it is not installed."""
        version = self.versions.get(name)
        if version is None:
            name = self.plain(name)
            version = self.versions.get(name)
            if version is None:
                return None
        out: Attrs = {"version": version}
        if self.manager == "dpkg" and "-" not in version:
            out["native"] = True
        if name in self.others:
            out["also"] = list(self.others[name])
        if name in self.states:
            out["status"] = self.states[name]
        return out

    def differing(self, earlier: Reading) -> set[str]:
        """The names that are not as in an earlier reading."""
        if earlier.manager != self.manager or earlier.native != self.native:
            return {*self.versions, *earlier.versions}
        out = {n for n in self.versions.keys() | earlier.versions.keys() if not _equal(n, self, earlier)}
        for name in self.states.keys() | earlier.states.keys():
            if self.states.get(name) != earlier.states.get(name):
                out.add(name)
        for name in self.others.keys() | earlier.others.keys():
            if self.others.get(name) != earlier.others.get(name):
                out.add(name)
        return out


def _equal(name: str, one: Reading, other: Reading) -> bool:
    return one.versions.get(name) == other.versions.get(name)


def require_name(name: str) -> str:
    """The name. Raises ValueError if no package can have it."""
    if len(name) > NAME_MAX or not NAME.match(name):
        raise ValueError(f"{name[:80]!r} is no package name")
    return name


def is_version(text: object) -> bool:
    return isinstance(text, str) and len(text) <= VERSION_MAX and VERSION.match(text) is not None


def same_version(declared: str, actual: str, *, native: bool = False) -> bool:
    """Whether an installed version is the declared one, as rpm's and dpkg's users write them: a declared version
    without an epoch stands for every epoch of rpm (``0:`` is none), and one without a release (the part after the last
    ``-``) for every release. ``native``: the declared one is known to have no release, and stands for itself alone."""
    if declared in (actual, ANY):
        return True
    epoch, _, rest = declared.rpartition(":")
    other, _, actual_rest = actual.rpartition(":")
    if (epoch or "0") != (other or "0") and epoch:
        return False
    if rest == actual_rest:
        return True
    return not native and "-" not in rest and actual_rest.rpartition("-")[0] == rest


@dataclass(frozen=True, slots=True)
class Move:
    """One package of a plan: from the installed version ``have`` (with its ``status``) to ``version``; ``None`` is
    absent. ``native``: the wanted version is known to have no release."""

    name: str
    version: str | None
    have: str | None
    status: str = ""
    native: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """Why a plan would not be carried out: by package, and as a ``whole``."""

    each: Mapping[str, str] = field(default_factory=dict)
    whole: str = ""

    @property
    def refused(self) -> bool:
        return bool(self.each or self.whole)

    def text(self) -> str:
        parts = [f"{name} {why}" for name, why in sorted(self.each.items())[:SHOWN_MAX]]
        return "; ".join([*parts, *([self.whole] if self.whole else [])])

    @staticmethod
    def beyond(coming: Collection[str], going: Collection[str]) -> str:
        """What a plan would move beside its own packages; ``""`` if nothing."""
        said = [
            f"{verb} {_listed(names)}" for verb, names in (("install or replace", coming), ("remove", going)) if names
        ]
        return f"it would also {' and '.join(said)}: a person decides" if said else ""


def _listed(names: Iterable[str]) -> str:
    every = sorted(names)
    more = f" and {len(every) - SHOWN_MAX} more" if len(every) > SHOWN_MAX else ""
    return ", ".join(every[:SHOWN_MAX]) + more
