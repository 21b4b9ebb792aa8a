"""The kinds of resources: every module of ``kinds`` that has a ``KIND``, and the kinds of other packages.

A site's own package names its kinds in its metadata, in the entry point group ``pact.kinds`` (``docs/kinds.md``). A
package that is installed into pact's own place is trusted like pact: its code runs as the agent.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from pathlib import Path
from typing import Final

from pact.errors import ConfigError, UsageError
from pact.host import owned
from pact.model import DIMENSIONS, split_id
from pact.resources import kinds
from pact.resources.base import Kind
from pact.resources.guarded import Guarded
from pact.resources.unknown import Unknown

GROUP: Final = "pact.kinds"


class Kinds(dict[str, Kind]):
    """Kinds by name. A journal may name a kind that is no longer installed: its resources are not read, and no process
    ends."""

    def __missing__(self, name: str) -> Kind:
        return Unknown(name)


def _discover() -> Kinds:
    found = Kinds()
    for info in pkgutil.iter_modules(kinds.__path__):
        kind = getattr(importlib.import_module(f"{kinds.__name__}.{info.name}"), "KIND", None)
        if isinstance(kind, Kind):
            found[kind.name] = kind
    if _others_installed():
        _add_others(found)
    return found


def _others_installed() -> bool:
    """Whether some package names this entry point group. ``importlib.metadata`` would tell too, but it takes 0.9 MiB of
    every agent's memory and 15 ms of its start, and nearly all sites have no other kinds.
    """
    if sys.flags.no_site and "site" not in sys.modules:  # ``packaging/pact-launcher`` leaves that to whom it concerns
        import site

        site.main()
    for place in sys.path:
        for names in Path(place or ".").glob("*.*-info/entry_points.txt"):
            try:
                if GROUP in names.read_text(errors="replace"):
                    return True
            except OSError:
                continue
    return False


def _add_others(found: Kinds) -> None:
    """Raises ConfigError for a kind that cannot be used (its declared resources would be lost), or whose code other
    accounts could have written.  # S9
    """
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        _require_owned(point.name, point.module)
        try:
            kind = point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # sys.exit() in a module would end every command without a word
            raise ConfigError(f"the kind {point.name!r} ({point.value}) cannot be loaded: {exc!r}") from exc
        if not isinstance(kind, Kind) or getattr(kind, "name", "") != point.name or not point.name.isidentifier():
            raise ConfigError(f"the kind {point.name!r} ({point.value}) is no Kind of that name")
        if kind.name in found:
            raise ConfigError(f"the kind {point.name!r} ({point.value}) has the name of another")
        found[kind.name] = Guarded(kind)


def _require_owned(name: str, module: str) -> None:
    """Check that no other account could have written the code that is about to run: the whole package.  # S9"""
    from importlib.util import find_spec

    try:
        package = find_spec(module.partition(".")[0])
    except (ImportError, ValueError) as exc:
        raise ConfigError(f"the kind {name!r} ({module}) cannot be loaded: {exc}") from exc
    if package is None:
        return  # it cannot be loaded either; loading reports that
    what = f"package of the kind {name!r}"
    if package.origin is None or not package.has_location:  # parts of it may come from anywhere
        raise ConfigError(f"the {what} ({module}) has no __init__.py: nobody can say what belongs to it")
    owned.require(package.origin, what)
    for place in package.submodule_search_locations or ():
        owned.require(place, what)
        for top, directories, files in os.walk(place):
            for each in (*directories, *files):
                owned.require(os.path.join(top, each), what)


KINDS: Kinds = _discover()


#: The kind whose new resources are found by walking directories.
WALKED: Final = next(k for k in KINDS.values() if k.walked)


def kind_of(resource: str) -> Kind:
    """The kind of a resource id. Raises UsageError for an unknown or malformed one."""
    try:
        kind, _ = split_id(resource)
    except ValueError as exc:
        raise UsageError(str(exc)) from None
    if kind in KINDS:
        return KINDS[kind]
    raise UsageError(f"{resource}: kind {kind!r} is not known", f"known kinds: {', '.join(sorted(KINDS))}")


def known() -> dict[str, tuple[str, float]]:
    """Kind -> dimension and default severity, in the order of dimensions, the lightest first."""
    every = {k.name: (k.dimension, k.severity) for k in KINDS.values()}
    return dict(sorted(every.items(), key=lambda item: (DIMENSIONS.index(item[1][0]), item[1][1])))


def dimensions() -> dict[str, str]:
    """Kind -> dimension, of all installed kinds."""
    return {k.name: k.dimension for k in KINDS.values()}


def severities() -> dict[str, float]:
    """Kind -> default severity, of all known kinds."""
    return {kind: severity for kind, (_, severity) in known().items()}


__all__ = ["GROUP", "KINDS", "WALKED", "Kind", "dimensions", "kind_of", "known", "severities"]
