"""Small parts of the virtual world: callers, the rules of a virtual machine's kinds, a bell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pact.core.node.events import Caller
from pact.core.settings import Settings, billionths
from pact.model import Actor, Attrs, Owner
from pact.resources import KINDS, dimensions, severities
from pact.resources.rules import KindRules


class SimRules(KindRules):
    """A resource that differs at all has the full distance."""

    def distance_n(self, resource: str, declared: Attrs | None, actual: Attrs | None) -> int:
        return 0 if declared == actual else 1_000_000_000

    def volatile(self, resource: str) -> bool:
        return KINDS[resource.partition(":")[0]].volatile

    def meant_secret(self, resource: str, attrs: Attrs | None) -> bool:
        return False

    def matches(self, pattern: str, resource: str) -> bool:
        return resource.startswith(pattern.rstrip("*"))


def person(name: str, role: str = "ops", uid: int | None = None) -> Caller:
    """A caller with a separate login session."""
    number = sum(map(ord, name)) if uid is None else uid
    owner = Owner(f"login:{number}:{number % 7}", name, number, str(number % 7), f"{name}-command")
    return Caller(Actor(name, number, role, "socket"), owner)


@dataclass(slots=True)
class Bell:
    """Rung whenever a node is stepped, starts or dies: code that waits for nodes then checks them again."""

    rung: bool = False


def with_settings(**changes: Any) -> Settings:
    """An agent's default settings, with these changes."""
    severity_n = {kind: billionths(severity) for kind, severity in severities().items()}
    return replace(Settings(severity_n=severity_n, dimensions=dimensions()), **changes)
