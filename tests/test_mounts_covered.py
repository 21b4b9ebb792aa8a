"""Mounts over declared paths: none counts as known to a later run before its record is durable, or owed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pact.agent.sightings import Sightings
from pact.core.node.events import Covered


@pytest.mark.invariant("J9", "R7")
def test_the_second_of_two_mounts_is_not_saved_with_the_record_of_the_first() -> None:
    """The first record saves the mount points. An agent that is killed right then must find the second one new."""
    told: list[str] = []
    saved_with: list[list[str]] = []
    watching = SimpleNamespace(covered={f"mount:/srv/{n}": ({"type": "mounted"}, None) for n in "ab"})

    def save() -> None:
        if not watching.covered:  # as ``Driver._save_points``
            saved_with.append(list(told))

    def tell(event: Covered) -> None:
        told.extend(event.mounts)
        save()  # a declaration is durable

    agent: Any = SimpleNamespace(
        watching=watching,
        ignore=SimpleNamespace(match=lambda resource: None),
        now=lambda: (1, 1),
        tell=tell,
        _save_points=save,
    )
    Sightings._cover(agent)
    assert told == ["mount:/srv/a", "mount:/srv/b"] and saved_with == [told] and not watching.covered
