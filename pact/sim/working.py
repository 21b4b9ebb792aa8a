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
    fickle: set[str]
    stale: set[str]
    refusals: list[str]
    t_ns: int
    wall_ns: int
    before_act: Any
    before_told: Any

    def observe(self, resource: str) -> Attrs | Unreadable | None: ...

    def maybe_crash(self) -> None: ...

    def meanwhile(self, effect: Act) -> None: ...


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
    moved = {s.id for s in effect.steps if s.owed or effect.resumed}
    for step in effect.steps:
        if world.before_act is not None:
            world.before_act(world, step)
        world.maybe_crash()
        before = world.observe(step.id)
        results[step.id] = restored(world, step)
        if world.observe(step.id) != before:
            moved.add(step.id)
            world.stale |= {step.id} if step.notify else set()
    if world.before_told is not None:
        world.before_told(world)
    world.maybe_crash()
    untold: dict[str, Sequence[str]] = {}
    told = set[str]()
    for step in effect.steps:
        if not step.notify or step.id not in moved:
            continue
        if results[step.id]:
            untold[step.id] = step.notify
        elif step.id in world.deaf:
            untold[step.id] = step.notify
            results[step.id] = f"restored, but {step.notify[0]} failed: nobody listens"
        else:
            world.stale.discard(step.id)
            told.add(step.id)
    world.meanwhile(effect)
    seen = [Sighting(r, world.observe(r)) for r in (*(s.id for s in effect.steps), *effect.below)]
    return lambda: Acted(world.t_ns, world.wall_ns, effect.job, results, seen, untold=untold, told=told)


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
    if step.id in world.fickle:
        world.machine[step.id] = {"value": "something else"}
        return "it was restored but does not stay so"
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
