"""Whether pact has taken the node out of its batch system's service, in a status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def service(doc: Mapping[str, Any], *, ids: bool = True) -> Iterable[str]:
    """Lines for people, as they came. ``ids``: with the numbers of changes, which each node counts by itself."""
    found = doc.get("scheduler", {})
    if found.get("drained"):
        yield f"drained: {found['drained']}" if ids else "drained"
    if found.get("not_drained"):
        yield f"not drained: {found['not_drained']}"
    if found.get("error"):
        yield f"batch system: {found['error']}"
