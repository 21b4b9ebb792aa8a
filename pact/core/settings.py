"""The operator's settings on which decisions depend, as integers, so that a replayed journal needs nothing else.

Weights, severities and the sensitivity are in billionths (``_n``), durations in nanoseconds (``_ns``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pact.model import DIMENSIONS, NS_PER_S, Json, JsonRead

BILLION: Final = 1_000_000_000

DEFAULT_WEIGHTS: Final[Mapping[str, float]] = {
    "kernel": 2.0,
    "files": 1.0,
    "mounts": 1.0,
    "services": 1.0,
    "network": 1.0,
    "packages": 1.0,
    "gpu": 2.0,
}

#: The severity of a kind that is not configured, and whose package is gone.
SEVERITY_N: Final = BILLION // 10


def billionths(value: float) -> int:
    """``value`` in integer billionths, rounded to nearest."""
    return round(value * BILLION)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting that a decision reads. ``to_json`` is part of each ``agent_started`` record."""

    base_ns: int = 900 * NS_PER_S
    sensitivity_n: int = 2 * BILLION
    floor_ns: int = 60 * NS_PER_S
    emergency_ns: int = 4 * 3600 * NS_PER_S
    enforce: bool = True
    on_busy_retry: bool = False
    retry_ns: int = 30 * NS_PER_S
    max_resources: int = 500
    alone_ns: int = 600 * NS_PER_S
    weights_n: Mapping[str, int] = field(
        default_factory=lambda: {d: billionths(DEFAULT_WEIGHTS[d]) for d in DIMENSIONS}
    )
    severity_n: Mapping[str, int] = field(default_factory=dict)
    #: Kind -> dimension, as the kinds define it, including kinds of earlier runs.
    dimensions: Mapping[str, str] = field(default_factory=dict)

    def dimension_of(self, resource: str) -> str:
        """The dimension of the resource's kind; for an unknown kind the first one, but no unknown kind has drift."""
        return self.dimensions.get(resource.partition(":")[0], DIMENSIONS[0])

    def severity_of(self, resource: str) -> int:
        """The severity of the resource's kind, in billionths."""
        return self.severity_n.get(resource.partition(":")[0], SEVERITY_N)

    def to_json(self) -> Json:
        return {
            "base_ns": self.base_ns,
            "sensitivity_n": self.sensitivity_n,
            "floor_ns": self.floor_ns,
            "emergency_ns": self.emergency_ns,
            "enforce": self.enforce,
            "on_busy_retry": self.on_busy_retry,
            "retry_ns": self.retry_ns,
            "max_resources": self.max_resources,
            "alone_ns": self.alone_ns,
            "weights_n": dict(self.weights_n),
            "severity_n": dict(self.severity_n),
            **({"dimensions": dict(self.dimensions)} if self.dimensions else {}),
        }

    @classmethod
    def from_json(cls, data: JsonRead) -> Settings:
        return cls(**data)
