"""The kinds' pure functions, in the form for the core."""

from __future__ import annotations

from pact.agent.probing import distance_n
from pact.model import Attrs, split_id
from pact.resources import KINDS
from pact.resources.rules import KindRules


class MachineRules(KindRules):
    """The kinds' pure functions, for the core."""

    def distance_n(self, resource: str, declared: Attrs | None, actual: Attrs | None) -> int:
        return distance_n(resource, declared, actual)

    def volatile(self, resource: str) -> bool:
        return KINDS[resource.partition(":")[0]].volatile

    def meant_secret(self, resource: str, attrs: Attrs | None) -> bool:
        return KINDS[resource.partition(":")[0]].meant_secret(attrs)

    def matches(self, pattern: str, resource: str) -> bool:
        kind, name = split_id(resource)
        try:
            return pattern.startswith(kind + ":") and KINDS[kind].means(pattern[len(kind) + 1 :], name)
        except ValueError:
            return False  # another version accepted it
