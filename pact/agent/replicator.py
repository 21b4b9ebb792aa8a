"""What the agent needs of its place in a cluster, which is loaded only where there is one (``link``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pact.core.records import Record
from pact.model import Actor


class FromAfar(Protocol):
    """Streams of people who come through the tree; ``fds``: descriptors of the loop that belong to them."""

    fds: dict[int, Any]

    def ready(self, fd: int, mask: int) -> None: ...

    def open(self, client: Any, request: Any) -> None: ...

    def attach(self, client: Any, request: Any) -> None: ...


class Replicator(Protocol):
    """Brings records to the root."""

    @property
    def streams(self) -> FromAfar: ...

    def execute(self, client: Any, request: Any) -> None:
        """Run a command for a person who asked many nodes."""

    def revoke(self, user: str) -> None: ...

    @property
    def replicated(self) -> int:
        """The newest record that the root has."""

    @property
    def apart(self) -> str:
        """Why nothing more of this journal goes to the root; "" if it does."""

    def recorded(self, rows: Sequence[tuple[Record, bytes]]) -> None:
        """These records are durable on this node."""

    def status(self) -> dict[str, Any]: ...

    def spend(self, actor: Actor, seconds: float) -> None:
        """The loop was at a request of this person for so long."""

    def turn(self) -> None: ...

    def next_wake_ns(self) -> int: ...

    def close(self) -> None: ...
