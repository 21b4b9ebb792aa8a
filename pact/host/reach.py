"""Whom this node must always reach: its parents in the cluster, as the agent has them in its configuration.

Set once when the agent starts (its parents change only with a restart). Whoever changes the network asks here whom to
try before and after; without parents the default gateways count instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: Host (a name or an address) and port.
Place = tuple[str, int]

_places: Final[list[Place]] = []


def must_reach(urls: Iterable[str]) -> None:
    """``tcp://HOST:PORT``, as checked by the configuration."""
    _places[:] = [p for p in map(_place, urls) if p is not None]


def places() -> tuple[Place, ...]:
    return tuple(_places)


def _place(url: str) -> Place | None:
    host, colon, port = url.removeprefix("tcp://").rpartition(":")
    return (host.strip("[]"), int(port)) if colon and port.isdigit() else None
