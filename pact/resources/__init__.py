"""The kinds of resources. One file a kind; a new kind needs nothing but its file and its tests.

``KINDS`` finds every module of this package that has a ``KIND``.
"""

from __future__ import annotations

import importlib
import pkgutil

from pact.core.settings import DIMENSION_OF
from pact.errors import UsageError
from pact.model import split_id
from pact.resources.base import Kind


def _discover() -> dict[str, Kind]:
    found: dict[str, Kind] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name in ("base", "consumers", "discover", "memory", "patterns", "replace", "toml"):
            continue
        kind = getattr(importlib.import_module(f"{__name__}.{info.name}"), "KIND", None)
        if isinstance(kind, Kind):
            found[kind.name] = kind
    return found


KINDS: dict[str, Kind] = _discover()


def kind_of(resource: str) -> Kind:
    """The kind of a resource id. Raises UsageError for one that is unknown or malformed."""
    try:
        kind, _ = split_id(resource)
    except ValueError as exc:
        raise UsageError(str(exc)) from None
    try:
        return KINDS[kind]
    except KeyError:
        why = "is not built into this version of pact" if kind in DIMENSION_OF else "is not known"
        raise UsageError(f"{resource}: kind {kind!r} {why}", f"known kinds: {', '.join(sorted(KINDS))}") from None


__all__ = ["KINDS", "Kind", "kind_of"]
