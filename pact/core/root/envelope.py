"""Who asks the root, and where the answer goes: a client's request without its arguments."""

from __future__ import annotations

from typing import Final

from pact.model import Json, JsonRead
from pact.values import dataclass


@dataclass(frozen=True, slots=True)
class Asker:
    """A person with the role of the person's key; or the root itself after a window has ended."""

    user: str
    role: str
    via: str = "cluster"

    def to_json(self) -> Json:
        return {"user": self.user, "role": self.role, "via": self.via}


#: The root itself.
PACT: Final = Asker("pact", "agent")


@dataclass(frozen=True, slots=True)
class Envelope:
    """``client`` and ``id`` identify the request in answers. ``nodes``: a node set, ``None``: all. ``timeout_ms``: 0
    means the default."""

    client: str
    id: int
    op: str
    nodes: str | None
    caller: Asker
    timeout_ms: int = 0

    @property
    def key(self) -> tuple[str, int]:
        return self.client, self.id

    @classmethod
    def of(cls, head: JsonRead) -> Envelope:
        """From the head of a ``request`` frame, which its codec has checked."""
        caller = head["caller"]
        who = Asker(caller["user"], caller["role"], caller["via"])
        return cls(head["client"], head["id"], head["op"], head["nodes"], who, head["timeout_ms"])
