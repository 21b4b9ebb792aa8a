"""Which enforced things are found in closed directories when the agent starts."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from pact.agent.tracking import Tracking
from pact.declared.toml import Ignore
from pact.model import NS_PER_S, Declared
from pact.observe import open_observers
from pact.sim.parts import person
from pact.sim.world import World

pytestmark = [pytest.mark.root, pytest.mark.invariant("S2")]


def test_names_of_other_kinds_are_no_paths(tmp_path: Path) -> None:
    """A percent sign in one of them stopped each start."""
    (tmp_path / "closed").mkdir(mode=0o700)
    there, admin = f"file:{tmp_path}/closed/x", person("root", "admin", 0)
    world = World()
    world.start({"file:/etc/known": Declared({"value": "known"})})
    world.ask("track", admin, patterns={"service:*": "enforce", f"file:{tmp_path}/closed/*": "enforce"})
    for resource in ("service:50%.service", there):
        world.create(resource, {"value": "x"}, admin.owner)
        world.advance(NS_PER_S)
    assert world.node.state.enforced.keys() == {"service:50%.service", there}
    with closing(open_observers()) as observers:
        (found,) = Tracking(observers, Ignore()).closed(world.node)
    assert found.resource == there and found.actual == {"secret": True}
