"""What the workers of a virtual node do on its machine: they look, probe, restore and find.

Each function works now; what it returns makes the answer when that comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pact.core.node.events import (
    Act,
    Acted,
    Discover,
    Discovered,
    Event,
    Look,
    Looked,
    Probe,
    Probed,
    Sighting,
)
from pact.core.plan import Step
from pact.model import Attrs, Declared, Holder, Unreadable


class Place(Protocol):
    """What of a virtual node the work needs; ``World`` says what each is."""

    machine: dict[str, Attrs | None]
    holders: dict[str, list[Holder]]
    stubborn: set[str]
    deaf: set[str]
    refusals: list[str]
    t_ns: int
    wall_ns: int
    before_act: Any
    before_told: Any

    def observe(self, resource: str) -> Attrs | Unreadable | None: ...

    def maybe_crash(self) -> None: ...


def looked(world: Place, effect: Look) -> Callable[[], Event]:
    seen = [Sighting(r, world.observe(r)) for r in effect.resources]
    return lambda: Looked(world.t_ns, world.wall_ns, effect.job, seen)


def probed(world: Place, effect: Probe) -> Callable[[], Event]:
    seen = [Sighting(s.id, world.observe(s.id)) for s in effect.steps]
    differing = [s.resource for s, step in zip(seen, effect.steps, strict=True) if s.observation != step.target]
    holders = [h for r in differing for h in world.holders.get(r, ())] if effect.consumers else []
    saves = {r: {"attrs": world.machine.get(r)} for r in differing}
    refused = [] if effect.force else list(world.refusals)
    return lambda: Probed(world.t_ns, world.wall_ns, effect.job, seen, holders, refused, saves)


def acted(world: Place, effect: Act) -> Callable[[], Event]:
    results: dict[str, str] = {}
    untold: dict[str, Sequence[str]] = {}
    for step in effect.steps:
        if world.before_act is not None:
            world.before_act(world, step)
        world.maybe_crash()
        moves = step.owed or effect.resumed or world.observe(step.id) != step.target
        results[step.id] = restored(world, step)
        if moves and step.id in world.deaf and step.notify and not results[step.id]:
            untold[step.id] = step.notify
            results[step.id] = f"restored, but {step.notify[0]} failed: nobody listens"
    if world.before_told is not None:
        world.before_told(world)
    world.maybe_crash()
    seen = [Sighting(r, world.observe(r)) for r in (*(s.id for s in effect.steps), *effect.below)]
    return lambda: Acted(world.t_ns, world.wall_ns, effect.job, results, seen, untold=untold)


def restored(world: Place, step: Step) -> str:
    actual = world.observe(step.id)
    if isinstance(actual, Unreadable):
        return f"cannot be read: {actual.why}"
    if actual == step.target:
        return ""
    if actual != step.actual:
        return "changed again"
    if step.id in world.stubborn:
        return "permission denied"
    world.machine[step.id] = step.target
    return ""


def discovered(world: Place, effect: Discover) -> Callable[[], Event]:
    found = {
        r: Declared(v).to_json()
        for r, v in world.machine.items()
        if v is not None and any(r == p or (p.endswith("*") and r.startswith(p.rstrip("*"))) for p in effect.patterns)
    }
    exact = frozenset(r for r in found if r in effect.patterns)
    patterns = [p for p in effect.patterns if p.endswith("*")]
    return lambda: Discovered(world.t_ns, world.wall_ns, effect.job, found, exact, (), True, patterns)


WORKS: dict[type, Callable[[Any, Any], Callable[[], Event]]] = {
    Look: looked,
    Probe: probed,
    Act: acted,
    Discover: discovered,
}
